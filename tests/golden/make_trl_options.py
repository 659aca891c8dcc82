"""Writes trl_options.json: every option of five of TRL's configs, of its scripts' arguments, and its default.

Needs trl 1.16 with torch, and datasets and accelerate: python make_trl_options.py
"""

import dataclasses
import json
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import transformers  # noqa: E402
import trl  # noqa: E402
from trl.experimental.cpo import CPOConfig  # noqa: E402
from trl.experimental.orpo import ORPOConfig  # noqa: E402

CONFIGS = (
    trl.DPOConfig,
    trl.KTOConfig,
    CPOConfig,
    ORPOConfig,
    trl.RewardConfig,
    trl.ModelConfig,
    trl.ScriptArguments,
)


def default(field):
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return None
    value = getattr(value, "value", value)  # of an enum
    return value if isinstance(value, int | float | str | list | dict | None) else str(value)


if __name__ == "__main__":
    options = {cls.__name__: {f.name: default(f) for f in dataclasses.fields(cls)} for cls in CONFIGS}
    versions = {"trl": trl.__version__, "transformers": transformers.__version__}
    text = json.dumps({"versions": versions, "options": options}, indent=1, default=str)
    Path(__file__).with_name("trl_options.json").write_text(text + "\n")
