"""`jaxpref generate`: its options, its progress bar, the lines that it writes."""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TextIO

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxpref.errors import InputError
from jaxpref.generate import Completion, Settings, complete, open_policy
from jaxpref.generation.prompts import read_prompts
from jaxpref.generation.sampling import Sampling

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="RUN_OR_MODEL", help="directory of a run or a model, .gguf file, pkg://PACKAGE/FILE, hub id")
    add("--prompts", required=True, metavar="FILE", help=".txt (one a line), or rows with `prompt` or `messages`")
    add("--out", metavar="FILE", help="JSON lines; must not exist (default: standard output)")
    add("--step", default="best", help="of a run: best (default), latest or a number")
    add("--max-new-tokens", type=int, default=256, help="tokens of a completion at most (default 256)")
    add("--temperature", type=float, default=0.0, help="0 (default): the most likely token each time")
    add("--top-k", type=int, help="draw among the k most likely tokens")
    add("--top-p", type=float, help="draw among the most likely tokens that make up a probability of p")
    add("--min-p", type=float, help="draw among tokens at least p times as likely as the most likely one")
    add("--samples", type=int, default=1, metavar="N", help="completions of every prompt (default 1)")
    add("--seed", type=int, default=0, help="of the draws (default 0)")
    add("--stop", action="append", default=[], metavar="TEXT", help="ends a completion; may be given several times")
    add("--stop-token", type=int, action="append", metavar="ID", help="in place of the model's own end-of-text ids")
    add("--batch-size", type=int, default=32, help="rows that are decoded together (default 32)")
    add("--distributed", action="store_true", help="one of several processes (TPU pods); the first writes")
    add("overrides", nargs="*", metavar="key=value", help="as model.compute_dtype=bfloat16 or mesh.data=8")


def run(options: argparse.Namespace) -> None:
    """Writes a line for every completion as soon as it is finished; Ctrl-C ends it and keeps what is written."""
    settings = Settings(
        Sampling(options.temperature, options.top_k, options.top_p, options.min_p),
        samples=options.samples,
        max_new_tokens=options.max_new_tokens,
        stops=tuple(options.stop),
        stop_tokens=None if options.stop_token is None else tuple(options.stop_token),
        seed=options.seed,
        batch_size=options.batch_size,
    )
    if options.out and Path(options.out).exists():
        raise InputError("a new file for the completions", f"{options.out} exists", "choose another name or remove it")
    pieces, params = open_policy(options.source, step=options.step, overrides=options.overrides)
    prompts = read_prompts(options.prompts)
    completions = complete(pieces, params, prompts, settings)
    console = Console(stderr=True, quiet=jax.process_index() > 0)  # standard output is for the lines
    with _opened(options.out) as file:
        try:
            finished = _write(completions, file, len(prompts) * settings.samples, settings.seed, console)
        except KeyboardInterrupt:
            console.print("interrupted; what was finished is written")
            sys.exit(INTERRUPTED)
    console.print(finished, highlight=False)


def _opened(path: str | None) -> AbstractContextManager[TextIO]:
    if jax.process_index() > 0:  # every process knows every completion
        return open(os.devnull, "w")
    return Path(path).open("x", encoding="utf-8") if path else nullcontext(sys.stdout)


def _write(completions: Iterable[Completion], file: TextIO, total: int, seed: int, console: Console) -> str:
    """Writes each completion when it comes; returns what they were in all."""
    finished, tokens, began = Counter(), 0, time.perf_counter()
    columns = TextColumn("completion"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[speed]}")
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("generate", total=total, speed="compiling")
        for completion in completions:
            file.write(json.dumps({**completion.to_json(), "seed": seed}, ensure_ascii=False) + "\n")
            file.flush()
            finished[completion.finish] += 1
            tokens += len(completion.token_ids)
            bar.update(task, advance=1, speed=f"{tokens / (time.perf_counter() - began):.0f} tokens/s")
    ends = ", ".join(f"{count} by {name}" for name, count in sorted(finished.items()))
    return f"{total} completions, {tokens} tokens in {time.perf_counter() - began:.1f} s; ended {ends}"
