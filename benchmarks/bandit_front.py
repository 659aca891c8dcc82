"""How far each way to a front is from the optimum, where the optimum is known.

    python benchmarks/bandit_front.py                 # two objectives, five weights; markdown
    python benchmarks/bandit_front.py --objectives 3

There are nine answers to one prompt.  The optimum for weights w is pi_ref exp(w . r / beta) / Z.
Single-objective policies are trained by DPO, as adapters on one tiny Llama, by the real trainer
(tests/bandit.py).  The table shows total variations from the optimum, among the nine:

    MODPO explicit    trained; the other rewards are those of the other objectives, and the base is
                      the objective of the largest weight
    MODPO implicit    trained; the other rewards are log-ratios of the others' DPO policies
    product           prod_i pi_i(y)^w_i of whole answers, normalised among them, which MOD
                      approximates
    MOD               the same, token by token, as it is decoded
    soup deltas       the adapters' products averaged
    soup factors      the adapters' factors averaged
    reference         no training at all
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import tiny  # noqa: E402
from bandit import Front  # noqa: E402
from record import add_argument, append, record  # noqa: E402

WEIGHTS = {
    2: [(0.1, 0.9), (0.3, 0.7), (0.5, 0.5), (0.7, 0.3), (0.9, 0.1)],
    3: [(0.6, 0.3, 0.1), (0.2, 0.6, 0.2), (0.1, 0.3, 0.6), (1 / 3, 1 / 3, 1 / 3)],
}
WAYS = {
    "MODPO explicit": lambda front, w: front.explicit(w, base_of(w)),
    "MODPO implicit": lambda front, w: front.implicit(w, base_of(w)),
    "product": lambda front, w: front.product(w),
    "MOD": lambda front, w: front.token_mix(w),
    "soup deltas": lambda front, w: front.soup(w, "deltas"),
    "soup factors": lambda front, w: front.soup(w, "factors"),
    "reference": lambda front, w: front.before,
}


def base_of(w) -> int:
    return max(range(len(w)), key=lambda k: w[k])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objectives", type=int, choices=list(WEIGHTS), default=2)
    parser.add_argument("--steps", type=int, default=150)
    add_argument(parser)
    args = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, tiny.quick_compile(Path(folder) / "compiled"):
        front = Front(Path(folder) / "front", args.objectives, args.steps)
        ends = ", ".join(
            f"{front.off(front.each[k], one_hot(k, args.objectives)):.4f}"
            for k in range(args.objectives)
        )
        print(f"the model gives the nine {np.exp(front.before).sum():.3f} of all probability")
        print(f"DPO policies, each from its own optimum: {ends}\n")
        print("| w | " + " | ".join(WAYS) + " |\n|" + "---|" * (1 + len(WAYS)), flush=True)
        for w in WEIGHTS[args.objectives]:
            case = ", ".join(f"{x:.2g}" for x in w)
            off = {way: front.off(logps(front, w), w) for way, logps in WAYS.items()}
            print(f"| {' | '.join([case, *(f'{x:.4f}' for x in off.values())])} |", flush=True)
            versions = {"jax": jax.__version__}
            append(args.record, [record("bandit_front", case, off, versions=versions)])
    print(f"\n{time.perf_counter() - began:.0f} s")


def one_hot(k: int, n: int) -> list[float]:
    return [float(i == k) for i in range(n)]


if __name__ == "__main__":
    main()
