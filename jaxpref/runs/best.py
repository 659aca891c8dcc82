"""Which of a run's evaluations is the best."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

ACCURACY, REWARD, LOSS = "eval/rewards/accuracies", "eval/reward", "eval/loss"
_OF_LOSS = re.compile("eval/([^/]+/)?loss(/|$)")
"""The loss or a part of it, of the held-out data or of one of its sets."""


@dataclass(frozen=True)
class BestRule:
    """Which evaluation is the best.

    Args:
        metric: by which; None: the reward accuracy where the objective logs it, on-policy the
            reward of the answers, otherwise the loss; of several held-out sets those of the first.
        mode: `max` or `min`; None: `min` for the loss or a part of it, otherwise `max`.
    """

    metric: str | None = None
    mode: str | None = None

    def deciding(self, metrics: Mapping[str, float]) -> str | None:
        """Name of the metric that decides; None when it is not among these."""
        names = _usual(metrics) if self.metric is None else (self.metric,)
        return next((name for name in names if name in metrics), None)

    def mode_of(self, name: str) -> str:
        """Whether the highest (`max`) or the lowest (`min`) value of a metric is the best."""
        if self.mode is not None:
            return self.mode
        return "min" if _OF_LOSS.match(name) else "max"

    def rank(self, metrics: Mapping[str, float]) -> float:
        """A number that is higher the better.  Errors: KeyError without the metric that decides."""
        name = self.deciding(metrics)
        if name is None:
            raise KeyError(self.metric or LOSS)
        return metrics[name] if self.mode_of(name) == "max" else -metrics[name]


def _usual(metrics: Mapping[str, float]) -> tuple[str, ...]:
    if LOSS in metrics or REWARD in metrics or not metrics:
        return ACCURACY, REWARD, LOSS
    first = next(iter(metrics)).split("/")[1]  # eval/SET/..., set by set in the order of the config
    return f"eval/{first}/rewards/accuracies", f"eval/{first}/loss"


AUTOMATIC = BestRule()
