"""The Pallas kernels of tpu_attention.py: attention and its gradients over blocks of tokens.

A program of `forward` and `query_gradient` has a block of queries and goes over the blocks of keys
that they see; one of `key_gradients` has a block of keys and goes over the queries that see them.

The logits of a block are [keys, queries]: what there is one of per query (maximum, sum, logsumexp)
is a row then, and is found without crossing the lanes of the vector unit.  The letters are those of
types.py; query heads are [n, J], J of them to a program.  Arrays end on [H, L]: the last axis is
padded to 128 in memory, which a head size need not be, and XLA rotates halves of heads best so.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxpref.models.attention import MASKED, capped
from jaxpref.models.tpu_grid import (
    Cotangents,
    Inputs,
    Options,
    Ranges,
    in_order,
    over_keys,
    over_queries,
    sizes,
)

F32 = jnp.float32

VMEM_BYTES = 48 * 2**20
"""What a kernel may use of the vector memory (VMEM): at least 64 MiB on the supported chips."""


def forward(x: Inputs, sink_nJ1: jax.Array, ranges: Ranges, options: Options):
    """(out [R, n, J, H, L] or [R, n, J, L, H], logsumexp [R, n, J, L]).

    The logsumexp of a query that sees nothing is +inf: exp(logit - logsumexp) is then exactly 0.
    """
    (R, n, J, H, L), bq = x.q_RnJHL.shape, options.blocks.queries
    specs, grid = over_keys(x, options)
    out = jax.ShapeDtypeStruct((R, n, J, *in_order(H, L, options)), x.q_RnJHL.dtype)
    return _call(
        _forward_kernel,
        grid,
        (x, sink_nJ1),
        (specs.inputs, specs.sink),
        (specs.out, specs.per_query),
        (out, jax.ShapeDtypeStruct((R, n, J, L), F32)),
        [(J, bq), (J, bq), (J, H, bq)],
        2,
        ranges,
        options,
    )


def query_gradient(x: Inputs, d: Cotangents, ranges: Ranges, options: Options) -> jax.Array:
    """dq [R, n, J, H, L] of the scaled queries, in their dtype."""
    J, H = x.q_RnJHL.shape[2:4]
    specs, grid = over_keys(x, options)
    return _call(
        _query_gradient_kernel,
        grid,
        (x, d),
        (specs.inputs, specs.cotangents),
        specs.inputs.q_RnJHL,
        x.q_RnJHL,
        [(J, H, options.blocks.queries)],
        3,
        ranges,
        options,
    )


def key_gradients(x: Inputs, d: Cotangents, ranges: Ranges, options: Options):
    """(dk, dv) [R, M, H, L] in the dtypes of k and v."""
    accumulator = sizes(x).H, options.blocks.keys
    specs, grid = over_queries(x, options)
    return _call(
        _key_gradients_kernel,
        grid,
        (x, d),
        (specs.inputs, specs.cotangents),
        (specs.inputs.k_RMHL, specs.inputs.v_RMHL),
        (x.k_RMHL, x.v_RMHL),
        [accumulator, accumulator],
        4,
        ranges,
        options,
    )


def _call(
    kernel: Callable,
    grid: tuple[int, ...],
    operands: tuple[Any, ...],
    in_specs: Any,
    out_specs: Any,
    outs: Any,
    scratch: list[tuple[int, ...]],
    products: int,
    ranges: Ranges,
    options: Options,
) -> Any:
    """`pallas_call`, with what is alike for all kernels; `products` are those of a block's."""
    size = sizes(operands[0])
    pairs = size.R * size.n * size.J * size.L * size.keys // 2  # as one causal sequence would see
    moved = sum(array.size * array.dtype.itemsize for array in jax.tree.leaves((operands, outs)))
    return pl.pallas_call(
        partial(kernel, options=options),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(ranges),
            grid=grid,
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[pltpu.VMEM(shape, F32) for shape in scratch],
        ),
        out_shape=jax.tree.map(lambda out: jax.ShapeDtypeStruct(out.shape, out.dtype), outs),
        compiler_params=pltpu.CompilerParams(
            # Where a chip has two cores, each takes some of the rows or heads.
            dimension_semantics=(pltpu.PARALLEL,) * 2 + (pltpu.ARBITRARY,) * (len(grid) - 2),
            vmem_limit_bytes=VMEM_BYTES,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * size.H * pairs, transcendentals=pairs, bytes_accessed=moved
        ),
        interpret=options.interpret,
    )(*ranges, *operands)


def _forward_kernel(
    first, end, expiry, start, x: Inputs, sink, out, lse, top, total, acc, *, options: Options
):
    """Scratch: of each query the maximum so far, and sums relative to it (attention.py)."""
    ranges, J = Ranges(first, end, expiry, start), out.shape[2]

    @pl.when(pl.program_id(3) == 0)
    def begin():  # the sink has been seen, and its value is 0
        top[...] = jnp.broadcast_to(sink[0], top.shape)
        total[...] = jnp.ones_like(total)
        acc[...] = jnp.zeros_like(acc)

    def add(tokens, visible_kq):
        k_kH, v_Hk = x.k_RMHL[0, 0, :, tokens].T, x.v_RMHL[0, 0, :, tokens]
        for h in range(J):
            logits_kq = _logits(x.q_RnJHL[0, 0, h], k_kH, options)
            logits_kq = jnp.where(visible_kq, logits_kq, MASKED)
            head = slice(h, h + 1)
            new_top_1q = jnp.maximum(top[head], logits_kq.max(0, keepdims=True))
            p_kq = jnp.exp(logits_kq - new_top_1q)
            shrink_1q = jnp.exp(top[head] - new_top_1q)
            top[head] = new_top_1q
            total[head] = total[head] * shrink_1q + p_kq.sum(0, keepdims=True)
            acc[h] = acc[h] * shrink_1q + _dot(v_Hk, p_kq.astype(v_Hk.dtype))

    _for_seen_keys(add, x, ranges, options)

    @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
    def finish():
        seen = top[...] > MASKED / 2
        sums = jnp.where(seen, total[...], 1.0)
        lse[0, 0] = jnp.where(seen, top[...] + jnp.log(sums), jnp.inf)
        factor = jnp.where(seen, 1.0 / sums, 0.0)
        for h in range(J):
            out_Hq = (acc[h] * factor[h : h + 1]).astype(out.dtype)
            out[0, 0, h] = out_Hq if options.out_tokens_last else out_Hq.T


def _query_gradient_kernel(
    first, end, expiry, start, x: Inputs, d: Cotangents, dq, acc, *, options: Options
):
    ranges, J = Ranges(first, end, expiry, start), dq.shape[2]

    @pl.when(pl.program_id(3) == 0)
    def begin():
        acc[...] = jnp.zeros_like(acc)

    def add(tokens, visible_kq):
        k_Hk = x.k_RMHL[0, 0, :, tokens]
        k_kH, v_kH = k_Hk.T, x.v_RMHL[0, 0, :, tokens].T
        for h in range(J):
            q_Hq, dout_Hq = x.q_RnJHL[0, 0, h], d.dout_RnJHL[0, 0, h]
            lse_1q, delta_1q = d.lse_RnJL[0, 0, h : h + 1], d.delta_RnJL[0, 0, h : h + 1]
            _, dlogits_kq = _softmax_gradient(
                q_Hq, k_kH, v_kH, dout_Hq, lse_1q, delta_1q, visible_kq, options
            )
            acc[h] += _dot(k_Hk, dlogits_kq)

    _for_seen_keys(add, x, ranges, options)

    @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
    def finish():
        dq[0, 0] = acc[...].astype(dq.dtype)


def _key_gradients_kernel(
    first, end, expiry, start, x: Inputs, d: Cotangents, dk, dv, dk_acc, dv_acc, *, options
):
    row, j, some, part = (pl.program_id(axis) for axis in (0, 2, 3, 4))
    bq, bk = options.blocks.queries, options.blocks.keys

    @pl.when((some == 0) & (part == 0))
    def begin():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    k_kH, v_kH = x.k_RMHL[0, 0].T, x.v_RMHL[0, 0].T

    def add(i, tokens):
        position_1q = None if x.position_R1L is None else x.position_R1L[0, :, tokens]
        visible_kq = _visible(start[0] + i * bq, j * bk, (bk, bq), x.limits_R2L[0], position_1q)
        for h in range(x.q_RnJHL.shape[2]):
            q_Hq = x.q_RnJHL[0, 0, h, :, tokens]
            dout_Hq = d.dout_RnJHL[0, 0, h, :, tokens]
            head = slice(h, h + 1)
            lse_1q, delta_1q = d.lse_RnJL[0, 0, head, tokens], d.delta_RnJL[0, 0, head, tokens]
            p_kq, dlogits_kq = _softmax_gradient(
                q_Hq, k_kH, v_kH, dout_Hq, lse_1q, delta_1q, visible_kq, options
            )
            dk_acc[...] += _dot(q_Hq, dlogits_kq, over=(1, 1))
            dv_acc[...] += _dot(dout_Hq, p_kq, over=(1, 1))

    _for_blocks(add, first[row, j], end[row, j], part, options.blocks.fetched_queries, bq)

    @pl.when((some == pl.num_programs(3) - 1) & (part == pl.num_programs(4) - 1))
    def finish():
        dk[0, 0] = dk_acc[...].astype(dk.dtype)
        dv[0, 0] = dv_acc[...].astype(dv.dtype)


def _for_seen_keys(add, x: Inputs, ranges: Ranges, options: Options) -> None:
    """add(tokens, visible [keys, queries]) for the fetched blocks of keys that a query may see."""
    row, i, part = (pl.program_id(axis) for axis in (0, 2, 3))
    bq, bk = options.blocks.queries, options.blocks.keys
    first_query = ranges.start_1[0] + i * bq
    position_1q = None if x.position_R1L is None else x.position_R1L[0]

    def add_if_seen(j, tokens):
        @pl.when(ranges.expiry_Rj[row, j] > first_query)
        def seen():
            limits_2k = x.limits_R2L[0, :, tokens]
            add(tokens, _visible(first_query, j * bk, (bk, bq), limits_2k, position_1q))

    first, end = ranges.first[row, i], ranges.end[row, i]
    _for_blocks(add_if_seen, first, end, part, options.blocks.fetched_keys, bk)


def _for_blocks(body, first, end, part, fetched: int, size: int) -> None:
    """body(block, its tokens in VMEM) for the blocks from first to end in the fetched part."""
    per_part = fetched // size
    begin = part * per_part

    def step(block, _):
        body(block, pl.ds(pl.multiple_of((block - begin) * size, size), size))

    lax.fori_loop(jnp.maximum(first, begin), jnp.minimum(end, begin + per_part), step, None)


def _visible(first_query, first_key, shape, limits_2k, position_1q):
    """[keys, queries] which keys of a block are seen."""
    query = first_query + lax.broadcasted_iota(jnp.int32, shape, 1)
    key = first_key + lax.broadcasted_iota(jnp.int32, shape, 0)
    visible_kq = (key <= query) & (query < _column(limits_2k[:1]))
    if position_1q is not None:
        visible_kq &= position_1q < _column(limits_2k[1:])
    return visible_kq


def _column(x_1k):
    """[k, 1]; eight rows, since it is whole registers that are transposed."""
    return jnp.broadcast_to(x_1k, (8, x_1k.shape[1])).T[:, :1]


def _logits(q_Hq, k_kH, options: Options):
    return capped(_dot(k_kH, q_Hq), options.softcap)


def _softmax_gradient(q_Hq, k_kH, v_kH, dout_Hq, lse_1q, delta_1q, visible_kq, options: Options):
    """Probabilities, and the gradient of the logits, [keys, queries] in the dtype of q."""
    logits_kq = _logits(q_Hq, k_kH, options)
    p_kq = jnp.exp(jnp.where(visible_kq, logits_kq, MASKED) - lse_1q)
    dlogits_kq = p_kq * (_dot(v_kH, dout_Hq) - delta_1q)
    if options.softcap is not None:  # d(c tanh(x / c)) / dx = 1 - tanh(x / c)^2
        dlogits_kq *= 1.0 - (logits_kq / options.softcap) ** 2
    return p_kq.astype(q_Hq.dtype), dlogits_kq.astype(q_Hq.dtype)


def _dot(a, b, over: tuple[int, int] = (1, 0)):
    """Float32 sum over an axis of each; float32 operands are not rounded."""
    axes = (((over[0],), (over[1],)), ((), ()))
    precision = "highest" if a.dtype == F32 else None
    return lax.dot_general(a, b, axes, precision=precision, preferred_element_type=F32)
