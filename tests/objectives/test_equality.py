"""The value of every objective where policy and reference are the same model: what its docstring says."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import columns, completions
from test_objectives import part_of

from jaxpref.objectives import OBJECTIVES, TRANSFORMS, ObjectiveOutput, bind
from jaxpref.objectives.equality import span_at_equality

LN2 = math.log(2.0)
softplus = lambda x: float(np.log1p(np.exp(x)).mean())


def odpo(count, c, beta, alpha):
    """Of the pairs whose scores have an order."""
    gap = np.asarray(c["score"][:, 0] - c["score"][:, 1])
    return np.log1p(gap[gap > 0] ** alpha).mean()


def others(c, w):
    """sum_j w_j (r_j(chosen) - r_j(rejected)) / w_0."""
    r = np.asarray(c["other_rewards"])
    return (r[:, 0] - r[:, 1]) @ np.array(w[1:]) / w[0]


# As the docstrings have it: (loss tokens, columns, hyperparameters) -> value.
DOCUMENTED = {
    **dict.fromkeys(
        "dpo cdpo rdpo dpo_norm dpop minor_dpo mmpo f_dpo_forward_kl f_dpo_js f_dpo_alpha chi_po ld_dpo sampo "
        "tdpo1 tdpo2 aot aot_unpaired dr_dpo beta_dpo bco".split(),
        lambda count, c, **h: LN2,
    ),
    "signed_dpo": lambda count, c, beta: LN2,
    "cos_dpo": lambda count, c, beta: LN2 * float(jnp.sum(c["objective_weights"] * jnp.abs(c["labels"]), -1).mean()),
    **dict.fromkeys(("ipo", "ipo_sum"), lambda count, c, beta: 1 / (4 * beta**2)),
    **dict.fromkeys(("hinge", "apo_zero", "apo_down"), lambda count, c, **h: 1.0),
    **dict.fromkeys(("nca", "bco_pair", "bco_pair_centred"), lambda count, c, **h: 2 * LN2),
    **dict.fromkeys(("kto", "apo_zero_unpaired"), lambda count, c, **h: 0.5),
    "exo": lambda count, c, beta, eps: -LN2 - (math.log(1 - eps) + math.log(eps)) / 2,
    "discopop": lambda count, c, **h: (LN2 + 1) / 2,
    "r_dpo": lambda count, c, beta, alpha: softplus(-alpha * (count[:, 0] - count[:, 1])),
    "odpo": odpo,
    "margin_dpo": lambda count, c, beta: softplus(c["margin"]),
    "sppo_hard": lambda count, c, beta: 1 / (2 * beta**2),
    "sppo_soft": lambda count, c, beta: np.mean(2 * ((np.asarray(c["probability"]) - 0.5) / beta) ** 2),
    "cal_dpo": lambda count, c, beta, lam: LN2 + lam / (2 * beta**2),
    "mdpo_anchor": lambda count, c, beta, delta: softplus(delta),
    **dict.fromkeys(
        ("mdpo", "mdpo_masked"),
        lambda count, c, beta, conditional, anchor, delta: LN2 * (1 + conditional) + anchor * softplus(delta),
    ),
    "minor_sft": lambda count, c, beta: np.mean(2 * LN2 / (beta * count[:, 0])),
    "plackett_luce": lambda count, c, beta: math.log(math.factorial(count.shape[1])),
    "info_nca": lambda count, c, **h: math.log(count.shape[1]),
    "modpo": lambda count, c, beta, w: softplus(others(c, w)),
    "modpo_hinge": lambda count, c, beta, w: np.maximum(0, 1 + others(c, w)).mean(),
}

OF_THE_MODEL = {
    "hypo", "wpo", "wpo_clamped", "hpo_dpo", "hpo_kto", "mrpo", "mrpo_fixed", "geometric_mrpo", "multi_dpo",
    "modpo_implicit", "spo", "rloo",
}  # fmt: skip
"""Depends on how likely the answers are, or on further models."""

WITHOUT_REFERENCE = {name for name in OBJECTIVES if not part_of(name).needs_reference}


def groups_of(part, seed=0):
    """Loss tokens [4, K] and columns."""
    rng, K = np.random.default_rng(seed), completions(part)
    return rng.integers(2, 9, (4, K)).astype(np.float32), columns(part, 4, K, seed)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_value_is_the_documented_one(name):
    part = part_of(name)
    count, arrays = groups_of(part)
    span = span_at_equality(part, count, arrays, rounding=0.0)
    if name not in DOCUMENTED:
        assert span is None and name in OF_THE_MODEL | WITHOUT_REFERENCE
        return
    expected = DOCUMENTED[name](count, arrays, **part.hyperparameters)
    assert span.value == pytest.approx(expected, rel=1e-6)
    assert span.low <= expected <= span.high and span.high - span.low < 1e-4 * expected
    assert "where policy equals reference" in " ".join(inspect.getdoc(OBJECTIVES[name]).split())


def test_hyperparameters_and_weights_count():
    (part,) = bind([{"name": "ipo", "beta": 0.5}], OBJECTIVES)
    count = np.array([[2, 3], [4, 1]], np.float32)
    assert span_at_equality(part, count, {}, 0.0).value == pytest.approx(1.0)
    (part,) = bind([{"name": "margin_dpo"}], OBJECTIVES)
    weighted = {"margin": np.array([0.5, 7.0], np.float32), "weight": np.array([1.0, 0.0], np.float32)}
    assert span_at_equality(part, count, weighted, 0.0).value == pytest.approx(math.log1p(math.exp(0.5)))


def test_transforms_keep_the_value_unless_they_leave_the_reference_out():
    count = np.array([[2, 3], [4, 1]], np.float32)
    for transform in TRANSFORMS:
        (part,) = bind([{"name": "dpo", "transform": transform}], OBJECTIVES, TRANSFORMS)
        span = span_at_equality(part, count, {}, 0.0)
        assert span is None if transform == "reference_free" else span.value == pytest.approx(LN2), transform


def test_rounding_widens_the_span_by_what_it_does_to_the_loss():
    """The log-ratio of n tokens may be off by rounding * sqrt(n), of both answers either way."""
    count = np.array([[4, 9]], np.float32)
    for beta in (0.1, 0.5):
        (part,) = bind([{"name": "dpo", "beta": beta}], OBJECTIVES)
        span = span_at_equality(part, count, {}, 0.01)
        off = beta * 0.01 * (2 + 3)
        assert (span.low, span.high) == pytest.approx((softplus(-off), softplus(off)), abs=1e-5)
        assert not span.low <= 6 * LN2 <= span.high


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_rounding_may_move_answers_with_a_label_against_those_without(name):
    """All moved alike, what the desirable lose the others gain; a run in bfloat16 was refused for that."""
    (part,) = bind([{"name": name, "beta": 0.1}], OBJECTIVES)
    count = np.array([[4, 9], [16, 4]], np.float32)
    span = span_at_equality(part, count, {"label": np.array([1.0, 0.0], np.float32)}, 0.15, each=True)
    off = 0.1 * 0.15 * np.array([2, 4])
    assert span.low == pytest.approx(np.mean(1 / (1 + np.exp(off))), abs=1e-4)
    assert span.high >= np.mean(1 / (1 + np.exp(-off))) - 1e-4


def my_loss(policy, ref, label, *, scale: float = 1.0):
    """Of a user's own, of a label and the log-ratio."""
    rho = policy.sum[:, 0] - ref.sum[:, 0]
    return ObjectiveOutput(jax.nn.softplus(label - scale * rho), jnp.ones(len(rho)), {})


def test_a_function_of_ones_own_needs_to_declare_nothing():
    (part,) = bind([{"name": my_loss, "scale": 2.0}], OBJECTIVES)
    label = np.array([0.0, 1.0], np.float32)
    span = span_at_equality(part, np.array([[3.0], [5.0]]), {"label": label}, 0.0)
    assert span.value == pytest.approx(float(np.log1p(np.exp(label)).mean()), rel=1e-6)
