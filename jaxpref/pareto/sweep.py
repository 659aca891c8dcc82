"""A whole front from one config: scores, policies, measurements, the record.

It leaves these directories, and so a sweep that was killed goes on where it was: inside a run from
its last checkpoint, otherwise at the next stage.

    data/      the pairs of every objective with the scores of all
    dpo/       one run per objective
    points/    one run per weight vector (MODPO, RACO)
    cos_dpo/   the run of all weights, and so mo_odpo/, panacea/, pblora/
    stacked/   what the points that are trained together go on from
    adapters/  as PEFT adapters: with warm starts the DPO policies, and points of adapters that
               serve all weights
    stages/    the result of every stage (answers, accuracies, rewards) and its cost; what is there
               is not done again
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxpref.config import Config
from jaxpref.data.rewrite import configured
from jaxpref.online.train import train
from jaxpref.pareto.compare import of_seeds
from jaxpref.pareto.config import (
    CONDITIONED,
    LABELLED,
    ON_POLICY,
    SHARED,
    FrontConfig,
    describe,
    point_name,
)
from jaxpref.pareto.front import Front
from jaxpref.pareto.inputs import start_front
from jaxpref.pareto.labels import check_preferences, write_conditioned_rows, write_labels
from jaxpref.pareto.on_policy import on_policy_run, on_policy_stage
from jaxpref.pareto.policies import LATEST
from jaxpref.pareto.record import measured_front
from jaxpref.pareto.rewards import explicit_reward, limits, temperature
from jaxpref.pareto.run_configs import (
    RACO_POINTS,
    conditioned_run,
    point_run,
    raco_run,
    single_out,
    single_run,
)
from jaxpref.pareto.settings import doubtful_bases
from jaxpref.pareto.stages import Stages
from jaxpref.processes.together import first_does
from jaxpref.rewards import Reward, run_reward, score_data
from jaxpref.runs.adapters import BASE
from jaxpref.runs.export import export_run
from jaxpref.runs.lock import sole_writer
from jaxpref.settings import check_made
from jaxpref.storage.paths import as_path
from jaxpref.training.result import Result
from jaxpref.training.stacked import train_stacked

Pools = dict[str, dict[str, list[str]]]
"""Pool of pairs -> `train` and `eval` -> paths."""
Rewards = dict[str, Callable[[], Reward]]
"""Objective -> opens its reward."""
Weights = Mapping[str, float]
"""Objective -> weight."""


@dataclass(frozen=True)
class Watch:
    """How a sweep tells what it does.

    Args:
        say: a line.
        training: (title) -> context of a training run, which gives its `on_log`; for progress
            bars.
    """

    say: Callable[[str], None] = print
    training: Callable[[str], AbstractContextManager] = lambda title: nullcontext()


def run_front(front: FrontConfig, watch: Watch = Watch()) -> Front:
    """Trains and measures a front, or goes on with it.

    Errors: InputError for a directory of another front, and what training, scoring and generation
        raise.
    """
    check_made(front, FrontConfig, "jaxpref.pareto.make_front_config")
    if front.pareto.seeds:
        return of_seeds([run_front(one, watch) for one in _of_each_seed(front)])
    with sole_writer(front.run.out):
        return _Sweep(front, watch).run()


def _of_each_seed(front: FrontConfig) -> list[FrontConfig]:
    """A front of its own for every seed, in a directory of its own."""
    return [
        FrontConfig(
            replace(
                front.run,
                out=str(as_path(front.run.out) / f"seed_{seed}"),
                train=replace(front.run.train, seed=seed),
            ),
            replace(front.pareto, seeds=[]),
        )
        for seed in front.pareto.seeds
    ]


class _Sweep:
    """One front; its stages in order."""

    def __init__(self, front: FrontConfig, watch: Watch):
        self.watch, self.out = watch, as_path(front.run.out)
        self.front = start_front(front, self.out)
        self.stages = Stages(self.out / "stages", watch.say)
        for line in doubtful_bases(front):
            watch.say(f"warning: {line}")

    def run(self) -> Front:
        front = self.front
        for objective in front.pareto.objectives:
            if objective.temperature == "fit":
                temperature(front, objective.name, self.stages)
        pools = self._scored(self._pools(), "explicit", self._explicit_rewards())
        self.stages("preferences", lambda: check_preferences(front, pools))
        self._train_singles(pools)
        if set(front.pareto.methods) & set(LABELLED):
            self._train_on_labels(pools)
        self._train_on_policy()
        if "modpo" in front.pareto.methods:
            self._train_points(self._scored(pools, "implicit", self._implicit_rewards()))
        singles = {name: self._single(name, pools) for name in front.names}
        return measured_front(front, singles, self.stages)

    # ---- data

    def _pools(self) -> Pools:
        """The objectives' own pairs, and the shared ones."""
        pools = {
            objective.name: {"train": objective.train, "eval": objective.eval}
            for objective in self.front.pareto.objectives
            if objective.train
        }
        if self.front.relabelled:
            data = self.front.run.data
            pools[SHARED] = {"train": data.train, "eval": data.eval_sets.get("", [])}
        return pools

    def _scored(self, pools: Pools, kind: str, rewards: Rewards) -> Pools:
        """The pools with the scores that their runs read; models are in memory one at a time."""
        scored: Pools = {}
        for pool, paths_of in pools.items():
            scored[pool] = dict(paths_of)
            read = self._scores_read(pool)
            own = {name: open_it for name, open_it in rewards.items() if name in read}
            if not own:
                continue
            for side in self._sides_scored(pool, kind):
                to = self.out / "data" / f"{pool}-{side}-{kind}.jsonl"
                work = partial(self._score, paths_of[side], side, own, to)
                self.stages(f"score-{kind}-{pool}-{side}", work)
                scored[pool][side] = [str(to)]
        return scored

    def _sides_scored(self, pool: str, kind: str) -> list[str]:
        """`train`, and `eval` where held-out pairs need scores.

        The measurements need labels, but no other rewards; and a run reads held-out pairs only if
        it evaluates itself.
        """
        relabelled = kind == "explicit" and pool == SHARED
        return ["train", "eval"] if relabelled or self.front.run.train.eval_every else ["train"]

    def _scores_read(self, pool: str) -> set[str]:
        """Objectives whose scores are read from a pool.

        They label its pairs, or are the other rewards of the points that are trained on it.
        """
        front = self.front
        names = set(front.relabelled) if pool == SHARED else set()
        if "modpo" in front.pareto.methods:
            for base in {front.base(weights) for weights in front.points}:
                if front.pool(base) == pool:
                    names |= {name for name in front.names if name != base}
        return names

    def _score(self, paths: Sequence[str], side: str, rewards: Rewards, to: Path) -> dict[str, Any]:
        source = configured(self.front.run.data, paths, side)
        # Of a sweep that was killed before the stage was written down.
        first_does(lambda: to.unlink(missing_ok=True))
        # A score that the rows have under this name may be the raw one of the reward.
        report = score_data(source, rewards, to, limits=limits(self.front), replace=True)
        self.watch.say(str(report))
        return {"report": str(report)}

    def _explicit_rewards(self) -> Rewards:
        names = [objective.name for objective in self.front.pareto.objectives if objective.reward]
        return {name: partial(explicit_reward, self.front, name, self.stages) for name in names}

    def _implicit_rewards(self) -> Rewards:
        return {
            name: partial(run_reward, single_out(self.front, name), step=LATEST)
            for name in self.front.names
            if self.front.objective(name).reward is None
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
            pool = pools[front.pool(base)]
            config = self._warm(point_run(front, weights, pool["train"], pool["eval"]), base)
            by_base.setdefault(base, []).append((weights, config))
        for base, points in by_base.items():
            self._train_sweep("modpo", points, base, f"MODPO, {len(points)} points on {base}")

    def _train_sweep(
        self, method: str, points: Sequence[tuple[Weights, Config]], name: str, title: str
    ) -> None:
        """The runs of some points: in one step where they may be, or one after another.

        Args:
            name: of the common state and stage.
            title: of the common run.
        """
        if not self.front.pareto.together or len(points) == 1:
            for weights, config in points:
                label = f"{method.upper()} {describe(weights)}"
                self._train(point_name(method, weights), label, config)
            return
        configs = [_training(config) for _, config in points]

        def work() -> dict[str, Any]:
            with self.watch.training(title) as on_log:
                return _cost_of(train_stacked(configs, self.out / "stacked" / name, on_log=on_log))

        self.stages(f"stacked-{name}", work)

    def _train_on_labels(self, pools: Pools) -> None:
        """The methods that ask for a label of every objective."""
        front, stages = self.front, self.stages
        labelled = write_labels(front, pools, stages)
        if "raco" in front.pareto.methods:
            points = [(weights, raco_run(front, weights, labelled)) for weights in front.points]
            self._train_sweep("raco", points, RACO_POINTS, f"RACO, {len(points)} points")
        for method in front.pareto.methods:
            if method in CONDITIONED and method in LABELLED:
                rows = write_conditioned_rows(front, method, labelled, stages)
                self._train(method, f"{method} all weights", conditioned_run(front, method, rows))

    def _train_on_policy(self) -> None:
        """The methods that train on answers of their own."""
        for method in self.front.pareto.methods:
            if method not in ON_POLICY:
                continue
            for weights in [None] if method in CONDITIONED else self.front.points:
                config = on_policy_run(self.front, method, weights, self.stages)
                which = "all weights" if weights is None else describe(weights)
                self._train(on_policy_stage(method, weights), f"{method} {which}", config)

    def _warm(self, config: Config, base: str) -> Config:
        """With `warm_start`: from the DPO adapter of the base, against the model as it was."""
        if not self.front.pareto.warm_start:
            return config
        adapter = self.out / "adapters" / base
        if not first_does(adapter.is_dir):
            export_run(self.out / "dpo" / base, adapter, step=LATEST, adapter=True)
        shape_of_file: dict[str, Any] = {
            "rank": None,
            "alpha": None,
            "targets": None,
            "rslora": False,
        }
        return replace(
            config,
            adapter=replace(config.adapter, path=str(adapter), **shape_of_file),
            reference=replace(config.reference, adapter=BASE),
        )


def _training(config: Config) -> Config:
    """Without held-out data unless it is evaluated on the way.

    All policies are measured at the end.
    """
    if config.train.eval_every:
        return config
    return replace(config, data=replace(config.data, eval=[]))


def _cost_of(results: Sequence[Result]) -> dict[str, Any]:
    """What a training stage cost; its seconds count all sessions, also those that were killed."""
    return {
        "flops": sum(result.flops for result in results),
        "seconds": sum(result.seconds for result in results),
        "runs": [str(result.out) for result in results],
    }
