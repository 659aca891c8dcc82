"""Whether a run may go on from what is in its directory."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxpref.config import Config
from jaxpref.errors import InputError
from jaxpref.runs.checkpoint import Checkpoints
from jaxpref.runs.directory import RUN_FILE, is_run
from jaxpref.settings import load_config, to_dict

# Sections, and keys of other sections, in which a run may differ from the one that it continues.
_MAY_CHANGE = ("mesh", "log", "out")
_MAY_CHANGE_KEYS = {
    "train": ("log_every", "eval_every", "save_every", "keep", "resume", "micro_rows"),
    "model": ("remat", "attention", "attention_block", "logprob_chunk"),
    "reference": ("cache_dir",),
}


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


def with_stored_date(config: Config) -> Config:
    """With the date of the run in `config.out`, if there is one, where the config names none."""
    if config.data.date is not None or not is_run(config.out):
        return config
    day = load_config(Path(config.out) / RUN_FILE).data.date
    return replace(config, data=replace(config.data, date=day))


def check_unchanged(config: Config) -> None:
    """Errors: InputError when `config.out` was started with other settings."""
    stored = to_dict(load_config(Path(config.out) / RUN_FILE))
    changed = _differences(stored, to_dict(with_stored_date(config)))
    if changed:
        raise InputError(
            f"the settings with which {config.out} was started",
            "changed: " + ", ".join(changed),
            "change these settings back, or choose another `out` for a new run",
        )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Settings that decide what is trained and that differ."""
    changed = []
    for section, value in new.items():
        if section in _MAY_CHANGE:
            continue
        if not isinstance(value, dict):
            if json.dumps(old[section]) != json.dumps(value):
                changed.append(section)
            continue
        for key, setting in value.items():
            if key not in _MAY_CHANGE_KEYS.get(section, ()) and old[section][key] != setting:
                changed.append(f"{section}.{key} {old[section][key]!r} -> {setting!r}")
    return changed
