"""Text from a policy: a run's checkpoint or any model, for prompts from a file or from Python."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxpref.data.pictures.decode import named
from jaxpref.data.pictures.processor import with_read_pictures
from jaxpref.errors import InputError
from jaxpref.generation.decoding import Generator
from jaxpref.generation.mixing import Mix
from jaxpref.generation.opening import MixedModels, OpenPolicy, open_policy, open_source
from jaxpref.generation.pictures import PromptTiles
from jaxpref.generation.prompts import given_prompts, prompt_ids, read_prompts
from jaxpref.generation.sampling import Sampling, is_whole
from jaxpref.generation.text import Ending
from jaxpref.runs.agreement import check_same_rows
from jaxpref.runs.build import Pieces
from jaxpref.storage.paths import as_path
from jaxpref.types import EncodedGroup, Group, Picture

__all__ = [
    "Completion",
    "Mix",
    "Settings",
    "complete",
    "generate",
    "open_policy",
    "open_source",
    "stop_ids",
]


@dataclass(frozen=True)
class Completion:
    """What was generated for a prompt."""

    prompt: str | list[dict]
    """As it was given."""
    prompt_index: int
    """Its number among the prompts, from 0."""
    sample: int
    """Number of the completion among those of its prompt, from 0."""
    text: str
    """Up to, and without, the stop token or stop string; other special tokens stay in it."""
    token_ids: np.ndarray
    """New tokens, the stop token or all of the stop string among them."""
    token_logps: np.ndarray
    """Log-probability of each (nats) under the policy itself (of a mix: under the mix): temperature
    1, no token left out."""
    finish: str
    """`stop_token`, `stop_string`, or `length` where max_new_tokens ended it."""
    prompt_tokens: int
    tools: list | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template was given beside the messages."""
    pictures: tuple[Picture, ...] = ()
    """Of the prompt."""

    @property
    def logp(self) -> float:
        """Sum of `token_logps`, nats."""
        return float(self.token_logps.sum(dtype=np.float64))

    def to_json(self) -> dict[str, Any]:
        """As a line of `jaxpref generate`."""
        line: dict[str, Any] = {
            "prompt": self.prompt,
            "prompt_index": self.prompt_index,
            "sample": self.sample,
            "completion": self.text,
            "finish": self.finish,
            "prompt_tokens": self.prompt_tokens,
            "tokens": len(self.token_ids),
            "logp": self.logp,
        }
        if self.tools:
            line["tools"] = self.tools
        if self.pictures:
            line["images"] = [named(picture) for picture in self.pictures]
        if self.template_kwargs:
            line["chat_template_kwargs"] = dict(self.template_kwargs)
        return line


@dataclass(frozen=True)
class Settings:
    """How completions are made.  Errors: InputError for what is out of range or has no effect."""

    sampling: Sampling = field(default_factory=Sampling)
    samples: int = 1
    """Completions of every prompt."""
    max_new_tokens: int = 256
    stops: tuple[str, ...] = ()
    """Texts that end a completion, wherever they appear in it."""
    stop_tokens: tuple[int, ...] | None = None
    """Ids that end a completion; None: the end-of-text ids of the model's generation config and of
    its tokenizer."""
    seed: int = 0
    batch_size: int = 32
    """Rows that are decoded together, over all devices."""

    def __post_init__(self):
        problems = [
            f"{name}={getattr(self, name)!r}: a whole number from 1"
            for name in ("samples", "max_new_tokens", "batch_size")
            if not (is_whole(getattr(self, name)) and getattr(self, name) >= 1)
        ]
        if self.sampling.greedy and is_whole(self.samples) and self.samples > 1:
            problems.append(
                f"samples={self.samples} at temperature 0 would all be the same: set a temperature"
            )
        if "" in self.stops:
            problems.append("a stop string without text")
        problems += [f"stops: {x!r}, which is no text" for x in self.stops if type(x) is not str]
        for token in self.stop_tokens or ():
            if not (is_whole(token) and token >= 0):
                problems.append(f"stop_tokens: {token!r}, which is no token id")
        if not (is_whole(self.seed) and 0 <= self.seed < 2**32):  # jax would take the last 32 bits
            problems.append(f"seed={self.seed!r}: a whole number from 0 to 2^32 - 1")
        if problems:
            raise InputError(
                "settings for generation that fit together",
                "; ".join(problems),
                "change these settings",
            )


def generate(
    source: str | Path | Mix | OpenPolicy,
    prompts: str | Path | Sequence[Any],
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    samples: int = 1,
    max_new_tokens: int = 256,
    stops: str | Sequence[str] = (),
    stop_tokens: int | Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    step: str | int = "best",
    overrides: Sequence[str] = (),
) -> list[Completion]:
    """Completions of prompts by a run or a model, in the order of prompts and samples.

    The same prompt number, sample number and seed give the same tokens in every batch, order and
    mesh, as far as the logits are the same: sums of other shapes round otherwise, which a near tie
    may show.

    Args:
        source: directory of a run; a model, as `model.path` of a config; a PEFT adapter directory;
            a `Mix` of these, which decide every token together; or what `open_source` opened.
        prompts: a file (`jaxpref.generation.prompts.read_prompts`), or texts, lists of messages, or
            rows; or a frame or dataset of rows.
        temperature, top_k, top_p, min_p: see `Sampling`; temperature 0 is greedy.
        samples, max_new_tokens, stops, stop_tokens, seed, batch_size: see `Settings`.
        step: of a run, or of all runs of a mix: best, latest or a number.
        overrides: settings `model.compute_dtype=bfloat16` or `mesh.data=8`.
    Errors: InputError for anything that does not fit, before anything is compiled.
    """
    settings = Settings(
        Sampling(temperature, top_k, top_p, min_p),
        samples,
        max_new_tokens,
        _one_or_more("stops", () if stops is None else stops),
        None if stop_tokens is None else _one_or_more("stop_tokens", stop_tokens),
        seed,
        batch_size,
    )
    groups = _groups(prompts)
    if isinstance(source, OpenPolicy):
        opened = source
        if step != "best" or overrides:
            raise InputError(
                "neither `step` nor `overrides` for a policy that is open already",
                f"step={step}, overrides={list(overrides)}",
                "name the run's directory in its place: jaxpref.generate(RUN, ...)",
            )
    else:
        opened = open_source(source, step=step, overrides=overrides)
    done = complete(opened.pieces, opened.params, groups, settings, opened.mixed)
    return sorted(done, key=lambda item: (item.prompt_index, item.sample))


def _groups(prompts: Any) -> list[Group]:
    """Errors: InputError for a prompt where a file of prompts, or a list, is expected."""
    if not isinstance(prompts, str | Path):
        return given_prompts(prompts)
    if len(str(prompts).split()) > 1 and not as_path(prompts).exists():
        raise InputError(
            "a file of prompts, or a list of prompts",
            f"{str(prompts)!r:.80}, which is no file",
            "write prompts=[...], also for a single prompt",
        )
    return read_prompts(prompts)


def _one_or_more(name: str, given: Any) -> tuple[Any, ...]:
    """One text or token id, or several.  Errors: InputError for a mapping, or no iterable."""
    if isinstance(given, str) or is_whole(given):
        return (given,)
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        got = f"{name}={given!r}, a {type(given).__name__}"
        raise InputError(f"{name}: one, or a list of them", got, f"write {name}=[...]")
    return tuple(given)


def complete(
    pieces: Pieces,
    params: Any,
    prompts: Sequence[Group],
    settings: Settings,
    mixed: MixedModels | None = None,
) -> Iterator[Completion]:
    """Completions of prompts, each when it is finished.

    The longest prompts come first, `batch_size` rows at a time.

    Args:
        pieces, params, mixed: of an opened policy (`generation.opening.open_source`).
    Errors: InputError, at once, for a prompt that does not fit the model, and where hosts have
        other prompts.
    """
    opened = OpenPolicy(pieces, params, mixed)
    positions, processor = opened.positions, pieces.processor
    prompts = [with_read_pictures(prompt, processor) for prompt in prompts]
    ids = prompt_ids(
        prompts,
        pieces.tokenizer,
        vocabulary=pieces.source.spec.vocab,
        positions=positions,
        max_new_tokens=settings.max_new_tokens,
        processor=processor,
    )
    check_same_rows("prompts", list(map(_encoded, prompts, ids)))
    tiles = None if processor is None else PromptTiles(processor)
    stops = _stop_ids(pieces, settings)
    ending = Ending(pieces.tokenizer, stops, settings.stops)
    generator = Generator(
        opened.decoding_model,
        params,
        pieces.mesh,
        sampling=settings.sampling,
        seed=settings.seed,
        positions=positions,
        max_new_tokens=settings.max_new_tokens,
        stop_ids=stops,
    )
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(ids[i]))
    numbers = [(i, sample) for i in longest_first for sample in range(settings.samples)]

    def completions() -> Iterator[Completion]:
        for first in range(0, len(numbers), settings.batch_size):
            batch = numbers[first : first + settings.batch_size]
            inputs = [ids[i] for i, _ in batch]
            ends = [ending.within(prompt) for prompt in inputs]
            pictures = None
            if tiles is not None:
                pictures = [
                    tiles.read(ids[i], prompts[i].pictures, prompts[i].where) for i, _ in batch
                ]
            for row, new, logps in generator.run(
                inputs, batch, ends, limit=settings.batch_size, pictures=pictures
            ):
                i, sample = batch[row]
                text, finish = ending.cut(inputs[row], new)
                yield Completion(
                    prompt=prompts[i].prompt,
                    prompt_index=i,
                    sample=sample,
                    text=text,
                    token_ids=new,
                    token_logps=logps,
                    finish=finish,
                    prompt_tokens=len(ids[i]),
                    tools=prompts[i].tools,
                    template_kwargs=prompts[i].template_kwargs,
                    pictures=prompts[i].pictures,
                )

    return completions()


def _stop_ids(pieces: Pieces, settings: Settings) -> frozenset[int]:
    """What ends a completion.  Errors: InputError for an id that the model never draws."""
    if settings.stop_tokens is None:
        return stop_ids(pieces)
    vocabulary = pieces.source.spec.vocab
    if unknown := [token for token in settings.stop_tokens if token >= vocabulary]:
        raise InputError(
            f"stop tokens of the model's {vocabulary}: 0 to {vocabulary - 1}",
            ", ".join(map(str, unknown)),
            "look the ids up in the model's tokenizer",
        )
    return frozenset(settings.stop_tokens)


def _encoded(prompt: Group, ids: np.ndarray) -> EncodedGroup:
    return EncodedGroup(ids, (), prompt.row_id, prompt.where, pictures=prompt.pictures)


def stop_ids(pieces: Pieces) -> frozenset[int]:
    """End-of-text ids: those of generation_config.json, and the tokenizer's.

    The tokenizer's is the one with which training ends a completion.
    """
    configured = pieces.source.generation_config.get("eos_token_id")
    ids = list(configured) if isinstance(configured, list) else [configured]
    ids.append(pieces.tokenizer.eos_token_id)
    return frozenset(end for end in ids if end is not None)
