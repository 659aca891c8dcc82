"""Evaluation: on held-out preferences, and of generated text by reward functions."""

from jaxpref.evaluation.answers import Answers, generated_answers, read_answers
from jaxpref.evaluation.bootstrap import Bootstrap, Estimate
from jaxpref.evaluation.generations import Generations, evaluate_answers
from jaxpref.evaluation.held_out import Evaluator, evaluate_run
from jaxpref.evaluation.preferences import Preferences, evaluate_preferences
from jaxpref.evaluation.report import Report

__all__ = [
    "Answers",
    "Bootstrap",
    "Estimate",
    "Evaluator",
    "Generations",
    "Preferences",
    "Report",
    "evaluate_answers",
    "evaluate_preferences",
    "evaluate_run",
    "generated_answers",
    "read_answers",
]
