"""`jaxpref condition`: a preference into the prompts of a data set, or of a file of prompts."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxpref.conditioning import (
    RIC_MAPS,
    ConditionReport,
    ControllableDPO,
    ScoreStatistics,
    cdpo_prompt,
    cdpo_rows,
    instructed,
    metaalign_rows,
    ric_prompt,
    ric_rows,
    ric_targets,
    score_statistics,
)
from jaxpref.conditioning.prompts import Prompt
from jaxpref.data.pictures.rows import as_column
from jaxpref.data.rewrite import (
    Source,
    add_source_arguments,
    check_out,
    source_of,
    write_lines,
)
from jaxpref.errors import InputError
from jaxpref.files import check_destination, whole_file
from jaxpref.settings import named, numbers
from jaxpref.storage.paths import as_path
from jaxpref.types import Group

EPILOG = """for training, from data with scores (`jaxpref score`)
    jaxpref condition scored.jsonl --as cdpo --scores helpful,brief \\
        --control brief --out pairs.jsonl
    jaxpref condition scored.jsonl --as ric --scores helpful,brief \\
        --out answers.jsonl               # and answers.statistics.json
    jaxpref condition scored.jsonl --as metaalign \\
        --preference helpful="Be helpful." --preference brief="Be brief." \\
        --out pairs.jsonl

for answers, from prompts as `jaxpref generate` takes them
    jaxpref condition prompts.jsonl --as cdpo --target brief=5 --out asked.jsonl
    jaxpref condition prompts.jsonl --as ric --weights helpful=0.7,brief=0.3 \\
        --statistics answers.statistics.json --out asked.jsonl
    jaxpref condition prompts.jsonl --as metaalign --words "Be brief." \\
        --out asked.jsonl"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "data",
        nargs="+",
        metavar="DATA",
        help="as data.train may name; for answers, prompts as generate takes them",
    )
    add(
        "--as",
        dest="method",
        required=True,
        choices=["cdpo", "ric", "metaalign"],
        help="how the preference is put",
    )
    add("--out", required=True, metavar="FILE", help=".jsonl or .jsonl.gz; must not exist")
    add(
        "--scores",
        metavar="A,B",
        help="cdpo, ric: the scores that count, in the order of their tags",
    )
    _cdpo_arguments(parser)
    _ric_arguments(parser)
    add(
        "--preference",
        action="append",
        default=[],
        metavar="SCORE=WORDS",
        help="metaalign: words for a score",
    )
    add("--words", help="metaalign, for answers: the preference")
    add_source_arguments(parser)


def _cdpo_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--control", metavar="A,B", help="cdpo: the scores that are asked for (default: all)")
    add(
        "--subsets",
        action="store_true",
        default=None,
        help="cdpo: ask for a random part of them in every row",
    )
    add(
        "--strength",
        type=float,
        help="cdpo: lambda, of the distance from what is asked for (default 1)",
    )
    add(
        "--copies",
        type=int,
        help="cdpo: of every row, each with its own draw (default 1)",
    )
    add("--digits", type=int, help="cdpo: decimals of what is asked for (default 1)")
    add("--seed", type=int, help="cdpo: of the draws (default 0)")
    add(
        "--target",
        action="append",
        default=[],
        metavar="SCORE=VALUE",
        help="cdpo, for answers: what to ask for",
    )


def _ric_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--ending",
        metavar="TEXT",
        help="ric: tags go before it where a text prompt ends so",
    )
    add("--weights", metavar="A=0.7,B=0.3", help="ric, for answers: of the objectives")
    add(
        "--statistics",
        metavar="FILE",
        help="ric, for answers or held-out data: what conditioning the training data wrote",
    )
    add(
        "--map",
        choices=RIC_MAPS,
        help="ric, for answers: from weights to scores (default linf)",
    )


def run(options: argparse.Namespace, console: Console) -> None:
    """Writes the rows and prints how many.  Of several processes the first does it alone."""
    # Here: they load jax, for which the help of the command need not wait.
    import jax

    from jaxpref.processes.together import first_does

    if jax.distributed.is_initialized():
        first_does(lambda: _run(options, console))
    else:  # no device is looked for, which another process may have
        _run(options, console)


def _run(options: argparse.Namespace, console: Console) -> None:
    out, source = check_out(options.out, options.data), source_of(options, options.data)
    _check_flags(options)
    change = _change_of_prompts(options)
    if change is not None:
        written = _condition_prompts(source, out, change)
        console.print(f"{written} prompts written to {out}", highlight=False)
        return
    report = ConditionReport()
    write_lines(out, _training_rows(options, source, out, report))
    console.print(f"{out}: {report}", highlight=False)


_FLAGS = {
    "cdpo": (("scores", "control", "subsets", "strength", "copies", "digits", "seed"), ("target",)),
    "ric": (("scores", "statistics", "ending"), ("weights", "statistics", "ending", "map")),
    "metaalign": (("preference",), ("words",)),
}
"""Method -> the flags that it reads to make training data, and those for prompts; the first of the
latter says which of the two it is."""


def _check_flags(options: argparse.Namespace) -> None:
    """Errors: InputError for flags that the method does not read, or not beside the others."""
    training, asking = _FLAGS[options.method]
    for_prompts = bool(getattr(options, asking[0]))
    read = asking if for_prompts else training
    if options.method == "ric" and options.statistics and not for_prompts:
        read = tuple(name for name in read if name != "scores")  # they stand in the statistics
    known = {name for flags in _FLAGS.values() for both in flags for name in both}
    unread = sorted(name for name in known - set(read) if getattr(options, name) not in (None, []))
    if unread:
        ways = f"--as {options.method}" + (f" with --{asking[0]}" if for_prompts else "")
        raise InputError(
            f"{ways}: flags out of {', '.join('--' + name for name in read)}",
            ", ".join("--" + name for name in unread),
            "remove these flags, or choose the way that they belong to",
        )


def _training_rows(
    options: argparse.Namespace, source: Source, out: Path, report: ConditionReport
) -> Iterator[dict[str, Any]]:
    if options.method == "metaalign":
        preferences = named(options.preference, "--preference")
        if not preferences:
            raise _missing("--preference SCORE=WORDS, or --words for prompts")
        return metaalign_rows(source, preferences, report)
    if options.method == "ric" and options.statistics:
        statistics = _read_statistics(options.statistics)
        return ric_rows(source, statistics, report, ending=options.ending or "")
    scores = _list(options.scores)
    if not scores:
        for_prompts = "--target" if options.method == "cdpo" else "--weights"
        raise _missing(f"--scores A,B, or {for_prompts} for prompts")
    if options.method == "cdpo":
        draws = ("subsets", "strength", "copies", "digits", "seed")
        given = {name: getattr(options, name) for name in draws}
        how = ControllableDPO(
            scores,
            _list(options.control) or scores,
            **{name: value for name, value in given.items() if value is not None},
        )
        return cdpo_rows(source, how, report)
    to = check_destination(
        out.with_name(out.name.removesuffix(".gz").removesuffix(".jsonl") + ".statistics.json"),
        "a new file for the statistics, beside the rows",
        sources=source.paths,
        foreign=_no_statistics,
    )
    statistics = score_statistics(source, scores)
    _write_statistics(to, statistics)
    return ric_rows(source, statistics, report, ending=options.ending or "")


def _change_of_prompts(options: argparse.Namespace) -> Callable[[Prompt], Prompt] | None:
    """What is done to prompts that wait for answers; None where training data is made."""
    if options.method == "cdpo" and options.target:
        targets = numbers(named(options.target, "--target"))
        return lambda prompt: cdpo_prompt(prompt, targets)
    if options.method == "ric" and options.weights:
        weights = numbers(named(options.weights.split(","), "--weights"))
        scores = _targets(weights, options.statistics, options.map or "linf")
        return lambda prompt: ric_prompt(prompt, scores, ending=options.ending or "")
    if options.method == "metaalign" and options.words:
        return lambda prompt: instructed(prompt, options.words)
    return None


def _targets(weights: Mapping[str, float], path: str | None, method: str) -> list[float]:
    statistics = _read_statistics(path)
    if set(weights) != set(statistics):
        raise InputError(
            f"--weights with one weight for each of {', '.join(statistics)}",
            ", ".join(weights),
            "name exactly these scores, with 0 for one that does not matter",
        )
    return ric_targets([weights[name] for name in statistics], list(statistics.values()), method)


def _read_statistics(path: str | None) -> dict[str, ScoreStatistics]:
    if path is None or not as_path(path).is_file():
        raise InputError(
            "--statistics FILE, which the conditioning of the training data wrote",
            "none" if path is None else f"{path}: no such file",
            "name the .statistics.json beside the file of training data",
        )
    try:
        return _stored_statistics(as_path(path))
    except _OTHER_CONTENT as error:
        raise InputError(
            "statistics that the conditioning of the training data wrote",
            f"{path}: {type(error).__name__}: {error}",
            "name the .statistics.json beside the file of training data",
        ) from error


_OTHER_CONTENT = (ValueError, TypeError, AttributeError)
"""What reading statistics raises for no JSON, or JSON of another kind."""


def _stored_statistics(path: Path) -> dict[str, ScoreStatistics]:
    stored = json.loads(path.read_text())
    return {name: ScoreStatistics(**values) for name, values in stored.items()}


def _no_statistics(path: Path) -> list[str]:
    """The path's name, where it does not hold what `_write_statistics` wrote."""
    try:
        _stored_statistics(path)
        return []
    except _OTHER_CONTENT:
        return [path.name]


def _write_statistics(path: Path, statistics: Mapping[str, ScoreStatistics]) -> None:
    stored = {name: dataclasses.asdict(values) for name, values in statistics.items()}
    with whole_file(path) as partial:
        partial.write_text(json.dumps(stored, indent=2) + "\n")


def _condition_prompts(source: Source, out: Path, change: Callable[[Prompt], Prompt]) -> int:
    from jaxpref.generation.prompts import read_prompts

    groups = [group for path in source.paths for group in read_prompts(path, source.part)]
    write_lines(out, (_row_of_prompt(group, change(group.prompt)) for group in groups))
    return len(groups)


def _row_of_prompt(group: Group, prompt: Prompt) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": prompt, **as_column(group.pictures)}
    if group.tools:
        row["tools"] = group.tools
    if group.template_kwargs:
        row["chat_template_kwargs"] = dict(group.template_kwargs)
    return row


def _list(text: str | None) -> list[str]:
    """Errors: InputError for a name that stands there twice."""
    names = [name for name in (text or "").split(",") if name]
    if len(set(names)) < len(names):
        raise InputError("different scores", text, "name each once")
    return names


def _missing(flag: str) -> InputError:
    return InputError(flag, "none", "add the flag")
