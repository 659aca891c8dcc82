"""An optimizer and a schedule of the user's own, in place of the config's."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpref.config import OptimConfig
from jaxpref.errors import InputError
from jaxpref.step.offloaded import brought_whole


class GivenRule(NamedTuple):
    """An optimizer and a schedule of the user's own, in place of the config's."""

    optimizer: Any = None
    """An `optax.GradientTransformation`, or a function of a schedule that makes one, as
    `optax.adamw` is; None: the config's.  It replaces clipping and decay too."""
    schedule: optax.Schedule | None = None
    """Step t = 0, 1, ... -> learning rate; None: the config's."""


AS_CONFIGURED = GivenRule()


def takes(function: Any, schedule: Any) -> bool:
    """Whether it is a function of one argument."""
    try:
        inspect.signature(function).bind(schedule)
    except (TypeError, ValueError):
        return False
    return True


def _check_update(optimizer: optax.GradientTransformation) -> None:
    """Errors: InputError for an optimizer that asks for more than gradients, as lbfgs does."""
    weights = {"weight": jnp.zeros(1)}
    try:
        jax.eval_shape(lambda w: optimizer.update(w, optimizer.init(w), w), weights)
    except TypeError as error:
        if "keyword-only" in str(error):
            raise InputError(
                "an optimizer whose update takes gradients, state and parameters alone",
                f"optimizer={optimizer!r:.100}: {error}",
                "give one without a line search: a step has the loss at one point",
            ) from error
    except Exception:  # it may know the model's own tree, and not this one
        pass


def given_optimizer(
    config: OptimConfig, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Of an optimizer of the user's own nothing is known but its state."""
    _check_update(optimizer)
    return brought_whole(optimizer) if config.offload else optimizer
