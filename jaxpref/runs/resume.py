"""Whether a run may go on from what is in its directory."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from jaxpref.config import Config
from jaxpref.errors import InputError
from jaxpref.runs.checkpoint import Checkpoints
from jaxpref.runs.directory import RUN_FILE, is_run
from jaxpref.settings import load_config, to_dict
from jaxpref.step.optim import depends_on_total
from jaxpref.storage.paths import as_path

# Sections, and keys of other sections, in which a run may differ from the one that it continues.
MAY_CHANGE = ("mesh", "log", "out", "compilation_cache")
_MAY_CHANGE_KEYS = {
    "train": (
        "log_every",
        "eval_every",
        "save_every",
        "samples",
        "sample_tokens",
        "save_minutes",
        "keep",
        "resume",
        "micro_rows",
    ),
    "model": ("remat", "attention", "attention_block", "logprob_chunk"),
    "reference": ("cache_dir",),
}
_LENGTH_KEYS = ("train.epochs", "train.max_steps")
"""May change where the learning rate does not depend on the number of steps."""


def resume_step(config: Config, checkpoints: Checkpoints) -> int | None:
    """The step to continue from, or None for a fresh start.

    Errors: InputError when `train.resume` forbids what is there, or the run was made with other
        settings.
    """
    latest, mode = checkpoints.latest(), config.train.resume
    if latest is None:
        if mode == "must":
            raise InputError(
                "a checkpoint to resume from",
                f"none in {checkpoints.directory}",
                "set train.resume=auto",
            )
        return None
    if mode == "never":
        raise InputError(
            "an empty run directory (train.resume=never)",
            f"{checkpoints.directory} has step {latest}",
            "choose another `out`, delete that one, or set train.resume=auto",
        )
    check_unchanged(config)
    return latest


def with_stored(config: Config) -> Config:
    """With what the run in `config.out` settled, if there is one."""
    if not is_run(config.out):
        return config
    return settled_as(config, load_config(as_path(config.out) / RUN_FILE))


def settled_as(config: Config, before: Config) -> Config:
    """With the date and the compute dtype of `before` where the config leaves them open."""
    data, model = config.data, config.model
    if data.date is None:
        data = replace(data, date=before.data.date)
    if model.compute_dtype == "auto":
        model = replace(model, compute_dtype=before.model.compute_dtype)
    return replace(config, data=data, model=model)


def check_unchanged(config: Config) -> None:
    """Errors: InputError when `config.out` was started with other settings."""
    stored = to_dict(load_config(as_path(config.out) / RUN_FILE))
    changed = dict(_differences(stored, to_dict(with_stored(config))))
    if not depends_on_total(config.optim):
        changed = {key: told for key, told in changed.items() if key not in _LENGTH_KEYS}
    if changed:
        fix = "change these settings back, or choose another `out` for a new run"
        if not changed.keys().isdisjoint(_LENGTH_KEYS):
            fix += f"; {how_to_extend(config)}"
        raise InputError(
            f"the settings with which {config.out} was started",
            "changed: " + ", ".join(changed.values()),
            fix,
        )


def how_to_extend(config: Config) -> str:
    """What to do for more steps than the run has, in words."""
    if not depends_on_total(config.optim):
        return "for more steps, raise train.epochs or train.max_steps"
    optim = config.optim
    ends = f"optim.schedule={optim.schedule}"
    if optim.warmup_ratio:
        ends += f" and optim.warmup_ratio={optim.warmup_ratio:g}"
    return (
        f"the learning rate was planned for these steps ({ends}); for more, start a new run from "
        "this one's policy: `jaxpref export`, then model.path or adapter.path; of a model given in "
        "Python, params=result.params"
    )


def check_length(config: Config, step: int, steps: int) -> None:
    """Errors: InputError where the run has trained more steps than are asked for."""
    if step > steps:
        raise InputError(
            f"at least the {step} steps that {config.out} has trained",
            f"train.epochs={config.train.epochs}, train.max_steps={config.train.max_steps}: "
            f"{steps} steps",
            "raise them, or choose another `out` for a new run",
        )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings that decide what is trained and that differ: (key, how it is told)."""
    for section, value in new.items():
        if section in MAY_CHANGE:
            continue
        if not isinstance(value, dict):
            if json.dumps(old[section]) != json.dumps(value):
                yield section, section
            continue
        for key, setting in value.items():
            if key not in _MAY_CHANGE_KEYS.get(section, ()) and old[section][key] != setting:
                name = f"{section}.{key}"
                yield name, f"{name} {old[section][key]!r} -> {setting!r}"
