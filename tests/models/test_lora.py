"""Adapters on one weight: values and gradients against the merged weight, exactness at the start, dropout, names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.errors import InputError
from jaxpref.models import layers, lora
from jaxpref.models.lora import TARGETS, LoraSpec
from jaxpref.models.parameters import leaf_at, nest

pytestmark = pytest.mark.usefixtures("quick_compile")

SIZES = {"R": 2, "L": 5, "D": 8, "N": 3, "M": 1, "H": 4, "F": 6, "Z": 2} | {"g": 2, "m": 2, "n": 4, "h": 3, "v": 5}
SIZES |= {"d": 4, "q": 2, "r": 3, "f": 5, "w": 7, "u": 3, "a": 2}
EQUATIONS = {
    "attention/q": "RLD,DNH->RLNH",
    "attention/k": "RLD,DMH->RLMH",
    "attention/o": "RLNH,NHD->RLD",
    "mlp/down": "RLF,FD->RLD",
}
KINDS = {
    "lora": LoraSpec(2, 3.0, tuple(TARGETS)),
    "rslora": LoraSpec(2, 3.0, tuple(TARGETS), rslora=True),
    "dora": LoraSpec(2, 3.0, tuple(TARGETS), dora=True),
}


def draw(axes: str, seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), [SIZES[axis] for axis in axes])


def case(target: str, spec: LoraSpec):
    """equation, x, w, adapter of one layer."""
    inputs, outputs = TARGETS[target]
    adapter = {"a": draw(f"{inputs}Z", 2), "b": draw(f"Z{outputs}", 3)}
    if spec.dora:
        adapter["m"] = 1.0 + jnp.abs(draw(outputs, 4))
    return EQUATIONS[target], draw(f"RL{inputs}", 0), draw(inputs + outputs, 1), adapter


adapted = jax.jit(lora.adapted, static_argnums=(0, 4))
product = jax.jit(layers.product, static_argnums=0)


@pytest.mark.parametrize("target, kind", [("attention/q", "lora"), ("attention/o", "rslora"), ("mlp/down", "dora")])
def test_the_merged_weight_does_the_same(target, kind):
    spec = KINDS[kind]
    equation, x, w, adapter = case(target, spec)
    merged = jax.jit(lora.merged, static_argnums=(2, 3))(w, adapter, TARGETS[target], spec.scale)
    alone, beside = product(equation, x, merged), adapted(equation, x, w, adapter, spec, None)
    np.testing.assert_allclose(alone, beside, rtol=1e-4, atol=1e-4)
    assert np.abs(alone - product(equation, x, w)).max() > 1


def test_the_scales_are_alpha_by_rank_and_by_its_root():
    assert [KINDS[kind].scale for kind in ("lora", "rslora")] == [1.5, pytest.approx(3 / 2**0.5)]


def plain(target: str, spec: LoraSpec, x, w, adapter):
    """x (W + scale a b), with DoRA's factors held constant where the paper does, in plain jnp."""
    inputs, outputs = TARGETS[target]
    delta = jnp.tensordot(adapter["a"], adapter["b"], 1)
    whole = w + spec.scale * delta
    y = jnp.tensordot(x, whole, len(inputs))
    if not spec.dora:
        return y
    length = jax.lax.stop_gradient(jnp.sqrt((whole**2).sum(tuple(range(len(inputs))))))
    return y * (adapter["m"] / length)[(None,) * 2]


@pytest.mark.parametrize("target, kind", [("attention/o", "rslora"), ("attention/q", "dora")])
def test_gradients_are_those_of_the_plain_formula(target, kind):
    spec = KINDS[kind]
    equation, x, w, adapter = case(target, spec)
    weight = draw(equation.split("->")[1], 7)
    ours = lambda x, adapter: jnp.sum(weight * lora.adapted(equation, x, w, adapter, spec, None))
    theirs = lambda x, adapter: jnp.sum(weight * plain(target, spec, x, w, adapter))
    for got, wanted in zip(
        *(jax.tree.leaves(jax.jit(jax.grad(f, (0, 1)))(x, adapter)) for f in (ours, theirs)), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_bfloat16_products_have_float32_gradients():
    spec = KINDS["dora"]
    equation, x, w, adapter = case("attention/q", spec)
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    f = lambda adapter, x: lora.adapted(equation, x, w, adapter, spec, None)
    assert f(adapter, x).dtype == jnp.float32
    gradient = jax.jit(jax.grad(lambda adapter: f(adapter, x).sum()))(adapter)
    exact = jax.jit(jax.grad(lambda adapter: f(adapter, x.astype(jnp.float32)).sum()))(adapter)
    for got, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, wanted, rtol=0, atol=0.02 * np.abs(wanted).max())


def weights():
    """Of three layers, in the parameter tree's shape."""
    return nest({
        lora.path_of(target): jnp.stack([draw(inputs + outputs, 10 * seed + y) for y in range(3)])
        for seed, (target, (inputs, outputs)) in enumerate(TARGETS.items())
    })  # fmt: skip


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_new_adapter_is_exactly_the_base(kind):
    spec = KINDS[kind]
    tree = jax.jit(lambda w: lora.init(jax.random.key(0), w, spec))(weights())
    for target, equation in EQUATIONS.items():
        path = lora.path_of(target)
        x, w, leaf = draw(f"RL{TARGETS[target][0]}", 0), leaf_at(weights(), path), leaf_at(tree, path)
        for y in range(3):
            one = jax.tree.map(lambda leaf, y=y: leaf[y], leaf)
            np.testing.assert_array_equal(adapted(equation, x, w[y], one, spec, None), product(equation, x, w[y]))


def test_a_new_adapter_is_drawn_as_peft_draws_it():
    spec = LoraSpec(64, 1.0, ("attention/o", "mlp/up"))
    tree = lora.init(jax.random.key(0), weights(), spec)
    assert tree["layers"].keys() == {"attention", "mlp"} and tree["layers"]["mlp"].keys() == {"up"}
    o = tree["layers"]["attention"]["o"]
    assert o["a"].shape == (3, 3, 4, 64) and o["b"].shape == (3, 64, 8) and o["a"].dtype == jnp.float32
    assert not o["b"].any() and "m" not in o
    bound = 12**-0.5  # 1 / sqrt(inputs): the axes N and H
    assert 0.98 * bound < np.abs(o["a"]).max() <= bound
    np.testing.assert_allclose(np.var(o["a"]), bound**2 / 3, rtol=0.05)
    assert not np.allclose(o["a"][0], o["a"][1])
    # What is drawn for a weight does not depend on which others are adapted.
    alone = lora.init(jax.random.key(0), weights(), LoraSpec(64, 1.0, ("mlp/up",)))
    np.testing.assert_array_equal(alone["layers"]["mlp"]["up"]["a"], tree["layers"]["mlp"]["up"]["a"])


def test_dropout_is_on_the_adapters_input_only():
    spec = LoraSpec(2, 3.0, tuple(TARGETS), dropout=0.25)
    equation, _, w, adapter = case("attention/q", spec)
    x = jnp.ones((64, 64, SIZES["D"]))
    one, again, other = (adapted(equation, x, w, adapter, spec, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).mean() > 0.5
    # All that differs from row to row is the adapter's part, and its mean is what it is without dropout.
    without = adapted(equation, x, w, adapter, spec, None)
    added = np.abs(without - product(equation, x, w)).max()
    np.testing.assert_allclose(one.mean((0, 1)), without[0, 0], atol=0.05 * added)
    frozen = {"a": jnp.zeros_like(adapter["a"]), "b": adapter["b"]}
    base = adapted(equation, x, w, frozen, spec, jax.random.key(0))
    np.testing.assert_array_equal(base, product(equation, x, w))


def test_dropout_keeps_and_scales_a_share():
    x = lora._dropout(jnp.ones((100, 100)), 0.25, jax.random.key(0))
    assert set(np.unique(x)) == {0.0, np.float32(1 / 0.75)}
    assert abs((x == 0).mean() - 0.25) < 0.02


def test_doras_dropout_leaves_the_weights_own_product_whole():
    """PEFT: x W + (m/|W| - 1) (drop(x) W) + m/|W| scale (drop(x) a b)."""
    spec = LoraSpec(2, 3.0, tuple(TARGETS), dropout=0.5, dora=True)
    equation, x, w, adapter = case("attention/q", spec)
    key = jax.random.key(5)
    dropped = lora._dropout(x, spec.dropout, key)
    own = lambda x: product(equation, x, w)
    undropped = adapted(equation, dropped, w, adapter, spec, None)
    got = adapted(equation, x, w, adapter, spec, key)
    np.testing.assert_allclose(got, own(x) + undropped - own(dropped), rtol=1e-4, atol=1e-4)


NAMES = {
    "attention/q": ("q", "attention/q", "q_proj", "self_attn.q_proj"),
    "attention/v": ("v", "attention/v", "v_proj", "self_attn.v_proj"),
    "mlp/down": ("down", "mlp/down", "down_proj", "mlp.down_proj"),
}


@pytest.mark.parametrize(
    "patterns, found",
    [
        (None, tuple(NAMES)),
        (["v", "q"], ("attention/q", "attention/v")),
        (["q_proj"], ("attention/q",)),
        (["attention/.*"], ("attention/q", "attention/v")),
        ([".*_proj"], tuple(NAMES)),
        ([r"mlp\.down_proj", "down"], ("mlp/down",)),
    ],
)
def test_targets_are_found_by_pattern(patterns, found):
    assert lora.find_targets(patterns, NAMES) == found


def test_patterns_that_match_nothing_are_refused():
    with pytest.raises(InputError, match=r"(?s)self_attn.q_proj.*\['lm_head', 'qq'\]"):
        lora.find_targets(["q", "lm_head", "qq"], NAMES)


def test_a_pattern_that_is_no_regular_expression_is_refused():
    with pytest.raises(InputError, match=r"\*_proj.*nothing to repeat"):
        lora.find_targets(["*_proj"], NAMES)


def test_adapters_of_one_spec_can_be_mapped_over():
    spec = KINDS["dora"]
    equation, x, w, adapter = case("attention/o", spec)
    other = jax.tree.map(lambda leaf: 2 * leaf, adapter)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), adapter, other)
    together = jax.vmap(lambda adapter: lora.adapted(equation, x, w, adapter, spec, None))(stacked)
    for got, one in zip(together, (adapter, other), strict=True):
        np.testing.assert_allclose(got, adapted(equation, x, w, one, spec, None), rtol=1e-5, atol=1e-5)
