"""The next-token distribution of several policies: multi-objective decoding (MOD).

MOD is by Shi et al., arXiv 2406.18853.  Policy i is the best one for a reward R_i under a pull to a
reference, pi_i = argmax E[R_i] - beta * I_f(pi || ref).  The best one for sum_i w_i R_i is then

    pi = ref * (f')^-1(-Z + sum_i w_i f'(pi_i / ref)),        Z such that it sums to 1,

and MOD takes it for every next token, given the tokens before.  Weights need not sum to 1: the
reference takes the remaining weight, 1 minus their sum, because f'(ref / ref) is a constant, which
Z takes up.  Only under the reverse KL may Z be left to the softmax; for the other divergences it
stands inside (f')^-1 and is solved for here.  The authors' code leaves it out there, which gives
another distribution.

Over whole answers this is near the optimum, not the optimum, even under the reverse KL: that one is
prod_i pi_i(y)^w_i normalised once, and here every token is normalised by a sum that depends on the
tokens before it.  The two agree where rewards add up over tokens and later tokens do not depend on
earlier ones; benchmarks/bandit_front.py measures both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.generation.sampling import Sampling, warp

Divergence = Literal["reverse_kl", "forward_kl", "jsd", "alpha"]
DIVERGENCES = get_args(Divergence)

_NO_TOKEN = -1e29
"""Below it lie only the log-probs of the LM head's padding (`logprobs.logits`)."""
_HALVINGS = 40
"""Of an interval of at most some hundred nats: more than float32 can tell apart."""


@dataclass(frozen=True)
class Rule:
    """How the logits of several policies become those of one.

    Hashable, because it is part of a compiled program.
    """

    divergence: Divergence
    alpha: float
    reference: bool
    """Whether the last policy is the reference, which has no weight of its own."""
    first_top_k: int | None = None


def mixed_logits(logits_ORV: jax.Array, weight_O: jax.Array, rule: Rule) -> jax.Array:
    """[R, V] float32 log-probs of the mix, up to a constant of the row; see the module's formula.

    Args:
        logits_ORV: float32 log-probs of the policies up to constants of their rows, the reference
            last if `rule.reference`.  At most -1e30 where the LM head is padded.
        weight_O: of the policies without the reference, 0 or more, not all 0.
    Source: arXiv 2406.18853; Z by bisection within bounds that always hold.
    """
    count = weight_O.shape[0]
    if rule.divergence == "reverse_kl":
        mixed_RV = _weighted(weight_O, logits_ORV[:count])
        if rule.reference:
            mixed_RV += (1.0 - jnp.sum(weight_O)) * logits_ORV[count]
        if rule.first_top_k is None:
            return mixed_RV
        return _among_most_likely(mixed_RV, logits_ORV[0], rule.first_top_k)
    logp_ORV = jax.nn.log_softmax(logits_ORV, axis=-1)
    ref_RV = logp_ORV[count]
    # The LM head's padding is left out: in the sums it would set the bound of Z.
    real_RV = ref_RV > _NO_TOKEN
    away_ORV = jnp.where(real_RV[None], ref_RV[None] - logp_ORV[:count], 0.0)
    if rule.divergence == "jsd":
        mixed_RV = _jensen_shannon(away_ORV, ref_RV, real_RV, weight_O)
    else:
        order = 1.0 if rule.divergence == "forward_kl" else rule.alpha
        mixed_RV = _of_order(away_ORV, ref_RV, real_RV, weight_O, order)
    return jnp.where(real_RV, mixed_RV, ref_RV)


def _among_most_likely(mixed_RV: jax.Array, first_RV: jax.Array, k: int) -> jax.Array:
    """-inf for all but the k most likely tokens of the first policy."""
    kept_RV = jnp.isfinite(warp(first_RV, Sampling(1.0, top_k=k)))
    return jnp.where(kept_RV, mixed_RV, -jnp.inf)


def _weighted(weight_O: jax.Array, x_ORV: jax.Array) -> jax.Array:
    # A sum, not a dot product: TPUs would round its operands to bfloat16.
    return jnp.sum(weight_O[:, None, None] * x_ORV, axis=0)


def _of_order(away_ORV, ref_RV, real_RV, weight_O, order: float) -> jax.Array:
    """ref * (Z + g)^(-1/a) with g = sum_i w_i (ref / pi_i)^a.

    This is f'(u) = (1 - u^-a) / a; the forward KL is a = 1.  With the least g, that of token v,
    subtracted, Z becomes d > 0.  The term of v alone must not exceed 1, so d >= ref(v)^a; and d = 1
    gives at most sum ref = 1.
    """
    log_g_RV = jax.nn.logsumexp(order * away_ORV, axis=0, b=weight_O[:, None, None])
    least_R1 = jnp.min(jnp.where(real_RV, log_g_RV, jnp.inf), axis=-1, keepdims=True)
    above_RV = jnp.where(real_RV, jnp.maximum(log_g_RV - least_R1, 0.0), 0.0)
    log_rest_RV = log_g_RV + jax.nn.log1mexp(above_RV)  # log(g - least), -inf where it is the least
    low_R1 = order * _reference_at_least(above_RV, ref_RV, real_RV)

    def logp(log_d_R1):
        return ref_RV - jnp.logaddexp(log_d_R1, log_rest_RV) / order

    return logp(_root(logp, low_R1, jnp.zeros_like(low_R1)))


def _jensen_shannon(away_ORV, ref_RV, real_RV, weight_O) -> jax.Array:
    """ref / (exp(Z + g) - 1) with g = sum_i w_i log(1 + ref / pi_i).

    This is f'(u) = log(2 u / (1 + u)).  As in `_of_order`: d >= log(1 + ref(v)) >= ref(v) log 2,
    and d = log 2 gives at most sum ref = 1.
    """
    g_RV = _weighted(weight_O, jax.nn.softplus(away_ORV))
    least_R1 = jnp.min(jnp.where(real_RV, g_RV, jnp.inf), axis=-1, keepdims=True)
    rest_RV = jnp.where(real_RV, g_RV - least_R1, 0.0)
    log_rest_RV = jnp.log(rest_RV)  # -inf where it is the least
    high = math.log(math.log(2))
    low_R1 = _reference_at_least(rest_RV, ref_RV, real_RV) + high

    def logp(log_d_R1):
        return ref_RV - _log_expm1(jnp.logaddexp(log_d_R1, log_rest_RV))

    return logp(_root(logp, low_R1, jnp.full_like(low_R1, high)))


def _log_expm1(log_x: jax.Array) -> jax.Array:
    """log(exp(x) - 1) of log x, also where x is no float32 number any more."""
    x = jnp.exp(log_x)
    small = log_x < -8.0  # then the next term, x^2 / 24, is below rounding
    return jnp.where(small, log_x + 0.5 * x, x + jax.nn.log1mexp(jnp.where(small, 1.0, x)))


def _reference_at_least(above_RV, ref_RV, real_RV) -> jax.Array:
    """[R, 1] log-prob under the reference of the token where `above` is 0.

    Of several such tokens, the most likely one's.
    """
    least_RV = real_RV & (above_RV <= 0)
    return jnp.max(jnp.where(least_RV, ref_RV, -jnp.inf), axis=-1, keepdims=True)


def _root(
    logp: Callable[[jax.Array], jax.Array], low_R1: jax.Array, high_R1: jax.Array
) -> jax.Array:
    """Where `logp` sums to 1 over the vocabulary; it falls, and low and high lie on either side."""

    def halve(_, ends):
        low_R1, high_R1 = ends
        middle_R1 = 0.5 * (low_R1 + high_R1)
        more_R1 = jax.nn.logsumexp(logp(middle_R1), axis=-1, keepdims=True) > 0
        return jnp.where(more_R1, middle_R1, low_R1), jnp.where(more_R1, high_R1, middle_R1)

    low_R1, high_R1 = lax.fori_loop(0, _HALVINGS, halve, (low_R1, high_R1))
    return 0.5 * (low_R1 + high_R1)
