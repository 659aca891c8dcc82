"""Fronts of several objectives: one policy per weight vector, measured and reported together.

config = jaxpref.pareto.load_front_config("configs/demo_pareto.yaml")
jaxpref.pareto.write_front(jaxpref.pareto.run_front(config), config.run.out)
"""

from jaxpref.pareto.config import FrontConfig
from jaxpref.pareto.front import Front, Point, read_front
from jaxpref.pareto.report.write import write_front
from jaxpref.pareto.settings import load_front_config, make_front_config
from jaxpref.pareto.sweep import run_front

__all__ = [
    "Front",
    "FrontConfig",
    "Point",
    "load_front_config",
    "make_front_config",
    "read_front",
    "run_front",
    "write_front",
]
