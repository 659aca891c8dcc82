"""A whole front from one config: scores, margin policies, one policy a weight vector, measurements,
the record.

    data/      the pairs of every objective with the scores of all
    dpo/       a run an objective
    points/    a run a weight vector (MODPO); stacked/ is what those trained together go on from
    adapters/  with warm starts, the DPO policies as PEFT adapters
    stages/    what every stage found (answers, accuracies, rewards) and cost; one that stands there is not done again

So a sweep that was killed goes on where it was: inside of a run from its last checkpoint, otherwise
    at the next stage.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxpref.config import Config
from jaxpref.data.rewrite import configured
from jaxpref.errors import InputError
from jaxpref.pareto.config import (
    SHARED,
    FrontConfig,
    describe,
    doubtful_bases,
    point_name,
    point_run,
    single_out,
    single_run,
)
from jaxpref.pareto.front import Front
from jaxpref.pareto.inputs import start_front
from jaxpref.pareto.policies import LATEST
from jaxpref.pareto.record import measured_front
from jaxpref.pareto.rewards import explicit_reward, limits, temperature
from jaxpref.pareto.stages import Stages
from jaxpref.rewards import Reward, run_reward, score_data
from jaxpref.runs.adapters import BASE
from jaxpref.runs.export import export_run
from jaxpref.training.run import Result, train
from jaxpref.training.stacked import train_stacked

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

    Errors: InputError for a directory of another front, for several processes, and what training,
        scoring and generation raise.
    """
    if jax.process_count() > 1:
        raise InputError(
            "one process (on all devices of its host)",
            f"{jax.process_count()} processes",
            "on a pod, `jaxpref score` the data on one host and `jaxpref train` the points, with data.other_rewards",
        )
    return _Sweep(front, watch).run()


class _Sweep:
    """One front; its stages in order."""

    def __init__(self, front: FrontConfig, watch: Watch):
        self.front, self.watch, self.out = front, watch, Path(front.run.out)
        start_front(front, self.out)
        self.stages = Stages(self.out / "stages")
        for line in doubtful_bases(front):
            watch.say(f"warning: {line}")

    def run(self) -> Front:
        front = self.front
        for objective in front.pareto.objectives:
            if objective.temperature == "fit":
                temperature(front, objective.name, self.stages)
        pools = self._scored(self._pools(), "explicit", self._explicit_rewards())
        self._train_singles(pools)
        if "modpo" in front.pareto.methods:
            self._train_points(self._scored(pools, "implicit", self._implicit_rewards()))
        return measured_front(
            front, {name: self._single(name, pools) for name in front.names}, self.stages
        )

    # ---- data

    def _pools(self) -> Pools:
        """The objectives' own pairs, and the shared ones."""
        data = self.front.run.data
        own = {
            o.name: {"train": o.train, "eval": o.eval}
            for o in self.front.pareto.objectives
            if o.train
        }
        shared = {SHARED: {"train": data.train, "eval": data.eval}} if self._relabelled() else {}
        return own | shared

    def _relabelled(self) -> set[str]:
        """Objectives whose pairs are the shared ones."""
        return {objective.name for objective in self.front.pareto.objectives if not objective.train}

    def _scored(
        self, pools: Pools, kind: str, rewards: Mapping[str, Callable[[], Reward]]
    ) -> Pools:
        """The pools with the scores that their runs read; of two models never both are in
        memory."""
        found: Pools = {}
        for pool, sides in pools.items():
            wanted = {name: make for name, make in rewards.items() if name in self._read_on(pool)}
            # What is measured needs labels, no other rewards; a run reads held-out pairs only if it
            # evaluates itself.
            held_out = self.front.run.train.eval_every or (kind == "explicit" and pool == SHARED)
            found[pool] = dict(sides)
            for side in ("train", "eval") if held_out else ("train",):
                if wanted:
                    to = self.out / "data" / f"{pool}-{side}-{kind}.jsonl"
                    work = lambda side=side, paths=sides[side], to=to, own=wanted: self._score(
                        paths, side, own, to
                    )
                    self.stages(f"score-{kind}-{pool}-{side}", work)
                    found[pool][side] = [str(to)]
        return found

    def _read_on(self, pool: str) -> set[str]:
        """Objectives whose scores are read: to label the pairs by, and as other rewards of the
        points trained on them."""
        front = self.front
        bases = (
            {front.base(weights) for weights in front.points}
            if "modpo" in front.pareto.methods
            else set()
        )
        trained = [base for base in bases if front.pool(base) == pool]
        other_rewards = {name for base in trained for name in front.names if name != base}
        return other_rewards | (self._relabelled() if pool == SHARED else set())

    def _score(
        self, paths: Sequence[str], side: str, rewards: Mapping[str, Any], to: Path
    ) -> dict[str, Any]:
        source = configured(self.front.run.data, paths, side)
        to.unlink(missing_ok=True)  # of a sweep that was killed before the stage was written down
        # A score that the rows have under this name may be the raw one of the reward.
        report = score_data(source, rewards, to, limits=limits(self.front), replace=True)
        self.watch.say(str(report))
        return {"report": str(report)}

    def _explicit_rewards(self) -> dict[str, Callable[[], Reward]]:
        names = [objective.name for objective in self.front.pareto.objectives if objective.reward]
        return {name: partial(explicit_reward, self.front, name, self.stages) for name in names}

    def _implicit_rewards(self) -> dict[str, Callable[[], Reward]]:
        names = [name for name in self.front.names if self.front.objective(name).reward is None]
        return {
            name: partial(run_reward, single_out(self.front, name), step=LATEST) for name in names
        }

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

        self.stages(stage, work)

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
                    train_stacked(
                        [_training(config) for config in configs],
                        self.out / "stacked" / base,
                        on_log=on_log,
                    )
                )

        self.stages(f"stacked-{base}", work)

    def _warm(self, config: Config, base: str) -> Config:
        """With `warm_start`: from the DPO adapter of the base, against the model as it was."""
        if not self.front.pareto.warm_start:
            return config
        adapter = self.out / "adapters" / base
        if not adapter.is_dir():
            export_run(self.out / "dpo" / base, adapter, step=LATEST, adapter=True)
        return replace(
            config,
            adapter=replace(
                config.adapter, path=str(adapter), rank=None, alpha=None, targets=None, rslora=False
            ),
            reference=replace(config.reference, adapter=BASE),
        )


def _training(config: Config) -> Config:
    """Without held-out data unless it is evaluated on the way: all policies are measured at the
    end."""
    return (
        config if config.train.eval_every else replace(config, data=replace(config.data, eval=[]))
    )


def _cost_of(results: Sequence[Result]) -> dict[str, Any]:
    """What a training stage cost; seconds of all its sessions, also of those that were killed."""
    return {
        "flops": sum(result.flops for result in results),
        "seconds": sum(result.seconds for result in results),
        "runs": [str(result.out) for result in results],
    }
