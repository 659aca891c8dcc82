"""Logits of the next token -> a token: greedy, or drawn.

Before a draw, logits go through temperature, top-k, top-p and min-p, in this order.
Definitions and order are those of transformers.  Its top-p sorts the vocabulary; here top-k and
top-p are a threshold that is found by bisection over the float32 numbers: exact, without a sort,
and of a sharded vocabulary only sums travel.  Of several equal logits at the threshold all are kept
(so does transformers' top-k; its top-p keeps some of them, as its sort has it).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpref.errors import InputError

# Named: another default generator might not give a row the same numbers in every batch and on
# every mesh.
_GENERATOR = "threefry2x32"


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; None leaves a warper out.

    Errors: InputError for a value out of range.
    """

    temperature: float = 0.0
    """Logits are divided by it; 0 takes the most likely token."""
    top_k: int | None = None
    """Only tokens with fewer than k more likely ones."""
    top_p: float | None = None
    """Only the smallest set of most likely tokens whose probabilities sum to p or more (arXiv
    1904.09751)."""
    min_p: float | None = None
    """Only tokens at least p times as likely as the most likely one (arXiv 2407.01082)."""

    def __post_init__(self):
        problems = []
        if not (is_number(self.temperature) and 0 <= self.temperature < math.inf):
            problems.append(f"temperature={self.temperature!r}: a number, 0 (greedy) or more")
        if self.top_k is not None and not (is_whole(self.top_k) and self.top_k >= 1):
            problems.append(f"top_k={self.top_k!r}: a whole number from 1")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and 0 < value <= 1):
                problems.append(f"{name}={value!r}: a number, more than 0, at most 1")
        if self.greedy:
            given = [
                name for name in ("top_k", "top_p", "min_p") if getattr(self, name) is not None
            ]
            problems += [f"{name} has no effect at temperature 0" for name in given]
        if problems:
            raise InputError(
                "sampling settings in their range", "; ".join(problems), "change these settings"
            )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def is_number(value: Any) -> bool:
    """Whether it is a real number, of Python or numpy; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """The same of a whole number: 2.0 is none."""
    return is_number(value) and isinstance(value, Integral)


def row_keys(seed: int, numbers: Sequence[tuple[int, int]]) -> np.ndarray:
    """Keys as their data, [R, 2] uint32.

    They depend on the seed and a row's (prompt, sample) numbers alone.
    """
    key = jax.random.key(seed, impl=_GENERATOR)

    def row_key(number_2):
        prompt, sample = number_2
        return jax.random.fold_in(jax.random.fold_in(key, prompt), sample)

    return np.asarray(jax.random.key_data(jax.vmap(row_key)(np.array(numbers, np.uint32))))


def choose(
    logits_RV: jax.Array, key_R2: jax.Array, position_R: jax.Array, sampling: Sampling
) -> jax.Array:
    """[R] int32 tokens for `position_R`.

    A draw is the argmax of logits plus Gumbel noise (Maddison et al., arXiv 1411.0030, section 2),
    each row's of its own key and position.
    """
    if sampling.greedy:
        return jnp.argmax(logits_RV, axis=-1).astype(jnp.int32)
    key_R = jax.random.wrap_key_data(key_R2, impl=_GENERATOR)
    key_R = jax.vmap(jax.random.fold_in)(key_R, position_R.astype(jnp.uint32))
    noise_RV = jax.vmap(lambda key: jax.random.gumbel(key, logits_RV.shape[1:], jnp.float32))(key_R)
    return jnp.argmax(warp(logits_RV, sampling) + noise_RV, axis=-1).astype(jnp.int32)


def warp(logits_RV: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits of the distribution that is drawn from; -inf where a token is left out.

    Args:
        sampling: not greedy.
    """
    logits_RV = logits_RV / sampling.temperature
    if sampling.top_k is not None:
        logits_RV = _most_likely(logits_RV, jnp.ones_like(logits_RV), float(sampling.top_k))
    # At top_p = 1 rounded sums would leave out part of the tail.
    if sampling.top_p is not None and sampling.top_p < 1:
        logits_RV = _most_likely(logits_RV, jax.nn.softmax(logits_RV, axis=-1), sampling.top_p)
    if sampling.min_p is not None:
        floor_R1 = logits_RV.max(-1, keepdims=True) + math.log(sampling.min_p)
        logits_RV = jnp.where(logits_RV >= floor_R1, logits_RV, -jnp.inf)
    return logits_RV


def _most_likely(logits_RV: jax.Array, mass_RV: jax.Array, bound: float) -> jax.Array:
    """Leaves out the tokens for which all more likely ones together have a mass of `bound` or more.

    The threshold is the least float32 number above which there is less mass than `bound`.
    """
    order_RV = _ordered(logits_RV)

    def halve(_, ends):
        low_R, high_R = ends
        # Their mean, rounded down, without overflow.
        middle_R = (low_R & high_R) + ((low_R ^ high_R) >> 1)
        above_R = jnp.sum(jnp.where(order_RV > middle_R[:, None], mass_RV, 0.0), axis=-1)
        enough_R = above_R < bound
        return jnp.where(enough_R, low_R, middle_R + 1), jnp.where(enough_R, middle_R, high_R)

    high_R = order_RV.max(-1)  # nothing lies above it
    low_R = jnp.full_like(high_R, jnp.iinfo(jnp.int32).min)
    threshold_R, _ = lax.fori_loop(0, 32, halve, (low_R, high_R))
    return jnp.where(order_RV >= threshold_R[:, None], logits_RV, -jnp.inf)


def _ordered(x: jax.Array) -> jax.Array:
    """int32 in the order of the float32 numbers, one for each."""
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return jnp.where(bits >= 0, bits, bits ^ jnp.int32(0x7FFFFFFF))
