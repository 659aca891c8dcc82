"""Decoding with a cache gives the hidden states of whole sequences, for every feature and either side of padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import tolerance

from jaxpref.config import MeshConfig
from jaxpref.models.decoder import build_model
from jaxpref.models.lora import LoraSpec
from jaxpref.models.parameters import LORA
from jaxpref.models.placement import param_shardings
from jaxpref.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("quick_compile")
RELATIVE = 2e-5  # float32 sums in another order
PROMPTS, WIDTH, NEW = (3, 8, 1, 6), 8, 5
LENGTH = WIDTH + NEW + 3


def sequences(vocab):
    rng = np.random.default_rng(0)
    return [rng.integers(1, vocab, n + NEW).astype(np.int32) for n in PROMPTS]


def padded(rows, side):
    """Prompts in WIDTH columns and the new tokens behind: tokens and positions [R, WIDTH + NEW]."""
    token = np.full((len(rows), WIDTH + NEW), 7, np.int32)  # 7: what padding holds must not matter
    position = np.full(token.shape, -1, np.int32)
    for r, (ids, n) in enumerate(zip(rows, PROMPTS, strict=True)):
        first = WIDTH - n if side == "left" else 0
        columns = [*range(first, first + n), *range(WIDTH, WIDTH + NEW)]
        token[r, columns], position[r, columns] = ids, np.arange(n + NEW)
    return token, position


def decode(model, params, token, position, chunks):
    """Hidden states of all columns, written in chunks; single tokens by weights and caches that lie layer by layer."""
    extend, cache, column, out = jax.jit(model.extend), model.init_cache(len(token), LENGTH), 0, []
    unstacked = model.unstack_layers(params)
    assert "layers" not in unstacked and "layers" in params
    for chunk in chunks:
        part = slice(column, column + chunk)
        if chunk == 1 and params is not unstacked:
            params, cache = unstacked, model.unstack_cache(cache)
        x_RCD, cache = extend(params, token[:, part], position[:, part], cache, column)
        out.append(x_RCD)
        column += chunk
    assert np.array_equal(cache["position"][:, :column], position) and np.all(cache["position"][:, column:] == -1)
    return np.concatenate(out, axis=1)


@pytest.mark.parametrize("name", plain.EACH)
def test_chunks_and_single_tokens_equal_the_plain_decoder(name):
    spec = plain.SPECS[name]
    model = build_model(spec, attention_block=8)
    params, rows = plain.random_params(model), sequences(spec.vocab)
    token, position = (np.concatenate(sides) for sides in zip(padded(rows, "left"), padded(rows, "right"), strict=True))
    x = decode(model, params, token, position, (WIDTH // 2,) * 2 + (1,) * NEW)
    ids = np.stack([np.pad(row, (0, WIDTH + NEW - len(row))) for row in rows])
    whole = jax.jit(jax.vmap(lambda ids: plain.hidden(spec, params, ids)))(ids)
    for r, row in enumerate(rows * 2):
        expected = whole[r % len(rows), : len(row)]
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(x[r][position[r] >= 0], expected, atol=RELATIVE * scale, rtol=1e-4)


@pytest.mark.slow
def test_an_adapter_is_in_the_cached_path_too():
    spec = plain.SPECS["qwen2"]
    lora = LoraSpec(2, 4.0, ("attention/q", "mlp/down"))
    model = build_model(spec, attention_block=8, lora=lora)
    base = plain.random_params(model)
    normal = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
    q = {"a": normal(0, 3, 32, 2), "b": normal(1, 3, 2, 4, 8)}
    down = {"a": normal(2, 3, 48, 2), "b": normal(3, 3, 2, 32)}
    adapted = base | {LORA: {"layers": {"attention": {"q": q}, "mlp": {"down": down}}}}
    ids = sequences(spec.vocab)[1][None]
    position = np.arange(ids.shape[1], dtype=np.int32)[None]
    x = decode(model, adapted, ids, position, (5, 3, *(1,) * NEW))
    pad = lambda a: np.pad(a, ((0, 0), (0, 3)))
    expiry = pad(np.full_like(ids, ids.shape[1]))
    whole = np.asarray(model.hidden(adapted, pad(ids), pad(position), expiry))[:, : ids.shape[1]]
    # With such an adapter attention scores reach 52.
    atol = tolerance.decoder(spec, score=55.0, value=np.abs(whole).max())
    np.testing.assert_allclose(x, whole, rtol=0, atol=atol)
    without = np.asarray(model.hidden(base, pad(ids), pad(position), expiry))[:, : ids.shape[1]]
    assert np.abs(whole - without).max() > 0.01

    merged = jax.tree.map(lambda x: x, base)
    merged["layers"]["attention"]["q"] += 2.0 * jnp.einsum("ydz,yznh->ydnh", q["a"], q["b"], precision="highest")
    merged["layers"]["mlp"]["down"] += 2.0 * jnp.einsum("yfz,yzd->yfd", down["a"], down["b"], precision="highest")
    np.testing.assert_allclose(x[0], plain.hidden(spec, merged, ids[0]), rtol=2e-4, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "gemma3"])
def test_on_a_mesh(name):
    spec = dataclasses.replace(plain.SPECS[name], vocab=64)
    model = build_model(spec, attention_block=8)
    params = plain.random_params(model)
    token, position = padded(sequences(spec.vocab), "left")
    alone = decode(model, params, token, position, (WIDTH + NEW,))
    mesh = make_mesh(MeshConfig(2, 2, 2))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(params, param_shardings(params, mesh))
        together = decode(model, sharded, token, position, (1,) * (WIDTH + NEW))
    real = position >= 0
    np.testing.assert_allclose(together[real], alone[real], rtol=1e-4, atol=RELATIVE * np.abs(alone).max())
