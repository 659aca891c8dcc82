"""Which of a run's evaluations is the best."""

from collections.abc import Mapping
from dataclasses import dataclass

ACCURACY, REWARD, LOSS = "eval/rewards/accuracies", "eval/reward", "eval/loss"


@dataclass(frozen=True)
class BestRule:
    """Which evaluation is the best.

    Args:
        metric: by which; None: the reward accuracy where the objective logs it, on-policy the
            reward of the answers, otherwise the loss.
        mode: `max` or `min`; None: `min` for the loss or a part of it, otherwise `max`.
    """

    metric: str | None = None
    mode: str | None = None

    def deciding(self, metrics: Mapping[str, float]) -> str | None:
        """Name of the metric that decides; None when it is not among these."""
        names = (ACCURACY, REWARD, LOSS) if self.metric is None else (self.metric,)
        return next((name for name in names if name in metrics), None)

    def mode_of(self, name: str) -> str:
        """Whether the highest (`max`) or the lowest (`min`) value of a metric is the best."""
        if self.mode is not None:
            return self.mode
        is_loss = name == LOSS or name.startswith(f"{LOSS}/")
        return "min" if is_loss else "max"

    def rank(self, metrics: Mapping[str, float]) -> float:
        """A number that is higher the better.  Errors: KeyError without the metric that decides."""
        name = self.deciding(metrics)
        if name is None:
            raise KeyError(self.metric or LOSS)
        return metrics[name] if self.mode_of(name) == "max" else -metrics[name]


AUTOMATIC = BestRule()
