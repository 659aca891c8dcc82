"""`jaxpref score`: its options, and what it prints."""

import argparse
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from jaxpref.data.rewrite import add_source_arguments, source_of
from jaxpref.data.truncation import TRUNCATIONS
from jaxpref.errors import InputError
from jaxpref.processes.together import is_first
from jaxpref.progress import progress
from jaxpref.rewards import Reward, open_reward
from jaxpref.rewards.cache import CACHE_DIR, cached
from jaxpref.rewards.calibrate import calibrate
from jaxpref.rewards.reward import Limits
from jaxpref.rewards.rules import RULES_HELP
from jaxpref.rewards.scalarise import read_scalariser
from jaxpref.rewards.scoring import CHUNK, score_data
from jaxpref.runs.directory import is_run
from jaxpref.settings import for_all_models, named
from jaxpref.storage.paths import as_path

EPILOG = f"""rewards
    a run                            its scalar head, or its implicit reward
                                     beta * log(pi / ref)
    adapter:DIR,base=MODEL,beta=0.1  the implicit reward of a PEFT adapter
    a directory                      a reward model in Hugging Face form
    module:function, FILE.py:function
    column:NAME                      a score that the data has already
{RULES_HELP}

    jaxpref score pairs.jsonl --reward good=runs/good \\
        --reward brief=rule:words --out scored.jsonl
    jaxpref score pairs.jsonl --reward kind=rule:vader \\
        --calibrate kind_pairs.jsonl --out new.jsonl
    jaxpref score scored.jsonl --scalarise both=worst_case:good=0.7,brief=0.3 \\
        --out both.jsonl"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    # `key=value` may stand among DATA (`_paths` tells them apart), or behind flags.
    parser.set_defaults(overrides=[])
    add(
        "data",
        nargs="+",
        metavar="DATA",
        help="as data.train may name; all are written into one file",
    )
    add("--out", required=True, metavar="FILE", help=".jsonl or .jsonl.gz; must not exist")
    add(
        "--reward",
        action="append",
        default=[],
        metavar="NAME=WHAT",
        help="a score and the reward that gives it",
    )
    add(
        "--calibrate",
        action="append",
        default=[],
        metavar="NAME=PAIRS",
        help="fit its temperature on these pairs",
    )
    add(
        "--scalarise",
        action="append",
        default=[],
        metavar="NAME=KIND:A=0.7,B=0.3",
        help="a score made of others",
    )
    add("--replace", action="store_true", help="write over scores of the same names")
    add("--step", default="best", help="of runs: best (default), latest or a number")
    add_source_arguments(parser)
    add(
        "--max-length",
        type=int,
        help="tokens of prompt and one answer for models, as in the training to come",
    )
    add(
        "--truncation",
        default="keep_start",
        choices=TRUNCATIONS,
        help="beyond it (default keep_start)",
    )
    add(
        "--chunk",
        type=int,
        default=CHUNK,
        metavar="ROWS",
        help=f"scored and kept together (default {CHUNK})",
    )
    add(
        "--cache",
        default=CACHE_DIR,
        metavar="DIR",
        help="of kept scores (default jaxpref/scores among the user's caches); none: keep nothing",
    )


def run(options: argparse.Namespace, console: Console) -> None:
    source = source_of(options, _paths(options.data))
    limits = Limits(options.max_length, options.truncation)
    among_data = [item for item in options.data if item not in source.paths]
    overrides = for_all_models([*options.overrides, *among_data])
    rewards, pairs = named(options.reward, "--reward"), _calibration(options)
    if options.step != "best" and not any(map(is_run, rewards.values())):
        raise InputError(
            "--step with the run of a --reward",
            f"--step {options.step} with {', '.join(rewards.values()) or 'no reward'}",
            "remove --step, or name a run",
        )
    cache = None if options.cache == "none" else options.cache
    if options.chunk < 1:
        raise InputError("--chunk of at least 1", str(options.chunk), f"{CHUNK} is usual")

    def make(name: str) -> Reward:
        reward = open_reward(rewards[name], step=options.step, overrides=overrides)
        if name not in pairs:
            return reward
        reward = reward if cache is None else cached(reward, cache)
        calibrated = calibrate(reward, source_of(options, [pairs[name]]), limits=limits)
        console.print(
            f"{name}: temperature {calibrated.temperature:.5g} "
            f"(standard error {calibrated.temperature_error:.2g}), fitted on {pairs[name]}",
            highlight=False,
        )
        return calibrated

    scalarisers = {
        name: read_scalariser(text)
        for name, text in named(options.scalarise, "--scalarise").items()
    }
    with progress(console, show=is_first()) as watch:
        report = score_data(
            source,
            {name: partial(make, name) for name in rewards},
            options.out,
            limits=limits,
            scalarise=scalarisers,
            replace=options.replace,
            cache=cache,
            chunk=options.chunk,
            watch=watch,
        )
    console.print(str(report), highlight=False)


def _paths(data: Sequence[str]) -> list[str]:
    """Those that are no `key=value`, which may stand between them."""
    return [item for item in data if "=" not in item or as_path(item).exists()]


def _calibration(options: argparse.Namespace) -> dict[str, str]:
    """Score -> its pairs; the name may be left out where there is one reward."""
    rewards = named(options.reward, "--reward")
    items = list(options.calibrate)
    if len(rewards) == 1:
        (only,) = rewards
        items = [item if item.startswith(f"{only}=") else f"{only}={item}" for item in items]
    pairs = named(items, "--calibrate")
    for name in pairs:
        if name not in rewards:
            raise InputError(
                f"--calibrate with a name of --reward: {', '.join(rewards) or 'none'}",
                name,
                "write --calibrate NAME=PAIRS with one of these names",
            )
    return pairs
