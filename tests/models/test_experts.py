"""The mixture of experts against all experts on all tokens, alone and on a mesh; and its balance objective."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from test_features import groups_of, packed_batch, sequences_of

from jaxpref.config import MeshConfig
from jaxpref.data.pack import Layout
from jaxpref.errors import InputError
from jaxpref.models import experts, routing
from jaxpref.models.decoder import build_model
from jaxpref.models.logprobs import completion_logps
from jaxpref.models.spec import ClampedSwiglu
from jaxpref.objectives.router import router_balance
from jaxpref.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("quick_compile")
R, L, D, E, F, U = 8, 20, 16, 5, 12, 2
RELATIVE = 1e-5  # float32 sums in another order


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


WEIGHTS = experts.ExpertWeights(normal(1, E, D, F), normal(2, E, D, F), normal(3, E, F, D))
BIASED = WEIGHTS._replace(gate_bias=normal(5, E, F), up_bias=normal(6, E, F))
CLAMPED = ClampedSwiglu(alpha=1.7, limit=3.0)
"""The activation of the experts with biases."""
ROUTER = normal(4, D, E)
REAL = jnp.arange(L)[None, :] < jnp.array([20, 20, 3, 0, 11, 20, 1, 20])[:, None]


def ours(x, router, weights):
    chosen = routing.route(x, router, U, True)
    return experts.mix(x, chosen, REAL, weights, activation_of(weights), "tokens")


def activation_of(weights):
    return "silu" if weights.gate_bias is None else CLAMPED


def dense(x, router, weights):
    """Every expert on every token."""
    p = jax.nn.softmax(jnp.einsum("RLD,DE->RLE", x, router, precision="highest"))
    top = jnp.sort(p, axis=-1)[..., -U:][..., :1]
    weight = jnp.where((p >= top) & REAL[..., None], p, 0.0)
    weight = weight / jnp.where(REAL, weight.sum(-1), 1.0)[..., None]
    dot = lambda equation, *a: jnp.einsum(equation, *a, precision="highest")
    gate, up = dot("RLD,EDF->RLEF", x, weights.gate), dot("RLD,EDF->RLEF", x, weights.up)
    hidden = jax.nn.silu(gate) * up
    if weights.gate_bias is not None:
        gate, up = gate + weights.gate_bias[None, None], up + weights.up_bias[None, None]
        gate, up = jnp.minimum(gate, CLAMPED.limit), jnp.clip(up, -CLAMPED.limit, CLAMPED.limit)
        hidden = gate / (1 + jnp.exp(-CLAMPED.alpha * gate)) * (up + 1)
    return dot("RLE,RLEF,EFD->RLD", weight, hidden, weights.down)


def check(x, router, weights=WEIGHTS, tolerance=RELATIVE):
    weight = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    total = lambda function: lambda *a: (jnp.sum(weight * function(*a)), function(*a))
    grads, value = jax.jit(jax.grad(total(ours), argnums=(0, 1, 2), has_aux=True))(x, router, weights)
    plain_grads, plain_value = jax.grad(total(dense), argnums=(0, 1, 2), has_aux=True)(x, router, weights)
    np.testing.assert_allclose(value, plain_value, atol=tolerance * float(jnp.abs(plain_value).max()))
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(plain_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=10 * tolerance * float(jnp.abs(b).max()))
    return value


def test_equals_all_experts_on_all_tokens():
    value = check(normal(0, R, L, D), ROUTER)
    assert np.all(np.asarray(value)[3] == 0), "padding runs through no expert"


def test_biases_and_a_clamped_swiglu():
    value = check(normal(0, R, L, D), ROUTER, BIASED)
    assert np.all(np.asarray(value)[3] == 0), "padding runs through no expert, biased or not"


def test_a_bias_behind_down_is_added_once():
    x, bias = normal(0, R, L, D), normal(7, E, D)
    chosen = routing.route(x, ROUTER, U, True)
    out = routing.mixed_bias(chosen, REAL, bias, jnp.float32)
    each = jnp.einsum("RLU,RLUD->RLD", chosen.weight_RLU, bias[chosen.expert_RLU], precision="highest")
    np.testing.assert_allclose(out, each * REAL[..., None], atol=1e-6)


def test_a_bias_of_the_router_decides():
    x, bias = normal(0, R, L, D), jnp.zeros(E).at[2].set(50.0)
    chosen = routing.route(x, ROUTER, U, True, bias)
    assert bool((chosen.expert_RLU[..., 0] == 2).all()) and not bool((chosen.expert_RLU[..., 1] == 2).any())


def test_no_token_is_dropped_when_all_choose_the_same_expert():
    x = jnp.abs(normal(0, R, L, D))
    router = jnp.zeros((D, E)).at[:, 3].set(5.0).at[:, 1].set(1.0)
    assert bool((routing.route(x, router, U, True).expert_RLU == jnp.array([3, 1])[None, None]).all())
    check(x, router)


@pytest.mark.parametrize(
    "sizes", [(2, 2, 2), (1, 2, 2, 2), *(pytest.param(s, marks=pytest.mark.slow) for s in ((8, 1, 1), (1, 2, 4)))]
)
@pytest.mark.parametrize("weights", [WEIGHTS, BIASED], ids=["plain", "biased"])
def test_on_a_mesh(sizes, weights):
    with jax.set_mesh(make_mesh(MeshConfig(*sizes))):
        text = jax.jit(ours).lower(normal(0, R, L, D), ROUTER, weights).as_text()
        assert "manual" in text, "every device sorts its own tokens"
        check(normal(0, R, L, D), ROUTER, weights)


def test_bfloat16_is_close():
    x = normal(0, R, L, D)
    out = ours(x.astype(jnp.bfloat16), ROUTER, WEIGHTS)
    assert out.dtype == jnp.bfloat16
    same = (
        routing.route(x.astype(jnp.bfloat16), ROUTER, U, True).expert_RLU
        == routing.route(x, ROUTER, U, True).expert_RLU
    )
    exact = ours(x, ROUTER, WEIGHTS)
    difference = jnp.where(same.all(-1, keepdims=True), jnp.abs(out.astype(jnp.float32) - exact), 0.0)
    assert float(difference.max()) < 0.03 * float(jnp.abs(exact).max()) and float(same.mean()) > 0.9


def test_one_loop_over_blocks_in_use():
    """Not E times the work: the program multiplies blocks, and only as many as the pairs fill."""
    expert_TU = jnp.array([[0, 2], [2, 0], [2, 4], [5, 5]])  # 5: padding
    blocks = experts._blocks(expert_TU, 5)
    assert int(blocks.in_use) == 3 and blocks.expert_A[:3].tolist() == [0, 2, 4]
    pairs_AC = np.stack([blocks.token_AC, blocks.choice_AC], axis=-1).tolist()
    real = [sorted((t, c) for t, c in block if t < 4) for block in pairs_AC]
    assert real[:3] == [[(0, 0), (1, 1)], [(0, 1), (1, 0), (2, 0)], [(2, 1)]] and not any(real[3:])


# ---- balance


SPEC = plain.SPECS["qwen3_moe"]


def plain_balance(params, groups):
    """Over all sequences, one by one, prompts in each of them; with the number of chosen experts."""
    E, K = SPEC.experts, SPEC.experts_per_token
    tokens, _ = sequences_of(groups)
    ends = [len(g.prompt_ids) + len(ids) for g in groups for ids in g.completion_ids]

    def router_of(ids):
        seen = []
        plain.hidden(SPEC, params, ids, seen)
        return jnp.stack(seen)

    p_RYLE = jax.vmap(router_of)(tokens)
    p = jnp.concatenate([p_RYLE[r, :, :end].reshape(-1, E) for r, end in enumerate(ends)])
    chosen = jnp.argsort(jnp.argsort(-p, axis=-1), axis=-1) < K
    return E * jnp.sum(chosen.mean(0) * p.mean(0))


def balance(model, params, batch):
    logps = completion_logps(model, params, batch, chunk=8, asked=("router",))
    out = router_balance(logps)
    return jnp.sum(out.weight_B * out.loss_B) / out.weight_B.sum()


APART = [pytest.param(layout, marks=pytest.mark.slow) for layout in (Layout(64, False, True), Layout(32, True, False))]


@pytest.mark.parametrize("layout", [Layout(64), *APART], ids=str)
def test_balance_equals_that_of_single_sequences_in_value_and_gradient(layout):
    model = build_model(SPEC, attention_block=8)
    params, groups = plain.random_params(model), groups_of(SPEC.vocab)
    value, grads = jax.jit(jax.value_and_grad(lambda p: balance(model, p, packed_batch(groups, layout))))(params)
    expected, plain_grads = jax.jit(jax.value_and_grad(lambda p: plain_balance(p, groups)))(params)
    assert value == pytest.approx(float(expected), rel=1e-5) and abs(value - SPEC.experts_per_token) > 1e-3
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(plain_grads))
    assert scale > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale), grads, plain_grads)


def test_statistics_are_refused_of_a_model_without_experts():
    model = build_model(plain.LLAMA, attention_block=8)
    batch = packed_batch(groups_of(61), Layout(64))
    with pytest.raises(InputError, match="without a router"):
        completion_logps(model, {}, batch, chunk=8, asked=("router",))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"experts_per_token": 7}, "7 of 6 experts"),
        ({"mlp_bias": True}, "have biases"),
        ({"gated": False}, "not gated"),
        ({"experts": 0, "expert_bias": True}, "biases of experts, and no experts"),
        ({"experts": 0, "gated": False, "activation": ClampedSwiglu(1.7, 7.0)}, "without a gate"),
    ],
)
def test_mixtures_that_are_not_built_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        build_model(dataclasses.replace(SPEC, **changes))
