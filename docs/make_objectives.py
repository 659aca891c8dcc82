"""Writes docs/objectives.md from the objectives' docstrings and docs/trl_losses.yaml.

Run it after changing either.  A test compares the file with what this makes, so it cannot drift.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from jaxpref.objectives import FAMILIES, KINDS, OBJECTIVES, TRANSFORMS
from jaxpref.objectives.about import SECTIONS, data, flow, hyperparameters, needed_logps, sections
from jaxpref.objectives.contract import Transform

HERE = Path(__file__).parent


def page() -> str:
    """The whole of docs/objectives.md."""
    return "\n".join([_intro(), *map(_family, FAMILIES), _transforms(), _trl()]).rstrip() + "\n"


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
    lines = [f"### {function.__name__}\n", flow(summary) + "\n"]
    lines += [body + "\n"] if body else []
    lines += [
        f"- **Data:** {_data(function)}",
        f"- **Hyperparameters:** {_hyperparameters(function)}",
    ]
    names = {"Returns": "Value", "Source": "Source", "Use": "Use", "Curves": "Curves"}
    lines += [f"- **{names[name]}:** {flow(text[name])}" for name in names if name in text]
    return "\n".join(lines) + "\n"


def _data(function: Callable) -> str:
    takes = ["takes [transforms](#transforms)"] if function.needs.transformable else []
    return "; ".join(data(function) + takes)


def _hyperparameters(function: Callable) -> str:
    shown = [f"`{name}`{value}" for name, value in hyperparameters(function).items()]
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
    line = f"- `{name}` ({hyperparameters}{tokens}): {flow(text[''])}"
    line += "".join(f"  Needs {held}." for held in needed_logps(transform.logps))
    return line + (f"  Source: {flow(text['Source'])}" if "Source" in text else "")


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
