"""Parameter soups: each is the sum that it is named for, and only some of them are the same model."""

import json
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import yaml

from jaxpref import cli
from jaxpref.errors import InputError
from jaxpref.generation.mixing import Mix
from jaxpref.generation.opening import open_source
from jaxpref.models import lora, peft
from jaxpref.models.parameters import flatten
from jaxpref.models.source import open_checkpoint
from jaxpref.runs.merge import merge
from jaxpref.training.run import train

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

GOLDEN = Path(__file__).parents[1] / "golden" / "peft"
TOLERANCE = 1e-4
"""Of logits of about 10, through products in another order."""


def adapter(model, directory, seed, *, rank=4, alpha=8.0, targets=("attention/q", "mlp/down"), **settings):
    """A PEFT directory with random factors, and its tree."""
    source = open_checkpoint(model)
    spec = lora.LoraSpec(rank, alpha, targets, **settings)
    tree = lora.init(jax.random.key(seed), source.load_params(), spec)
    noise = lambda path, x: 0.3 * jax.random.normal(jax.random.fold_in(jax.random.key(seed), hash_of(path)), x.shape)
    tree = jax.tree_util.tree_map_with_path(noise, tree)
    peft.save_adapter(directory, tree, spec, source.spec, base=str(model), model_card="")
    return directory


def hash_of(path):
    return sum(map(ord, jax.tree_util.keystr(path)))


@pytest.fixture(scope="module")
def sources(tmp_path_factory, tiny_files):
    folder = tmp_path_factory.mktemp("soup")
    models = [tiny_files.model, *(tiny.write_model(folder / f"m{scale}", scale=scale) for scale in (0.3, 2.0))]
    alike = [adapter(tiny_files.model, folder / f"a{seed}", seed) for seed in (1, 2)]
    other = adapter(tiny_files.model, folder / "other", 3, rank=2, alpha=3.0, targets=("attention/q", "mlp/up"))
    return models, alike, other


def logits(source):
    pieces, params, _ = open_source(source)
    return np.asarray(_logits(pieces.model, params))


@partial(jax.jit, static_argnums=0)
def _logits(model, params):
    token_RL = (jnp.arange(128) * 7 % 120)[None]
    hidden_RLD = model.hidden(params, token_RL, jnp.arange(128)[None], jnp.full((1, 128), 128))
    return jnp.einsum("RLD,VD->RLV", hidden_RLD[:, :16], model.head(params))


def weights_of(source):
    return flatten(open_checkpoint(source).load_params())


def tree_of(directory):
    source = open_checkpoint(json.loads((directory / "adapter_config.json").read_text())["base_model_name_or_path"])
    spec, tree = peft.load_adapter(directory, source.spec)
    return spec, flatten(tree)


# ---- weights


def test_weights_are_the_mean_of_models(sources, tmp_path):
    models, _, _ = sources
    merge(dict(zip(models, (0.2, 0.3, 0.5), strict=True)), tmp_path / "to", how="weights")
    found, own = weights_of(tmp_path / "to"), [weights_of(model) for model in models]
    for path, leaf in found.items():
        expected = sum(w * tree[path].astype(np.float64) for w, tree in zip((0.2, 0.3, 0.5), own, strict=True))
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-7)
    assert any(np.abs(found[path] - own[0][path]).max() > 0.01 for path in found)
    assert open_checkpoint(tmp_path / "to").load_tokenizer().get_vocab() == tiny.make_tokenizer().get_vocab()


def test_one_with_all_the_weight_is_that_one(sources, tmp_path):
    models, alike, _ = sources
    merge({models[0]: 0.0, models[1]: 1.0}, tmp_path / "w", how="weights")
    for path, leaf in weights_of(tmp_path / "w").items():
        np.testing.assert_array_equal(leaf, weights_of(models[1])[path])
    for how in ("deltas", "factors"):
        merge({alike[0]: 1.0, alike[1]: 0.0}, tmp_path / how, how=how, adapter=True)
        np.testing.assert_allclose(logits(tmp_path / how), logits(alike[0]), atol=TOLERANCE)


# ---- adapters


def test_deltas_by_hand(sources, tmp_path):
    """theta_0 + sum_i w_i alpha_i / r_i A_i B_i, of adapters of other ranks, scales and weights."""
    models, alike, other = sources
    merge({alike[0]: 0.3, other: 0.7}, tmp_path / "to", how="deltas")
    expected = {path: leaf.astype(np.float64) for path, leaf in weights_of(models[0]).items()}
    for directory, weight in ((alike[0], 0.3), (other, 0.7)):
        spec, tree = tree_of(directory)
        for target in spec.targets:
            a, b = (tree[f"layers/{target}/{name}"].astype(np.float64) for name in "ab")
            delta = np.stack([np.tensordot(a[y], b[y], axes=1) for y in range(len(a))])
            expected[f"layers/{target}"] += weight * spec.alpha / spec.rank * delta
    found = weights_of(tmp_path / "to")
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-5, err_msg=path)
    moved = {path for path, leaf in weights_of(models[0]).items() if not np.array_equal(leaf, found[path])}
    assert moved == {"layers/attention/q", "layers/mlp/down", "layers/mlp/up"}


def test_the_adapter_of_deltas_is_exact(sources, tmp_path):
    """Its rank is the sum of the ranks; its logits are the merged model's, and those of the mean of merged models."""
    _, alike, other = sources
    soup = {alike[0]: 0.5, alike[1]: 0.3, other: 0.2}
    merge(soup, tmp_path / "merged", how="deltas")
    merge(soup, tmp_path / "adapter", how="deltas", adapter=True)
    merge(soup, tmp_path / "whole", how="weights")
    spec, _ = tree_of(tmp_path / "adapter")
    assert (spec.rank, spec.scale) == (10, 1.0)
    expected = logits(tmp_path / "merged")
    for name in ("adapter", "whole"):
        np.testing.assert_allclose(logits(tmp_path / name), expected, atol=TOLERANCE)
    assert all(np.abs(logits(source) - expected).max() > 0.1 for source in soup)


def pefts(name, directory, base):
    """One of the adapters that PEFT made, on a model with a tokenizer."""
    shutil.copytree(GOLDEN / name, directory)
    file = directory / peft.CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}))
    return directory


def test_deltas_of_adapters_whose_weights_have_scales_of_their_own(sources, tmp_path):
    models, alike, _ = sources
    soup = {pefts("patterns", tmp_path / "patterns", models[0]): 0.6, alike[0]: 0.4}
    for how in ("deltas", "weights"):
        merge(soup, tmp_path / how, how=how)
    merge(soup, tmp_path / "adapter", how="deltas", adapter=True)
    for name in ("deltas", "adapter"):
        np.testing.assert_allclose(logits(tmp_path / name), logits(tmp_path / "weights"), atol=TOLERANCE)


def test_an_adapter_that_brings_its_own_embedding_and_head(sources, tmp_path, tiny_files):
    models, alike, _ = sources
    own = pefts("layers", tmp_path / "own", models[0])
    merge({own: 1.0, models[0]: 0.0}, tmp_path / "merged", how="weights")
    np.testing.assert_allclose(logits(own), logits(tmp_path / "merged"), atol=TOLERANCE)
    before = weights_of(models[0])
    moved = {path for path, leaf in weights_of(tmp_path / "merged").items() if not np.array_equal(leaf, before[path])}
    assert moved == {"embed/table", "head/kernel", "layers/attention/q", "layers/mlp/down"}
    # Beside an adapter on the model itself it needs a base of its own.
    opened = open_source(Mix({own: 0.5, alike[0]: 0.5}))
    assert len(opened.params["bases"]) == 2
    with pytest.raises(InputError, match="brings its own embedding or head: take --how weights"):
        merge({own: 0.5, alike[0]: 0.5}, tmp_path / "deltas", how="deltas")
    config = tiny.long_config(tmp_path / "run", tiny_files, adapter={"path": str(own)})
    with pytest.raises(InputError, match="which PEFT would train too"):
        train(config)
    config = tiny.long_config(tmp_path / "run", tiny_files, adapter={"rank": 2}, reference={"adapter": str(own)})
    with pytest.raises(InputError, match="brings its own embed/table, head/kernel"):
        train(config)


def test_factors_are_averaged_by_themselves_and_are_another_model(sources, tmp_path):
    _, alike, _ = sources
    soup = {alike[0]: 0.5, alike[1]: 0.5}
    merge(soup, tmp_path / "factors", how="factors")
    merge(soup, tmp_path / "merged", how="factors", adapter=False)
    merge(soup, tmp_path / "deltas", how="deltas")
    spec, tree = tree_of(tmp_path / "factors")
    trees = [tree_of(directory)[1] for directory in alike]
    assert spec == tree_of(alike[0])[0]
    for path, leaf in tree.items():
        np.testing.assert_allclose(leaf, 0.5 * (trees[0][path] + trees[1][path]), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(logits(tmp_path / "merged"), logits(tmp_path / "factors"), atol=TOLERANCE)
    assert np.abs(logits(tmp_path / "factors") - logits(tmp_path / "deltas")).max() > 0.1


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_files, compile_cache):
    """Two runs with adapters and two that trained all weights, of two steps each."""
    with pytest.MonkeyPatch.context() as monkeypatch, tiny.quick_compile(compile_cache):
        tiny.allow_any_mesh(monkeypatch)
        folder, found = tmp_path_factory.mktemp("soup_runs"), {}
        for name, settings in {"adapter": {"adapter": {"rank": 2}}, "whole": {}}.items():
            for seed in (1, 2):
                out, train = folder / f"{name}{seed}", {"max_steps": 2, "seed": seed}
                config = tiny.config(
                    out, tiny_files.model, tiny_files.train, train=train, optim={"learning_rate": 0.05}, **settings
                )
                found.setdefault(name, []).append(tiny.run(config).out)
        return found


@pytest.mark.slow
def test_soups_of_runs(runs, tmp_path):
    for name, how in (("adapter", "deltas"), ("whole", "weights"), ("adapter", "weights")):
        merge(dict(zip(runs[name], (0.4, 0.6), strict=True)), tmp_path / name / how, how=how, step="latest")
    stored = [jax.tree.map(np.asarray, flatten(tiny.stored_state(out, 2)["params"])) for out in runs["whole"]]
    for path, leaf in weights_of(tmp_path / "whole/weights").items():
        expected = 0.4 * stored[0][path].astype(np.float64) + 0.6 * stored[1][path]
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-7)
        assert not np.array_equal(stored[0][path], stored[1][path])
    deltas, whole = (weights_of(tmp_path / "adapter" / how) for how in ("deltas", "weights"))
    for path, leaf in deltas.items():
        np.testing.assert_allclose(leaf, whole[path], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_base_is_that_of_quantised_training(sources, tmp_path, tiny_files):
    """Deltas are added to what the codes stand for, as an export does."""
    outs = []
    for seed in (1, 2):
        config = tiny.config(
            tmp_path / str(seed), tiny_files.model, tiny_files.train, adapter={"rank": 2, "quantize": "int8"},
            train={"max_steps": 1, "seed": seed}, optim={"learning_rate": 0.05},
        )  # fmt: skip
        outs.append(tiny.run(config).out)
    merge(dict.fromkeys(outs, 0.5), tmp_path / "to", how="deltas", step="latest")
    plain = weights_of(tiny_files.model)["layers/attention/v"]
    off = np.abs(weights_of(tmp_path / "to")["layers/attention/v"] - plain)
    assert 1e-4 < off.max() < 0.2
    merge({outs[0]: 1.0, outs[1]: 0.0}, tmp_path / "one", how="deltas", step="latest")
    np.testing.assert_allclose(logits(tmp_path / "one"), logits_of_run(outs[0]), atol=1e-3)


def logits_of_run(out):
    pieces, params, _ = open_source(out, step="latest")
    return np.asarray(_logits(pieces.model, params))


# ---- what is written


def test_cards_say_what_it_is(sources, tmp_path):
    _, alike, _ = sources
    soup = {alike[0]: 0.25, alike[1]: 0.75}
    for how, said in (("deltas", "weighted sum of what the adapters add"), ("factors", "is not the mean")):
        merge(soup, tmp_path / how, how=how)
        card = (tmp_path / how / "README.md").read_text()
        assert said in card and f"| {alike[1]} | 0.75 |" in card
        front = yaml.safe_load(card.split("---")[1])
        assert front["tags"] == ["jaxpref", "merge", f"soup-{how}"]
        assert front["library_name"] == ("peft" if how == "factors" else "transformers")


def test_the_card_has_all_the_weight_of_a_source_that_is_given_twice(sources, tmp_path):
    models = sources[0]
    merge([(models[0], 0.25), (models[1], 0.25), (models[0], 0.5)], tmp_path / "to", how="weights")
    lines = [line for line in (tmp_path / "to" / "README.md").read_text().splitlines() if str(models[0]) in line]
    assert any("0.75" in line for line in lines)


def test_command(sources, tmp_path, capsys):
    models, alike, _ = sources
    call = lambda *words: cli.main(["merge", *map(str, words)])
    assert call(f"{alike[0]}:0.5", f"{alike[1]}:0.5", "--how", "deltas", "--adapter", "--to", tmp_path / "a") == 0
    assert tree_of(tmp_path / "a")[0].rank == 8
    assert (
        call(f"{models[0]}:0.5,{models[1]}:0.5", "--how", "weights", "--to", tmp_path / "b", "--dtype", "bfloat16") == 0
    )
    assert (tmp_path / "b" / "model.safetensors").stat().st_size < 0.6 * (
        models[0] / "model.safetensors"
    ).stat().st_size
    assert call(f"{alike[0]}:0.5", f"{alike[1]}:0.6", "--how", "deltas", "--to", tmp_path / "c") == 2
    assert "sum to 1.1" in capsys.readouterr().err and not (tmp_path / "c").exists()
    assert call(f"{alike[0]}:0.5", f"{alike[1]}:0.6", "--how", "deltas", "--any-weights", "--to", tmp_path / "c") == 0


# ---- refused


def refused(said, sources, how, tmp_path, **settings):
    with pytest.raises(InputError) as error:
        merge(sources, tmp_path / "to", how=how, **settings)
    assert said in str(error.value), error.value
    assert not (tmp_path / "to").exists()


def test_soups_that_would_mean_nothing(sources, tmp_path, tiny_files):
    models, alike, other = sources
    refused("two or more make a soup", {models[0]: 1.0}, "weights", tmp_path)
    refused("sum to 0.7", {models[0]: 0.4, models[1]: 0.3}, "weights", tmp_path)
    refused("below 0", {models[0]: 1.4, models[1]: -0.4}, "weights", tmp_path)
    refused("a weight of nan", {models[0]: float("nan"), models[1]: 1.0}, "weights", tmp_path, any_weights=True)
    refused("one of weights", {models[0]: 0.5, models[1]: 0.5}, "slerp", tmp_path)
    refused("take deltas", {models[0]: 0.5, models[1]: 0.5}, "weights", tmp_path, adapter=True)
    refused("no weight but 0", {models[0]: 0.0, models[1]: 0.0}, "weights", tmp_path, any_weights=True)
    refused("{run_a: 0.3, run_b: 0.7}", models[:2], "weights", tmp_path)
    refused("dtype='int8'", {models[0]: 0.5, models[1]: 0.5}, "weights", tmp_path, dtype="int8")
    refused("in which adapters", {alike[0]: 0.5, alike[1]: 0.5}, "factors", tmp_path, dtype="bfloat16")
    refused("a run among the sources", {models[0]: 0.5, models[1]: 0.5}, "weights", tmp_path, step="latest")
    refused("has no adapter", {models[0]: 0.5, alike[0]: 0.5}, "deltas", tmp_path)
    refused("rank, scale and weights", {alike[0]: 0.5, other: 0.5}, "factors", tmp_path)
    dora = adapter(models[0], tmp_path / "dora", 5, dora=True)
    refused("whose lengths are no sum", {alike[0]: 0.5, dora: 0.5}, "deltas", tmp_path)
    other_words = tiny.copy_run(models[1], tmp_path / "other_words")
    file = other_words / "tokenizer.json"
    file.write_text(file.read_text().replace('"~"', '"\\u00e9"'))
    refused("another vocabulary", {models[0]: 0.5, other_words: 0.5}, "weights", tmp_path)
    elsewhere = adapter(models[1], tmp_path / "elsewhere", 6)
    refused("was trained from", {alike[0]: 0.5, elsewhere: 0.5}, "deltas", tmp_path)


def test_a_copy_of_the_base_is_the_same_base(sources, tmp_path, tiny_files):
    copy = tiny.copy_run(tiny_files.model, tmp_path / "copy")
    merge({sources[1][0]: 0.5, adapter(copy, tmp_path / "a", 7): 0.5}, tmp_path / "to", how="deltas")
    assert (tmp_path / "to" / "config.json").is_file()


def test_a_reward_model_is_no_policy(tmp_path, tiny_files):
    config = tiny.config(
        tmp_path / "run", tiny_files.model, tiny_files.train, objective=[{"name": "bradley_terry"}],
        train={"max_steps": 1},
    )  # fmt: skip
    (tmp_path / "run").mkdir()
    tiny.write_config(config, tmp_path / "run" / "config.yaml")
    refused("trained a reward model", {tmp_path / "run": 0.5, tiny_files.model: 0.5}, "weights", tmp_path)


@pytest.mark.parametrize("how", ["weights", "deltas"])
def test_a_soup_replaces_none_of_its_sources(sources, tmp_path, how):
    """Nor the model below adapters; each is a directory that an export wrote, and so might be replaced."""
    models, alike, _ = sources
    given = models[:2] if how == "weights" else alike
    before = {path: path.read_bytes() for source in (*given, models[0]) for path in Path(source).iterdir()}
    for to, adapter in ((given[0], how == "deltas"), (given[1], how == "deltas"), (models[0], False)):
        with pytest.raises(InputError, match="apart from what is read"):
            merge([(source, 0.5) for source in given], to, how=how, adapter=adapter)
    assert before == {path: path.read_bytes() for path in before}
