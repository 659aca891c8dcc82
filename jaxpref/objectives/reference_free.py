"""Objectives without a reference.

Completion 0 is chosen (y_w), completion 1 rejected (y_l), completion 2 of a triple the gold answer.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
from pydantic import AfterValidator

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import (
    LARGEST_EXPONENT,
    Finite,
    NotNegative,
    Positive,
    RowWeight,
    difference,
    pair_output,
    pair_weight,
    per_token,
    plus_metrics,
    plus_term,
    token_nll,
)
from jaxpref.objectives.contract import PAIRS, ObjectiveOutput, Term, needs

_SURE = -1e-6
"""Mean log-prob above which odds no longer grow: beyond it float32 rounds, and the slope of the log
odds, 1 / (1 - P), has no bound."""


def _not_zero(x: float) -> float:
    if x == 0:
        raise ValueError("should not be 0, which is simpo")
    return x


NotZero = Annotated[Finite, AfterValidator(_not_zero)]


@needs(groups=PAIRS)
def orpo(policy: Logps, weight: RowWeight = None, *, lam: NotNegative = 0.1) -> ObjectiveOutput:
    """Odds-ratio preference optimisation: nll(y_w) - lam * log sigmoid(log(odds(y_w) / odds(y_l))).

    odds(y) = P / (1 - P) with P = exp(a(y)), a the mean log-prob of y's tokens.  a is clipped from
    above at -1e-6: the odds of a completion that is surer than that get no gradient.

    Args:
        policy: summed log-probs in nats and token counts, [B, 2].
        weight: [B] weight of every pair, >= 0; in the likelihood it multiplies the pair's tokens.
        lam: the paper's lambda, weight of the odds ratio, >= 0; TRL calls it beta.
    Returns: loss_B = -lam * log sigmoid(log odds ratio), lam * ln 2 where both completions are
        equally likely per token; nll is added as a mean over the chosen completions' tokens.  There
        is no reference.
    Source: Hong, Lee and Thorne, arXiv 2403.07691.  Likelihood over the chosen completion alone is
        an option of the authors' code; `orpo_with_prompt` is their default and TRL's.
    Use: straight from a base model, in place of SFT followed by DPO; lam 0.05 to 0.1 (1 in the
        authors' code), learning rate 5e-6.
    Curves: `nll_loss` falls as in SFT, `log_odds_chosen` rises from about 0, `log_odds_ratio` from
        -ln 2 towards 0; `rewards/*` are lam * a.
    """
    return _plus_nll(_odds_ratio(policy, weight, lam), token_nll(policy, weight), 1.0)


@needs(groups=PAIRS, logps=("prompt",))
def orpo_with_prompt(
    policy: Logps, weight: RowWeight = None, *, lam: NotNegative = 0.1
) -> ObjectiveOutput:
    """ORPO that learns prompts: nll(x, y_w) - lam * log sigmoid(log(odds(y_w) / odds(y_l))).

    x is the prompt; odds(y) = P / (1 - P) with P = exp(a(y)), a the mean log-prob of y's tokens.  a
    is clipped from above at -1e-6: the odds of a completion that is surer than that get no
    gradient.

    Args:
        policy: summed log-probs in nats and token counts, of the completions [B, 2] and of the
            prompt [B].
        weight: [B] weight of every pair, >= 0; in the likelihood it multiplies the pair's tokens.
        lam: the paper's lambda, weight of the odds ratio, >= 0; TRL calls it beta.
    Returns: loss_B as of `orpo`; nll is added as a mean over the tokens of prompts (all but their
        first) and chosen completions.
    Source: Hong, Lee and Thorne, arXiv 2403.07691, as their code and TRL's ORPOTrainer have it by
        default.
    Use: to compare with TRL or the authors' runs; otherwise `orpo`, which learns no prompts.
    Curves: as of `orpo`; `nll_loss` also holds the prompt, hence often falls more slowly.
    """
    tokens_B = policy.prompt_count + policy.count[:, 0]
    nll_B = -(policy.prompt + policy.sum[:, 0]) / jnp.maximum(tokens_B, 1.0)
    nll = Term(nll_B, pair_weight(policy, weight) * tokens_B)
    return _plus_nll(_odds_ratio(policy, weight, lam), nll, 1.0)


@needs(groups=PAIRS)
def cpo(
    policy: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    alpha: NotNegative = 1.0,
) -> ObjectiveOutput:
    """Contrastive preference optimisation: -log sigmoid(beta * (L_w - L_l)) + alpha * nll(y_w).

    L_w and L_l are L(y_w) and L(y_l); L is the summed log-prob.

    Args:
        policy: summed log-probs in nats and token counts, [B, 2].
        weight: [B] weight of every pair, >= 0; in the likelihood it multiplies the pair's tokens.
        beta: scale of the log-probs, > 0; 0.1 is usual.
        alpha: weight of the likelihood, >= 0; 1 in the paper.
    Returns: loss_B in nats, ln 2 where both completions are equally likely; alpha * nll is added as
        a mean over the chosen completions' tokens.  There is no reference.
    Source: Xu et al., arXiv 2401.08417; TRL's CPOTrainer, `loss_type: sigmoid`.
    Use: to save the reference where chosen completions are good enough to imitate; learning rate
        1e-6 to 1e-5.
    Curves: `nll_loss` falls; `rewards/margins` start at a value set by the lengths, not at 0, and
        rise; summed log-probs reward short answers.
    """
    out = _preference(policy, weight, beta * policy.sum, 0.0)
    return _plus_nll(out, token_nll(policy, weight), alpha)


@needs(groups=PAIRS)
def simpo(
    policy: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 2.0,
    gamma: NotNegative = 1.0,
) -> ObjectiveOutput:
    """Simple preference optimisation: -log sigmoid(beta * (a(y_w) - a(y_l)) - gamma).

    a is the mean log-prob.

    Args:
        policy: summed log-probs in nats and token counts, [B, 2].
        weight: [B] weight of every pair, >= 0.
        beta: scale of the mean log-probs, > 0; the authors use 2 to 10.
        gamma: margin to be reached, >= 0; the authors use 0.1 to 0.8 times beta.
    Returns: loss_B in nats, log(1 + exp(gamma)) where both completions are equally likely per
        token.  There is no reference.
    Source: Meng, Xia and Chen, arXiv 2405.14734; TRL's CPOTrainer with `loss_type: simpo,
        cpo_alpha: 0`.
    Use: after SFT, where answers grow too long under DPO; learning rate 3e-7 to 1e-6, larger ones
        break the model.
    Curves: `rewards/margins` rise from about 0 towards gamma and beyond; `logps/chosen` may fall:
        steeply, if the learning rate is too large.
    """
    return _preference(policy, weight, beta * per_token(policy.sum, policy), gamma)


@needs(groups=PAIRS)
def alphapo(
    policy: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 2.0,
    gamma: NotNegative = 1.0,
    alpha: NotZero = 0.25,
) -> ObjectiveOutput:
    """AlphaPO: -log sigmoid(beta * (r(y_w) - r(y_l)) - gamma).

    r(y) = (1 - exp(-alpha * a(y))) / alpha, a the mean log-prob; alpha * a is clipped from below at
    -40, which a negative alpha never reaches.

    Args:
        policy: summed log-probs in nats and token counts, [B, 2].
        weight: [B] weight of every pair, >= 0.
        beta: scale of the rewards, > 0.
        gamma: margin to be reached, >= 0.
        alpha: shape of the reward, not 0, where SimPO is the limit.  The larger, the more unlikely
            completions count; below 0 r is bounded by 1 / alpha, so they hardly count.
    Returns: loss_B in nats, log(1 + exp(gamma)) where both completions are equally likely per
        token.  There is no reference.
    Source: Gupta et al., arXiv 2501.03884; TRL's CPOTrainer with `loss_type: alphapo`.
    Use: as SimPO, where it moves log-probs too far or too little; alpha 0.1 to 0.5, the rest as
        there.
    Curves: as of SimPO; `rewards/*` are beta * r, larger in size than SimPO's.
    """
    exponent_BK = jnp.minimum(-alpha * per_token(policy.sum, policy), LARGEST_EXPONENT)
    return _preference(policy, weight, -beta * jnp.expm1(exponent_BK) / alpha, gamma)


@needs(groups=PAIRS)
def cpo_simpo(
    policy: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 2.0,
    gamma: NotNegative = 1.0,
    alpha: NotNegative = 1.0,
) -> ObjectiveOutput:
    """CPO-SimPO: -log sigmoid(beta * (a(y_w) - a(y_l)) - gamma) + alpha * nll(y_w).

    a is the mean log-prob.

    Args:
        policy: summed log-probs in nats and token counts, [B, 2].
        weight: [B] weight of every pair, >= 0; in the likelihood it multiplies the pair's tokens.
        beta: scale of the mean log-probs, > 0.
        gamma: margin to be reached, >= 0.
        alpha: weight of the likelihood, >= 0.
    Returns: loss_B as of `simpo`; alpha * nll is added as a mean over the chosen completions'
        tokens.
    Source: the sum of SimPO (arXiv 2405.14734) and the likelihood term of CPO (arXiv 2401.08417);
        TRL's CPOTrainer with `loss_type: simpo` and its default `cpo_alpha: 1`.
    Use: where SimPO alone makes the chosen completions unlikely; beta, gamma and learning rate as
        there.
    Curves: as of SimPO, with `nll_loss` falling.
    """
    out = simpo(policy, weight, beta=beta, gamma=gamma)
    return _plus_nll(out, token_nll(policy, weight), alpha)


@needs(groups=("triple",))
def tpo(
    policy: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.01,
    alpha: NotNegative = 1.0,
) -> ObjectiveOutput:
    """Triple preference optimisation: -log sigmoid(beta * (L(y_w) - L(y_l))) + alpha * nll(y_gold).

    L is the summed log-prob.

    Args:
        policy: summed log-probs in nats and token counts, [B, 3]: chosen, rejected, gold.
        weight: [B] weight of every triple, >= 0; in the likelihood it multiplies the gold answer's
            tokens.
        beta: scale of the log-probs, > 0; 0.01 is usual.
        alpha: weight of the gold answer's likelihood, >= 0.
    Returns: loss_B in nats, ln 2 where chosen and rejected are equally likely; alpha * nll is added
        as a mean over the gold answers' tokens.  There is no reference.
    Source: Saeidi et al., arXiv 2405.16681; TRL's TPOTrainer, `loss_type: sigmoid`.
    Use: where every prompt also has an answer better than the chosen one; from a base or an SFT
        model, learning rate 5e-7.
    Curves: `nll_loss`, of the gold answer, falls; `rewards/margins` rise.
    """
    out = _preference(policy, weight, beta * policy.sum, 0.0)
    return _plus_nll(out, token_nll(policy, weight, completion=2), alpha)


@needs(groups=("triple",))
def tpo_l(
    policy: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.01,
    gamma: NotNegative = 0.5,
    alpha: NotNegative = 1.0,
) -> ObjectiveOutput:
    """TPO by length: -log sigmoid(beta * (a(y_w) - a(y_l)) - gamma) + alpha * nll(y_gold).

    Triple preference optimisation; a is the mean log-prob.

    Args:
        policy: summed log-probs in nats and token counts, [B, 3]: chosen, rejected, gold.
        weight: [B] weight of every triple, >= 0; in the likelihood it multiplies the gold answer's
            tokens.
        beta: scale of the mean log-probs, > 0.
        gamma: margin to be reached, >= 0.
        alpha: weight of the gold answer's likelihood, >= 0.
    Returns: loss_B in nats, log(1 + exp(gamma)) where chosen and rejected are equally likely per
        token; alpha * nll is added as a mean over the gold answers' tokens.  There is no reference.
    Source: Saeidi et al., arXiv 2405.16681; TRL's TPOTrainer, `loss_type: tpo-l`.
    Use: as `tpo`, where answers grow too long.  Means are smaller than sums: at TRL's default beta
        of 0.01 the pair hardly counts; 1 to 10, as for SimPO, makes it count.  Learning rate 5e-7.
    Curves: as of `tpo`.
    """
    out = _preference(policy, weight, beta * per_token(policy.sum, policy), gamma)
    return _plus_nll(out, token_nll(policy, weight, completion=2), alpha)


@needs(groups=PAIRS)
def slic_hf(
    policy: Logps,
    weight: RowWeight = None,
    *,
    delta: NotNegative = 1.0,
    lam: NotNegative = 0.1,
) -> ObjectiveOutput:
    """Sequence likelihood calibration: max(0, delta - L(y_w) + L(y_l)) - lam * L(y_w).

    L is the summed log-prob, in both terms; the chosen completion is the target of the second.

    Args:
        policy: summed log-probs in nats and token counts, [B, 2].
        weight: [B] weight of every pair, >= 0.
        delta: margin to be reached in nats, >= 0.
        lam: weight of the likelihood, >= 0.
    Returns: loss_B in nats, a mean over pairs (no token mean); there is no reference.
    Source: Zhao et al., arXiv 2305.10425, with the chosen completion as its gold answer; L is
        a sum over tokens where the original takes their mean.  delta 1 and lam 0.1 are the values
        of HALOs' config.
    Use: where a pair that is ranked right by the margin should not be pushed further; after SFT,
        learning rate 1e-6.
    Curves: `rewards/margins`, differences of summed log-probs, rise; pairs beyond delta only feel
        the likelihood.
    """
    hinge_B = jax.nn.relu(delta - policy.sum[:, 0] + policy.sum[:, 1])
    loss_B = hinge_B - lam * policy.sum[:, 0]
    return pair_output(loss_B, policy.sum, policy, weight)


def _preference(
    policy: Logps, weight: RowWeight, reward_BK: jax.Array, gamma: float
) -> ObjectiveOutput:
    """Bradley-Terry: the chosen completion's reward should exceed the rejected one's by gamma."""
    loss_B = -jax.nn.log_sigmoid(difference(reward_BK) - gamma)
    return pair_output(loss_B, reward_BK, policy, weight)


def _odds_ratio(policy: Logps, weight: RowWeight, lam: float) -> ObjectiveOutput:
    """ORPO's second term."""
    mean_BK = per_token(policy.sum, policy)
    log_ratio_B = difference(_log_odds(mean_BK))
    log_sigmoid_B = jax.nn.log_sigmoid(log_ratio_B)
    out = pair_output(-lam * log_sigmoid_B, lam * mean_BK, policy, weight)
    return plus_metrics(out, {"log_odds_ratio": log_sigmoid_B, "log_odds_chosen": log_ratio_B})


def _log_odds(a: jax.Array) -> jax.Array:
    """log(P / (1 - P)), P = exp(a), for a <= 0."""
    a = jnp.minimum(a, _SURE)
    return a - jax.nn.log1mexp(-a)


def _plus_nll(out: ObjectiveOutput, nll: Term, alpha: float) -> ObjectiveOutput:
    """The likelihood added to a preference loss.

    The loss has its mean over all tokens; the logged `nll_loss` is a mean over groups of each
    group's token mean.
    """
    return plus_term(out, alpha, nll, {"nll_loss": nll.loss_B})
