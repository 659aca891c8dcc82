"""Attention by Pallas kernels, interpreted, against the plain softmax; what they skip; the model on a mesh."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_attention import EXPIRY, SCALE, J, L, M, R, inputs, mask_of, plain, seen

from jaxpref.config import MeshConfig
from jaxpref.models import tpu_attention as tpu
from jaxpref.models.attention import Mask
from jaxpref.models.decoder import build_model
from jaxpref.models.fused_attention import pallas_attention
from jaxpref.models.placement import param_shardings
from jaxpref.models.spec import LayerKind, ModelSpec
from jaxpref.models.tpu_grid import Blocks
from jaxpref.sharding import batch_sharding, make_mesh

pytestmark = pytest.mark.usefixtures("quick_compile")
TOLERANCE = 2e-6  # float32, values of order 1
SMALL = Blocks(8, 16, 16, 32)  # of 32 tokens: two parts of two blocks of queries, and one of two blocks of keys
SINKS = 1.0 + jnp.arange(-2.0, M * J - 2)


@pytest.fixture(params=[True, False], ids=["as of 64", "as of 128"])
def any_layout(request, monkeypatch):
    """Attention's output is laid out as for heads of 64, or of 128."""
    monkeypatch.setattr(tpu, "LANES", 128 if request.param else 8)


def weighted(out):
    weight = jnp.cos(jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape))
    return jnp.sum(weight * out.astype(jnp.float32))


def with_gradient(function, *arguments):
    value = lambda *a: (weighted(out := function(*a)), out)
    return jax.jit(jax.grad(value, argnums=range(len(arguments)), has_aux=True))(*arguments)


def kernels(window=None, softcap=None, blocks=SMALL, **options):
    return lambda q, k, v, sink=None: tpu.tpu_attention(
        q, k, v, mask_of(window), scale=SCALE, softcap=softcap, sink_N=sink, blocks=blocks, interpret=True, **options
    )


def check(arguments, window, softcap, blocks=SMALL):
    ours_grad, out = with_gradient(kernels(window, softcap, blocks), *arguments)
    exact = lambda q, k, v, sink=None: plain(q, k, v, window, softcap, sink)
    theirs_grad, theirs = with_gradient(exact, *arguments)
    np.testing.assert_allclose(out, theirs, atol=TOLERANCE)
    for a, b in zip(ours_grad, theirs_grad, strict=True):
        np.testing.assert_allclose(a, b, atol=10 * TOLERANCE)


def test_equals_plain_attention_in_value_and_gradient(any_layout):
    """With all that there is: two kinds of rows, a window, a soft cap and sinks."""
    check((*inputs(), SINKS), 7, 0.5)


OPTIONS = [(window, softcap, sinks) for window in (None, 1, 30) for softcap in (None, 3.0) for sinks in (False, True)]
SIZES = [Blocks(4, 4, 4, 4), Blocks(8, 4, 16, 8), Blocks(32, 8, 32, 8), Blocks(16, 32, 16, 32), Blocks(24, 24, 24, 48)]


@pytest.mark.slow
@pytest.mark.parametrize("window, softcap, sinks", OPTIONS)
def test_every_option_in_value_and_gradient(window, softcap, sinks, any_layout):
    check((*inputs(), SINKS) if sinks else inputs(), window, softcap)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", SIZES)
@pytest.mark.parametrize("window", [None, 5])
def test_every_size_of_blocks_in_value_and_gradient(window, blocks):
    """Parts of one block and of several, and rows that are padded."""
    check(inputs(), window, None, blocks)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2])
def test_heads_that_do_not_fit_side_by_side_are_taken_in_turn(at_once, monkeypatch):
    """Three query heads of a key head, one at a time; four of one, two at a time."""
    monkeypatch.setattr(tpu, "HEADS_AT_ONCE", at_once)
    q, k, v = inputs()
    check((q[:, :, :4], k[:, :, :1], v[:, :, :1]) if at_once == 2 else (q, k, v), None, None)


@pytest.mark.slow
def test_queries_of_a_part_of_the_row(any_layout):
    """As in a row over several devices: keys of the whole row, queries from an index on, which may be traced."""
    q, k, v = inputs()
    whole = with_gradient(
        lambda *a: jnp.where((jnp.arange(L) >= 16)[:, None, None], plain(*a, 7), 0.0)[:, 16:], q, k, v
    )
    part = lambda start, q, k, v: kernels(7, q_start=start)(q[:, 16:], k, v)
    ours = jax.jit(lambda start, *a: with_gradient(partial(part, start), *a))(jnp.int32(16), q, k, v)
    jax.tree.map(partial(np.testing.assert_allclose, atol=10 * TOLERANCE), ours, whole)


@pytest.mark.slow
def test_bfloat16_rounds_once_and_stays_bfloat16(any_layout):
    rounded = [x.astype(jnp.bfloat16) for x in inputs()]
    grads, out = with_gradient(kernels(), *rounded)
    exact_grads, exact = with_gradient(plain, *(x.astype(jnp.float32) for x in rounded))
    assert out.dtype == jnp.bfloat16 and {g.dtype for g in grads} == {jnp.dtype("bfloat16")}
    for ours, theirs in zip((out, *grads), (exact, *exact_grads), strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=0.03)  # 8 bits of mantissa


@pytest.mark.slow
def test_padding_gives_zeros_and_no_gradient():
    grads, out = with_gradient(kernels(), *inputs())
    for x in (out, *grads):
        assert np.all(np.asarray(x)[0, 27:] == 0) and np.all(np.asarray(x)[1, 30:] == 0)


@pytest.mark.slow
def test_policies_that_are_stacked_each_get_their_own():
    stacked = tuple(jnp.stack([x, 2 * x]) for x in inputs())
    both = jax.vmap(partial(with_gradient, kernels(7)))(*stacked)
    for i in range(2):
        alone = with_gradient(kernels(7), *(x[i] for x in stacked))
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, atol=10 * TOLERANCE), both, alone)


def ranges_of(mask, blocks, start=0, queries=L):
    masks = tpu._masks(mask, queries, jnp.int32(start), blocks)
    return jax.tree.map(np.asarray, tpu._ranges(masks, queries, blocks))


def test_blocks_that_no_query_sees_are_neither_computed_nor_fetched():
    """Exactly those of the mask, per row: keys before and behind, and queries that are no more interested in keys."""
    bq, bk = 4, 4
    visible = seen().reshape(R, L // bq, bq, L // bk, bk).any((2, 4))
    keys, queries = ranges_of(Mask(jnp.asarray(EXPIRY)), Blocks(bq, bk, 8, 8))
    computed = np.zeros_like(visible)
    for r, i, j in itertools.product(range(R), range(L // bq), range(L // bk)):
        computed[r, i, j] = keys.first[r, i] <= j < keys.end[r, i] and keys.expiry_Rj[r, j] > i * bq
    np.testing.assert_array_equal(computed, visible)
    assert not visible[0, 4, 2], "keys of one completion, in the midst of what the next one's queries see"
    for r, j in itertools.product(range(R), range(L // bk)):
        interested = np.flatnonzero(visible[r, :, j])
        assert list(range(queries.first[r, j], queries.end[r, j])) == interested.tolist()


@pytest.mark.parametrize("window", [1, 3, 6, 30])
def test_blocks_out_of_the_window_are_skipped(window):
    """All that are seen are computed, and of the others only few: those where a group begins."""
    visible = seen(window).reshape(R, L // 4, 4, L // 4, 4).any((2, 4))
    keys, queries = ranges_of(jax.tree.map(jnp.asarray, mask_of(window)), Blocks(4, 4, 8, 8))
    block = np.arange(L // 4)
    by_query = (keys.first[..., None] <= block) & (block < keys.end[..., None])
    by_key = ((queries.first[..., None] <= block) & (block < queries.end[..., None])).transpose(0, 2, 1)
    assert np.all(by_query >= visible) and np.all(by_key >= visible)
    assert by_query[1].sum() == by_key[1].sum() == visible[1].sum(), "one sequence: exactly those"
    assert by_query.sum() - visible.sum() <= 6


def test_a_part_of_the_row_sees_what_it_sees_in_the_whole():
    whole, _ = ranges_of(jax.tree.map(jnp.asarray, mask_of(5)), Blocks(4, 4, 8, 8))
    part, _ = ranges_of(jax.tree.map(jnp.asarray, mask_of(5)), Blocks(4, 4, 8, 8), start=12, queries=16)
    np.testing.assert_array_equal(part.first, whole.first[:, 3:7])
    np.testing.assert_array_equal(part.end, whole.end[:, 3:7])


SPEC = ModelSpec("llama", 64, 16, 32, 2, 4, 2, 8, 64, 1e4, 1e-5, True, kinds=(LayerKind(), LayerKind(5)))


@pytest.mark.slow
@pytest.mark.parametrize("mesh_shape, remat", [((2, 2, 2), "full"), ((4, 1, 2), "dots"), ((1, 2, 2, 2), "full")])
def test_a_model_on_a_mesh_equals_the_blockwise_one_without(mesh_shape, remat, monkeypatch):
    """Rows over data and fsdp, heads over tensor, a row's tokens over context; windows that differ by layer, sinks."""
    monkeypatch.setattr(tpu, "BLOCK", 8)
    monkeypatch.setattr(tpu, "FETCHED_KEYS", 16)
    spec = dataclasses.replace(SPEC, attention_sinks=True)
    rng = np.random.default_rng(0)
    token_RL = rng.integers(0, spec.vocab, (8, L)).astype(np.int32)
    expiry_RL, position_RL = np.tile(mask_of(1).expiry_RL, (4, 1)), np.tile(mask_of(1).position_RL, (4, 1))
    weight_RLD = np.where(expiry_RL[:, :, None] > 0, rng.standard_normal((8, L, spec.width)), 0).astype(np.float32)

    def gradient(model, params, *batch):
        loss = lambda params: jnp.sum(weight_RLD * model.hidden(params, *batch))
        return jax.jit(jax.value_and_grad(loss))(params)

    blockwise = build_model(spec, attention_block=8)
    params = blockwise.init(jax.random.key(1))
    theirs = gradient(blockwise, params, token_RL, position_RL, expiry_RL)
    mesh = make_mesh(MeshConfig(*mesh_shape))
    attend = partial(pallas_attention, interpret=True)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, param_shardings(params, mesh))
        batch = jax.device_put((token_RL, position_RL, expiry_RL), batch_sharding(mesh))
        ours = gradient(build_model(spec, attention_block=8, attend=attend, remat=remat), params, *batch)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, theirs)


@pytest.mark.parametrize(
    "queries, keys, query_bytes, fetched",
    [(4096, 4096, 1024, (2048, 2048)), (4096, 4096, 4096, (512, 2048)), (1200, 131072, 1024, (1280, 2048))],
)
def test_parts_that_are_fetched_fit_and_divide_the_row(queries, keys, query_bytes, fetched):
    assert tpu.choose_blocks(queries, keys, query_bytes) == (256, 256, *fetched)
    assert tpu.choose_blocks(17 * 256, 17 * 256, 2**20) == (256, 256, 256, 256), "a prime number of blocks"


@pytest.mark.parametrize(
    ("ends", "window", "blocks"),
    [((1024,), None, 10), ((512, 1024), None, 6), ((1024,), 256, 7), ((512, 512), None, 3)],
    ids=["causal", "two groups", "window", "half a row"],
)
def test_the_share_of_a_rows_pairs_follows_groups_and_windows(ends, window, blocks):
    expiry, position = np.zeros(1024, np.int32), np.zeros(1024, np.int32)
    begin = 0
    for end in ends:
        expiry[begin:end], position[begin:end] = end, np.arange(end - begin)
        begin = end
    mask = Mask(expiry[None], position[None], None if window is None else jnp.int32(window))
    assert tpu.seen_share(mask) == blocks * 256**2 / (1024**2 / 2)
