"""Moments and reference in the hosts' memory between steps: the same numbers, elsewhere."""

import jax
import jax.numpy as jnp
import pytest
import tiny

from jaxpref.errors import InputError
from jaxpref.models.layers import product
from jaxpref.models.parameters import flatten, nest
from jaxpref.runs import build as build_module
from jaxpref.runs.build import build
from jaxpref.settings import make_config
from jaxpref.step.policy import Frozen
from jaxpref.training import loop

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

OFFLOADED = {"optim": {"offload": True}, "reference": {"offload": True}}


@pytest.fixture
def memories(monkeypatch):
    """Of every run that begins: the kinds of memory of its moments and of its reference."""
    seen = []

    def compiled(training, state, *arguments):
        kinds = lambda tree: {x.sharding.memory_kind for x in jax.tree.leaves(tree) if x.ndim}
        seen.append((kinds(state.opt_state), kinds(training.frozen.reference)))
        return original(training, state, *arguments)

    original = loop._compile
    monkeypatch.setattr(loop, "_compile", compiled)
    return seen


@pytest.mark.slow
def test_losses_and_checkpoints_are_those_of_a_run_on_the_devices(tiny_files, tmp_path, memories):
    def run(out, die_at=None, **changes):
        common = {"train": {"max_steps": 4, "save_every": 2}, "mesh": {"data": 1, "fsdp": 2}}
        files = tiny_files.model, tiny_files.train, tiny_files.held_out
        return tiny.run(tiny.config(out, *files, **common, **changes), die_at=die_at)

    there = run(tmp_path / "there")
    here = run(tmp_path / "here", **OFFLOADED)
    assert memories == [({"device"}, {"device"}), ({"pinned_host"}, {"pinned_host"})]
    # Two programs: XLA adds up in another order where it updates layer by layer.
    assert here.losses == pytest.approx(there.losses, rel=1e-6)
    assert here.result.last_eval == pytest.approx(there.result.last_eval, rel=1e-5)
    # Killed after the second step, and gone on with from its checkpoint.
    run(tmp_path / "killed", die_at=3, **OFFLOADED)
    again = run(tmp_path / "killed", **OFFLOADED)
    assert memories[-1] == ({"pinned_host"}, {"pinned_host"})
    assert again.losses == here.losses[2:]


def test_matrices_of_layers_stay_on_the_host_until_a_product_reads_them():
    host = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    leaves = {"embed/table": (5, 4), "layers/attention/q": (2, 4, 1, 4), "layers/attention_norm/scale": (2, 4)}
    reference = nest({name: jax.device_put(jnp.ones(shape), host) for name, shape in leaves.items()})
    seen = {}

    def look(reference):
        params = flatten(Frozen({}, reference).reference_params())
        seen.update({name: jax.typeof(x).memory_space for name, x in params.items()})
        return product("BD,DNH->BNH", jnp.ones((3, 4)), params["layers/attention/q"][0])

    assert jax.jit(look)(reference).tolist() == [[[4.0] * 4]] * 3
    on = {jax.memory.Space.Device: [], jax.memory.Space.Host: []}
    for name, space in seen.items():
        on[space].append(name)
    assert on[jax.memory.Space.Host] == ["layers/attention/q"] and len(on[jax.memory.Space.Device]) == 2


def test_devices_without_host_memory_are_refused(tiny_files, tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "has_host_memory", lambda mesh: False)
    config = tiny.config(tmp_path / "run", tiny_files.model, tiny_files.train, **OFFLOADED)
    with pytest.raises(InputError, match="optim.offload and reference.offload"):
        build(config)


@pytest.mark.parametrize(
    "changes",
    [{"reference": {"mode": "cache"}}, {"reference": {"sync_every": 2}}, {"adapter": {"rank": 4}}],
    ids=["cache", "moving", "adapter"],
)
def test_a_reference_without_a_copy_cannot_be_moved(changes, tiny_files, tmp_path):
    settings = tiny.settings(tmp_path / "run", tiny_files.model, tiny_files.train, **changes)
    settings["reference"] = {**settings.get("reference", {}), "offload": True}
    with pytest.raises(InputError, match="reference.offload"):
        build(make_config(settings))
