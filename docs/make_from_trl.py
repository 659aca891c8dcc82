"""Writes the tables of docs/from_trl.md, of what jaxpref knows of TRL's options.

Run it after changing those.
A test compares the page with what this makes, and the options with a list that was made of TRL.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxpref.settings import keys
from jaxpref.settings.other_trainers import OTHERWISE, RENAMED, answer

ROOT = Path(__file__).parents[1]
LISTED = json.loads((ROOT / "tests/golden/trl_options.json").read_text())
"""Class -> option -> default, by tests/golden/make_trl_options.py."""
CONFIGS = ("DPOConfig", "KTOConfig", "CPOConfig", "ORPOConfig", "RewardConfig")
COMMAND = ("ModelConfig", "ScriptArguments")

PAGE = ROOT / "docs/from_trl.md"
DEFAULTS_BEGIN, DEFAULTS_END = "<!-- defaults: made -->\n", "<!-- defaults: end -->\n"
OPTIONS_BEGIN = "<!-- options: made -->\n"

DIFFERENT = {
    "num_train_epochs": "one pass is the field's practice for preferences",
    "seed": "",
    "save_steps": "every ten minutes (`train.save_minutes`) and at the end",
    "save_total_limit": "the latest two and the best",
    "lora_r": "no adapter unless it is asked for",
    "lora_alpha": "the rank, a scale of 1",
    "lora_dropout": "",
    "project": "",
}
"""Option -> why its default here is another; a test finds them."""
SAME_MEANING = {"max_steps", "warmup_steps", "ref_model_sync_steps"}
"""Options whose default is written otherwise and means the same: not limited, none, off."""


def page() -> str:
    """The whole of docs/from_trl.md: what is written there by hand, and what is made."""
    written = PAGE.read_text(encoding="utf-8")
    head, rest = written.split(DEFAULTS_BEGIN)
    _, rest = rest.split(DEFAULTS_END)
    by_hand, _ = rest.split(OPTIONS_BEGIN)
    defaults = f"{DEFAULTS_BEGIN}{''.join(_defaults())}{DEFAULTS_END}"
    return f"{head}{defaults}{by_hand}{OPTIONS_BEGIN}{''.join(_options())}".rstrip() + "\n"


def options() -> dict[str, list[str]]:
    """Option -> the classes that have it, in TRL's order."""
    found: dict[str, list[str]] = {}
    for name in (*CONFIGS, *COMMAND):
        for option in LISTED["options"][name]:
            found.setdefault(option, []).append(name)
    return found


def ours(option: str) -> str | None:
    """The one key that an option is here; None where it is not one key."""
    if option in RENAMED:
        key = RENAMED[option]
        return key if " " not in key else None
    if option in OTHERWISE:
        return None
    same = [key for key, _, _ in keys() if key.rpartition(".")[2] == option]
    return same[0] if len(same) == 1 and option not in ("alpha", "optim", "fsdp") else None


def comparable() -> Iterator[tuple[str, Any, str, Any]]:
    """(option, TRL's default, our key, our default) where both are numbers or one is left out."""
    defaults = {key: value for key, value, _ in keys()}
    for option, classes in options().items():
        key = None if option in SAME_MEANING else ours(option)
        theirs = LISTED["options"][classes[0]][option]
        if (
            key is None
            or key not in defaults
            or isinstance(theirs, bool | str)
            and option != "project"
        ):
            continue
        if theirs is not None or option == "save_total_limit":
            yield option, theirs, key, defaults[key]


def _defaults() -> Iterator[str]:
    yield "| TRL | its default | here | default |\n|---|---|---|---|\n"
    for option, theirs, key, default in comparable():
        if theirs != default and option in DIFFERENT:
            why = f"; {DIFFERENT[option]}" if DIFFERENT[option] else ""
            yield f"| `{option}` | {_shown(theirs)} | `{key}` | {_shown(default)}{why} |\n"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _options() -> Iterator[str]:
    for title, classes in (
        ("## Options of the trainers", CONFIGS),
        ("## Options of the scripts", COMMAND),
    ):
        yield f"{title}\n\n"
        if classes == CONFIGS:
            yield "Those of DPOConfig, KTOConfig, CPOConfig, ORPOConfig and RewardConfig, of TRL "
            yield f"{LISTED['versions']['trl']}; without a class, of all five.\n\n"
        yield "| TRL | here |\n|---|---|\n"
        for option, having in options().items():
            own = [name.removesuffix("Config") for name in having if name in classes]
            if own:
                of = "" if len(own) == 5 or classes == COMMAND else f" ({', '.join(own)})"
                yield f"| `{option}`{of} | {_here(option)} |\n"
        yield "\n"


def _here(option: str) -> str:
    if option in _OWN:
        return _OWN[option]
    key = ours(option)
    if key is not None:
        return f"`{key}`"
    said = answer(option)
    if said is None:
        raise SystemExit(f"{option}: nothing is known of it (jaxpref/settings/other_trainers.py)")
    return said.removeprefix("here it is ")


_OWN = {
    "optim": "`optim.name`: adamw, adafactor, lion, muon, sgd",
    "fsdp": "`mesh.fsdp`, a number of devices; `mesh: auto`, all of them",
    "alpha": "set it in the objective: [{name: alphapo, alpha: 0.25}]",
    "lr_scheduler_type": "`optim.schedule`: linear, cosine, constant, polynomial, "
    "cosine_restarts, wsd, inverse_sqrt",
    "warmup_steps": "`optim.warmup_steps`; a share below 1 is `optim.warmup_ratio`",
}


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
