"""A language model whose answers can be enumerated, trained by the real trainer towards known optima.

Nine answers to one prompt, every ordered pair of them as data, with the Bradley-Terry probability of that order as its
weight.  Full-batch training must then reach the published optimum among the nine.  Used by the tests and by
benchmarks/bandit_front.py.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tiny

from jaxpref import Mix
from jaxpref.conditioning.weights import weighted_prompt
from jaxpref.data.encode import encode_groups
from jaxpref.generation.answer_logps import answer_logps
from jaxpref.generation.opening import open_source
from jaxpref.objectives import PAIRS, ObjectiveOutput, needs
from jaxpref.runs import merge
from jaxpref.runs.build import build
from jaxpref.runs.directory import run_params
from jaxpref.runs.export import export_run
from jaxpref.runs.feed import read_data
from jaxpref.runs.params import load_params
from jaxpref.runs.sequence_logps import compute_logps
from jaxpref.types import Group

TEXTS = ["".join(letters) for letters in itertools.product("abc", repeat=2)]
PROMPT = "n"
BETA = 0.7
DISTANCE = 0.02
"""Total variation between a trained policy and its optimum, both among the nine answers."""
REWARDS = np.random.default_rng(0).normal(size=(3, len(TEXTS)))
"""Of every answer, on the scale of a Bradley-Terry model."""
ADAPTER = {"rank": 16}


def rows(reward, **per_text) -> list[dict]:
    """Ordered pairs; `per_text` are data columns per completion, such as the other objectives' rewards."""
    made = []
    for i, j in itertools.permutations(range(len(TEXTS)), 2):
        row = {"prompt": PROMPT, "chosen": TEXTS[i], "rejected": TEXTS[j]}
        row |= {"weight": 1 / (1 + np.exp(reward[j] - reward[i]))}
        for name, values in per_text.items():
            row |= {f"{name}_chosen": values[i], f"{name}_rejected": values[j]}
        made.append(row)
    return made


def labelled_rows(rewards, texts, weights=None) -> list[dict]:
    """Ordered pairs of some texts, each labelled by all objectives with its Bradley-Terry probability.

    Args:
        rewards: [objectives, texts].
        weights: a vector that the rows carry, in their prompts too; None: none.
    """
    made = []
    prompt = PROMPT if weights is None else weighted_prompt(PROMPT, named(weights))
    for i, j in itertools.permutations(range(len(texts)), 2):
        row = {"prompt": prompt, "chosen": texts[i], "rejected": texts[j]}
        row |= {f"label/{k}": 1 / (1 + np.exp(r[j] - r[i])) for k, r in enumerate(rewards)}
        if weights is not None:
            row |= {f"w/{k}": w for k, w in enumerate(weights)}
        made.append(row)
    return made


def named(weights) -> dict[str, float]:
    return {str(k): w for k, w in enumerate(weights)}


def labels_optimum(rewards, w, before, beta=BETA) -> np.ndarray:
    """Where the weighted sum of DPO losses on all pairs is least: pi_ref exp(u / beta) / Z.

    The weighted probability that i beats j is that of no Bradley-Terry model; u is the one of least cross-entropy.
    """
    r = np.asarray(rewards)
    wins = np.tensordot(w, 1 / (1 + np.exp(r[:, None, :] - r[:, :, None])), 1)
    u = np.zeros(len(wins))
    for _ in range(100):  # Newton's method
        p = 1 / (1 + np.exp(u[None, :] - u[:, None]))
        slope = np.where(np.eye(len(u), dtype=bool), 0.0, p * (1 - p))
        u -= np.linalg.lstsq(np.diag(slope.sum(1)) - slope, (p - wins).sum(1), rcond=None)[0]
    return normal(before + u / beta)


@needs(groups=PAIRS)
def near(policy, ref, *, centre: float):
    """1 - exp(-(D - centre)^2) of the margin D: two centres make a concave front (Fonseca and Fleming, 1995)."""
    rho_BK = policy.sum - ref.sum
    margin_B = rho_BK[:, 0] - rho_BK[:, 1]
    present_B = (policy.count.sum(-1) > 0).astype(jnp.float32)
    return ObjectiveOutput(1.0 - jnp.exp(-jnp.square(margin_B - centre)), present_B, {"margin": margin_B})


def train(directory, lines, objective, *, steps=300, model=None, learning_rate=3e-3, optim=None, **changes):
    """A finished run on these rows, and log-probs of the nine under its policy and under the model it began with."""
    model = model or tiny.write_model(directory / "model", scale=0.5)
    data = tiny.write_rows(directory / "rows.jsonl", lines)
    config = tiny.config(
        directory / "run",
        model,
        data,
        objective=objective,
        train={"batch_size": len(lines), "epochs": steps, "micro_rows": 8, "log_every": steps},
        data={"train": [str(data)], "eval": [], "row_length": 64},
        optim={"learning_rate": learning_rate, "schedule": "cosine", "warmup_steps": 5, "clip_norm": None}
        | (optim or {}),
        **changes,
    )
    tiny.run(config)
    pieces = build(config)
    groups, _ = read_data(pieces, "train")
    after, before = (
        logps_of_texts(pieces, params, groups, lines)
        for params in (run_params(pieces, config.out, "latest")[0], load_params(pieces))
    )
    return config, after, before


def logps_of_texts(pieces, params, groups, lines):
    values = compute_logps(pieces, params, groups)
    logp_of = {lines[group.row_id]["chosen"]: float(values[group.row_id][0]) for group in groups}
    return np.array([logp_of[text] for text in TEXTS if text in logp_of])


def knowing_model(directory: Path) -> Path:
    """A model that gives the nine nearly all probability."""
    (directory / "first").mkdir(parents=True)
    first, knows, _ = train(directory / "first", rows(np.zeros(len(TEXTS))), [{"name": "sft"}], steps=150)
    assert np.exp(knows).sum() > 0.9
    export_run(first.out, directory / "model", step="latest")
    return directory / "model"


def logps_of(source: str | Path | Mix, prompt=PROMPT, texts=TEXTS) -> np.ndarray:
    """[9] log-probs of the nine under a run, a model, an adapter or several that decide together."""
    runs = [source] if not isinstance(source, Mix) else [path for path, _ in source.policies]
    step = "latest" if all((Path(run) / "config.yaml").is_file() for run in runs) else "best"
    opened = open_source(source, step=step)
    groups = [Group(prompt, (text,), i, "") for i, text in enumerate(texts)]
    encoded, _ = encode_groups(groups, opened.pieces.tokenizer, max_length=None)
    values = answer_logps(opened, encoded)
    return np.array([float(values[i][0]) for i in range(len(texts))])


def normal(logp):
    """The distribution among the nine."""
    return np.exp(logp - np.logaddexp.reduce(logp))


def distance(p, q) -> float:
    """Total variation."""
    return float(0.5 * np.abs(p - q).sum())


@dataclass
class Front:
    """One model, a DPO policy for each of the rewards (adapters on it), and what is made of them for weights w.

    The model gives the nine nearly all probability, so what is said of them is said of the whole distribution.
    """

    directory: Path
    objectives: int
    steps: int = 150
    model: Path = field(init=False)
    singles: list[Path] = field(init=False)
    before: np.ndarray = field(init=False)
    """[9] log-probs under the model."""
    each: np.ndarray = field(init=False)
    """[objectives, 9] the same under the DPO policies."""

    def __post_init__(self):
        self.directory.mkdir(parents=True, exist_ok=True)
        self.model, dpo = knowing_model(self.directory), [{"name": "dpo", "beta": BETA}]
        trained = [self._train(f"dpo{k}", rows(REWARDS[k]), dpo) for k in range(self.objectives)]
        self.singles = [Path(config.out) for config, _, _ in trained]
        self.each, self.before = np.stack([after for _, after, _ in trained]), trained[0][2]

    def _train(self, name: str, lines, objective, **settings):
        folder = self.directory / name
        folder.mkdir()
        settings = {"adapter": ADAPTER, "learning_rate": 1e-2, **settings}
        return train(folder, lines, objective, steps=self.steps, model=self.model, **settings)

    def optimum(self, w: Sequence[float]) -> np.ndarray:
        """pi_ref exp(w . r / beta) / Z."""
        return normal(self.before + np.asarray(w) @ REWARDS[: len(w)] / BETA)

    def off(self, logp: np.ndarray, w: Sequence[float]) -> float:
        """Total variation from the optimum."""
        return distance(normal(logp), self.optimum(w))

    def explicit(self, w: Sequence[float], base: int, scale: float = 1.0) -> np.ndarray:
        """MODPO on the pairs of one objective, the others' rewards `scale` times as large as they are."""
        others = [k for k in range(len(w)) if k != base]
        lines = rows(REWARDS[base], other_rewards=(scale * REWARDS[others].T).tolist())
        objective = [{"name": "modpo", "beta": BETA, "w": [w[base], *(w[k] for k in others)]}]
        return self._train(f"explicit{base}_{scale}_{_name(w)}", lines, objective)[1]

    def implicit(self, w: Sequence[float], base: int) -> np.ndarray:
        """The same with the log-ratios of the others' DPO policies as other_rewards."""
        others = [k for k in range(len(w)) if k != base]
        objective = [{"name": "modpo_implicit", "beta": BETA, "w": [w[base], *(w[k] for k in others)]}]
        reference = {"extra": [str(self._exported(k)) for k in others], "cache_dir": str(self.directory / "cache")}
        return self._train(f"implicit{base}_{_name(w)}", rows(REWARDS[base]), objective, reference=reference)[1]

    def _exported(self, k: int) -> Path:
        to = self.directory / f"exported{k}"
        if not to.is_dir():
            export_run(self.singles[k], to, step="latest")
        return to

    def product(self, w: Sequence[float]) -> np.ndarray:
        """prod_i pi_i(y)^w_i of whole answers."""
        return np.asarray(w) @ self.each[: len(w)]

    def mix(self, w: Sequence[float]) -> Mix:
        return Mix(tuple(zip(self.singles, w, strict=False)))

    def token_mix(self, w: Sequence[float]) -> np.ndarray:
        """The same product token by token, each with a sum of its own: MOD as it is decoded."""
        return logps_of(self.mix(w))

    def soup(self, w: Sequence[float], how: str) -> np.ndarray:
        """The adapters averaged."""
        to = self.directory / f"{how}_{_name(w)}"
        merge(tuple(zip(self.singles, w, strict=False)), to, how=how, adapter=True, step="latest")
        return logps_of(to)


def _name(w: Sequence[float]) -> str:
    return "_".join(f"{x:.3g}" for x in w)
