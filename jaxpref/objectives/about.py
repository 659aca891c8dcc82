"""What objectives say of themselves in signature and docstring: read for the docs and a command."""

import inspect
import re
from collections.abc import Callable
from typing import Any

from jaxpref.objectives.contract import KINDS, Needs

SECTIONS = ("Args", "Returns", "Source", "Use", "Curves")
"""Of a docstring."""
_LOGPS = {
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


def sections(function: Callable) -> dict[str, str]:
    """Docstring -> {"": what stands before the first section, "Args": ..., ...}."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):", inspect.getdoc(function), flags=re.MULTILINE)
    named = zip(parts[1::2], parts[2::2], strict=True)
    return {"": parts[0].strip()} | {name: body.strip() for name, body in named}


def summary(function: Callable) -> str:
    """The first sentence, on one line."""
    return flow(sections(function)[""].partition("\n\n")[0])


def data(function: Callable) -> list[str]:
    """What it asks of data and config."""
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
    asks += needed_logps(needs.logps)
    if needs.coupled:
        asks.append("couples the groups of a batch, exact under accumulation")
    return asks


def needed_logps(fields: tuple[str, ...]) -> list[str]:
    """What optional fields of `Logps` hold."""
    return [_LOGPS[name] for name in fields]


def hyperparameters(function: Callable) -> dict[str, str]:
    """Name -> ` = default`, or that it is required."""
    shown = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            required = parameter.default is parameter.empty
            shown[parameter.name] = " (required)" if required else f" = {parameter.default}"
    return shown


def defaults(function: Callable) -> dict[str, Any]:
    """Hyperparameter -> the value that it has where none is set."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }


def flow(text: str) -> str:
    """The text on one line."""
    return " ".join(line.strip() for line in text.splitlines())
