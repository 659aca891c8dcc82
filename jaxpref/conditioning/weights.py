"""Weights of objectives in the prompt: "< helpful: 0.3 > < brief: 0.7 > ".

One policy then serves all weights, trained on rows that each have weights of their own (COS-DPO,
MO-ODPO).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxpref.conditioning.cdpo import cdpo_prompt
from jaxpref.conditioning.prompts import Prompt, rounded

_DIGITS = 2
"""Decimals of a weight in a prompt."""


def weighted_prompt(prompt: Prompt, weights: Mapping[str, float]) -> Prompt:
    """The prompt that asks for answers of these weights.

    Args:
        weights: objective -> weight, in the order of training.
    """
    return cdpo_prompt(prompt, {name: rounded(w, _DIGITS) for name, w in weights.items()})


def draw_weights(rng: np.random.Generator, count: int, concentration: float) -> list[float]:
    """A weight vector drawn from a symmetric Dirichlet distribution, in hundredths that sum to 1.

    A prompt says hundredths, so that is what a row is weighed by too.

    Args:
        concentration: > 0; 1 draws uniformly, less draws more vectors near the ends.
    """
    hundredths = 10**_DIGITS
    ends = np.cumsum(rng.dirichlet(np.full(count, concentration)))[:-1]
    cuts = [0, *np.round(hundredths * ends).astype(int), hundredths]
    return (np.diff(cuts) / hundredths).tolist()


def weight_draw(
    count: int, concentration: float | None, vectors: Sequence[Sequence[float]]
) -> Callable[[np.random.Generator], list[float]]:
    """How the weights of a row are drawn.

    Args:
        concentration: as of `draw_weights`; None: each of the vectors is as likely as the others.
        vectors: each of `count` weights.
    """
    if concentration is not None:
        return lambda rng: draw_weights(rng, count, concentration)
    return lambda rng: list(vectors[int(rng.integers(len(vectors)))])
