"""A run's checkpoint -> a directory that transformers loads."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from omegaconf import OmegaConf

from jaxpref import build as b
from jaxpref.checkpoint import Checkpoints, find_step
from jaxpref.config import Config, load_config, to_dict
from jaxpref.errors import InputError
from jaxpref.models.hf import save_pretrained
from jaxpref.models.spec import SCALAR_HEADS
from jaxpref.sharding import param_shardings


def load_run(run: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a run directory, with overrides.  Errors: InputError when it is not one."""
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise InputError("the directory of a run, with config.yaml and checkpoints/", f"{run}", "correct the path")
    return load_config(path, overrides)


def run_params(pieces: b.Pieces, run: str | Path, step: str) -> tuple[object, int]:
    """Parameters of a run's checkpoint on the mesh, and its step."""
    train, directory = pieces.config.train, Path(run) / "checkpoints"
    if not directory.is_dir():
        raise InputError("a run that has saved checkpoints", f"{directory}: no such directory", "train the run first")
    checkpoints = Checkpoints(directory, best_metric=train.best_metric, best_mode=train.best_mode, read_only=True)
    number = find_step(checkpoints, step)
    shapes = b.param_shapes(pieces.model)
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, param_shardings(shapes, pieces.mesh)
    )
    try:
        return checkpoints.restore_params(number, like), number
    finally:
        checkpoints.close()


def export_run(run: str | Path, to: str | Path, *, step: str = "best", dtype: str = "float32") -> int:
    """Writes the Hugging Face directory of a run's checkpoint; returns its step.

    A run with a reward head becomes a sequence classifier of one label; a value head is left out.

    Args:
        step: `best`, `latest` or a number.
        dtype: of the written weights: float32, bfloat16 or float16.
    """
    config = load_run(run)
    pieces = b.build(config)
    params, number = run_params(pieces, run, step)
    heads = params.get(SCALAR_HEADS, {})
    if "reward" in heads:
        params = params | {SCALAR_HEADS: {"reward": heads["reward"]}}
    else:  # a value head only serves training
        params = {name: leaf for name, leaf in params.items() if name != SCALAR_HEADS}
    save_pretrained(
        to,
        pieces.source.spec,
        params,
        pieces.tokenizer,
        dtype=np.dtype(dtype),
        generation_config=pieces.source.generation_config or None,
        model_card=_model_card(config, number),
    )
    return number


def _model_card(config: Config, step: int) -> str:
    settings = OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))
    return (
        f"# {Path(config.out).name}\n\n"
        f"{config.model.path}, trained with jaxpref for {step} steps on {', '.join(config.data.train)}.\n\n"
        f"The whole configuration:\n\n```yaml\n{settings}```\n"
    )
