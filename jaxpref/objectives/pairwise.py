"""Objectives on pairs with a reference: losses of the margin D.

Completion 0 is chosen, completion 1 rejected.  rho is a completion's log-ratio, log pi(y|x) - log
pi_ref(y|x), summed over its tokens; D = rho_c - rho_r, chosen less rejected; n is a completion's
number of tokens.
"""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
from pydantic import Field

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import (
    LessThanHalf,
    Positive,
    RowWeight,
    cross_entropy,
    difference,
    log_ratios,
    pair_output,
    per_token,
)
from jaxpref.objectives.contract import PAIRS, ObjectiveOutput, needs

Smoothing = Annotated[float, Field(gt=0, lt=0.5, allow_inf_nan=False)]


@needs(groups=PAIRS, transformable=True)
def dpo(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """Direct preference optimisation: -log sigmoid(beta * D).

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference gets no gradient.
        weight: [B] weight of every pair, >= 0.
        beta: strength of the pull towards the reference, > 0; the paper uses 0.1 to 0.5.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Rafailov et al., arXiv 2305.18290, eq. 7; TRL's `loss_type: sigmoid`.
    Use: the first thing to try; beta 0.1 with a learning rate of 5e-7 to 1e-6, beta 0.5 for models
        of a few hundred million parameters.
    Curves: loss falls from 0.693; accuracy rises from 0 in step 1; both rewards often fall while
        their margin grows.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = -jax.nn.log_sigmoid(beta * difference(rho_BK))
    return pair_output(loss_B, beta * rho_BK, policy, weight)


@needs(groups=PAIRS, transformable=True)
def cdpo(
    policy: Logps,
    ref: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    eps: LessThanHalf = 0.1,
) -> ObjectiveOutput:
    """Conservative DPO: -(1 - eps) log sigmoid(beta * D) - eps log sigmoid(-beta * D).

    Args:
        policy, ref, weight, beta: as in dpo.
        eps: probability that a label is wrong, 0 <= eps < 1/2; 0.1 is usual, HALOs has 0.2.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Mitchell, "A note on DPO with noisy preferences" (ericmitchell.ai/cdpo.pdf), eq. 3; not
        in TRL 1.16.
    Use: noisy labels, when margins should stay bounded; beta and learning rate of dpo.
    Curves: margins level off at log((1 - eps) / eps), 2.2 for eps 0.1; the loss cannot reach 0.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = cross_entropy(beta * difference(rho_BK), 1.0 - eps)
    return pair_output(loss_B, beta * rho_BK, policy, weight)


@needs(groups=PAIRS, transformable=True)
def rdpo(
    policy: Logps,
    ref: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    eps: LessThanHalf = 0.1,
) -> ObjectiveOutput:
    """Robust DPO: (-(1 - eps) log sigmoid(beta * D) + eps log sigmoid(-beta * D)) / (1 - 2 eps).

    Args:
        policy, ref, weight, beta: as in dpo.
        eps: probability that a label is wrong, 0 <= eps < 1/2; 0.1 is usual.
    Returns: loss_B in nats, ln 2 where policy equals reference; it has no lower bound.
    Source: Chowdhury et al., arXiv 2403.00409; TRL's `loss_type: robust`, whose eps is
        `label_smoothing`.
    Use: labels with a known error rate: averaged over such flips it is the DPO loss of the true
        labels; otherwise as dpo.
    Curves: as dpo, but the loss may become negative.
    """
    rho_BK = log_ratios(policy, ref)
    margin_B = beta * difference(rho_BK)
    right_B, wrong_B = jax.nn.log_sigmoid(margin_B), jax.nn.log_sigmoid(-margin_B)
    loss_B = ((eps - 1.0) * right_B + eps * wrong_B) / (1.0 - 2.0 * eps)
    return pair_output(loss_B, beta * rho_BK, policy, weight)


@needs(groups=PAIRS, transformable=True)
def ipo(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """Identity preference optimisation: (rho_c / n_c - rho_r / n_r - 1 / (2 beta))^2, token means.

    Args:
        policy, ref: summed log-probs (nats) and token counts [B, 2]; the reference gets no
            gradient.
        weight: [B] weight of every pair, >= 0.
        beta: the paper's tau, > 0: the margin per token is driven to 1 / (2 beta); TRL's default is
            0.1.
    Returns: loss_B, 1 / (4 beta^2) where policy equals reference.
    Source: Azar et al., arXiv 2310.12036, eq. 17, which sums log-probs over tokens; the token mean
        follows TRL's `loss_type: ipo` (its authors' advice).
    Use: labels that are almost certain, which dpo would overfit; beta 0.1 to 1, learning rate of
        dpo.
    Curves: loss falls from 25 (beta 0.1); logged rewards are beta * rho (summed), as TRL logs them.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = (difference(per_token(rho_BK, policy)) - 1.0 / (2.0 * beta)) ** 2
    return pair_output(loss_B, beta * rho_BK, policy, weight)


@needs(groups=PAIRS, transformable=True)
def ipo_sum(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """Identity preference optimisation as published: (D - 1 / (2 beta))^2.

    Args:
        policy, ref, weight: as in dpo.
        beta: the paper's tau, > 0: D is driven to 1 / (2 beta).
    Returns: loss_B, 1 / (4 beta^2) where policy equals reference.
    Source: Azar et al., arXiv 2310.12036, eq. 17; TRL takes token means, as ipo does.
    Use: as ipo, exactly as in the paper; beta 0.01 to 0.1, learning rate of dpo.
    Curves: the margin of rewards goes to 1/2, whatever beta is, and stays there.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = (difference(rho_BK) - 1.0 / (2.0 * beta)) ** 2
    return pair_output(loss_B, beta * rho_BK, policy, weight)


@needs(groups=PAIRS, transformable=True)
def hinge(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """Hinge on log-ratios: max(0, 1 - beta * D).

    Args:
        policy, ref, weight: as in dpo.
        beta: > 0; a pair with D above 1 / beta has no gradient.  0.05 to 0.1 are usual.
    Returns: loss_B, 1 where policy equals reference.
    Source: Liu et al. (RSO), arXiv 2309.06657, "hinge-norm", after SLiC; TRL's `loss_type: hinge`.
    Use: to leave pairs alone once they are learnt; beta 0.05 to 0.1, learning rate of dpo.
    Curves: loss falls from 1 towards 0; the margin of rewards slows down at 1.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = jax.nn.relu(1.0 - beta * difference(rho_BK))
    return pair_output(loss_B, beta * rho_BK, policy, weight)


@needs(groups=PAIRS, transformable=True)
def dpo_norm(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 5.0
) -> ObjectiveOutput:
    """Length-normalised DPO: -log sigmoid(beta * (rho_c / n_c - rho_r / n_r)).

    Args:
        policy, ref: summed log-probs (nats) and token counts [B, 2]; the reference gets no
            gradient.
        weight: [B] weight of every pair, >= 0.
        beta: > 0; it multiplies token means and so is larger than in dpo: 5 in Tulu 3.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Lambert et al. (Tulu 3), arXiv 2411.15124; TRL's `loss_type: sigmoid_norm`, which keeps
        dpo's default beta.
    Use: answers of very different lengths; beta 2 to 5, learning rate of dpo.
    Curves: as dpo; logged rewards are beta * rho (summed), as TRL logs them, and so are large.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = -jax.nn.log_sigmoid(beta * difference(per_token(rho_BK, policy)))
    return pair_output(loss_B, beta * rho_BK, policy, weight)


@needs(groups=PAIRS, transformable=True, constants=("eps",))
def exo(
    policy: Logps,
    ref: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    eps: Smoothing = 1e-3,
) -> ObjectiveOutput:
    """Efficient exact optimisation: q_c (log q_c - log(1 - eps)) + q_r (log q_r - log eps).

    q_c = sigmoid(beta * D) and q_r = 1 - q_c are the policy's preference, 1 - eps and eps the
    smoothed label; the loss is the KL divergence between the two.

    Args:
        policy, ref, weight, beta: as in dpo.
        eps: smoothing of the labels, 0 < eps < 1/2; 1e-3 in the paper.
    Returns: loss_B in nats, -ln 2 - (log(1 - eps) + log eps) / 2 where policy equals reference:
        2.76 for eps 1e-3.
    Source: Ji et al., arXiv 2402.00856; TRL's `loss_type: exo_pair`, whose eps is
        `label_smoothing`.
    Use: the reverse KL divergence from the labels, where dpo takes the forward one; learning rate
        of dpo.
    Curves: loss falls towards 0; the margin of rewards goes to log((1 - eps) / eps), 6.9 for eps
        1e-3.
    """
    rho_BK = log_ratios(policy, ref)
    margin_B = beta * difference(rho_BK)

    def divergence(logit_B: jax.Array, label: float) -> jax.Array:
        return jax.nn.sigmoid(logit_B) * (jax.nn.log_sigmoid(logit_B) - math.log(label))

    loss_B = divergence(margin_B, 1.0 - eps) + divergence(-margin_B, eps)
    return pair_output(loss_B, beta * rho_BK, policy, weight)


@needs(groups=PAIRS, transformable=True)
def discopop(
    policy: Logps,
    ref: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.05,
    tau: Positive = 0.05,
) -> ObjectiveOutput:
    """DiscoPOP: -(1 - m) log sigmoid(h) + m exp(-h), h = beta * D, m = sigmoid(h / tau).

    Args:
        policy, ref, weight: as in dpo.
        beta: as in dpo, > 0; 0.05 is usual.
        tau: temperature of the mixture m, > 0; 0.05 in the paper.  Above 1, log(m exp(-h)) is cut
            at 80.
    Returns: loss_B in nats, (ln 2 + 1) / 2 where policy equals reference.
    Source: Lu et al., arXiv 2406.08414, its log-ratio modulated loss; TRL's `loss_type: discopop`.
    Use: a loss that was found by search, in place of dpo; learning rate of dpo.  At tau 0.05 its
        slope at a tie is +0.784: alone, a pair's margin first falls, to a local minimum of the loss
        at h = -0.119; only above the maximum at h = 0.072 does it grow.
    Curves: loss starts at 0.847; rewards/margins may dip before it rises, or stay just below 0 if
        all steps are small.
    """
    rho_BK = log_ratios(policy, ref)
    h_B = beta * difference(rho_BK)
    # m exp(-h) as one exponential: exp(-h) alone is infinite where m is 0.
    exponential_B = jnp.exp(jnp.minimum(jax.nn.log_sigmoid(h_B / tau) - h_B, 80.0))
    loss_B = exponential_B - jax.nn.sigmoid(-h_B / tau) * jax.nn.log_sigmoid(h_B)
    return pair_output(loss_B, beta * rho_BK, policy, weight)
