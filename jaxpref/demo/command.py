"""`jaxpref demo`: SmolLM2-135M-Instruct learns correct, brief, polite answers, on a CPU."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxpref.config import Config
from jaxpref.demo import synthetic
from jaxpref.demo.scores import AXES, score
from jaxpref.evaluation.bootstrap import DEFAULT, Estimate, estimates, mean
from jaxpref.generation.completions import Settings, complete
from jaxpref.generation.prompts import given_prompts
from jaxpref.generation.sampling import Sampling
from jaxpref.online.command import report, run_with_progress
from jaxpref.processes.together import first_does
from jaxpref.runs.build import Pieces, build
from jaxpref.runs.directory import run_params
from jaxpref.runs.export import export_run
from jaxpref.runs.params import load_params
from jaxpref.storage.paths import as_path
from jaxpref.text_tables import whole

ROWS, SEED, TEST_FRACTION = 1000, 0, 0.1
_NEW_TOKENS = 32
_SHOWN = 4
"""Questions that are shown with their answers."""
_TEMPERATURE = 0.7


@dataclass(frozen=True)
class _Answers:
    greedy: list[str]
    """To all held-out questions."""
    sampled: list[str]
    """One to each of those that are shown."""


def demo(config: Config, console: Console) -> None:
    """Writes the data, trains, shows answers before and after, scores them, exports the model."""
    began = time.perf_counter()
    data = Path(config.data.train[0]).parent
    first_does(lambda: _write_data(data))
    file = Path(config.data.eval_sets[""][0])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    pieces = build(config)
    console.print(f"the model answers {len(rows)} unseen questions", highlight=False)
    before = _answer(pieces, load_params(pieces), rows)
    report(run_with_progress(config, console), console)
    params, _ = run_params(pieces, config.out, "latest")
    after = _answer(pieces, params, rows)
    console.print(whole(_shown_answers(rows, before, after)))
    console.print(whole(_shown_scores(rows, before, after)))
    export = as_path(config.out) / "export"
    export_run(config.out, export, step="latest")
    console.print(f"export      {export}  (loads in transformers)", highlight=False)
    console.print(f"{time.perf_counter() - began:.0f} s in all", highlight=False)


def _write_data(directory: Path) -> None:
    """Pairs of which every chosen answer is good on all axes, so that a short run shows on each."""
    synthetic.write(directory, ROWS, SEED, TEST_FRACTION, train_on=synthetic.chosen_is_good)


def _answer(pieces: Pieces, params: Any, rows: Sequence[Mapping[str, Any]]) -> _Answers:
    prompts = [row["prompt"] for row in rows]

    def texts(asked: Sequence[list[dict]], temperature: float) -> list[str]:
        settings = Settings(Sampling(temperature), max_new_tokens=_NEW_TOKENS, batch_size=len(rows))
        done = complete(pieces, params, given_prompts(asked), settings)
        return [item.text.strip() for item in sorted(done, key=lambda item: item.prompt_index)]

    return _Answers(texts(prompts, 0.0), texts(_of_shown(prompts), _TEMPERATURE))


def _of_shown(items: Sequence[Any]) -> Sequence[Any]:
    """Those of the questions that are shown, which lie apart."""
    return items[:: max(len(items) // _SHOWN, 1)][:_SHOWN]


def _shown_answers(rows: Sequence[Mapping[str, Any]], before: _Answers, after: _Answers) -> Table:
    table = Table("unseen question", "", "before", "after", title="answers")
    for row, old, new, old_drawn, new_drawn in zip(
        _of_shown(rows),
        _of_shown(before.greedy),
        _of_shown(after.greedy),
        before.sampled,
        after.sampled,
        strict=True,
    ):
        question = row["prompt"][-1]["content"]
        table.add_row(question, "greedy", Text(old), Text(new))
        table.add_row("", "sampled", Text(old_drawn), Text(new_drawn), end_section=True)
    return table


def _shown_scores(rows: Sequence[Mapping[str, Any]], before: _Answers, after: _Answers) -> Table:
    """The rules' scores of the greedy answers, from 0 to 1."""
    title = f"scores of the greedy answers to all {len(rows)} unseen questions, by rules, 0 to 1"
    table = Table("", "before", "after", title=f"{title}\n(mean, 95 % interval over questions)")
    old, new = _scores(rows, before.greedy), _scores(rows, after.greedy)
    for axis in AXES:
        table.add_row(axis, _shown(old[axis]), _shown(new[axis]))
    return table


def _scores(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> dict[str, Estimate]:
    scored = [
        score(text, row["answer"], row["wrong"]) for text, row in zip(answers, rows, strict=True)
    ]
    of_axis = {axis: np.array([scores[axis] for scores in scored]) for axis in AXES}
    return estimates(
        lambda weight_WB: {axis: mean(weight_WB, x_B) for axis, x_B in of_axis.items()},
        np.arange(len(rows)),
        DEFAULT,
    )


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.2f}  {estimate.low:.2f} to {estimate.high:.2f}"
