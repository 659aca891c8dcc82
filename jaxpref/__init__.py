"""jaxpref: preference alignment of Flax language models.

config = jaxpref.load_config("configs/demo.yaml", ["optim.learning_rate=1e-6"])
result = jaxpref.train(config)
jaxpref.export_run(result.out, "exported")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxpref import objectives, pareto, rewards
    from jaxpref.config import Config
    from jaxpref.errors import InputError
    from jaxpref.evaluation import evaluate_answers, evaluate_preferences, evaluate_run
    from jaxpref.generation.completions import Completion, generate
    from jaxpref.generation.mixing import Mix
    from jaxpref.models.own import OwnModel
    from jaxpref.models.peft import load_adapters
    from jaxpref.objectives import ObjectiveOutput
    from jaxpref.online.train import train
    from jaxpref.processes.start import join
    from jaxpref.rewards import score_data
    from jaxpref.runs.compare import compare
    from jaxpref.runs.export import export_run
    from jaxpref.runs.merge import merge
    from jaxpref.runs.plots import plot_curves
    from jaxpref.runs.show_data import show_data
    from jaxpref.settings import load_config, make_config
    from jaxpref.training.callbacks import Callback, EarlyStopping, Moment
    from jaxpref.training.result import Result
    from jaxpref.training.sweep import sweep

__all__ = [
    "Callback",
    "Completion",
    "Config",
    "EarlyStopping",
    "InputError",
    "Mix",
    "Moment",
    "ObjectiveOutput",
    "OwnModel",
    "Result",
    "compare",
    "evaluate_answers",
    "evaluate_preferences",
    "evaluate_run",
    "export_run",
    "generate",
    "join",
    "load_adapters",
    "load_config",
    "make_config",
    "merge",
    "objectives",
    "pareto",
    "plot_curves",
    "rewards",
    "score_data",
    "show_data",
    "sweep",
    "train",
]

_PACKAGES = ("objectives", "pareto", "rewards")
_MODULES = {
    "Callback": "jaxpref.training.callbacks",
    "Completion": "jaxpref.generation.completions",
    "Config": "jaxpref.config",
    "EarlyStopping": "jaxpref.training.callbacks",
    "InputError": "jaxpref.errors",
    "Mix": "jaxpref.generation.mixing",
    "Moment": "jaxpref.training.callbacks",
    "ObjectiveOutput": "jaxpref.objectives",
    "OwnModel": "jaxpref.models.own",
    "Result": "jaxpref.training.result",
    "compare": "jaxpref.runs.compare",
    "evaluate_answers": "jaxpref.evaluation",
    "evaluate_preferences": "jaxpref.evaluation",
    "evaluate_run": "jaxpref.evaluation",
    "export_run": "jaxpref.runs.export",
    "generate": "jaxpref.generation.completions",
    "join": "jaxpref.processes.start",
    "load_adapters": "jaxpref.models.peft",
    "load_config": "jaxpref.settings",
    "make_config": "jaxpref.settings",
    "merge": "jaxpref.runs.merge",
    "plot_curves": "jaxpref.runs.plots",
    "score_data": "jaxpref.rewards",
    "show_data": "jaxpref.runs.show_data",
    "sweep": "jaxpref.training.sweep",
    "train": "jaxpref.online.train",
}
"""Public name -> its module, imported when the name is first used.

The data stages and `jaxpref --help` need no jax, and do not wait for it.
"""


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"jaxpref.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'jaxpref' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
