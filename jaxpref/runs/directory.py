"""A run on disk: its config, its checkpoints and what they hold, read onto mesh or host."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from jaxpref.config import Config, ReferenceConfig
from jaxpref.errors import InputError
from jaxpref.files import check_destination
from jaxpref.models import lora
from jaxpref.models.lora import LoraSpec
from jaxpref.models.parameters import LORA
from jaxpref.models.placement import param_shardings
from jaxpref.models.source import Checkpoint
from jaxpref.objectives import Part
from jaxpref.runs.best import BestRule
from jaxpref.runs.build import Pieces, make_decoder, param_shapes
from jaxpref.runs.checkpoint import Checkpoints, find_step
from jaxpref.runs.params import load_params, reference_params, runs_reference, with_adapter
from jaxpref.runs.same_files import check_same_checkpoint
from jaxpref.settings import load_config
from jaxpref.sharding import replicated
from jaxpref.step.batch_loss import init_running
from jaxpref.step.policy import split
from jaxpref.storage.paths import as_path

RUN_FILE = "config.yaml"
DATA_FILE = "data.txt"
"""What was read of the data, and how it is packed; written just before `RUN_FILE`."""
CHECKPOINTS = "checkpoints"
OBJECTIVE_FILE = "objective.json"
"""Names of the objectives, when they came from Python and not from the config."""


MODEL_FILE = "model.json"
"""What was given to `train` of a model in memory; written where it was."""


def is_run(path: str | Path) -> bool:
    """Whether a directory is that of a run."""
    return (as_path(path) / RUN_FILE).is_file()


def check_run_directory(out: str | Path) -> None:
    """Errors: InputError where a run's files would replace some that no run wrote."""
    out = as_path(out)
    data = out / DATA_FILE
    ours = data.is_file() and "\nPlan(" in data.read_text(errors="replace")
    files = [] if ours else [DATA_FILE]
    if not ours and not (out / CHECKPOINTS).is_dir():
        files += [RUN_FILE, "metrics.jsonl"]
    for file in files:
        check_destination(out / file, "a new directory for the run (out), or that of a run")


def load_run(
    run: str | Path,
    overrides: Sequence[str] = (),
    objective: Sequence[Any] | Callable | None = None,
) -> Config:
    """The config of a run directory, with overrides.

    Errors: InputError when it is not one, or was trained with an objective from Python that is not
        given here.
    """
    if not is_run(run):
        raise InputError(
            f"the directory of a run, with {RUN_FILE} and checkpoints/",
            f"{run} {'has none' if as_path(run).is_dir() else 'does not exist'}",
            "name the directory that `out` gave the run",
        )
    from_python = objective_from_python(run)
    if from_python and objective is None:
        raise InputError(
            "the objective that was given to `train` in Python",
            f"{run} was trained with {', '.join(from_python)}",
            "pass it again as objective=[...]; of new runs, `name: module:function` in the config "
            "is found without",
        )
    config = load_config(as_path(run) / RUN_FILE, overrides)
    check_on_disk(run, config)
    return config


def objective_from_python(run: str | Path) -> list[str]:
    """Names of the functions that are the objective of a run and not in its config."""
    file = as_path(run) / OBJECTIVE_FILE
    return json.loads(file.read_text()) if file.is_file() else []


def check_on_disk(run: str | Path, config: Config) -> None:
    """Errors: InputError for a run that cannot be opened without what was given in Python."""
    given = _given(run)
    if given and (given["own"] or config.adapter.trained):
        what = "a model" if given["own"] else "the weights below its adapter"
        raise InputError(
            "a run whose model can be read from disk",
            f"{run} was given {what} in Python",
            "start the same run again in Python: of a finished one `train` returns the result at "
            "once, with `params` and `generate`",
        )


def _given(run: str | Path) -> dict[str, Any] | None:
    """What `MODEL_FILE` says; None: the model was read from disk."""
    file = as_path(run) / MODEL_FILE
    return json.loads(file.read_text()) if file.is_file() else None


def models_of(config: Config) -> list[str]:
    """What a run depends on beside its data: models and adapters, as its config names them."""
    reference = config.reference
    named = [config.model.path, config.adapter.path, reference.path, reference.adapter]
    return [path for path in (*named, *reference.extra) if path]


def read_config(run: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a run that is only decoded or averaged.

    Objective and reference play no part then, so one from Python need not be known.
    """
    config = load_config(as_path(run) / RUN_FILE, overrides)
    check_on_disk(run, config)
    return as_policy(config)


def as_policy(config: Config) -> Config:
    """The config with the default objective and reference in place of its own."""
    return replace(
        config,
        objective=Config().objective,
        reference=ReferenceConfig(),
        data=replace(config.data, other_rewards=[]),
    )


def checkpoints_of(run: str | Path, config: Config) -> Checkpoints:
    """The checkpoints of a run, to read.  Errors: InputError when it has none."""
    directory = as_path(run) / CHECKPOINTS
    if not directory.is_dir():
        raise InputError(
            "a run that has saved checkpoints",
            f"{directory}: no such directory",
            "train the run first",
        )
    best = BestRule(config.train.best_metric, config.train.best_mode)
    return Checkpoints(directory, best=best, read_only=True)


def run_state(
    pieces: Pieces, run: str | Path, step: str | int, *, objective: bool = False, base: Any = None
) -> tuple[dict[str, Any], int]:
    """`params` of a run's checkpoint on the mesh, and its step.

    Args:
        objective: also what the objective carries: `running` statistics, and where the reference
            moves `ref_params`, its parameters as they run.
        base: of a run that trained an adapter: the frozen weights, when they are loaded already.
    """

    def laid_out(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    if pieces.lora is None:
        shapes, base = param_shapes(pieces.model), {}
        shardings = param_shardings(shapes, pieces.mesh, pieces.model.axes)
        params = jax.tree.map(laid_out, shapes, shardings)
    else:  # the weights are not in the checkpoint
        start = load_params(pieces) if base is None else with_adapter(pieces, base)
        trained, base = split(start)
        params = jax.tree.map(lambda x: laid_out(x, x.sharding), trained)
    like = {"params": params}
    if objective:
        everywhere = replicated(pieces.mesh)
        running = jax.eval_shape(lambda: init_running(pieces.parts))
        like["running"] = jax.tree.map(lambda x: laid_out(x, everywhere), running)
        if pieces.moving:
            like["ref_params"] = params
    state, number = _restore(pieces.config, run, step, like, pieces.source.spec.vocab)
    if "ref_params" in state:
        state["ref_params"] = pieces.moving.laid_over(base, state["ref_params"]).reference_params()
    return state | {"params": {**base, **state["params"]}}, number


def run_params(
    pieces: Pieces, run: str | Path, step: str | int, *, base: Any = None
) -> tuple[Any, int]:
    """Parameters of a run's checkpoint on the mesh, and its step; `base` as of `run_state`."""
    state, number = run_state(pieces, run, step, base=base)
    return state["params"], number


def _restore(
    config: Config, run: str | Path, step: str | int, like: dict[str, Any], vocabulary: int
) -> tuple[dict[str, Any], int]:
    """Fields of a checkpoint's state, laid out as `like` says, and its step."""
    with checkpoints_of(run, config) as checkpoints:
        number = find_step(checkpoints, step)
        check_same_checkpoint(run, checkpoints.directory, number)
        checkpoints.check_vocabulary(number, vocabulary)
        wanted = {name: tree for name, tree in like.items() if jax.tree.leaves(tree)}
        return like | checkpoints.restore_parts(number, wanted), number


def host_params(
    config: Config,
    source: Checkpoint,
    parts: Sequence[Part],
    adapter: LoraSpec | None,
    run: str | Path,
    step: str | int,
) -> tuple[dict[str, Any], int]:
    """The trained parameters of a checkpoint, as numpy arrays on this host, and its step.

    Args:
        parts: the bound objectives, whose scalar heads were trained too.
        adapter: that the run trained in place of the weights.
        step: `best`, `latest` or a number.
    """
    shapes = param_shapes(make_decoder(config, source, parts))
    if adapter is not None:

        def new(base):
            return lora.init(jax.random.key(0), base, adapter)

        shapes, _ = split(shapes | {LORA: jax.eval_shape(new, shapes)})
    state, number = _restore(config, run, step, {"params": shapes}, source.spec.vocab)
    return state["params"], number


@dataclass(frozen=True)
class OpenRun:
    """A run's checkpoint on the mesh, with all that its objective is evaluated with."""

    pieces: Pieces
    params: Any
    ref_params: Any
    """None where the objective has no reference, or its log-probs are cached."""
    running: Any
    step: int


def open_run(pieces: Pieces, run: str | Path, step: str | int) -> OpenRun:
    """Reads a checkpoint and the reference of its objective.

    Args:
        step: `best`, `latest` or a number.
    """
    reference = pieces.config.reference
    if pieces.needs_reference and not pieces.moving and reference.path is None and _given(run):
        raise InputError(
            "a run whose reference can be read from disk",
            f"{run} started from parameters given in Python, and they are its reference",
            "evaluate it in Python: data.eval and train.eval_every",
        )
    state, number = run_state(pieces, run, step, objective=True)
    params, ref_params = state["params"], None
    if pieces.moving:
        ref_params = state["ref_params"]
    elif runs_reference(pieces):
        # Below an adapter the weights are still those of the start: they are not read again.
        start = load_params(pieces) if pieces.lora is None else params
        ref_params = reference_params(pieces, start)
    return OpenRun(pieces, params, ref_params, state["running"], number)
