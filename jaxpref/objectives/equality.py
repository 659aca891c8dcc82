"""An objective's value where policy and reference are the same model.

For most objectives it follows from the data alone: ln 2 for `dpo`, whatever the rows are, and
log(1 + exp(margin)) for `margin_dpo`.  Their docstrings name it.  It is computed here from the
objective itself, of groups that never were packed, so that the loss of a first step can be held
against it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.models.logprobs import Logps
from jaxpref.objectives.part import Part

_MOVED_WITH_THE_SUM = ("common", "sampled")
_KNOWN = (*_MOVED_WITH_THE_SUM, "collision", "kl")
"""Optional fields of `Logps` whose values at equality can be made up here."""

_DIRECTIONS = ((0, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))
"""How rounding may move the log-ratios of completion 0 and of all others."""


class Span(NamedTuple):
    """Where a value lies that rounding may have moved."""

    value: float
    """Without any rounding."""
    low: float
    high: float


def span_at_equality(
    part: Part,
    count_BK: np.ndarray,
    columns: Mapping[str, Any],
    rounding: float,
    *,
    each: bool = False,
) -> Span | None:
    """The loss of one objective over these groups, policy and reference being the same model.

    None where there is no such value: the objective has no reference, or its value depends on what
    the model thinks of the answers (the weights of `wpo`) or on further references.

    Args:
        count_BK: loss tokens of every completion; 0 for one that is missing.
        columns: as `Part.__call__` takes them, without `uniform`.
        rounding: how far a log-ratio may lie from 0, in nats for one token; it grows with the root
            of their number.
        each: every log-ratio may be moved its own way, as the loss rises or falls fastest, and not
            only all alike: where answers have labels, these may part.  Takes longer to compile.
    """
    if not part.needs_reference or not set(part.needs.logps) <= set(_KNOWN):
        return None
    moved_BK = rounding * np.sqrt(count_BK)
    first_K = np.arange(count_BK.shape[1]) == 0
    shifts = np.stack([moved_BK * np.where(first_K, *both) for both in _DIRECTIONS])

    def loss(shift_BK, sum_BK, draw, numbers):
        policy, ref = _logps(sum_BK + shift_BK, count_BK), _logps(sum_BK, count_BK)
        uniform_B = jnp.full(len(count_BK), draw)
        of_part = part.with_numbers(numbers)
        return _mean(of_part(policy, ref, {**columns, "uniform": uniform_B}))

    def losses_of(sum_BK, draw, numbers):
        moves = shifts
        if each:
            slope_BK = jax.grad(loss)(jnp.zeros_like(moved_BK), sum_BK, draw, numbers)
            steepest_BK = moved_BK * jnp.sign(jnp.nan_to_num(slope_BK))
            moves = jnp.concatenate([shifts, jnp.stack([steepest_BK, -steepest_BK])])
        return jax.vmap(loss, (0, None, None, None))(moves, sum_BK, draw, numbers)

    # Arguments like those of the step: runs that differ in them alone are one program.
    of_models = jax.jit(jax.vmap(losses_of, (0, 0, None)))
    losses = np.asarray(of_models(*_two_models(count_BK), part.numbers))
    one, other = losses
    if not np.allclose(one[0], other[0], rtol=1e-5, atol=1e-6):
        return None
    value, slack = float(one[0]), 1e-5 * abs(float(one[0])) + 1e-6
    return Span(value, float(losses.min()) - slack, float(losses.max()) + slack)


def _two_models(count_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([2, B, K] summed log-probs, [2] draws) of two models that disagree on which answer is best.

    What is the same under both depends on neither.
    """
    rank_K = np.arange(count_BK.shape[1], dtype=np.float32)
    sums = np.stack([-10.0 - rank_K, -10.0 - rank_K[::-1]])[:, None, :] * (count_BK > 0)
    return sums.astype(np.float32), np.array([0.25, 0.75], np.float32)


def _logps(sum_BK: jax.Array, count_BK: np.ndarray) -> Logps:
    zero_BK = jnp.zeros_like(sum_BK)
    part_of_it = {name: 0.5 * sum_BK for name in _MOVED_WITH_THE_SUM}
    return Logps(
        sum=sum_BK,
        count=jnp.asarray(count_BK, jnp.float32),
        entropy=-sum_BK,
        top1=zero_BK,
        collision=0.5 * sum_BK,
        kl=zero_BK,
        **part_of_it,
    )


def _mean(out) -> jax.Array:
    means = [
        jnp.sum(term.weight_B * term.loss_B) / jnp.maximum(jnp.sum(term.weight_B), 1e-30)
        for term in out.terms
    ]
    return jnp.sum(jnp.stack(means))
