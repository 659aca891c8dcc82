"""Training a mixture of experts with the balance of its router: the same step however the batch is split."""

import dataclasses

import jax
import numpy as np
import pytest
import test_step_coupled
from test_step import SPEC, assert_same

from jaxpref.data.pack import Layout
from jaxpref.models.decoder import build_model

pytestmark = pytest.mark.usefixtures("quick_compile")
MODEL = build_model(dataclasses.replace(SPEC, experts=6, experts_per_token=2, ffn=32), attention_block=16)
OBJECTIVE = [{"name": "dpo"}, {"name": "router_balance", "weight": 0.5}]
SPLITS = [
    (2, (1, 2, 2), Layout(32)),
    pytest.param(2, (1, 1, 1), Layout(32), marks=pytest.mark.slow),
    pytest.param(4, (1, 1, 1), Layout(32, share_prefix=False), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def steps():
    """`one_step` of test_step_coupled on a mixture of experts, and the step of the batch in one piece."""
    make = lambda key: jax.tree.map(lambda x: 3 * x, MODEL.init(key))
    params = jax.jit(make)(jax.random.key(0)), jax.jit(make)(jax.random.key(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_step_coupled, "MODEL", MODEL)
        run = lambda **split: test_step_coupled.one_step(*params, OBJECTIVE, **split)
        yield run, run(micro_rows=8)


@pytest.mark.slow
@pytest.mark.parametrize("micro_rows, mesh_shape, layout", SPLITS, ids=str)
def test_same_loss_and_gradient(steps, micro_rows, mesh_shape, layout):
    run, whole = steps
    split = run(micro_rows=micro_rows, mesh_shape=mesh_shape, layout=layout)
    assert split[3].micro_batches > whole[3].micro_batches == 1
    assert_same(whole, split)
    assert split[0]["router/busiest"] == pytest.approx(whole[0]["router/busiest"], rel=1e-5)


def test_the_balance_is_part_of_the_loss_and_reaches_the_router(steps):
    _, (metrics, gradient, *_) = steps
    assert metrics["loss"] == pytest.approx(metrics["loss/dpo"] + 0.5 * metrics["loss/router_balance"], rel=1e-5)
    assert 2.001 < metrics["loss/router_balance"] < 6.0, "more than the two experts a token of an even load"
    assert np.abs(gradient["layers"]["experts"]["router"]).max() > 1e-4
