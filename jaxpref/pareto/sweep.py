"""A whole front from one config: scores, margin policies, one policy a weight vector, measurements, the record.

    data/      the pairs of every objective with the scores of all
    dpo/       a run an objective
    points/    a run a weight vector (MODPO); stacked/ is what those trained together go on from
    measured/  what every policy is worth
    stages/    what every stage cost; a stage that stands there is not done again

So a sweep that was killed goes on where it was: inside of a run from its last checkpoint, otherwise at the next stage.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from jaxpref.config import Config
from jaxpref.data.dataset import read_texts
from jaxpref.errors import InputError
from jaxpref.export import export_run
from jaxpref.pareto.config import (
    FrontConfig,
    describe,
    load_front_config,
    point_name,
    point_run,
    save_front_config,
    single_run,
    small_bases,
)
from jaxpref.pareto.front import Cost, Front, Point
from jaxpref.pareto.policies import Shelf
from jaxpref.pareto.rewards import explicit_rewards
from jaxpref.policy import BASE
from jaxpref.rewards.reward import Reward
from jaxpref.scoring import score_data
from jaxpref.stacked import train_stacked
from jaxpref.train import Result, train

CONFIG = "config.yaml"
SHARED = "shared"
"""Name of the pairs of data.train and data.eval among the objectives' own."""


@dataclass(frozen=True)
class Watch:
    """How a sweep tells what it does.

    Args:
        say: a line.
        train: (title) -> `on_log` of `train`; for progress bars.
    """

    say: Callable[[str], None] = print
    train: Callable[[str], Callable[..., None] | None] = lambda title: None


def run_front(front: FrontConfig, watch: Watch = Watch()) -> Front:
    """Trains and measures a front, or goes on with it.

    Errors: InputError for a directory of another front, and what training, scoring and generation raise.
    """
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
        explicit = {name: reward for name, reward in explicit_rewards(front).items()}
        pools = self._scored(self._pools(), explicit, "explicit")
        self._train_singles(pools)
        implicit = [name for name in front.names if front.objective(name).reward is None]
        if "modpo" in front.pareto.methods:
            pools = self._with_implicit(pools, implicit)
            self._train_points(pools)
        return self._measure(pools)

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
        save_front_config(self.front, stored)

    def _stage(self, name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What a stage returns with its `seconds`, done once and kept; runs say their own seconds."""
        path = self.out / "stages" / f"{name}.json"
        if path.is_file():
            return json.loads(path.read_text())
        began = time.perf_counter()
        found = work()
        found = {"seconds": time.perf_counter() - began, **found}
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.partial")
            partial.write_text(json.dumps(found, indent=1) + "\n")
            partial.replace(path)
        return found

    # ---- data

    def _pools(self) -> dict[str, dict[str, list[str]]]:
        """Name -> paths of `train` and `eval`: the objectives' own pairs, and the shared ones."""
        data = self.front.run.data
        own = {o.name: {"train": o.train, "eval": o.eval} for o in self.front.pareto.objectives if o.train}
        shared = {SHARED: {"train": data.train, "eval": data.eval}} if self._uses_shared() else {}
        return own | shared

    def _uses_shared(self) -> bool:
        return any(not objective.train for objective in self.front.pareto.objectives)

    def _pool(self, name: str) -> str:
        return name if self.front.objective(name).train else SHARED

    def _scored(self, pools: dict, rewards: Mapping[str, Reward], kind: str) -> dict:
        """The pools with scores beside every answer."""
        if not rewards:
            return pools
        found: dict[str, dict[str, list[str]]] = {}
        for pool, sides in pools.items():
            found[pool] = {}
            for side, paths in sides.items():
                to = self.out / "data" / f"{pool}-{side}-{kind}.jsonl"
                split = self.front.run.data.train_split if side == "train" else self.front.run.data.eval_split
                work = lambda paths=paths, to=to, split=split: score_data(paths, rewards, to, split=split)
                self._stage(f"score-{kind}-{pool}-{side}", work)
                found[pool][side] = [str(to)]
        return found

    def _with_implicit(self, pools: dict, names: Sequence[str]) -> dict:
        """Scores of the implicit rewards; the policies are on one base, which is freed afterwards."""
        if not names:
            return pools
        shelf = Shelf(self._single(names[0], pools))
        rewards = {name: shelf.implicit_reward(name, self._single(name, pools)) for name in names}
        return self._scored(pools, rewards, "all")

    # ---- training

    def _single(self, name: str, pools: dict) -> Config:
        pool = pools[self._pool(name)]
        return single_run(self.front, name, pool["train"], pool["eval"])

    def _train_singles(self, pools: dict) -> None:
        for name in filter(self.front.needs_single, self.front.names):
            self._train(f"dpo-{name}", f"DPO on {name}", self._single(name, pools))

    def _train(self, stage: str, title: str, config: Config) -> None:
        self._stage(stage, lambda: _cost_of([train(config, on_log=self.watch.train(title))]))

    def _train_points(self, pools: dict) -> None:
        front, by_base = self.front, {}
        for weights in front.points:
            base = front.base(weights)
            pool = pools[self._pool(base)]
            config = self._warm(point_run(front, weights, pool["train"], pool["eval"]), base)
            by_base.setdefault(base, []).append((weights, config))
        for base, points in by_base.items():
            if front.pareto.together and len(points) > 1:
                self._train_together(base, [config for _, config in points])
                continue
            for weights, config in points:
                self._train(point_name("modpo", weights), f"MODPO {describe(weights)}", config)

    def _train_together(self, base: str, configs: Sequence[Config]) -> None:
        log = self.watch.train(f"MODPO, {len(configs)} points on {base}")
        work = lambda: _cost_of(train_stacked(configs, self.out / "stacked" / base, on_log=log))
        self._stage(f"stacked-{base}", work)

    def _warm(self, config: Config, base: str) -> Config:
        """With `warm_start`: from the DPO adapter of the base, against the model as it was."""
        if not self.front.pareto.warm_start:
            return config
        adapter = self.out / "dpo" / f"{base}-adapter"
        if not adapter.is_dir():
            export_run(self.out / "dpo" / base, adapter, step="latest", adapter=True)
        return replace(
            config,
            adapter=replace(config.adapter, path=str(adapter), rank=None, alpha=None, targets=None, rslora=False),
            reference=replace(config.reference, adapter=BASE),
        )
