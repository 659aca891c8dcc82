"""What a front is made from: checked before anything is trained, and held against later when it
goes on."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

from omegaconf import OmegaConf

from jaxpref.data.encode import encode_prompts
from jaxpref.data.rewrite import configured, groups_of
from jaxpref.errors import InputError
from jaxpref.generation.completions import Settings
from jaxpref.generation.prompts import prompt_ids, read_prompts
from jaxpref.generation.sampling import Sampling
from jaxpref.pareto.config import FrontConfig, front_settings, load_front_config
from jaxpref.rewards import open_reward
from jaxpref.runs.build import Pieces, build
from jaxpref.runs.digests import weights_key
from jaxpref.types import Group

CONFIG = "front.yaml"
INPUTS = "inputs.json"
_PATH_OF_FUNCTION = ".py:"


def start_front(front: FrontConfig, out: Path) -> None:
    """Checks a new front and writes down what it is made from, or compares that with what stands
    there.

    Errors: InputError for settings, prompts, rewards and judges that cannot be used, and for a
        directory that was started with other settings or from other files.
    """
    stored, digests = out / CONFIG, out / INPUTS
    if stored.is_file() and load_front_config(stored) != front:
        raise InputError(
            f"the settings with which {out} was started",
            f"{stored} has others",
            "restore them, or choose another `out` for a new front",
        )
    pieces = build(front.run)
    found = dict(_digests(front, pieces))
    if digests.is_file():
        before = json.loads(digests.read_text())
        changed = [
            name for name in sorted({*before, *found}) if before.get(name) != found.get(name)
        ]
        if changed:
            raise InputError(
                f"the files from which {out} was started",
                f"changed since: {', '.join(changed)}",
                "restore them, or choose another `out` for a new front",
            )
        return
    asked_prompts(front, pieces)
    answer_settings(front)
    for what in {
        what
        for objective in front.pareto.objectives
        for what in (objective.reward, objective.judge)
        if what
    }:
        open_reward(what)
    out.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(front_settings(front)), stored)
    digests.write_text(json.dumps(found, indent=1) + "\n")


def _digests(front: FrontConfig, pieces: Pieces) -> Iterator[tuple[str, str]]:
    """Of the model, of local data and of Python files that training depends on.

    What a hub or a package has is not looked at, nor a reward model.  Judges are apart
    (`file_digest`): one that failed on an answer may be mended when everything is trained.
    """
    yield front.run.model.path, weights_key(pieces.source.path, front.run.model.compute_dtype)
    data, pareto = front.run.data, front.pareto
    paths = {*data.train, *data.eval, *filter(None, [pareto.answers.prompts])}
    for objective in pareto.objectives:
        paths |= {*objective.train, *objective.eval}
        paths |= (
            {objective.reward.rpartition(":")[0]}
            if _PATH_OF_FUNCTION in (objective.reward or "")
            else set()
        )
    for path in sorted(paths):
        local = Path(path).expanduser()
        for file in sorted(local.rglob("*")) if local.is_dir() else [local]:
            if file.is_file():
                yield str(file), file_digest(file)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as stream:
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


def asked_prompts(front: FrontConfig, pieces: Pieces) -> tuple[list[Group], list]:
    """The prompts that every policy answers, and their token ids.

    Without `answers.prompts`: the first distinct ones of all objectives' held-out data, taken in
    turns, of at most `data.max_length` tokens, as in training.
    Errors: InputError without any, and for one that leaves no room for an answer.
    """
    asked, data = front.pareto.answers, front.run.data
    spec = pieces.source.spec
    room = {
        "vocabulary": spec.vocab,
        "positions": spec.longest_sequence,
        "max_new_tokens": asked.max_new_tokens,
    }
    if asked.prompts is not None:
        prompts = read_prompts(asked.prompts)[: asked.count]
        return prompts, prompt_ids(prompts, pieces.tokenizer, **room)
    held_out = {
        objective.name: [
            replace(group, completions=(), columns={})
            for group in groups_of(configured(data, objective.eval or data.eval, "eval"))
        ]
        for objective in front.pareto.objectives
    }
    most = min(data.max_length or room["positions"], room["positions"] - asked.max_new_tokens)
    fit = (
        prompt
        for prompt in _in_turns(held_out)
        if len(encode_prompts([prompt], pieces.tokenizer)[0]) <= most
    )
    prompts = list(islice(fit, asked.count))
    if not prompts:
        raise InputError(
            f"held-out prompts of at most data.max_length={data.max_length} tokens, which are answered",
            "none",
            "add data.eval or objectives' eval, or name a file in answers.prompts",
        )
    return prompts, prompt_ids(prompts, pieces.tokenizer, **room)


def _in_turns(held_out: Mapping[str, list[Group]]) -> Iterator[Group]:
    """The distinct prompts: the first of every objective, then the second, and so on."""
    seen = set()
    for i in range(max(map(len, held_out.values()), default=0)):
        for groups in held_out.values():
            key = repr(groups[i].prompt) if i < len(groups) else None
            if key is not None and key not in seen:
                seen.add(key)
                yield groups[i]
