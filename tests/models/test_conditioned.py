"""Adapters that objective weights change: values and gradients against the adapter of each weight, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.errors import InputError
from jaxpref.models import conditioned, lora
from jaxpref.models.lora import TARGETS, LoraSpec

pytestmark = pytest.mark.usefixtures("quick_compile")

TARGET, EQUATION = "attention/q", "RLD,DNH->RLNH"
W_SHAPE, X_SHAPE = (8, 3, 4), (2, 5, 8)
SPECS = {kind: LoraSpec(2, 3.0, (TARGET,), kind=kind, objectives=3) for kind in ("panacea", "pblora")}


def case(kind: str):
    """x, w, an adapter of one layer that adds something, and weights of every token."""
    spec, keys = SPECS[kind], jax.random.split(jax.random.key(0), 4)
    w = jax.random.normal(keys[0], (1, *W_SHAPE))
    adapter = lora.init(keys[1], {"layers": {"attention": {"q": w}}}, spec)["layers"]["attention"]["q"]
    adapter = {name: leaf + 0.3 for name, leaf in adapter.items()}
    x = jax.random.normal(keys[2], X_SHAPE)
    weights_RLO = jax.random.dirichlet(keys[3], jnp.ones(3), X_SHAPE[:2])
    return x, w, adapter, weights_RLO


def one_layer(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


@pytest.mark.parametrize("kind", SPECS)
def test_every_token_sees_the_adapter_of_its_own_weights(kind):
    x, w, adapter, weights_RLO = case(kind)
    spec, plain = SPECS[kind], SPECS[kind].of_one_weight_vector
    assert plain.kind == "lora" and plain.rank == {"panacea": 5, "pblora": 4}[kind]
    assert plain.scale == spec.scale == 1.5
    got = lora.adapted(EQUATION, x, w[0], one_layer(adapter), spec, None, weights_RLO)
    for r, k in [(0, 0), (0, 4), (1, 2)]:
        at = one_layer(conditioned.at_weights(adapter, weights_RLO[r, k]))
        whole = lora.merged(w[0], at, TARGETS[TARGET], plain.scale)
        np.testing.assert_allclose(got[r, k], jnp.tensordot(x[r, k], whole, 1), rtol=1e-4, atol=1e-4)
    other = lora.adapted(EQUATION, x, w[0], one_layer(adapter), spec, None, weights_RLO[::-1])
    assert np.abs(got - other).max() > 0.1


def test_panacea_is_the_formula_of_the_paper():
    """W0 + (alpha / r) B diag(s, eta w) A, as its columns times its rows."""
    _, _, adapter, weights_RLO = case("panacea")
    weights_O = weights_RLO[0, 0]
    own = one_layer(adapter)
    values = [*own["singular"], *(own["gain"] * weights_O)]
    wanted = sum(s * np.multiply.outer(own["a"][:, i], own["b"][i]) for i, s in enumerate(values))
    at = one_layer(conditioned.at_weights(adapter, weights_O))
    np.testing.assert_allclose(np.tensordot(at["a"], at["b"], 1), wanted, rtol=1e-4, atol=1e-5)


def test_pblora_is_the_formula_of_the_paper():
    """(alpha / r) (B1 W1 A1 + B2 (sum_k w_k W2_k) A2), with transposed factors here."""
    _, _, adapter, weights_RLO = case("pblora")
    weights_O, own = weights_RLO[0, 0], one_layer(adapter)
    mixed = sum(w * m for w, m in zip(weights_O, own["by_objective"], strict=True))
    first = own["a"][:, :2] @ own["common"] @ own["b"][:2].reshape(2, -1)
    second = own["a"][:, 2:] @ mixed @ own["b"][2:].reshape(2, -1)
    at = one_layer(conditioned.at_weights(adapter, weights_O))
    np.testing.assert_allclose(at["a"] @ at["b"].reshape(4, -1), first + second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SPECS)
def test_gradients_reach_every_leaf_and_not_the_weights(kind):
    x, w, adapter, weights_RLO = case(kind)

    def loss(adapter, weights_RLO):
        y = lora.adapted(EQUATION, x, w[0], one_layer(adapter), SPECS[kind], None, weights_RLO)
        return jnp.sum(jnp.sin(y))

    of_adapter, of_weights = jax.grad(loss, (0, 1))(adapter, weights_RLO)
    assert all(np.abs(leaf).min() > 0 for leaf in jax.tree.leaves(of_adapter))
    assert not of_weights.any()


@pytest.mark.parametrize("kind", SPECS)
def test_a_new_adapter_adds_nothing(kind):
    w = jnp.ones((2, *W_SHAPE))
    tree = lora.init(jax.random.key(0), {"layers": {"attention": {"q": w}}}, SPECS[kind])
    adapter = tree["layers"]["attention"]["q"]
    assert not adapter["b"].any() and all(leaf.any() for name, leaf in adapter.items() if name != "b")
    assert all(len(leaf) == 2 for leaf in adapter.values()), "stacked over the layers"


def test_without_weights_it_is_refused():
    x, w, adapter, _ = case("panacea")
    with pytest.raises(InputError, match="(?s)rows without weights.*export"):
        lora.adapted(EQUATION, x, w[0], one_layer(adapter), SPECS["panacea"], None)
