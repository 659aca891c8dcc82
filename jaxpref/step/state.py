"""The train state: what an optimizer step changes and a checkpoint holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from jaxpref.models.parameters import cast_for_products, leaf_path
from jaxpref.models.placement import Axes, param_shardings
from jaxpref.objectives import Part
from jaxpref.sharding import in_host_memory, replicated
from jaxpref.step.batch_loss import init_running
from jaxpref.step.policy import Frozen


class TrainState(NamedTuple):
    """All that training changes; what a checkpoint holds."""

    params: Any
    """The trained parameters: all weights, or an adapter (`policy.py`)."""
    opt_state: Any
    step: jax.Array
    rng: jax.Array
    running: Any
    """Statistics that objectives carry from step to step: {part: {name: scalar}}."""
    ref_params: Any
    """Of a reference that moves: what follows `params`, in float32; otherwise None."""


@dataclass(frozen=True)
class MovingReference:
    """A reference that follows the policy: ref <- alpha * policy + (1 - alpha) * ref.

    Source: TR-DPO (Gorbatovski et al., arXiv 2404.09656): soft updates, hard ones with alpha 1.
    """

    every: int
    """Steps between two updates."""
    alpha: float
    dtype: Any
    """The compute dtype, in which the reference runs; it is kept in float32."""

    def laid_over(self, base: Mapping[str, Any], ref_params: Mapping[str, Any]) -> Frozen:
        """The frozen parameters of a step, whose reference is the state's `ref_params`."""
        return Frozen(base, cast_for_products(ref_params, self.dtype))

    def updated(self, ref_params: Any, params: Any, step: jax.Array) -> Any:
        """The state's `ref_params` after `step` steps, `params` being the policy's by then."""

        def mix(ref, policy):
            return self.alpha * policy + (1.0 - self.alpha) * ref

        def moved():
            return jax.tree.map(mix, ref_params, params)

        def unmoved():
            return ref_params

        return lax.cond(step % self.every == 0, moved, unmoved)


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    seed: int,
    parts: Sequence[Part] = (),
    ref_params: Any = None,
) -> TrainState:
    """The state before the first step.

    Args:
        parts: of the objective, whose running statistics the state holds.
        ref_params: as of `TrainState`.
    """
    return TrainState(
        params=params,
        opt_state=optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key(seed),
        running=init_running(parts),
        ref_params=ref_params,
    )


def state_shardings(
    shapes: TrainState, mesh: Mesh, axes: Axes = None, *, offload: bool = False
) -> TrainState:
    """Moments lie as their parameters do; counters, factored moments and the key are replicated.

    Args:
        shapes: the state, as arrays or ShapeDtypeStructs.
        axes: as of `Model.axes`.
        offload: moments lie in the hosts' memory.
    """
    params = jax.tree_util.tree_leaves_with_path(shapes.params)
    shardings = jax.tree.leaves(param_shardings(shapes.params, mesh, axes))
    of_params = {
        (leaf_path(path), leaf.shape): sharding
        for (path, leaf), sharding in zip(params, shardings, strict=True)
    }
    whole = replicated(mesh)

    def sharding(path, leaf):
        # A moment's path ends as its parameter's does: opt_state/0/mu/layers/attention/q.
        names = leaf_path(path).split("/")
        for i in range(len(names)):
            parameter = "/".join(names[i:]), leaf.shape
            if parameter in of_params:
                return of_params[parameter]
        return whole

    laid_out = jax.tree_util.tree_map_with_path(sharding, shapes)
    if not offload:
        return laid_out

    def moved(leaf, sharding):
        return in_host_memory(sharding) if leaf.ndim else sharding  # counters stay

    return laid_out._replace(opt_state=jax.tree.map(moved, shapes.opt_state, laid_out.opt_state))
