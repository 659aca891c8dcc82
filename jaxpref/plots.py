"""The curves of a run as a PNG."""

from pathlib import Path

from jaxpref.metrics import read_jsonl

_PANELS = (
    ("loss", ("loss",)),
    ("reward accuracy (1 = all pairs)", ("rewards/accuracies",)),
    ("reward margin (nats)", ("rewards/margins",)),
    ("rewards (nats)", ("rewards/chosen", "rewards/rejected")),
    ("log-probs (nats)", ("logps/chosen", "logps/rejected")),
    ("gradient norm", ("grad_norm",)),
)


def plot_curves(run: str | Path, png: str | Path | None = None) -> Path:
    """Plots metrics.jsonl of a run directory: training as lines, evaluations as points; returns the PNG's path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = read_jsonl(Path(run) / "metrics.jsonl")
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), constrained_layout=True)
    for axis, (title, names) in zip(axes.flat, _PANELS, strict=True):
        for name in names:
            train = [(line["step"], line[name]) for line in lines if name in line]
            held_out = [(line["step"], line[f"eval/{name}"]) for line in lines if f"eval/{name}" in line]
            label = name.rsplit("/", 1)[-1]
            (drawn,) = axis.plot(*zip(*train, strict=True), label=label) if train else axis.plot([], label=label)
            if held_out:
                axis.plot(*zip(*held_out, strict=True), "o--", color=drawn.get_color(), label=f"{label}, held out")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    png = Path(png) if png else Path(run) / "curves.png"
    figure.savefig(png, dpi=110)
    plt.close(figure)
    return png
