"""A vocabulary that its mesh does not divide: padded on the devices, and nowhere else to be seen."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
import tiny
from safetensors.numpy import load_file

from jaxpref.config import OptimConfig
from jaxpref.errors import InputError
from jaxpref.evaluation import evaluate_run
from jaxpref.generation.decoding import Generator, decoding_model
from jaxpref.generation.sampling import Sampling
from jaxpref.models.hf import save_pretrained
from jaxpref.models.source import open_checkpoint
from jaxpref.runs.build import build
from jaxpref.runs.export import export_run
from jaxpref.runs.params import load_params
from jaxpref.step.optim import make_optimizer

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

VOCAB = 131
"""A prime, so that every mesh pads it: 136 rows on 4 x 2 devices, 132 on 2."""
PADDED, OTHER = {"fsdp": 4, "tensor": 2}, {"fsdp": 2}
MESH_TOLERANCE = 1e-5
"""Relative: sums over devices run in another order."""
# Log-probs, the collision probability and the KL to the reference: everything that the head reduces.
OBJECTIVES = [{"name": "dpo"}, {"name": "wpo"}, {"name": "tdpo2", "weight": 0.5}]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, and rows of it, whose head is its own."""
    directory = tmp_path_factory.mktemp("odd")
    source = open_checkpoint(tiny.RANDOM_LLAMA)
    params = source.load_params()
    more = np.random.default_rng(0).normal(size=(VOCAB - source.spec.vocab, source.spec.width)).astype(np.float32)
    for parent, leaf in (("embed", "table"), ("head", "kernel")):
        params[parent][leaf] = np.concatenate([params[parent][leaf], more])
    save_pretrained(
        directory / "model", replace(source.spec, vocab=VOCAB), params, tiny.make_tokenizer(),
        dtype=np.float32, generation_config=None, model_card="# odd\n",
    )  # fmt: skip
    rows = tiny.write_rows(directory / "train.jsonl", tiny.rows(8))
    return tiny.Files(directory / "model", rows, tiny.write_rows(directory / "held_out.jsonl", tiny.rows(4, first=50)))


def config(out, files, mesh, **changes):
    settings = {
        "mesh": mesh,
        "objective": OBJECTIVES,
        "optim": {"weight_decay": 0.1, "decay_mask": "all"},
        "train": {"batch_size": 8, "max_steps": 3, "micro_rows": 8, "save_every": 2},
    } | changes
    return tiny.config(out, files.model, files.train, files.held_out, **settings)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, files, compile_cache):
    """The same run without padding and with it."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch, tiny.quick_compile(compile_cache):
        tiny.allow_any_mesh(monkeypatch)
        return [tiny.run(config(out / name, files, mesh)) for name, mesh in (("plain", {}), ("padded", PADDED))]


def vocabulary_leaves(state):
    """Everything in a stored state whose rows are the vocabulary: weights and moments."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if str(path[-1]) in ("['table']", "['kernel']")}


def test_padding_is_zero_and_stays_zero(files, runs):
    plain, padded = runs
    params = load_params(build(padded.config))
    assert params["embed"]["table"].shape == params["head"]["kernel"].shape == (136, 32)
    rows = np.asarray(params["head"]["kernel"])
    np.testing.assert_array_equal(rows[:VOCAB], open_checkpoint(files.model).load_params()["head"]["kernel"])
    assert not rows[VOCAB:].any()
    stored = vocabulary_leaves(tiny.stored_state(padded.out, 3))
    assert len(stored) == 6, "two leaves, each with two moments"
    for name, leaf in stored.items():
        assert leaf.shape == (136, 32) and not leaf[VOCAB:].any() and np.any(leaf[:VOCAB], axis=0).all(), name
    unpadded = vocabulary_leaves(tiny.stored_state(plain.out, 3))
    assert {leaf.shape for leaf in unpadded.values()} == {(VOCAB, 32)}


def assert_close(found, wanted):
    """Metrics; some are zero but for rounding (the KL in the first step)."""
    for name in wanted.keys() - {"tokens_per_second"}:
        np.testing.assert_allclose(found[name], wanted[name], rtol=MESH_TOLERANCE, atol=1e-6, err_msg=name)


def test_training_and_evaluation_agree(runs):
    plain, padded = runs
    for step, values in plain.steps.items():
        assert_close(padded.steps[step], values)
    assert plain.losses[0] != plain.losses[-1]
    assert_close(padded.result.last_eval, plain.result.last_eval)
    assert {"kl/chosen", "wpo/weight", "entropy"} <= plain.steps[1].keys()
    assert evaluate_run(padded.out, step="latest")[0] == padded.result.last_eval


def test_a_model_of_another_vocabulary_is_refused(runs, tmp_path):
    """Padding would make the rows fit: those that are too many would be dropped without a word."""
    other = tiny.write_model(tmp_path / "other")
    copy = tiny.copy_run(runs[1].out, tmp_path / "run")
    config = replace(runs[1].config, out=str(copy), model=replace(runs[1].config.model, path=str(other)))
    tiny.write_config(config, copy / "config.yaml")
    with pytest.raises(InputError, match="changed since: the weights of model.path"):
        tiny.run(config)
    with pytest.raises(InputError, match=f"of {VOCAB} tokens"):
        export_run(copy, tmp_path / "export", step="latest")


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "sgd"])
def test_optimizers_do_not_see_the_padding(name):
    """Three steps with gradients of varied size, so that adafactor clips some of them."""
    rng, rows = np.random.default_rng(0), 160
    start = {"embed": {"table": rng.normal(size=(VOCAB, 130)).astype(np.float32)}}
    grads = [jax.tree.map(lambda x, k=k: x[::-1] * np.float32(9.0**k), start) for k in range(3)]
    pad = lambda tree: jax.tree.map(lambda x: np.concatenate([x, np.zeros((rows - len(x), x.shape[1]), x.dtype)]), tree)
    decay = {} if name == "sgd" else {"weight_decay": 0.1, "decay_mask": "all"}
    optimizer = make_optimizer(OptimConfig(name=name, clip_norm=None, **decay), lambda _: 0.1, VOCAB)

    def train(params, grads):
        state = optimizer.init(params)
        for grad in grads:
            updates, state = optimizer.update(grad, state, params)
            params = optax.apply_updates(params, updates)
        return np.asarray(params["embed"]["table"])

    plain, padded = train(start, grads), train(pad(start), [pad(grad) for grad in grads])
    np.testing.assert_allclose(padded[:VOCAB], plain, rtol=1e-5, atol=1e-6)
    assert not padded[VOCAB:].any()


def test_plain_adafactor_would_see_it():
    optimizer, x = optax.adafactor(0.1), np.random.default_rng(0).normal(size=(VOCAB, 130)).astype(np.float32)
    update = lambda x: np.asarray(optimizer.update(x, optimizer.init(x), x)[0])
    padded = update(np.concatenate([x, np.zeros((29, 130), x.dtype)]))
    np.testing.assert_allclose(padded[:VOCAB] / update(x), (VOCAB / 160) ** 0.5, rtol=1e-3)


def test_exports_agree(runs, tmp_path):
    tensors = []
    for run in runs:
        export_run(run.out, tmp_path / run.out.name, step="3")
        tensors.append(load_file(tmp_path / run.out.name / "model.safetensors"))
    assert tensors[1]["model.embed_tokens.weight"].shape == tensors[1]["lm_head.weight"].shape == (VOCAB, 32)
    for name, value in tensors[0].items():
        np.testing.assert_allclose(tensors[1][name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("mesh", [{}, pytest.param(OTHER, marks=pytest.mark.slow)], ids=["unpadded", "132 rows"])
def test_a_checkpoint_continues_with_another_padding(runs, tmp_path, mesh):
    plain, padded = runs
    tiny.copy_run(padded.out, tmp_path / "run")
    tiny.remove(tmp_path / "run" / "checkpoints" / "3")
    sizes = replace(padded.config.mesh, **({"fsdp": 1, "tensor": 1} | mesh))
    continued = tiny.run(replace(padded.config, out=str(tmp_path / "run"), mesh=sizes))
    assert list(continued.steps) == [3]
    np.testing.assert_allclose(continued.losses[0], padded.losses[2], rtol=MESH_TOLERANCE)
    stored = vocabulary_leaves(tiny.stored_state(tmp_path / "run", 3))
    assert {leaf.shape for leaf in stored.values()} == {(132 if mesh else VOCAB, 32)}
    assert not any(leaf[VOCAB:].any() for leaf in stored.values())


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.0), Sampling(temperature=1.3, top_k=40, top_p=0.95)], ids=str
)
def test_generation_agrees(files, tmp_path, sampling):
    """Draws of a row are its own, however many rows the head has."""
    drawn = []
    for mesh in ({}, PADDED):
        pieces = build(config(tmp_path / "run", files, mesh))
        generator = Generator(
            decoding_model(pieces.model), load_params(pieces), pieces.mesh, sampling=sampling, seed=1, positions=64,
            max_new_tokens=12, stop_ids=[],
        )  # fmt: skip
        prompts = [np.array([5, 40, 130]), np.array([77, 3])]
        found = generator.run(prompts, [(0, 0), (1, 0)], [lambda ids: None] * 2, limit=8)
        drawn.append({row: ids.tolist() for row, ids, _ in found})
    assert drawn[0] == drawn[1] and all(len(ids) == 12 and max(ids) < VOCAB for ids in drawn[0].values())
