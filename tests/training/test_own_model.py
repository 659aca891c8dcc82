"""Models in memory: modules of the user's own, and parameters of the built-in decoder."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import own_model
import pytest
import tiny
from flax import nnx

import jaxpref
from jaxpref.errors import InputError
from jaxpref.models.source import given_model, open_checkpoint
from jaxpref.step.given_rule import GivenRule
from jaxpref.training.prepare import prepare

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

VOCAB = 128


@functools.cache
def own() -> jaxpref.OwnModel:
    return own_model.own_model(VOCAB)


def config(out, files, **changes):
    settings = {"train": {"max_steps": 2}} | changes
    return tiny.config(out, files.model, files.train, files.held_out, **settings)


def ignoring_mask(params, token, position, mask):
    return own().hidden(params, token, position, jnp.tril(jnp.ones_like(mask)))


def ignoring_positions(params, token, position, mask):
    index = jnp.broadcast_to(jnp.arange(token.shape[1]), token.shape)
    return own().hidden(params, token, index, mask)


def looking_ahead(params, token, position, mask):
    return own().hidden(params, token, position, mask | jnp.eye(mask.shape[1], k=1, dtype=bool)[None])


@pytest.mark.parametrize(
    "hidden, named",
    [
        (ignoring_mask, "uses the mask it is given.*another completion"),
        (looking_ahead, "uses the mask it is given"),
        (ignoring_positions, "uses the positions it is given"),
    ],
)
def test_what_ignores_the_layout_of_packed_rows_is_refused(tmp_path, tiny_files, hidden, named):
    with pytest.raises(InputError, match=f"(?s){named}"):
        jaxpref.train(config(tmp_path / "run", tiny_files), model=dataclasses.replace(own(), hidden=hidden))


@pytest.mark.slow
def test_linen(tmp_path, tiny_files):
    """It is trained, answers by its own forward pass, and goes on from nothing else."""
    run = config(tmp_path / "run", tiny_files, reference={"mode": "cache", "cache_dir": str(tmp_path / "cache")})
    result = jaxpref.train(run, model=own())
    assert jax.tree.structure(result.params) == jax.tree.structure(own().params)
    assert result.last_eval["eval/loss"] < result.first_eval["eval/loss"] == pytest.approx(np.log(2), abs=1e-3)

    tokens = tiny.make_tokenizer()("hello", return_tensors="np")["input_ids"]
    for _ in range(3):
        length = tokens.shape[1]
        position, mask = jnp.arange(length)[None], jnp.tril(jnp.ones((1, length, length), bool))
        x = own().hidden(result.params, jnp.asarray(tokens), position, mask)[0, -1]
        tokens = np.append(tokens, np.argmax(x @ own().head(result.params).T)[None, None], axis=1)
    (answer,) = result.generate(["hello"], max_new_tokens=3)
    assert answer.token_ids.tolist() == tokens[0, -len(answer.token_ids) :].tolist()

    with pytest.raises(InputError, match="given a model in Python"):
        jaxpref.generate(result.out, ["hello"])
    longer = dataclasses.replace(run, train=dataclasses.replace(run.train, log_every=2))
    scaled = dataclasses.replace(own(), hidden=lambda *inputs: own().hidden(*inputs) * 1.5)
    with pytest.raises(InputError, match="model= of train: what it computes"):
        jaxpref.train(longer, model=scaled)


@pytest.mark.slow
def test_on_a_mesh(tmp_path, tiny_files):
    """About 40 s. The axes are followed, and the loss does not know of the mesh."""
    alone = tiny.run(config(tmp_path / "alone", tiny_files), model=own())
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    spread = tiny.run(config(tmp_path / "spread", tiny_files, mesh=mesh), model=own())
    assert spread.losses == pytest.approx(alone.losses, rel=1e-5)
    up = spread.result.params["block_0"]["up"]["kernel"]
    assert up.sharding.shard_shape(up.shape) == (32, 128), "width over fsdp, ffn over tensor"


class Bag(nnx.Module):
    """The mean of all visible embeddings: not much of a model, but one that uses the mask alone."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed, self.out = nnx.Embed(VOCAB, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, token, position, mask):
        x = self.embed(token)
        return x + self.out(jnp.einsum("rqk,rkd->rqd", mask / mask.sum(-1, keepdims=True), x))


def test_nnx(tmp_path, tiny_files):
    module = Bag(nnx.Rngs(0))
    model = jaxpref.OwnModel.of_nnx(module, head=lambda module: module.embed.embedding[...])
    result = jaxpref.train(config(tmp_path / "run", tiny_files), model=model)
    assert result.last_eval["eval/loss"] < result.first_eval["eval/loss"]
    before = module.embed.embedding[...]
    nnx.update(module, result.params)
    assert np.abs(module.embed.embedding[...] - before).max() > 0


def test_what_does_not_fit_is_named(tmp_path, tiny_files):
    run = config(tmp_path / "run", tiny_files)
    with pytest.raises(InputError, match="no leaf block_9"):
        jaxpref.train(run, model=dataclasses.replace(own(), axes={"block_9": ("width",)}))
    with pytest.raises(InputError, match=r"\(2, 8, 64\).*\(64, 128\)"):
        jaxpref.train(run, model=dataclasses.replace(own(), head=lambda params: params["embed"]["embedding"].T))
    with pytest.raises(InputError, match="without params="):
        jaxpref.train(run, model=dataclasses.replace(own(), params=None))
    with pytest.raises(InputError, match=r"(?s)model=Bag.*OwnModel.of_nnx"):
        jaxpref.train(run, model=Bag(nnx.Rngs(0)))
    with pytest.raises(InputError, match="(?s)the tree of the model's own.*other"):
        jaxpref.train(run, model=own(), params={"other": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match="neftune"):
        jaxpref.train(config(tmp_path / "run", tiny_files, train={"neftune_alpha": 5.0}), model=own())
    with pytest.raises(InputError, match="optim.name=muon"):
        jaxpref.train(config(tmp_path / "run", tiny_files, optim={"name": "muon"}), model=own())
    given = GivenRule(optax.contrib.muon)
    muon = config(tmp_path / "run", tiny_files, optim={"name": "muon"})
    prepared, *_ = prepare(muon, source=given_model(muon.model, own(), None), rule=given)
    assert prepared.rule is given, "it stands in the place of optim.name"
    with pytest.raises(InputError, match="adapter"):
        jaxpref.train(config(tmp_path / "run", tiny_files, adapter={"rank": 2}), model=own())


# ---- parameters of the built-in decoder


@pytest.mark.slow
def test_given_parameters_train_as_those_on_disk(tmp_path, tiny_files):
    on_disk = tiny.run(config(tmp_path / "disk", tiny_files))
    params = open_checkpoint(tiny_files.model).load_params()
    in_memory = tiny.run(config(tmp_path / "memory", tiny_files), params=params)
    assert in_memory.losses == on_disk.losses

    other = jax.tree.map(lambda x: 0.5 * x, params)
    cached = {"mode": "cache", "cache_dir": str(tmp_path / "cache")}
    run = config(tmp_path / "other", tiny_files, reference=cached)
    halved = tiny.run(run, params=other)
    assert halved.losses[0] == pytest.approx(np.log(2), abs=1e-3), "they are the reference too"
    with pytest.raises(InputError, match="weights of model.path"):
        jaxpref.train(run, params=params)
    with pytest.raises(InputError, match="they are its reference"):
        jaxpref.evaluate_run(run.out)
    del params["layers"]["mlp"]["up"]
    with pytest.raises(InputError, match="missing layers/mlp/up"):
        jaxpref.train(config(tmp_path / "less", tiny_files), params=params)


@pytest.mark.slow
def test_an_adapter_on_given_weights_is_not_opened_on_others(tmp_path, tiny_files):
    params = jax.tree.map(lambda x: 0.9 * x, open_checkpoint(tiny_files.model).load_params())
    run = config(tmp_path / "run", tiny_files, adapter={"rank": 2})
    result = jaxpref.train(run, params=params)
    assert len(result.generate(["ab"], max_new_tokens=2)) == 1
    with pytest.raises(InputError, match="weights below its adapter"):
        jaxpref.export_run(run.out, tmp_path / "exported")
    with pytest.raises(InputError, match="params with lora"):
        jaxpref.train(config(tmp_path / "next", tiny_files), params=result.params)
