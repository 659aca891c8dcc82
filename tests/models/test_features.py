"""Every feature of ModelSpec against the same decoder written the plain way (plain.py), in packed, shared rows."""

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import tolerance

from jaxpref.data.loader import Loader
from jaxpref.data.pack import Layout
from jaxpref.models.decoder import build_model
from jaxpref.models.logprobs import completion_logps
from jaxpref.types import EncodedGroup

pytestmark = pytest.mark.usefixtures("quick_compile")
RELATIVE = 2 * tolerance.decoder(plain.LLAMA, score=10.0, value=1.0)
"""2.0e-5: a gradient goes through every layer twice; the largest attention score of these models is 9 (gemma3's)."""
LENGTHS = [(5, (3, 7)), (1, (1, 2)), (9, (14, 4)), (2, (11, 1))]


def groups_of(vocab):
    rng = np.random.default_rng(3)
    ids = lambda n: rng.integers(1, vocab, n).astype(np.int32)
    return [
        EncodedGroup(ids(prompt), tuple(ids(n) for n in completions), i, f"row {i}")
        for i, (prompt, completions) in enumerate(LENGTHS)
    ]


def packed_batch(groups, layout):
    rows = Loader(groups, batch_size=len(groups), micro_rows=1, layout=layout).plan.micro_batches
    (step,) = Loader(groups, batch_size=len(groups), micro_rows=rows, layout=layout).iterate()
    return jax.tree.map(lambda x: x[0], step.batch)


def sequences_of(groups):
    """Every prompt with one completion, a row each: tokens and which are scored, [rows, 24]."""
    pairs = [(len(g.prompt_ids), np.concatenate([g.prompt_ids, ids])) for g in groups for ids in g.completion_ids]
    tokens = np.zeros((len(pairs), 24), np.int32)
    scored = np.zeros(tokens.shape, np.float32)
    for row, (prompt, ids) in enumerate(pairs):
        tokens[row, : len(ids)], scored[row, prompt : len(ids)] = ids, 1.0
    return tokens, scored


def plain_logps(spec, params, groups):
    """[groups, 2], one sequence at a time."""
    tokens, scored = sequences_of(groups)
    head = params["embed"]["table"] if spec.tied else params["head"]["kernel"]
    x = jax.vmap(lambda ids: plain.hidden(spec, params, ids))(tokens)
    logits = jnp.einsum("rld,vd->rlv", x, head, precision="highest")
    if spec.logit_divisor:
        logits = logits / spec.logit_divisor
    if spec.logit_softcap:
        logits = spec.logit_softcap * jnp.tanh(logits / spec.logit_softcap)
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits)[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
    return jnp.sum(logp * scored[:, 1:], axis=1).reshape(len(groups), -1)


@pytest.mark.parametrize("name", plain.EACH)
def test_packed_shared_rows_equal_the_plain_decoder_in_value_and_gradient(name):
    spec = plain.SPECS[name]
    model = build_model(spec, attention_block=8)
    params, groups = plain.random_params(model), groups_of(spec.vocab)
    batch = packed_batch(groups, Layout(64))
    assert batch.token_RL.shape[0] == 1 and int(batch.segment_RL.max()) == 4, "all groups in one row"
    order = [int(i) for i in batch.row_id_RG[0]]
    weight = jnp.cos(jnp.arange(2.0 * len(groups))).reshape(-1, 2)

    def ours(params):
        value = completion_logps(model, params, batch, chunk=8).sum[np.argsort(order)]
        return jnp.sum(weight * value), value

    def theirs(params):
        value = plain_logps(spec, params, groups)
        return jnp.sum(weight * value), value

    grads, value = jax.jit(jax.grad(ours, has_aux=True))(params)
    plain_grads, plain_value = jax.jit(jax.grad(theirs, has_aux=True))(params)
    np.testing.assert_allclose(value, plain_value, rtol=RELATIVE)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(plain_grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=RELATIVE * scale), grads, plain_grads)
    matter = jax.tree.map(lambda x: float(jnp.abs(x).max()) > 1e-4 * scale, plain_grads)
    if spec.learned_positions:  # a number that is added to all scores of a query changes nothing
        assert not matter["layers"]["attention"].pop("k_bias")
    assert all(jax.tree.leaves(matter)), "every leaf matters"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gemma3", pytest.param("gpt2", marks=pytest.mark.slow), pytest.param("qwen3_moe", marks=pytest.mark.slow)]
)
def test_scan_and_remat_do_not_matter(name):
    spec = plain.SPECS[name]
    tokens = np.arange(16, dtype=np.int32)[None] % spec.vocab
    rows = tokens, np.arange(16, dtype=np.int32)[None], np.full((1, 16), 16, np.int32)
    params = plain.random_params(build_model(spec, attention_block=8))

    def gradient(**options):
        model = build_model(spec, attention_block=8, **options)
        function = jax.grad(lambda p: jnp.sum(jnp.sin(model.hidden(p, *rows))))
        return jax.jit(function)(params), str(jax.make_jaxpr(function)(params))

    loop, loop_program = gradient(scan=False, remat="none")
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(loop))
    for remat in ("none", "full"):
        other, program = gradient(remat=remat)
        assert program != loop_program
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=RELATIVE * scale), loop, other)
