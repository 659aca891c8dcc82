"""The router of a mixture of experts: balance between the experts, beside any other objective."""

import jax
import jax.numpy as jnp

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import pair_weight
from jaxpref.objectives.contract import ObjectiveOutput, needs


@needs(logps=("router",), coupled=True)
def router_balance(policy: Logps) -> ObjectiveOutput:
    """Load balancing of experts: E * sum_e f_e P_e over the E experts of a layer.

    f_e is the number of times that expert e was chosen, P_e the sum of its router probability, each
    divided by the number of choices that routers made (tokens times layers).  Tokens are those of
    all completions, each with its prompt, of the whole batch; f_e has no gradient.

    Args:
        policy: router statistics [B, 2, E] of a mixture of experts.
    Returns: loss_B, the batch's value for every group; the number of experts per token where
        all are used alike, E where a token's experts are always the same and certain.
    Source: Fedus et al., arXiv 2101.03961, eq. 4, with the layers taken together and every chosen
        expert counted, as transformers' load_balancing_loss_func does for Mixtral and Qwen3-MoE.
    Use: [{name: dpo}, {name: router_balance, weight: 0.001}]; the weight in the model's pretraining
        is its config's `router_aux_loss_coef`.  Without it preference data may move tokens to ever
        fewer experts.
    Curves: stays near its first value, which is that of the model given; `router/busiest`, the load
        of the busiest expert as a multiple of the mean, does not rise.
    """
    chosen_E, probability_E = policy.router.sum(0)
    choices = jnp.maximum(jax.lax.stop_gradient(probability_E.sum()), 1e-30)
    load_E = jax.lax.stop_gradient(chosen_E) / choices
    value = load_E.size * jnp.sum(load_E * (probability_E / choices))
    busiest = load_E.max() / jnp.maximum(load_E.mean(), 1e-30)
    for_every_group = lambda x: jnp.broadcast_to(x, policy.count.shape[:1])
    metrics = {"router/busiest": for_every_group(busiest)}
    return ObjectiveOutput(for_every_group(value), pair_weight(policy, None), metrics)
