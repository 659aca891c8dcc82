"""Calibration of pairwise rewards: is sigmoid(margin) how often that answer is preferred?

Every row says `chosen is preferred`, so outcomes are all 1 as long as a pair is seen from the
chosen side, and a model that always predicts 1 would look calibrated.  A pair must be seen from a
side that does not know the label.  Here it is seen from both, each counting half: the expectation
over a side drawn at random, without the noise of the draw.

- Seen from chosen the prediction is p = sigmoid(margin) and the outcome 1, from rejected 1 - p and
  0.  Brier score (1 - p)^2 and NLL -log p are the same from both sides.
- Bins of predictions come in mirror images: what lies in [x, y) from one side lies in (1 - y, 1 -
  x] from the other, with the same gap between prediction and outcome.  So the upper half holds
  everything: the prediction for the answer with the higher reward, the *confidence* max(p, 1 - p)
  in [0.5, 1], against how often that answer is the chosen one.
- A tie has confidence 0.5 and counts as half right (one of its two sides is), unlike in
  `rewards/accuracies`.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from jaxpref.errors import InputError
from jaxpref.evaluation.bootstrap import Bootstrap, Estimate, mean

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Pairs whose confidence lies in [low, high), the last bin with its end.

    Empty bins are left out.
    """

    low: float
    high: float
    pairs: int
    confidence: float
    """Mean in the bin."""
    accuracy: float
    """Share in which the answer with the higher reward is the chosen one."""
    accuracy_low: float
    accuracy_high: float
    """Wilson's interval (1927), as resampling a few pairs that agree would give one of no width."""


@dataclass(frozen=True)
class Predictions:
    """What margins [B] predict, seen from the answer with the higher reward."""

    confidence_B: np.ndarray
    right_B: np.ndarray
    """1, or 0, or 0.5 for a tie."""
    bin_B: np.ndarray
    bins: int


def check_bins(bins: int) -> None:
    """Errors: InputError for none."""
    if not isinstance(bins, int) or bins < 1:
        raise InputError("at least one bin", f"bins={bins!r}", f"choose 1 or more; {BINS} is usual")


def predictions(margin_B: np.ndarray, bins: int = BINS) -> Predictions:
    """What margins predict.

    Args:
        margin_B: rewards of chosen less rejected, in nats.
        bins: their number, of equal width over confidences [0.5, 1].
    """
    confidence_B = np.exp(-np.logaddexp(0.0, -np.abs(margin_B)))
    bin_B = np.minimum(((confidence_B - 0.5) * 2 * bins).astype(int), bins - 1)
    return Predictions(confidence_B, 0.5 + 0.5 * np.sign(margin_B), bin_B, bins)


def statistics(
    weight_WB: np.ndarray, margin_B: np.ndarray, made: Predictions
) -> dict[str, np.ndarray]:
    """Expected calibration error, Brier score, NLL (nats), [W] each.

    ECE: sum over bins of (share of the pairs) * |mean confidence - accuracy|.  Brier: mean of (1 -
    p)^2; 0.25 where all rewards are equal.  NLL: mean of -log p; ln 2 there.
    Source: ECE as Guo et al., arXiv 1706.04599, eq. 3, on the folded predictions above; Brier,
        1950.
    """
    log_p_B = -np.logaddexp(0.0, -margin_B)
    return {
        "calibration/ece": _ece(weight_WB, made),
        "calibration/brier": mean(weight_WB, np.expm1(log_p_B) ** 2),
        "calibration/nll": mean(weight_WB, -log_p_B),
    }


def _ece(weight_WB: np.ndarray, made: Predictions) -> np.ndarray:
    gap_of_bin = np.zeros((len(made.bin_B), made.bins))
    gap_of_bin[np.arange(len(made.bin_B)), made.bin_B] = made.confidence_B - made.right_B
    return np.abs(weight_WB @ gap_of_bin).sum(1) / weight_WB.sum(1)


def ece_by_chance(made: Predictions, bootstrap: Bootstrap) -> Estimate:
    """The ECE of the same predictions if they were perfectly calibrated: mean and interval.

    A finite number of pairs never has ECE 0; one inside this interval is no sign of miscalibration.
    Outcomes are drawn from the predictions themselves.
    Source: Broecker and Smith, 2007 (consistency resampling).
    """
    rng, B = np.random.default_rng(bootstrap.seed), len(made.bin_B)

    def draw() -> float:
        is_tie_B = made.right_B == 0.5
        right_B = np.where(is_tie_B, 0.5, rng.random(B) < made.confidence_B)
        return np.abs(np.bincount(made.bin_B, made.confidence_B - right_B)).sum() / B

    drawn_W = np.array([draw() for _ in range(bootstrap.resamples)])
    low, high = np.quantile(drawn_W, ((1 - bootstrap.level) / 2, (1 + bootstrap.level) / 2))
    return Estimate(float(drawn_W.mean()), float(low), float(high))


def reliability(made: Predictions, level: float) -> list[Bin]:
    """The reliability diagram: bins of confidence, what was predicted in each and what was seen."""
    edges = np.linspace(0.5, 1.0, made.bins + 1)
    diagram = []
    for b in np.unique(made.bin_B):
        inside = made.bin_B == b
        n, accuracy = int(inside.sum()), float(made.right_B[inside].mean())
        low, high = wilson(accuracy, n, level)
        confidence = float(made.confidence_B[inside].mean())
        edge = float(edges[b]), float(edges[b + 1])
        diagram.append(Bin(*edge, n, confidence, accuracy, low, high))
    return diagram


def wilson(share: float, n: int, level: float) -> tuple[float, float]:
    """Wilson's score interval of a share of n independent outcomes."""
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return float(max(centre - half, 0.0)), float(min(centre + half, 1.0))
