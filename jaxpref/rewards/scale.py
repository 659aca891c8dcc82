"""Which objectives put their rewards on the Bradley-Terry scale.

There sigmoid(reward of one answer - reward of another) is the probability that the first is
preferred, because the loss is the negative log-likelihood of preferences under just this model.
Other objectives log rewards too, but with a margin, a clip or another loss in between, nothing
makes a probability of them.
"""

from collections.abc import Sequence

from jaxpref.objectives import Part

_LIKELIHOODS = ("dpo", "wpo", "bradley_terry", "plackett_luce")


def likelihood_of_preferences(parts: Sequence[Part]) -> bool:
    """Whether some part of the objective is such a likelihood, without a transform before it."""
    return any(part.name in _LIKELIHOODS and not part.transforms for part in parts)
