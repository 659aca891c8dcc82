"""The cost of points: their own work, and work that they share, which is done once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Work:
    """Model FLOPs, and seconds by the clock; None where they were not counted."""

    flops: float | None = 0.0
    seconds: float | None = 0.0


def added(works: Iterable[Work]) -> Work:
    """The sum; None where one of them is None."""
    works = list(works)
    return Work(_total([work.flops for work in works]), _total([work.seconds for work in works]))


def _total(values: Sequence[float | None]) -> float | None:
    return None if None in values else float(sum(values))


@dataclass(frozen=True)
class Cost:
    """What a point cost.

    Args:
        own: its training.
        shared: name -> work that it needs and other points may need too (policies of the other
            objectives, scores), in full.
        together: number of points trained in the run that trained it; `own` is an equal share.
    """

    own: Work = Work()
    shared: Mapping[str, Work] = field(default_factory=dict)
    together: int = 1

    @property
    def all_shared(self) -> Work:
        return added(self.shared.values())


def total_work(costs: Iterable[Cost]) -> Work:
    """Of several points: their own work, and what they share once."""
    costs = list(costs)
    shared = {name: work for cost in costs for name, work in cost.shared.items()}
    return added([*(cost.own for cost in costs), *shared.values()])


def separate_work(costs: Iterable[Cost]) -> Work:
    """Of several points if each were a pipeline of its own, which does the shared work again.

    This is a lower bound: points that were trained together cost more by themselves, because each
    of them runs the reference.
    """
    return added(work for cost in costs for work in (cost.own, *cost.shared.values()))
