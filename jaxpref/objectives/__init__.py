"""Objectives: pure functions of log-probs, one public function each; this dict lists them."""

from jaxpref.objectives.contract import ObjectiveOutput, Part, bind, check_columns
from jaxpref.objectives.pairwise import dpo, ipo
from jaxpref.objectives.supervised import sft

OBJECTIVES = {"dpo": dpo, "ipo": ipo, "sft": sft}

__all__ = ["OBJECTIVES", "ObjectiveOutput", "Part", "bind", "check_columns", "dpo", "ipo", "sft"]
