"""Runs that train an adapter: exact at the start, only the adapter trained and stored, everything else as without."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from test_multihost import PROCESS_TOLERANCE, losses_of, train_in
from test_step import make_groups

from jaxpref.data.loader import Loader
from jaxpref.data.pack import Layout
from jaxpref.errors import InputError
from jaxpref.evaluation import evaluate_run
from jaxpref.models import lora, peft
from jaxpref.models.decoder import build_model
from jaxpref.models.lora import LoraSpec
from jaxpref.models.parameters import LORA
from jaxpref.models.source import open_checkpoint
from jaxpref.models.spec import ModelSpec
from jaxpref.objectives import OBJECTIVES, bind, needs
from jaxpref.objectives.pairwise import dpo
from jaxpref.runs.build import build
from jaxpref.runs.directory import run_params
from jaxpref.runs.export import export_run
from jaxpref.runs.params import load_params
from jaxpref.step.batch_loss import LossSpec
from jaxpref.step.policy import Frozen
from jaxpref.step.state import init_state
from jaxpref.step.train_step import make_train_step

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

GOLDEN = Path(__file__).parents[1] / "golden"
LN2 = float(np.float32(np.log(2)))
MESH_TOLERANCE = 1e-5
"""Relative: sums over devices run in another order."""


# ---- whole runs


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory, tiny_files, compile_cache):
    """Ten steps on four devices with evaluations and checkpoints; tests must not write into it."""
    with pytest.MonkeyPatch.context() as monkeypatch, tiny.quick_compile(compile_cache):
        tiny.allow_any_mesh(monkeypatch)
        out = tmp_path_factory.mktemp("lora") / "run"
        return tiny.run(tiny.long_config(out, tiny_files, adapter={"rank": 4}, mesh={"fsdp": 2, "tensor": 2}))


def logits(config, params):
    """Next-token logits of a fixed row."""
    model = build(config).model
    token_RL = (np.arange(16, dtype=np.int32) * 7 % 120)[None]
    position_RL = np.arange(16, dtype=np.int32)[None]
    expiry_RL = np.full_like(token_RL, 16)

    def run(params):
        return jnp.einsum("RLD,VD->RLV", model.hidden(params, token_RL, position_RL, expiry_RL), model.head(params))

    return np.asarray(jax.jit(run)(params))


def test_policy_and_reference_start_equal_to_the_bit(lora_run):
    assert lora_run.losses[0] == LN2
    first = lora_run.result.first_eval
    assert first["eval/loss"] == LN2 and first["eval/rewards/margins"] == 0.0
    assert lora_run.losses[-1] < 0.6 and lora_run.result.last_eval["eval/rewards/margins"] > 0.1


def test_only_the_adapter_is_trained_and_stored(lora_run):
    state = tiny.stored_state(lora_run.out, 10)
    assert state["params"].keys() == {LORA}
    stored = jax.tree_util.tree_leaves_with_path(state)
    assert all("lora" in jax.tree_util.keystr(path) for path, leaf in stored if np.ndim(leaf) > 1)
    new = load_params(build(lora_run.config))[LORA]
    for trained, start in zip(jax.tree.leaves(state["params"][LORA]), jax.tree.leaves(new), strict=True):
        assert not np.array_equal(trained, start)


def test_evaluation_opens_the_run_as_training_left_it(lora_run):
    metrics, step = evaluate_run(lora_run.out, step="latest")
    assert step == 10
    wanted = lora_run.result.last_eval
    assert {name: metrics[name] for name in wanted} == pytest.approx(wanted, rel=MESH_TOLERANCE, abs=MESH_TOLERANCE)


def test_the_merged_export_and_the_peft_directory_are_the_policy(lora_run, tmp_path, tiny_files):
    pieces = build(lora_run.config)
    policy = logits(lora_run.config, run_params(pieces, lora_run.out, "latest")[0])
    assert export_run(lora_run.out, tmp_path / "merged", step="latest") == 10
    merged = tiny.config(tmp_path / "a", tmp_path / "merged", tiny_files.train)
    np.testing.assert_allclose(logits(merged, load_params(build(merged))), policy, rtol=1e-4, atol=1e-4)
    export_run(lora_run.out, tmp_path / "adapter", step="latest", adapter=True)
    onto = tiny.config(tmp_path / "b", tiny_files.model, tiny_files.train, adapter={"path": str(tmp_path / "adapter")})
    np.testing.assert_allclose(logits(onto, load_params(build(onto))), policy, rtol=1e-4, atol=1e-4)
    base = tiny.config(tmp_path / "c", tiny_files.model, tiny_files.train)
    assert np.abs(logits(base, load_params(build(base))) - policy).max() > 0.01


@pytest.mark.slow
def test_training_goes_on_from_an_adapter_with_ranks_and_scales_by_pattern(tiny_files, tmp_path):
    path = str(GOLDEN / "peft" / "patterns")
    settings = dict(adapter={"path": path}, optim={"weight_decay": 0.1}, train={"max_steps": 3})
    run = tiny.run(tiny.long_config(tmp_path / "run", tiny_files, **settings))
    assert run.losses[0] == LN2 and run.losses[-1] < LN2
    start = load_params(build(run.config))[LORA]["layers"]
    trained = tiny.stored_state(run.out, 3)["params"][LORA]["layers"]
    for group, name, rank in (("attention", "q", 2), ("attention", "v", 4), ("mlp", "down", 4)):
        before, after = start[group][name]["a"], trained[group][name]["a"]
        assert not np.array_equal(after[..., :rank], before[..., :rank])
        assert after.shape[-1] == 6 and not after[..., rank:].any(), "what fills up stays zero"
    policy = logits(run.config, run_params(build(run.config), run.out, "latest")[0])
    export_run(run.out, tmp_path / "merged", step="latest")
    export_run(run.out, tmp_path / "adapter", step="latest", adapter=True)
    merged = tiny.config(tmp_path / "a", tmp_path / "merged", tiny_files.train)
    onto = tiny.config(tmp_path / "b", tiny_files.model, tiny_files.train, adapter={"path": str(tmp_path / "adapter")})
    for config in (merged, onto):
        np.testing.assert_allclose(logits(config, load_params(build(config))), policy, rtol=1e-4, atol=1e-4)


def test_a_run_without_adapter_has_none_to_export(finished_run, tmp_path):
    with pytest.raises(InputError, match="trained the weights"):
        export_run(finished_run.out, tmp_path / "adapter", adapter=True)


@pytest.mark.slow
def test_a_run_that_was_cut_off_continues_on_another_mesh(lora_run, tiny_files, tmp_path):
    settings = dict(adapter={"rank": 4}, mesh={"fsdp": 2, "tensor": 2})
    tiny.run(tiny.long_config(tmp_path / "run", tiny_files, **settings), die_at=5)
    rest = tiny.run(tiny.long_config(tmp_path / "run", tiny_files, adapter={"rank": 4}))
    assert list(rest.steps) == [4, 5, 6, 7, 8, 9, 10]
    np.testing.assert_allclose(rest.losses, lora_run.losses[3:], rtol=MESH_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter",
    [{"dora": True, "rslora": True}, {"quantize": "int4", "dora": True}, {"quantize": "nf4"},
     {"quantize": "int8", "quantize_block": None}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kind_starts_equal_trains_and_is_exported(adapter, dtype, tiny_files, tmp_path):
    settings = dict(mesh={"fsdp": 2, "tensor": 2}, adapter={"rank": 2} | adapter, model={"compute_dtype": dtype})
    run = tiny.run(tiny.long_config(tmp_path / "run", tiny_files, **settings))
    assert run.losses[0] == LN2 and run.result.first_eval["eval/loss"] == LN2
    assert run.losses[-1] < 0.65
    assert [name for _, name in run.compiled].count("jit(train_step)") == 1
    assert evaluate_run(run.out, step="latest")[0]["eval/loss"] == pytest.approx(
        run.result.last_eval["eval/loss"], rel=MESH_TOLERANCE
    )
    if dtype == "float32":
        policy = logits(run.config, run_params(build(run.config), run.out, "latest")[0])
        export_run(run.out, tmp_path / "merged", step="latest")
        merged = tiny.config(tmp_path / "a", tmp_path / "merged", tiny_files.train)
        np.testing.assert_allclose(logits(merged, load_params(build(merged))), policy, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def adapter_directory(lora_run, tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapter") / "peft"
    export_run(lora_run.out, directory, step="latest", adapter=True)
    return directory


def first_loss(out, files, **settings) -> float:
    config = tiny.config(out, files.model, files.train, train={"max_steps": 1}, **settings)
    return tiny.run(config).losses[0]


@pytest.mark.slow
def test_training_goes_on_from_an_adapter_and_the_reference_is_chosen(adapter_directory, tiny_files, tmp_path):
    given = str(adapter_directory)
    start = lambda name, **reference: first_loss(
        tmp_path / name,
        tiny_files,
        adapter={"path": given},
        reference={"cache_dir": str(tmp_path / "cache")} | reference,
    )
    assert start("itself") == LN2  # null: what training starts from
    assert start("named", adapter=given) == LN2
    against_base = start("base", adapter="base")
    assert abs(against_base - LN2) > 0.01
    # The same, cached; under keys of their own.
    assert start("cached", mode="cache") == pytest.approx(LN2, rel=MESH_TOLERANCE)
    assert start("cached_base", mode="cache", adapter="base") == pytest.approx(against_base, rel=MESH_TOLERANCE)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    # A new adapter against the old one.
    new = first_loss(tmp_path / "new", tiny_files, adapter={"rank": 2}, reference={"adapter": given})
    assert abs(new - LN2) > 0.01
    # Against the weights of another model.
    other = tiny.write_model(tmp_path / "other", scale=1.5)
    assert abs(first_loss(tmp_path / "o", tiny_files, adapter={"rank": 2}, reference={"path": str(other)}) - LN2) > 0.01


@pytest.mark.slow
def test_a_reference_that_follows_in_every_step_is_the_policy(tiny_files, tmp_path):
    reference = {"sync_every": 1, "sync_alpha": 1.0}
    config = tiny.long_config(tmp_path / "run", tiny_files, adapter={"rank": 2}, reference=reference)
    run = tiny.run(config)
    assert run.losses == [LN2] * 10
    assert evaluate_run(run.out, step="latest")[0]["eval/loss"] == LN2
    start = load_params(build(config))[LORA]
    trained = tiny.stored_state(run.out, 10)["params"][LORA]
    assert not np.allclose(jax.tree.leaves(trained)[0], jax.tree.leaves(start)[0])


@pytest.mark.slow
def test_a_reward_model_trains_head_and_adapter(tiny_files, tmp_path):
    config = tiny.long_config(
        tmp_path / "run", tiny_files, adapter={"rank": 4}, objective=[{"name": "bradley_terry"}],
        train={"best_metric": "eval/loss", "best_mode": "min"},
    )  # fmt: skip
    run = tiny.run(config)
    assert run.losses[-1] < run.losses[0]
    assert tiny.stored_state(run.out, 10)["params"].keys() == {LORA, "scalar_heads"}
    export_run(run.out, tmp_path / "merged", step="latest")
    with pytest.raises(InputError, match="reward head"):
        export_run(run.out, tmp_path / "adapter", step="latest", adapter=True)


@pytest.mark.slow
def test_two_processes_train_an_adapter_on_quantised_weights_as_one(tiny_files, tmp_path, compile_cache):
    settings = dict(adapter={"rank": 4, "quantize": "int8"}, mesh={"fsdp": 4}, train={"max_steps": 4, "eval_every": 4})
    make = lambda name: tiny.long_config(tmp_path / name, tiny_files, **settings)
    two = train_in(2, make("two"), tmp_path, compile_cache)
    one = tiny.run(make("one"))
    np.testing.assert_array_equal(losses_of(two[0]), losses_of(two[1]))
    np.testing.assert_allclose(losses_of(two[0]), one.losses, rtol=PROCESS_TOLERANCE)


def test_settings_that_do_not_fit_are_refused(tiny_files, tmp_path):
    make = lambda **settings: tiny.config(tmp_path, tiny_files.model, tiny_files.train, **settings)
    for message, settings in {
        "no adapter: set adapter.rank": {"adapter": {"alpha": 8.0, "quantize": "nf4"}},
        "brings its own rank": {"adapter": {"path": "x", "rank": 4}},
        "reference.adapter is laid over frozen weights": {"reference": {"adapter": "x"}},
        "not the factors of the mixture": {"adapter": {"rank": 4}, "reference": {"sync_every": 2}},
        "give one": {"adapter": {"rank": 4}, "reference": {"adapter": "x", "path": "y"}},
    }.items():
        with pytest.raises(InputError, match=message):
            make(**settings)
    with pytest.raises(InputError, match="(?s)q_proj.*lm_head"):
        build(make(adapter={"rank": 4, "targets": ["lm_head"]}))
    with pytest.raises(InputError, match="adapter_config.json"):
        build(make(adapter={"path": str(tmp_path)}))
    with pytest.raises(InputError, match="(?s)adapter.rank up to 32.*adapter.rank=33; .*attention/k 24"):
        build(make(adapter={"rank": 33, "targets": ["k", "q", "down"]}))
    with pytest.raises(InputError, match="adapter.rank up to 24"):
        build(make(adapter={"rank": 32, "targets": ["k", "v"]}))
    build(make(adapter={"rank": 32, "targets": ["k", "q"]}))


# ---- single steps

SPEC = ModelSpec("llama", 96, 32, 40, 2, 4, 2, 12, 512, 1e4, 1e-5, False)
ADAPTER = LoraSpec(2, 2.0, ("attention/q", "attention/o", "mlp/down"))
MODEL = build_model(SPEC, attention_block=16, lora=ADAPTER)


@needs(coupled=True)
def coupled_dpo(policy, ref, *, beta: float = 0.1):
    """dpo that says that it couples the batch, so that its step has two phases."""
    return dpo(policy, ref, beta=beta)


def make_step(objective, *, dropout: float, micro_rows: int):
    """The step, its arguments; the adapter is not the base."""
    spec = dataclasses.replace(ADAPTER, dropout=dropout)
    model = build_model(SPEC, attention_block=16, lora=spec)
    base = jax.jit(lambda key: jax.tree.map(lambda x: 3 * x, MODEL.init(key)))(jax.random.key(0))
    adapter = {LORA: jax.tree.map(lambda x: x + 0.05, lora.init(jax.random.key(1), base, spec))}
    (item,) = Loader(make_groups(), batch_size=8, micro_rows=micro_rows, layout=Layout(32)).iterate()
    optimizer = optax.sgd(1.0)  # the update is the gradient
    scoring = LossSpec(model, bind(objective, OBJECTIVES), 8, dropout=dropout > 0)
    step = jax.jit(make_train_step(scoring, optimizer, lambda _: 1.0))
    return step, (init_state(adapter, optimizer, 0), Frozen(base, {}), item.batch, item.micro_batches)


def gradient(objective, **settings):
    step, arguments = make_step(objective, **settings)
    new, metrics = step(*arguments)
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), arguments[0].params, new.params)
    return moved, float(metrics["loss"])


@pytest.mark.slow
def test_no_gradient_of_a_frozen_weight_is_computed():
    """In the compiled step nothing is multiplied into the shape of a frozen weight."""
    step, arguments = make_step([{"name": "dpo"}], dropout=0.0, micro_rows=2)
    program = step.lower(*arguments).compile().as_text()
    products = {tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\][^=]* dot\(", program)}
    sizes = lambda shape: tuple(sorted(shape))
    # q and o, k and v, the MLP's, embedding and head; and with heads flattened.
    frozen = {(4, 12, 32), (2, 12, 32), (32, 40), (32, 96), (32, 48), (24, 32)}
    assert not {sizes(shape) for shape in products} & frozen
    adapted = {sizes(x.shape[1:]) for x in jax.tree.leaves(arguments[0].params)} | {(2, 48)}
    assert {sizes(shape) for shape in products} & adapted, "the adapter's own gradients are such products"


@pytest.mark.slow
def test_dropout_is_the_same_in_both_phases_of_a_coupled_step():
    """The gradient that goes back through each micro-batch is that of the log-probs that the loss was made of."""
    split, loss = gradient([{"name": "dpo"}], dropout=0.3, micro_rows=2)
    coupled, same_loss = gradient([{"name": coupled_dpo}], dropout=0.3, micro_rows=2)
    undropped, other_loss = gradient([{"name": "dpo"}], dropout=0.0, micro_rows=2)
    assert loss == pytest.approx(same_loss, rel=1e-6) and abs(loss - other_loss) > 1e-4
    for one, other, without in zip(*map(jax.tree.leaves, (split, coupled, undropped)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(one).max())
        assert np.abs(one - without).max() > 1e-3 * np.abs(one).max()


@pytest.mark.slow
def test_dropout_differs_from_step_to_step_and_from_micro_batch_to_micro_batch():
    step, (state, *rest) = make_step([{"name": "dpo"}], dropout=0.3, micro_rows=2)
    losses = [float(step(state._replace(step=jnp.int32(n)), *rest)[1]["loss"]) for n in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    frozen, batch, micro_batches = rest
    # The first micro-batch in every place: their losses differ by the dropout alone.
    alike = jax.tree.map(lambda x: np.repeat(x[:1], len(x), 0), batch)
    both = float(step(state, frozen, alike, np.int32(2))[1]["loss"])
    assert both != float(step(state, frozen, alike, np.int32(1))[1]["loss"])


def test_the_adapters_directory_is_pefts(lora_run, adapter_directory):
    model = open_checkpoint(lora_run.config.model.path).spec
    spec = peft.read_spec(adapter_directory, model)
    assert spec == LoraSpec(4, 4.0, tuple(peft.target_names(model)))
