"""Likelihood of one completion."""

import jax
import jax.numpy as jnp

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import Positive, RowWeight, log_ratios, pair_weight, token_nll
from jaxpref.objectives.contract import PAIRS, ObjectiveOutput, Term, needs


@needs(groups=(*PAIRS, "single", "ranked"))
def sft(policy: Logps, weight: RowWeight = None) -> ObjectiveOutput:
    """Supervised fine-tuning: -log pi(y_0|x) / |y_0|, averaged over the tokens of the whole batch.

    Args:
        policy: summed log-probs in nats and token counts, [B, K]; completions after the first are
            not used.
        weight: [B] weight of every prompt, >= 0; multiplies its tokens.
    Returns: loss_B in nats per token, weight_B = weight * tokens, so that the batch's value is the
        token mean whatever the micro-batches.
    Source: TRL's `loss_type: sft`; the NLL term of iterative RPO, arXiv 2404.19733, up to its
        normalisation.
    Use: before preference training, at a learning rate of 1e-5 to 5e-5; as a second objective of
        weight 0.1 to 1 it keeps the chosen completions likely.
    Curves: `nll` falls, fast at first; on held-out data it turns up again where training goes on
        too long.
    """
    return _output(token_nll(policy, weight))


@needs(groups=("triple",))
def sft_gold(policy: Logps, weight: RowWeight = None) -> ObjectiveOutput:
    """Supervised fine-tuning on the gold answer: -log pi(y_2|x) / |y_2|, averaged over all tokens.

    The mean is over the gold answers' tokens of the whole batch.

    Args:
        policy: summed log-probs in nats and token counts, [B, 3]: chosen, rejected, gold; only the
            last is used.
        weight: [B] weight of every prompt, >= 0; multiplies its tokens.
    Returns: loss_B in nats per token, weight_B = weight * tokens of the gold answer.
    Source: the NLL term of triple preference optimisation, Saeidi et al., arXiv 2405.16681, on its
        own.
    Use: beside a pairwise objective, where a gold answer is better than the chosen one;
        learning rate as for that objective.
    Curves: `nll` falls.
    """
    return _output(token_nll(policy, weight, completion=2))


@needs(groups=(*PAIRS, "single", "ranked"))
def minor_sft(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """MinorSFT: -(2 / (beta * |y|)) * log sigmoid(beta * rho(y)), y completion 0.

    Its gradient is -(2 / |y|) * sigmoid(-beta * rho) * grad log pi(y|x): that of a token mean where
    policy equals reference, less for completions that have already gained.

    Args:
        policy, ref: summed log-probs in nats and token counts, [B, K]; completions after the first
            are not used.
        weight: [B] weight of every prompt, >= 0.
        beta: how soon a completion that has gained counts less, > 0; plain SFT in the limit 0.
    Returns: loss_B in nats per token, 2 ln 2 / (beta * |y|) where policy equals reference.
    Source: Xie et al., arXiv 2408.10642, integrated from the gradient given there.
    Use: to learn answers while staying near the reference; beta 0.01 to 0.1 at a learning rate of
        SFT or above it.
    Curves: `deviation`, rho per token, rises from 0 and flattens earlier than SFT's; `nll` falls.
    """
    tokens_B = jnp.maximum(policy.count[:, 0], 1.0)
    rho_B = log_ratios(policy, ref)[:, 0]
    loss_B = -2.0 / (beta * tokens_B) * jax.nn.log_sigmoid(beta * rho_B)
    metrics = {"deviation": rho_B / tokens_B, "nll": -policy.sum[:, 0] / tokens_B}
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), jax.lax.stop_gradient(metrics))


def _output(nll: Term) -> ObjectiveOutput:
    return ObjectiveOutput(nll.loss_B, nll.weight_B, {"nll": jax.lax.stop_gradient(nll.loss_B)})
