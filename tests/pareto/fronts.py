"""Fronts with known values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpref.evaluation.bootstrap import Estimate
from jaxpref.pareto.cost import Cost, Work
from jaxpref.pareto.front import Front, Point

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'> & <!-- $x$"
WIDE = "你好 \u2028 \ud800"  # the last one is no character, and UTF-8 has no bytes for it
OBJECTIVES = ("helpful", "harmless")


def point(
    name: str,
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    method: str = "modpo",
    half: float | None = None,
    objectives: Sequence[str] = OBJECTIVES,
    measure: str = "reward",
    seed: int = 0,
    **others: Any,
) -> Point:
    """Args: half: half the width of all intervals."""
    ends = lambda x: (None, None) if half is None else (x - half, x + half)
    estimates = {o: Estimate(x, *ends(x)) for o, x in zip(objectives, values, strict=True)}
    weights = None if weights is None else dict(zip(objectives, weights, strict=True))
    return Point(name, method, weights, None, seed, None, {measure: estimates}, **others)


def front(points: Sequence[Point], objectives: Sequence[str] = OBJECTIVES, **others: Any) -> Front:
    return Front("a front", objectives, others.pop("measure", "reward"), points, **others)


def answered(
    name: str,
    reward_BO: np.ndarray,
    objectives: Sequence[str],
    weights: Sequence[float] | None,
    text: str,
    **others: Any,
) -> Point:
    """A point whose values are the means of its answers' rewards."""
    texts = [f"{text}, answer {i}" for i in range(len(reward_BO))]
    rewards: Mapping[str, list[float]] = {o: reward_BO[:, j].tolist() for j, o in enumerate(objectives)}
    return point(
        name, reward_BO.mean(0), weights, half=0.1, objectives=objectives, answers=texts, rewards=rewards, **others
    )


def study(objectives: Sequence[str] = OBJECTIVES, *, prompts: int = 6) -> Front:
    """A reference, two DPO ends and, for each of two methods, points between them; answers, curves and costs."""
    rng, J = np.random.default_rng(0), len(objectives)
    base_BO = rng.normal(0, 0.1, (prompts, J))
    add = lambda name, mean_O, weights, **others: answered(
        name, base_BO + mean_O, objectives, weights, f"says {name}", **others
    )
    even = np.ones(J) / J
    lines = [{"step": s, "loss": 0.7 / s, "grad_norm": None if s == 2 else 1.0 * s} for s in range(1, 5)]
    lines[-1]["eval/loss"] = 0.2
    points = [add("reference", np.full(J, -1.0), None, method="reference")]
    for j, name in enumerate(objectives):
        end = np.where(np.arange(J) == j, 1.0, -0.8)
        points.append(add(f"dpo_{name}", end, np.eye(J)[j], method="dpo", cost=Cost(Work(1e12, 60.0)), curves=lines))
    for method, lost in (("modpo", 0.0), ("soup_deltas", 0.3)):
        for share in (0.3, 0.7):
            weights = even * (1 - share) if J > 2 else np.array([share, 1 - share])
            weights[0] += share if J > 2 else 0.0
            own = Work(2e12, 90.0) if method == "modpo" else Work(0.0, None)
            cost = Cost(own, {"DPO": Work(2e12, 120.0)}, 2 if method == "modpo" else 1)
            curves = lines if method == "modpo" else ()
            name = f"{method}_{share}"
            points.append(add(name, np.sqrt(weights) - lost, weights, method=method, cost=cost, curves=curves))
    texts = [f"prompt {i} {HOSTILE} {WIDE}" for i in range(prompts)]
    return Front(f"A study {HOSTILE}", objectives, "reward", points, texts, {"beta": 0.1, "path": HOSTILE + WIDE})
