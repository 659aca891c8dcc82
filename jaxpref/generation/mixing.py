"""Several policies that decide every token together: what is asked for, and how it is decoded.

The formula, its source and what it is exact for stand in mixed_distribution.py.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxpref.errors import InputError
from jaxpref.generation.decoding import DecodingModel
from jaxpref.generation.mixed_distribution import DIVERGENCES, Divergence, Rule, mixed_logits
from jaxpref.generation.sampling import is_number, is_whole
from jaxpref.settings import weighted_policies


@dataclass(frozen=True)
class Mix:
    """Policies and their weights: what `generate` takes in place of one policy.

    PAD (Personalized Alignment at Decoding-time, ICLR 2025), logit of a model + lam * (log guide -
    log base) on the k most likely tokens of the model, is `Mix({model: 1 - lam, guide: lam},
    first_top_k=k)` where the model is the guide's base; its code uses lam 0.8 and k 10.

    PARM (Lin et al., arXiv 2505.06274), logits log model + (1/b) log reward model, is `Mix({model:
    b / (1 + b), reward model: 1 / (1 + b)})` drawn from at b / (1 + b) times the temperature.  The
    reward model may be smaller than the model; its code uses b = 1.

    Errors: InputError for settings out of range or without effect.
    """

    policies: Any
    """Run, model or PEFT adapter directory -> weight, 0 or more; also as pairs of these, or as the
    text that `--mix` takes.  The reference takes the remaining
    weight, 1 minus the sum, which may be negative.  The first one's tokenizer, chat template and
    mesh are used."""
    divergence: Divergence = "reverse_kl"
    """In the objective that the policies were trained with: DPO's is `reverse_kl`, `f_dpo_js`'s is
    `jsd`, ..."""
    alpha: float = 0.5
    """Order of the divergence `alpha`, > 0, as in the objective `f_dpo_alpha`."""
    reference: str | Path | None = None
    """The model that the policies were trained from.  Under the reverse KL it plays no part if the
    weights sum to 1."""
    first_top_k: int | None = None
    """Only the k most likely tokens of the first policy; under the reverse KL only."""

    def __post_init__(self):
        object.__setattr__(self, "policies", weighted_policies(self.policies))
        if problems := list(self._problems()):
            raise InputError(
                "a mix of policies that can be decoded",
                "; ".join(problems),
                "change these settings of the mix",
            )

    def _problems(self) -> Iterator[str]:
        if not any(weight > 0 for _, weight in self.policies):
            yield "no policy with a weight above 0"
        for source, weight in self.policies:
            if not 0 <= weight < math.inf:
                yield (
                    f"{source}:{weight}: a weight is 0 or more; "
                    "the reference takes the remaining weight, 1 minus the sum, even below 0"
                )
        if self.divergence not in DIVERGENCES:
            yield f"divergence={self.divergence!r}: one of {', '.join(DIVERGENCES)}"
        if not (is_number(self.alpha) and 0 < self.alpha < math.inf):
            yield f"alpha={self.alpha!r}: a number, more than 0"
        elif self.divergence != "alpha" and self.alpha != Mix.alpha:
            yield f"alpha={self.alpha} has no effect with {self.divergence}"
        if self.reference is None and self.divergence != "reverse_kl":
            yield (
                f"{self.divergence} is relative to the reference that the policies were trained "
                "from: name it"
            )
        if self.reference is None and self.divergence == "reverse_kl" and not self.sums_to_one:
            total = sum(weight for _, weight in self.policies)
            yield (
                f"weights that sum to {total:g} without a reference to take the remaining weight: "
                "name it"
            )
        if self.first_top_k is not None:
            yield from self._first_top_k_problems()

    def _first_top_k_problems(self) -> Iterator[str]:
        if not (is_whole(self.first_top_k) and self.first_top_k >= 1):
            yield f"first_top_k={self.first_top_k!r}: a whole number from 1"
        if self.divergence != "reverse_kl":
            yield f"first_top_k with {self.divergence}: it is defined under the reverse KL"
        if self.policies and self.policies[0][1] == 0:
            yield "first_top_k with a first policy of weight 0, which is not run"

    @property
    def sums_to_one(self) -> bool:
        return math.isclose(sum(weight for _, weight in self.policies), 1.0, abs_tol=1e-6)

    @property
    def needs_reference(self) -> bool:
        return self.divergence != "reverse_kl" or not self.sums_to_one

    @property
    def rule(self) -> Rule:
        return Rule(self.divergence, self.alpha, self.needs_reference, self.first_top_k)


@cache  # the same functions for the same models, so that other weights compile nothing
def mixture_of(models: tuple[tuple[DecodingModel, int], ...], rule: Rule) -> DecodingModel:
    """Several policies as one DecodingModel, the reference last if `rule.reference`.

    Its parameters are `{"weight_O": ..., "bases": (tree, ...), "overlays": (tree, ...)}`: policy i
    reads base number `models[i][1]` with overlay i laid over it.  So adapters on one base hold it
    once, and other weights are the same program.
    """
    each = [model for model, _ in models]
    model_of_base = {base: model for model, base in models}

    def start(rows, length):
        return tuple(model.start(rows, length) for model in each)

    def read(params, states, token_RC, position_RC, index, looked=None, at=None):
        trees, chunk = whole_params(params, models), (token_RC, position_RC, index)
        return tuple(
            model.read(tree, state, *chunk, own, at)
            for model, tree, state, own in zip(
                each, trees, states, looked or [None] * len(each), strict=True
            )
        )

    def look(params, pictures):
        trees = whole_params(params, models)
        return tuple(model.look(tree, pictures) for model, tree in zip(each, trees, strict=True))

    def params_for_decoding(params):
        bases = tuple(
            model_of_base[base].params_for_decoding(tree)
            for base, tree in enumerate(params["bases"])
        )
        overlays = tuple(
            model.params_for_decoding(tree)
            for model, tree in zip(each, params["overlays"], strict=True)
        )
        return params | {"bases": bases, "overlays": overlays}

    def state_for_decoding(states):
        return tuple(
            model.state_for_decoding(state) for model, state in zip(each, states, strict=True)
        )

    def next_logits(params, states, *token):
        trees = whole_params(params, models)
        each_logits_RV, new_states = [], []
        for model, tree, state in zip(each, trees, states, strict=True):
            logits_RV, new_state = model.next_logits(tree, state, *token)
            each_logits_RV.append(logits_RV)
            new_states.append(new_state)
        mixed_RV = mixed_logits(jnp.stack(each_logits_RV), params["weight_O"], rule)
        return mixed_RV, tuple(new_states)

    return DecodingModel(
        start,
        read,
        params_for_decoding,
        state_for_decoding,
        next_logits,
        look if all(model.look is not None for model in each) else None,
        any(model.pictures_whole for model in each),
    )


def whole_params(
    params: Mapping[str, Any], models: Sequence[tuple[Any, int]]
) -> list[dict[str, Any]]:
    """The parameters of every policy of a mixture: its base with its overlay laid over it."""
    return [
        {**params["bases"][base], **overlay}
        for (_, base), overlay in zip(models, params["overlays"], strict=True)
    ]
