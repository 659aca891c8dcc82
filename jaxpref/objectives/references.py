"""Objectives on pairs with several references: the policy's own initialisation and others.

The first is `ref`, the others are those of `extra_refs`.
"""

import jax
import jax.numpy as jnp

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import (
    Fraction,
    Positive,
    RowWeight,
    difference,
    pair_output,
    per_model,
)
from jaxpref.objectives.contract import PAIRS, ObjectiveOutput, needs


@needs(groups=PAIRS)
def mrpo(
    policy: Logps,
    ref: Logps,
    extra_refs: jax.Array,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    eps: Fraction = 0.1,
) -> ObjectiveOutput:
    """Multi-reference preference optimisation: DPO against log p = -log sum_k alpha_k exp(-L_k).

    p is a harmonic mean; L_k(y) is the summed log-prob under reference k, first `ref` (k = 1), then
    `extra_refs`.  Clip: every L_k(y) is moved into [(1 + e_y) L_1(y), (1 - e_y) L_1(y)], with e_y =
    eps * |b_y| / (|b_chosen| + |b_rejected|) and b_y the mean of L_k(y) over k.  Weights, per pair:
    alpha_k = |L_k(chosen) - L_k(rejected)|, divided by their sum, from the unclipped L_k; equal
    weights where all of these are 0.  Only the policy gets a gradient.

    Args:
        policy, ref: summed log-probs [B, K] in nats of completions 0 (chosen) and 1 (rejected).
        extra_refs: [B, K, O] summed log-probs in nats under the other references.  From Python O
            may be 0, which is DPO; in a config choose `dpo` for that.
        weight: [B] weight of every pair, >= 0.
        beta: strength of the pull towards the references, > 0; 0.1 in the authors' code.
        eps: width of the clip, 0 to 1; 0 is DPO with `ref`, the authors' code uses 0.1.
    Returns: loss_B in nats, ln 2 where policy equals every reference.
    Source: Le et al., arXiv 2405.16388, with its adaptive clipping and weights.  The authors' code
        exchanges the weights of its two references in the mean; here they are those of the paper's
        closed form.
    Use: with other models whose judgement you want besides your own reference.  Start from DPO's
        beta and learning rate.  The evidence is mixed: the paper reports gains over DPO, but arXiv
        2512.10040 (a 0.5B policy, seven references) finds DPO with any one of six of them better
        than every scheme of several.  Compare with `dpo` before you keep it.
    Curves: as for DPO: margins grow from about 0, accuracies rise above one half.  At the first
        step rewards are already off 0, by beta times the distance of the mean to `ref`; the clip
        keeps that small.
    """
    refs_BKO = _references(ref, extra_refs)
    clipped_BKO = _clipped(refs_BKO, eps * _share(jnp.abs(refs_BKO.mean(-1))))
    alpha_BO = _share(jnp.abs(difference(refs_BKO)))
    return _dpo_against(_harmonic_mean(clipped_BKO, alpha_BO), policy, weight, beta)


@needs(groups=PAIRS)
def mrpo_fixed(
    policy: Logps,
    ref: Logps,
    extra_refs: jax.Array,
    weight: RowWeight = None,
    *,
    alphas: tuple[Positive, ...] = (),
    beta: Positive = 0.1,
    eps: Fraction = 0.1,
) -> ObjectiveOutput:
    """MRPO with given weights and one clip: DPO against log p = -log sum_k alpha_k exp(-L_k).

    L_k(y) is the summed log-prob under reference k, first `ref` (k = 1), then `extra_refs`.  Clip:
    every L_k(y) is moved into [(1 + eps) L_1(y), (1 - eps) L_1(y)].  Only the policy gets a
    gradient.

    Args:
        policy, ref: summed log-probs [B, K] in nats of completions 0 (chosen) and 1 (rejected).
        extra_refs: [B, K, O] summed log-probs in nats under the other references.
        weight: [B] weight of every pair, >= 0.
        alphas: weights > 0 of `ref` and of each extra reference, in this order; divided by their
            sum.  Empty: equal.
        beta: strength of the pull towards the references, > 0.
        eps: width of the clip, 0 to 1; 0 is DPO with `ref`, 1 lets L_k lie anywhere between 2 L_1
            and 0.
    Returns: loss_B in nats, ln 2 where policy equals every reference.
    Source: Le et al., arXiv 2405.16388, without the adaptive parts.  The authors' code exchanges
        the weights of its two references in the mean; here they are those of the closed form.
    Use: when you trust one reference more than another, or for ablations of `mrpo`.  Over whole
        completions L_k differ by tens of nats, and the harmonic mean is then the smallest of the
        clipped ones, whatever the weights; for a real compromise take `geometric_mrpo`.  The
        evidence against several references (arXiv 2512.10040, see `mrpo`) holds here.
    Curves: as for `mrpo`.
    """
    clipped_BKO = _clipped(_references(ref, extra_refs), jnp.full_like(ref.sum[:, :2], eps))
    alpha_O = _normalised(alphas, clipped_BKO)
    return _dpo_against(_harmonic_mean(clipped_BKO, alpha_O[None, :]), policy, weight, beta)


@needs(groups=PAIRS)
def geometric_mrpo(
    policy: Logps,
    ref: Logps,
    extra_refs: jax.Array,
    weight: RowWeight = None,
    *,
    alphas: tuple[Positive, ...] = (),
    beta: Positive = 0.1,
) -> ObjectiveOutput:
    """DPO against the geometric mean of several references: log p = sum_k alpha_k L_k.

    It solves max E[r] - beta * sum_k alpha_k KL(policy || reference k) exactly; the harmonic mean
    of `mrpo` maximises a lower bound of that.  L_k(y) is the summed log-prob under reference k,
    first `ref`, then `extra_refs`; no clips.

    Args:
        policy, ref: summed log-probs [B, K] in nats of completions 0 (chosen) and 1 (rejected).
        extra_refs: [B, K, O] summed log-probs in nats under the other references.
        weight: [B] weight of every pair, >= 0.
        alphas: weights > 0 of `ref` and of each extra reference, in this order; divided by their
            sum.  Empty: equal.
        beta: strength of the pull towards the references, > 0.
    Returns: loss_B in nats, ln 2 where policy equals every reference.
    Source: the closed form of the sum of KL penalties, the problem that arXiv 2405.16388 (Le et
        al.) starts from.
    Use: when every reference should count in proportion to its weight.  Give a reference that
        dislikes your data a small weight, for nothing is clipped.  The evidence against several
        references (arXiv 2512.10040, see `mrpo`) may hold here.
    Curves: margins and accuracies rise as for DPO, but start where the mean of the references lies,
        not at 0.
    """
    refs_BKO = _references(ref, extra_refs)
    mean_BK = _weighted_mean(refs_BKO, _normalised(alphas, refs_BKO))
    return _dpo_against(mean_BK, policy, weight, beta)


@needs(groups=PAIRS)
def multi_dpo(
    policy: Logps,
    ref: Logps,
    extra_refs: jax.Array,
    weight: RowWeight = None,
    *,
    alphas: tuple[Positive, ...] = (),
    beta: Positive = 0.1,
) -> ObjectiveOutput:
    """Weighted sum of DPO losses: sum_k alpha_k * -log sigmoid(beta * (D - D_k)).

    D = L(chosen) - L(rejected), and D_k the same of L_k.  L_k(y) is the summed log-prob under
    reference k, first `ref`, then `extra_refs`; L(y) that of the policy.

    Args:
        policy, ref: summed log-probs [B, K] in nats of completions 0 (chosen) and 1 (rejected).
        extra_refs: [B, K, O] summed log-probs in nats under the other references.
        weight: [B] weight of every pair, >= 0.
        alphas: weights > 0 of `ref` and of each extra reference, in this order; divided by their
            sum.  Empty: equal.
        beta: strength of the pull towards the references, > 0.
    Returns: loss_B in nats, ln 2 where policy equals every reference.
    Source: the simple variant that arXiv 2405.16388 (Le et al.) compares MRPO with.
    Use: as a baseline for `mrpo`.  Its optimum is no simple mean of the references;
        `geometric_mrpo` has one.  The evidence against several references (arXiv 2512.10040, see
        `mrpo`) covers it too.
    Curves: as for DPO.  Logged rewards are beta * (L - sum_k alpha_k L_k), so they do not start at
        0.
    """
    refs_BKO = _references(ref, extra_refs)
    alpha_O = _normalised(alphas, refs_BKO)
    rho_BKO = policy.sum[:, :2, None] - refs_BKO
    losses_BO = -jax.nn.log_sigmoid(beta * difference(rho_BKO))
    loss_B = jnp.sum(losses_BO * alpha_O[None, :], axis=-1)
    reward_BK = beta * _weighted_mean(rho_BKO, alpha_O)
    return pair_output(loss_B, reward_BK, policy, weight)


def _references(ref: Logps, extra_refs: jax.Array) -> jax.Array:
    """[B, 2, O] log-probs of the pair under all references, `ref` first; without gradient."""
    refs_BKO = jnp.concatenate([ref.sum[:, :2, None], extra_refs[:, :2]], axis=-1)
    return jax.lax.stop_gradient(refs_BKO)


def _clipped(refs_BKO: jax.Array, eps_BK: jax.Array) -> jax.Array:
    """Log-probs within a factor 1 +- eps of those under the first reference."""
    first_BK1, eps_BK1 = refs_BKO[:, :, :1], eps_BK[:, :, None]
    # Log-probs are negative, so 1 + eps is the lower end.
    return jnp.clip(refs_BKO, (1.0 + eps_BK1) * first_BK1, (1.0 - eps_BK1) * first_BK1)


def _share(size: jax.Array) -> jax.Array:
    """Sizes [B, n] divided by their sum over n; equal shares where all are 0."""
    total = size.sum(-1, keepdims=True)
    return jnp.where(total > 0, size / jnp.where(total > 0, total, 1.0), 1.0 / size.shape[-1])


def _harmonic_mean(refs_BKO: jax.Array, alpha_BO: jax.Array) -> jax.Array:
    """[B, 2] log of 1 / sum_k alpha_k / p_k; a weight of 0 leaves its reference out."""
    return -jax.nn.logsumexp(-refs_BKO, axis=-1, b=alpha_BO[:, None, :])


def _weighted_mean(x_BKO: jax.Array, alpha_O: jax.Array) -> jax.Array:
    return jnp.sum(x_BKO * alpha_O[None, None, :], axis=-1)


def _normalised(alphas: tuple[float, ...], refs_BKO: jax.Array) -> jax.Array:
    """[O] weights of the references that sum to 1."""
    models = "first `ref`, then those of `extra_refs`"
    alpha_O = jnp.asarray(
        per_model("alphas", alphas, refs_BKO.shape[-1], 1.0, models), refs_BKO.dtype
    )
    return alpha_O / alpha_O.sum()


def _dpo_against(
    reference_BK: jax.Array, policy: Logps, weight: RowWeight, beta: float
) -> ObjectiveOutput:
    rho_BK = policy.sum[:, :2] - reference_BK
    loss_B = -jax.nn.log_sigmoid(beta * difference(rho_BK))
    return pair_output(loss_B, beta * rho_BK, policy, weight)
