"""The step: same loss and gradient however the batch is split and wherever it lies."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxpref.config import MeshConfig
from jaxpref.data.loader import Loader
from jaxpref.data.pack import Layout
from jaxpref.errors import InputError
from jaxpref.models.decoder import build_model
from jaxpref.models.placement import param_shardings, param_specs
from jaxpref.models.spec import ModelSpec
from jaxpref.objectives import OBJECTIVES, bind
from jaxpref.sharding import batch_sharding, make_mesh
from jaxpref.step.batch_loss import LossSpec, finish_metrics
from jaxpref.step.policy import Frozen
from jaxpref.step.state import init_state, state_shardings
from jaxpref.step.train_step import make_eval_step, make_train_step
from jaxpref.types import EncodedGroup

pytestmark = pytest.mark.usefixtures("quick_compile")

# Heads, key/value heads, ffn, width and vocabulary that 8 devices divide.
SPEC = ModelSpec("llama", 64, 32, 64, 2, 8, 8, 8, 512, 1e4, 1e-5, False)
MODEL = build_model(SPEC, attention_block=16)
PARTS = bind([{"name": "dpo"}, {"name": "sft", "weight": 0.5}], OBJECTIVES)
RELATIVE = 2e-6  # float32 sums in another order


def make_groups(count=8, seed=0):
    rng = np.random.default_rng(seed)
    ids = lambda low, high: rng.integers(1, SPEC.vocab, rng.integers(low, high)).astype(np.int32)
    return [
        EncodedGroup(ids(3, 9), (ids(2, 8), ids(2, 8)), i, f"row {i}", {"weight": 0.5 + i / count})
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def params():
    make = lambda key: jax.tree.map(lambda x: 3 * x, MODEL.init(key))
    return jax.jit(make)(jax.random.key(0)), jax.jit(make)(jax.random.key(1))


def one_step(
    params,
    ref,
    *,
    micro_rows,
    mesh_shape=(1, 1, 1),
    layout=None,
    columns=("weight",),
    model=MODEL,
    parts=PARTS,
    **options,
):
    """Loss, gradient, new parameters and the compiled step of one SGD step on a mesh."""
    mesh = make_mesh(MeshConfig(*mesh_shape), devices=jax.devices()[: int(np.prod(mesh_shape))])
    layout = layout or Layout(32)
    loader = Loader(make_groups(), batch_size=8, micro_rows=micro_rows, layout=layout, columns=columns, **options)
    (item,) = list(loader.iterate())
    optimizer = optax.sgd(1.0)  # the update is the gradient
    step = make_train_step(LossSpec(model, parts, 8, loader.layout.lengths), optimizer, lambda _: 1.0)
    shapes = jax.eval_shape(lambda p: init_state(p, optimizer, 0), params)
    shardings = state_shardings(shapes, mesh)
    state = jax.device_put(init_state(params, optimizer, 0), shardings)
    frozen = Frozen({}, jax.device_put(ref, shardings.params))
    batch = jax.device_put(item.batch, batch_sharding(mesh, leading=1))
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, out_shardings=(shardings, None)).lower(state, frozen, batch, item.micro_batches)
        compiled = compiled.compile()
        new, metrics = compiled(state, frozen, batch, item.micro_batches)
    gradient = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, new.params)
    return {k: float(v) for k, v in metrics.items()}, gradient, new, compiled, loader.plan


def assert_same(a, b):
    metrics_a, metrics_b = a[0], b[0]
    for name in metrics_a:
        np.testing.assert_allclose(metrics_a[name], metrics_b[name], rtol=20 * RELATIVE, atol=1e-6, err_msg=name)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(a[1]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=5 * RELATIVE * scale), a[1], b[1])


@pytest.fixture(scope="module")
def unsplit(params):
    return one_step(*params, micro_rows=8)


@pytest.mark.parametrize(
    "micro_rows", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_accumulation_gives_the_unsplit_loss_and_gradient(params, unsplit, micro_rows):
    split = one_step(*params, micro_rows=micro_rows)
    assert unsplit[4].micro_batches == 1 < split[4].micro_batches
    assert_same(unsplit, split)


@pytest.mark.slow
@pytest.mark.parametrize("columns, micro_rows, mesh_shape", [(128, 1, (1, 1, 1)), (256, 8, (2, 2, 2))], ids=str)
def test_shorter_row_lengths_change_nothing_but_the_work(params, unsplit, columns, micro_rows, mesh_shape):
    """One pair of rows of 128, the second nearly empty; one row of 256, half full."""
    whole, cut = Layout(columns), Layout(columns, buckets=8)
    plain = one_step(*params, micro_rows=micro_rows, mesh_shape=mesh_shape, layout=whole)
    bucketed = one_step(*params, micro_rows=micro_rows, mesh_shape=mesh_shape, layout=cut)
    assert bucketed[4].padding_fraction < plain[4].padding_fraction, "a shorter length is run"
    conditionals = [step[3].as_text().count(" conditional(") for step in (plain, bucketed)]
    assert conditionals[0] < conditionals[1], "one program, a branch a length"
    assert_same(unsplit, bucketed)
    assert_same(plain, bucketed)


@pytest.mark.parametrize(
    "mesh_shape",
    [
        (8, 1, 1),
        pytest.param((1, 8, 1), marks=pytest.mark.slow),
        pytest.param((1, 1, 8), marks=pytest.mark.slow),
        (2, 2, 2),
    ],
    ids=str,
)
def test_meshes_agree_and_really_shard(params, unsplit, mesh_shape):
    there = one_step(*params, micro_rows=8, mesh_shape=mesh_shape)
    assert_same(unsplit, there)
    _, _, state, compiled, _ = there
    data, fsdp, tensor = mesh_shape
    q = state.params["layers"]["attention"]["q"]  # [Y, D, N, H]
    assert q.sharding.shard_shape(q.shape) == (2, 32 // fsdp, 8 // tensor, 8)
    head = state.params["head"]["kernel"]
    assert head.sharding.shard_shape(head.shape) == (64 // (fsdp * tensor), 32)
    batch_argument = compiled.input_shardings[0][2].token_RL
    assert batch_argument.shard_shape((1, 8, 32)) == (1, 8 // (data * fsdp), 32)
    program = compiled.as_text()
    assert "all-reduce" in program, "devices must exchange something"
    if data * fsdp == 8:
        assert "f32[1,32,64]" in program and "f32[8,32,64]" not in program, "no device runs the ffn for all rows"


def test_moments_lie_as_their_parameters(params):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    shapes = jax.eval_shape(lambda p: init_state(p, optax.adamw(1e-3), 0), params[0])
    shardings = state_shardings(shapes, mesh)
    moments = shardings.opt_state[0].mu
    assert (
        moments["layers"]["mlp"]["up"].spec
        == shardings.params["layers"]["mlp"]["up"].spec
        == P(None, ("fsdp", "context"), "tensor")
    )
    assert shardings.opt_state[0].count.spec == P()


def test_every_leaf_has_a_line_in_the_table(params):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    specs = param_specs(params[0], mesh)
    assert jax.tree.structure(specs, is_leaf=lambda x: isinstance(x, P)) == jax.tree.structure(params[0])
    broken = jax.tree.map(lambda x: x, params[0])
    broken["layers"]["mlp"] |= {"bias": jnp.zeros((2, 4)), "up": jnp.zeros((2, 4))}
    with pytest.raises(InputError) as error:
        param_specs(broken, mesh)
    assert r"no line for layers/mlp/bias (2, 4); layers/mlp/up (2, 4), in the table as YDF" in str(error.value)


def test_a_mesh_that_does_not_divide_is_refused(params):
    odd = build_model(ModelSpec("llama", 64, 32, 64, 2, 9, 3, 8, 512, 1e4, 1e-5, True), attention_block=16)
    shapes = jax.eval_shape(odd.init, jax.random.key(0))
    with pytest.raises(InputError, match=r"layers/attention/k: 3 over tensor=2"):
        param_shardings(shapes, make_mesh(MeshConfig(2, 2, 2)))
    with pytest.raises(InputError, match="a mesh of 8 devices"):
        make_mesh(MeshConfig(3, 1, 1))


@pytest.mark.parametrize("layout", [Layout(32), Layout(64, buckets=4)], ids=str)
def test_evaluation_equals_the_training_loss(params, unsplit, layout):
    loader = Loader(make_groups(), batch_size=3, micro_rows=1, layout=layout, columns=("weight",))
    evaluate = jax.jit(make_eval_step(LossSpec(MODEL, PARTS, 8, layout.lengths)))
    total = None
    for item in loader.iterate():
        sums = evaluate(*params, {}, item.batch, item.micro_batches)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    metrics = finish_metrics(total, PARTS)
    for name in ("loss", "loss/dpo", "loss/sft", "rewards/margins", "entropy", "mean_token_accuracy"):
        # A margin is a small difference of log-probs of some 30 nats, hence the absolute part.
        np.testing.assert_allclose(metrics[name], unsplit[0][name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_pair_weights_are_used(params, unsplit):
    unweighted = one_step(*params, micro_rows=8, columns=())
    assert abs(unweighted[0]["loss"] - unsplit[0]["loss"]) > 1e-3
