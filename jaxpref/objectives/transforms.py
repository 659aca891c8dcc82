"""Changes of the log-probs before an objective that is a function of a pair's summed log-ratios.

In the config: `{name: ipo, transform: {name: ld, alpha: 0.5}}`; in Python:
`ipo(*ld(policy, ref, alpha=0.5))`.
"""

import math

import jax
import jax.numpy as jnp

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import LARGEST_EXPONENT, Fraction, Positive, log_ratios
from jaxpref.objectives.contract import Transform


def ld(policy: Logps, ref: Logps | None, *, alpha: Fraction = 0.5) -> tuple[Logps, Logps | None]:
    """Length desensitisation: tokens behind the length of the shorter completion count alpha times.

    L'(y) = L(y[:n]) + alpha * L(y[n:]), n = min(|y_0|, |y_1|), for the policy and for the
    reference, so that a policy equal to the reference has no margin.  Token counts stay those of
    the whole completion.
    Source: Liu et al., arXiv 2409.06411, eq. 9; TRL's `ld_alpha`.
    """
    shorten = lambda logps: logps._replace(sum=alpha * logps.sum + (1.0 - alpha) * logps.common)
    return shorten(policy), ref if ref is None else shorten(ref)


def sampled(policy: Logps, ref: Logps | None) -> tuple[Logps, Logps | None]:
    """Down-sampling: n tokens of each completion, n the length of the shorter one.

    They are the same tokens under policy and reference.
    Source: Lu et al., arXiv 2406.10957, eq. 7-8; its code draws other tokens for the reference,
        which is not copied.
    """
    return _drawn(policy), ref if ref is None else _drawn(ref)


def _drawn(logps: Logps) -> Logps:
    """Of completions 0 and 1; a gold answer beside them stays whole."""
    pair_BK = jnp.broadcast_to(jnp.arange(logps.count.shape[1])[None, :] < 2, logps.count.shape)
    shorter_B1 = jnp.minimum(logps.count[:, :1], logps.count[:, 1:2])
    return logps._replace(
        sum=logps.sampled,
        count=jnp.where(pair_BK, jnp.minimum(logps.count, shorter_B1), logps.count),
    )


def reference_free(policy: Logps, ref: Logps | None) -> tuple[Logps, Logps]:
    """The reference is left out: log-ratios become log-probs."""
    return _replaced(policy, policy.sum)


def forward_kl(policy: Logps, ref: Logps) -> tuple[Logps, Logps]:
    """f-divergence of the forward KL: rho becomes f'(u) = 1 - 1/u, u = exp(rho).

    1/u is clipped at exp(40): rho below -40 gets that value and no gradient.
    Source: Wang et al., arXiv 2309.16240, table 1; TRL's `f_divergence_type: forward_kl`, which
        does not clip.
    """
    return _replaced(policy, _power(log_ratios(policy, ref), 1.0))


def js_divergence(policy: Logps, ref: Logps) -> tuple[Logps, Logps]:
    """f-divergence of Jensen and Shannon: rho becomes f'(u) = log(2u / (1 + u)), u = exp(rho).

    That is log 2 + log sigmoid(rho).
    Source: Wang et al., arXiv 2309.16240, table 1; TRL's `f_divergence_type: js_divergence`.
    """
    return _replaced(policy, math.log(2.0) + jax.nn.log_sigmoid(log_ratios(policy, ref)))


def alpha_divergence(policy: Logps, ref: Logps, *, alpha: Positive = 0.5) -> tuple[Logps, Logps]:
    """f-divergence of order alpha: rho becomes f'(u) = (1 - u^-alpha) / alpha, u = exp(rho).

    Towards alpha 0 that is rho, at 1 `forward_kl`.  u^-alpha is clipped at exp(40): rho below -40 /
    alpha gets that value and no gradient.
    Source: Wang et al., arXiv 2309.16240, table 1.  TRL's `f_alpha_divergence_coef` c is 1 - alpha,
        its clip exp(80).
    """
    return _replaced(policy, _power(log_ratios(policy, ref), alpha))


def _power(rho_BK: jax.Array, alpha: float) -> jax.Array:
    """(1 - u^-alpha) / alpha without the cancellation near u = 1."""
    return -jnp.expm1(jnp.minimum(-alpha * rho_BK, LARGEST_EXPONENT)) / alpha


def _replaced(policy: Logps, value_BK: jax.Array) -> tuple[Logps, Logps]:
    """Logps whose log-ratios are these values.

    The reference gets no gradient, so the policy carries all of them and the reference is 0.  The
    optional fields would no longer fit the sums and are left out.
    """
    bare = Logps(value_BK, policy.count, policy.entropy, policy.top1)
    return bare, bare._replace(sum=jnp.zeros_like(value_BK))


TRANSFORMS = {
    "ld": Transform(ld, logps=("common",), shortens=True),
    "sampled": Transform(sampled, logps=("sampled",), shortens=True),
    "reference_free": Transform(reference_free, drops_reference=True),
    "forward_kl": Transform(forward_kl),
    "js_divergence": Transform(js_divergence),
    "alpha_divergence": Transform(alpha_divergence),
}
"""Name in the config -> transform."""
