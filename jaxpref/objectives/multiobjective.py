"""Several objectives at once: rewards of the others inside the sigmoid (MODPO), or many labels.

rho is the log-ratio of policy and reference, summed over a completion's tokens; D = rho_0 - rho_1.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from pydantic import AfterValidator

from jaxpref.errors import InputError
from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import (
    NotNegative,
    Positive,
    RowWeight,
    check_last_axis,
    difference,
    log_ratios,
    pair_output,
    per_model,
    plus_metrics,
    reward_metrics,
)
from jaxpref.objectives.contract import PAIRS, ObjectiveOutput, needs


def _base_first(w: tuple[float, ...]) -> tuple[float, ...]:
    if not w or w[0] <= 0:
        raise ValueError(
            "the first entry, the base's, must be > 0; make the largest weight the base"
        )
    return w


ObjectiveWeights = Annotated[tuple[NotNegative, ...], AfterValidator(_base_first)]
"""One weight per objective, that of the pairs' labels (the base) first."""


@needs(groups=PAIRS)
def modpo(
    policy: Logps,
    ref: Logps,
    other_rewards: jax.Array,
    weight: RowWeight = None,
    *,
    w: ObjectiveWeights,
    beta: Positive = 0.1,
) -> ObjectiveOutput:
    """Multi-objective DPO: -log sigmoid(u_chosen - u_rejected).

    u = (beta * rho - sum_j w_j r_j) / w_0.  The pairs are labelled by one objective, the base, of
    weight w_0; r_j are rewards of the other objectives for the same answers.  beta * rho then
    estimates sum_j w_j r_j over all objectives, and the optimum is the reference times exp of that,
    divided by beta.

    Args:
        policy, ref: summed log-probs [B, K] in nats of completions 0 (chosen) and 1 (rejected).
        other_rewards: [B, K, n-1] rewards of the n-1 other objectives for every completion, on the
            scale of a Bradley-Terry model (a difference of 1 is odds of e); no gradient.
        weight: [B] weight of every pair, >= 0.
        w: n objective weights, the base's first, which must be > 0; the others >= 0.  Only ratios
            to w_0 and beta / w_0 matter.
        beta: strength of the pull towards the reference, > 0; the authors' code uses 0.1.
    Returns: loss_B in nats, -log sigmoid(-sum_j w_j (r_j(chosen) - r_j(rejected)) / w_0) where
        policy equals reference: ln 2 without other rewards.
    Source: Zhou et al., arXiv 2310.03708, and the authors' code; logged rewards are beta * rho,
        where that code logs u.
    Use: one policy per weight vector, to trace a front between objectives.  Take as base the
        objective with the largest weight: below w_0 of about 0.1 the other rewards saturate the
        sigmoid, and the optimum does not depend on which one is base.  Rewards on another scale act
        as another objective weight.  For a length penalty take `r_dpo`, which this is for r =
        -length.  Learning rate as for DPO (the authors: 1e-4 to 5e-4, LoRA).
    Curves: `base_rewards/accuracies` (u) rises as for DPO; `rewards/accuracies` (all objectives
        together) may stay below one half where the objectives disagree on the pairs.
    """
    check_last_axis("other_rewards", other_rewards, len(w) - 1, "one less than `w`")
    return _modpo(policy, ref, other_rewards, weight, w, beta, _logistic)


@needs(groups=PAIRS)
def modpo_hinge(
    policy: Logps,
    ref: Logps,
    other_rewards: jax.Array,
    weight: RowWeight = None,
    *,
    w: ObjectiveWeights,
    beta: Positive = 0.1,
) -> ObjectiveOutput:
    """Multi-objective DPO with a hinge: max(0, 1 - (u_chosen - u_rejected)).

    u = (beta * rho - sum_j w_j r_j) / w_0, with the symbols of `modpo`.

    Args:
        policy, ref, other_rewards, weight, w, beta: as in `modpo`.
    Returns: loss_B, max(0, 1 + sum_j w_j (r_j(chosen) - r_j(rejected)) / w_0) where policy equals
        reference: 1 without other rewards.
    Source: the code of Zhou et al., arXiv 2310.03708, which offers it beside the logistic loss.
    Use: when the preferences have no noise and a fixed margin is enough; the optimum is not that of
        `modpo`.
    Curves: pairs whose u differ by more than 1 give no gradient any more, so the loss flattens at
        the unsolved ones.
    """
    check_last_axis("other_rewards", other_rewards, len(w) - 1, "one less than `w`")
    return _modpo(policy, ref, other_rewards, weight, w, beta, _hinge)


@needs(groups=PAIRS)
def modpo_implicit(
    policy: Logps,
    ref: Logps,
    extra_refs: jax.Array,
    weight: RowWeight = None,
    *,
    w: ObjectiveWeights,
    betas: tuple[Positive, ...] = (),
    beta: Positive = 0.1,
) -> ObjectiveOutput:
    """Multi-objective DPO with implicit rewards: `modpo` with r_j = beta_j * (L_j - L_ref).

    L_j(y) is the summed log-prob under a policy that DPO trained on objective j, from the same
    reference; it gets no gradient.

    Args:
        policy, ref: summed log-probs [B, K] in nats of completions 0 (chosen) and 1 (rejected).
        extra_refs: [B, K, n-1] summed log-probs in nats under the policies of the other objectives.
        weight, w: as in `modpo`.
        betas: the beta each of these policies was trained with, > 0.  Empty: all with this `beta`.
        beta: strength of the pull towards the reference, > 0; the authors' code uses 0.1.
    Returns: loss_B in nats; where policy equals reference, that of `modpo` with these rewards.
    Source: Zhou et al., arXiv 2310.03708; the authors' safety pipeline takes its rewards this way.
    Use: when objectives come as preference pairs, not as scores: train a DPO policy on each of the
        others, then this on the base's pairs.  A wrong beta_j moves the optimum, as a wrong
        objective weight would.  Largest weight as base, as in `modpo`.
    Curves: as for `modpo`.
    """
    check_last_axis("extra_refs", extra_refs, len(w) - 1, "one less than `w`")
    beta_O = _betas(betas, beta, extra_refs)
    rewards_BKO = beta_O[None, None, :] * (extra_refs - ref.sum[:, :, None])
    return _modpo(policy, ref, rewards_BKO, weight, w, beta, _logistic)


@needs(groups=PAIRS)
def spo(
    policy: Logps,
    ref: Logps,
    extra_refs: jax.Array,
    weight: RowWeight = None,
    *,
    lambdas: tuple[NotNegative, ...],
    betas: tuple[Positive, ...] = (),
    beta: Positive = 0.1,
) -> ObjectiveOutput:
    """Sequential preference optimisation: -log sigmoid(v_chosen - v_rejected).

    v = beta * rho - sum_i lambda_i r_i.  In stage N, rho is the log-ratio to the policy of stage
    N-1, and r_i = beta_i * (L_i - L_{i-1}), i = 1..N-1, the implicit rewards of the stages before
    (L_0 of the model before stage 1), without gradient.  This is `modpo` with weight 1 on the
    stage's own pairs.

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
    Use: dimensions of preference trained one after the other, where a later stage should not undo
        an earlier one.  Larger lambda holds the earlier dimension harder.  Beta and learning rate
        as for DPO.
    Curves: `base_rewards/accuracies` (v) rises as for DPO; hold out pairs of earlier dimensions to
        see what they lose.
    """
    check_last_axis("extra_refs", extra_refs, len(lambdas), "as many as `lambdas`")
    stages_BKO = jnp.concatenate([extra_refs, ref.sum[:, :, None]], axis=-1)
    beta_O = _betas(betas, beta, extra_refs)
    rewards_BKO = beta_O[None, None, :] * jnp.diff(stages_BKO, axis=-1)
    return _modpo(policy, ref, rewards_BKO, weight, (1.0, *lambdas), beta, _logistic)


@needs(groups=PAIRS, transformable=True)
def cos_dpo(
    policy: Logps,
    ref: Logps,
    labels: jax.Array,
    objective_weights: jax.Array,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
) -> ObjectiveOutput:
    """DPO on the labels of several objectives: sum_k w_k |l_k| * -log sigmoid(sign(l_k) beta * D).

    The objective weights w are the row's own, and the prompt says them (`jaxpref.conditioning`) or
    the adapter reads them (`adapter.kind`), so that one policy learns the answers for all weights.

    Args:
        policy, ref: summed log-probs [B, K] in nats of completions 0 and 1.
        labels: [B, O] what every objective says of the pair: > 0 where completion 0 is the better
            one, < 0 where completion 1 is, 0 where it has no label.  The size weighs the label.
        objective_weights: [B, O] of every row, >= 0.
        weight: [B] weight of every pair, >= 0.
        beta: strength of the pull towards the reference, > 0.
    Returns: loss_B in nats, ln 2 * sum_k w_k |l_k| where policy equals reference.
    Source: Ren et al., arXiv 2410.08316, weight-conditioned, with a prompt that carries w
        as in its experiments on language models; from third parties' summaries, for the authors'
        code could not be had.
    Use: one run for the whole front; `jaxpref pareto` writes its rows (`pareto.methods: [cos_dpo,
        panacea, pblora]`).  By hand: `columns: {labels: [label/a, label/b], objective_weights:
        [w/a, w/b]}`.  The optimum at w is that of the weighted sum of DPO losses, not MODPO's.
        With `transform: reference_free`, `adapter.kind: pblora` and beta 0.01 it is the loss of
        PARM's reward model (arXiv 2505.06274, and its code).  Learning rate as for DPO, and more
        steps than one point of a front takes.
    Curves: the loss falls less than DPO's, for objectives that disagree on a pair hold each other;
        `rewards/accuracies` is the share of pairs whose weighted label the policy agrees with.
    """
    for name, array in (("labels", labels), ("objective_weights", objective_weights)):
        _check_per_objective(name, array, labels)
    labels, objective_weights = jax.lax.stop_gradient((labels, objective_weights))
    beta_rho_BK = beta * log_ratios(policy, ref)
    margin_BO = jnp.sign(labels) * difference(beta_rho_BK)[:, None]
    loss_B = jnp.sum(-objective_weights * jnp.abs(labels) * jax.nn.log_sigmoid(margin_BO), axis=-1)
    agreed = jnp.sum(objective_weights * labels, axis=-1)
    return pair_output(loss_B, _turned(beta_rho_BK, agreed), policy, weight)


@needs(groups=PAIRS, transformable=True)
def signed_dpo(
    policy: Logps, ref: Logps, sign: jax.Array, weight: RowWeight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """DPO with the label in a column: -log sigmoid(sign * beta * D).

    Args:
        policy, ref: summed log-probs [B, K] in nats of completions 0 and 1.
        sign: [B] > 0 where completion 0 is the better one, < 0 where completion 1 is; 0 leaves the
            pair out.  The size weighs the pair.
        weight: [B] weight of every pair, >= 0.
        beta: strength of the pull towards the reference, > 0.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: the losses L_i of RACO (arXiv 2602.02495), and of the weighted sum of DPO losses that
        papers on several objectives compare with.
    Use: one part of the objective per label, all on the same pairs, `{name: signed_dpo, weight:
        0.3, columns: {sign: label/helpful}}`; the sum is the weighted sum of DPO losses, and
        `optim.combine: raco` takes a direction that avoids conflicts.
    Curves: as for DPO, over the pairs that have this label.
    """
    sign = jax.lax.stop_gradient(sign)
    beta_rho_BK = beta * log_ratios(policy, ref)
    turned_BK = _turned(beta_rho_BK, sign)
    own_weight = jnp.abs(sign) if weight is None else jnp.abs(sign) * weight
    return pair_output(-jax.nn.log_sigmoid(difference(turned_BK)), turned_BK, policy, own_weight)


def _turned(x_BK: jax.Array, sign_B: jax.Array) -> jax.Array:
    """The two completions exchanged where the sign is negative."""
    return jnp.where(sign_B[:, None] < 0, x_BK[:, 1::-1], x_BK[:, :2])


def _check_per_objective(name: str, array: jax.Array, like: jax.Array) -> None:
    """Errors: InputError unless the array is [B, O], O as in `like`."""
    if array.ndim != 2 or array.shape != like.shape:
        raise InputError(
            f"`{name}` with a number per objective and row, [B, O], as many as `labels`",
            f"shape {tuple(array.shape)}",
            f"list one column per objective: `columns: {{{name}: [first, second]}}`",
        )


def _modpo(
    policy: Logps,
    ref: Logps,
    rewards_BKO: jax.Array,
    weight: RowWeight,
    w: tuple[float, ...],
    beta: float,
    loss: Callable[[jax.Array], jax.Array],
) -> ObjectiveOutput:
    """`loss` of u_chosen - u_rejected.

    Args:
        rewards_BKO: of the other objectives.
        w: objective weights, the base's first, then those of the other rewards.
    """
    rewards_BKO = jax.lax.stop_gradient(rewards_BKO[:, :2])
    w_O = jnp.asarray(w[1:], rewards_BKO.dtype)
    rho_BK = log_ratios(policy, ref)[:, :2]
    base_BK = (beta * rho_BK - jnp.sum(rewards_BKO * w_O[None, None, :], axis=-1)) / w[0]
    base = reward_metrics(base_BK)
    logged = {f"base_{name}": base[name] for name in ("rewards/margins", "rewards/accuracies")}
    return plus_metrics(
        pair_output(loss(difference(base_BK)), beta * rho_BK, policy, weight), logged
    )


def _logistic(x_B: jax.Array) -> jax.Array:
    return -jax.nn.log_sigmoid(x_B)


def _hinge(x_B: jax.Array) -> jax.Array:
    return jax.nn.relu(1.0 - x_B)


def _betas(betas: tuple[float, ...], beta: float, extra_refs: jax.Array) -> jax.Array:
    """[O] the beta of every other policy."""
    each = per_model("betas", betas, extra_refs.shape[-1], beta, "those of `extra_refs`")
    return jnp.asarray(each, extra_refs.dtype)
