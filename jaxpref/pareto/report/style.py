"""How methods look, alike in the figure and in the report."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from jaxpref.pareto.dominance import Sweep, split_method
from jaxpref.pareto.front import Front


@dataclass(frozen=True)
class Style:
    """How one method looks.

    Args:
        light, dark: colours on a light and on a dark page.
        marker: circle, square, diamond, up, down, star, cross or hexagon.
    """

    label: str
    light: str
    dark: str
    marker: str


# Okabe and Ito's hues, which colour-blind people can tell apart, darker or lighter as a page needs
# it; the markers tell the methods apart as well.
_STYLES = {
    "reference": Style("reference model", "#6E6E6E", "#A0A4AA", "cross"),
    "dpo": Style("DPO on one objective", "#1A1A1A", "#F2F2F2", "star"),
    "modpo": Style("MODPO", "#0072B2", "#4BA6E8", "circle"),
    "mod": Style("MOD decoding", "#D55E00", "#FF8A3D", "square"),
    "soup_deltas": Style("soup of LoRA deltas", "#009E73", "#2FCB9E", "up"),
    "soup_factors": Style("soup of LoRA factors", "#C2649B", "#E79AC6", "down"),
    "mpo": Style("MPO, max-min weights", "#7F7F00", "#C9C94B", "star"),
    "raco": Style("RACO", "#B8860B", "#F0C050", "diamond"),
    "cos_dpo": Style("COS-DPO", "#6A3D9A", "#B79AE0", "hexagon"),
    "panacea": Style("Panacea", "#A0522D", "#E0A07A", "up"),
    "pblora": Style("PBLoRA", "#2F6F7F", "#7FC4D4", "down"),
    "rloo": Style("RLOO", "#8B1A1A", "#E07070", "circle"),
    "online_dpo": Style("online DPO", "#3B7A57", "#8FD0A8", "square"),
    "mo_odpo": Style("MO-ODPO", "#4A5A8A", "#9DB0E8", "hexagon"),
}
_OTHERS = (
    ("#8B1A1A", "#E07070"),
    ("#3B7A57", "#8FD0A8"),
    ("#7A5C3B", "#CFAE84"),
    ("#4A5A8A", "#9DB0E8"),
)


def styles(front: Front) -> dict[str, Style]:
    """For every method of a front; other methods take the other colours as they come.

    So do those of the second of two fronts that are compared, with the first one's markers.
    """
    others = itertools.cycle(_OTHERS)
    first_front = split_method(front.points[0].method)[1]
    style_of = {}
    for method in dict.fromkeys(point.method for point in front.points):
        how, of_front = split_method(method)
        known = _STYLES.get(how, Style(how, "", "", "hexagon"))
        label = f"{known.label}, {of_front}" if of_front else known.label
        light, dark = known.light, known.dark
        if how not in _STYLES or of_front != first_front:
            light, dark = next(others)
        style_of[method] = Style(label, light, dark, known.marker)
    return style_of


def sweep_label(front: Front, sweep: Sweep) -> str:
    """The method, with the seed where it has several."""
    label = styles(front)[sweep.method].label
    seeds = {point.seed for point in front.points if point.method == sweep.method}
    return label if len(seeds) == 1 else f"{label}, seed {sweep.seed}"


def weight_label(front: Front, weights: Mapping[str, float] | None) -> str:
    """Short: the first weight of two, or all in per cent; empty where there are none."""
    if weights is None:
        return ""
    total = sum(weights.values())
    shares = [weights[name] / total for name in front.objectives]
    if len(shares) == 2:
        return f"{shares[0]:.2g}"
    return "/".join(f"{100 * share:.0f}" for share in shares)


def labelled_with(front: Front) -> str:
    """What these labels are, in words."""
    if len(front.objectives) == 2:
        return f"labels: weight of {front.objectives[0]}"
    return f"labels: weights in % of {' / '.join(front.objectives)}"


def measure_label(front: Front, objective: str) -> str:
    """Of an axis."""
    measure = "mean reward" if front.measure == "reward" else "held-out accuracy"
    return f"{objective}: {measure}"
