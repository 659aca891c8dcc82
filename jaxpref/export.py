"""A run's checkpoint -> a directory that transformers loads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from omegaconf import OmegaConf

from jaxpref import build as b
from jaxpref.checkpoint import Checkpoints, find_step
from jaxpref.config import Config, load_config, to_dict
from jaxpref.errors import InputError
from jaxpref.models.hf import save_pretrained
from jaxpref.models.source import open_checkpoint
from jaxpref.models.spec import SCALAR_HEADS
from jaxpref.objectives import OBJECTIVES, TRANSFORMS, bind
from jaxpref.sharding import param_shardings
from jaxpref.step import init_running

OBJECTIVE_FILE = "objective.json"
"""In the directory of a run: names of the objectives, when they came from Python and not from the config."""


def load_run(run: str | Path, overrides: Sequence[str] = (), objective: Sequence[Any] | None = None) -> Config:
    """The config of a run directory, with overrides.

    Errors: InputError when it is not one, or was trained with an objective from Python that is not given here.
    """
    path, given = Path(run) / "config.yaml", Path(run) / OBJECTIVE_FILE
    if not path.is_file():
        raise InputError("the directory of a run, with config.yaml and checkpoints/", f"{run}", "correct the path")
    if given.is_file() and objective is None:
        raise InputError(
            "the objective that was given to `train` in Python",
            f"{run} was trained with {', '.join(json.loads(given.read_text()))}",
            "pass it again as objective=[...]; with `name: module:function` in the config it would be found",
        )
    return load_config(path, overrides)


def run_state(pieces: b.Pieces, run: str | Path, step: str, *, objective: bool = False) -> tuple[dict[str, Any], int]:
    """`params` of a run's checkpoint on the mesh, and its step.

    Args:
        objective: also what the objective carries: `running` statistics, and `ref_params` where the reference moves.
    """
    shapes = b.param_shapes(pieces.model)
    laid_out = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    params = jax.tree.map(laid_out, shapes, param_shardings(shapes, pieces.mesh))
    like = {"params": params}
    if objective:
        everywhere = NamedSharding(pieces.mesh, P())
        running = jax.eval_shape(lambda: init_running(pieces.parts))
        like["running"] = jax.tree.map(lambda x: laid_out(x, everywhere), running)
        like |= {"ref_params": params} if pieces.moving else {}
    return _restore(pieces.config, run, step, like)


def run_params(pieces: b.Pieces, run: str | Path, step: str) -> tuple[Any, int]:
    """Parameters of a run's checkpoint on the mesh, and its step."""
    state, number = run_state(pieces, run, step)
    return state["params"], number


def _restore(config: Config, run: str | Path, step: str, like: dict[str, Any]) -> tuple[dict[str, Any], int]:
    train, directory = config.train, Path(run) / "checkpoints"
    if not directory.is_dir():
        raise InputError("a run that has saved checkpoints", f"{directory}: no such directory", "train the run first")
    checkpoints = Checkpoints(directory, best_metric=train.best_metric, best_mode=train.best_mode, read_only=True)
    try:
        number = find_step(checkpoints, step)
        wanted = {name: tree for name, tree in like.items() if jax.tree.leaves(tree)}
        return like | checkpoints.restore_parts(number, wanted), number
    finally:
        checkpoints.close()


def export_run(
    run: str | Path,
    to: str | Path,
    *,
    step: str = "best",
    dtype: str = "float32",
    objective: Sequence[Any] | None = None,
) -> int:
    """Writes the Hugging Face directory of a run's checkpoint; returns its step.

    It is done on the host, whatever devices the run was made on.  A run with a reward head becomes a sequence
    classifier of one label; a value head is left out.

    Args:
        step: `best`, `latest` or a number.
        dtype: of the written weights: float32, bfloat16 or float16.
        objective: as given to `train`, when it was.
    """
    config = load_run(run, objective=objective)
    source = open_checkpoint(config.model.path)
    parts = bind(objective or config.objective, OBJECTIVES, TRANSFORMS)
    params = b.param_shapes(b.make_decoder(config, source, parts))
    state, number = _restore(config, run, step, {"params": params})
    heads = state["params"].pop(SCALAR_HEADS, {})
    rewards = {SCALAR_HEADS: {"reward": heads["reward"]}} if "reward" in heads else {}
    save_pretrained(
        to,
        source.spec,
        state["params"] | rewards,
        _with_own_pad(source.load_tokenizer()) if rewards else source.load_tokenizer(),
        dtype=np.dtype(dtype),
        generation_config=source.generation_config or None,
        model_card=_model_card(config, number),
    )
    return number


def _with_own_pad(tokenizer: Any) -> Any:
    """A classifier reads its score at the last token that is not padding, so padding must not end an answer."""
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return tokenizer
    spare = next((t for t in (tokenizer.bos_token, tokenizer.unk_token) if t not in (None, tokenizer.eos_token)), None)
    if spare is None:
        raise InputError(
            "a tokenizer whose padding is not its end of sequence, for a reward model",
            f"pad_token={tokenizer.pad_token!r}, eos_token={tokenizer.eos_token!r}, no bos_token or unk_token",
            "add a padding token to the tokenizer of the model that you train",
        )
    tokenizer.pad_token = spare
    return tokenizer


def _model_card(config: Config, step: int) -> str:
    settings = OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))
    return (
        f"# {Path(config.out).name}\n\n"
        f"{config.model.path}, trained with jaxpref for {step} steps on {', '.join(config.data.train)}.\n\n"
        f"The whole configuration:\n\n```yaml\n{settings}```\n"
    )
