"""Which methods reach the middle of a concave front, through the real trainer.

    python benchmarks/concave_front.py            # markdown

One pair of answers; D is the margin of its log-ratios.  The losses 1 - exp(-(D - a)^2), with a =
0.7 and a = -1.3, cannot both be small, and between their minima the front bulges away from both
axes (Fonseca and Fleming, 1995): every weighted sum of them is least near one of the ends.
Training begins at D = 0.  The table shows where it ends: D, both losses, and "middle" where D is
nearer to the middle of the front than to its ends.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np  # noqa: E402
import tiny  # noqa: E402
from bandit import PROMPT, TEXTS, logps_of, train  # noqa: E402
from record import add_argument, append, record  # noqa: E402

CENTRES = (0.7, -1.3)
WEIGHTS = ((0.3, 0.7), (0.45, 0.55))
WAYS = {
    "weighted sum": {},
    "RACO, c = 0.4": {"combine": "raco", "combine_c": 0.4},
    "PCGrad": {"combine": "pcgrad"},
    "MGDA": {"combine": "mgda"},
    "Tchebycheff": {"combine": "tchebycheff"},
}


def reached(folder: Path, model: Path, w: tuple[float, float], optim: dict) -> float:
    """D after training."""
    folder.mkdir()
    parts = [
        {"name": "bandit:near", "weight": weight, "centre": centre}
        for weight, centre in zip(w, CENTRES, strict=True)
    ]
    pair = TEXTS[1:3]
    line = {"prompt": PROMPT, "chosen": pair[0], "rejected": pair[1]}
    settings = {"name": "sgd", "learning_rate": 2e-3, "schedule": "linear", **optim}
    config, _, _ = train(folder, [line], parts, steps=150, model=model, optim=settings)
    after, before = (logps_of(source, texts=pair) for source in (config.out, model))
    ratio = after - before
    return float(ratio[0] - ratio[1])


def losses(margin: float) -> list[float]:
    return [float(1 - np.exp(-((margin - centre) ** 2))) for centre in CENTRES]


def in_the_middle(margin: float) -> bool:
    high, low = CENTRES
    return low + (high - low) / 4 < margin < high - (high - low) / 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_argument(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, tiny.quick_compile(Path(name) / "compiled"):
        folder = Path(name)
        model = tiny.write_model(folder / "model", scale=0.5)
        headings = [f"w = {w[0]:g}, {w[1]:g}" for w in WEIGHTS]
        print("| | " + " | ".join(headings) + " |\n|" + "---|" * (1 + len(WEIGHTS)), flush=True)
        for number, (way, optim) in enumerate(WAYS.items()):
            cells, margins = [], {}
            for w, heading in zip(WEIGHTS, headings, strict=True):
                margin = reached(folder / f"{number}_{w[0]:g}", model, w, optim)
                margins[heading] = margin
                place = "middle" if in_the_middle(margin) else "end"
                cells.append(
                    f"{margin:.2f} ({', '.join(f'{x:.2f}' for x in losses(margin))}) {place}"
                )
            print(f"| {way} | {' | '.join(cells)} |", flush=True)
            append(options.record, [record("concave_front", way, margins)])


if __name__ == "__main__":
    main()
