"""`jaxpref generate`: its options, its progress, the lines that it writes."""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from jaxpref.data.splits import Part, check_split
from jaxpref.errors import InputError
from jaxpref.files import GrowingFile, check_destination
from jaxpref.generation.completions import Completion, Settings, complete
from jaxpref.generation.mixed_distribution import DIVERGENCES
from jaxpref.generation.mixing import Mix
from jaxpref.generation.opening import open_source
from jaxpref.generation.prompts import read_prompts
from jaxpref.generation.sampling import Sampling
from jaxpref.processes.together import first_does, is_first
from jaxpref.progress import progress
from jaxpref.storage.paths import as_path, is_bucket

_UPLOAD_SECONDS = 30.0
"""Between two times that completions are uploaded to a bucket."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""
_UNCHANGED = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "min_length": 0,
    "min_new_tokens": None,
    "sequence_bias": None,
    "guidance_scale": 1.0,
}
"""Keys of generation_config.json that may change the likeliest token -> the value that does not."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    models = "directory of a run, model or PEFT adapter, .gguf file, pkg://PACKAGE/FILE, hub id"
    add("source", metavar="RUN_OR_MODEL", nargs="?", help=f"{models}; not with --mix")
    add(
        "--mix",
        metavar="A:0.3,B:0.7",
        help="several of these, which decide every token together (MOD), with weights",
    )
    add(
        "--divergence",
        choices=DIVERGENCES,
        help="that their training penalised (default reverse_kl, as DPO's)",
    )
    add("--alpha", type=float, help="order of the divergence alpha (default 0.5)")
    add(
        "--reference",
        metavar="MODEL",
        help="what they were trained from; it takes the remaining weight, 1 minus the sum",
    )
    add(
        "--first-top-k",
        type=int,
        metavar="K",
        help="only the K most likely tokens of the first (PAD is this with A:1-L,B:L)",
    )
    add(
        "--prompts",
        required=True,
        metavar="FILE",
        help=".txt (one per line), or as data.eval: rows with `prompt`, `messages` or answers",
    )
    add("--split", help="of --prompts with several (default test)")
    add("--config-name", metavar="NAME", help="configuration of a hub dataset that has several")
    add("--out", metavar="FILE", help="JSON lines; must not exist (default: standard output)")
    add("--step", default="best", help="of runs: best (default), latest or a number")
    add(
        "--max-new-tokens",
        type=int,
        default=256,
        help="tokens of a completion, at most (default 256)",
    )
    add(
        "--temperature",
        type=float,
        default=0.0,
        help="0 (default): the most likely token each time",
    )
    add("--top-k", type=int, help="draw among the k most likely tokens")
    add(
        "--top-p",
        type=float,
        help="draw among the most likely tokens that make up a probability of p",
    )
    add(
        "--min-p",
        type=float,
        help="draw among tokens at least p times as likely as the most likely one",
    )
    add(
        "--samples",
        type=int,
        default=1,
        metavar="N",
        help="completions of every prompt (default 1)",
    )
    add("--seed", type=int, default=0, help="seed of the draws (default 0)")
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="ends a completion; may be given several times",
    )
    add(
        "--stop-token",
        type=int,
        action="append",
        metavar="ID",
        help="in place of the model's own end-of-text ids",
    )
    add("--batch-size", type=int, default=32, help="rows that are decoded together (default 32)")
    add(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="as model.compute_dtype=bfloat16 or mesh.data=8",
    )


def run(options: argparse.Namespace) -> None:
    """Writes a line for every completion as soon as it is finished.

    Ctrl-C ends it and keeps what is written.
    """
    settings = Settings(
        Sampling(options.temperature, options.top_k, options.top_p, options.min_p),
        samples=options.samples,
        max_new_tokens=options.max_new_tokens,
        stops=tuple(options.stop),
        stop_tokens=None if options.stop_token is None else tuple(options.stop_token),
        seed=options.seed,
        batch_size=options.batch_size,
    )
    source, overrides = _source_and_overrides(options)
    check_split(options.split, [options.prompts], "--split")
    out = None
    if options.out:
        _check_is_text(options.out)
        read = [options.prompts]
        read += [source] if isinstance(source, str) else [path for path, _ in source.policies]
        new = "a new file for the completions"
        out = as_path(first_does(lambda: str(check_destination(options.out, new, sources=read))))
    opened = open_source(source, step=options.step, overrides=overrides)
    part = Part(options.split, "test", options.config_name)
    prompts = read_prompts(options.prompts, part)
    # Standard output is for the lines.
    console = Console(stderr=True, quiet=not is_first())
    if ignored := _ignored_settings(opened.pieces.source.generation_config):
        console.print(
            f"note: the model's generation_config asks for {ignored}, which is not done",
            highlight=False,
        )
    completions = complete(opened.pieces, opened.params, prompts, settings, opened.mixed)
    total = len(prompts) * settings.samples
    with _output(out) as file:
        try:
            summary = _write(completions, file, total, settings.seed, console)
        except KeyboardInterrupt:
            console.print("interrupted; what was finished is written")
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            if out is not None:
                raise
            _let_go_of_output()
            console.print("nobody reads standard output any more: ended")
            sys.exit(1)
    console.print(summary, highlight=False)


def _source_and_overrides(options: argparse.Namespace) -> tuple[str | Mix, list[str]]:
    """What is decoded, and the overrides.

    With --mix there is no RUN_OR_MODEL, so the first word is one of the overrides.
    """
    names = ("divergence", "alpha", "reference", "first_top_k")
    mix_options = {
        name: getattr(options, name) for name in names if getattr(options, name) is not None
    }
    if options.mix is None:
        if mix_options:
            flags = ", ".join("--" + name.replace("_", "-") for name in mix_options)
            raise InputError("--mix", f"{flags} without --mix", "add --mix or remove these options")
        if options.source is None:
            raise InputError("RUN_OR_MODEL or --mix", "neither", "add one of them")
        return options.source, options.overrides
    divergence = mix_options.get("divergence")
    if "alpha" in mix_options and divergence != "alpha":
        raise InputError(
            "--alpha with --divergence alpha",
            f"--divergence {divergence}",
            "add --divergence alpha, or remove --alpha",
        )
    overrides = list(options.overrides)
    if options.source is not None:
        if "=" not in options.source:
            raise InputError(
                "RUN_OR_MODEL or --mix", f"{options.source} and --mix", "remove one of them"
            )
        overrides.insert(0, options.source)
    return Mix(options.mix, **mix_options), overrides


def _check_is_text(out: str) -> None:
    """Errors: InputError for a name by which lines of text would be read as something else."""
    ending = as_path(out).suffix
    if ending in (".gz", ".json", ".parquet"):
        raise InputError(
            "--out with the name of a file of JSON lines",
            f"{out}, as which {ending} would be read back",
            "give it a name that ends in .jsonl",
        )


def _ignored_settings(generation_config: Mapping[str, Any]) -> str:
    """What transformers would do besides, also when it is greedy."""
    asked = {name: generation_config.get(name) for name in _UNCHANGED}
    return ", ".join(
        f"{name}={value}"
        for name, value in asked.items()
        if value not in (None, _UNCHANGED[name], [], {})
    )


def _output(path: Path | None) -> AbstractContextManager[TextIO | GrowingFile]:
    """Where the lines go: a new file or standard output; of one process only."""
    if not is_first():  # every process knows every completion
        return open(os.devnull, "w")
    if path is None:
        return nullcontext(sys.stdout)
    if is_bucket(path):
        return closing(GrowingFile(path, seconds=_UPLOAD_SECONDS))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("x", encoding="utf-8")


def _let_go_of_output() -> None:
    """What is still to be flushed to standard output goes nowhere, or Python would fail at exit."""
    with suppress(OSError, ValueError):  # one that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write(
    completions: Iterable[Completion],
    file: TextIO | GrowingFile,
    total: int,
    seed: int,
    console: Console,
) -> str:
    """Writes each completion when it comes; returns a summary of them all."""
    count_by_finish, tokens, began = Counter(), 0, time.perf_counter()
    with progress(console) as update:
        update("completion", 0, total, "compiling")
        for done, completion in enumerate(completions, 1):
            line = {**completion.to_json(), "seed": seed}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            count_by_finish[completion.finish] += 1
            tokens += len(completion.token_ids)
            speed = f"{tokens / (time.perf_counter() - began):.0f} tokens/s"
            update("completion", done, total, speed)
    seconds = time.perf_counter() - began
    ends = ", ".join(f"{count} by {name}" for name, count in sorted(count_by_finish.items()))
    return f"{total} completions, {tokens} tokens in {seconds:.1f} s; ended {ends}"
