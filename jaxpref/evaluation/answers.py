"""Answers of a policy to prompts: generated, or read from a file; and those of two policies, prompt
by prompt."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpref.data.sources import read_rows
from jaxpref.errors import InputError
from jaxpref.generation.completions import Completion, Mix, Settings, complete, open_source
from jaxpref.generation.prompts import read_prompts, to_prompt
from jaxpref.types import Group


@dataclass(frozen=True)
class Answers:
    """Answers of one policy; a prompt appears once for each of its answers, those of a prompt in
    their order."""

    name: str
    prompts: list[Group]
    texts: list[str]

    @property
    def keys(self) -> list[str]:
        """Of the prompts; equal prompts have equal keys."""
        return [
            json.dumps([p.prompt, p.tools, dict(p.template_kwargs)], sort_keys=True)
            for p in self.prompts
        ]


def read_answers(path: str | Path) -> Answers:
    """Rows with `prompt` (text or messages) and `completion` (text, or one assistant message), as
    `jaxpref generate` writes them.

    Errors: InputError with file and row.
    """
    prompts, texts = [], []
    for number, (row, where) in enumerate(read_rows(str(path))):
        if "completion" not in row:
            raise InputError(
                'rows with "prompt" and "completion"',
                f"{where}: {', '.join(map(str, row))}",
                "add it",
            )
        texts.append(_text(row["completion"], where))
        rest = {
            key: row[key]
            for key in ("prompt", "messages", "tools", "chat_template_kwargs")
            if key in row
        }
        prompts.append(to_prompt(rest, where, number))
    return Answers(str(path), prompts, texts)


def _text(value: Any, where: str) -> str:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")
    if not isinstance(value, str):
        raise InputError(
            "a text, or one message", f'{where}, key "completion": {value!r:.80}', "correct the row"
        )
    return value


def generated_answers(
    source: str | Path | Mix,
    prompts: str | Path,
    settings: Settings,
    *,
    step: str = "best",
    overrides: Sequence[str] = (),
    watch: Callable[[Iterable[Completion], int], Iterable[Completion]] = lambda made, _: made,
) -> Answers:
    """Answers of a run or a model to the prompts of a file; arguments as of `jaxpref.generate`.

    Args:
        watch: (completions, their number) -> the same; for progress bars.
    """
    groups = read_prompts(prompts)
    opened = open_source(source, step=step, overrides=overrides)
    made = watch(
        complete(opened.pieces, opened.params, groups, settings, opened.mixed),
        len(groups) * settings.samples,
    )
    done = sorted(made, key=lambda item: (item.prompt_index, item.sample))
    return Answers(
        str(source), [groups[item.prompt_index] for item in done], [item.text for item in done]
    )


def in_order_of(first: Answers, other: Answers) -> Answers:
    """The other's answers in the first's order: the n-th answer to a prompt beside the n-th to the
    same prompt.

    Errors: InputError where some prompt has not as many answers on both sides.
    """
    places: dict[str, list[int]] = {}
    for at, key in enumerate(other.keys):
        places.setdefault(key, []).append(at)
    ours, theirs = Counter(first.keys), Counter(other.keys)
    if ours != theirs:
        odd = next(key for key in [*ours, *theirs] if ours[key] != theirs[key])
        raise InputError(
            "as many answers to every prompt on both sides",
            f"{ours[odd]} of {first.name} and {theirs[odd]} of {other.name} to the prompt {json.loads(odd)[0]!r:.80}",
            "generate both from one file of prompts, with as many samples",
        )
    taken = {key: iter(at) for key, at in places.items()}
    order = [next(taken[key]) for key in first.keys]
    return Answers(other.name, [other.prompts[i] for i in order], [other.texts[i] for i in order])
