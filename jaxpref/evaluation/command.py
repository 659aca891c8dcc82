"""`jaxpref eval`: on held-out preferences, or with --reward on answers to prompts."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxpref.errors import InputError
from jaxpref.evaluation.answers import (
    Answers,
    generated_answers,
    is_file_of_answers,
    read_answers,
)
from jaxpref.evaluation.bootstrap import DEFAULT, Bootstrap
from jaxpref.evaluation.calibration import BINS
from jaxpref.evaluation.figures import plot_generations, plot_preferences
from jaxpref.evaluation.generations import evaluate_answers, names_of
from jaxpref.evaluation.preferences import evaluate_preferences
from jaxpref.evaluation.report import Report, is_report, write_rows
from jaxpref.files import check_destination
from jaxpref.generation.completions import Settings
from jaxpref.generation.sampling import Sampling
from jaxpref.processes.together import first_does, is_first
from jaxpref.progress import progress
from jaxpref.rewards import open_reward
from jaxpref.runs.directory import is_run, load_run
from jaxpref.settings import for_all_models
from jaxpref.storage.paths import as_path

EPILOG = """\
without --reward: accuracy, margins, log-probs, KL estimates, lengths and
calibration on held-out data
    jaxpref eval runs/demo
    jaxpref eval runs/demo --step latest data.eval=[other.jsonl]

with --reward: rewards of answers to prompts, and win rates against another
policy
    jaxpref eval runs/demo --prompts prompts.jsonl --reward judge.py:polite \\
        --against base-model
    jaxpref eval runs/demo --prompts prompts.jsonl --reward runs/judge \\
        --temperature 1 --samples 4
    jaxpref eval ours.jsonl --against theirs.jsonl --reward runs/dpo \\
        --out compared.json
"""
_GENERATION = {
    "max_new_tokens": (int, "tokens of an answer at most"),
    "temperature": (float, "0: the most likely token each time"),
    "top_k": (int, "draw among the k most likely tokens"),
    "top_p": (float, "draw among the most likely tokens that make up a probability of p"),
    "min_p": (float, "draw among tokens at least p times as likely as the most likely one"),
    "samples": (int, "answers to every prompt"),
    "batch_size": (int, "rows that are decoded together"),
}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "source",
        metavar="RUN",
        help="directory of a run; with --reward also a model, or a .jsonl file of answers",
    )
    add("--step", help="of a run: best (default), latest or a number")
    add(
        "--out",
        metavar="FILE.json",
        help="default: in RUN/eval; groups or answers (.jsonl) and figures (.png) beside",
    )
    add(
        "--resamples",
        type=int,
        default=DEFAULT.resamples,
        help=f"of the bootstrap (default {DEFAULT.resamples})",
    )
    add(
        "--level",
        type=float,
        default=DEFAULT.level,
        help=f"of the intervals (default {DEFAULT.level})",
    )
    add(
        "--seed",
        type=int,
        default=DEFAULT.seed,
        help="of the bootstrap and of sampled answers (default 0)",
    )
    add("--bins", type=int, help=f"of the reliability diagram (default {BINS})")
    text = parser.add_argument_group("generated text")
    text.add_argument(
        "--reward",
        action="append",
        default=[],
        metavar="REWARD",
        help="module:function or FILE.py:function of (prompt, answer); a run (its reward head, or "
        "its implicit reward); a directory with a reward model; may be given several times",
    )
    text.add_argument(
        "--prompts", metavar="FILE", help=".txt (one per line), or rows with `prompt` or `messages`"
    )
    text.add_argument(
        "--against", metavar="OTHER", help="another run, model or .jsonl file of answers"
    )
    for name, (kind, meaning) in _GENERATION.items():
        text.add_argument(f"--{name.replace('_', '-')}", type=kind, help=meaning)
    add(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="as data.eval=[other.jsonl] or mesh.data=8",
    )


def run(options: argparse.Namespace, console: Console) -> None:
    """Evaluates, writes JSON, rows and figures, and prints the table.

    Of several processes only the first writes and prints.
    """
    bootstrap = Bootstrap(options.resamples, options.level, options.seed)
    if options.reward:
        _on_answers(options, bootstrap, console)
    else:
        _on_preferences(options, bootstrap, console)


def _on_preferences(options: argparse.Namespace, bootstrap: Bootstrap, console: Console) -> None:
    given = [
        f"--{name.replace('_', '-')}"
        for name in ("prompts", "against", *_GENERATION)
        if getattr(options, name) is not None
    ]
    if given:
        raise InputError(
            "--reward, by which answers are scored",
            f"{', '.join(given)} without it",
            "add --reward, or remove these options to evaluate on held-out preferences",
        )
    _given_out(options)  # before anything is computed
    sets = load_run(options.source, options.overrides).data.eval_sets
    for name in sets or [""]:
        _on_set(name, options, bootstrap, console)


def _on_set(name: str, options: argparse.Namespace, bootstrap: Bootstrap, console: Console) -> None:
    """One set of held-out data; a single one has the name ""."""
    with progress(console, show=is_first()) as watch:
        preferences = evaluate_preferences(
            options.source,
            step=options.step or "best",
            overrides=options.overrides,
            of_set=name,
            bootstrap=bootstrap,
            bins=BINS if options.bins is None else options.bins,
            watch=watch,
        )
    report = preferences.report
    data, step = report.about["data"], report.about["step"]
    of_data = [name] if name else [as_path(path).stem for path in data]
    file = "_".join(["preferences", *of_data, str(step)])
    to = _given_out(options, *data) or as_path(options.source) / "eval" / f"{file}.json"
    if name and options.out:
        to = to.with_stem(f"{to.stem}_{name}")
    if is_first():
        written = [report.write(to), write_rows(preferences.groups, to.with_suffix(".jsonl"))]
        png = plot_preferences(preferences, to.with_suffix(".png"))
        if png is not None:
            written.append(png)
        _show(report, written, console)


def _on_answers(options: argparse.Namespace, bootstrap: Bootstrap, console: Console) -> None:
    if options.bins is not None:
        raise InputError(
            "--bins with held-out preferences alone",
            "--bins and --reward",
            "remove --bins: answers have no reliability diagram",
        )
    _check_used(options)
    to = _destination(options)
    rewards = [
        open_reward(what, overrides=for_all_models(options.overrides)) for what in options.reward
    ]
    names_of(rewards)  # before anything is generated
    step = options.step or "best"
    against = None
    if options.against is not None and is_file_of_answers(options.against):
        against = read_answers(options.against)  # told before anything is generated
    answers = _answers(options.source, options, step, console)
    if options.against is not None and against is None:
        against = _answers(options.against, options, "best", console)
    about = {
        "step": step,
        "prompts_from": options.prompts,
        "generation": _generation_options(options),
        "seed": options.seed,
    }
    generations = evaluate_answers(
        answers, rewards, against=against, bootstrap=bootstrap, about=about
    )
    if is_first():
        written = [
            generations.report.write(to),
            write_rows(generations.rows, to.with_suffix(".jsonl")),
            plot_generations(generations, to.with_suffix(".png")),
        ]
        _show(generations.report, written, console)


def _check_used(options: argparse.Namespace) -> None:
    """Errors: InputError for options about answers that are generated, where files have them."""
    sides = [options.source, *([options.against] if options.against else [])]
    unused = [] if options.step is None or not is_file_of_answers(options.source) else ["step"]
    if all(map(is_file_of_answers, sides)):
        given = ("prompts", *_GENERATION)
        unused += [name for name in given if getattr(options, name) is not None]
    if unused:
        raise InputError(
            "no options about answers that are generated, where files have the answers",
            f"{', '.join('--' + name.replace('_', '-') for name in unused)} with "
            f"{' and '.join(sides)}",
            "remove these options, or name a run or a model in place of the file",
        )


def _generation_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options of generation that were given."""
    given = {name: getattr(options, name) for name in _GENERATION}
    return {name: value for name, value in given.items() if value is not None}


def _given_out(options: argparse.Namespace, *more: str) -> Path | None:
    """--out, beside which rows and figure are written; None where it was not given.

    Args:
        more: further files that are read.
    Errors: InputError where what is written would replace what is read, or a file that is no part
        of an earlier report.
    """
    if not options.out:
        return None
    to = as_path(options.out)
    if to.suffix != ".json":
        raise InputError("--out FILE.json", options.out, "give it a name that ends in .json")
    sources = (options.source, options.against, options.prompts, *more)
    read = [path for path in sources if path]

    def check() -> None:
        again = is_report(to)

        def foreign(path: Path) -> list[str]:
            return [] if again and path.is_file() else [path.name]

        for written in (to, to.with_suffix(".jsonl"), to.with_suffix(".png")):
            check_destination(
                written,
                "--out with new names for report, rows and figure, or those of an earlier report",
                sources=read,
                foreign=foreign,
            )

    first_does(check)
    return to


def _destination(options: argparse.Namespace) -> Path:
    if (given := _given_out(options)) is not None:
        return given
    if not is_run(options.source):
        raise InputError(
            "--out FILE.json, where the policy is no run",
            f"{options.source} without it",
            "add --out FILE.json",
        )
    against = f"_against_{as_path(options.against).stem}" if options.against else ""
    prompts = as_path(options.prompts).stem if options.prompts else "prompts"
    file = f"answers_{prompts}_{options.step or 'best'}{against}.json"
    return as_path(options.source) / "eval" / file


def _answers(
    source: str, options: argparse.Namespace, step: str | int, console: Console
) -> Answers:
    """Those of a file, or generated now."""
    if is_file_of_answers(source):
        return read_answers(source)
    if options.prompts is None:
        raise InputError(
            "--prompts FILE, for a policy to answer",
            f"{source} without it",
            "add --prompts FILE, or name a .jsonl file of answers",
        )
    given = _generation_options(options)
    sampling = Sampling(**{name: given.pop(name) for name in _SAMPLING if name in given})
    settings = Settings(sampling, seed=options.seed, **given)

    with progress(console, show=is_first()) as watch:
        return generated_answers(
            source,
            options.prompts,
            settings,
            step=step,
            overrides=for_all_models(options.overrides),
            watch=watch,
        )


def _show(report: Report, written: Iterable[Path], console: Console) -> None:
    report.show(console)
    console.print("written: " + ", ".join(map(str, written)), highlight=False)
