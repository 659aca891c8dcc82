"""Objectives: pure functions of log-probs, one public function each; the dict lists them."""

from jaxpref.objectives import pairwise, supervised
from jaxpref.objectives.contract import (
    JUDGED,
    KINDS,
    PAIRS,
    Needs,
    ObjectiveOutput,
    Part,
    Term,
    asked_logps,
    bind,
    check_columns,
    group_kinds,
    needs,
)
from jaxpref.objectives.pairwise import dpo, ipo
from jaxpref.objectives.supervised import sft
from jaxpref.objectives.transforms import TRANSFORMS

FAMILIES = (pairwise, supervised)
"""Modules in the order of docs/objectives.md; every public function defined in one is an objective."""

OBJECTIVES = {"dpo": dpo, "ipo": ipo, "sft": sft}

__all__ = [
    "FAMILIES", "JUDGED", "KINDS", "Needs", "OBJECTIVES", "ObjectiveOutput", "PAIRS", "Part", "TRANSFORMS", "Term",
    "asked_logps", "bind", "check_columns", "group_kinds", "needs",
]  # fmt: skip
