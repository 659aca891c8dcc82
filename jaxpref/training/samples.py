"""Answers that a policy gives while it is trained, logged beside the metrics of an evaluation."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxpref.errors import InputError
from jaxpref.generation.completions import stop_ids
from jaxpref.generation.decoding import Generator
from jaxpref.generation.opening import OpenPolicy
from jaxpref.generation.sampling import Sampling
from jaxpref.generation.text import Ending
from jaxpref.runs.build import Pieces
from jaxpref.runs.metrics import Sample
from jaxpref.types import EncodedGroup

AnswerPrompts = Callable[[Any], list[Sample]]
"""The policy's parameters -> its greedy answers to some held-out prompts, the same every time."""


def make_samples(pieces: Pieces, held_out: Iterable[EncodedGroup]) -> AnswerPrompts | None:
    """How the policy answers the first `train.samples` prompts; None where none are asked for.

    Errors: InputError where no prompt leaves room for an answer, and for a model that cannot be
        decoded.
    """
    settings, positions = pieces.config.train, pieces.source.spec.longest_sequence
    if not settings.samples:
        return None
    if pieces.model.extend is None:
        raise InputError(
            "a model that can be decoded, for train.samples",
            "a model without `init_cache` and `extend`",
            "set train.samples=0, or give the model these functions",
        )
    prompts = _first_prompts(held_out, settings.samples, positions - settings.sample_tokens)
    if not prompts:
        raise InputError(
            "held-out prompts without pictures that leave room for "
            f"train.sample_tokens={settings.sample_tokens}",
            f"none within the model's {positions} positions",
            "lower train.sample_tokens, or set train.samples=0",
        )
    stops, tokenizer = stop_ids(pieces), pieces.tokenizer
    ending = Ending(tokenizer, stops, ())
    texts = [tokenizer.decode(ids) for ids in prompts]
    ends = [ending.within(ids) for ids in prompts]

    def answers(params: Any) -> list[Sample]:
        generator = Generator(
            OpenPolicy(pieces, params).decoding_model,
            params,
            pieces.mesh,
            sampling=Sampling(),
            seed=0,
            positions=positions,
            max_new_tokens=settings.sample_tokens,
            stop_ids=stops,
        )
        numbers = [(i, 0) for i in range(len(prompts))]
        done = {
            i: ending.cut(prompts[i], new)[0]
            for i, new, _ in generator.run(prompts, numbers, ends, limit=len(prompts))
        }
        return [Sample(texts[i], done[i]) for i, _ in numbers]

    return answers


def _first_prompts(groups: Iterable[EncodedGroup], count: int, longest: int) -> list[np.ndarray]:
    """The first different ones that are not empty, at most so many tokens long.

    Those with pictures are left out: only their tokens would be given to the model.
    """
    prompts: dict[bytes, np.ndarray] = {}
    for group in groups:
        ids = group.prompt_ids
        if 0 < len(ids) <= longest and len(prompts) < count and not group.pictures:
            prompts.setdefault(ids.tobytes(), ids)
    return list(prompts.values())
