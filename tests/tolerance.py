"""How far apart two float32 computations of one number may lie: tolerances from the arithmetic, not from a machine.

Rounding changes a value by at most u = 2^-24 of it, upwards or downwards as if by chance, so that n roundings add up
to some sqrt(n) u and not to n u (Higham and Mary, A new approach to probabilistic rounding error analysis, 2019).
The magnitudes that are put in here are the largest that occur; that is the safety factor, and there is no other.
"""

from jaxpref.models.spec import ModelSpec

ROUNDING = 2.0**-24


def float32_sum(length: int, magnitude: float) -> float:
    """Absolute, of a sum of `length` terms in any order; `magnitude` is the sum of the terms' absolute values.

    Also of a chain of `length` operations on values of this magnitude.
    """
    return ROUNDING * length**0.5 * magnitude


def decoder(spec: ModelSpec, *, score: float, value: float) -> float:
    """Absolute, of hidden states, logits or log-probs of up to `value`; `score` is the largest attention score.

    Queries and keys are sums of `width` products, so their relative error is sqrt(width) u, and the absolute error of
    a score is `score` times that. Through exp it is the relative error of the attention's probabilities, hence of
    what the layer adds to the hidden state. Every layer adds its own.
    """
    return spec.layers * max(score, 1.0) * float32_sum(spec.width, value)
