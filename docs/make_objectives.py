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

HERE = Path(__file__).parent
SECTIONS = ("Args", "Returns", "Source", "Use", "Curves")


def page() -> str:
    """The whole of docs/objectives.md."""
    return "\n".join([_intro(), *map(_family, FAMILIES), _transforms(), _trl()]).rstrip() + "\n"


def sections(function: Callable) -> dict[str, str]:
    """Docstring -> {"": what stands before the first section, "Args": ..., ...}."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):", inspect.getdoc(function), flags=re.MULTILINE)
    return {"": parts[0].strip()} | {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def _intro() -> str:
    kinds = "\n".join(f"- `{kind}`: {meaning}" for kind, meaning in KINDS.items())
    return f"""# Objectives

Made by `docs/make_objectives.py` from the docstrings; change those.

The notation: `rho = log pi(y|x) - log pi_ref(y|x)`, summed over the scored tokens of a completion (end-of-sequence
included), in nats; `n` its scored tokens; `L` its summed log-prob.  Completion 0 is the chosen one, 1 the rejected one.
Every value is a weighted mean over the whole batch, whatever the micro-batches, packing and mesh.  Where an objective
has a `weight`, the data column `weight` weighs its pairs.

A config lists objectives with their hyperparameters; the list is a weighted sum:

    objective:
      - {{name: dpo, beta: 0.1}}
      - {{name: sft, weight: 0.5}}
      - {{name: odpo, columns: {{score: scores/helpful}}}}    # another data column for an array
      - {{name: ipo, transform: {{name: ld, alpha: 0.5}}}}    # log-probs changed before the objective
      - {{name: mypackage.mymodule:my_loss, scale: 2.0}}    # a function of one's own

What a group of the data holds, and what an objective is defined on:

{kinds}

{len(OBJECTIVES)} objectives: {", ".join(f"[`{name}`](#{name})" for name in OBJECTIVES)}.
"""


def _family(module) -> str:
    functions = [f for f in OBJECTIVES.values() if f.__module__ == module.__name__]
    title, _, rest = inspect.getdoc(module).partition("\n\n")
    return "\n".join([f"## {title.rstrip('.')}\n", *([rest + "\n"] if rest else []), *map(_objective, functions)])


def _objective(function: Callable) -> str:
    text = sections(function)
    summary, _, body = text[""].partition("\n\n")
    lines = [f"### {function.__name__}\n", _flow(summary) + "\n"]
    lines += [body + "\n"] if body else []
    lines += [f"- **Data:** {_data(function)}", f"- **Hyperparameters:** {_hyperparameters(function)}"]
    names = {"Returns": "Value", "Source": "Source", "Use": "Use", "Curves": "Curves"}
    lines += [f"- **{names[name]}:** {_flow(text[name])}" for name in names if name in text]
    return "\n".join(lines) + "\n"


def _data(function: Callable) -> str:
    needs = getattr(function, "needs", Needs())
    given = {"policy", "running", "uniform"}
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    words = {"ref": "a reference model", "extra_refs": "further references (`reference.extra`)"}
    asks = [
        words.get(p.name, f"column `{p.name}`") + ("" if p.default is p.empty else " (optional)")
        for p in parameters if p.name not in given
    ]  # fmt: skip
    kinds = "any groups" if set(needs.groups) == set(KINDS) else "groups: " + ", ".join(f"`{k}`" for k in needs.groups)
    coupled = ["couples the groups of a batch, exact under accumulation"] if needs.coupled else []
    return "; ".join([kinds, *asks, *coupled])


def _hyperparameters(function: Callable) -> str:
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    shown = [f"`{p.name}`" + (f" = {p.default}" if p.default is not p.empty else " (required)") for p in parameters]
    return ", ".join(shown) or "none"


def _transforms() -> str:
    entries = []
    for function in TRANSFORMS.values():
        text = sections(function)
        source = f"  Source: {_flow(text['Source'])}" if "Source" in text else ""
        entries.append(f"- `{function.__name__}` ({_hyperparameters(function)}): {_flow(text[''])}{source}")
    return "\n".join(["## Transforms\n", "Named by a part's `transform`, they go with any objective.\n", *entries, ""])


def _trl() -> str:
    rows = ["| TRL | jaxpref's `objective` | note |", "|---|---|---|"]
    for entry in yaml.safe_load((HERE / "trl_losses.yaml").read_text()):
        ours = yaml.safe_dump(entry["ours"], default_flow_style=True, sort_keys=False, width=10_000).strip()
        rows.append(f"| {entry['trl']} | `{ours}` | {entry.get('note', '')} |")
    return "\n".join([
        "## Coming from TRL 1.16\n",
        "The same numbers (tested against values of TRL 1.16.0 in float64):\n",
        *rows, "",
    ])  # fmt: skip


def _flow(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())


def missing() -> Iterator[str]:
    """Objectives whose docstring lacks a section."""
    for name, function in OBJECTIVES.items():
        yield from (f"{name}: {section}" for section in SECTIONS if section not in sections(function))


if __name__ == "__main__":
    if problems := list(missing()):
        sys.exit("\n".join(problems))
    (HERE / "objectives.md").write_text(page())
