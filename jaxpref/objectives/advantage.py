"""Several objectives at once: rewards as weights of a likelihood (HPO and its auxiliary term).

R = sum_i g_i * score_i is the reward of a completion, A = R - baseline its advantage; L / n is its
mean log-prob of a token.
"""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
from pydantic import Field

from jaxpref.errors import InputError
from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import (
    Finite,
    Fraction,
    NotNegative,
    Positive,
    RowWeight,
    check_last_axis,
    mean,
    pair_weight,
    per_token,
    plus_term,
)
from jaxpref.objectives.contract import ObjectiveOutput, Term, needs
from jaxpref.objectives.pairwise import dpo
from jaxpref.objectives.unpaired import kto

_OWN_SCORES = ("pair", "single", "judged", "ranked")
"""Kinds of groups whose completions all have scores, as answers to the group's prompt."""

RewardWeights = Annotated[tuple[Finite, ...], Field(min_length=1)]
AtLeastOne = Annotated[float, Field(ge=1, allow_inf_nan=False)]


@needs(groups=("pair",), constants=("w_max",))
def hpo_dpo(
    policy: Logps,
    ref: Logps,
    scores: jax.Array,
    weight: RowWeight = None,
    *,
    g: RewardWeights,
    beta: Positive = 0.1,
    gamma: NotNegative = 1.0,
    alpha: Positive = 1.0,
    w_max: AtLeastOne = 20.0,
) -> ObjectiveOutput:
    """Hybrid preference optimisation: L_DPO - gamma * mean of min(exp(A / alpha), w_max) * L / n.

    A = R - (mean of R over the group's completions), R = sum_i g_i * score_i; L / n is the mean
    log-prob of a token.  The first term is averaged over pairs, the second over all completions.
    The factor of L / n has no gradient.

    Args:
        policy, ref: summed log-probs and token counts n, [B, K]; completion 0 is chosen, 1
            rejected.
        scores: [B, K, m] auxiliary rewards of every completion; bring them to about unit variance.
        weight: [B] weight of every group, >= 0, in both terms.
        g: m weights of the rewards, of any sign.
        beta: of the DPO term, > 0.
        gamma: weight of the auxiliary term, >= 0; 0 is DPO.
        alpha: temperature, > 0: a smaller one follows the rewards harder.
        w_max: largest factor of a completion, >= 1.
    Returns: loss_B of the DPO term in nats, ln 2 where policy equals reference; the auxiliary term
        stands in `plus`.
    Source: Badrinath et al., arXiv 2405.17956 (HPO, later UPO): preference loss plus
        advantage-weighted likelihood.  Its symbols and constants are rebuilt from the description,
        so take gamma, alpha and w_max as ours.
    Use: rewards that are no preferences, such as reading level or a classifier's score, on every
        completion.  On KTO, the paper's base, it is `hpo_kto`; on another loss of pairs sum it with
        `advantage_mle`.  The joint optimum is not MODPO's.  Beta and learning rate as for DPO.
    Curves: `advantage/weight` stays near 1 and `advantage/clipped` near 0, otherwise raise alpha.
        Unlike under DPO alone, log-probs of both answers may rise.
    """
    out = dpo(policy, ref, weight, beta=beta)
    reward_BK = _reward(scores, g)
    advantage_BK = reward_BK - _group_mean(reward_BK, policy)[:, None]
    return plus_term(out, gamma, *_weighted_likelihood(policy, advantage_BK, weight, alpha, w_max))


@needs(groups=("judged_other",), coupled=True, constants=("w_max",))
def hpo_kto(
    policy: Logps,
    ref: Logps,
    label: jax.Array,
    scores: jax.Array,
    baseline: jax.Array,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    desirable_weight: NotNegative = 1.0,
    undesirable_weight: NotNegative = 1.0,
    g: RewardWeights,
    gamma: NotNegative = 1.0,
    alpha: Positive = 1.0,
    w_max: AtLeastOne = 20.0,
) -> ObjectiveOutput:
    """HPO on KTO: L_KTO - gamma * mean of min(exp(A / alpha), w_max) * L / n.

    Hybrid preference optimisation as in `hpo_dpo`.  A = R - baseline, R = sum_i g_i * score_i; L /
    n is the mean log-prob of a token of the judged answer.  Both terms are averaged over groups.
    The factor of L / n has no gradient.

    Args:
        policy, ref: summed log-probs and token counts n, [B, 2]: the judged answer, the answer to
            another prompt; the reference gets no gradient.
        label: [B] 1 for a desirable answer, 0 for an undesirable one.
        scores: [B, 2, m] auxiliary rewards of the judged answer, the first; the others are not
            used.
        baseline: [B] expected R of every prompt; 0 if the scores are standardised.
        weight: [B] weight of every group, >= 0, in both terms and in KTO's z0.
        beta, desirable_weight, undesirable_weight: of the KTO term, as in `kto`.
        g, gamma, alpha, w_max: of the auxiliary term, as in `hpo_dpo`; gamma 0 is KTO.
    Returns: loss_B of the KTO term, half the side's weight where policy equals reference; the
        auxiliary term stands in `plus`.
    Source: as `hpo_dpo`; KTO is the paper's default base.
    Use: answers that were judged one by one and also have rewards that are no preferences.  Beta,
        weights of the sides, learning rate and batch size as for KTO.
    Curves: those of `kto`, with `rewards/rejected` falling less; `advantage/weight` stays near 1
        and `advantage/clipped` near 0, otherwise raise alpha.
    """
    out = kto(
        policy,
        ref,
        label,
        weight,
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )
    judged = policy._replace(sum=policy.sum[:, :1], count=policy.count[:, :1])
    advantage_B1 = _reward(scores[:, :1], g) - baseline[:, None]
    return plus_term(out, gamma, *_weighted_likelihood(judged, advantage_B1, weight, alpha, w_max))


@needs(groups=_OWN_SCORES, constants=("w_max",))
def advantage_mle(
    policy: Logps,
    scores: jax.Array,
    baseline: jax.Array | None = None,
    weight: RowWeight = None,
    *,
    g: RewardWeights,
    alpha: Positive = 1.0,
    w_max: AtLeastOne = 20.0,
) -> ObjectiveOutput:
    """Advantage-weighted likelihood: -min(exp(A / alpha), w_max) * L / n, mean over completions.

    HPO's auxiliary term.  A = R - baseline, R = sum_i g_i * score_i; L / n is the mean log-prob of
    a token.  The factor has no gradient.

    Args:
        policy: summed log-probs and token counts n, [B, K]; empty completions are left out.
        scores: [B, K, m] rewards of every completion; bring them to about unit variance.
        baseline: [B] expected R of every prompt.  Without it: the mean of R over the group's
            completions, and then every group must have several.
        weight: [B] weight of every group, >= 0.
        g: m weights of the rewards, of any sign.
        alpha: temperature, > 0: a smaller one follows the rewards harder.
        w_max: largest factor of a completion, >= 1.
    Returns: loss_B in nats per token, weight_B = weight * number of completions.  There is no
        reference.
    Source: the auxiliary term of Badrinath et al., arXiv 2405.17956; constants as in `hpo_dpo`.
    Use: beside a preference loss on the same groups: a pairwise one, or on judged answers `bco` or
        `apo_zero_unpaired`, as in `[{name: bco}, {name: advantage_mle, g: [1.0]}]` with a
        `baseline` column (0 for standardised scores); on KTO it is `hpo_kto`.  Alone it tends to mu
        * exp(A / alpha) / n, normalised, mu the distribution of the data, so the token mean favours
        short answers; the baseline does not matter as long as w_max does not bind.
    Curves: the loss falls as an SFT loss does; `advantage/weight` near 1, `advantage/clipped` near
        0.
    """
    reward_BK = _reward(scores, g)
    if baseline is None and reward_BK.shape[1] == 1:
        raise InputError(
            "a `baseline` column, as the groups have one completion",
            "no such column, so every advantage would be 0",
            "add the expected reward of every prompt as `baseline`; "
            "0 if the scores are standardised",
        )
    baseline_B = _group_mean(reward_BK, policy) if baseline is None else baseline
    advantage_BK = reward_BK - baseline_B[:, None]
    term, metrics = _weighted_likelihood(policy, advantage_BK, weight, alpha, w_max)
    return ObjectiveOutput(*term, metrics)


@needs(groups=_OWN_SCORES, logps=("value",), constants=("w_max",))
def advantage_mle_value(
    policy: Logps,
    scores: jax.Array,
    weight: RowWeight = None,
    *,
    g: RewardWeights,
    alpha: Positive = 1.0,
    w_max: AtLeastOne = 20.0,
    tau: Fraction = 0.5,
) -> ObjectiveOutput:
    """`advantage_mle` with a value head: -min(exp(A / alpha), w_max) * L / n + expectile(R - V).

    A = R - V, R = sum_i g_i * score_i; V is a scalar head at the prompt's last token; L / n is the
    mean log-prob of a token.  V learns from the second term only (expectile regression, logged as
    `advantage/value_loss`), and the factor of L / n has no gradient.

    Args:
        policy: summed log-probs and token counts n, [B, K], and `value`, [B]; empty completions are
            left out.
        scores, weight, g, alpha, w_max: as in `advantage_mle`.
        tau: expectile, 0 to 1; 0.5 is half the squared error, larger values lean to the better
            completions.
    Returns: loss_B of the likelihood in nats per token, weight_B = weight * number of completions;
        the regression stands in `plus` with the same weights.  There is no reference.
    Source: Badrinath et al., arXiv 2405.17956, whose symbols and constants are rebuilt from the
        description.
    Use: as `advantage_mle`, for groups of one completion without a known baseline.
    Curves: `advantage/value_loss` falls to half of the rewards' variance within a prompt (tau 0.5),
        and `advantage/weight` then nears 1.
    """
    reward_BK = _reward(scores, g)
    value_B = jax.lax.stop_gradient(policy.value)
    advantage_BK = reward_BK - value_B[:, None]
    term, metrics = _weighted_likelihood(policy, advantage_BK, weight, alpha, w_max)
    error_BK = reward_BK - policy.value[:, None]
    value_loss_B = _group_mean(jnp.where(error_BK < 0, 1.0 - tau, tau) * error_BK**2, policy)
    logged = {"advantage/value": value_B, "advantage/value_loss": value_loss_B}
    out = ObjectiveOutput(*term, metrics)
    return plus_term(out, 1.0, Term(value_loss_B, term.weight_B), logged)


def _reward(scores: jax.Array, g: tuple[float, ...]) -> jax.Array:
    """R_BK = sum_i g_i * score_i."""
    check_last_axis("scores", scores, len(g), "as many as `g`")
    return jnp.sum(scores * jnp.asarray(g, scores.dtype)[None, None, :], axis=-1)


def _group_mean(x_BK: jax.Array, policy: Logps) -> jax.Array:
    """[B] mean over the completions that are there."""
    return mean(x_BK, policy.count > 0, axis=-1)


def _weighted_likelihood(
    policy: Logps, advantage_BK: jax.Array, weight: RowWeight, alpha: float, w_max: float
) -> tuple[Term, dict[str, jax.Array]]:
    """(the likelihood term, its metrics).

    Averaged over completions: a group's weight is multiplied with the number of its completions.
    """
    factor_BK = jnp.exp(jnp.minimum(jax.lax.stop_gradient(advantage_BK) / alpha, math.log(w_max)))
    clipped_BK = (advantage_BK >= alpha * math.log(w_max)).astype(factor_BK.dtype)
    loss_B = -_group_mean(factor_BK * per_token(policy.sum, policy), policy)
    completions_B = jnp.sum(policy.count > 0, axis=-1)
    metrics = {
        "advantage/weight": _group_mean(factor_BK, policy),
        "advantage/clipped": _group_mean(clipped_BK, policy),
    }
    return Term(loss_B, pair_weight(policy, weight) * completions_B), jax.lax.stop_gradient(metrics)
