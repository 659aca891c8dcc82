"""Writes docs/objectives.md from the objectives' docstrings and docs/trl_losses.yaml.

Run it after changing either.  A test compares the file with what this makes, so it cannot drift.
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
"""Optional field of `Logps` -> what it holds for an objective, and what that asks of the config."""


def page() -> str:
    """The whole of docs/objectives.md."""
    return "\n".join([_intro(), *map(_family, FAMILIES), _transforms(), _trl()]).rstrip() + "\n"


def sections(function: Callable) -> dict[str, str]:
    """Docstring -> {"": what stands before the first section, "Args": ..., ...}."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):", inspect.getdoc(function), flags=re.MULTILINE)
    named = zip(parts[1::2], parts[2::2], strict=True)
    return {"": parts[0].strip()} | {name: body.strip() for name, body in named}


def _intro() -> str:
    kinds = "\n".join(f"- `{kind}`: {meaning}" for kind, meaning in KINDS.items())
    links = ", ".join(f"[`{name}`](#{name})" for name in OBJECTIVES)
    return f"""# Objectives

Made by `docs/make_objectives.py` from the docstrings; change those.

The notation: `rho = log pi(y|x) - log pi_ref(y|x)`, summed over the loss tokens of a completion
(end-of-sequence included), in nats; `n` its number of loss tokens; `L` its summed log-prob.
Completion 0 is the chosen one, 1 the rejected one.  Every value is a weighted mean over the whole
batch, whatever the micro-batches, packing and mesh.  Where an objective has a `weight`, the data
column `weight` weights its pairs.

"Where policy equals reference" is where most runs start, and there the value is known before any
model is run.  A new run holds its first loss against it, for every objective of the sum whose value
follows from the data alone, and ends with an error where they differ by more than rounding.

A config lists objectives with their hyperparameters; the list is a weighted sum:

    objective:
      - {{name: dpo, beta: 0.1}}
      - {{name: sft, weight: 0.5}}
      - {{name: odpo, columns: {{score: scores/helpful}}}}    # another data column for an array
      - {{name: ipo, transform: {{name: ld, alpha: 0.5}}}}    # log-probs changed before it
      - {{name: mypackage.mymodule:my_loss, scale: 2.0}}    # a function of your own

[Transforms](#transforms) are listed below.  The kinds of groups that data may have, and that an
objective is defined on:

{kinds}

{len(OBJECTIVES)} objectives: {links}.
"""


def _family(module) -> str:
    functions = [f for f in OBJECTIVES.values() if f.__module__ == module.__name__]
    title, _, rest = inspect.getdoc(module).partition("\n\n")
    lines = [f"## {title.rstrip('.')}\n"]
    lines += [rest + "\n"] if rest else []
    return "\n".join([*lines, *map(_objective, functions)])


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
    words = {"ref": "a reference model", "extra_refs": "further references (`reference.extra`)"}
    if set(needs.groups) == set(KINDS):
        asks = ["any groups"]
    else:
        asks = ["groups: " + ", ".join(f"`{kind}`" for kind in needs.groups)]
    for parameter in inspect.signature(function).parameters.values():
        given = parameter.name in ("policy", "running", "uniform")
        if given or parameter.kind is parameter.KEYWORD_ONLY:
            continue
        optional = "" if parameter.default is parameter.empty else " (optional)"
        asks.append(words.get(parameter.name, f"column `{parameter.name}`") + optional)
    asks += [LOGPS[name] for name in needs.logps]
    if needs.coupled:
        asks.append("couples the groups of a batch, exact under accumulation")
    if needs.transformable:
        asks.append("takes [transforms](#transforms)")
    return "; ".join(asks)


def _hyperparameters(function: Callable) -> str:
    shown = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            required = parameter.default is parameter.empty
            value = " (required)" if required else f" = {parameter.default}"
            shown.append(f"`{parameter.name}`{value}")
    return ", ".join(shown) or "none"


def _transforms() -> str:
    takes = ", ".join(
        f"`{name}`" for name, function in OBJECTIVES.items() if function.needs.transformable
    )
    intro = f"""## Transforms

Changes of the log-probs before an objective, named by its `transform`.  A list may name one that
leaves out tokens, and after it one of the others.  They go with functions of the log-ratios of a
pair, and with functions of your own without `needs`:

{takes}.
"""
    return "\n".join([intro, *(_transform(*item) for item in TRANSFORMS.items()), ""])


def _transform(name: str, transform: Transform) -> str:
    text = sections(transform.function)
    hyperparameters = _hyperparameters(transform.function)
    tokens = "; leaves out tokens" if transform.shortens else ""
    line = f"- `{name}` ({hyperparameters}{tokens}): {_flow(text[''])}"
    line += "".join(f"  Needs {LOGPS[field]}." for field in transform.logps)
    return line + (f"  Source: {_flow(text['Source'])}" if "Source" in text else "")


def _trl() -> str:
    rows = ["| TRL | jaxpref's `objective` | note |", "|---|---|---|"]
    for entry in yaml.safe_load((HERE / "trl_losses.yaml").read_text()):
        ours = yaml.safe_dump(
            entry["ours"], default_flow_style=True, sort_keys=False, width=10_000
        ).strip()
        star = "" if "cases" in entry else "\\*"
        rows.append(f"| {entry['trl']}{star} | `{ours}` | {entry.get('note', '')} |")
    tested = "tested against values of TRL 1.16.0 in float64, except for the rows with a star"
    return "\n".join(["## Coming from TRL 1.16\n", f"The same numbers ({tested}):\n", *rows, ""])


def _flow(text: str) -> str:
    """The text on one line."""
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
