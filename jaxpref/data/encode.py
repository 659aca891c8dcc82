"""Groups into token ids: the prompt boundary, the length limit, and an account of both.

The rules are TRL's (DPOTrainer 1.16), so that both train on the same tokens:

1. Standard format: the end-of-text token is appended, as text, to completions that do not end with
   it; of the tokenizer's own special tokens those before the text are kept.  Conversational: the
   chat template alone decides (`template.py`).
2. The prompt and prompt + completion are tokenised; the prompt is what all of them start with, in
   tokens: one length for all completions of a group (TRL's KTO, whose groups have one completion,
   is the same rule).  Where a token reaches over the boundary, or the template writes the end of
   the prompt otherwise once an answer follows, that end counts as part of every completion and is
   in the loss.
3. A prompt of `max_length` tokens or more drops the row; a completion that reaches beyond is cut at
   its end (`truncation.py`).  Pictures are never cut: a prompt that would lose tokens of one drops
   the row.

Other than in TRL, plain text has one BOS where it begins with the token itself, and one end-of-text
token where the tokenizer adds one too; and a prompt has none of the latter.

Whatever is dropped, cut or moved is counted in an `EncodeReport`.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, takewhile
from typing import Any

import numpy as np

from jaxpref.data.encode_report import EncodeReport
from jaxpref.data.pictures.processor import PictureProcessor, with_read_pictures
from jaxpref.data.prefix import common_length
from jaxpref.data.template import group_texts
from jaxpref.data.tokenise import token_ids
from jaxpref.data.truncation import TRUNCATIONS, Dropped, Parts, fit
from jaxpref.errors import InputError, RowError
from jaxpref.types import EncodedGroup, Group

_BATCH = 256
"""Groups tokenised by one call: enough for all cores, and their texts and ids stay small."""


def encode_groups(
    groups: Iterable[Group],
    tokenizer: Any,
    *,
    max_length: int | None,
    truncation: str = "keep_start",
    on_bad_row: str = "error",
    processor: PictureProcessor | None = None,
) -> tuple[list[EncodedGroup], EncodeReport]:
    """Encodes groups in their order, tokenising many at a time.

    Args:
        groups: any number of groups, standard and conversational mixed at will.
        tokenizer: a fast tokenizer of transformers.
        max_length: longest prompt + completion, in tokens, at least 2; None for no limit.
        truncation: what to do beyond it.  `keep_start` cuts the completion's end (and drops the row
            if the prompt alone fills it); `keep_end` cuts the prompt's start, as far as the longest
            completion needs (a leading BOS token stays), and completions to `max_length - 1`;
            `drop` drops the row; `error` raises.
        on_bad_row: `error` raises a `RowError`, `drop` drops and counts the row.
        processor: of a model that sees pictures; None: groups with pictures are refused.

    Raises:
        RowError: a completion without tokens, messages that the chat template refuses, pictures
            that cannot be used.
        InputError: no chat template for messages, no end-of-text token for texts, or a row beyond
            the limit with `truncation="error"`; pictures that the model does not see.
    """
    _check_options(max_length, truncation, on_bad_row)
    report, encoded = EncodeReport(), []
    groups = iter(groups)
    while batch := list(islice(groups, _BATCH)):
        for result in _encode_batch(batch, tokenizer, max_length, truncation, report, processor):
            if isinstance(result, RowError) and on_bad_row == "error":
                raise result
            if isinstance(result, EncodedGroup):
                encoded.append(result)
            else:
                report.drop(result)
    return encoded, report


def encode_group(
    group: Group,
    tokenizer: Any,
    *,
    max_length: int | None,
    truncation: str = "keep_start",
    report: EncodeReport | None = None,
) -> EncodedGroup | Dropped:
    """Encodes one group; arguments and errors as in `encode_groups`, counts go to `report`."""
    _check_options(max_length, truncation, "error")
    report = EncodeReport() if report is None else report
    [result] = _encode_batch([group], tokenizer, max_length, truncation, report)
    if isinstance(result, RowError):
        raise result
    if isinstance(result, Dropped):
        report.drop(result)
    return result


def check_known_tokens(rows: Iterable[tuple[str, Iterable[np.ndarray]]], vocabulary: int) -> None:
    """Refuses tokens that the model has no embedding of, as some tokenizers have.

    Args:
        rows: where each stands, and its token ids.
        vocabulary: of the model, without padding.
    Errors: InputError for such a token, naming its row.
    """
    for where, parts in rows:
        largest = max((int(ids.max()) for ids in parts if len(ids)), default=0)
        if largest >= vocabulary:
            raise InputError(
                f"tokens among the model's {vocabulary}",
                f"{where}: token {largest}",
                "take the tokenizer that belongs to the model, or a model with embeddings for the "
                "added tokens",
            )


def encode_prompts(
    prompts: Sequence[Group], tokenizer: Any, processor: PictureProcessor | None = None
) -> list[np.ndarray]:
    """Token ids of groups without completions: what a model is given to go on with.

    Args:
        prompts: whose pictures are read (`with_read_pictures`).
        processor: as of `encode_groups`.

    Raises:
        RowError: messages that the chat template refuses.
        InputError: no chat template for messages, pictures that the model does not see.
    """
    texts = [group_texts(prompt, tokenizer, processor) for prompt in prompts]
    results = _token_ids(prompts, texts, tokenizer)
    encoded = []
    for result in results:
        if isinstance(result, RowError):
            raise result
        [ids] = result
        encoded.append(np.array(ids, np.int32))
    return encoded


def _check_options(max_length: int | None, truncation: str, on_bad_row: str) -> None:
    if max_length is not None and max_length < 2:
        raise InputError(
            "`max_length` of at least 2 tokens, one of the prompt and one of the answer",
            str(max_length),
            "raise `max_length`",
        )
    for key, value, known in (
        ("truncation", truncation, TRUNCATIONS),
        ("on_bad_row", on_bad_row, ("error", "drop")),
    ):
        if value not in known:
            raise InputError(
                f"`{key}` one of {', '.join(known)}", repr(value), f"set `{key}` to one of them"
            )


def _encode_batch(
    groups: Sequence[Group],
    tokenizer: Any,
    max_length: int | None,
    truncation: str,
    report: EncodeReport,
    processor: PictureProcessor | None = None,
) -> Iterator[EncodedGroup | Dropped | RowError]:
    read = [_with_read_pictures(group, processor) for group in groups]
    texts = [
        group if isinstance(group, RowError) else group_texts(group, tokenizer, processor)
        for group in read
    ]
    for group, ids in zip(read, _token_ids(groups, texts, tokenizer), strict=True):
        report.groups_in += 1
        if isinstance(group, RowError):
            yield group
            continue
        if isinstance(ids, RowError):
            yield ids
            continue
        whole = _split(ids)
        without_tokens = next((k for k, tokens in enumerate(whole[1]) if not tokens), None)
        if without_tokens is not None:
            yield _no_tokens(group, without_tokens)
            continue
        kept = fit(whole, max_length, truncation, tokenizer.bos_token_id, group.where)
        if isinstance(kept, Dropped):
            yield kept
            continue
        prompt, completions = kept
        if processor is not None:
            cut = processor.cut(group, whole, kept)
            if cut is not None:
                yield cut
                continue
            report.picture_tokens += prompt.count(processor.token_id)
        report.count(group, ids[0], whole, kept)
        yield EncodedGroup(
            prompt_ids=np.array(prompt, np.int32),
            completion_ids=tuple(np.array(tokens, np.int32) for tokens in completions),
            row_id=group.row_id,
            where=group.where,
            columns=group.columns,
            pictures=group.pictures,
        )


def _with_read_pictures(group: Group, processor: PictureProcessor | None) -> Group | RowError:
    try:
        return with_read_pictures(group, processor)
    except RowError as error:
        return error


def _token_ids(
    groups: Sequence[Group], texts: Sequence[list[str] | RowError], tokenizer: Any
) -> list[list[list[int]] | RowError]:
    """Token ids of the texts of every group, all tokenised by one call."""
    flat = [text for rendered in texts if not isinstance(rendered, RowError) for text in rendered]
    ids = iter(token_ids(flat, tokenizer))
    before = _ids_before_text(tokenizer)
    results: list[list[list[int]] | RowError] = []
    for group, rendered in zip(groups, texts, strict=True):
        if isinstance(rendered, RowError):
            results.append(rendered)
            continue
        encoded = list(islice(ids, len(rendered)))
        if not group.conversational:  # rendered templates hold their special tokens
            encoded = [_begun(tokens, before) for tokens in encoded]
        results.append(encoded)
    return results


def _ids_before_text(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer itself puts before a text: BOS or none."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    marked = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    return [token for token, special in takewhile(lambda pair: pair[1], marked)]


def _begun(tokens: list[int], before: list[int]) -> list[int]:
    """A text's tokens with `before` in front, unless the text itself begins with them."""
    return tokens if tokens[: len(before)] == before else before + tokens


def _split(ids: list[list[int]]) -> Parts:
    """Cuts prompt + completion where the prompt's tokens end, at one place for all completions."""
    prompt, *wholes = ids
    length = min(common_length(prompt, whole) for whole in wholes)
    return prompt[:length], [whole[length:] for whole in wholes]


def _no_tokens(group: Group, k: int) -> RowError:
    which = f"completion {k + 1} of {len(group.completions)}"
    return RowError(
        "completion without tokens",
        "a completion of at least one token",
        f"{group.where}, {which}: no more tokens than the prompt alone",
        "drop the row, or mend the chat template if all rows are like this",
    )
