"""Rewards of answers: by functions, rules, data columns, reward models and policies."""

from collections.abc import Sequence

from jaxpref.data.rewrite import Source, read_pairs
from jaxpref.errors import InputError
from jaxpref.rewards.calibrate import calibrate, fit_temperature
from jaxpref.rewards.classifier import is_classifier
from jaxpref.rewards.functions import function_reward
from jaxpref.rewards.models import adapter_reward, classifier_reward, run_reward
from jaxpref.rewards.reward import Limits, Reward
from jaxpref.rewards.rules import column_reward, rule_reward
from jaxpref.rewards.scalarise import Scalariser, scalarised
from jaxpref.rewards.scoring import ScoreReport, score_data
from jaxpref.runs.directory import is_run
from jaxpref.storage.paths import as_path

__all__ = [
    "Limits",
    "Reward",
    "Scalariser",
    "ScoreReport",
    "Source",
    "adapter_reward",
    "calibrate",
    "classifier_reward",
    "column_reward",
    "fit_temperature",
    "function_reward",
    "open_reward",
    "read_pairs",
    "rule_reward",
    "run_reward",
    "scalarised",
    "score_data",
]


def open_reward(what: str, *, step: str | int = "best", overrides: Sequence[str] = ()) -> Reward:
    """The reward that a text names.

    Args:
        what: a run (its scalar head, or its implicit reward), a directory with a reward model,
            `adapter:DIR,base=MODEL,beta=0.1` (the implicit reward of a PEFT adapter), `rule:NAME`,
            `column:NAME` (a score that the data has), or `module:function`, `FILE.py:function`.
        step: of a run: `best`, `latest` or a number.
        overrides: for a run or a model, as `mesh.data=8`.
    Errors: InputError when it is none of these.
    """
    kind, colon, rest = what.partition(":")
    if colon and kind == "rule":
        return rule_reward(rest)
    if colon and kind == "column":
        return column_reward(rest)
    if colon and kind == "adapter":
        return _adapter(rest, overrides)
    if is_run(what):
        return run_reward(what, step=step, overrides=overrides)
    if is_classifier(what):
        return classifier_reward(what, overrides=overrides)
    if ":" in what and "://" not in what:
        return function_reward(what)
    is_model = as_path(what).is_dir()
    raise InputError(
        "a run, a directory with a reward model, adapter:DIR,base=MODEL,beta=0.1, rule:NAME, "
        "column:NAME, module:function or FILE.py:function",
        f"{what}: " + ("a model without a reward head" if is_model else "none of these"),
        "name one of these; a run with a reference has an implicit reward, its export alone has "
        "none",
    )


def _adapter(text: str, overrides: Sequence[str]) -> Reward:
    path, *items = text.split(",")
    given = {}
    for item in items:
        key, _, value = item.partition("=")
        given[key] = value
    try:
        if set(given) != {"base", "beta"} or not path:
            raise ValueError("it needs a directory, base and beta")
        beta = float(given["beta"])
    except ValueError as error:
        raise InputError(
            "adapter:DIR,base=MODEL,beta=NUMBER",
            f"adapter:{text}: {error}",
            "name the adapter's directory, its base model, and the beta that it was trained with",
        ) from error
    return adapter_reward(path, given["base"], beta=beta, overrides=overrides)
