"""jaxpref: preference alignment of Flax language models.

config = jaxpref.load_config("configs/demo.yaml", ["optim.learning_rate=1e-6"])
result = jaxpref.train(config)
jaxpref.export_run(result.out, "exported")
"""

from jaxpref import objectives, pareto, rewards
from jaxpref.config import Config, load_config, make_config
from jaxpref.errors import InputError
from jaxpref.evaluation import evaluate_answers, evaluate_preferences, evaluate_run
from jaxpref.export import export_run
from jaxpref.generate import Completion, Mix, generate
from jaxpref.merge import merge
from jaxpref.models.peft import load_adapters
from jaxpref.objectives import ObjectiveOutput
from jaxpref.plots import plot_curves
from jaxpref.rewards import score_data
from jaxpref.train import Result, train

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
