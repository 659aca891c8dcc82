"""What every objective owes, over the whole registry, and the contract; the other files have each one's own values."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import columns, completions, logps
from jax.test_util import check_grads

from jaxpref.errors import InputError
from jaxpref.models.logprobs import Logps
from jaxpref.objectives import (
    FAMILIES,
    OBJECTIVES,
    TRANSFORMS,
    ObjectiveOutput,
    Term,
    bind,
    check_columns,
    group_kinds,
    needs,
)
from jaxpref.objectives.contract import PAIRS
from jaxpref.objectives.pairwise import dpo

REQUIRED = {
    "mrpo_fixed": {"alphas": [0.5, 0.3, 0.2]},
    "geometric_mrpo": {"alphas": [0.5, 0.3, 0.2]},
    "multi_dpo": {"alphas": [0.5, 0.3, 0.2]},
    "modpo": {"w": [0.5, 0.3, 0.2]},
    "modpo_hinge": {"w": [0.5, 0.3, 0.2]},
    "modpo_implicit": {"w": [0.5, 0.3, 0.2]},
    "spo": {"lambdas": [0.5, 0.25]},
    "hpo_dpo": {"g": [0.5, 0.5]},
    "hpo_kto": {"g": [0.5, 0.5]},
    "advantage_mle": {"g": [0.5, 0.5]},
    "advantage_mle_value": {"g": [0.5, 0.5]},
}
"""Hyperparameters without a default."""

# Their gradient leaves something out on purpose (stopped weights, means, anchors), so finite differences disagree.
STOPPED = {
    "bco", "bco_pair_centred", "kto", "wpo", "wpo_clamped", "tdpo2", "beta_dpo", "hpo_dpo", "hpo_kto", "advantage_mle",
    "advantage_mle_value", "mrpo", "rloo",
}  # fmt: skip

# Works on another field than the log-probs.
ELSEWHERE = {"bradley_terry": "reward", "router_balance": "router"}


def part_of(name, **hyper):
    (part,) = bind([{"name": name, **REQUIRED.get(name, {}), **hyper}], OBJECTIVES)
    return part


def value(out):
    total = lambda term: jnp.sum(term.weight_B * term.loss_B) / jnp.maximum(jnp.sum(term.weight_B), 1e-30)
    return sum(total(term) for term in out.terms)


def batch_of(part, seed=0, pairs=4):
    """A plausible batch: log-probs of some nats, answers of different lengths."""
    rng, K = np.random.default_rng(seed), completions(part)
    count = rng.integers(2, 9, (pairs, K)).astype(np.float32)
    draw = lambda: (-count * rng.uniform(0.5, 2.0, count.shape)).astype(np.float32)
    return logps(draw(), count), logps(draw(), count), columns(part, pairs, K, seed)


def of_numbers(part):
    """numbers -> the part's value with these."""
    policy, ref, arrays = batch_of(part)
    return lambda numbers: value(part.with_numbers(numbers)(policy, ref, arrays))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_numbers_may_be_traced(name):
    """All but the constants; else a step with other numbers could not be the same program."""
    part = part_of(name)
    floats = {key for key, x in part.hyperparameters.items() if isinstance(x, float)}
    assert {"weight", *floats} - set(part.needs.constants) <= part.numbers.keys()
    assert not part.numbers.keys() & set(part.needs.constants)
    assert jax.eval_shape(of_numbers(part), part.numbers).shape == ()
    for key in part.needs.constants:
        with pytest.raises(jax.errors.ConcretizationTypeError):
            jax.eval_shape(of_numbers(part), {key: part.hyperparameters[key]})


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_traced_numbers_give_the_same_value(name):
    """Those of the config, and others: each is a constant only where nothing is traced."""
    part = part_of(name)
    traced, numbers = jax.jit(of_numbers(part)), part.numbers
    others = jax.tree.map(lambda x: 0.9 * x, numbers)
    for own in (numbers, others):
        np.testing.assert_allclose(traced(own), of_numbers(part)(own), rtol=1e-5, atol=1e-6)
    assert traced._cache_size() == 1


def test_numbers_of_a_users_function_are_not_traced():
    def own(policy, *, beta: float = 0.1):
        return ObjectiveOutput(beta * policy.sum[:, 0], policy.count[:, 0], {})

    (part,) = bind([{"name": own, "weight": 2.0}], OBJECTIVES)
    assert part.numbers == {"weight": 2.0}


def test_every_public_function_is_listed():
    public = {
        f.__name__
        for module in FAMILIES
        for _, f in inspect.getmembers(module, inspect.isfunction)
        if f.__module__ == module.__name__ and not f.__name__.startswith("_")
    }
    assert public == set(OBJECTIVES) and len(OBJECTIVES) > 55


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_jit_and_a_constant_reference(name):
    part = part_of(name)
    policy, ref, arrays = batch_of(part)
    moved = lambda total: policy._replace(sum=total, common=0.6 * total, sampled=0.4 * total)
    loss = lambda total: value(part(moved(total), ref, arrays))
    gradient = jax.grad(loss)(policy.sum)
    np.testing.assert_allclose(jax.jit(loss)(policy.sum), loss(policy.sum), rtol=1e-5)
    if name in ELSEWHERE:
        field = ELSEWHERE[name]
        of = lambda x: value(part(policy._replace(**{field: x}), ref, arrays))
        gradient = jax.grad(of)(getattr(policy, field))
    elif name not in STOPPED:
        check_grads(loss, (policy.sum,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)
    assert np.any(gradient)
    if part.needs_reference:
        of_ref = jax.grad(lambda total: value(part(policy, ref._replace(sum=total), arrays)))(ref.sum)
        assert not np.any(of_ref), "the reference is constant"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_finite_at_extremes(name):
    """Equal answers, log-ratios of 1e3 either way, answers of 1 and of 4,000 tokens, beta 1e-3 and 10."""
    has_beta = "beta" in part_of(name).hyperparameters
    for beta in (1e-3, 10.0) if has_beta else (None,):
        part = part_of(name, **({"beta": beta} if has_beta else {}))
        K = completions(part)
        sides = [(-5.0, -5.0), (-5.0, -1005.0), (-1005.0, -5.0), (-1e-9, -700.0)]
        grid = [(c, r, n, m) for c in sides for r in sides for n, m in ((1, 1), (1, 4000), (4000, 1))]
        count = np.array([[row[2 + min(k, 1)] for k in range(K)] for row in grid], np.float32)
        totals = np.array([[row[min(k, 1)] for k in range(K)] for row in grid], np.float32)  # [B, K, policy and ref]
        policy, ref = (logps(totals[..., i], count) for i in (0, 1))
        arrays = columns(part, len(grid), K)

        @jax.jit
        def of(policy, part=part, ref=ref, arrays=arrays):
            out = part(policy, ref, arrays)
            return value(out), (out.terms, out.metrics, out.running)

        (total, seen), gradient = jax.value_and_grad(of, has_aux=True)(policy)
        for x in jax.tree.leaves((total, seen, gradient)):
            assert np.all(np.isfinite(x)), (name, beta)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_empty_slots_change_nothing(name):
    part = part_of(name)
    policy, ref, arrays = batch_of(part)
    holes = lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[:2], jnp.zeros_like(x[:1]), x[2:]])
    with_holes = lambda tree: {k: v if k == "running" else holes(v) for k, v in tree.items()}
    wide, wide_ref = (jax.tree.map(holes, x) for x in (policy, ref))
    plain = part(policy, ref, arrays)
    out = part(wide, wide_ref, with_holes(arrays))
    for term in out.terms:
        assert term.weight_B[0] == 0 and term.weight_B[3] == 0 and np.all(np.isfinite(term.loss_B))
    np.testing.assert_allclose(value(out), value(plain), rtol=1e-5)
    gradient = jax.grad(lambda total: value(part(wide._replace(sum=total), wide_ref, with_holes(arrays))))(wide.sum)
    assert np.all(np.isfinite(gradient)) and not np.any(np.asarray(gradient)[[0, 3]])


# beta_dpo draws among the pairs of the batch, whatever their weights.
WEIGHTED = [
    name for name, f in OBJECTIVES.items() if "weight" in inspect.signature(f).parameters and name != "beta_dpo"
]


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weight_of_zero_takes_a_pair_out_and_two_counts_twice(name):
    part = part_of(name)
    policy, ref, arrays = batch_of(part)
    take = lambda tree, rows: jax.tree.map(lambda x: x[jnp.asarray(rows)], tree)
    arrays_of = lambda rows: {k: v if k == "running" else v[jnp.asarray(rows)] for k, v in arrays.items()}
    weighted = part(policy, ref, arrays | {"weight": jnp.array([2.0, 0.0, 1.0, 0.0])})
    rows = [0, 0, 2]
    plain = part(take(policy, rows), take(ref, rows), arrays_of(rows))
    np.testing.assert_allclose(value(weighted), value(plain), rtol=2e-5)


@pytest.mark.parametrize("name", [name for name, f in OBJECTIVES.items() if not f.needs.coupled])
def test_weights_of_what_is_not_coupled_are_data(name):
    """The step takes the denominators from the data before it has any log-prob."""
    part = part_of(name)
    policy, ref, arrays = batch_of(part)
    blank = lambda x: x._replace(sum=jnp.zeros_like(x.sum), collision=jnp.zeros_like(x.sum), kl=jnp.zeros_like(x.sum))
    there, here = part(policy, ref, arrays), part(blank(policy), blank(ref), arrays)
    for a, b in zip(there.terms, here.terms, strict=True):
        np.testing.assert_array_equal(a.weight_B, b.weight_B)


# ---- the contract


def test_a_sum_binds_names_weights_and_hyperparameters():
    parts = bind([{"name": "dpo", "beta": 0.3}, {"name": "sft", "weight": 0.5}, {"name": "dpo"}], OBJECTIVES)
    assert [(p.name, p.weight) for p in parts] == [("dpo", 1.0), ("sft", 0.5), ("dpo_2", 1.0)]
    assert parts[0].hyperparameters == {"beta": 0.3} and parts[2].hyperparameters == {"beta": 0.1}
    assert parts[0].needs_reference and not parts[1].needs_reference
    assert group_kinds(parts) == PAIRS


def test_every_mistake_is_named_at_once():
    with pytest.raises(InputError) as error:
        bind(
            [
                {"name": "minor_dop"}, {"name": "dpo", "bta": 1}, {"name": "ipo", "beta": "x"},
                {"name": "sft", "weight": "a"}, {"name": "rdpo", "eps": 0.5}, {"name": "modpo", "w": [0.5, -0.5]},
                {"name": "odpo", "columns": {"scre": "s"}},
                {"name": "ipo", "transform": {"name": "ld", "alpha": 2.0}},
            ],
            OBJECTIVES, TRANSFORMS,
        )  # fmt: skip
    text = str(error.value)
    for expected in (
        "did you mean 'minor_dpo'", "dpo.bta is unknown", "did you mean 'beta'", "ipo.beta='x'", "weight='a'",
        "rdpo.eps=0.5", "modpo.w=[0.5, -0.5]", "odpo.columns.scre is unknown", "did you mean 'score'", "ld.alpha=2.0",
    ):  # fmt: skip
        assert expected in text, expected


@pytest.mark.parametrize("name", OBJECTIVES)
def test_hyperparameters_are_finite(name):
    given = part_of(name).hyperparameters
    for hyper, value in given.items():
        for bad in (math.inf, -math.inf, math.nan):
            with pytest.raises(InputError, match=rf"{name}\.{hyper}="):
                part_of(name, **{hyper: [bad] * max(len(value), 1) if isinstance(value, (list, tuple)) else bad})


def test_objectives_without_common_groups_are_refused_with_the_reason():
    with pytest.raises(
        InputError, match="cannot be summed.*dpo is defined on pair or triple or .*; kto is defined on judged"
    ):
        bind([{"name": "dpo"}, {"name": "kto"}], OBJECTIVES)


def my_loss(policy, ref, margin, *, scale: float):
    """An objective of a user's own: DPO with a margin from the data."""
    rho = policy.sum - ref.sum
    return ObjectiveOutput(-jax.nn.log_sigmoid(scale * (rho[:, 0] - rho[:, 1]) - margin), jnp.ones(2), {})


POLICY = Logps(*(jnp.array([[-3.0, -7.0], [-4.0, -2.0]]),) * 2, None, None)._replace(
    count=jnp.array([[2.0, 4], [1, 3]])
)
REF = POLICY._replace(sum=jnp.array([[-4.0, -5.0], [-4.5, -3.5]]))


def test_a_function_of_ones_own():
    for name in (my_loss, f"{__name__}:my_loss"):
        (part,) = bind([{"name": name, "scale": 0.1}], OBJECTIVES)
        assert part.columns == ("margin",) and part.needs_reference and len(group_kinds([part])) == 8
        out = part(POLICY, REF, {"margin": jnp.array([0.3, 0.0])})
        assert out.loss_B[0] == pytest.approx(math.log(2), rel=1e-6)
    with pytest.raises(InputError, match="my_loss lacks \\['scale'\\]"):
        bind([my_loss], OBJECTIVES)
    with pytest.raises(InputError, match="my_loss.scale='a'"):
        bind([{"name": my_loss, "scale": "a"}], OBJECTIVES)
    with pytest.raises(InputError, match="needs 'margin'; the data has: score, weight"):
        check_columns(bind([{"name": my_loss, "scale": 1.0}], OBJECTIVES), ["weight", "score"])


def test_columns_under_other_names():
    """One column for an array, or several stacked on its last axis."""
    setting = {"name": "modpo", "w": [0.5, 0.3, 0.2], "columns": {"other_rewards": ["scores/brief", "scores/polite"]}}
    (part,) = bind([setting], OBJECTIVES)
    assert part.columns == ("scores/brief", "scores/polite")
    assert check_columns([part], ["scores/polite", "scores/brief", "weight"]) == (
        "scores/brief", "scores/polite", "weight",
    )  # fmt: skip
    brief, polite = jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.array([[0.5, 0.0], [2.0, 1.0]])
    (plain,) = bind([{"name": "modpo", "w": [0.5, 0.3, 0.2]}], OBJECTIVES)
    np.testing.assert_array_equal(
        part(POLICY, REF, {"scores/brief": brief, "scores/polite": polite}).loss_B,
        plain(POLICY, REF, {"other_rewards": jnp.stack([brief, polite], axis=-1)}).loss_B,
    )


def test_transforms_come_before_the_objective():
    free, changed = bind(
        [{"name": "dpo", "transform": "reference_free"}, {"name": "dpo", "transform": [{"name": "ld", "alpha": 0.0}]}],
        OBJECTIVES, TRANSFORMS,
    )  # fmt: skip
    assert not free.needs_reference and changed.needs_reference and changed.needs.logps == ("common",)
    zero = POLICY._replace(sum=jnp.zeros((2, 2)))
    np.testing.assert_array_equal(free(POLICY, None, {}).loss_B, dpo(POLICY, zero).loss_B)
    short = lambda logps: logps._replace(common=0.5 * logps.sum)
    halves = lambda logps: logps._replace(sum=0.5 * logps.sum)
    np.testing.assert_array_equal(
        changed(short(POLICY), short(REF), {}).loss_B, dpo(halves(POLICY), halves(REF)).loss_B
    )


def test_running_statistics_belong_to_coupled_objectives():
    with pytest.raises(AssertionError):
        needs(running={"mean": 0.0})(lambda policy, running: None)


LOSS, ONE = jnp.array([0.5, 0.7]), jnp.ones(2)
WRONG = {
    "a scalar loss": (ObjectiveOutput(LOSS.mean(), ONE, {}), r"loss_B has shape \[\]"),
    "a loss with an axis kept": (ObjectiveOutput(LOSS[:, None], ONE, {}), r"loss_B has shape \[2, 1\]"),
    "a loss of every completion": (ObjectiveOutput(POLICY.sum, ONE, {}), r"loss_B has shape \[2, 2\]"),
    "too few weights": (ObjectiveOutput(LOSS, ONE[:1], {}), r"weight_B has shape \[1\]"),
    "a scalar metric": (ObjectiveOutput(LOSS, ONE, {"mine": LOSS.mean()}), r"metrics\['mine'\] has shape \[\]"),
    "a term": (ObjectiveOutput(LOSS, ONE, {}, (Term(LOSS, jnp.ones(())),)), r"plus\[0\].weight_B has shape \[\]"),
    "statistics": (ObjectiveOutput(LOSS, ONE, {}, running={"mean": LOSS.mean()}), r"running has \['mean'\]"),
    "a bare array": (LOSS, r"an array of shape \[\d+\]"),
    "a tuple": ((LOSS, ONE, {}), "a tuple"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_an_objective_returns_has_a_number_for_every_group(name):
    """Anything else would broadcast, and train on something else."""
    out, said = WRONG[name]

    def mine(policy):
        return out

    (part,) = bind([mine], OBJECTIVES)
    with pytest.raises(InputError, match=f"mine to return (.|\n)*{said}"):
        jax.eval_shape(lambda policy: part(policy, None, {}), POLICY)
