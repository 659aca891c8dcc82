"""Moments that come to the devices layer by layer: the update is the rule's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.config import OptimConfig
from jaxpref.models.parameters import nest
from jaxpref.plan.flops import equations
from jaxpref.step.optim import make_optimizer, make_schedule

SHAPES = {
    "embed/table": (7, 3),
    "layers/attention/q": (4, 3, 2),
    "layers/mlp/up": (4, 3),
    "layers/attention_norm/scale": (4, 3),  # does not decay
    "layers/delta/out": (2, 5),  # a stack of fewer layers
    "final_norm/scale": (3,),
}


def drawn(rng) -> dict:
    return nest({name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()})


def in_host_memory(tree):
    host = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    return jax.tree.map(lambda x: jax.device_put(x, host) if x.ndim else x, tree)


def updates_of(config: OptimConfig, state_of=lambda state: state) -> tuple[list, object]:
    """Of three steps, and the state after them."""
    rng = np.random.default_rng(0)
    optimizer = make_optimizer(config, make_schedule(config, 10))
    params = drawn(rng)
    state = state_of(optimizer.init(params))
    layout = jax.tree.map(lambda x: x.sharding, state)
    update = jax.jit(optimizer.update, out_shardings=(None, layout))
    updates = []
    for _ in range(3):
        step, state = update(drawn(rng), state, params)
        updates.append(step)
    return updates, state


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "adamw", "weight_decay": 0.1},
        {"name": "adamw", "moment_dtype": "bfloat16"},
        {"name": "lion"},
        {"name": "sgd", "momentum": 0.9},
        {"name": "adafactor"},
    ],
    ids=str,
)
def test_updates_and_moments_are_those_of_a_state_on_the_devices(changes):
    # A norm of 1 clips every step, by the norm of all leaves together.
    common = {"learning_rate": 0.01, "clip_norm": 1.0, **changes}
    there, state = updates_of(OptimConfig(**common))
    here, offloaded = updates_of(OptimConfig(**common, offload=True), in_host_memory)
    assert jax.tree.structure(state) == jax.tree.structure(offloaded)
    assert {x.sharding.memory_kind for x in jax.tree.leaves(offloaded) if x.ndim} == {"pinned_host"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-9), (there, state), (here, offloaded))


def test_no_stack_of_layers_is_brought_whole():
    config = OptimConfig(name="adamw", offload=True)
    optimizer = make_optimizer(config, make_schedule(config, 10))
    params = drawn(np.random.default_rng(0))
    program = jax.make_jaxpr(optimizer.update)(params, in_host_memory(optimizer.init(params)), params)
    brought = {
        equation.outvars[0].aval.shape
        for equation in equations(program.jaxpr)
        if equation.primitive.name == "device_put" and equation.outvars[0].aval.memory_space == jax.memory.Space.Device
    }
    assert brought == {(7, 3), (3,), (3, 2), (5,)}, "of the stacks one layer, of the others all"
