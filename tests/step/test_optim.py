"""Schedules against hand values, masks, clipping, and that every optimizer moves."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.config import OptimConfig
from jaxpref.models.families import FAMILIES, forms
from jaxpref.models.lora import LoraSpec
from jaxpref.models.parameters import LORA, SCALAR_HEADS, flatten, nest
from jaxpref.models.peft.tensors import adapter_tensors, stored_targets
from jaxpref.models.spec import ModelSpec
from jaxpref.step.optim import OptimNumbers, decay_mask, make_optimizer, make_schedule, warmup_steps

pytestmark = pytest.mark.usefixtures("quick_compile")

VALUE_TOLERANCE = 1e-6
"""Relative, of float32 learning rates."""
PEAK = 2e-4
FALLING = ("linear", "polynomial", "cosine", "cosine_restarts", "wsd")


def rates(total=10, **settings):
    schedule = make_schedule(OptimConfig(learning_rate=PEAK, **settings), total)
    return [float(schedule(step)) / PEAK for step in range(total)]


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=VALUE_TOLERANCE, atol=VALUE_TOLERANCE)


# ---- Hugging Face's get_scheduler, with W = num_warmup_steps and N = num_training_steps (optimization.py)


def huggingface(name, step, W, N):
    """The lambdas of transformers.optimization, written again; inverse_sqrt with its timescale = W or 10000."""
    if step < W:
        return step / max(1, W)
    return {
        "constant": 1.0,
        "linear": max(0.0, (N - step) / max(1, N - W)),
        "cosine": max(0.0, 0.5 * (1 + math.cos(math.pi * (step - W) / max(1, N - W)))),
        "inverse_sqrt": 1.0 / math.sqrt((step + (W or 10_000) - W) / (W or 10_000)),
    }[name]


@pytest.mark.parametrize("warmup", [1, 3, 9])
@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "inverse_sqrt"])
def test_schedule_is_hugging_faces_after_warmup(name, warmup):
    wanted = [huggingface(name, step, warmup, 10) for step in range(10)]
    assert wanted[0] == 0.0 and wanted[warmup] == 1.0
    close(rates(schedule=name, warmup_steps=warmup), wanted)


@pytest.mark.parametrize("total", [10, 3000])
@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "inverse_sqrt"])
def test_schedule_without_warmup(name, total):
    steps = range(0, total, total // 10)
    schedule = make_schedule(OptimConfig(learning_rate=PEAK, schedule=name), total)
    close([float(schedule(step)) / PEAK for step in steps], [huggingface(name, step, 0, total) for step in steps])


GOLDEN = json.loads((Path(__file__).parents[1] / "golden/schedules.json").read_text())
"""Of transformers and torch, by golden/make_schedules.py; wsd's decay is 6 of 24 steps, or 12."""


@pytest.mark.parametrize(
    "case, settings",
    [
        ("polynomial", {"schedule": "polynomial", "min_ratio": 0.1, "power": 2.0}),
        ("polynomial_warmup", {"schedule": "polynomial", "min_ratio": 0.05, "power": 0.5, "warmup_steps": 5}),
        ("cosine_min", {"schedule": "cosine", "min_ratio": 0.1, "warmup_steps": 5}),
        ("restarts", {"schedule": "cosine_restarts", "cycles": 4}),
        ("restarts_warmup", {"schedule": "cosine_restarts", "cycles": 3, "warmup_steps": 3}),
        ("wsd_cosine", {"schedule": "wsd", "decay_ratio": 0.25, "warmup_steps": 4}),
        ("wsd_linear", {"schedule": "wsd", "decay_ratio": 0.25, "decay_shape": "linear", "min_ratio": 0.2}),
        ("wsd_sqrt", {"schedule": "wsd", "decay_ratio": 0.5, "decay_shape": "1-sqrt", "min_ratio": 0.1}),
    ],
)
def test_schedule_is_that_of_transformers(case, settings):
    assert len(set(GOLDEN["rates"][case])) > 4
    close(rates(GOLDEN["total"], **settings), GOLDEN["rates"][case])


@pytest.mark.parametrize("name", ["linear", "polynomial", "cosine", "cosine_restarts", "wsd"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_falling_schedules_end_at_their_share_of_the_peak(name, warmup):
    config = OptimConfig(schedule=name, min_ratio=0.25, warmup_steps=warmup)
    schedule = make_schedule(config, 10)
    for step in (10, 15):
        assert float(schedule(step)) == pytest.approx(0.25 * config.learning_rate)
    assert float(schedule(warmup)) == pytest.approx(config.learning_rate)


def test_the_peak_of_every_schedule_may_be_traced():
    """So that runs with other learning rates are one program."""
    for name in get_args(OptimConfig.__annotations__["schedule"]):
        config = OptimConfig(learning_rate=PEAK, schedule=name, min_ratio=0.1 if name in FALLING else 0.0)
        traced = jax.jit(lambda peak, step, c=config: make_schedule(c, 10, OptimNumbers(peak, None))(step))
        close(traced(PEAK, 9) / PEAK, float(make_schedule(config, 10)(9)) / PEAK)


def test_hand_values():
    close(rates(4, schedule="linear"), [1.0, 0.75, 0.5, 0.25])
    close(rates(4, schedule="linear", warmup_steps=2), [0.0, 0.5, 1.0, 0.5])
    close(rates(4, schedule="cosine"), [1.0, 0.5 + 0.25 * math.sqrt(2), 0.5, 0.5 - 0.25 * math.sqrt(2)])
    close(rates(4, schedule="constant", warmup_steps=3), [0.0, 1 / 3, 2 / 3, 1.0])
    close(rates(4, schedule="inverse_sqrt"), [1.0, 0.99995, 0.9999, 0.99985])  # (1 + t / 10000)^-1/2
    close(rates(4, schedule="inverse_sqrt", warmup_steps=1), [0.0, 1.0, 2**-0.5, 3**-0.5])


def test_linear_and_cosine_end_at_zero_after_the_run():
    for name in ("linear", "cosine"):
        schedule = make_schedule(OptimConfig(schedule=name, warmup_steps=2), 10)
        assert float(schedule(10)) == pytest.approx(0.0, abs=1e-12)


def test_warmup_of_the_whole_run_or_longer():
    close(rates(4, schedule="linear", warmup_steps=4), [0.0, 0.25, 0.5, 0.75])
    close(rates(4, schedule="cosine", warmup_steps=8), [0.0, 0.125, 0.25, 0.375])


@pytest.mark.parametrize(
    "ratio, total, steps",
    [(0.1, 10, 1), (0.1, 11, 2), (0.1, 24, 3), (0.5, 3, 2), (0.0, 10, 0), (1.0, 7, 7), (0.01, 5, 1), (0.3, 10, 3)],
)
def test_warmup_ratio_is_rounded_up(ratio, total, steps):
    config = OptimConfig(warmup_ratio=ratio, schedule="constant")
    assert warmup_steps(config, total) == steps == math.ceil(ratio * total)
    schedule = make_schedule(config, total)
    assert float(schedule(steps)) == pytest.approx(config.learning_rate)
    assert steps == 0 or float(schedule(0)) == 0.0


# ---- optimizers

PARAMS = {
    "layers": {"mlp": {"up": jnp.ones((2, 3, 4))}, "mlp_norm": {"scale": jnp.ones((2, 3))}},
    "final_norm": {"scale": jnp.ones((3,))},
    "embed": {"table": jnp.ones((5, 3))},
}
GRADS = jax.tree.map(lambda x: jnp.full(x.shape, 0.5), PARAMS)


def step(config, grads=GRADS, params=PARAMS, schedule=None):
    optimizer = make_optimizer(config, schedule or (lambda _: config.learning_rate))
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    return jax.tree.map(lambda p, u: p + u, params, updates)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon", "sgd"])
def test_every_optimizer_moves_every_parameter_against_the_gradient(name):
    config = OptimConfig(name=name, learning_rate=0.01)
    for leaf in jax.tree.leaves(step(config)):
        assert np.all(np.asarray(leaf) < 1.0) and np.all(np.isfinite(leaf))


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon", "sgd"])
def test_first_step_of_a_warmup_moves_nothing(name):
    config = OptimConfig(name=name, learning_rate=0.01, warmup_steps=2)
    for leaf in jax.tree.leaves(step(config, schedule=make_schedule(config, 10))):
        np.testing.assert_array_equal(leaf, np.ones(leaf.shape))


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_what_of_a_tower_is_not_run_stays(name):
    """LLaVA takes the second-to-last layer's output: no gradient reaches the rest, and decay must not either."""
    norm = {"scale": jnp.ones((3,)), "bias": jnp.ones((3,))}
    params = {"vision": {"layers": {"mlp": {"up": jnp.ones((4, 3, 5))}}, "final_norm": norm}}
    grads = jax.tree.map(jnp.zeros_like, params)
    grads["vision"]["layers"]["mlp"]["up"] = jnp.zeros((4, 3, 5)).at[:3].set(0.5)
    config = OptimConfig(name=name, learning_rate=0.1, weight_decay=0.1, decay_mask="all")
    for layers_run in (3, None):
        optimizer = make_optimizer(config, lambda _: 0.1, tower_layers=layers_run)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        up, norm = updates["vision"]["layers"]["mlp"]["up"], updates["vision"]["final_norm"]
        assert np.all(np.asarray(up[:3]) != 0)
        for still in (up[3], norm["scale"], norm["bias"]):
            assert np.all(np.asarray(still) == 0) == (layers_run is not None)


def test_decay_follows_the_schedule():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    for name in ("adamw", "lion", "adafactor", "muon"):
        config = OptimConfig(name=name, learning_rate=0.1, warmup_steps=2, weight_decay=0.5)
        for leaf in jax.tree.leaves(step(config, grads=zero, schedule=make_schedule(config, 10))):
            np.testing.assert_array_equal(leaf, np.ones(leaf.shape))


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "muon"])
@pytest.mark.parametrize("mask", ["matrices", "all"])
def test_weight_decay_touches_what_the_mask_says(name, mask):
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    rate = 0.1
    config = OptimConfig(name=name, learning_rate=0.1, weight_decay=0.5, decay_mask=mask)
    after = step(config, grads=zero)
    matrices = [after["layers"]["mlp"]["up"], after["embed"]["table"]]
    norms = [after["layers"]["mlp_norm"]["scale"], after["final_norm"]["scale"]]
    for leaf in matrices:
        np.testing.assert_allclose(leaf, 1.0 - rate * 0.5, rtol=VALUE_TOLERANCE)
    for leaf in norms:
        np.testing.assert_allclose(leaf, 1.0 - rate * 0.5 if mask == "all" else 1.0, rtol=VALUE_TOLERANCE)


def test_decay_mask_by_name():
    masked = decay_mask(OptimConfig(), PARAMS)
    assert masked == {
        "layers": {"mlp": {"up": True}, "mlp_norm": {"scale": False}},
        "final_norm": {"scale": False},
        "embed": {"table": True},
    }
    assert all(jax.tree.leaves(decay_mask(OptimConfig(decay_mask="all"), PARAMS)))


UNDECAYED_NAMES = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Of transformers' `Trainer.get_decay_parameter_names`, which also leaves out every nn.LayerNorm."""
LAYER_NORMS = r"(^|\.)ln_[12f]\."
"""The modules of this class: GPT-2's are the only ones among the families."""


def decays_in_transformers(name):
    return not any(re.search(pattern, name.lower()) for pattern in [*UNDECAYED_NAMES, LAYER_NORMS])


def decays(paths):
    """Path -> whether it decays here, by the mask of a tree with these leaves."""
    return flatten(decay_mask(OptimConfig(), nest({path: 0.0 for path in paths})))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_decays_is_what_transformers_decays(family):
    for table in forms(family):
        wanted = {path: decays_in_transformers(leaf.name) for path, leaf in table.items()}
        assert decays(table) == wanted
        assert set(wanted.values()) == {True, False}


def test_every_leaf_of_an_adapter_decays_as_in_transformers():
    """The magnitudes of DoRA too: they are vectors, but not by their names."""
    sizes = dict(vocab=8, width=4, ffn=4, layers=1, heads=1, kv_heads=1, head_dim=4, max_positions=8)
    model = ModelSpec("llama", **sizes, rope_theta=1e4, norm_eps=1e-5, tied=False)
    adapter = LoraSpec(rank=2, alpha=2.0, targets=tuple(stored_targets(model)), dora=True)
    names = {f"{LORA}/{tensor.path}": tensor.stored.name for tensor in adapter_tensors(model, adapter)}
    assert {path.rpartition("/")[2] for path in names} == {"a", "b", "m"}
    assert decays(names) == {path: decays_in_transformers(name) for path, name in names.items()}
    assert all(decays(names).values())


def test_scalar_heads_decay_as_in_transformers():
    """`score.weight` of its sequence classifiers, `v_head.summary.weight` of a value head."""
    assert all(decays([f"{SCALAR_HEADS}/reward", f"{SCALAR_HEADS}/value"]).values())
    assert decays_in_transformers("score.weight") and decays_in_transformers("v_head.summary.weight")


def test_clipping_is_by_the_global_norm():
    """sgd with rate 1 shows the clipped gradient itself; 48 entries of 0.5 have the norm sqrt(12) ..."""
    count = sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    norm = 0.5 * math.sqrt(count)
    clipped = step(OptimConfig(name="sgd", learning_rate=1.0, clip_norm=0.25))
    free = step(OptimConfig(name="sgd", learning_rate=1.0, clip_norm=None))
    loose = step(OptimConfig(name="sgd", learning_rate=1.0, clip_norm=2 * norm))
    for a, b, c in zip(*map(jax.tree.leaves, (clipped, free, loose)), strict=True):
        np.testing.assert_allclose(a, 1.0 - 0.5 * 0.25 / norm, rtol=VALUE_TOLERANCE)
        np.testing.assert_allclose(b, 0.5, rtol=VALUE_TOLERANCE)
        np.testing.assert_allclose(c, 0.5, rtol=VALUE_TOLERANCE)


def test_adamw_by_hand():
    """First step: m/(1-b1) = g and v/(1-b2) = g^2, so the update is rate * (g / (|g| + eps) + decay * p)."""
    config = OptimConfig(name="adamw", learning_rate=0.01, weight_decay=0.1, eps=0.5, clip_norm=None)
    after = step(config)["embed"]["table"]
    np.testing.assert_allclose(after, 1.0 - 0.01 * (0.5 / (0.5 + 0.5) + 0.1), rtol=VALUE_TOLERANCE)


def test_momentum_of_sgd_adds_up():
    config = OptimConfig(name="sgd", learning_rate=0.1, momentum=0.5, clip_norm=None)
    optimizer = make_optimizer(config, lambda _: 0.1)
    state, values = optimizer.init(PARAMS), []
    for _ in range(3):
        updates, state = optimizer.update(GRADS, state, PARAMS)
        values.append(float(updates["final_norm"]["scale"][0]))
    np.testing.assert_allclose(values, [-0.05, -0.075, -0.0875], rtol=VALUE_TOLERANCE)


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
def test_first_moments_in_bfloat16(name):
    """They are rounded to 8 bits when they are kept; what a step makes of them is float32."""
    config = OptimConfig(name=name, momentum=0.9 if name == "sgd" else 0.0, moment_dtype="bfloat16", b1=0.7)
    halved, whole = (make_optimizer(c, lambda _: 0.1) for c in (config, replace(config, moment_dtype="float32")))
    states = [halved.init(PARAMS), whole.init(PARAMS)]
    for i in range(5):
        grads = jax.tree.map(lambda x, i=i: x * (1.0 + 0.37 * i), GRADS)
        updates, states[0] = halved.update(grads, states[0], PARAMS)
        expected, states[1] = whole.update(grads, states[1], PARAMS)
        differ = False
        for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
            assert a.dtype == jnp.float32
            np.testing.assert_allclose(a, b, rtol=10 * 2.0**-8)  # positive numbers, rounded twice in each of 5 steps
            differ |= bool(jnp.any(a != b))
        exact = name == "lion" or i == 0  # lion's updates are signs, and at first there is nothing to round
        assert differ is not exact
    sizes = [{leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.ndim} for state in states]
    assert sizes == [{2, 4} if name == "adamw" else {2}, {4}]


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
def test_moments_are_float32(name):
    state = make_optimizer(OptimConfig(name=name, momentum=0.9 if name == "sgd" else 0.0), lambda _: 0.1).init(PARAMS)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert moments and all(leaf.dtype == jnp.float32 for leaf in moments)


# ---- Muon


def test_muon_is_torchs_on_every_layer():
    """torch multiplies in bfloat16, five times in a row; its values are up to 0.4."""
    gradient, wanted = (np.asarray(GOLDEN["muon"][key], np.float32) for key in ("gradient", "after"))
    config = OptimConfig(name="muon", learning_rate=1.0, clip_norm=None)
    grads = {"layers": {"mlp": {"up": jnp.stack([gradient, -3.0 * gradient])}}}
    after = step(config, grads, jax.tree.map(jnp.zeros_like, grads))["layers"]["mlp"]["up"]
    np.testing.assert_allclose(after[0], wanted, atol=2.0**-6)
    np.testing.assert_allclose(after[1], -after[0], atol=1e-5)  # whatever the size of the gradient
    assert np.abs(wanted).max() > 0.3


def test_muon_takes_the_heads_of_a_projection_as_one_matrix_and_adamw_takes_the_rest():
    key = jax.random.key(0)
    paths = {"layers/attention/q": (2, 8, 2, 3), "layers/attention/o": (2, 2, 3, 8), "layers/experts/up": (1, 2, 4, 6)}
    adapter = {"lora/layers/attention/q/a": (2, 8, 2), "lora/layers/attention/q/b": (2, 2, 2, 3)}
    others = {"embed/table": (5, 8), "layers/experts/router": (1, 8, 2), "final_norm/scale": (8,)}
    flat = {p: jax.random.normal(key, shape) for p, shape in {**paths, **adapter, **others}.items()}
    config = OptimConfig(name="muon", learning_rate=1.0, clip_norm=None)
    params = nest({path: jnp.zeros_like(x) for path, x in flat.items()})
    moved = flatten(step(config, nest(flat), params))
    matrices = {
        "layers/attention/q": moved["layers/attention/q"].reshape(2, 8, 6),
        "layers/attention/o": moved["layers/attention/o"].reshape(2, 6, 8),
        "layers/experts/up": moved["layers/experts/up"][0],
        "lora/layers/attention/q/a": moved["lora/layers/attention/q/a"],
        "lora/layers/attention/q/b": moved["lora/layers/attention/q/b"].reshape(2, 2, 6),
    }
    for path, stack in matrices.items():
        scale = 0.2 * math.sqrt(max(stack.shape[1:]))
        singular = np.linalg.svd(np.asarray(stack), compute_uv=False) / scale
        assert np.all((singular > 0.4) & (singular < 1.4)), (path, singular)
    adam = flatten(step(replace(config, name="adamw"), nest(flat), params))
    for path in others:
        np.testing.assert_allclose(moved[path], adam[path], rtol=1e-5)
