"""Policies that decide every token together: multi-objective decoding (MOD, Shi et al., arXiv
2406.18853).

Policy i is the best one for a reward R_i under a pull to a reference, pi_i = argmax E[R_i] - beta *
I_f(pi || ref).  The best one for sum_i w_i R_i is then

    pi = ref * (f')^-1(-Z + sum_i w_i f'(pi_i / ref)),        Z such that it sums to 1,

and MOD takes it for every next token, given the tokens before.  Weights need not sum to 1: the
reference counts for the rest, as f'(ref / ref) is a constant, which Z takes up.  Only under the
reverse KL may Z be left to the softmax; for the other divergences it stands inside of (f')^-1 and
is solved for here.  The authors' code leaves it out there, which gives another distribution.

Over whole answers this is near the optimum, not the optimum, even under the reverse KL: that one is
prod_i pi_i(y)^w_i normalised once, and here every token is normalised by a sum that depends on the
tokens before it.  The two agree where rewards add up over tokens and later tokens do not depend on
earlier ones; benchmarks/bandit_front.py measures both.

N counts policies in this module.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.errors import InputError
from jaxpref.generation.decoding import DecodingModel
from jaxpref.generation.sampling import Sampling, warp

Divergence = Literal["reverse_kl", "forward_kl", "jsd", "alpha"]
DIVERGENCES = get_args(Divergence)

_NO_TOKEN = -1e29
"""Below it lie log-probs of the head's padding (`logprobs.logits`) only."""
_HALVINGS = 40
"""Of an interval of at most some hundred nats: more than float32 can tell apart."""


@dataclass(frozen=True)
class Mix:
    """Policies and their weights: what `generate` takes in place of one policy.

    PAD (Personalized Alignment at Decoding-time, ICLR 2025), logit of a model + lam * (log guide -
    log base) on the k most likely tokens of the model, is `Mix({model: 1 - lam, guide: lam},
    first_top_k=k)` where the model is the guide's base; its code uses lam 0.8 and k 10.

    Errors: InputError for settings out of range or without effect.
    """

    policies: Mapping[str | Path, float] | Sequence[tuple[str | Path, float]]
    """Run, model or PEFT adapter directory -> weight, 0 or more; what is missing to 1, or too much,
    is the reference's.  The first one's tokenizer, chat template and mesh are used."""
    divergence: Divergence = "reverse_kl"
    """In the objective that the policies were trained with: DPO's is `reverse_kl`, `f_dpo_js`'s is
    `jsd`, ..."""
    alpha: float = 0.5
    """Order of the divergence `alpha`, > 0, as in the objective `f_dpo_alpha`."""
    reference: str | Path | None = None
    """The model that the policies were trained from.  Under the reverse KL it plays no part if the
    weights sum to 1."""
    first_top_k: int | None = None
    """Only the k most likely tokens of the first policy; under the reverse KL only."""

    def __post_init__(self):
        given = self.policies.items() if isinstance(self.policies, Mapping) else self.policies
        object.__setattr__(
            self, "policies", tuple((source, float(weight)) for source, weight in given)
        )
        if problems := list(self._problems()):
            raise InputError(
                "a mix of policies that can be decoded", "; ".join(problems), "correct it"
            )

    def _problems(self):
        weights = [weight for _, weight in self.policies]
        if not any(weight > 0 for weight in weights):
            yield "no policy with a weight above 0"
        for source, weight in self.policies:
            if not 0 <= weight < math.inf:
                yield f"{source}:{weight}: a weight is 0 or more; what the others exceed 1 by is the reference's"
        if self.divergence not in DIVERGENCES:
            yield f"divergence={self.divergence!r}: one of {', '.join(DIVERGENCES)}"
        if not 0 < self.alpha < math.inf:
            yield f"alpha={self.alpha}: more than 0"
        if self.reference is None and self.divergence != "reverse_kl":
            yield f"{self.divergence} is relative to the reference that the policies were trained from: name it"
        if self.reference is None and self.divergence == "reverse_kl" and not self.sums_to_one:
            yield f"weights that sum to {sum(weights):g} without a reference that counts for the rest: name it"
        if self.first_top_k is not None and self.first_top_k < 1:
            yield f"first_top_k={self.first_top_k}: a whole number from 1"
        if self.first_top_k is not None and self.divergence != "reverse_kl":
            yield f"first_top_k with {self.divergence}: it is defined under the reverse KL"
        if self.first_top_k is not None and self.policies and not weights[0]:
            yield "first_top_k with a first policy of weight 0, which is not run"

    @property
    def sums_to_one(self) -> bool:
        return math.isclose(sum(weight for _, weight in self.policies), 1.0, abs_tol=1e-6)

    @property
    def needs_reference(self) -> bool:
        return self.divergence != "reverse_kl" or not self.sums_to_one

    @property
    def rule(self) -> "Rule":
        return Rule(self.divergence, self.alpha, self.needs_reference, self.first_top_k)


def parse_policies(text: str) -> tuple[tuple[str, float], ...]:
    """`run_a:0.3,run_b:0.7` -> policies of a Mix."""
    found = []
    for item in text.split(","):
        source, _, weight = item.strip().rpartition(":")
        try:
            found.append((source, float(weight)))
        except ValueError:
            source = ""
        if not source:
            raise InputError(
                "policies with weights, as run_a:0.3,run_b:0.7", f"{item!r}", "write SOURCE:WEIGHT"
            )
    return tuple(found)


@dataclass(frozen=True)
class Rule:
    """How the logits of several policies become those of one; hashable, so that it is part of a
    compiled program."""

    divergence: Divergence
    alpha: float
    reference: bool
    """Whether the last policy is the reference, which has no weight of its own."""
    first_top_k: int | None = None


def mixed_logits(logits_NRV: jax.Array, weight_N: jax.Array, rule: Rule) -> jax.Array:
    """[R, V] float32 log-probs of the mix, up to a constant of the row; see the module for the
    formula.

    Args:
        logits_NRV: float32 log-probs of the policies up to constants of their rows, the reference
            last if `rule.reference`.  At most -1e30 where the head is padded.
        weight_N: of the policies without the reference, 0 or more, not all 0.
    Source: arXiv 2406.18853; Z by bisection within bounds that always hold.
    """
    count = weight_N.shape[0]
    if rule.divergence == "reverse_kl":
        mixed_RV = _weighted(weight_N, logits_NRV[:count])
        if rule.reference:
            mixed_RV += (1.0 - jnp.sum(weight_N)) * logits_NRV[count]
        return (
            mixed_RV
            if rule.first_top_k is None
            else _among(mixed_RV, logits_NRV[0], rule.first_top_k)
        )
    logp_NRV = jax.nn.log_softmax(logits_NRV, axis=-1)
    ref_RV = logp_NRV[count]
    # Of the head's padding nothing is left; among the sums it would set the bound of Z.
    real_RV = ref_RV > _NO_TOKEN
    away_NRV = jnp.where(real_RV[None], ref_RV[None] - logp_NRV[:count], 0.0)
    if rule.divergence == "jsd":
        mixed_RV = _jensen_shannon(away_NRV, ref_RV, real_RV, weight_N)
    else:
        order = 1.0 if rule.divergence == "forward_kl" else rule.alpha
        mixed_RV = _of_order(away_NRV, ref_RV, real_RV, weight_N, order)
    return jnp.where(real_RV, mixed_RV, ref_RV)


def _among(mixed_RV: jax.Array, first_RV: jax.Array, k: int) -> jax.Array:
    return jnp.where(jnp.isfinite(warp(first_RV, Sampling(1.0, top_k=k))), mixed_RV, -jnp.inf)


def _weighted(weight_N: jax.Array, x_NRV: jax.Array) -> jax.Array:
    # A sum, not a dot product: TPUs would round its operands to bfloat16.
    return jnp.sum(weight_N[:, None, None] * x_NRV, axis=0)


def _of_order(away_NRV, ref_RV, real_RV, weight_N, order: float) -> jax.Array:
    """ref * (Z + g)^(-1/a), g = sum_i w_i (ref / pi_i)^a: f'(u) = (1 - u^-a) / a, and the forward
    KL is a = 1.

    With the least g, that of token v, subtracted, Z becomes d > 0.  The term of v alone must not
    exceed 1, so d >= ref(v)^a; and d = 1 gives at most sum ref = 1.
    """
    log_g_RV = jax.nn.logsumexp(order * away_NRV, axis=0, b=weight_N[:, None, None])
    least_R1 = jnp.min(jnp.where(real_RV, log_g_RV, jnp.inf), axis=-1, keepdims=True)
    above_RV = jnp.where(real_RV, jnp.maximum(log_g_RV - least_R1, 0.0), 0.0)
    log_rest_RV = log_g_RV + jax.nn.log1mexp(above_RV)  # log(g - least), -inf where it is the least
    low_R1 = order * _reference_at(above_RV, ref_RV, real_RV)
    logp = lambda log_d_R1: ref_RV - jnp.logaddexp(log_d_R1, log_rest_RV) / order
    return logp(_root(logp, low_R1, jnp.zeros_like(low_R1)))


def _jensen_shannon(away_NRV, ref_RV, real_RV, weight_N) -> jax.Array:
    """ref / (exp(Z + g) - 1), g = sum_i w_i log(1 + ref / pi_i): f'(u) = log(2 u / (1 + u)).

    As in `_of_order`: d >= log(1 + ref(v)) >= ref(v) log 2, and d = log 2 gives at most sum ref =
    1.
    """
    g_RV = _weighted(weight_N, jax.nn.softplus(away_NRV))
    least_R1 = jnp.min(jnp.where(real_RV, g_RV, jnp.inf), axis=-1, keepdims=True)
    rest_RV = jnp.where(real_RV, g_RV - least_R1, 0.0)
    log_rest_RV = jnp.log(rest_RV)  # -inf where it is the least
    high = math.log(math.log(2))
    low_R1 = _reference_at(rest_RV, ref_RV, real_RV) + high
    logp = lambda log_d_R1: ref_RV - _log_expm1(jnp.logaddexp(log_d_R1, log_rest_RV))
    return logp(_root(logp, low_R1, jnp.full_like(low_R1, high)))


def _log_expm1(log_x: jax.Array) -> jax.Array:
    """log(exp(x) - 1) of log x, also where x is no float32 number any more."""
    x = jnp.exp(log_x)
    small = log_x < -8.0  # then the next term, x^2 / 24, is below rounding
    return jnp.where(small, log_x + 0.5 * x, x + jax.nn.log1mexp(jnp.where(small, 1.0, x)))


def _reference_at(above_RV, ref_RV, real_RV) -> jax.Array:
    """[R, 1] log-prob under the reference of the token where `above` is 0; of several, of the most
    likely."""
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


# ---- as a policy


@cache  # the same functions for the same models, so that other weights compile nothing
def mixture_of(policies: tuple[tuple[DecodingModel, int], ...], rule: Rule) -> DecodingModel:
    """Several policies as one, the reference last if `rule.reference`.

    Its parameters are `{"weight_N": ..., "bases": (tree, ...), "overlays": (tree, ...)}`: policy i
    reads base number `policies[i][1]` with overlay i laid over it (`policy.Frozen`).  So adapters
    on one base hold it once, and other weights are the same program.
    """
    each = [policy for policy, _ in policies]

    def start(rows, columns):
        return tuple(policy.start(rows, columns) for policy in each)

    def read(params, states, *chunk):
        trees = whole_params(params, policies)
        return tuple(
            p.read(tree, state, *chunk) for p, tree, state in zip(each, trees, states, strict=True)
        )

    def unpacked(params):
        of_base = {base: policy for policy, base in policies}
        bases = tuple(of_base[base].unpacked(tree) for base, tree in enumerate(params["bases"]))
        overlays = tuple(p.unpacked(tree) for p, tree in zip(each, params["overlays"], strict=True))
        return params | {"bases": bases, "overlays": overlays}

    def unpacked_state(states):
        return tuple(p.unpacked_state(state) for p, state in zip(each, states, strict=True))

    def next_logits(params, states, *step):
        trees = whole_params(params, policies)
        found = [
            p.next_logits(tree, state, *step)
            for p, tree, state in zip(each, trees, states, strict=True)
        ]
        logits_NRV = jnp.stack([logits_RV for logits_RV, _ in found])
        return mixed_logits(logits_NRV, params["weight_N"], rule), tuple(
            state for _, state in found
        )

    return DecodingModel(start, read, unpacked, unpacked_state, next_logits)


def whole_params(
    params: Mapping[str, Any], policies: Sequence[tuple[Any, int]]
) -> list[dict[str, Any]]:
    """The parameters of every policy of a mixture."""
    overlays = params["overlays"]
    return [
        {**params["bases"][base], **overlay}
        for (_, base), overlay in zip(policies, overlays, strict=True)
    ]
