"""Several objectives at once: rewards inside the sigmoid (MODPO and others), or rewards as weights
of a likelihood."""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
from pydantic import AfterValidator, Field

from jaxpref.errors import InputError
from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import (
    Finite,
    Fraction,
    NotNegative,
    Positive,
    difference,
    log_ratios,
    mean,
    pair_weight,
    per_model,
    per_token,
    plus_term,
    reward_metrics,
)
from jaxpref.objectives.contract import KINDS, PAIRS, ObjectiveOutput, Term, needs
from jaxpref.objectives.pairwise import Weight, dpo
from jaxpref.objectives.unpaired import kto

_OWN_SCORES = tuple(kind for kind in KINDS if kind not in ("judged_other", "triple"))
"""Kinds of groups whose completions all have scores, as answers to the group's prompt."""


def _base_first(w: tuple[float, ...]) -> tuple[float, ...]:
    if not w or w[0] <= 0:
        raise ValueError(
            "the first entry, the base's, must be > 0; make the largest weight the base"
        )
    return w


Weights = Annotated[tuple[NotNegative, ...], AfterValidator(_base_first)]
RewardWeights = Annotated[tuple[Finite, ...], Field(min_length=1)]
AtLeastOne = Annotated[float, Field(ge=1, allow_inf_nan=False)]


@needs(groups=PAIRS)
def modpo(
    policy: Logps,
    ref: Logps,
    other_rewards: jax.Array,
    weight: Weight = None,
    *,
    w: Weights,
    beta: Positive = 0.1,
) -> ObjectiveOutput:
    """Multi-objective DPO: -log sigmoid(u_chosen - u_rejected), u = (beta * rho - sum_j w_j r_j) /
    w_0.

    rho is the log-ratio of policy and reference.  The pairs are labelled by one objective, the
    base, of weight w_0; r_j are rewards of the other objectives for the same answers.  beta * rho
    then estimates sum_j w_j r_j over all objectives, and the optimum is the reference times exp of
    that, divided by beta.

    Args:
        policy, ref: summed log-probs [B, K] in nats of completions 0 (chosen) and 1 (rejected).
        other_rewards: [B, K, n-1] rewards of the n-1 other objectives for every completion, on the
            scale of a Bradley-Terry model (a difference of 1 is odds of e); constant.
        weight: [B] weight of every pair, >= 0.
        w: n weights, the base's first, which must be > 0; the others >= 0.  Only ratios to w_0 and
            beta / w_0 matter.
        beta: strength of the pull towards the reference, > 0; the authors' code uses 0.1.
    Returns: loss_B in nats, -log sigmoid(-sum_j w_j (r_j(chosen) - r_j(rejected)) / w_0) where
        policy equals reference: ln 2 without other rewards.
    Source: Zhou et al., arXiv 2310.03708, and the authors' code; logged rewards are beta * rho,
        where that code logs u.
    Use: one policy a weight vector, to trace a front between objectives.  Take as base the
        objective with the largest weight: below w_0 of about 0.1 the other rewards saturate the
        sigmoid, and the optimum does not depend on which one is base.  Rewards on another scale act
        as another weight.  For a length penalty take `r_dpo`, which this is for r = -length.
        Learning rate as for DPO (the authors: 1e-4 to 5e-4, LoRA).
    Curves: `base_rewards/accuracies` (u) rises as for DPO; `rewards/accuracies` (all objectives
        together) may stay below one half where the objectives disagree on the pairs.
    """
    _expect("other_rewards", other_rewards, len(w) - 1, "one less than `w`")
    return _modpo(policy, ref, other_rewards, weight, w, beta, _logistic)


@needs(groups=PAIRS)
def modpo_hinge(
    policy: Logps,
    ref: Logps,
    other_rewards: jax.Array,
    weight: Weight = None,
    *,
    w: Weights,
    beta: Positive = 0.1,
) -> ObjectiveOutput:
    """Multi-objective DPO with a hinge: max(0, 1 - (u_chosen - u_rejected)), u = (beta * rho -
    sum_j w_j r_j) / w_0.

    Symbols as in `modpo`.

    Args:
        policy, ref: summed log-probs [B, K] in nats of completions 0 (chosen) and 1 (rejected).
        other_rewards: [B, K, n-1] rewards of the n-1 other objectives for every completion;
            constant.
        weight, w, beta: as in `modpo`.
    Returns: loss_B, max(0, 1 + sum_j w_j (r_j(chosen) - r_j(rejected)) / w_0) where policy equals
        reference: 1 without margins.
    Source: the code of Zhou et al., arXiv 2310.03708, which offers it beside the logistic loss.
    Use: when the preferences have no noise and a fixed margin is enough; the optimum is not that of
        `modpo`.
    Curves: pairs whose u differ by more than 1 give no gradient any more, so the loss flattens at
        the unsolved ones.
    """
    _expect("other_rewards", other_rewards, len(w) - 1, "one less than `w`")
    return _modpo(policy, ref, other_rewards, weight, w, beta, lambda x_B: jax.nn.relu(1.0 - x_B))


@needs(groups=PAIRS)
def modpo_implicit(
    policy: Logps,
    ref: Logps,
    extra_refs: jax.Array,
    weight: Weight = None,
    *,
    w: Weights,
    betas: tuple[Positive, ...] = (),
    beta: Positive = 0.1,
) -> ObjectiveOutput:
    """Multi-objective DPO with implicit rewards: `modpo` with r_j = beta_j * (L_j - L_ref), L_j of
    a DPO policy.

    L_j(y) is the summed log-prob under a policy that DPO trained on objective j, from the same
    reference.  Constant.

    Args:
        policy, ref: summed log-probs [B, K] in nats of completions 0 (chosen) and 1 (rejected).
        extra_refs: [B, K, n-1] summed log-probs in nats under the policies of the other objectives.
        weight, w: as in `modpo`.
        betas: the beta each of these policies was trained with, > 0.  Empty: all with this `beta`.
        beta: strength of the pull towards the reference, > 0; the authors' code uses 0.1.
    Returns: loss_B in nats; where policy equals reference, that of `modpo` with these rewards.
    Source: Zhou et al., arXiv 2310.03708; the authors' safety pipeline takes its rewards so.
    Use: when objectives come as preference pairs, not as scores: train a DPO policy on each of the
        others, then this on the base's pairs.  A wrong beta_j moves the optimum, as a wrong weight
        would.  Largest weight as base, as in `modpo`.
    Curves: as for `modpo`.
    """
    _expect("extra_refs", extra_refs, len(w) - 1, "one less than `w`")
    beta_N = _betas(betas, beta, extra_refs)
    margins_BKN = beta_N[None, None, :] * (extra_refs - ref.sum[:, :, None])
    return _modpo(policy, ref, margins_BKN, weight, w, beta, _logistic)


@needs(groups=PAIRS)
def spo(
    policy: Logps,
    ref: Logps,
    extra_refs: jax.Array,
    weight: Weight = None,
    *,
    lambdas: tuple[NotNegative, ...],
    betas: tuple[Positive, ...] = (),
    beta: Positive = 0.1,
) -> ObjectiveOutput:
    """Sequential preference optimisation: -log sigmoid(v_chosen - v_rejected), v = beta * rho -
    sum_i lambda_i r_i.

    In stage N, rho is the log-ratio to the policy of stage N-1, and r_i = beta_i * (L_i - L_{i-1}),
    i = 1..N-1, the implicit rewards of the stages before (L_0 of the model before stage 1).  They
    are constant.  This is `modpo` with weight 1 on the stage's own pairs.

    Args:
        policy, ref: summed log-probs [B, K] in nats of completions 0 (chosen) and 1 (rejected);
            `ref` is stage N-1.
        extra_refs: [B, K, N-1] summed log-probs in nats under stages 0, 1, .., N-2, in this order.
        weight: [B] weight of every pair, >= 0.
        lambdas: N-1 weights >= 0 of the earlier dimensions.  Empty is the first stage, from Python
            only: in a config it is `dpo`.
        betas: the beta of each earlier stage, > 0.  Empty: all with this `beta`.
        beta: strength of the pull towards stage N-1, > 0.
    Returns: loss_B in nats; where policy equals reference, -log sigmoid(-sum_i lambda_i
        (r_i(chosen) - r_i(rejected))).
    Source: Lou et al., arXiv 2405.12739, rebuilt from its closed-form optimum; the paper's loss may
        scale terms otherwise.
    Use: dimensions of preference trained one after the other, where a later stage shall not undo an
        earlier one.  Larger lambda holds the earlier dimension harder.  Beta and learning rate as
        for DPO.
    Curves: `base_rewards/accuracies` (v) rises as for DPO; hold out pairs of earlier dimensions to
        see what they lose.
    """
    _expect("extra_refs", extra_refs, len(lambdas), "as many as `lambdas`")
    stages_BKN = jnp.concatenate([extra_refs, ref.sum[:, :, None]], axis=-1)
    beta_N = _betas(betas, beta, extra_refs)
    rewards_BKN = beta_N[None, None, :] * jnp.diff(stages_BKN, axis=-1)
    return _modpo(policy, ref, rewards_BKN, weight, (1.0, *lambdas), beta, _logistic)


@needs(groups=("pair",))
def hpo_dpo(
    policy: Logps,
    ref: Logps,
    scores: jax.Array,
    weight: Weight = None,
    *,
    g: RewardWeights,
    beta: Positive = 0.1,
    gamma: NotNegative = 1.0,
    alpha: Positive = 1.0,
    w_max: AtLeastOne = 20.0,
) -> ObjectiveOutput:
    """Hybrid preference optimisation on DPO: L_DPO - gamma * mean of min(exp(A / alpha), w_max) * L
    / n.

    A = R - (mean of R over the group's completions), R = sum_i g_i * score_i; L / n is the mean
    log-prob of a token.  The first term is averaged over pairs, the second over all completions.
    The factor of L / n is constant.

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
    Curves: `advantage/weight` stays near 1 and `advantage/clipped` near 0, else raise alpha.
        Unlike under DPO alone, log-probs of both answers may rise.
    """
    out = dpo(policy, ref, weight, beta=beta)
    reward_BK = _reward(scores, g)
    advantage_BK = reward_BK - _group_mean(reward_BK, policy)[:, None]
    return plus_term(out, gamma, *_weighted_likelihood(policy, advantage_BK, weight, alpha, w_max))


@needs(groups=("judged_other",), coupled=True)
def hpo_kto(
    policy: Logps,
    ref: Logps,
    label: jax.Array,
    scores: jax.Array,
    baseline: jax.Array,
    weight: Weight = None,
    *,
    beta: Positive = 0.1,
    desirable_weight: NotNegative = 1.0,
    undesirable_weight: NotNegative = 1.0,
    g: RewardWeights,
    gamma: NotNegative = 1.0,
    alpha: Positive = 1.0,
    w_max: AtLeastOne = 20.0,
) -> ObjectiveOutput:
    """Hybrid preference optimisation on KTO: L_KTO - gamma * mean of min(exp(A / alpha), w_max) * L
    / n.

    A = R - baseline, R = sum_i g_i * score_i; L / n is the mean log-prob of a token of the judged
    answer.  Both terms are averaged over groups.  The factor of L / n is constant.

    Args:
        policy, ref: summed log-probs and token counts n, [B, 2]: the judged answer, the answer to
            another prompt; the reference is constant.
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
        and `advantage/clipped` near 0, else raise alpha.
    """
    sides = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    out = kto(policy, ref, label, weight, beta=beta, **sides)
    judged = policy._replace(sum=policy.sum[:, :1], count=policy.count[:, :1])
    advantage_B1 = _reward(scores[:, :1], g) - baseline[:, None]
    return plus_term(out, gamma, *_weighted_likelihood(judged, advantage_B1, weight, alpha, w_max))


@needs(groups=_OWN_SCORES)
def advantage_mle(
    policy: Logps,
    scores: jax.Array,
    baseline: jax.Array | None = None,
    weight: Weight = None,
    *,
    g: RewardWeights,
    alpha: Positive = 1.0,
    w_max: AtLeastOne = 20.0,
) -> ObjectiveOutput:
    """Advantage-weighted likelihood, HPO's auxiliary term: -min(exp(A / alpha), w_max) * L / n,
    mean over completions.

    A = R - baseline, R = sum_i g_i * score_i; L / n is the mean log-prob of a token.  The factor is
    constant.

    Args:
        policy: summed log-probs and token counts n, [B, K]; empty completions are left out.
        scores: [B, K, m] rewards of every completion; bring them to about unit variance.
        baseline: [B] expected R of every prompt.  Without it: the mean of R over the group's
            completions, of which a group must then have several.
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
            "add the expected reward of every prompt as `baseline`; 0 if the scores are standardised",
        )
    baseline_B = _group_mean(reward_BK, policy) if baseline is None else baseline
    term, metrics = _weighted_likelihood(
        policy, reward_BK - baseline_B[:, None], weight, alpha, w_max
    )
    return ObjectiveOutput(*term, metrics)


@needs(groups=_OWN_SCORES, logps=("value",))
def advantage_mle_value(
    policy: Logps,
    scores: jax.Array,
    weight: Weight = None,
    *,
    g: RewardWeights,
    alpha: Positive = 1.0,
    w_max: AtLeastOne = 20.0,
    tau: Fraction = 0.5,
) -> ObjectiveOutput:
    """Advantage-weighted likelihood with a value head: -min(exp((R - V) / alpha), w_max) * L / n +
    expectile(R - V).

    R = sum_i g_i * score_i; V is a scalar head at the prompt's last token; L / n is the mean
    log-prob of a token.  V learns from the second term only (expectile regression, logged as
    `advantage/value_loss`), and the factor of L / n is constant.

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
    baseline_B = jax.lax.stop_gradient(policy.value)
    term, metrics = _weighted_likelihood(
        policy, reward_BK - baseline_B[:, None], weight, alpha, w_max
    )
    error_BK = reward_BK - policy.value[:, None]
    value_loss_B = _group_mean(jnp.where(error_BK < 0, 1.0 - tau, tau) * error_BK**2, policy)
    logged = {"advantage/value": baseline_B, "advantage/value_loss": value_loss_B}
    return plus_term(
        ObjectiveOutput(*term, metrics), 1.0, Term(value_loss_B, term.weight_B), logged
    )


def _modpo(
    policy: Logps, ref: Logps, margins_BKN, weight, w: tuple[float, ...], beta: float, loss
) -> ObjectiveOutput:
    """`loss` of u_chosen - u_rejected; w[0] is the base's weight, w[1:] those of the other
    rewards."""
    margins_BKN = jax.lax.stop_gradient(margins_BKN[:, :2])
    w_N = jnp.asarray(w[1:], margins_BKN.dtype)
    rho_BK = log_ratios(policy, ref)[:, :2]
    base_BK = (beta * rho_BK - jnp.sum(margins_BKN * w_N[None, None, :], axis=-1)) / w[0]
    base = reward_metrics(base_BK)
    base = {f"base_{name}": base[name] for name in ("rewards/margins", "rewards/accuracies")}
    loss_B = loss(difference(base_BK))
    return ObjectiveOutput(
        loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK) | base
    )


def _logistic(x_B: jax.Array) -> jax.Array:
    return -jax.nn.log_sigmoid(x_B)


def _betas(betas: tuple[float, ...], beta: float, extra_refs: jax.Array) -> jax.Array:
    """[N] the beta of every other policy."""
    return jnp.asarray(
        per_model("betas", betas, extra_refs.shape[-1], beta, "those of `extra_refs`"),
        extra_refs.dtype,
    )


def _reward(scores: jax.Array, g: tuple[float, ...]) -> jax.Array:
    """R_BK = sum_i g_i * score_i."""
    _expect("scores", scores, len(g), "as many as `g`")
    return jnp.sum(scores * jnp.asarray(g, scores.dtype)[None, None, :], axis=-1)


def _group_mean(x_BK: jax.Array, policy: Logps) -> jax.Array:
    """[B] mean over the completions that are there."""
    return mean(x_BK, policy.count > 0, axis=-1)


def _weighted_likelihood(policy: Logps, advantage_BK, weight, alpha: float, w_max: float):
    """(the likelihood term, its metrics); averaged over completions, so a group weighs as many as
    it has."""
    factor_BK = jnp.exp(jnp.minimum(jax.lax.stop_gradient(advantage_BK) / alpha, math.log(w_max)))
    loss_B = -_group_mean(factor_BK * per_token(policy.sum, policy), policy)
    completions_B = jnp.sum(policy.count > 0, axis=-1)
    metrics = {
        "advantage/weight": _group_mean(factor_BK, policy),
        "advantage/clipped": _group_mean(
            (advantage_BK >= alpha * math.log(w_max)).astype(factor_BK.dtype), policy
        ),
    }
    return Term(loss_B, pair_weight(policy, weight) * completions_B), jax.lax.stop_gradient(metrics)


def _expect(name: str, array: jax.Array, size: int, why: str) -> None:
    """Error unless the array is [B, K, size]."""
    if array.ndim == 3 and array.shape[-1] == size:
        return
    fix = (
        f"list that many columns, `columns: {{{name}: [first, ...]}}`, or change the hyperparameter"
    )
    if name == "extra_refs":
        fix = "list that many models under `reference.extra`, or change the hyperparameter"
    raise InputError(f"`{name}` of shape [B, K, {size}]: {why}", f"shape {tuple(array.shape)}", fix)
