"""What a run says of itself when it begins, and whether it has the data that its settings need."""

import logging

from jaxpref.config import Config
from jaxpref.errors import InputError
from jaxpref.fields import AUTO
from jaxpref.runs.build import Pieces
from jaxpref.runs.compute_dtype import choose_compute_dtype
from jaxpref.runs.feed import held_out_sets
from jaxpref.runs.resume import check_length, how_to_extend
from jaxpref.sharding import named_axes

_log = logging.getLogger(__name__)


def check_held_out(pieces: Pieces) -> None:
    """Errors: InputError for settings that need held-out data where there are none."""
    train = pieces.config.train
    asked = [key for key in ("eval_every", "samples") if getattr(train, key)]
    if asked and not held_out_sets(pieces):
        raise InputError(
            f"held-out data, for train.{' and train.'.join(asked)}",
            "an empty data.eval",
            f"set data.eval=[FILE] or give `eval` in Python, or remove train.{asked[0]}",
        )


def tell_dtype(pieces: Pieces, asked: str, stored: str) -> None:
    """Says in which dtype products are computed, and why.

    Args:
        stored: what was asked for, or what the run began with.
    """
    if asked != "auto":
        why = "as model.compute_dtype says"
    elif stored != "auto":
        why = "with which the run began"
    else:
        why = choose_compute_dtype(pieces.mesh.devices.flat[0]).why
    _log.info("compute dtype: %s (%s)", pieces.config.model.compute_dtype, why)


def tell_mesh(pieces: Pieces) -> None:
    """Says over which axes the devices lie, where there are several."""
    if pieces.mesh.size > 1:
        auto = " (auto)" if pieces.config.mesh.fsdp == AUTO else ""
        _log.info("mesh: %s%s", named_axes(pieces.mesh.shape), auto)


def tell_position(config: Config, step: int, steps: int, stopped: str) -> None:
    """Says where a run goes on.  Errors: InputError where it is beyond its end.

    Args:
        stopped: why a callback has ended it; empty: none has.
    """
    check_length(config, step, steps)
    if stopped:
        _log.warning(
            "%s was ended at step %d of %d (%s): nothing is trained, and its metrics are returned; "
            "choose another `out` for a new run",
            config.out,
            step,
            steps,
            stopped,
        )
        return
    if step < steps:
        _log.info("%s goes on from step %d of %d", config.out, step, steps)
        return
    _log.warning(
        "%s is finished (step %d of %d): nothing is trained, and its metrics are returned; %s",
        config.out,
        step,
        steps,
        how_to_extend(config),
    )
