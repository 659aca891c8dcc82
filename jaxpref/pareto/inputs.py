"""What a front is made from: checked before anything is trained, and compared when it goes on."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from jaxpref.conditioning.weights import weighted_prompt
from jaxpref.data.encode import encode_prompts
from jaxpref.data.pictures.processor import with_read_pictures
from jaxpref.data.rewrite import configured, groups_of
from jaxpref.errors import InputError
from jaxpref.files import whole_file
from jaxpref.generation.completions import Settings
from jaxpref.generation.prompts import prompt_ids, read_prompts
from jaxpref.generation.sampling import Sampling
from jaxpref.objectives import OBJECTIVES, TRANSFORMS, bind
from jaxpref.pareto.config import (
    BY_ADAPTER,
    CONDITIONED,
    ON_POLICY,
    FrontConfig,
    ObjectiveConfig,
)
from jaxpref.pareto.run_configs import conditioned_run, single_run
from jaxpref.pareto.settings import front_settings, load_front_config
from jaxpref.processes.together import first_does
from jaxpref.rewards import Reward, open_reward
from jaxpref.runs.adapters import adapter_spec
from jaxpref.runs.build import Pieces, build
from jaxpref.runs.digests import weights_key
from jaxpref.runs.feed import read_data
from jaxpref.runs.resume import MAY_CHANGE, settled_as
from jaxpref.storage.local_copies import version_of
from jaxpref.storage.paths import as_path, is_bucket
from jaxpref.types import Group

CONFIG = "front.yaml"
INPUTS = "inputs.json"
_MAY_CHANGE = tuple(key for key in MAY_CHANGE if key != "out")
"""What a front may go on with changed; not `out`, in which its stages name files."""
_PATH_OF_FUNCTION = ".py:"
"""In a reward that is a function in a file, `FILE.py:FUNCTION`."""


def start_front(front: FrontConfig, out: Path) -> FrontConfig:
    """Checks a new front and writes down what it is made from, or compares it with that.

    Returns: the front, with the compute dtype and the date that chat templates print, which all its
        runs share.
    Errors: InputError for settings, prompts, rewards and judges that cannot be used, and for a
        directory that was started with other settings or from other files.
    """
    settings_file, digests_file = out / CONFIG, out / INPUTS
    before = load_front_config(settings_file) if settings_file.is_file() else None
    if before:
        front = replace(front, run=settled_as(front.run, before.run))
        _check_same_settings(out, before, front)
    pieces = build(front.run)
    front = replace(front, run=settled_as(front.run, pieces.config))
    digests = first_does(lambda: dict(_digests(front, pieces)))
    known = first_does(
        lambda: json.loads(digests_file.read_text()) if digests_file.is_file() else None
    )
    if known is None:
        _check_usable(front, pieces)
    else:
        _check_unchanged(out, known, digests)
        if before == front:
            return front

    def write() -> None:
        with whole_file(settings_file) as partial:
            OmegaConf.save(OmegaConf.create(front_settings(front)), partial)
        with whole_file(digests_file) as partial:
            partial.write_text(json.dumps(digests, indent=1) + "\n")

    first_does(write)
    return front


def _check_same_settings(out: Path, before: FrontConfig, now: FrontConfig) -> None:
    """Errors: InputError naming what has changed, but for what runs may go on with changed."""
    old, new = (
        {key: value for key, value in front_settings(front).items() if key not in _MAY_CHANGE}
        for front in (before, now)
    )
    changed = list(_differences(old, new))
    if changed:
        raise InputError(
            f"the settings with which {out} was started ({CONFIG})",
            "changed: " + "; ".join(changed),
            "restore them, or choose another `out` for a new front",
        )


def _differences(old: Mapping, new: Mapping, prefix: str = "") -> Iterator[str]:
    """Settings that differ, as `pareto.beta 0.1 -> 0.3`."""
    for key in {**old, **new}:
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, f"{prefix}{key}.")
        elif one != other:
            yield f"{prefix}{key} {one!r:.100} -> {other!r:.100}"


def _check_usable(front: FrontConfig, pieces: Pieces) -> None:
    """Errors: InputError for prompts, rewards and judges that cannot be used."""
    prompts, _ = asked_prompts(front, pieces)
    answer_settings(front)
    if set(front.pareto.methods) & set(CONDITIONED):
        _check_room_for_weights(front, pieces, prompts)
    objectives = front.pareto.objectives
    rewards = {reward for o in objectives for reward in (o.reward, o.judge) if reward}
    opened = {reward: open_reward(reward) for reward in sorted(rewards)}
    _check_pictures_are_seen(front, opened)
    _check_adapters(front, pieces)
    _check_rows(front, pieces)


def _check_adapters(front: FrontConfig, pieces: Pieces) -> None:
    """Errors: InputError where a method's kind of adapter cannot be put on the weights named."""
    for method in front.pareto.methods:
        if method in BY_ADAPTER:
            config = conditioned_run(front, method, "").adapter
            adapter_spec(config, pieces.source.spec)


def _check_rows(front: FrontConfig, pieces: Pieces) -> None:
    """Reads all rows as the runs will, one of which would otherwise be trained before the next.

    Errors: as of `read_data`, and for pictures of the shared rows that cannot be used.
    """
    for objective in front.pareto.objectives:
        if objective.train:
            config = single_run(front, objective.name, objective.train, objective.eval)
            parts = bind(config.objective, OBJECTIVES, TRANSFORMS)
            own = replace(pieces, config=config, parts=parts)
            if "modpo" in front.pareto.methods or front.needs_single(objective.name):
                read_data(own, "train")
            if objective.eval:
                read_data(own, "eval")
    data = front.run.data
    if front.relabelled and pieces.processor is not None:
        for side, paths in (("train", data.train), ("eval", data.eval_sets.get("", []))):
            if paths:
                for group in groups_of(configured(data, paths, side)):
                    with_read_pictures(group, pieces.processor)


def _check_pictures_are_seen(front: FrontConfig, rewards: Mapping[str, Reward]) -> None:
    """Errors: InputError for methods and rewards that do not see the pictures of the rows."""
    drawing = [method for method in front.pareto.methods if method in ON_POLICY]
    blind = [f"{method} (pareto.methods) draws answers to texts alone" for method in drawing]
    blind += [f"{name} sees no pictures" for name, own in rewards.items() if not own.sees_pictures]
    if not blind:
        return
    seen = next((group for group in _all_rows(front) if group.pictures), None)
    if seen is not None:
        raise InputError(
            "methods and rewards that see the pictures of the rows",
            f"{seen.where} has pictures; {'; '.join(blind)}",
            "leave out these methods (the others take rows with pictures), and take as rewards "
            "runs of a model that sees them (model.pictures), functions of texts, or the scores "
            "of the rows; or leave the rows with pictures out",
        )


def _all_rows(front: FrontConfig) -> Iterator[Group]:
    """Of the training data of all objectives, then of the held-out data."""
    data, objectives = front.run.data, front.pareto.objectives
    for side, shared in (("train", data.train), ("eval", data.eval_sets.get("", []))):
        paths = [*shared, *(path for own in objectives for path in getattr(own, side))]
        if paths:
            yield from groups_of(configured(data, paths, side))


def _check_room_for_weights(front: FrontConfig, pieces: Pieces, prompts: Sequence[Group]) -> None:
    """Errors: InputError for a prompt that leaves no room for an answer once it says weights."""
    weights = front.points[0]
    prompt_ids(
        [replace(prompt, prompt=weighted_prompt(prompt.prompt, weights)) for prompt in prompts],
        pieces.tokenizer,
        vocabulary=pieces.source.spec.vocab,
        positions=pieces.source.spec.longest_sequence,
        max_new_tokens=front.pareto.answers.max_new_tokens,
        processor=pieces.processor,
    )


def _check_unchanged(out: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        raise InputError(
            f"the files from which {out} was started",
            f"changed since: {', '.join(changed)}",
            "restore them, or choose another `out` for a new front",
        )


def _digests(front: FrontConfig, pieces: Pieces) -> Iterator[tuple[str, str]]:
    """Of the model, of local data and of Python files that training depends on.

    What a hub or a package has is not looked at, nor a reward model.  Judges are apart
    (`file_digest`): one that failed on an answer may be mended when everything is trained.
    """
    yield front.run.model.path, weights_key(pieces.source.path, front.run.model.compute_dtype)
    data, prompts = front.run.data, front.pareto.answers.prompts
    paths = {*data.train, *data.eval}
    if prompts:
        paths.add(prompts)
    for objective in front.pareto.objectives:
        paths |= _files_of(objective)
    for path in sorted(paths):
        local = as_path(path)
        for file in sorted(local.rglob("*")) if local.is_dir() else [local]:
            if file.is_file():
                yield str(file), file_digest(file)


def _files_of(objective: ObjectiveConfig) -> set[str]:
    paths = {*objective.train, *objective.eval}
    if objective.reward and _PATH_OF_FUNCTION in objective.reward:
        paths.add(objective.reward.rpartition(":")[0])
    return paths


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file; of one in a bucket, of what that knows of its bytes."""
    file = as_path(path)
    if is_bucket(file):
        return hashlib.sha256(version_of(file).encode()).hexdigest()
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def answer_settings(front: FrontConfig) -> Settings:
    """How answers are drawn.  Errors: InputError for settings that do not fit together."""
    asked = front.pareto.answers
    return Settings(
        Sampling(asked.temperature),
        samples=asked.samples,
        max_new_tokens=asked.max_new_tokens,
        seed=front.run.train.seed,
        batch_size=asked.batch_size,
    )


def asked_prompts(front: FrontConfig, pieces: Pieces) -> tuple[list[Group], list[np.ndarray]]:
    """The prompts that every policy answers, and their token ids.

    Without `answers.prompts`: the first distinct ones of all objectives' held-out data, taken in
    turns, of at most `data.max_length` tokens, as in training.
    Errors: InputError without any, and for one that leaves no room for an answer.
    """
    asked, spec = front.pareto.answers, pieces.source.spec
    if asked.prompts is None:
        prompts = first_prompts(front, pieces, "eval")
    else:
        read = read_prompts(asked.prompts)[: asked.count]
        prompts = [with_read_pictures(prompt, pieces.processor) for prompt in read]
    ids = prompt_ids(
        prompts,
        pieces.tokenizer,
        vocabulary=spec.vocab,
        positions=spec.longest_sequence,
        max_new_tokens=asked.max_new_tokens,
        processor=pieces.processor,
    )
    return prompts, ids


def first_prompts(front: FrontConfig, pieces: Pieces, side: str) -> list[Group]:
    """The first distinct prompts of all objectives' data, in turns, that leave room for an answer.

    Args:
        side: `train` or `eval`.
    Errors: InputError where there are none.
    """
    asked, data = front.pareto.answers, front.run.data
    positions = pieces.source.spec.longest_sequence
    longest = min(data.max_length or positions, positions - asked.max_new_tokens)

    def without_answers(group: Group) -> Group:
        return with_read_pictures(replace(group, completions=(), columns={}), pieces.processor)

    of_objective = {}
    for objective in front.pareto.objectives:
        paths = getattr(objective, side) or getattr(data, side)
        groups = groups_of(configured(data, paths, side))
        # One after another: pictures are read as far as prompts are asked for.
        of_objective[objective.name] = map(without_answers, groups)
    fitting = (
        prompt
        for prompt in _in_turns(of_objective)
        if len(encode_prompts([prompt], pieces.tokenizer, pieces.processor)[0]) <= longest
    )
    prompts = list(islice(fitting, asked.count))
    if not prompts:
        raise InputError(
            f"prompts of at most data.max_length={data.max_length} tokens, to be answered",
            f"none in the {side} data",
            f"add data.{side} or objectives' {side}, or name a file in answers.prompts",
        )
    return prompts


def _key(prompt: Group) -> str:
    """The same for equal prompts; the same question about another picture is another."""
    return repr((prompt.prompt, [picture.digest for picture in prompt.pictures]))


def _in_turns(of_objective: Mapping[str, Iterable[Group]]) -> Iterator[Group]:
    """The distinct prompts: the first of every objective, then the second, and so on."""
    seen = set()
    for turn in zip_longest(*of_objective.values()):
        for group in turn:
            if group is not None and (key := _key(group)) not in seen:
                seen.add(key)
                yield group
