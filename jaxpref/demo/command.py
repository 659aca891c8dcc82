"""`jaxpref demo`: SmolLM2-135M-Instruct learns correct, brief, polite answers, on a CPU."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxpref.config import Config
from jaxpref.demo import synthetic
from jaxpref.generation.completions import Settings, complete
from jaxpref.generation.prompts import given_prompts
from jaxpref.processes.together import first_does
from jaxpref.runs.build import Pieces, build
from jaxpref.runs.directory import run_params
from jaxpref.runs.export import export_run
from jaxpref.runs.params import load_params
from jaxpref.storage.paths import as_path

ROWS, SEED, TEST_FRACTION = 1000, 0, 0.1
_NEW_TOKENS = 32
_SAMPLES = 2
"""Questions that are shown with their answers."""


def demo(
    config: Config, console: Console, run: Callable[[Config], Any], report: Callable[[Any], None]
) -> None:
    """Writes the data, trains, shows sample answers before and after, and exports the model.

    Args:
        run: trains a config (with a progress bar) and returns its result.
        report: prints the result's summary.
    """
    began = time.perf_counter()
    data = Path(config.data.train[0]).parent
    first_does(lambda: [str(path) for path in synthetic.write(data, ROWS, SEED, TEST_FRACTION)])
    file = Path(config.data.eval_sets[""][0])
    held_out = [json.loads(line) for line in file.read_text().splitlines()]
    samples = held_out[:: max(len(held_out) // _SAMPLES, 1)][:_SAMPLES]
    prompts = [row["prompt"] for row in samples]
    pieces = build(config)
    before = answers(pieces, load_params(pieces), prompts)
    result = run(config)
    report(result)
    params, _ = run_params(pieces, config.out, "latest")
    after = answers(pieces, params, prompts)
    table = Table("unseen prompt", "before", "after", title="greedy answers")
    for prompt, old, new in zip(prompts, before, after, strict=True):
        table.add_row(prompt[-1]["content"], old, new)
    console.print(table)
    export = as_path(config.out) / "export"
    export_run(config.out, export, step="latest")
    console.print(f"export      {export}  (loads in transformers)", highlight=False)
    console.print(f"{time.perf_counter() - began:.0f} s in all", highlight=False)


def answers(pieces: Pieces, params: Any, prompts: list[list[dict]]) -> list[str]:
    """The policy's greedy answers to conversations."""
    done = complete(pieces, params, given_prompts(prompts), Settings(max_new_tokens=_NEW_TOKENS))
    return [item.text.strip() for item in sorted(done, key=lambda item: item.prompt_index)]
