"""Objectives that couple the groups of a batch: same loss, gradient and statistics however the batch is split."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_step import MODEL, SPEC, assert_same

from jaxpref.config import MeshConfig
from jaxpref.data.loader import Loader
from jaxpref.data.pack import MASKS, UNIFORM, Layout
from jaxpref.objectives import OBJECTIVES, ObjectiveOutput, Term, asked_logps, bind, needs
from jaxpref.sharding import batch_sharding, make_mesh
from jaxpref.step.batch_loss import LossSpec
from jaxpref.step.policy import Frozen
from jaxpref.step.state import MovingReference, init_state, state_shardings
from jaxpref.step.train_step import make_eval_step, make_train_step
from jaxpref.types import EncodedGroup

pytestmark = pytest.mark.usefixtures("quick_compile")


@needs(coupled=True, running={"mean": 0.0, "count": 0.0})
def softmax_of_batch(policy, ref, running, uniform):
    """Couples everything: a softmax over the batch, running mean, and the loader's draws."""
    real_B = policy.count[:, 0] > 0
    margin_B = (policy.sum - ref.sum)[:, 0] - (policy.sum - ref.sum)[:, 1] + uniform
    value = jax.nn.logsumexp(jnp.where(real_B, margin_B, -jnp.inf))
    total, n = jnp.sum(jnp.where(real_B, margin_B, 0.0)), real_B.sum()
    count = running["count"] + n
    mean = jax.lax.stop_gradient((running["mean"] * running["count"] + total) / count)
    loss_B = jnp.full(margin_B.shape, value) + jnp.square(margin_B - mean)
    metrics = {"margin": jax.lax.stop_gradient(margin_B)}
    return ObjectiveOutput(loss_B, real_B.astype(jnp.float32), metrics, running={"mean": mean, "count": count})


@needs(logps=("common", "sampled", "collision", "kl", "prompt"))
def every_field(policy, ref):
    """Reads all that the head can give; not coupled."""
    per_token = policy.common - ref.common + 0.5 * (policy.sampled - ref.sampled) + policy.kl
    loss_B = jnp.square(per_token).sum(-1) * jnp.exp(0.01 * policy.collision.sum(-1))
    present_B = (policy.count.sum(-1) > 0).astype(jnp.float32)
    prompt = Term(-policy.prompt / jnp.maximum(policy.prompt_count, 1.0), present_B * policy.prompt_count)
    return ObjectiveOutput(loss_B, present_B, {}, plus=(prompt,))


def columns_of(i):
    scores_Km = np.sin(np.array([[1.0, 2.0], [3.0, 5.0]]) * (i + 1))
    return {
        "label": float(i % 2),
        "weight": 1.0 + i % 3,
        "baseline": 0.1 * i,
        "scores": scores_Km,
        "sign": float(np.cos(2 * i)),
    }


def make_groups(count=8):
    rng = np.random.default_rng(3)
    ids = lambda low, high: rng.integers(1, SPEC.vocab, rng.integers(low, high)).astype(np.int32)
    return [EncodedGroup(ids(3, 9), (ids(2, 8), ids(2, 8)), i, f"row {i}", columns_of(i)) for i in range(count)]


@pytest.fixture(scope="module")
def params():
    make = lambda key: jax.tree.map(lambda x: 3 * x, MODEL.init(key))
    return jax.jit(make)(jax.random.key(0)), jax.jit(make)(jax.random.key(1))


PLAIN = Layout(32)


def one_step(params, ref, objective, *, micro_rows, mesh_shape=(1, 1, 1), layout=PLAIN, moving=None, combine=None):
    parts = bind(objective, OBJECTIVES)
    asked = asked_logps(parts)
    mesh = make_mesh(MeshConfig(*mesh_shape), devices=jax.devices()[: int(np.prod(mesh_shape))])
    loader = Loader(
        make_groups(), batch_size=8, micro_rows=micro_rows, layout=layout, columns=[UNIFORM, *columns_of(0)],
        masks=[name for name in asked if name in MASKS], loss_on_prompt="prompt" in asked,
    )  # fmt: skip
    (item,) = list(loader.iterate())
    optimizer = optax.sgd(1.0)  # the update is the gradient
    step = make_train_step(LossSpec(MODEL, parts, 8, layout.lengths), optimizer, lambda _: 1.0, moving, combine)
    start = lambda p, r: init_state(p, optimizer, 0, parts, r if moving else None)
    shardings = state_shardings(jax.eval_shape(start, params, ref), mesh)
    state = jax.device_put(start(params, ref), shardings)
    batch = jax.device_put(item.batch, batch_sharding(mesh, leading=1))
    frozen = Frozen({}, None if moving else jax.device_put(ref, shardings.params))
    with jax.set_mesh(mesh):
        jitted = jax.jit(step, out_shardings=(shardings, None))
        new, metrics = jitted(state, frozen, batch, item.micro_batches)
    gradient = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, new.params)
    return {k: float(v) for k, v in metrics.items()}, gradient, new, loader.plan, (item, parts)


OBJECTIVE_LISTS = {
    "coupled": [softmax_of_batch],
    "fields": [every_field],
    "sum": [{"name": softmax_of_batch, "weight": 0.5}, {"name": "dpo"}, every_field],
}


# The sum has both others in it.
ALONE = [pytest.param(name, marks=pytest.mark.slow) for name in OBJECTIVE_LISTS if name != "sum"]


@pytest.fixture(scope="module", params=["sum", *ALONE])
def unsplit(request, params):
    objective = OBJECTIVE_LISTS[request.param]
    return objective, one_step(*params, objective, micro_rows=8)


SPLITS = [
    (1, (1, 1, 1), Layout(32)),
    (2, (1, 1, 1), Layout(64, buckets=4)),
    (4, (1, 1, 1), Layout(32, share_prefix=False, pack=False)),
    (8, (8, 1, 1), Layout(32)),
    (4, (2, 2, 2), Layout(32)),
    (4, (2, 1, 1, 2), Layout(64)),
]


@pytest.mark.parametrize(
    "micro_rows, mesh_shape, layout",
    [SPLITS[0], SPLITS[2], *(pytest.param(*split, marks=pytest.mark.slow) for split in (SPLITS[1], *SPLITS[3:]))],
    ids=str,
)
def test_same_loss_gradient_and_statistics(params, unsplit, micro_rows, mesh_shape, layout):
    objective, whole = unsplit
    split = one_step(*params, objective, micro_rows=micro_rows, mesh_shape=mesh_shape, layout=layout)
    assert (split[3].micro_batches, mesh_shape, layout) != (whole[3].micro_batches, (1, 1, 1), Layout(32))
    assert_same(whole, split)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), whole[2].running, split[2].running)


SETTINGS = {"hpo_kto": {"g": (1.0, -0.5)}}
LISTED = [name for name, function in OBJECTIVES.items() if function.needs.coupled]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [*LISTED, "wpo", "tdpo1", "sampo", "orpo_with_prompt"],
)
def test_listed_objectives_on_one_two_and_four_micro_batches_and_on_eight_devices(params, name):
    apart = Layout(32, pack=False)
    splits = [(8, (1, 1, 1)), (4, (1, 1, 1)), (2, (1, 1, 1)), (8, (8, 1, 1)), (4, (2, 2, 2))]
    objective = [{"name": name, **SETTINGS.get(name, {})}]
    whole, *others = (one_step(*params, objective, micro_rows=n, mesh_shape=m, layout=apart) for n, m in splits)
    assert [step[3].micro_batches for step in (whole, *others)] == [1, 2, 4, 1, 2]
    assert max(np.abs(x).max() for x in jax.tree.leaves(whole[1])) > 1e-4
    for other in others:
        assert_same(whole, other)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), whole[2].running, other[2].running)


def test_the_coupled_gradient_is_not_the_mean_over_micro_batches(params):
    """Otherwise the test above would hold for an implementation that takes each micro-batch for the batch."""
    whole = one_step(*params, [softmax_of_batch], micro_rows=8)
    halves = []
    for members in (make_groups()[:4], make_groups()[4:]):
        loader = Loader(members, batch_size=4, micro_rows=8, layout=Layout(32), columns=[UNIFORM])
        (item,) = list(loader.iterate())
        parts = bind([softmax_of_batch], OBJECTIVES)
        sums = make_eval_step(LossSpec(MODEL, parts, 8))(*params, init_state({}, optax.sgd(1.0), 0, parts).running,
                                                        item.batch, item.micro_batches)  # fmt: skip
        ((value, weight),) = sums["terms"]["softmax_of_batch"]
        halves.append(float(value / weight))
    assert abs(np.mean(halves) - whole[0]["loss"]) > 0.1


def test_draws_depend_on_the_group_alone():
    """The same numbers and tokens in another layout, other ones in the next step."""
    drawn = {}
    for layout in (Layout(32), Layout(64, share_prefix=False)):
        loader = Loader(make_groups(), batch_size=8, micro_rows=1, layout=layout, columns=[UNIFORM], max_steps=2,
                        masks=["sampled", "common"])  # fmt: skip
        for s, item in enumerate(loader.iterate()):
            batch = item.batch
            for at in zip(*np.nonzero(batch.row_id_RG >= 0), strict=True):
                slots = [at[2] * 2 + k for k in (0, 1)]
                masks = tuple(
                    tuple(batch.masks[name][at[:2]][batch.loss_slot_RS[at[:2]] == slot].astype(int).tolist())
                    for name in ("sampled", "common") for slot in slots
                )  # fmt: skip
                key = s, int(batch.row_id_RG[at])
                assert drawn.setdefault(key, (float(batch.columns[UNIFORM][at]), masks)) == (
                    float(batch.columns[UNIFORM][at]), masks,
                )  # fmt: skip
    groups = make_groups()
    assert all(drawn[0, i] != drawn[1, i] for i in range(8))
    for i, group in enumerate(groups):
        n = min(map(len, group.completion_ids))
        sampled, common = drawn[0, i][1][:2], drawn[0, i][1][2:]
        assert [sum(mask) for mask in (*sampled, *common)] == [n] * 4
        assert all(list(mask[:n]) == [1] * n for mask in common)
    assert any(list(mask[: sum(mask)]) != [1] * sum(mask) for i in range(8) for mask in drawn[0, i][1][:2])


@pytest.mark.slow
def test_moving_reference(params):
    """ref <- 0.25 policy + 0.75 ref after the second step, not after the first; the loss starts at the old one."""
    policy, ref = params
    for every, moved in ((1, True), (2, False)):
        moving = MovingReference(every, 0.25, jnp.float32)
        fixed, follows = (one_step(policy, ref, [{"name": "dpo"}], micro_rows=2, moving=m) for m in (None, moving))
        assert fixed[0] == follows[0] and fixed[2].ref_params is None
        alpha = 0.25 if moved else 0.0
        expected = jax.tree.map(lambda p, r, a=alpha: a * p + (1 - a) * r, follows[2].params, ref)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), follows[2].ref_params, expected)
