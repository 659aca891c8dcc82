"""Several rewards of an answer made into one: the scalarisers of MORLAIF.

The result labels pairs, or is a margin.  Every function takes rewards [..., n] that have been
multiplied with their weights, r_i <- w_i r_i (`scalarised` does it), and returns [...], in float64.
Source of all: MORLAIF (arXiv 2406.07295) and its authors' code.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxpref.errors import InputError


def linear(r: np.ndarray) -> np.ndarray:
    """sum_i r_i."""
    return r.sum(-1)


def worst_case(r: np.ndarray) -> np.ndarray:
    """min_i r_i."""
    return r.min(-1)


def soft_max_min(r: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    """sum_i softmax(-r / T)_i r_i: the mean for a large T, the worst case for a small one.

    It need not rise with every reward: raising one that is far above the others takes weight from
    it.

    Args:
        temperature: T > 0.
    """
    _expect_positive("temperature", temperature)
    z = -(r - r.min(-1, keepdims=True)) / temperature
    p = np.exp(z)
    return (p * r).sum(-1) / p.sum(-1)


def uncertainty(r: np.ndarray, *, penalty: float = 0.5) -> np.ndarray:
    """mean(r) - c var(r), the variance over the n rewards with divisor n.

    Args:
        penalty: c >= 0.
    """
    if not penalty >= 0 or not math.isfinite(penalty):
        raise InputError(
            "a penalty >= 0",
            f"penalty={penalty!r}",
            "give a finite number >= 0; 0.5 is the default",
        )
    return r.mean(-1) - penalty * r.var(-1)


def lower_third(r: np.ndarray) -> np.ndarray:
    """Mean of the lowest third: of the floor(n / 3) lowest rewards, n >= 3."""
    count = r.shape[-1] // 3
    if not count:
        raise InputError(
            "three rewards or more, for lower_third", f"{r.shape[-1]}", "take worst_case for fewer"
        )
    return np.sort(r, axis=-1)[..., :count].mean(-1)


def median(r: np.ndarray) -> np.ndarray:
    """The median; of an even number of rewards the lower of the two in the middle.

    As in the authors' code.
    """
    return np.sort(r, axis=-1)[..., (r.shape[-1] - 1) // 2]


def nash(r: np.ndarray) -> np.ndarray:
    """prod_i r_i, without a root (Bernoulli-Nash), of rewards >= 0.

    A product of negative rewards has no meaning.
    """
    if (r < 0).any():
        raise InputError(
            "rewards >= 0, for nash",
            f"{r[r < 0][0]}",
            "take rewards that are probabilities, or another scalariser",
        )
    return r.prod(-1)


SCALARISERS: Mapping[str, Callable[..., np.ndarray]] = {
    function.__name__: function
    for function in (linear, worst_case, soft_max_min, uncertainty, lower_third, median, nash)
}


@dataclass(frozen=True)
class Scalariser:
    """One score made of others."""

    kind: str
    """A key of `SCALARISERS`."""
    weights: Mapping[str, float]
    """Score -> its weight."""
    parameter: float | None = None
    """Temperature of soft_max_min, penalty of uncertainty; None: the default."""

    def __post_init__(self):
        """Errors: InputError as of `scalarised`, before anything is scored."""
        scalarised(
            np.zeros((1, len(self.weights))), self.kind, [*self.weights.values()], self.parameter
        )

    def __call__(self, scores: Mapping[str, Sequence[float]]) -> np.ndarray:
        """[...] of every answer.

        Args:
            scores: name -> [...] for every name in `weights`.
        """
        r = np.stack([np.asarray(scores[name], np.float64) for name in self.weights], axis=-1)
        return scalarised(r, self.kind, list(self.weights.values()), self.parameter)


def scalarised(
    rewards: np.ndarray, kind: str, weights: Sequence[float], parameter: float | None = None
) -> np.ndarray:
    """Rewards [..., n] weighted and made into one, [...].

    Args:
        rewards: on comparable scales; the weights do the rest.
        kind: a key of `SCALARISERS`.
        weights: n numbers, r_i <- w_i r_i.
        parameter: of the kinds that have one.
    Errors: InputError for an unknown kind, another number of weights, or a parameter that the kind
        does not have.
    """
    if kind not in SCALARISERS:
        raise InputError(f"a scalariser: {', '.join(SCALARISERS)}", repr(kind), "name one of these")
    if len(weights) != rewards.shape[-1] or not np.isfinite(weights).all():
        raise InputError(
            "a finite weight for each reward",
            f"{list(weights)} for {rewards.shape[-1]}",
            "give one finite number per reward",
        )
    function = SCALARISERS[kind]
    weighted = np.asarray(rewards, np.float64) * np.asarray(weights, np.float64)
    if parameter is None:
        return function(weighted)
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    if not names:
        raise InputError(
            f"no parameter for {kind}", f"{parameter}", f"write {kind} without `@{parameter}`"
        )
    return function(weighted, **{names[0]: parameter})


def read_scalariser(text: str) -> Scalariser:
    """A scalariser written as text: `KIND:SCORE=WEIGHT,...`, or `KIND@PARAMETER:SCORE=WEIGHT,...`.

    For example `soft_max_min@0.5:helpful=0.6,brief=0.4`.
    Errors: InputError where it reads otherwise.
    """
    head, colon, rest = text.partition(":")
    kind, at, parameter = head.partition("@")
    try:
        pairs = [part.rsplit("=", 1) for part in rest.split(",")] if colon else []
        weights = {name: float(weight) for name, weight in pairs}
        number = float(parameter) if at else None
    except ValueError as error:
        raise _unreadable(text) from error
    if kind not in SCALARISERS or not weights or len(weights) < len(pairs):
        raise _unreadable(text)
    return Scalariser(kind, weights, number)


def _unreadable(text: str) -> InputError:
    return InputError(
        "KIND:SCORE=WEIGHT,... of different scores, KIND one of "
        f"{', '.join(SCALARISERS)} (@NUMBER sets its parameter)",
        repr(text),
        "write it as worst_case:helpful=0.6,brief=0.4",
    )


def _expect_positive(name: str, value: float) -> None:
    if not value > 0 or not math.isfinite(value):
        raise InputError(f"a {name} > 0", f"{name}={value!r}", "give a finite number > 0")
