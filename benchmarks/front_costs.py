"""What a front costs by every method: hypervolume against FLOPs and seconds, tuning apart.

    python benchmarks/small_front.py runs/small_front       # the data and model of that config
    python benchmarks/front_costs.py benchmarks/small_front.yaml --rates 1e-3 3e-3 1e-2 --steps 40 \
        --run-steps 45 --longer 3e-3:150

Every method is run with every learning rate and number of steps, on the same data, prompts, draws
and rewards, and its best hypervolume counts; what the other tries cost is told apart.  A run that
serves all weights may take other numbers of steps than the run of a point, and one more try of its
own.  All volumes have one
reference point and the same resampled prompts.  A front that was killed goes on, and one that is
there is only read, so the command may be stopped and started.  Prints markdown.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
from record import Record, add_argument, append, record  # noqa: E402

from jaxpref.pareto.config import CONDITIONED  # noqa: E402
from jaxpref.pareto.cost import Work, added, total_work  # noqa: E402
from jaxpref.pareto.front import Front  # noqa: E402
from jaxpref.pareto.hypervolume import SweepVolume, sweep_volumes  # noqa: E402
from jaxpref.pareto.settings import load_front_config  # noqa: E402
from jaxpref.pareto.sweep import run_front  # noqa: E402

METHODS = ("modpo", "mod", "soup_deltas", "cos_dpo", "panacea", "pblora", "rloo", "mo_odpo")
BASELINE = "modpo"


@dataclass(frozen=True)
class Try:
    """The front of one method with one learning rate and number of steps."""

    method: str
    rate: float
    steps: int
    volume: SweepVolume
    own: Work
    """Of its points, or of the one run that serves them."""
    shared: Work
    whole: Work


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="of a front; its methods are replaced")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16], help="of a point's run")
    parser.add_argument("--run-steps", type=int, nargs="+", help="of a run for all weights")
    parser.add_argument(
        "--longer", type=rate_and_steps, metavar="RATE:STEPS", help="a further try of these runs"
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("runs/front_costs"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more settings")
    add_argument(parser)
    options = parser.parse_args()
    if BASELINE not in options.methods:
        parser.error(f"--methods must name {BASELINE}, with which the others are compared")
    tries = tries_of(all_fronts(options))
    print(table(tries))
    print(f"\nEvery try:\n\n{all_tries(tries)}")
    append(options.record, map(recorded, tries))


def rate_and_steps(text: str) -> tuple[float, int]:
    rate, steps = text.split(":")
    return float(rate), int(steps)


def all_fronts(options: argparse.Namespace) -> dict[tuple[float, int, str], Front]:
    """(learning rate, steps, kind of methods) -> a front of these methods."""
    methods = {
        "points": [method for method in options.methods if method not in CONDITIONED],
        "runs": [method for method in options.methods if method in CONDITIONED],
    }
    all_steps = {"points": options.steps, "runs": options.run_steps or options.steps}
    wanted = [
        (rate, steps, kind)
        for rate in options.rates
        for kind in methods
        for steps in all_steps[kind]
    ]
    if options.longer:
        wanted.append((*options.longer, "runs"))
    fronts = {}
    for rate, steps, kind in wanted:
        if not methods[kind]:
            continue
        overrides = [
            f"out={options.out / f'{kind}_rate_{rate:g}_steps_{steps}'}",
            f"optim.learning_rate={rate}",
            f"train.max_steps={steps}",
            f"pareto.methods=[{', '.join(methods[kind])}]",
            *options.set,
        ]
        config = load_front_config(options.config, overrides)
        assert not config.pareto.seeds, "one seed per table: remove pareto.seeds"
        fronts[rate, steps, kind] = run_front(config)
    return fronts


def tries_of(fronts: Mapping[tuple[float, int, str], Front]) -> list[Try]:
    """Every method of every front, their volumes above one reference point."""
    whole = joined(list(fronts.values()))
    settings = list(fronts)
    tries = []
    for volume in sweep_volumes(whole):
        method, _, number = volume.sweep.method.partition(".")
        if not number:  # the reference
            continue
        rate, steps, _ = settings[int(number)]
        costs = [whole.points[index].cost for index in volume.sweep.points]
        everything = total_work(costs)
        own = added(cost.own for cost in costs)
        if number_of_runs(costs) == 1:
            own = next(work for name, work in costs[0].shared.items() if name.startswith("the run"))
        shared = Work(minus(everything.flops, own.flops), minus(everything.seconds, own.seconds))
        tries.append(Try(method, rate, steps, volume, own, shared, everything))
    return tries


def joined(fronts: Sequence[Front]) -> Front:
    """All fronts as one, methods with the number of their front; the reference is one point."""
    points = [point for point in fronts[0].points if point.method == "reference"]
    for number, front in enumerate(fronts):
        points += [
            replace(point, name=f"{point.name}.{number}", method=f"{point.method}.{number}")
            for point in front.points
            if point.method not in ("reference", "dpo")
        ]
    return replace(fronts[0], points=points)


def number_of_runs(costs: Sequence) -> int:
    """1 where one run serves all points, which is then a part of what they share."""
    return 1 if any(name.startswith("the run of") for name in costs[0].shared) else len(costs)


def minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def table(tries: Sequence[Try]) -> str:
    """The best try of every method, in markdown."""
    head = (
        "| | learning rate, steps | hypervolume | points, TFLOP | shared, TFLOP "
        "| whole front, TFLOP | s | tuning, TFLOP "
        "| to reach MODPO's hypervolume, TFLOP | of MODPO's |"
    )
    lines = [head, "|---" * 10 + "|"]
    best = {method: best_of(tries, method) for method in dict.fromkeys(t.method for t in tries)}
    goal = best[BASELINE]
    for method, item in best.items():
        others = [t.whole for t in tries if t.method == method and t is not item]
        reaching = [
            t.whole.flops
            for t in tries
            if t.method == method and t.volume.volume.value >= goal.volume.volume.value
        ]
        least = None if not reaching or None in reaching else min(reaching)
        ratio = None if least is None or goal.whole.flops is None else least / goal.whole.flops
        volume = item.volume.volume
        cells = [
            method,
            f"{item.rate:g}, {item.steps}",
            f"{volume.value:.3f}, {volume.low:.3f} to {volume.high:.3f}",
            tera(item.own.flops),
            tera(item.shared.flops),
            tera(item.whole.flops),
            f"{item.whole.seconds:.0f}",
            tera(added(others).flops),
            "not reached" if not reaching else tera(least),
            "" if ratio is None else f"{ratio:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def all_tries(tries: Sequence[Try]) -> str:
    """Every method with every learning rate and number of steps, in markdown."""
    lines = ["| | learning rate | steps | hypervolume | whole front, TFLOP | s |", "|---" * 6 + "|"]
    for item in sorted(tries, key=lambda item: (item.method, item.steps, item.rate)):
        volume = item.volume.volume
        cells = [
            item.method,
            f"{item.rate:g}",
            str(item.steps),
            f"{volume.value:.3f}, {volume.low:.3f} to {volume.high:.3f}",
            tera(item.whole.flops),
            f"{item.whole.seconds:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def recorded(item: Try) -> Record:
    volume, flops = item.volume.volume, item.whole.flops
    measured = {
        "hypervolume": volume.value,
        "interval from": volume.low,
        "to": volume.high,
        "TFLOP, whole front": None if flops is None else flops / 1e12,
        "s, whole front": item.whole.seconds,
    }
    case = f"{item.method}, learning rate {item.rate:g}, {item.steps} steps"
    return record("front_costs", case, measured, versions={"jax": jax.__version__})


def best_of(tries: Sequence[Try], method: str) -> Try:
    return max((t for t in tries if t.method == method), key=lambda t: t.volume.volume.value)


def tera(flops: float | None) -> str:
    return "not counted" if flops is None else f"{flops / 1e12:.3g}"


if __name__ == "__main__":
    main()
