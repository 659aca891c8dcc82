"""Learning to rank films by two objectives, the setting of COS-DPO's figures (arXiv 2410.08316).

    pip install bokeh_sampledata
    python benchmarks/ranking_front.py runs/ranking         # markdown, and a figure there

The authors rank web pages (MSLR-WEB10K, which no package holds).  Here the pages are films, from
Wikidata by way of the package `bokeh_sampledata`: 16,000 with what was known before they came out,
the share of critics who liked them, and how many wrote about them.  A list is 20 films of one genre
and decade, graded 0 to 4 in each objective by its fifths; four lists of five are trained on, the
others measured.  A film is a completion, its list's genre and decade the prompt, and its score the
implicit reward log pi - log pi_ref under a small Llama of random weights.  The methods are those of
the authors' comparison: one run of COS-DPO for all weights (as long as five others; each row has
one of the five weights, where the authors draw from a Dirichlet distribution), and for each weight
a run on the weighted sum of DPO losses, a run of MODPO, and a soup of the weights of the two DPO
policies; beside them COS-DPO's loss with the weights in an adapter (PBLoRA).
Stopped and called again, it goes on.
"""

import argparse
import itertools
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from record import add_argument, append, record  # noqa: E402

from jaxpref.conditioning.weights import weight_draw, weighted_prompt  # noqa: E402
from jaxpref.data.encode import encode_groups  # noqa: E402
from jaxpref.data.rewrite import write_lines  # noqa: E402
from jaxpref.demo.tiny_model import write_tiny_model  # noqa: E402
from jaxpref.evaluation.bootstrap import DEFAULT, estimates, units_of  # noqa: E402
from jaxpref.generation.answer_logps import answer_logps  # noqa: E402
from jaxpref.generation.opening import open_source  # noqa: E402
from jaxpref.online.train import train  # noqa: E402
from jaxpref.pareto.hypervolume import hypervolume  # noqa: E402
from jaxpref.pareto.labels import conditioned_rows, label_columns, weight_columns  # noqa: E402
from jaxpref.runs.export import export_run  # noqa: E402
from jaxpref.runs.merge import merge  # noqa: E402
from jaxpref.runs.plots import BLUE, GREEN, GREY, ORANGE, drawn  # noqa: E402
from jaxpref.settings import make_config  # noqa: E402
from jaxpref.types import Group  # noqa: E402

OBJECTIVES = ("acclaim", "reach")
"""Share of critics who liked a film, and number of reviews."""
LABELS = label_columns(OBJECTIVES)
LIST = 20
GRADES = 5
CUT = 10
"""Places that the measure looks at: NDCG@10, as in the paper."""
BETA = 0.1
BATCH = 32
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Weights of the first objective."""

QUERY = """
select o.Year, o.Rating, o.Runtime, o.Genre, o.Released, o.Country, o.Language, t.Production,
       t.Meter, t.Reviews
from omdb o join tomatoes t on o.ID = t.ID
where t.Meter is not null and t.Reviews >= 5 and o.Runtime is not null
      and o.Genre != '' and o.Country != ''
order by o.ID
"""


@dataclass(frozen=True)
class List:
    """Films that are ranked together.

    Args:
        grade_OK: 0 to 4, of every objective and film.
    """

    prompt: str
    films: tuple[str, ...]
    grade_OK: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=120, help="of a run for one weight")
    parser.add_argument(
        "--conditioned-steps", type=int, help="of the run for all; None: as those together"
    )
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate")
    add_argument(parser)
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
    train_lists, test_lists = lists()
    texts = [f"{x.prompt} {told(x.prompt, 0.37)} {' '.join(x.films)}" for x in train_lists]
    model = write_tiny_model(out / "model", texts, vocabulary=1024, width=64, layers=2)
    conditioned = options.conditioned_steps or len(SHARES) * options.steps
    runs = Runs(out, model, options.steps, conditioned, options.rate, pairs(train_lists))
    measure = Measure(model, test_lists)
    fronts = {way: measured(out, way, make, measure) for way, make in runs.ways().items()}
    print(table(fronts, measure))
    draw(fronts, out / "ranking_front.png")
    versions = {"jax": jax.__version__}
    settings = {"steps": options.steps, "conditioned": conditioned, "rate": options.rate}
    for way, ndcg_PQO in fronts.items():
        values = {"hypervolume": measure.volume(ndcg_PQO)[0]}
        append(
            options.record,
            [record("ranking_front", way, values, versions=versions, settings=settings)],
        )


# ---- data


def lists() -> tuple[list[List], list[List]]:
    """Lists to train on and to measure on; a film is in one of them only."""
    from bokeh_sampledata.movies_data import movie_path

    films = sqlite3.connect(movie_path).execute(QUERY).fetchall()
    studios = Counter(_first(film[7]) for film in films)
    known = {studio for studio, _ in studios.most_common(40)}
    of_prompt: dict[str, list] = {}
    for film in films:
        of_prompt.setdefault(f"{_first(film[3])}, {film[0] // 10}0s", []).append(film)
    rng = np.random.default_rng(0)
    made = []
    for prompt, members in of_prompt.items():
        order = rng.permutation(len(members))
        for start in range(0, len(members) - LIST + 1, LIST):
            chosen = [members[i] for i in order[start : start + LIST]]
            grade_OK = np.stack([_grades([film[k] for film in chosen]) for k in (8, 9)])
            made.append(List(prompt, tuple(_text(film, known) for film in chosen), grade_OK))
    is_test = rng.random(len(made)) < 0.2
    split = lambda test: [x for x, t in zip(made, is_test, strict=True) if t == test]
    return split(False), split(True)


def _first(text: str | None) -> str:
    return (text or "").split(",")[0].strip()


def _grades(values: Sequence[float]) -> np.ndarray:
    """Fifths of the list; equal values have equal grades."""
    below = [sum(other < value for other in values) for value in values]
    return np.array(below) * GRADES // len(values)


def _text(film: Sequence[Any], known_studios: set[str]) -> str:
    year, rating, runtime, genres, released, country, language, studio, *_ = film
    studio = _first(studio) if _first(studio) in known_studios else ""
    month = (released or "")[5:7]
    return (
        f"{genres}; {country}; {_first(language)}; {runtime // 10:.0f}0 min; {year}-{month}; "
        f"{rating or ''}; {studio}"
    )


def pairs(of: Iterable[List], each: int = 20) -> list[dict]:
    """`each` pairs of every list at most, with the labels of both objectives.

    A label is 0 where grades are equal; films of which the same is known are no pair.
    """
    rng, rows = np.random.default_rng(1), []
    for item in of:
        all_pairs = list(itertools.combinations(range(LIST), 2))
        for index in rng.choice(len(all_pairs), each, replace=False):
            i, j = all_pairs[index]
            labels = np.sign(item.grade_OK[:, i] - item.grade_OK[:, j])
            if labels.any() and item.films[i] != item.films[j]:
                row = {"prompt": item.prompt, "chosen": item.films[i], "rejected": item.films[j]}
                rows.append(row | dict(zip(LABELS, map(float, labels), strict=True)))
    return rows


def told(prompt: str, share: float) -> str:
    return weighted_prompt(prompt, dict(zip(OBJECTIVES, (share, 1 - share), strict=True)))


# ---- policies


class Runs:
    """The policies of every method, on the same pairs.

    Args:
        steps: of a run for one weight.
        conditioned: those of the run for all.
        rate: learning rate.
    """

    def __init__(
        self,
        out: Path,
        model: Path,
        steps: int,
        conditioned: int,
        rate: float,
        rows: Sequence[dict],
    ):
        self.out, self.model, self.rate = out, model, rate
        self.steps, self.conditioned_steps = steps, conditioned
        self.rows = rows

    def ways(self) -> dict[str, Callable[[float], tuple[Path, bool]]]:
        """Method -> its policy for a share of the first objective, and whether prompts say it."""
        return {
            "COS-DPO, one run": lambda share: (self.conditioned(told=True), True),
            "PBLoRA, one run": lambda share: (self.in_adapter(share), False),
            "weighted sum of DPO losses": lambda share: (self.weighted_sum(share), False),
            "soup of weights": lambda share: (self.soup(share), False),
            "MODPO": lambda share: (self.modpo(share), False),
        }

    def conditioned(self, *, told: bool, **more: Any) -> Path:
        """One run for all weights, which prompts say (COS-DPO), or which an adapter reads."""
        columns = {"labels": LABELS, "objective_weights": weight_columns(OBJECTIVES)}
        steps = self.conditioned_steps
        passes = -(-steps * BATCH // len(self.rows))
        draw = weight_draw(len(OBJECTIVES), None, [(share, 1 - share) for share in SHARES])
        rows = conditioned_rows(self.rows, OBJECTIVES, passes=passes, draw=draw, seed=0, told=told)
        objective = [{"name": "cos_dpo", "beta": BETA, "columns": columns}]
        name = f"{'cos_dpo' if told else 'pblora'}_{steps}"
        return self._trained(name, rows, objective, steps, **more)

    def in_adapter(self, share: float) -> Path:
        adapter = {"kind": "pblora", "rank": 16, "weight_columns": weight_columns(OBJECTIVES)}
        run = self.conditioned(told=False, adapter=adapter, optim=self._optim(5 * self.rate))
        to = self.out / f"pblora_{share:g}"
        if not to.is_dir():
            export_run(run, to, step="latest", weights=[share, 1 - share])
        return to

    def weighted_sum(self, share: float) -> Path:
        parts = [
            {"name": "signed_dpo", "weight": weight, "beta": BETA, "columns": {"sign": column}}
            for weight, column in zip((share, 1 - share), LABELS, strict=True)
            if weight
        ]
        return self._trained(f"sum_{share:g}", self.rows, parts)

    def soup(self, share: float) -> Path:
        to = self.out / f"soup_{share:g}"
        if not to.is_dir():
            ends = [(self.weighted_sum(1.0), share), (self.weighted_sum(0.0), 1 - share)]
            merge([(self._exported(run), weight) for run, weight in ends], to, how="weights")
        return to

    def modpo(self, share: float) -> Path:
        """On the labels of the objective of the larger weight; at the ends it is DPO."""
        if share in (0, 1):
            return self.weighted_sum(share)
        base = 0 if share >= 0.5 else 1
        w = (share, 1 - share) if base == 0 else (1 - share, share)
        column, other = LABELS[base], self.weighted_sum(float(base == 1))
        rows = []
        for row in self.rows:
            sides = [row["chosen"], row["rejected"]][:: int(row[column]) or 1]
            if row[column]:
                rows.append({"prompt": row["prompt"], "chosen": sides[0], "rejected": sides[1]})
        objective = [{"name": "modpo_implicit", "beta": BETA, "w": list(w)}]
        extra = {"extra": [str(self._exported(other))], "cache_dir": str(self.out / "cache")}
        return self._trained(f"modpo_{share:g}", rows, objective, reference=extra)

    def _trained(
        self,
        name: str,
        rows: Iterable[dict],
        objective: list[dict],
        steps: int | None = None,
        **more: Any,
    ) -> Path:
        steps = steps or self.steps
        out, data = self.out / name, self.out / f"{name}.jsonl"
        if not data.is_file():
            write_lines(data, rows)
        config = make_config(
            {
                "out": str(out),
                "model": {"path": str(self.model), "attention_block": 64, "remat": "none"},
                "data": {"train": [str(data)], "row_length": 512},
                "objective": objective,
                "optim": self._optim(self.rate),
                "train": {
                    "batch_size": BATCH,
                    "max_steps": steps,
                    "micro_rows": 4,
                    "log_every": 50,
                },
                **more,
            }
        )
        if not (out / "checkpoints" / str(steps)).is_dir():
            train(config)
        return out

    @staticmethod
    def _optim(rate: float) -> dict[str, Any]:
        return {"learning_rate": rate, "schedule": "cosine", "warmup_ratio": 0.05}

    def _exported(self, run: Path) -> Path:
        to = run.with_name(f"{run.name}_exported")
        if not to.is_dir():
            export_run(run, to, step="latest")
        return to


# ---- measures


class Measure:
    """NDCG of rankings of the test lists."""

    def __init__(self, model: Path, of: Sequence[List]):
        self.model, self.lists = model, of
        self._of_model: dict[tuple[str, ...], np.ndarray] = {}
        rng = np.random.default_rng(2)
        self.random = np.mean([self._ndcg(rng.random((len(of), LIST))) for _ in range(100)], (0, 1))
        """[O] of a random order, the reference point of hypervolumes."""

    def __call__(self, policy: Path, prompt_of: Callable[[str], str]) -> np.ndarray:
        """[Q, O] NDCG@10 of every list, ranked by log pi - log pi_ref."""
        prompts = tuple(prompt_of(x.prompt) for x in self.lists)
        if prompts not in self._of_model:
            self._of_model[prompts] = self._logps(self.model, prompts)
        return self._ndcg(self._logps(policy, prompts) - self._of_model[prompts])

    def _logps(self, source: Path, prompts: Sequence[str]) -> np.ndarray:
        """[Q, K] log-probs of the films of every list after its prompt."""
        groups = [Group(prompts[i], x.films, i, "") for i, x in enumerate(self.lists)]
        step = "latest" if (source / "config.yaml").is_file() else "best"
        opened = open_source(source, step=step)
        encoded, _ = encode_groups(groups, opened.pieces.tokenizer, max_length=None)
        logps = answer_logps(opened, encoded)
        return np.array([logps[i] for i in range(len(groups))])

    def _ndcg(self, score_QK: np.ndarray) -> np.ndarray:
        discount_K = 1 / np.log2(np.arange(2, CUT + 2))
        ndcg_QO = np.zeros((len(self.lists), len(OBJECTIVES)))
        for q, item in enumerate(self.lists):
            order = np.argsort(-score_QK[q], kind="stable")[:CUT]
            for o, grade_K in enumerate(item.grade_OK):
                gain_K = 2.0**grade_K - 1
                best = np.sort(gain_K)[::-1][:CUT] @ discount_K
                ndcg_QO[q, o] = gain_K[order] @ discount_K / best
        return ndcg_QO

    def volume(self, ndcg_PQO: np.ndarray) -> tuple[float, float, float]:
        """Hypervolume above a random order, with its interval over lists."""

        def statistics(weight_WQ: np.ndarray) -> Mapping[str, np.ndarray]:
            weight_WQ = weight_WQ / weight_WQ.sum(1, keepdims=True)
            mean_WPO = np.einsum("WQ,PQO->WPO", weight_WQ, ndcg_PQO)
            return {"": np.array([hypervolume(mean_PO, self.random) for mean_PO in mean_WPO])}

        found = estimates(statistics, units_of(list(range(len(self.lists)))), DEFAULT)[""]
        return found.value, found.low, found.high


def measured(out: Path, way: str, make: Callable, measure: Measure) -> np.ndarray:
    """[P, Q, O] NDCG at every share; kept in a file."""
    kept = out / f"{way.split()[0].strip(',')}.npy"
    if not kept.is_file():
        points = []
        for share in SHARES:
            policy, says = make(share)
            points.append(measure(policy, partial(told, share=share) if says else str))
        np.save(kept, np.stack(points))
    return np.load(kept)


def table(fronts: Mapping[str, np.ndarray], measure: Measure) -> str:
    lines = [
        f"| weight of {OBJECTIVES[0]} | {' | '.join(map(str, SHARES))} | hypervolume x 1e-3 |",
        "|---" * (len(SHARES) + 2) + "|",
    ]
    for way, ndcg_PQO in fronts.items():
        cells = [f"{a:.3f}, {b:.3f}" for a, b in ndcg_PQO.mean(1)]
        value, low, high = (1000 * x for x in measure.volume(ndcg_PQO))
        lines.append(f"| {way} | {' | '.join(cells)} | {value:.1f}, {low:.1f} to {high:.1f} |")
    random = ", ".join(f"{x:.3f}" for x in measure.random)
    lines.append(f"\nA random order has {random}.  {len(measure.lists)} lists.")
    return "\n".join(lines)


def draw(fronts: Mapping[str, np.ndarray], to: Path) -> None:
    with drawn(to, 1, 1, panel=(5, 4.6)) as ((axes,),):
        colours = (BLUE, ORANGE, GREEN, GREY, "black")
        for (way, ndcg_PQO), colour in zip(fronts.items(), colours, strict=True):
            mean_PO = ndcg_PQO.mean(1)
            axes.plot(mean_PO[:, 0], mean_PO[:, 1], marker="o", color=colour, label=way)
        axes.set(xlabel=f"NDCG@{CUT}, {OBJECTIVES[0]}", ylabel=f"NDCG@{CUT}, {OBJECTIVES[1]}")
        axes.figure.legend(loc="outside lower center", ncols=2)


if __name__ == "__main__":
    main()
