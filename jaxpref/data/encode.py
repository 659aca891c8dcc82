"""Groups into token ids: the template or the end-of-text token, the prompt boundary, the length
limit.

The rules are TRL's (DPOTrainer 1.16), so that both train on the same tokens:

1. Standard format: the end-of-text token is appended, as text, to completions that do not end with
it; the
   texts are tokenised with the tokenizer's own special tokens.  Conversational: the chat template
   alone decides.
2. The prompt and prompt + completion are tokenised; the prompt is what all of them start with, in
tokens: one length
   for all completions of a group (TRL's KTO, whose groups have one completion, is the same rule).
   Where a token reaches over the boundary, or the template writes the end of the prompt otherwise
   once an answer follows, that end counts as part of every completion and is scored.
3. A prompt of `max_length` tokens or more drops the row; a completion that reaches beyond is cut at
its end.

Whatever is dropped, cut or moved is counted in an `EncodeReport`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import jinja2
import numpy as np

from jaxpref.data.forms import RowError
from jaxpref.errors import InputError
from jaxpref.types import EncodedGroup, Group

TRUNCATIONS = ("keep_start", "keep_end", "drop", "error")

_OTHER_ROLES = {"system", "developer", "user", "tool"}
_BATCH = 256  # groups tokenised by one call: enough for all cores, little enough that texts and ids stay small


@dataclass(frozen=True)
class Dropped:
    """A row that the length limit leaves nothing of; `reason` is a short fixed text to count by."""

    reason: str
    where: str


@dataclass
class EncodeReport:
    """What became of the groups.  Counts are of groups unless the name says tokens or completions;
    all but the first and `dropped` are of the groups kept.
    """

    groups_in: int = 0
    groups_kept: int = 0
    dropped: Counter = field(default_factory=Counter)
    """Groups dropped, by reason."""
    completions_truncated: int = 0
    completion_tokens_cut: int = 0
    prompts_truncated: int = 0
    prompt_tokens_cut: int = 0
    boundary_merges: int = 0
    """The tokens of the prompt alone are not the start of prompt + completion."""
    boundary_tokens: int = 0
    """Tokens at the end of those prompts, in the place of which the completions have others."""
    empty_prompts: int = 0
    """No prompt token: the first token of each completion is not scored."""
    identical_completions: int = 0
    """Two completions are the same tokens: kept, but a pair made so by truncation teaches
    nothing."""
    completions_with_other_turns: int = 0
    """Completions that hold user, system or tool messages, the tokens of which are scored too."""

    def __str__(self) -> str:
        drops = ", ".join(f"{reason}: {n}" for reason, n in sorted(self.dropped.items()))
        lines = [
            f"groups: {self.groups_in} in, {self.groups_kept} kept"
            + (f"; dropped: {drops}" if drops else "")
        ]
        notes = (
            (
                self.completions_truncated,
                f"completions cut, by {self.completion_tokens_cut} tokens",
            ),
            (self.prompts_truncated, f"prompts cut, by {self.prompt_tokens_cut} tokens"),
            (
                self.boundary_merges,
                f"groups of which the completions replace {self.boundary_tokens} prompt tokens",
            ),
            (self.empty_prompts, "groups with an empty prompt (first token not scored)"),
            (self.identical_completions, "groups with completions of the same tokens"),
            (
                self.completions_with_other_turns,
                "completions in which user, system or tool turns are scored",
            ),
        )
        return "\n".join(lines + [f"{count} {text}" for count, text in notes if count])


def encode_groups(
    groups: Iterable[Group],
    tokenizer: Any,
    *,
    max_length: int | None,
    truncation: str = "keep_start",
    on_bad_row: str = "error",
    may_be_none: bool = False,
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
        may_be_none: whether it is no error that no row is left.

    Raises:
        RowError: a completion without tokens, or messages that the chat template refuses.
        InputError: no chat template for messages, no end-of-text token for texts, a row beyond the
            limit with `truncation="error"`, or no row left (with the reasons and their counts).
    """
    _check_options(max_length, truncation, on_bad_row)
    report, encoded = EncodeReport(), []
    groups = iter(groups)
    while batch := list(islice(groups, _BATCH)):
        for result in _encode_batch(batch, tokenizer, max_length, truncation, report):
            if isinstance(result, RowError) and on_bad_row == "error":
                raise result
            if isinstance(result, EncodedGroup):
                encoded.append(result)
            else:
                report.dropped[result.reason] += 1
    if not encoded and not may_be_none:
        raise InputError(
            "at least one row to train on",
            f"none of {report.groups_in} groups is left ({dict(report.dropped) or 'there were none'})",
            "look at the rows named by the reasons, or raise `max_length`",
        )
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
        report.dropped[result.reason] += 1
    return result


def check_known_tokens(rows: Iterable[tuple[str, Iterable[np.ndarray]]], vocabulary: int) -> None:
    """Errors: InputError for a token that the model has no embedding of; some tokenizers have more
    tokens than that.

    Args:
        rows: where each stands, and its token ids.
        vocabulary: of the model, without padding.
    """
    for where, parts in rows:
        largest = max((int(ids.max()) for ids in parts if len(ids)), default=0)
        if largest >= vocabulary:
            raise InputError(
                f"tokens among the model's {vocabulary}",
                f"{where}: token {largest}",
                "take the tokenizer that belongs to the model, or a model with embeddings for the added tokens",
            )


def encode_prompts(prompts: Sequence[Group], tokenizer: Any) -> list[np.ndarray]:
    """Token ids of groups without completions: what a model is given to go on with.

    Raises:
        RowError: messages that the chat template refuses.
        InputError: no chat template for messages.
    """
    results = _token_ids(prompts, [_texts(prompt, tokenizer) for prompt in prompts], tokenizer)
    for result in results:
        if isinstance(result, RowError):
            raise result
    return [np.array(ids, np.int32) for [ids] in results]


def _check_options(max_length: int | None, truncation: str, on_bad_row: str) -> None:
    if max_length is not None and max_length < 2:
        raise InputError(
            "`max_length` of at least 2 tokens",
            str(max_length),
            "one for prompt, one for the answer",
        )
    for key, value, known in (
        ("truncation", truncation, TRUNCATIONS),
        ("on_bad_row", on_bad_row, ("error", "drop")),
    ):
        if value not in known:
            raise InputError(f"`{key}` one of {', '.join(known)}", repr(value), f"correct `{key}`")


def _encode_batch(
    groups: Sequence[Group],
    tokenizer: Any,
    max_length: int | None,
    truncation: str,
    report: EncodeReport,
) -> Iterator[EncodedGroup | Dropped | RowError]:
    texts = [_texts(group, tokenizer) for group in groups]
    for group, ids in zip(groups, _token_ids(groups, texts, tokenizer), strict=True):
        report.groups_in += 1
        if isinstance(ids, RowError):
            yield ids
            continue
        prompt, completions = _split(ids)
        if not all(completions):
            yield _no_tokens(group, [bool(c) for c in completions].index(False))
            continue
        fitted = _fit(
            prompt, completions, max_length, truncation, tokenizer.bos_token_id, group.where
        )
        if isinstance(fitted, Dropped):
            yield fitted
            continue
        _count(report, group, len(ids[0]), (prompt, completions), fitted)
        yield _encoded(group, *fitted)


# ---- text


def _texts(group: Group, tokenizer: Any) -> list[str] | RowError:
    """What is tokenised of a group: the prompt, then prompt + completion for each completion."""
    if not group.conversational:
        if group.completions and not tokenizer.eos_token:
            raise InputError(
                "a tokenizer with an end-of-text token, which closes every completion",
                f"{group.where}: plain text, and tokenizer.eos_token is not set",
                "set `eos_token` in tokenizer_config.json",
            )
        eos = tokenizer.eos_token
        ended = [c if c.endswith(eos) else c + eos for c in group.completions]
        return [group.prompt] + [group.prompt + completion for completion in ended]
    if not tokenizer.chat_template:
        raise InputError(
            "a tokenizer with a chat template for rows of messages",
            f"{group.where}: messages, and tokenizer.chat_template is not set",
            "use the tokenizer of a chat model, add chat_template.jinja beside tokenizer.json, "
            "or give the rows as plain text",
        )
    try:
        return [_rendered(group, group.prompt, tokenizer, add_generation_prompt=True)] + [
            _rendered(group, [*group.prompt, *completion], tokenizer)
            for completion in group.completions
        ]
    except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
        refusal = RowError(
            "refused by the chat template",
            "messages that the tokenizer's chat template can write",
            f"{group.where}: {type(error).__name__}: {error}",
            "mend or drop the row, or use another chat template",
        )
        refusal.__cause__ = error
        return refusal


def _rendered(
    group: Group, messages: list[dict], tokenizer: Any, add_generation_prompt: bool = False
) -> str:
    return tokenizer.apply_chat_template(
        messages,
        tools=group.tools,
        add_generation_prompt=add_generation_prompt,
        tokenize=False,
        **group.template_kwargs,
    )


# ---- tokens


def _token_ids(
    groups: Sequence[Group], texts: Sequence[list[str] | RowError], tokenizer: Any
) -> list[list[list[int]] | RowError]:
    """Token ids of every text, in two calls: rendered templates hold their special tokens
    already."""
    results: list = list(texts)
    for conversational in (False, True):
        members = [
            i
            for i, group in enumerate(groups)
            if group.conversational is conversational and not isinstance(texts[i], RowError)
        ]
        flat = [text for i in members for text in texts[i]]
        if not flat:
            continue
        # `verbose=False`: no log line about texts beyond `model_max_length`; the limit here is
        #     `max_length`.
        ids = iter(
            tokenizer(
                flat,
                add_special_tokens=not conversational,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
        )
        for i in members:
            results[i] = list(islice(ids, len(texts[i])))
    return results


def _split(ids: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """Cuts prompt + completion where the tokens of the prompt end, at one place for all
    completions."""
    prompt, *wholes = ids
    length = min(_common_length(prompt, whole) for whole in wholes)
    return prompt[:length], [whole[length:] for whole in wholes]


def _common_length(first: list[int], second: list[int]) -> int:
    shorter = min(len(first), len(second))
    if (
        first[:shorter] == second[:shorter]
    ):  # nearly always, and much faster than looking at every token
        return shorter
    return next(i for i in range(shorter) if first[i] != second[i])


def _no_tokens(group: Group, index: int) -> RowError:
    return RowError(
        "completion without tokens",
        "a completion of at least one token",
        f"{group.where}, completion {index + 1} of {len(group.completions)}: no more tokens than the prompt alone",
        "drop the row, or mend the chat template if all rows are like this",
    )


def _fit(
    prompt: list[int],
    completions: list[list[int]],
    max_length: int | None,
    truncation: str,
    bos: int | None,
    where: str,
) -> tuple[list[int], list[list[int]]] | Dropped:
    """Prompt and completions within `max_length`, or why the row is dropped."""
    longest = len(prompt) + max(map(len, completions))
    if max_length is None or longest <= max_length:
        return prompt, completions
    if truncation == "error":
        raise InputError(
            f"prompt + completion within max_length={max_length} tokens",
            f"{where}: {longest} tokens, {len(prompt)} of them in the prompt",
            "raise `max_length`, shorten the row, or set `truncation` to keep_start, keep_end or drop",
        )
    if truncation == "drop":
        return Dropped("longer than max_length", where)
    if truncation == "keep_start":
        room = max_length - len(prompt)
        if room < 1:
            return Dropped("prompt as long as max_length", where)
        return prompt, [c[:room] for c in completions]
    # keep_end: one prompt serves all completions, so the longest decides; a token stays to predict
    #     from.
    completions = [c[: max_length - min(1, len(prompt))] for c in completions]
    return _prompt_end(prompt, max_length - max(map(len, completions)), bos), completions


def _prompt_end(prompt: list[int], length: int, bos: int | None) -> list[int]:
    """The last `length` tokens; a BOS token in front stays there, as models are trained to find
    one."""
    if length >= len(prompt):
        return prompt
    head = prompt[:1] if bos is not None and prompt[0] == bos else []
    return head + prompt[len(prompt) - (length - len(head)) :]


def _encoded(group: Group, prompt: list[int], completions: list[list[int]]) -> EncodedGroup:
    return EncodedGroup(
        prompt_ids=np.array(prompt, np.int32),
        completion_ids=tuple(np.array(c, np.int32) for c in completions),
        row_id=group.row_id,
        where=group.where,
        columns=group.columns,
    )


def _count(
    report: EncodeReport,
    group: Group,
    prompt_length: int,
    whole: tuple[list[int], list[list[int]]],
    fitted: tuple[list[int], list[list[int]]],
) -> None:
    """Counts a kept row: length of its prompt tokenised alone, its parts before and after
    `_fit`."""
    (prompt, completions), (kept_prompt, kept) = whole, fitted
    cuts = [len(before) - len(after) for before, after in zip(completions, kept, strict=True)]
    report.groups_kept += 1
    report.completions_truncated += sum(cut > 0 for cut in cuts)
    report.completion_tokens_cut += sum(cuts)
    report.prompts_truncated += len(kept_prompt) < len(prompt)
    report.prompt_tokens_cut += len(prompt) - len(kept_prompt)
    report.boundary_merges += len(prompt) < prompt_length
    report.boundary_tokens += prompt_length - len(prompt)
    report.empty_prompts += not kept_prompt
    report.identical_completions += len(set(map(tuple, kept))) < len(kept)
    if group.conversational:
        report.completions_with_other_turns += sum(
            any(message["role"] in _OTHER_ROLES for message in completion)
            for completion in group.completions
        )
