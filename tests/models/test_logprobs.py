"""Packed, shared rows give the log-probs and gradients of one sequence per row, and nothing leaks between branches."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.data.loader import Loader
from jaxpref.data.pack import Layout, RowShape, empty_batch, fill_row
from jaxpref.models.chunked_head import logits
from jaxpref.models.decoder import build_model
from jaxpref.models.logprobs import Logps, completion_logps, hidden_states
from jaxpref.models.spec import ModelSpec
from jaxpref.objectives.pairwise import dpo
from jaxpref.types import EncodedGroup

pytestmark = pytest.mark.usefixtures("quick_compile")

SPEC = ModelSpec("llama", 61, 32, 48, 2, 4, 2, 8, 512, 1e4, 1e-5, True)
MODEL = build_model(SPEC, attention_block=8)
RELATIVE = 1e-5  # float32 sums in another order

LENGTHS = [(5, (3, 7)), (1, (1, 2)), (9, (4, 4)), (0, (3, 5)), (2, (11, 1)), (7, (2, 6))]


def make_groups(seed=0):
    rng = np.random.default_rng(seed)
    ids = lambda n: rng.integers(1, SPEC.vocab, n).astype(np.int32)
    return [
        EncodedGroup(ids(prompt), tuple(ids(n) for n in completions), i, f"row {i}")
        for i, (prompt, completions) in enumerate(LENGTHS)
    ]


@pytest.fixture(scope="module")
def params():
    params = jax.jit(MODEL.init)(jax.random.key(1))
    return jax.tree.map(lambda x: x * 3.0, params)  # away from uniform predictions


def one_batch(groups, layout, micro_rows=None):
    """All groups as one micro-batch."""
    loader = Loader(groups, batch_size=len(groups), micro_rows=1, layout=layout)
    rows = loader.plan.micro_batches if micro_rows is None else micro_rows
    loader = Loader(groups, batch_size=len(groups), micro_rows=rows, layout=layout)
    (step,) = list(loader.iterate())
    return jax.tree.map(lambda x: x[0], step.batch)


def sequence_logps(params, groups, layout, chunk=8):
    """[groups, K] summed log-probs in the order of the groups."""
    batch = one_batch(groups, layout)
    logps = jax.jit(lambda p: completion_logps(MODEL, p, batch, chunk=chunk))(params)
    ids = batch.row_id_RG.reshape(-1)
    order = np.asarray([int(np.flatnonzero(ids == g.row_id)[0]) for g in groups])
    return logps.sum[order], logps.count[order]


def one_sequence_per_row(params, groups):
    """The plain way: every prompt + completion alone in a row, the full softmax, no packed arrays."""
    sequences = [(len(g.prompt_ids), np.concatenate([g.prompt_ids, ids])) for g in groups for ids in g.completion_ids]
    rows = np.zeros((len(sequences), 24), np.int32)
    expiry, scored = np.zeros_like(rows), np.zeros(rows.shape, np.float32)
    for row, (prompt, ids) in enumerate(sequences):
        rows[row, : len(ids)], expiry[row, : len(ids)] = ids, len(ids)
        scored[row, max(prompt, 1) : len(ids)] = 1
    x = MODEL.hidden(params, rows, np.broadcast_to(np.arange(24), rows.shape), expiry)
    logp = jax.nn.log_softmax(jnp.einsum("rld,vd->rlv", x, MODEL.head(params), precision="highest"))[:, :-1]
    taken = jnp.take_along_axis(logp, rows[:, 1:, None], axis=2)[..., 0]
    return jnp.sum(taken * scored[:, 1:], axis=1).reshape(len(groups), -1)


LAYOUTS = [Layout(64, s, p) for s, p in itertools.product((True, False), (True, False))] + [Layout(32)]


@pytest.mark.parametrize(
    "layout",
    [LAYOUTS[0], *(pytest.param(x, marks=pytest.mark.slow) for x in LAYOUTS[1:])],
    ids=str,
)
def test_every_mixture_equals_one_sequence_per_row(params, layout):
    groups = make_groups()
    weight = jnp.cos(jnp.arange(2.0 * len(groups))).reshape(-1, 2)

    @jax.jit
    def plain_way(p):
        value = one_sequence_per_row(p, groups)
        return jnp.sum(weight * value), value

    @jax.jit
    def packed_way(p):
        value, count = sequence_logps(p, groups, layout)
        return jnp.sum(weight * value), (value, count)

    theirs, plain = jax.grad(plain_way, has_aux=True)(params)
    ours, (packed, count) = jax.grad(packed_way, has_aux=True)(params)
    np.testing.assert_allclose(packed, plain, rtol=RELATIVE)
    assert count.tolist() == [[n - (p == 0) for n in completions] for p, completions in LENGTHS]
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=RELATIVE * scale), ours, theirs)


def test_the_layouts_do_differ():
    """Otherwise the test above compares a thing with itself."""
    groups = make_groups()
    shapes = {layout: one_batch(groups, layout).token_RL.shape for layout in LAYOUTS}
    tokens = {layout: int((one_batch(groups, layout).segment_RL > 0).sum()) for layout in LAYOUTS}
    shared, apart = Layout(64, True, True), Layout(64, False, True)
    assert tokens[shared] == sum(p + sum(c) for p, c in LENGTHS)
    assert tokens[apart] == sum(2 * p + sum(c) for p, c in LENGTHS) > tokens[shared]
    assert shapes[shared][0] < shapes[Layout(64, True, False)][0] == len(LENGTHS)
    assert int(one_batch(groups, shared).segment_RL.max()) > 1


@pytest.mark.parametrize("chunk", [1, 3, 8, 1000])
def test_the_chunk_size_does_not_matter(params, chunk):
    groups = make_groups()
    np.testing.assert_allclose(
        sequence_logps(params, groups, Layout(64), chunk)[0],
        sequence_logps(params, groups, Layout(64), 5)[0],
        rtol=1e-6,
    )


def test_entropy_and_top1_are_those_of_the_full_softmax(params):
    group = make_groups()[0]
    batch = one_batch([group], Layout(32))
    logps = completion_logps(MODEL, params, batch, chunk=4)
    ids = np.concatenate([group.prompt_ids, group.completion_ids[0]])
    row = np.zeros((1, 24), np.int32)
    row[0, : len(ids)] = ids
    x = MODEL.hidden(params, row, np.arange(24)[None], np.full((1, 24), 24))[0]
    logq = np.asarray(jax.nn.log_softmax(x @ MODEL.head(params).T))[len(group.prompt_ids) - 1 : len(ids) - 1]
    np.testing.assert_allclose(logps.entropy[0, 0], -(np.exp(logq) * logq).sum(), rtol=1e-5)
    assert float(logps.top1[0, 0]) == (logq.argmax(-1) == group.completion_ids[0]).sum()


def test_policy_equal_to_reference_gives_ln2(params):
    logps = completion_logps(MODEL, params, one_batch(make_groups(), Layout(64)), chunk=8)
    out = dpo(logps, logps, beta=0.1)
    np.testing.assert_allclose(out.loss_B, np.log(2.0), atol=1e-6)


@pytest.mark.slow
def test_policy_equal_to_reference_gives_ln2_with_a_real_vocabulary():
    """The policy's pass also sums the entropy; neither may lose digits over 49,152 terms (beside float64, too)."""
    spec = dataclasses.replace(SPEC, vocab=49152)
    model = build_model(spec, attention_block=8)
    params = jax.tree.map(lambda x: 3 * x, jax.jit(model.init)(jax.random.key(2)))
    rng = np.random.default_rng(5)
    ids = lambda n: rng.integers(1, spec.vocab, n).astype(np.int32)
    batch = one_batch([EncodedGroup(ids(9), (ids(150), ids(90)), 0, "row 0")], Layout(256))
    policy = completion_logps(model, params, batch, chunk=64)
    ref = completion_logps(model, params, batch, chunk=64, stats=False)
    np.testing.assert_allclose(dpo(policy, ref, beta=0.1).loss_B, np.log(2.0), atol=1e-6)
    assert np.array_equal(policy.sum, ref.sum), "to the bit: a tie of rewards stays a tie"
    assert np.all(ref.entropy == 0) and np.all(policy.entropy > 0), "the two passes are not the same program"

    x = np.asarray(model.hidden(params, batch.token_RL, batch.position_RL, batch.expiry_RL))[0, batch.loss_src_RS[0]]
    logits = x.astype(np.float64) @ np.asarray(model.head(params), np.float64).T
    logq = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logq -= logits.max(-1, keepdims=True)
    taken = np.take_along_axis(logq, batch.loss_tok_RS[0][:, None], axis=1)[:, 0]
    slot = batch.loss_slot_RS[0]
    for k in (0, 1):
        np.testing.assert_allclose(policy.sum[0, k], taken[slot == k].sum(), rtol=1e-6)
        entropy = -(np.exp(logq[slot == k]) * logq[slot == k]).sum()
        np.testing.assert_allclose(policy.entropy[0, k], entropy, rtol=1e-5)


def test_padding_under_extreme_logits_keeps_the_gradient_finite(params):
    """Padding columns have logits like any other; exp of them must not meet their zero cotangent."""
    steep = {**params, "embed": {"table": 40 * params["embed"]["table"]}}
    batch = one_batch(make_groups()[:3], Layout(64))
    x = MODEL.hidden(steep, batch.token_RL, batch.position_RL, batch.expiry_RL)
    assert float(jnp.max(x @ steep["embed"]["table"].T)) > 100 and int(np.sum(batch.loss_slot_RS == 9)) == 0
    shifted = batch._replace(loss_slot_RS=np.where(np.arange(batch.loss_slot_RS.shape[1]) > 9, 9, batch.loss_slot_RS))
    gradient = jax.grad(lambda p: completion_logps(MODEL, p, shifted, chunk=8).sum.sum())(steep)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))


def test_no_scored_token_depends_on_another_completion_or_group(params):
    """Causality and leakage by gradient, through the embedding of every column of one packed row."""
    groups = make_groups()[:3]
    batch = one_batch(groups, Layout(64))
    assert batch.token_RL.shape[0] == 1, "the test wants all groups in one row"
    members = [g for _, g in sorted((int(i), g) for i, g in zip(batch.row_id_RG[0], groups, strict=False))]
    order = [int(i) for i in batch.row_id_RG[0]]
    columns = int(batch.segment_RL.shape[1])
    model = build_model(dataclasses.replace(SPEC, vocab=columns), attention_block=8)

    def logps_of(table_LD):
        """Log-probs with a private embedding per column, so that gradients tell columns apart."""
        wide = {**params, "embed": {"table": table_LD}}
        own = batch._replace(token_RL=np.arange(columns, dtype=np.int32)[None])
        x = model.hidden(wide, own.token_RL, own.position_RL, own.expiry_RL)
        source = x[0, batch.loss_src_RS[0]]
        logits = source @ params["embed"]["table"].T
        return jax.nn.log_softmax(logits)[jnp.arange(len(source)), batch.loss_tok_RS[0]]

    table = params["embed"]["table"][batch.token_RL[0]]
    jacobian = np.asarray(jnp.abs(jax.jit(jax.jacrev(logps_of))(table)).sum(-1))  # [S, columns]
    padding = batch.slot_count_RGK.shape[1] * 3
    column = 0
    spans = []  # (prompt, completion k) columns of every slot
    for row_id in order:
        group = next(g for g in members if g.row_id == row_id)
        prompt = range(column, column + len(group.prompt_ids))
        column += len(prompt)
        for ids in group.completion_ids:
            spans.append((prompt, range(column, column + len(ids))))
            column += len(ids)
    checked = 0
    for s, slot in enumerate(batch.loss_slot_RS[0]):
        if slot == padding:
            continue
        prompt, completion = spans[slot]
        source = int(batch.loss_src_RS[0, s])
        allowed = {c for c in (*prompt, *completion) if c <= source}
        seen = set(np.flatnonzero(jacobian[s] > 0).tolist())
        assert seen == allowed, f"loss token {s} of slot {slot} sees {sorted(seen)}, not {sorted(allowed)}"
        checked += 1
    assert checked == sum(sum(c) for _, c in LENGTHS[:3])


def test_what_padding_holds_is_irrelevant(params):
    groups = make_groups()[:3]
    batch = one_batch(groups, Layout(64))
    padding = batch.segment_RL == 0
    assert padding.any()
    other = batch._replace(
        token_RL=np.where(padding, 7, batch.token_RL), position_RL=np.where(padding, 3, batch.position_RL)
    )
    a, b = (completion_logps(MODEL, params, x, chunk=8) for x in (batch, other))
    assert isinstance(a, Logps) and np.array_equal(a.sum, b.sum)


@pytest.mark.slow
def test_padding_of_the_head_and_a_soft_cap(params):
    """Rows of the head that are no token have no part in value or gradient; capped logits against the plain formula."""
    spec, batch = dataclasses.replace(SPEC, logit_softcap=1.5), one_batch(make_groups()[:3], Layout(64))
    narrow, wide = (build_model(spec, attention_block=8, vocab_multiple=n) for n in (1, 8))
    padded = {**params, "embed": {"table": jnp.pad(params["embed"]["table"], ((0, 3), (0, 0)), constant_values=9.0)}}
    assert jax.eval_shape(wide.init, jax.random.key(0))["embed"]["table"].shape == (64, SPEC.width)
    asked = ("collision", "kl")

    def total(model, p):
        ref = hidden_states(model, jax.tree.map(lambda x: 0.5 * x, p), batch)
        logps = completion_logps(model, p, batch, chunk=8, asked=asked, ref_states=jax.lax.stop_gradient(ref))
        return jnp.sum(logps.sum + 0.5 * logps.kl), logps

    of = lambda model, p: jax.jit(jax.grad(lambda p: total(model, p), has_aux=True))(p)
    (grads, logps), (wide_grads, wide_logps) = of(narrow, params), of(wide, padded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=RELATIVE), wide_logps, logps)
    assert not np.any(wide_grads["embed"]["table"][SPEC.vocab :])
    wide_grads["embed"]["table"] = wide_grads["embed"]["table"][: SPEC.vocab]
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=RELATIVE * scale), wide_grads, grads)

    x = narrow.hidden(params, batch.token_RL, batch.position_RL, batch.expiry_RL)
    capped = 1.5 * np.tanh(np.asarray(jnp.einsum("RLD,VD->RLV", x, narrow.head(params), precision="highest")) / 1.5)
    np.testing.assert_allclose(logits(wide, x, padded["embed"]["table"])[..., : SPEC.vocab], capped, atol=1e-5)
    assert np.all(logits(wide, x, padded["embed"]["table"])[..., SPEC.vocab :] == -1e30)
    logp = jax.nn.log_softmax(capped[0, batch.loss_src_RS[0]])
    taken = np.take_along_axis(np.asarray(logp), batch.loss_tok_RS[0][:, None], axis=1)[:, 0]
    expected = [taken[batch.loss_slot_RS[0] == slot].sum() for slot in range(6)]
    np.testing.assert_allclose(logps.sum.reshape(-1), expected, rtol=RELATIVE)


def test_an_empty_row_gives_zeros():
    batch = empty_batch(1, RowShape(16, 4, 2, 2), [])
    logps = completion_logps(MODEL, MODEL.init(jax.random.key(0)), batch, chunk=4)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(logps))


def test_full_logits_are_never_built(params):
    """No [R, L, V] or [R, S, V] array is in the compiled gradient."""
    batch = one_batch(make_groups(), Layout(64))
    R, S = batch.loss_src_RS.shape
    function = jax.grad(lambda p: completion_logps(MODEL, p, batch, chunk=4).sum.sum())
    program = jax.jit(function).lower(params).compile().as_text()
    assert f"[{R},4,{SPEC.vocab}]" in program
    assert S > 4
    for length in (64, S):
        assert f"[{R},{length},{SPEC.vocab}]" not in program and f"[{R * length},{SPEC.vocab}]" not in program


def test_fill_row_by_hand():
    """The picture in docs/design.md: prompt a b, completions c d and e, in columns 0-4."""
    group = EncodedGroup(np.array([10, 11]), (np.array([12, 13]), np.array([14])), 5, "row")
    batch = empty_batch(1, RowShape(8, 4, 1, 2), [])
    fill_row(batch, 0, [group], share_prefix=True)
    assert batch.token_RL[0].tolist() == [10, 11, 12, 13, 14, 0, 0, 0]
    assert batch.position_RL[0].tolist() == [0, 1, 2, 3, 2, 0, 0, 0]
    assert batch.expiry_RL[0].tolist() == [5, 5, 4, 4, 5, 0, 0, 0]
    assert batch.segment_RL[0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert batch.loss_src_RS[0].tolist() == [1, 2, 1, 0]
    assert batch.loss_tok_RS[0].tolist() == [12, 13, 14, 0]
    assert batch.loss_slot_RS[0].tolist() == [0, 0, 1, 3]
    assert batch.slot_count_RGK[0].tolist() == [[2, 1]]
    assert batch.last_RGK[0].tolist() == [[3, 4]] and batch.prompt_last_RG[0].tolist() == [1]
    apart = empty_batch(1, RowShape(8, 4, 1, 2), [])
    fill_row(apart, 0, [group], share_prefix=False)
    assert apart.token_RL[0].tolist() == [10, 11, 12, 13, 10, 11, 14, 0]
    assert apart.expiry_RL[0].tolist() == [4, 4, 4, 4, 7, 7, 7, 0]
    assert apart.loss_src_RS[0].tolist() == [1, 2, 5, 0]
