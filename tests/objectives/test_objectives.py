"""Objectives: hand values, golden values of TRL 1.16, gradients, extremes, and the contract."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxpref.errors import InputError
from jaxpref.logprobs import Logps
from jaxpref.objectives import OBJECTIVES, ObjectiveOutput, bind, check_columns
from jaxpref.objectives.pairwise import dpo, ipo
from jaxpref.objectives.supervised import sft

# TRL 1.16.0's DPOTrainer in float64 on four pairs, beta 0.1: summed log-probs (chosen, rejected), token counts, and
# the batch's loss for the cases dpo/sigmoid, dpo/ipo and dpo/sft.
TRL_POLICY = (
    [-9.4938046468, -7.42625981, -21.865311942, -9.2905463616],
    [-11.0834631773, -14.2334281778, -4.374365948, -14.0303798677],
)
TRL_REF = (
    [-10.0156968585, -8.5775907163, -22.7616158029, -9.560498871],
    [-10.873320944, -14.4965078327, -5.3281349968, -15.7185208076],
)
TRL_COUNTS = ([5, 3, 7, 4], [4, 6, 2, 5])
TRL_LOSS = {"dpo": 0.692382206, "ipo": 25.389052147, "sft": 2.530311724}


def logps(sums, counts=None):
    total = jnp.asarray(sums, jnp.float32)
    count = jnp.ones_like(total) if counts is None else jnp.asarray(counts, jnp.float32)
    return Logps(total, count, jnp.zeros_like(total), jnp.zeros_like(total))


def value(out):
    return float(jnp.sum(out.loss_B * out.weight_B) / jnp.sum(out.weight_B))


POLICY = logps([[-3.0, -7.0], [-4.0, -2.0]], [[2, 4], [1, 3]])
REF = logps([[-4.0, -5.0], [-4.5, -3.5]], [[2, 4], [1, 3]])


def test_dpo_by_hand():
    """rho = (1, -2), (0.5, 1.5): margins 3 and -1; -log sigmoid(0.3), -log sigmoid(-0.1)."""
    out = dpo(POLICY, REF, beta=0.1)
    np.testing.assert_allclose(out.loss_B, [math.log1p(math.exp(-0.3)), math.log1p(math.exp(0.1))], rtol=1e-6)
    np.testing.assert_allclose(out.metrics["rewards/chosen"], [0.1, 0.05], rtol=1e-6)
    np.testing.assert_allclose(out.metrics["rewards/margins"], [0.3, -0.1], rtol=1e-5)
    assert out.metrics["rewards/accuracies"].tolist() == [1.0, 0.0]


def test_ipo_by_hand():
    """Token means of rho: 1/2 + 2/4 = 1 and 0.5/1 - 1.5/3 = 0, each minus 1/(2 * 0.25) = 2, squared."""
    np.testing.assert_allclose(ipo(POLICY, REF, beta=0.25).loss_B, [1.0, 4.0], rtol=1e-6)


def test_sft_is_the_token_mean():
    """(3 + 4) nats over 2 + 1 tokens."""
    assert value(sft(POLICY)) == pytest.approx(7 / 3, rel=1e-6)


def test_constants_where_policy_equals_reference():
    assert dpo(REF, REF).loss_B == pytest.approx(math.log(2), abs=1e-7)
    assert ipo(REF, REF, beta=0.1).loss_B == pytest.approx(25.0, rel=1e-6)
    assert dpo(REF, REF).metrics["rewards/accuracies"].tolist() == [0.0, 0.0], "a tie is no win, as in TRL"


def test_swapping_the_pair_flips_the_margin():
    swap = lambda x: jax.tree.map(lambda part: part[:, ::-1], x)
    there, back = dpo(POLICY, REF), dpo(swap(POLICY), swap(REF))
    np.testing.assert_allclose(there.metrics["rewards/margins"], -back.metrics["rewards/margins"])
    np.testing.assert_allclose(there.loss_B - back.loss_B, -there.metrics["rewards/margins"], rtol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_jit_and_weights(name):
    (part,) = bind([{"name": name}], OBJECTIVES)
    loss = lambda total: part(POLICY._replace(sum=total), REF, {}).loss_B.sum()
    check_grads(loss, (POLICY.sum,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
    np.testing.assert_allclose(jax.jit(loss)(POLICY.sum), loss(POLICY.sum), rtol=1e-6)
    if part.needs_reference:
        of_ref = jax.grad(lambda total: part(POLICY, REF._replace(sum=total), {}).loss_B.sum())(REF.sum)
        assert not np.any(of_ref), "the reference is constant"
    weighted = part(POLICY, REF, {"weight": jnp.array([2.0, 0.0])})
    assert value(weighted) == pytest.approx(float(weighted.loss_B[0]), rel=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("ratio", [0.0, 1e3, -1e3])
@pytest.mark.parametrize("beta", [1e-3, 10.0])
def test_finite_at_extremes(name, ratio, beta):
    hyper = {} if name == "sft" else {"beta": beta}
    (part,) = bind([{"name": name, **hyper}], OBJECTIVES)
    for count in (1, 4000):
        policy, ref = logps([[ratio - 5.0, -5.0]], [[count, 1]]), logps([[-5.0, -5.0]], [[count, 1]])
        loss, grad = jax.value_and_grad(lambda s, p=policy, r=ref: part(p._replace(sum=s), r, {}).loss_B.sum())(
            policy.sum
        )
        assert np.isfinite(loss) and np.all(np.isfinite(grad))


def test_an_empty_slot_weighs_nothing():
    empty = logps([[-3.0, -7.0], [0.0, 0.0]], [[2, 4], [0, 0]])
    ref = logps([[-4.0, -5.0], [0.0, 0.0]], [[2, 4], [0, 0]])
    for name in OBJECTIVES:
        (part,) = bind([{"name": name}], OBJECTIVES)
        out = part(empty, ref, {})
        assert out.weight_B[1] == 0 and np.isfinite(out.loss_B[1])


@pytest.mark.parametrize("name", TRL_LOSS)
def test_golden_values_of_trl(name):
    (part,) = bind([{"name": name}], OBJECTIVES)
    columns = lambda sides: np.array(sides).T
    policy, ref = (logps(columns(side), columns(TRL_COUNTS)) for side in (TRL_POLICY, TRL_REF))
    assert value(part(policy, ref, {})) == pytest.approx(TRL_LOSS[name], rel=1e-5)


def test_a_sum_binds_names_weights_and_hyperparameters():
    parts = bind([{"name": "dpo", "beta": 0.3}, {"name": "sft", "weight": 0.5}, {"name": "dpo"}], OBJECTIVES)
    assert [(p.name, p.weight) for p in parts] == [("dpo", 1.0), ("sft", 0.5), ("dpo_2", 1.0)]
    assert parts[0].hyperparameters == {"beta": 0.3} and parts[2].hyperparameters == {"beta": 0.1}
    assert parts[0].needs_reference and not parts[1].needs_reference


def test_every_mistake_is_named_at_once():
    with pytest.raises(InputError) as error:
        bind(
            [{"name": "dop"}, {"name": "dpo", "bta": 1}, {"name": "ipo", "beta": "x"}, {"name": "sft", "weight": "a"}],
            OBJECTIVES,
        )
    text = str(error.value)
    for expected in ("did you mean 'dpo'", "dpo.bta is unknown", "did you mean 'beta'", "ipo.beta='x'", "weight='a'"):
        assert expected in text


def my_loss(policy, ref, margin, *, scale: float):
    """An objective of a user's own: DPO with a margin from the data."""
    rho = policy.sum - ref.sum
    return ObjectiveOutput(-jax.nn.log_sigmoid(scale * (rho[:, 0] - rho[:, 1]) - margin), jnp.ones(2), {})


def test_a_function_of_ones_own():
    for name in (my_loss, f"{__name__}:my_loss"):
        (part,) = bind([{"name": name, "scale": 0.1}], OBJECTIVES)
        assert part.columns == ("margin",) and part.needs_reference
        out = part(POLICY, REF, {"margin": jnp.array([0.3, 0.0])})
        assert out.loss_B[0] == pytest.approx(math.log(2), rel=1e-6)
    with pytest.raises(InputError, match="my_loss lacks \\['scale'\\]"):
        bind([my_loss], OBJECTIVES)
    with pytest.raises(InputError, match="needs 'margin'; the data has: score, weight"):
        check_columns(bind([{"name": my_loss, "scale": 1.0}], OBJECTIVES), ["weight", "score"])
