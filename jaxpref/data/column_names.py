"""Names that others give to the columns of a row: told apart from ours, and what to say of them."""

import difflib
from collections.abc import Mapping
from typing import Any

from jaxpref.data.columns import KNOWN_COLUMNS

LIKELY = {
    "prompt": (
        "question",
        "query",
        "instruction",
        "input",
        "problem",
        "context",
        "post",
        "conversation",
        "conversations",
        "dialog",
        "dialogue",
        "messages",
        "history",
    ),
    "chosen": ("accepted", "preferred", "better", "winner", "positive"),
    "rejected": ("dispreferred", "worse", "loser", "negative"),
    "completion": ("response", "answer", "output", "target", "messages", "conversations"),
}
"""Names that others give to a column of texts."""


def looks_like_prompt(name: str) -> bool:
    """Whether a column of this name may hold the prompt of a row without one."""
    name = name.lower()
    close = difflib.get_close_matches(name, ["prompt"], cutoff=0.85)  # prompts, promt
    return bool(name in LIKELY["prompt"] or name.endswith("_prompt") or close)


def nearest_column(row: Mapping[str, Any], key: str) -> str | None:
    """The column that is not read but could be meant by a key that is missing."""
    others = [str(name) for name in row if name not in KNOWN_COLUMNS]
    near = [name for name in others if key in name or name in LIKELY.get(key, ())]
    near += difflib.get_close_matches(key, others, n=1)
    return near[0] if near else None


def as_named(names: Mapping[str, str]) -> str:
    """What to write where a row has columns under other names: {ours: theirs}."""
    pairs = ", ".join(f"{ours}: {theirs}" for ours, theirs in names.items())
    return f"set data.columns: {{{pairs}}}, or rename the columns"
