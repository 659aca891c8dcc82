"""Objectives over several rewards: hand values, what they reduce to, what gets a gradient, what is refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.errors import InputError
from jaxpref.models.logprobs import Logps
from jaxpref.objectives import bind, group_kinds
from jaxpref.objectives.advantage import advantage_mle, advantage_mle_value, hpo_dpo, hpo_kto
from jaxpref.objectives.margins import margin_dpo, r_dpo
from jaxpref.objectives.multiobjective import cos_dpo, modpo, modpo_hinge, modpo_implicit, signed_dpo, spo
from jaxpref.objectives.pairwise import dpo
from jaxpref.objectives.unpaired import apo_zero_unpaired, bco, kto


def logps(sums, counts=None):
    total = jnp.asarray(sums, jnp.float32)
    count = jnp.ones_like(total) if counts is None else jnp.asarray(counts, jnp.float32)
    return Logps(total, count, jnp.zeros_like(total), jnp.zeros_like(total))


def array(x):
    return jnp.asarray(x, jnp.float32)


def minus_log_sigmoid(x):
    return math.log1p(math.exp(-x))


POLICY = logps([[-3.0, -7.0], [-4.0, -2.0]], [[2, 4], [1, 3]])
REF = logps([[-4.0, -5.0], [-4.5, -3.5]], [[2, 4], [1, 3]])  # rho = (1, -2), (0.5, 1.5)
OTHER_REWARDS = array([[[2.0], [-1.0]], [[0.0], [3.0]]])
TWO_REWARDS = array([[[2.0, 1.0], [-1.0, 0.5]], [[0.0, -2.0], [3.0, 0.25]]])


def value_and_grad(function):
    return jax.value_and_grad(lambda s: function(POLICY._replace(sum=s)).loss_B.sum())(POLICY.sum)


def assert_same(one, other):
    """The same value and gradient as functions of the policy."""
    for a, b in zip(value_and_grad(one), value_and_grad(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_modpo_by_hand():
    """u = (0.1 rho - 0.25 r) / 0.5: (-0.8, 0.1) and (0.1, -1.2)."""
    out = modpo(POLICY, REF, OTHER_REWARDS, w=(0.5, 0.25), beta=0.1)
    np.testing.assert_allclose(out.loss_B, [minus_log_sigmoid(-0.9), minus_log_sigmoid(1.3)], rtol=1e-5)
    np.testing.assert_allclose(out.metrics["base_rewards/margins"], [-0.9, 1.3], rtol=1e-5)
    np.testing.assert_allclose(out.metrics["rewards/margins"], [0.3, -0.1], rtol=1e-5)
    assert out.metrics["base_rewards/accuracies"].tolist() == [0.0, 1.0]
    hinge = modpo_hinge(POLICY, REF, OTHER_REWARDS, w=(0.5, 0.25), beta=0.1)
    np.testing.assert_allclose(hinge.loss_B, [1.9, 0.0], rtol=1e-5)


def test_modpo_of_three_objectives_by_hand():
    """First pair: u = 0.1 rho - 0.5 r_1 - 2 r_2 = (-2.9, -0.7)."""
    out = modpo(POLICY, REF, TWO_REWARDS, w=(1.0, 0.5, 2.0), beta=0.1)
    assert out.loss_B[0] == pytest.approx(minus_log_sigmoid(-2.2), rel=1e-5)


def test_modpo_with_the_base_alone_is_dpo():
    assert_same(lambda p: modpo(p, REF, OTHER_REWARDS, w=(1.0, 0.0), beta=0.3), lambda p: dpo(p, REF, beta=0.3))
    assert_same(lambda p: modpo(p, REF, OTHER_REWARDS[:, :, :0], w=(1.0,), beta=0.3), lambda p: dpo(p, REF, beta=0.3))


def test_modpo_with_equal_margins_is_dpo_with_beta_over_w():
    equal = jnp.full_like(OTHER_REWARDS, 7.0)
    assert_same(lambda p: modpo(p, REF, equal, w=(0.25, 0.75), beta=0.3), lambda p: dpo(p, REF, beta=1.2))


def test_only_ratios_of_beta_and_weights_count():
    assert_same(
        lambda p: modpo(p, REF, OTHER_REWARDS, w=(0.2, 0.6), beta=0.1),
        lambda p: modpo(p, REF, OTHER_REWARDS, w=(1.0, 3.0), beta=0.5),
    )


def test_a_length_margin_is_r_dpo():
    """r = -tokens with weights (1, alpha) subtracts alpha * (tokens of chosen - of rejected) from the reward margin."""
    length = -POLICY.count[:, :, None]
    out = modpo(POLICY, REF, length, w=(1.0, 0.05), beta=0.1)
    np.testing.assert_allclose(
        out.metrics["base_rewards/margins"], [0.3 + 0.05 * (2 - 4), -0.1 + 0.05 * (1 - 3)], rtol=1e-5
    )
    assert_same(lambda p: modpo(p, REF, length, w=(1.0, 0.05)), lambda p: r_dpo(p, REF, alpha=0.05))


def test_a_margin_of_weight_one_is_margin_dpo():
    difference = OTHER_REWARDS[:, 0, 0] - OTHER_REWARDS[:, 1, 0]
    assert_same(lambda p: modpo(p, REF, OTHER_REWARDS, w=(1.0, 1.0)), lambda p: margin_dpo(p, REF, difference))


def test_implicit_rewards_are_those_of_the_other_policies():
    others = array([[[-2.0, -6.0], [-6.0, -5.0]], [[-4.0, -1.0], [-3.0, -2.0]]])
    rewards = jnp.stack([0.1 * (others[..., 0] - REF.sum), 0.5 * (others[..., 1] - REF.sum)], axis=-1)
    explicit = lambda p: modpo(p, REF, rewards, w=(0.5, 0.3, 0.2), beta=0.2)
    assert_same(lambda p: modpo_implicit(p, REF, others, w=(0.5, 0.3, 0.2), betas=(0.1, 0.5), beta=0.2), explicit)
    same_beta = lambda p: modpo_implicit(p, REF, others, w=(0.5, 0.3, 0.2), betas=(0.2, 0.2), beta=0.2)
    assert_same(lambda p: modpo_implicit(p, REF, others, w=(0.5, 0.3, 0.2), beta=0.2), same_beta)
    assert abs(value_and_grad(same_beta)[0] - value_and_grad(explicit)[0]) > 1e-2


def test_spo_by_hand():
    """Stage 3, first pair: r_1 = 0.1 (L_1 - L_0), r_2 = 0.5 (L_ref - L_1), v = 0.1 rho - 2 r_1 - 0.5 r_2.

    L_0 = (-2, -6), L_1 = (-6, -5), L_ref = (-4, -5): r_1 = (-0.4, 0.1), r_2 = (1, 0); v = (0.4, -0.4).
    """
    stages = array([[[-2.0, -6.0], [-6.0, -5.0]], [[-4.0, -1.0], [-3.0, -2.0]]])
    out = spo(POLICY, REF, stages, lambdas=(2.0, 0.5), betas=(0.1, 0.5), beta=0.1)
    assert out.loss_B[0] == pytest.approx(minus_log_sigmoid(0.8), rel=1e-5)
    swapped = spo(POLICY, REF, stages[..., ::-1], lambdas=(2.0, 0.5), betas=(0.1, 0.5), beta=0.1)
    assert abs(out.loss_B[0] - swapped.loss_B[0]) > 0.1, "the order of the stages matters"


def test_the_first_stage_of_spo_is_dpo():
    assert_same(lambda p: spo(p, REF, jnp.zeros((2, 2, 0)), lambdas=(), beta=0.3), lambda p: dpo(p, REF, beta=0.3))


def test_other_models_and_rewards_get_no_gradient():
    def total(ref, extra, margins):
        ref = REF._replace(sum=ref)
        outs = (
            modpo(POLICY, ref, margins, w=(0.5, 0.5)),
            modpo_implicit(POLICY, ref, extra, w=(0.5, 0.5)),
            spo(POLICY, ref, extra, lambdas=(0.5,)),
        )
        return sum(out.loss_B.sum() for out in outs)

    for gradient in jax.grad(total, argnums=(0, 1, 2))(REF.sum, OTHER_REWARDS - 5.0, OTHER_REWARDS):
        assert not np.any(gradient)


@pytest.mark.parametrize("objective", (modpo, modpo_hinge))
def test_wrong_weights_are_refused(objective):
    with pytest.raises(InputError, match=r"`other_rewards` of shape \[B, K, 2\](.|\n)*got: shape \(2, 2, 1\)"):
        objective(POLICY, REF, OTHER_REWARDS, w=(0.5, 0.3, 0.2))
    with pytest.raises(InputError, match=r"columns: \{other_rewards: \[first, ...\]\}"):
        objective(POLICY, REF, OTHER_REWARDS[:, :, 0], w=(0.5, 0.3, 0.2))
    for w, message in (
        ([], "first entry, the base's"),
        ([0.0, 1.0], "first entry, the base's"),
        ([0.5, -0.5], "greater than or equal to 0"),
        ([0.5, math.inf], "finite number"),
    ):
        with pytest.raises(InputError, match=message):
            bind([{"name": "it", "w": w}], {"it": objective})
    with pytest.raises(InputError, match=r"lacks \['w'\]"):
        bind([{"name": "it"}], {"it": objective})


def test_wrong_numbers_of_models_and_scores_are_refused():
    with pytest.raises(InputError, match="`extra_refs` of shape(.|\n)*reference.extra"):
        modpo_implicit(POLICY, REF, OTHER_REWARDS, w=(1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="betas with 1 entries"):
        modpo_implicit(POLICY, REF, OTHER_REWARDS, w=(1.0, 1.0), betas=(0.1, 0.2))
    with pytest.raises(InputError, match="as many as `lambdas`"):
        spo(POLICY, REF, OTHER_REWARDS, lambdas=())
    with pytest.raises(InputError, match="`scores` of shape .* as many as `g`"):
        hpo_dpo(POLICY, REF, OTHER_REWARDS, g=(1.0, 1.0))


def test_columns_of_the_data_are_stacked_to_rewards():
    setting = {"name": "modpo", "w": [1, 0.5, 2], "columns": {"other_rewards": ["safety", "brevity"]}}
    (part,) = bind([setting], {"modpo": modpo})
    assert part.columns == ("safety", "brevity") and part.needs_reference
    out = part(POLICY, REF, {"safety": TWO_REWARDS[..., 0], "brevity": TWO_REWARDS[..., 1]})
    np.testing.assert_allclose(out.loss_B, modpo(POLICY, REF, TWO_REWARDS, w=(1.0, 0.5, 2.0)).loss_B, rtol=1e-6)


def test_a_gold_answer_is_left_out():
    third = lambda x: jnp.concatenate([x, jnp.full_like(x[:, :1], -3.0)], axis=1)
    policy, ref, margins = (jax.tree.map(third, x) for x in (POLICY, REF, OTHER_REWARDS))
    for objective, hyper in (
        (modpo, {"w": (1.0, 1.0)}),
        (modpo_implicit, {"w": (1.0, 1.0)}),
        (spo, {"lambdas": (1.0,)}),
    ):
        pair = objective(POLICY, REF, OTHER_REWARDS, **hyper)
        np.testing.assert_allclose(objective(policy, ref, margins, **hyper).loss_B, pair.loss_B, rtol=1e-6)


# Rewards 0.5 * score_1 + score_2 of the two pairs: (2, 1) and (-1.5, 0.5).
SCORES = array([[[2.0, 1.0], [-2.0, 2.0]], [[1.0, -2.0], [3.0, -1.0]]])
G = (0.5, 1.0)


def test_hpo_by_hand():
    """Advantages +-1/2 and -+1; token means of the log-probs -3/2, -7/4 and -4, -2/3."""
    out = hpo_dpo(POLICY, REF, SCORES, g=G, beta=0.1, gamma=0.3, alpha=2.0)
    np.testing.assert_allclose(out.loss_B, dpo(POLICY, REF).loss_B)
    (term,) = out.plus
    first = (math.exp(0.25) * 1.5 + math.exp(-0.25) * 1.75) / 2
    second = (math.exp(-0.5) * 4 + math.exp(0.5) * 2 / 3) / 2
    np.testing.assert_allclose(term.loss_B, [0.3 * first, 0.3 * second], rtol=1e-5)
    np.testing.assert_array_equal(term.weight_B, [2.0, 2.0])
    np.testing.assert_allclose(out.metrics["advantage/weight"], [math.cosh(0.25), math.cosh(0.5)], rtol=1e-5)
    assert not np.any(hpo_dpo(POLICY, REF, SCORES, g=G, gamma=0.0).plus[0].loss_B), "gamma 0 is DPO"


def test_hpo_on_kto_by_hand():
    """Rewards 2 and -1 of the judged answers less baselines 1 and 0: factors e^(1/2) and e^(-1/2), log-probs -3/2, -4.

    The answer to another prompt, in the second place, has part in z0 only.
    """
    label, baseline, weight = array([1.0, 0.0]), array([1.0, 0.0]), array([1.0, 3.0])
    scores = array([[[2.0, 1.0], [0.0, 0.0]], [[0.0, -1.0], [0.0, 0.0]]])
    sides = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    of = lambda p, **more: hpo_kto(p, REF, label, scores, baseline, weight, g=G, alpha=2.0, **sides, **more)
    out, alone = of(POLICY, gamma=0.3), kto(POLICY, REF, label, weight, **sides)
    np.testing.assert_array_equal(out.loss_B, alone.loss_B)
    np.testing.assert_array_equal(out.weight_B, [1.0, 3.0])
    (term,) = out.plus
    np.testing.assert_allclose(term.loss_B, [0.3 * math.exp(0.5) * 1.5, 0.3 * math.exp(-0.5) * 4], rtol=1e-5)
    np.testing.assert_array_equal(term.weight_B, [1.0, 3.0])
    np.testing.assert_allclose(out.metrics["advantage/weight"], [math.exp(0.5), math.exp(-0.5)], rtol=1e-5)
    assert set(alone.metrics) < set(out.metrics)
    grad = jax.grad(lambda s: of(POLICY._replace(sum=s), gamma=0.3).plus[0].loss_B.sum())(POLICY.sum)
    np.testing.assert_allclose(grad, [[-0.3 * math.exp(0.5) / 2, 0], [-0.3 * math.exp(-0.5), 0]], rtol=1e-5)
    assert not np.any(of(POLICY, gamma=0.0).plus[0].loss_B), "gamma 0 is KTO"


def test_what_sums_with_the_likelihood_and_what_has_it_inside():
    """On judged answers bco and apo; not KTO, whose answers to other prompts have no scores (nor have gold answers)."""
    names = {f.__name__: f for f in (bco, apo_zero_unpaired, kto, hpo_kto, hpo_dpo, dpo, advantage_mle)}
    both = lambda first: bind([{"name": first}, {"name": "advantage_mle", "g": [1.0]}], names)
    assert [group_kinds(both(first)) for first in ("bco", "apo_zero_unpaired", "dpo")] == [
        ("judged",), ("judged",), ("pair",)
    ]  # fmt: skip
    with pytest.raises(InputError, match="cannot be summed"):
        both("kto")
    (on_pairs,), (on_judged,) = (bind([{"name": name, "g": [1.0]}], names) for name in ("hpo_dpo", "hpo_kto"))
    assert group_kinds([on_pairs]) == ("pair",)
    assert group_kinds([on_judged]) == ("judged_other",) and on_judged.columns == ("label", "scores", "baseline")
    with pytest.raises(InputError, match="at least 1 item"):
        bind([{"name": "hpo_kto", "g": []}], names)


def test_the_factor_is_constant_and_clipped():
    """d loss / d L = -factor / (n * 2 completions), whatever the scores; factors are exp(+-1/2 / 0.1), at most 3."""

    def likelihood(s, scores, w_max=20.0):
        return advantage_mle(POLICY._replace(sum=s), scores, g=G, alpha=0.1, w_max=w_max).loss_B[0]

    of_sum, of_scores = jax.grad(likelihood, argnums=(0, 1))(POLICY.sum, SCORES)
    np.testing.assert_allclose(of_sum[0], [-20.0 / 4, -math.exp(-5) / 8], rtol=1e-5)
    assert not np.any(of_scores)
    np.testing.assert_allclose(
        jax.grad(likelihood)(POLICY.sum, SCORES, 3.0)[0], [-3.0 / 4, -math.exp(-5) / 8], rtol=1e-5
    )
    clipped = advantage_mle(POLICY, SCORES, g=G, alpha=0.1).metrics["advantage/clipped"]
    np.testing.assert_array_equal(clipped, [0.5, 0.5])
    assert np.all(np.isfinite(jax.grad(likelihood)(POLICY.sum, 1e30 * SCORES)))


def test_completions_count_alike_whatever_their_group():
    """A ranked group of three beside one of two: the value is the mean over five completions."""
    policy = logps([[-2.0, -6.0, -3.0], [-5.0, -1.0, 0.0]], [[1, 2, 1], [5, 1, 0]])
    scores = array([[[3.0], [1.0], [-1.0]], [[1.0], [0.0], [0.0]]])
    out = advantage_mle(policy, scores, g=(1.0,), alpha=1.0)
    np.testing.assert_array_equal(out.weight_B, [3.0, 2.0])
    value = jnp.sum(out.loss_B * out.weight_B) / out.weight_B.sum()
    sums = 2 * math.exp(2) + 3 * math.exp(0) + 3 * math.exp(-2) + 1 * math.exp(0.5) + 1 * math.exp(-0.5)
    assert value == pytest.approx(sums / 5, rel=1e-5)


def test_a_single_completion_wants_a_baseline():
    policy, scores = logps([[-2.0], [-6.0]], [[1], [2]]), array([[[1.0]], [[0.25]]])
    with pytest.raises(InputError, match="baseline"):
        advantage_mle(policy, scores, g=(1.0,))
    out = advantage_mle(policy, scores, array([0.5, 0.0]), g=(1.0,))
    np.testing.assert_allclose(out.loss_B, [2 * math.exp(0.5), 3 * math.exp(0.25)], rtol=1e-5)


def test_empty_slots_weigh_nothing():
    policy = logps([[-2.0, -6.0], [0.0, 0.0]], [[1, 2], [0, 0]])
    scores = array([[[1.0], [0.0]], [[0.0], [0.0]]])
    value = policy._replace(value=array([0.0, 0.0]))
    outs = (
        advantage_mle(policy, scores, g=(1.0,)),
        advantage_mle_value(value, scores, g=(1.0,)),
        hpo_dpo(policy, policy, scores, g=(1.0,)),
        hpo_kto(policy, policy, array([1.0, 0.0]), scores, array([0.0, 0.0]), g=(1.0,)),
        modpo(policy, policy, scores, w=(1.0, 1.0)),
        spo(policy, policy, scores, lambdas=(1.0,)),
    )
    for out in outs:
        for term in out.terms:
            assert term.weight_B[0] > 0 and term.weight_B[1] == 0 and np.isfinite(term.loss_B[1])


def test_the_value_head_learns_from_the_regression_only():
    """V = 0.5, R = (1, 0): errors 0.5 and -0.5, weighed 0.7 and 0.3; factors exp(+-1/2).

    d value loss / d V = -(0.7 * 2 * 0.5 - 0.3 * 2 * 0.5) / 2 = -0.2.
    """
    policy, scores = logps([[-2.0, -6.0]], [[1, 2]]), array([[[1.0], [0.0]]])

    def of(s, v, term):
        out = advantage_mle_value(policy._replace(sum=s, value=v), scores, g=(1.0,), tau=0.7)
        return out.terms[term].loss_B.sum()

    v = array([0.5])
    assert of(policy.sum, v, 0) == pytest.approx((2 * math.exp(0.5) + 3 * math.exp(-0.5)) / 2, rel=1e-5)
    assert of(policy.sum, v, 1) == pytest.approx((0.7 + 0.3) * 0.25 / 2, rel=1e-5)
    likelihood_s, likelihood_v = jax.grad(of, argnums=(0, 1))(policy.sum, v, 0)
    regression_s, regression_v = jax.grad(of, argnums=(0, 1))(policy.sum, v, 1)
    np.testing.assert_allclose(likelihood_s[0], [-math.exp(0.5) / 2, -math.exp(-0.5) / 4], rtol=1e-5)
    np.testing.assert_allclose(regression_v, [-0.2], rtol=1e-5)
    assert not np.any(likelihood_v) and not np.any(regression_s)


def test_hpo_sums_with_other_losses():
    """`hpo_dpo` is `dpo` plus gamma times `advantage_mle`."""
    both = hpo_dpo(POLICY, REF, SCORES, array([1.0, 3.0]), g=G, gamma=0.3)
    alone = advantage_mle(POLICY, SCORES, weight=array([1.0, 3.0]), g=G)
    np.testing.assert_allclose(both.plus[0].loss_B, 0.3 * alone.loss_B, rtol=1e-6)
    np.testing.assert_array_equal(both.plus[0].weight_B, alone.weight_B)
    np.testing.assert_array_equal(both.weight_B, [1.0, 3.0])


# ---- labels of several objectives


LABELS = jnp.array([[1.0, -1.0], [0.0, 2.0]])
W = jnp.array([[0.3, 0.7], [0.6, 0.4]])


def test_cos_dpo_is_the_weighted_sum_of_dpo_losses():
    """Pair by pair: a label turns the pair round, its size weighs it, and 0 leaves it out."""
    plain = np.asarray(dpo(POLICY, REF, beta=0.3).loss_B)
    swap = lambda logps: logps._replace(sum=logps.sum[:, ::-1], count=logps.count[:, ::-1])
    turned = np.asarray(dpo(swap(POLICY), swap(REF), beta=0.3).loss_B)
    out = cos_dpo(POLICY, REF, LABELS, W, beta=0.3)
    expected = [0.3 * plain[0] + 0.7 * turned[0], 2 * 0.4 * plain[1]]
    np.testing.assert_allclose(out.loss_B, expected, rtol=1e-6)
    assert not np.allclose(plain, turned)


def test_signed_dpo_is_dpo_over_the_pairs_that_have_the_label():
    """The signs are those of one objective: as parts of a sum they are the weighted sum of DPO losses."""
    assert_same(lambda p: signed_dpo(p, REF, jnp.ones(2), beta=0.3), lambda p: dpo(p, REF, beta=0.3))
    of_one = signed_dpo(POLICY, REF, LABELS[:, 0], beta=0.3)
    np.testing.assert_allclose(of_one.weight_B, [1.0, 0.0])
    other = signed_dpo(POLICY, REF, LABELS[:, 1], beta=0.3)
    mixed = cos_dpo(POLICY, REF, LABELS, jnp.ones_like(W), beta=0.3)
    np.testing.assert_allclose(of_one.weight_B * of_one.loss_B + other.weight_B * other.loss_B, mixed.loss_B, rtol=1e-6)
    assert list(other.metrics["rewards/margins"]) != list(of_one.metrics["rewards/margins"])


def test_labels_come_as_one_column_per_objective():
    with pytest.raises(InputError, match=r"columns: \{labels: \[first, second\]\}"):
        cos_dpo(POLICY, REF, LABELS[:, 0], W)
    setting = {"name": "cos_dpo", "columns": {"labels": ["l/a", "l/b"], "objective_weights": ["w/a", "w/b"]}}
    (part,) = bind([setting], {"cos_dpo": cos_dpo})
    columns = {"l/a": LABELS[:, 0], "l/b": LABELS[:, 1], "w/a": W[:, 0], "w/b": W[:, 1]}
    np.testing.assert_allclose(part(POLICY, REF, columns).loss_B, cos_dpo(POLICY, REF, LABELS, W).loss_B)
