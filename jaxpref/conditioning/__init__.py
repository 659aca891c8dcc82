"""A preference put into the prompt, so that one policy serves every preference.

Each method makes data for training, and prompts for answers:

    cdpo       "< helpful: 5 > " before the prompt: the scores that are asked for
    ric        " <rm1_score> 0.4 <rm2_score> -1.2 " behind the prompt: the scores of the answer
    metaalign  a preference in words before the prompt
"""

from jaxpref.conditioning.cdpo import ControllableDPO, cdpo_prompt, cdpo_rows
from jaxpref.conditioning.metaalign import metaalign_rows
from jaxpref.conditioning.prompts import instructed
from jaxpref.conditioning.ric import (
    RIC_MAPS,
    ScoreStatistics,
    ric_prompt,
    ric_rows,
    ric_targets,
    score_statistics,
)
from jaxpref.conditioning.rows import ConditionReport

__all__ = [
    "RIC_MAPS",
    "ConditionReport",
    "ControllableDPO",
    "ScoreStatistics",
    "cdpo_prompt",
    "cdpo_rows",
    "instructed",
    "metaalign_rows",
    "ric_prompt",
    "ric_rows",
    "ric_targets",
    "score_statistics",
]
