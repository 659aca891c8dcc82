"""Answers of policies to prompts: generated or read from a file, and paired prompt by prompt."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpref.data.pictures.decode import named
from jaxpref.data.sources import read_rows
from jaxpref.errors import InputError
from jaxpref.generation.completions import Settings, complete
from jaxpref.generation.mixing import Mix
from jaxpref.generation.opening import open_source
from jaxpref.generation.prompts import read_prompts, to_prompt
from jaxpref.progress import Watch, unwatched
from jaxpref.types import Group

_ANSWERS = {"completion", "completions", "chosen", "rejected"}


@dataclass(frozen=True)
class Answers:
    """Answers of one policy.

    A prompt appears once for each of its answers, those of a prompt in their order.
    """

    name: str
    prompts: list[Group]
    texts: list[str]

    @property
    def keys(self) -> list[str]:
        """Of the prompts; equal prompts have equal keys."""
        return [
            json.dumps(
                [p.prompt, p.tools, dict(p.template_kwargs), [*map(named, p.pictures)]],
                sort_keys=True,
            )
            for p in self.prompts
        ]


def is_file_of_answers(source: str) -> bool:
    """Whether a name is that of a file of answers; else it is a policy's."""
    return source.endswith((".jsonl", ".jsonl.gz"))


def read_answers(path: str | Path) -> Answers:
    """Answers from a file of rows with `prompt` and `completion`.

    As `jaxpref generate` writes them.  A prompt is a text or messages, a completion a text or one
    message of the assistant.
    Errors: InputError with file and row.
    """
    prompts, texts = [], []
    for number, (row, where) in enumerate(read_rows(str(path))):
        if "completion" not in row:
            raise InputError(
                'rows with "prompt" and "completion"',
                f"{where}: {', '.join(map(str, row))}",
                "add `completion`, the answer to the prompt",
            )
        texts.append(_text(row["completion"], where))
        of_prompt = {key: value for key, value in row.items() if key not in _ANSWERS}
        prompts.append(to_prompt(of_prompt, where, number))
    return Answers(str(path), prompts, texts)


def _text(value: Any, where: str) -> str:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")
    if not isinstance(value, str):
        raise InputError(
            "a text, or one message",
            f'{where}, key "completion": {value!r:.80}',
            "write the answer as a text, or as a list of one message with `content`",
        )
    return value


def generated_answers(
    source: str | Path | Mix,
    prompts: str | Path,
    settings: Settings,
    *,
    step: str | int = "best",
    overrides: Sequence[str] = (),
    watch: Watch = unwatched,
) -> Answers:
    """Answers of a run or a model to the prompts of a file; arguments as of `jaxpref.generate`.

    Args:
        watch: told of every answer.
    """
    groups = read_prompts(prompts)
    opened = open_source(source, step=step, overrides=overrides)
    completions = complete(opened.pieces, opened.params, groups, settings, opened.mixed)
    done, total = [], len(groups) * settings.samples
    for completion in completions:
        done.append(completion)
        watch(f"answers of {source}", len(done), total)
    done.sort(key=lambda completion: (completion.prompt_index, completion.sample))
    prompts_of_answers = [groups[completion.prompt_index] for completion in done]
    return Answers(str(source), prompts_of_answers, [completion.text for completion in done])


def in_order_of(first: Answers, other: Answers) -> Answers:
    """The other's answers in the first's order.

    The n-th answer to a prompt then stands beside the other's n-th to the same prompt.
    Errors: InputError where some prompt does not have as many answers on both sides.
    """
    ours, theirs = Counter(first.keys), Counter(other.keys)
    for key in [*ours, *theirs]:
        if ours[key] != theirs[key]:
            prompt = json.loads(key)[0]
            raise InputError(
                "as many answers to every prompt on both sides",
                f"{ours[key]} of {first.name} and {theirs[key]} of {other.name} "
                f"to the prompt {prompt!r:.80}",
                "generate both from one file of prompts, with as many samples",
            )
    indices: dict[str, list[int]] = {}
    for i, key in enumerate(other.keys):
        indices.setdefault(key, []).append(i)
    remaining = {key: iter(of_key) for key, of_key in indices.items()}
    order = [next(remaining[key]) for key in first.keys]
    return Answers(other.name, [other.prompts[i] for i in order], [other.texts[i] for i in order])
