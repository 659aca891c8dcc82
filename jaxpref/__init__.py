"""jaxpref: preference alignment of Flax language models.

config = jaxpref.load_config("configs/demo.yaml", ["optim.learning_rate=1e-6"])
result = jaxpref.train(config)
jaxpref.export_run(result.out, "exported")
"""

from jaxpref import objectives, pareto, rewards
from jaxpref.config import Config
from jaxpref.errors import InputError
from jaxpref.evaluation import evaluate_answers, evaluate_preferences, evaluate_run
from jaxpref.generation.completions import Completion, Mix, generate
from jaxpref.models.peft import load_adapters
from jaxpref.objectives import ObjectiveOutput
from jaxpref.rewards import score_data
from jaxpref.runs.export import export_run
from jaxpref.runs.merge import merge
from jaxpref.runs.plots import plot_curves
from jaxpref.settings import load_config, make_config
from jaxpref.training.run import Result, train

__all__ = [
    "Completion",
    "Config",
    "InputError",
    "Mix",
    "ObjectiveOutput",
    "Result",
    "evaluate_answers",
    "evaluate_preferences",
    "evaluate_run",
    "export_run",
    "generate",
    "load_adapters",
    "load_config",
    "make_config",
    "merge",
    "objectives",
    "pareto",
    "plot_curves",
    "rewards",
    "score_data",
    "train",
]
