"""A run for every combination of some settings' values, and what came out side by side."""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich import get_console

from jaxpref.config import Config
from jaxpref.errors import InputError
from jaxpref.processes.together import first_does
from jaxpref.runs.compare import Comparison, compare
from jaxpref.runs.directory import is_run
from jaxpref.settings import check_made, with_settings
from jaxpref.storage.paths import as_path
from jaxpref.training.progress import OnLog, training_progress
from jaxpref.training.result import Result
from jaxpref.training.run import train
from jaxpref.training.stackable import NotStackable, check_stackable, stacked_numbers
from jaxpref.training.stacked import train_stacked

_log = logging.getLogger(__name__)

STACKED = "stacked"
"""Where the common state of runs lies that are trained in one step."""
FIGURE = "sweep.png"

Shown = Callable[[str], AbstractContextManager[OnLog]]
"""(title) -> context of a training run, which gives its `on_log`."""


@dataclass(frozen=True, repr=False)
class Swept:
    """The runs of a sweep; its text, and its figure in a notebook, are those of the comparison."""

    results: list[Result]
    comparison: Comparison
    figure: Path

    def __repr__(self) -> str:
        return repr(self.comparison)

    def _repr_html_(self) -> str:
        return self.comparison._repr_html_()


def sweep(
    config: Config,
    over: Mapping[str, Sequence[Any]],
    *,
    shown: Shown | None = None,
    **given: Any,
) -> Swept:
    """Trains a run for every combination of values, or goes on with them.

    Runs lie in `config.out`, each in a directory that is named by its values.  Those of an adapter
    that differ in numbers of their objectives alone are trained in one step.  Otherwise they are
    trained one after another; where they differ in betas, weights of objectives or learning rates
    alone, the first one's compiled programs serve all, unless `compilation_cache` is none.

    Args:
        over: key as in overrides, `objective.0.beta` or `optim.learning_rate`, -> its values.
        shown: how progress is shown; None: as `train` does.
        given: to `train`, of every run; they are then trained one after another.  Callbacks are
            the same objects in all of them; EarlyStopping begins anew in each.
    Errors: InputError for values that do not fit, before anything is trained, and those of `train`.
    """
    check_made(config, Config, "jaxpref.make_config")
    configs = swept_configs(config, over)
    if shown is None:

        def shown(title: str) -> AbstractContextManager[OnLog]:
            log_every = config.train.log_every
            return training_progress(get_console(), log_every, title, show=config.log.progress)

    results = None if given else _stacked(config, configs, shown)
    if results is None:
        results = []
        for i, one in enumerate(configs, 1):
            with shown(f"run {i} of {len(configs)}") as on_log:
                results.append(train(one, on_log=on_log, **given))
    comparison = compare(results)
    figure = as_path(config.out) / FIGURE
    first_does(lambda: str(comparison.plot(figure)))
    return Swept(results, comparison, figure)


def swept_configs(config: Config, over: Mapping[str, Sequence[Any]]) -> list[Config]:
    """The config of every combination, the last key's values changing fastest.

    Errors: InputError for an unknown key, a value that does not fit, and one that is there twice.
    """
    if not isinstance(over, Mapping):
        raise InputError(
            "a dict of keys and their values",
            f"{over!r:.100}",
            "give as in {'objective.0.beta': [0.1, 0.3]}",
        )
    wrong = [key for key, values in over.items() if not _is_list(values)]
    if wrong or not over:
        raise InputError(
            "keys with lists of values",
            ", ".join(f"{key}={over[key]!r}" for key in wrong) or "no key",
            "give as in {'objective.0.beta': [0.1, 0.3]}",
        )
    if "out" in over:
        raise InputError(
            "keys of settings", "out, below which every run has its directory", "remove it"
        )
    out, configs = as_path(config.out), []
    for values in itertools.product(*over.values()):
        chosen = dict(zip(over, values, strict=True))
        name = ",".join(f"{_short(key, over)}={_text(value)}" for key, value in chosen.items())
        configs.append(replace(with_settings(config, chosen), out=str(out / name)))
    outs = [one.out for one in configs]
    if len(set(outs)) < len(outs):
        raise InputError("values that differ", str(dict(over)), "name each value once")
    return configs


def _is_list(values: Any) -> bool:
    listed = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str)
    return listed and len(values) > 0


def _short(key: str, keys: Mapping[str, Any]) -> str:
    """The last part of a key, where it is the only one with it."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def _text(value: Any) -> str:
    """As a part of a directory's name."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "_".join(map(_text, value))
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("/", "_")


def _stacked(config: Config, configs: Sequence[Config], shown: Shown) -> list[Result] | None:
    """The runs, trained in one step; None: they cannot be, or were begun one by one."""
    common = as_path(config.out) / STACKED
    if any(callable(part["name"]) for part in config.objective):
        return None
    if len(configs) == 1 or (not common.is_dir() and any(is_run(one.out) for one in configs)):
        return None
    try:
        check_stackable(configs)
        stacked_numbers(configs)
        with shown(f"{len(configs)} runs in one step") as on_log:
            return train_stacked(configs, common, on_log=on_log)
    except NotStackable as error:
        _log.info("trained one after another: not as expected: %s", error.expected)
        return None
