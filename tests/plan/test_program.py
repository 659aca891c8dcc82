"""Programs as XLA writes them, read: trips of loops, bytes, what is sent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.plan.collectives import collectives, replica_groups
from jaxpref.plan.flops import program_flops
from jaxpref.plan.program import Program, arrays_of


def never(line):
    raise AssertionError(f"no loop is decided by data: {line}")


def stack_of_products(w_YDD, x_BD):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x_BD, w_YDD)[0]


W, X = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32), jax.ShapeDtypeStruct((32, 64), jnp.float32)


def test_flops_count_every_run_of_a_loop():
    jaxpr = jax.make_jaxpr(stack_of_products)(W, X)
    assert program_flops(jaxpr, never) == 5 * 2 * 32 * 64 * 64


def test_flops_count_what_remat_computes_again():
    def loss(w, x, layer):
        return jnp.sum(jax.lax.scan(lambda x, w: (layer(x, w), None), x, w)[0])

    layer = lambda x, w: jnp.tanh(jnp.tanh(x @ w) @ w)
    plain = jax.make_jaxpr(jax.grad(lambda w, x: loss(w, x, layer)))(W, X)
    again = jax.make_jaxpr(jax.grad(lambda w, x: loss(w, x, jax.checkpoint(layer))))(W, X)
    one = 5 * 2 * 2 * 32 * 64 * 64
    assert program_flops(plain, never) == 3 * one
    # The last product of a layer is not needed by the backward pass.
    assert 3 * one < program_flops(again, never) <= 4 * one


def test_flops_of_a_loop_that_data_decide_follow_its_place():
    def attended(n, x):
        with jax.named_scope("attention"):
            return jax.lax.fori_loop(0, n, lambda _, y: y @ y, x)

    jaxpr = jax.make_jaxpr(attended)(3, jax.ShapeDtypeStruct((16, 16), jnp.float32))
    places = []
    assert program_flops(jaxpr, lambda place: places.append(place) or 7) == 7 * 2 * 16**3
    assert len(places) == 1 and "attention" in places[0]


def test_bytes_count_the_slice_of_a_stack_and_not_the_stack():
    program = Program.parse(jax.jit(stack_of_products).lower(W, X).compile().as_text())
    moved = program.bytes_moved(never)
    weights, state = 5 * 64 * 64 * 4, 32 * 64 * 4
    # Each layer is read once, and the state is read and written by product and tanh.
    assert weights + 5 * 2 * state < moved < 3 * weights + 5 * 8 * state


def test_arrays_of_shapes_know_what_stays_on_the_chip():
    text = "(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, f32[]{:T(128)}, s4[8]{0}, u32[4])"
    of_tuple = arrays_of(text)
    assert [a.bytes for a in of_tuple] == [12, 4, 4, 16]
    assert [a.on_chip for a in of_tuple] == [True, False, False, False]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4], device_ids=(3,1,0,2), x", [[3, 1, 0, 2]]),
        ("source_target_pairs={{0,1},{1,0},{2,3},{3,2}}", [[0, 1], [2, 3]]),
    ],
)
def test_groups_in_every_notation_of_xla(text, groups):
    assert replica_groups(text, 4).tolist() == groups


def test_collectives_of_a_program_by_axis_and_bytes():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "fsdp"))
    place = lambda shape, *spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

    def loss(w, x):
        whole = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
        return jnp.sum(jnp.tanh(x @ whole))

    step = jax.jit(loss).lower(place((64, 64), "fsdp", None), place((32, 64), "data", None))
    program = Program.parse(step.compile().as_text())
    found = collectives(program, never, mesh.devices, mesh.axis_names)
    gather = next(one for one in found if one.kind == "all-gather")
    assert gather.axes == ("fsdp",) and gather.bytes == 64 * 64 * 4 / 2 and gather.times == 1
    assert any(one.kind == "all-reduce" and one.axes == ("data",) for one in found)
    assert not any(one.dcn for one in found)


def test_collectives_between_slices_are_told_apart():
    class Device:
        def __init__(self, slice_index):
            self.slice_index = slice_index

    text = """ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %inside = f32[8]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %over = f32[8]{0} all-reduce(%inside), channel_id=2, replica_groups={{0,2},{1,3}}, to_apply=%add
}
"""
    devices = np.array([Device(0), Device(0), Device(1), Device(1)]).reshape(2, 2)
    found = collectives(Program.parse(text), never, devices, ("data", "fsdp"))
    assert {(one.axes, one.dcn, one.bytes) for one in found} == {
        (("fsdp",), False, 32.0),
        (("data",), True, 32.0),
    }


def test_what_a_slice_sends_to_another_is_a_collective():
    """As the TPU compiler writes it: the program is that of one slice."""

    class Device:
        def __init__(self, slice_index):
            self.slice_index = slice_index

    about = 'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}'
    text = f"""ENTRY %main (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  %token = token[] after-all()
  %send = (f32[8]{{0}}, u32[], token[]) send(%p, %token), channel_id=3, is_host_transfer=true, {about}
  ROOT %done = token[] send-done(%send), channel_id=3, {about}
}}
"""
    devices = np.array([Device(0), Device(0), Device(1), Device(1)]).reshape(2, 2)
    (one,) = collectives(Program.parse(text), never, devices, ("data", "fsdp"))
    assert (one.kind, one.axes, one.devices, one.bytes, one.dcn) == ("all-reduce", ("data",), 2, 32.0, True)


def test_collectives_on_sparse_cores_are_found():
    """As the TPU compiler writes them for v7x."""
    text = """%on_sparse_core (q: f32[2]) -> f32[8] {
  %q = f32[2]{0} parameter(0)
  ROOT %gathered = f32[8]{0} all-gather(%q), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (p: f32[2]) -> f32[8] {
  %p = f32[2]{0} parameter(0)
  %begun = ((f32[2]{0}, token[]), f32[8]{0}) call-start(%p), to_apply=%on_sparse_core
  ROOT %done = f32[8]{0} call-done(%begun)
}
"""
    program = Program.parse(text)
    (one,) = collectives(program, never, np.array(jax.devices()[:4]), ("fsdp",))
    assert (one.kind, one.axes, one.bytes) == ("all-gather", ("fsdp",), 24)
    assert program.bytes_moved(never) == 8 + 32
