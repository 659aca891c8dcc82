"""A whole front from one config: scores, margin policies, one policy a weight vector, measurements, the record.

    data/      the pairs of every objective with the scores of all
    dpo/       a run an objective
    points/    a run a weight vector (MODPO); stacked/ is what those trained together go on from
    stages/    what every stage found (answers, accuracies, rewards) and cost; one that stands there is not done again

So a sweep that was killed goes on where it was: inside of a run from its last checkpoint, otherwise at the next stage.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from omegaconf import OmegaConf

from jaxpref.config import Config
from jaxpref.data.rewrite import configured
from jaxpref.errors import InputError
from jaxpref.export import export_run
from jaxpref.pareto.config import (
    SHARED,
    FrontConfig,
    describe,
    explicit_reward,
    front_settings,
    limits,
    load_front_config,
    point_name,
    point_run,
    single_out,
    single_run,
    small_bases,
)
from jaxpref.pareto.front import Front
from jaxpref.pareto.policies import LATEST
from jaxpref.pareto.record import measured_front
from jaxpref.policy import BASE
from jaxpref.rewards import Reward, run_reward, score_data
from jaxpref.stacked import train_stacked
from jaxpref.train import Result, train

CONFIG = "front.yaml"
Pools = dict[str, dict[str, list[str]]]
"""Name -> `train` and `eval` -> paths of pairs."""


@dataclass(frozen=True)
class Watch:
    """How a sweep tells what it does.

    Args:
        say: a line.
        training: (title) -> context of a training run, which gives its `on_log`; for progress bars.
    """

    say: Callable[[str], None] = print
    training: Callable[[str], AbstractContextManager] = lambda title: nullcontext()


def run_front(front: FrontConfig, watch: Watch = Watch()) -> Front:
    """Trains and measures a front, or goes on with it.

    Errors: InputError for a directory of another front, for several processes, and what training, scoring and
        generation raise.
    """
    if jax.process_count() > 1:
        raise InputError(
            "one process (on all devices of its host)", f"{jax.process_count()} processes",
            "on a pod, `jaxpref score` the data on one host and `jaxpref train` the points, with data.margins",
        )  # fmt: skip
    return _Sweep(front, watch).run()


class _Sweep:
    """One front; its stages in order."""

    def __init__(self, front: FrontConfig, watch: Watch):
        self.front, self.watch, self.out = front, watch, Path(front.run.out)
        self._check_directory()
        for line in small_bases(front):
            watch.say(f"warning: {line}")

    def run(self) -> Front:
        front = self.front
        pools = self._scored(self._pools(), self._explicit_rewards(), "explicit")
        self._train_singles(pools)
        if "modpo" in front.pareto.methods:
            self._train_points(self._scored(pools, self._implicit_rewards(), "all"))
        return measured_front(front, {name: self._single(name, pools) for name in front.names}, self._stage)

    # ---- directories and stages

    def _check_directory(self) -> None:
        """Writes the config, or compares it with the one that stands there."""
        stored = self.out / CONFIG
        if stored.is_file():
            if load_front_config(stored) != self.front:
                raise InputError(
                    f"the settings with which {self.out} was started", f"{stored} has others",
                    "restore them, or choose another `out` for a new front",
                )  # fmt: skip
            return
        self.out.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(front_settings(self.front)), stored)

    def _stage(self, name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What a stage returns with its `seconds`, done once and kept; runs say their own seconds."""
        path = self.out / "stages" / f"{name}.json"
        if path.is_file():
            return json.loads(path.read_text())
        began = time.perf_counter()
        found = work()
        found = {"seconds": time.perf_counter() - began, **found}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(found, indent=1) + "\n")
        partial.replace(path)
        return found

    # ---- data

    def _pools(self) -> Pools:
        """The objectives' own pairs, and the shared ones."""
        data = self.front.run.data
        own = {o.name: {"train": o.train, "eval": o.eval} for o in self.front.pareto.objectives if o.train}
        shared = {SHARED: {"train": data.train, "eval": data.eval}} if self._uses_shared() else {}
        return own | shared

    def _uses_shared(self) -> bool:
        return any(not objective.train for objective in self.front.pareto.objectives)

    def _scored(self, pools: Pools, rewards: Mapping[str, Callable[[], Reward]], kind: str) -> Pools:
        """The pools with scores beside every answer; of two models never both are in memory."""
        found: Pools = {}
        for pool, sides in pools.items() if rewards else ():
            found[pool] = {}
            for side, paths in sides.items():
                to = self.out / "data" / f"{pool}-{side}-{kind}.jsonl"
                work = lambda paths=paths, to=to, side=side: self._score(paths, side, rewards, to)
                self._stage(f"score-{kind}-{pool}-{side}", work)
                found[pool][side] = [str(to)]
        return found or pools

    def _score(self, paths: Sequence[str], side: str, rewards: Mapping[str, Any], to: Path) -> dict[str, Any]:
        source = configured(self.front.run.data, paths, side)
        to.unlink(missing_ok=True)  # of a sweep that was killed before the stage was written down
        # A score that the rows have under this name may be the raw one of the reward.
        report = score_data(source, rewards, to, limits=limits(self.front), replace=True)
        self.watch.say(str(report))
        return {"report": str(report)}

    def _explicit_rewards(self) -> dict[str, Callable[[], Reward]]:
        return {o.name: partial(explicit_reward, self.front, o.name) for o in self.front.pareto.objectives if o.reward}

    def _implicit_rewards(self) -> dict[str, Callable[[], Reward]]:
        names = [name for name in self.front.names if self.front.objective(name).reward is None]
        return {name: partial(run_reward, single_out(self.front, name), step=LATEST) for name in names}

    # ---- training

    def _single(self, name: str, pools: Pools) -> Config:
        pool = pools[self.front.pool(name)]
        return single_run(self.front, name, pool["train"], pool["eval"])

    def _train_singles(self, pools: Pools) -> None:
        for name in filter(self.front.needs_single, self.front.names):
            self._train(f"dpo-{name}", f"DPO on {name}", self._single(name, pools))

    def _train(self, stage: str, title: str, config: Config) -> None:
        def work() -> dict[str, Any]:
            with self.watch.training(title) as on_log:
                return _cost_of([train(_training(config), on_log=on_log)])

        self._stage(stage, work)

    def _train_points(self, pools: Pools) -> None:
        front, by_base = self.front, {}
        for weights in front.points:
            base = front.base(weights)
            pool = pools[self.front.pool(base)]
            config = self._warm(point_run(front, weights, pool["train"], pool["eval"]), base)
            by_base.setdefault(base, []).append((weights, config))
        for base, points in by_base.items():
            if front.pareto.together and len(points) > 1:
                self._train_together(base, [config for _, config in points])
                continue
            for weights, config in points:
                self._train(point_name("modpo", weights), f"MODPO {describe(weights)}", config)

    def _train_together(self, base: str, configs: Sequence[Config]) -> None:
        def work() -> dict[str, Any]:
            with self.watch.training(f"MODPO, {len(configs)} points on {base}") as on_log:
                return _cost_of(
                    train_stacked([_training(config) for config in configs], self.out / "stacked" / base, on_log=on_log)
                )

        self._stage(f"stacked-{base}", work)

    def _warm(self, config: Config, base: str) -> Config:
        """With `warm_start`: from the DPO adapter of the base, against the model as it was."""
        if not self.front.pareto.warm_start:
            return config
        adapter = self.out / "dpo" / f"{base}-adapter"
        if not adapter.is_dir():
            export_run(self.out / "dpo" / base, adapter, step=LATEST, adapter=True)
        return replace(
            config,
            adapter=replace(config.adapter, path=str(adapter), rank=None, alpha=None, targets=None, rslora=False),
            reference=replace(config.reference, adapter=BASE),
        )


def _training(config: Config) -> Config:
    """Without held-out data unless it is evaluated on the way: all policies are measured at the end."""
    return config if config.train.eval_every else replace(config, data=replace(config.data, eval=[]))


def _cost_of(results: Sequence[Result]) -> dict[str, Any]:
    """What a training stage cost; seconds of all its sessions, also of those that were killed."""
    return {
        "flops": sum(result.flops for result in results),
        "seconds": sum(result.seconds for result in results),
        "runs": [str(result.out) for result in results],
    }
