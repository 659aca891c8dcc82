"""`jaxpref condition`: a preference into the prompts of a data set, or of a file of prompts."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxpref.conditioning.methods import (
    RIC_MAPS,
    ConditionReport,
    ControllableDPO,
    Prompt,
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
from jaxpref.data.forms import FORMATS
from jaxpref.data.rewrite import Source, check_out, write_lines
from jaxpref.errors import InputError
from jaxpref.settings import named, numbers

EPILOG = """for training, from data with scores (`jaxpref score`)
    jaxpref condition scored.jsonl --as cdpo --scores helpful,brief --control brief --out pairs.jsonl
    jaxpref condition scored.jsonl --as ric --scores helpful,brief --out answers.jsonl     # and answers.statistics.json
    jaxpref condition scored.jsonl --as metaalign --preference helpful="Be helpful." --preference brief="Be brief." \\
        --out pairs.jsonl

for answers, from prompts as `jaxpref generate` takes them
    jaxpref condition prompts.jsonl --as cdpo --target brief=5 --out asked.jsonl
    jaxpref condition prompts.jsonl --as ric --weights helpful=0.7,brief=0.3 --statistics answers.statistics.json \\
        --out asked.jsonl
    jaxpref condition prompts.jsonl --as metaalign --words "Be brief." --out asked.jsonl"""


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
        dest="way",
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
    add("--control", metavar="A,B", help="cdpo: the scores that are asked for (default: all)")
    add("--subsets", action="store_true", help="cdpo: ask for a random part of them in every row")
    add(
        "--strength",
        type=float,
        default=1.0,
        help="cdpo: lambda, of the distance from what is asked for (default 1)",
    )
    add(
        "--copies",
        type=int,
        default=1,
        help="cdpo: of every row, each with its own draw (default 1)",
    )
    add("--digits", type=int, default=1, help="cdpo: decimals of what is asked for (default 1)")
    add("--seed", type=int, default=0, help="cdpo: of the draws (default 0)")
    add(
        "--preference",
        action="append",
        default=[],
        metavar="SCORE=WORDS",
        help="metaalign: words for a score",
    )
    add(
        "--ending",
        default="",
        metavar="TEXT",
        help="ric: tags go before it where a text prompt ends so",
    )
    add(
        "--target",
        action="append",
        default=[],
        metavar="SCORE=VALUE",
        help="cdpo, for answers: what to ask for",
    )
    add("--weights", metavar="A=0.7,B=0.3", help="ric, for answers: of the objectives")
    add(
        "--statistics",
        metavar="FILE",
        help="ric, for answers or held-out data: what the training data's run wrote",
    )
    add(
        "--map",
        default="linf",
        choices=RIC_MAPS,
        help="ric, for answers: from weights to scores (default linf)",
    )
    add("--words", help="metaalign, for answers: the preference")
    add("--split", default="train", help="of a path that has several (default train)")
    add("--format", default="auto", choices=FORMATS, help="of the rows (default auto)")
    add(
        "--on-bad-row",
        default="error",
        choices=["error", "drop"],
        help="drop unusable rows and count them",
    )


def run(options: argparse.Namespace, console: Console) -> None:
    out = check_out(options.out)
    change = _change_of_prompts(options)
    if change is not None:
        written = _condition_prompts(options.data, out, change)
        console.print(f"{written} prompts written to {out}", highlight=False)
        return
    report = ConditionReport()
    source = Source(options.data, options.split, options.format, options.on_bad_row)
    write_lines(out, _training_rows(options, source, out, report))
    console.print(f"{out}: {report}", highlight=False)


def _training_rows(
    options: argparse.Namespace, source: Source, out: Path, report: ConditionReport
) -> Iterator[dict[str, Any]]:
    if options.way == "metaalign":
        preferences = named(options.preference, "--preference")
        _expect(preferences, "--preference SCORE=WORDS, or --words for prompts")
        return metaalign_rows(source, preferences, report)
    if options.way == "ric" and options.statistics:
        return ric_rows(source, _read_statistics(options.statistics), report, ending=options.ending)
    scores = _list(options.scores)
    _expect(
        scores,
        "--scores A,B"
        + (", or --target for prompts" if options.way == "cdpo" else ", or --weights"),
    )
    if options.way == "cdpo":
        how = ControllableDPO(
            scores,
            _list(options.control) or scores,
            options.subsets,
            options.strength,
            options.copies,
            options.digits,
            options.seed,
        )
        return cdpo_rows(source, how, report)
    statistics = score_statistics(source, scores)
    _write_statistics(out, statistics)
    return ric_rows(source, statistics, report, ending=options.ending)


def _change_of_prompts(options: argparse.Namespace) -> Callable[[Prompt], Prompt] | None:
    """What is done to prompts that wait for answers; None where training data is made."""
    if options.way == "cdpo" and options.target:
        targets = numbers(named(options.target, "--target"))
        return lambda prompt: cdpo_prompt(prompt, targets)
    if options.way == "ric" and options.weights:
        weights = numbers(named(options.weights.split(","), "--weights"))
        scores = _targets(weights, options.statistics, options.map)
        return lambda prompt: ric_prompt(prompt, scores, ending=options.ending)
    if options.way == "metaalign" and options.words:
        return lambda prompt: instructed(prompt, options.words)
    return None


def _read_statistics(path: str | None) -> dict[str, ScoreStatistics]:
    if path is None or not Path(path).is_file():
        raise InputError(
            "--statistics FILE, which the conditioning of the training data wrote",
            f"{path}",
            "name it",
        )
    return {name: ScoreStatistics(**x) for name, x in json.loads(Path(path).read_text()).items()}


def _targets(weights: Mapping[str, float], path: str | None, method: str) -> list[float]:
    statistics = _read_statistics(path)
    if set(weights) != set(statistics):
        raise InputError(
            f"a weight for each of {', '.join(statistics)}", ", ".join(weights), "correct --weights"
        )
    return ric_targets([weights[name] for name in statistics], list(statistics.values()), method)


def _condition_prompts(paths: Sequence[str], out: Path, change: Callable[[Prompt], Prompt]) -> int:
    from jaxpref.generation.prompts import read_prompts

    groups = [group for path in paths for group in read_prompts(path)]
    more = lambda group: {
        **({"tools": group.tools} if group.tools else {}),
        **({"chat_template_kwargs": dict(group.template_kwargs)} if group.template_kwargs else {}),
    }
    write_lines(out, ({"prompt": change(group.prompt), **more(group)} for group in groups))
    return len(groups)


def _write_statistics(out: Path, statistics: Mapping[str, ScoreStatistics]) -> None:
    path = out.with_name(out.name.removesuffix(".gz").removesuffix(".jsonl") + ".statistics.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: dataclasses.asdict(x) for name, x in statistics.items()}, indent=2)
    path.write_text(text + "\n")


def _list(text: str | None) -> list[str]:
    return [name for name in (text or "").split(",") if name]


def _expect(found: Any, what: str) -> None:
    if not found:
        raise InputError(what, "none", "add it")
