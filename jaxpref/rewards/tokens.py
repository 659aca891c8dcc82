"""Groups as the tokens that models score, and the reward that only counts them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jaxpref.data.encode import encode_groups
from jaxpref.data.pictures.processor import PictureProcessor
from jaxpref.errors import InputError
from jaxpref.models.source import Checkpoint, open_checkpoint
from jaxpref.rewards.reward import WHOLE, Limits, Reward, Values
from jaxpref.runs.build import dated_tokenizer, picture_processor
from jaxpref.runs.directory import is_run, load_run
from jaxpref.settings import make_config
from jaxpref.types import EncodedGroup, Group


def with_answer(prompt: Group, answer: str) -> Group:
    """The prompt with one answer, a message of the assistant where the prompt is messages."""
    completion = [{"role": "assistant", "content": answer}] if prompt.conversational else answer
    return dataclasses.replace(prompt, completions=(completion,))


def single_rewards(
    of_groups: Callable[[Sequence[Group], Limits], Sequence[Values]],
    prompts: Sequence[Group],
    answers: Sequence[str],
) -> list[float]:
    """`Reward.score` of a reward that scores groups: one group per prompt and answer."""
    groups = [with_answer(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return [value for (value,) in of_groups(groups, WHOLE)]


def encode_within(
    groups: Sequence[Group], tokenizer: Any, limits: Limits, processor: PictureProcessor | None
) -> list[EncodedGroup]:
    """The tokens that a run with these limits would train on, without data columns.

    The row id is the group's index in `groups`; groups of which the limits leave nothing are
    missing.
    Errors: as of `encode_groups`; InputError for pictures without a processor.
    """
    if processor is None:
        _refuse_pictures(groups)
    numbered = [dataclasses.replace(group, row_id=i, columns={}) for i, group in enumerate(groups)]
    encoded, _ = encode_groups(
        numbered,
        tokenizer,
        max_length=limits.max_length,
        truncation=limits.truncation,
        processor=processor,
    )
    return encoded


def _refuse_pictures(groups: Sequence[Group]) -> None:
    if seen := next((group for group in groups if group.pictures), None):
        raise InputError(
            "prompts of text, for a reward of a model that sees no pictures",
            f"{seen.where}: {len(seen.pictures)} pictures",
            "take the run of a model that sees them, a function (FILE.py:function) or the rows' "
            "own scores; or copy the rows without their pictures",
        )


def token_count_reward(model: str) -> Reward:
    """Minus the number of tokens of an answer as training counts them.

    They include the end token, and are cut where limits cut.  As MODPO's other reward with the
    objective weight w_len this is length-regularised DPO (`r_dpo`) with alpha = w_len: the length
    penalty of Zhou et al., arXiv 2310.03708, in their code.  It is on no Bradley-Terry scale: the
    objective weight gives it one.

    Args:
        model: whose tokenizer counts: a run, or what `model.path` may name.
    """
    source, tokenizer = _opened(model)
    # A text model is asked about texts, whatever files it lacks that say how it sees pictures.
    processor = functools.cache(lambda: picture_processor(source, tokenizer))

    def of_groups(groups: Sequence[Group], limits: Limits) -> list[Values]:
        sees = processor() if any(group.pictures for group in groups) else None
        encoded = encode_within(groups, tokenizer, limits, sees)
        rewards = {
            group.row_id: tuple(-len(ids) for ids in group.completion_ids) for group in encoded
        }
        return [rewards.get(i) for i in range(len(groups))]

    def identity() -> str:
        return (
            f"rule:tokens {tokenizer.backend_tokenizer.to_str()} {tokenizer.eos_token} "
            f"{tokenizer.chat_template}"
        )

    return Reward(
        f"rule:tokens:{model}",
        partial(single_rewards, of_groups),
        of_groups=of_groups,
        identity=identity,
        sees_pictures=source.spec.vision is not None,
    )


def _opened(model: str) -> tuple[Checkpoint, Any]:
    """The checkpoint, whole where it sees pictures, and its tokenizer."""
    if is_run(model):
        config = load_run(model)
        source = open_checkpoint(config.model.path, pictures=config.model.pictures)
    else:
        config = make_config({"model": {"path": model}})
        source = open_checkpoint(model, pictures=None)
    return source, dated_tokenizer(config, source)[1]
