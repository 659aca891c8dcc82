"""Writes docs/objectives.md from the objectives' docstrings and docs/trl_losses.yaml; run it after changing either.

A test compares the file with what this makes, so that it cannot drift.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from jaxpref.objectives import FAMILIES, KINDS, OBJECTIVES, TRANSFORMS, Needs
from jaxpref.objectives.contract import Transform

HERE = Path(__file__).parent
SECTIONS = ("Args", "Returns", "Source", "Use", "Curves")
LOGPS = {
    "common": "log-probs of the first tokens alone (`reference.mode: copy`)",
    "sampled": "log-probs of drawn tokens (`reference.mode: copy`)",
    "collision": "the policy's collision probabilities",
    "kl": "KL divergences from the reference over the vocabulary (`reference.mode: copy`)",
    "prompt": "the prompt's log-prob",
    "reward": "a scalar head, `reward`, which is trained from 0",
    "value": "a scalar head, `value`, which is trained from 0",
    "router": "the router of a mixture of experts",
}
"""Optional fields of `Logps` -> what an objective that reads them works on, and what that asks of the config."""


def page() -> str:
    """The whole of docs/objectives.md."""
    return "\n".join([_intro(), *map(_family, FAMILIES), _transforms(), _trl()]).rstrip() + "\n"


def sections(function: Callable) -> dict[str, str]:
    """Docstring -> {"": what stands before the first section, "Args": ..., ...}."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):", inspect.getdoc(function), flags=re.MULTILINE)
    return {"": parts[0].strip()} | {
        name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def _intro() -> str:
    kinds = "\n".join(f"- `{kind}`: {meaning}" for kind, meaning in KINDS.items())
    return f"""# Objectives

Made by `docs/make_objectives.py` from the docstrings; change those.

The notation: `rho = log pi(y|x) - log pi_ref(y|x)`, summed over the loss tokens of a completion (end-of-sequence
included), in nats; `n` its loss tokens; `L` its summed log-prob.  Completion 0 is the chosen one, 1 the rejected one.
Every value is a weighted mean over the whole batch, whatever the micro-batches, packing and mesh.  Where an objective
has a `weight`, the data column `weight` weighs its pairs.

A config lists objectives with their hyperparameters; the list is a weighted sum:

    objective:
      - {{name: dpo, beta: 0.1}}
      - {{name: sft, weight: 0.5}}
      - {{name: odpo, columns: {{score: scores/helpful}}}}    # another data column for an array
      - {{name: ipo, transform: {{name: ld, alpha: 0.5}}}}    # log-probs changed before it: [Transforms](#transforms)
      - {{name: mypackage.mymodule:my_loss, scale: 2.0}}    # a function of one's own

What a group of the data holds, and what an objective is defined on:

{kinds}

{len(OBJECTIVES)} objectives: {", ".join(f"[`{name}`](#{name})" for name in OBJECTIVES)}.
"""


def _family(module) -> str:
    functions = [f for f in OBJECTIVES.values() if f.__module__ == module.__name__]
    title, _, rest = inspect.getdoc(module).partition("\n\n")
    return "\n".join(
        [f"## {title.rstrip('.')}\n", *([rest + "\n"] if rest else []), *map(_objective, functions)]
    )


def _objective(function: Callable) -> str:
    text = sections(function)
    summary, _, body = text[""].partition("\n\n")
    lines = [f"### {function.__name__}\n", _flow(summary) + "\n"]
    lines += [body + "\n"] if body else []
    lines += [
        f"- **Data:** {_data(function)}",
        f"- **Hyperparameters:** {_hyperparameters(function)}",
    ]
    names = {"Returns": "Value", "Source": "Source", "Use": "Use", "Curves": "Curves"}
    lines += [f"- **{names[name]}:** {_flow(text[name])}" for name in names if name in text]
    return "\n".join(lines) + "\n"


def _data(function: Callable) -> str:
    needs = getattr(function, "needs", Needs())
    given = {"policy", "running", "uniform"}
    parameters = [
        p for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY
    ]
    words = {"ref": "a reference model", "extra_refs": "further references (`reference.extra`)"}
    asks = [
        words.get(p.name, f"column `{p.name}`") + ("" if p.default is p.empty else " (optional)")
        for p in parameters if p.name not in given
    ]  # fmt: skip
    kinds = (
        "any groups"
        if set(needs.groups) == set(KINDS)
        else "groups: " + ", ".join(f"`{k}`" for k in needs.groups)
    )
    coupled = ["couples the groups of a batch, exact under accumulation"] if needs.coupled else []
    transformable = ["takes [transforms](#transforms)"] if needs.transformable else []
    return "; ".join(
        [kinds, *asks, *(LOGPS[name] for name in needs.logps), *coupled, *transformable]
    )


def _hyperparameters(function: Callable) -> str:
    parameters = [
        p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    shown = [
        f"`{p.name}`" + (f" = {p.default}" if p.default is not p.empty else " (required)")
        for p in parameters
    ]
    return ", ".join(shown) or "none"


def _transforms() -> str:
    takes = ", ".join(
        f"`{name}`" for name, function in OBJECTIVES.items() if function.needs.transformable
    )
    intro = f"""## Transforms

Changes of the log-probs before an objective, named by its `transform`.  A list may name one that leaves out tokens, and
after it one of the others.  They go with functions of the log-ratios of a pair, and with functions of one's own without
`needs`:

{takes}.
"""
    return "\n".join(
        [intro, *(_transform(name, transform) for name, transform in TRANSFORMS.items()), ""]
    )


def _transform(name: str, transform: Transform) -> str:
    text = sections(transform.function)
    needs = "".join(f"  Needs {LOGPS[field]}." for field in transform.logps)
    source = f"  Source: {_flow(text['Source'])}" if "Source" in text else ""
    tokens = "; leaves out tokens" if transform.shortens else ""
    return f"- `{name}` ({_hyperparameters(transform.function)}{tokens}): {_flow(text[''])}{needs}{source}"


def _trl() -> str:
    rows = ["| TRL | jaxpref's `objective` | note |", "|---|---|---|"]
    for entry in yaml.safe_load((HERE / "trl_losses.yaml").read_text()):
        ours = yaml.safe_dump(
            entry["ours"], default_flow_style=True, sort_keys=False, width=10_000
        ).strip()
        star = "" if "cases" in entry else "\\*"
        rows.append(f"| {entry['trl']}{star} | `{ours}` | {entry.get('note', '')} |")
    return "\n".join([
        "## Coming from TRL 1.16\n",
        "The same numbers (tested against values of TRL 1.16.0 in float64, but for the rows with a star):\n",
        *rows, "",
    ])  # fmt: skip


def _flow(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())


def missing() -> Iterator[str]:
    """Objectives whose docstring lacks a section."""
    for name, function in OBJECTIVES.items():
        yield from (
            f"{name}: {section}" for section in SECTIONS if section not in sections(function)
        )


if __name__ == "__main__":
    if problems := list(missing()):
        sys.exit("\n".join(problems))
    (HERE / "objectives.md").write_text(page())
