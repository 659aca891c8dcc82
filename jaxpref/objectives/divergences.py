"""DPO under other divergences than the reverse KL: rho is replaced by f'(u), u = pi / pi_ref.

u = exp(rho).  With the reverse KL, f(u) = u log u, f' is rho up to a constant that cancels in the
pair: that is `dpo` itself.  The transforms `forward_kl`, `js_divergence` and `alpha_divergence` do
the same to other objectives on pairs.  Here logged rewards stay beta * rho, so that curves of
different divergences can be compared.
"""

import jax
import jax.numpy as jnp

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import (
    Positive,
    RowWeight,
    difference,
    log_ratios,
    pair_output,
    reward_metrics,
)
from jaxpref.objectives.contract import PAIRS, ObjectiveOutput, needs
from jaxpref.objectives.pairwise import dpo
from jaxpref.objectives.transforms import alpha_divergence, forward_kl, js_divergence


@needs(groups=PAIRS)
def f_dpo_forward_kl(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """DPO under the forward KL: -log sigmoid(beta * (exp(-rho_rejected) - exp(-rho_chosen))).

    f(u) = -log u, f'(u) = -1/u.  1/u is clipped at exp(40): a log-ratio below -40 nats gets no
    gradient.

    Args:
        policy, ref, weight: as in dpo.
        beta: strength of the divergence's penalty, > 0; the default is DPO's.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Wang et al., arXiv 2309.16240, table 1; TRL's `f_divergence_type: forward_kl`, which
        does not clip.
    Use: when the policy should keep covering everything the reference does.  1/u grows
        exponentially as a completion becomes less likely than under the reference, so log-ratios of
        tens of nats saturate the sigmoid; start at a small learning rate (DPO's 5e-7 or below) with
        gradient clipping, and prefer `f_dpo_alpha` for long completions.
    Curves: rewards/rejected drives the loss: the margin soon stops growing once exp(-rho_rejected)
        is large; a loss that jumps means that some chosen log-ratio fell far below 0.
    """
    return _f_dpo(policy, ref, forward_kl(policy, ref), weight, beta)


@needs(groups=PAIRS)
def f_dpo_js(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """DPO under the Jensen-Shannon divergence: -log sigmoid(beta * (ls_chosen - ls_rejected)).

    ls is log sigmoid(rho); f(u) = u log u - (u + 1) log((u + 1) / 2), f'(u) = log(2u / (1 + u)) =
    log 2 + ls.

    Args:
        policy, ref, weight: as in dpo.
        beta: strength of the divergence's penalty, > 0; the default is DPO's.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Wang et al., arXiv 2309.16240, table 1; TRL's `f_divergence_type: js_divergence`.
    Use: when diversity matters and the gain in likelihood of the chosen completion should be
        bounded: f' never exceeds log 2, so raising rho_chosen beyond a few nats is not rewarded.
        beta and learning rate as for DPO; a larger beta makes up for the bounded f'.
    Curves: rewards/chosen grows less than under DPO; the margin comes from rewards/rejected
        falling.
    """
    return _f_dpo(policy, ref, js_divergence(policy, ref), weight, beta)


@needs(groups=PAIRS)
def f_dpo_alpha(
    policy: Logps,
    ref: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    alpha: Positive = 0.5,
) -> ObjectiveOutput:
    """DPO under an alpha-divergence: -log sigmoid(beta * (u_rejected^-a - u_chosen^-a) / a).

    a is `alpha`, u = exp(rho); f'(u) = (1 - u^-a) / a.  u^-a is clipped at exp(40): a log-ratio
    below -40 / a nats gets no gradient.

    Args:
        policy, ref, weight: as in dpo.
        beta: strength of the divergence's penalty, > 0; the default is DPO's.
        alpha: order, > 0: towards 0 it is DPO, at 1 it is `f_dpo_forward_kl`.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Wang et al., arXiv 2309.16240, table 1.  TRL's `f_divergence_type: alpha_divergence`
        counts the other way round, `f_alpha_divergence_coef` = 1 - alpha, and clips at exp(80).
    Use: to move smoothly between DPO's reverse KL and the forward KL; with completions of hundreds
        of tokens choose a small alpha (0.1), as u^-alpha is exponential in the log-ratio.  Learning
        rate as for DPO.
    Curves: between those of dpo and f_dpo_forward_kl.
    """
    return _f_dpo(policy, ref, alpha_divergence(policy, ref, alpha=alpha), weight, beta)


@needs(groups=PAIRS, transformable=True)
def chi_po(
    policy: Logps,
    ref: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.05,
    r_max: Positive | None = None,
) -> ObjectiveOutput:
    """Chi-squared preference optimisation: -log sigmoid(beta * (phi_c - phi_r)).

    phi = exp(rho) + rho, which is f' of f(u) = (u - 1)^2 / 2 + u log u: the chi-squared divergence
    beside the reverse KL.  The exponential takes min(rho, 20), so that it stays finite.  The margin
    is cut to +-2 r_max, if that is given.

    Args:
        policy, ref, weight: as in dpo.
        beta: strength of the pull towards the reference, > 0; 0.05 and 0.005 in the paper's
            experiments.
        r_max: bound on the true reward, > 0; pairs beyond the cut, also those ordered wrongly, have
            no gradient.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Huang et al., arXiv 2407.13399, algorithm 1; its cut of the margin is an option here;
        min(rho, 20) as oxRL.
    Use: several epochs or a small beta, where dpo overoptimises; learning rate of dpo.
    Curves: as dpo at first; then rewards/chosen hardly rises, for phi is steep above 0, and
        rewards/rejected falls.
    """
    rho_BK = log_ratios(policy, ref)
    margin_B = beta * difference(jnp.exp(jnp.minimum(rho_BK, 20.0)) + rho_BK)
    if r_max is not None:
        margin_B = jnp.clip(margin_B, -2.0 * r_max, 2.0 * r_max)
    return pair_output(-jax.nn.log_sigmoid(margin_B), beta * rho_BK, policy, weight)


def _f_dpo(
    policy: Logps,
    ref: Logps,
    transformed: tuple[Logps, Logps],
    weight: RowWeight,
    beta: float,
) -> ObjectiveOutput:
    """DPO on log-ratios that a transform has replaced; the logged rewards are those before it."""
    rewards = reward_metrics(beta * log_ratios(policy, ref))
    return dpo(*transformed, weight, beta=beta)._replace(metrics=rewards)
