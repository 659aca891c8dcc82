"""Objectives on pairs in which a pair's loss depends on the other pairs of the batch.

They see the whole batch of a step at once, whatever the micro-batches, and take only its real pairs
into account.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import (
    LessThanHalf,
    LessThanOne,
    NotNegative,
    Positive,
    RowWeight,
    cross_entropy,
    difference,
    log_ratios,
    mean,
    pair_output,
    pair_weight,
    plus_metrics,
)
from jaxpref.objectives.contract import PAIRS, ObjectiveOutput, needs
from jaxpref.objectives.pairwise import dpo

_SMALLEST_BETA = 1e-3
_SMALLEST_STD = 1e-6
"""nats; a spread below it, as on the first step, is none: all pairs at the same margin are equally
likely."""


@needs(groups=PAIRS, coupled=True)
def aot(
    policy: Logps, ref: Logps, *, beta: Positive = 0.01, eps: LessThanHalf = 0.0
) -> ObjectiveOutput:
    """Alignment via optimal transport, paired: mean of -log sigmoid(beta * (m_(i) - mref_(i))).

    The mean is over i; m = L_chosen - L_rejected under the policy, mref under the reference, each
    sorted over the batch; index (i) is the i-th smallest of each.  With label smoothing eps it is
    -(1 - eps) * log sigmoid(z) - eps * log sigmoid(-z), z the argument above.  The i-th loss is
    booked on the pair whose m is the i-th.  There is no weight per pair: the i-th margin of the
    reference belongs to another pair than the policy's.

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference gets no gradient.
        beta: scale, > 0; 0.01 in the paper's setting, 0.1 is TRL's default.
        eps: the probability that a label is wrong, in [0, 1/2).
    Returns: loss_B in nats, ln 2 where policy equals reference (with any eps).
    Source: Melnyk et al., arXiv 2406.05882; TRL's `loss_type: aot`, which sorts within a
        micro-batch of one device, where this sorts the whole batch of a step.
    Use: when the distribution of margins should move as a whole rather than pair by pair.  It needs
        large batches: with one pair it is DPO.  beta 0.01, DPO's learning rates.
    Curves: rewards are those of DPO's definition; few pairs have a negative margin at the end, and
        accuracy rises.
    """
    ref_margin_B = difference(jax.lax.stop_gradient(ref.sum))
    return _transported(policy, ref, difference(policy.sum), ref_margin_B, beta, eps)


@needs(groups=PAIRS, coupled=True)
def aot_unpaired(
    policy: Logps, ref: Logps, *, beta: Positive = 0.01, eps: LessThanHalf = 0.0
) -> ObjectiveOutput:
    """Optimal transport, unpaired: the mean over i of -log sigmoid(beta * (rho_c(i) - rho_r(i))).

    Alignment via optimal transport as in `aot`.  rho_c(i) is the i-th smallest log-ratio of the
    batch's chosen completions, rho_r(i) that of its
    rejected ones: which chosen belongs to which rejected does not matter.  With label smoothing eps
    it is -(1 - eps) * log sigmoid(z) - eps * log sigmoid(-z), z the argument above.  The i-th loss
    is booked on the pair whose chosen completion is the i-th.  There is no weight per pair.

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference gets no gradient.
        beta: scale, > 0; 0.01 in the paper's setting, 0.1 is TRL's default.
        eps: the probability that a label is wrong, in [0, 1/2).
    Returns: loss_B in nats, ln 2 where policy equals reference (with any eps).
    Source: Melnyk et al., arXiv 2406.05882; TRL's `loss_type: aot_unpaired`, which sorts within a
        micro-batch of one device, where this sorts the whole batch of a step.
    Use: when chosen and rejected completions are two sets without real pairs (put them into rows in
        any order).  It needs large batches: with one pair it is DPO.  beta 0.01, DPO's learning
        rates.
    Curves: the distribution of rewards/chosen moves above that of rewards/rejected; accuracies
        compare the completions of a row, so without real pairs they may stay low while the loss
        falls.
    """
    rho_BK = log_ratios(policy, ref)
    return _transported(policy, ref, rho_BK[:, 0], rho_BK[:, 1], beta, eps)


@needs(groups=PAIRS, coupled=True)
def dr_dpo(
    policy: Logps,
    ref: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    beta_prime: Positive = 1.0,
) -> ObjectiveOutput:
    """Distributionally robust DPO: -beta' * log(mean of exp(-L / beta')), L the loss of DPO.

    The mean is over the batch, weighted by `weight`.  loss_B holds this one number for every pair.
    A pair's gradient is DPO's, times exp(-L / beta') over its mean: pairs with a large loss, which
    are likelier to be mislabelled, count less.

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference gets no gradient.
        weight: [B] weight of every pair, >= 0.
        beta: as in DPO, > 0; the paper's code uses 0.1.
        beta_prime: beta', > 0, in nats of loss: towards infinity it is the mean, DPO; towards 0 the
            smallest loss of the batch; the paper's code uses 1.
    Returns: loss_B in nats, the same for all pairs, ln 2 where policy equals reference.
    Source: Wu et al., arXiv 2407.07880, and its code.  The mean runs over the whole batch of a
        step, where the code takes each device's part of a micro-batch.
    Use: when a good part of the labels may be flipped.  beta 0.1, beta' 1, DPO's learning rates.
    Curves: the loss lies below dr_dpo/dpo_loss, the plain mean; the distance grows as the losses
        spread.  With noisy labels rewards/accuracies on the training data should level off below
        DPO's.
    """
    out = dpo(policy, ref, weight, beta=beta)
    robust = _soft_mean(out.loss_B, out.weight_B, beta_prime)
    robust_B = jnp.broadcast_to(robust, out.loss_B.shape)
    return plus_metrics(out._replace(loss_B=robust_B), {"dr_dpo/dpo_loss": out.loss_B})


@needs(groups=PAIRS, coupled=True, running={"mean": 0.0, "std": 0.0})
def beta_dpo(
    policy: Logps,
    ref: Logps,
    running: Mapping[str, jax.Array],
    uniform: jax.Array,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    m: NotNegative = 0.6,
    filter: LessThanOne = 0.2,
    decay: LessThanOne = 0.9,
) -> ObjectiveOutput:
    """DPO with a beta per batch and without its outliers: -log sigmoid(beta_B * D) of kept pairs.

    D = rho_chosen - rho_rejected; M0 and s are running means of the batch's mean and standard
    deviation of D, this batch included.  Of n pairs n - floor(filter * n) are drawn without
    replacement with weights exp(-(D - M0)^2 / (2 s^2)).  beta_B = max(beta * (1 + m * (mean of D
    over the kept pairs - M0)), 0.001).  Only the D of the loss gets a gradient.

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference gets no gradient.
        running: `mean` and `std`, M0 and s in nats, 0 before the first step.
        uniform: [B] numbers in [0, 1), from which the kept pairs are drawn.
        weight: [B] weight of every pair, >= 0, in the mean of the loss; neither the drawing nor the
            statistics use it.
        beta: beta of a batch whose margin is M0, > 0; the paper's code uses 0.1.
        m: change of beta per nat of margin, relative, >= 0; 0.6 in the example of the paper's code;
            0 keeps beta.
        filter: part of the batch that is left out, 0 <= filter < 1; 0.2 in the paper's code.
        decay: of the running means, 0 <= decay < 1; 0.9 in the paper's code.
    Returns: loss_B in nats, ln 2 where policy equals reference; weight_B is 0 for pairs that are
        left out.
    Source: Wu et al., arXiv 2407.08639, as in its code: D is in nats, not times beta; the running
        means start at 0 without a correction and take in the batch before they are used; beta_B
        looks at kept pairs only.  Not as there: rounding keeps a pair of a small batch; a spread of
        0 lets all pairs be drawn alike (there it is 0 / 0); the standard deviation stays as it was
        in a batch of one pair; statistics are the whole step's.
    Use: when pairs differ much in quality.  As m multiplies nats of margin, which grow with the
        length of the completions, lower m if beta_dpo/beta swings by more than a factor of 2 or so.
        Learning rate as for DPO.
    Curves: beta_dpo/beta swings around the configured beta, above it for batches with a larger
        margin than of late and so mostly above it while margins grow; beta_dpo/kept is about 1 -
        filter; rewards are configured beta * rho.
    """
    rho_BK = log_ratios(policy, ref)
    margin_B = difference(rho_BK)
    fixed_B = jax.lax.stop_gradient(margin_B)
    real_B = pair_weight(policy, None) > 0
    after = _running_moments(running, fixed_B, real_B, decay)
    kept_B = _draw(_log_likelihood(fixed_B, after), real_B, uniform, filter)
    shift = mean(fixed_B, kept_B) - after["mean"]
    beta_now = jnp.maximum(beta * (1.0 + m * shift), _SMALLEST_BETA)
    loss_B = -jax.nn.log_sigmoid(beta_now * margin_B)
    out = pair_output(loss_B, beta * rho_BK, policy, weight)
    kept_share_B = kept_B.astype(jnp.float32)
    logged = {
        "beta_dpo/beta": jnp.broadcast_to(beta_now, loss_B.shape),
        "beta_dpo/kept": kept_share_B,
    }
    return plus_metrics(out._replace(weight_B=kept_share_B * out.weight_B, running=after), logged)


def _transported(
    policy: Logps, ref: Logps, x_B: jax.Array, y_B: jax.Array, beta: float, eps: float
) -> ObjectiveOutput:
    """Loss of x above the y of the same rank."""
    real_B = pair_weight(policy, None) > 0
    z_B = beta * (x_B - _of_same_rank(y_B, x_B, real_B))
    loss_B = cross_entropy(z_B, 1.0 - eps)
    return pair_output(loss_B, beta * log_ratios(policy, ref), policy, None)


def _of_same_rank(y_B: jax.Array, x_B: jax.Array, real_B: jax.Array) -> jax.Array:
    """For every pair the y whose rank among the real pairs is that of the pair's x."""
    return y_B[_order(y_B, real_B)[_rank(x_B, real_B)]]


def _order(x_B: jax.Array, real_B: jax.Array) -> jax.Array:
    """Indices of the real pairs by ascending x, then those of the empty slots."""
    return jnp.argsort(jnp.where(real_B, jax.lax.stop_gradient(x_B), jnp.inf))


def _rank(x_B: jax.Array, real_B: jax.Array) -> jax.Array:
    order_B = _order(x_B, real_B)
    return jnp.zeros_like(order_B).at[order_B].set(jnp.arange(order_B.size, dtype=order_B.dtype))


def _soft_mean(loss_B: jax.Array, weight_B: jax.Array, t: float) -> jax.Array:
    """-t * log(weighted mean of exp(-loss / t)), with losses taken relative to the smallest one."""
    counts_B = weight_B > 0
    least = jax.lax.stop_gradient(jnp.min(jnp.where(counts_B, loss_B, jnp.inf)))
    least = jnp.where(counts_B.any(), least, 0.0)
    x_B = (least - jnp.where(counts_B, loss_B, least)) / t
    weight_B = weight_B.astype(loss_B.dtype)
    share_B = weight_B / jnp.maximum(weight_B.sum(), jnp.finfo(loss_B.dtype).tiny)
    return least - t * _log_mean_exp(x_B, share_B)


def _log_mean_exp(x_B: jax.Array, share_B: jax.Array) -> jax.Array:
    """log(sum(share * exp(x))) for x <= 0: exact near 0, where all x are small, and far from it."""
    less_1 = jnp.sum(share_B * jnp.expm1(x_B))
    near = less_1 > -0.5
    whole = jnp.where(near, 1.0, jnp.sum(share_B * jnp.exp(x_B)))
    return jnp.where(near, jnp.log1p(jnp.where(near, less_1, 0.0)), jnp.log(whole))


def _running_moments(
    running: Mapping[str, jax.Array], x_B: jax.Array, real_B: jax.Array, decay: float
) -> dict[str, jax.Array]:
    """Running mean and standard deviation (n - 1 degrees of freedom), this batch included."""
    n, centre = real_B.sum(), mean(x_B, real_B)
    squares = jnp.where(real_B, (x_B - centre) ** 2, 0.0).sum()
    std = jnp.sqrt(squares / jnp.maximum(n - 1, 1))

    def mixed(old: jax.Array, new: jax.Array, known: jax.Array) -> jax.Array:
        return jnp.where(known, decay * old + (1.0 - decay) * new, old)

    return {"mean": mixed(running["mean"], centre, n > 0), "std": mixed(running["std"], std, n > 1)}


def _log_likelihood(x_B: jax.Array, moments: Mapping[str, jax.Array]) -> jax.Array:
    """Of a normal distribution, up to a constant."""
    return -0.5 * ((x_B - moments["mean"]) / jnp.maximum(moments["std"], _SMALLEST_STD)) ** 2


def _draw(
    log_weight_B: jax.Array, real_B: jax.Array, uniform_B: jax.Array, left_out: float
) -> jax.Array:
    """[B] whether a real pair is kept.

    The pairs with the largest log weight + Gumbel noise are a draw without replacement.
    """
    n = real_B.sum()
    # 1e-4, for 0.53 * 100 is below 53 in float32; at least 1, for a `filter` close to 1.
    kept = jnp.maximum(n - jnp.floor(left_out * n + 1e-4).astype(n.dtype), 1)
    noise_B = -jnp.log(-jnp.log(jnp.maximum(uniform_B, jnp.finfo(uniform_B.dtype).tiny)))
    # Relative to the largest, or a far outlier's log weight would swallow the noise of all.
    largest = jnp.max(jnp.where(real_B, log_weight_B, -jnp.inf))
    return real_B & (_rank(-(log_weight_B - largest + noise_B), real_B) < kept)
