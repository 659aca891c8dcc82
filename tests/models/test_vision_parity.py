"""Models that see pictures against transformers: embeddings, logits, gradients, packed and with shared prompts.

The golden values (tests/golden/make_vision.py) are of one sequence at a time with its own pictures; here groups with
two tiles, none and one share a row.
"""

import json
from functools import cache, partial

import family_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vision_cases as cases
from PIL import Image
from safetensors.numpy import load_file, save_file
from tiny_pictures import stored

from jaxpref.config import MeshConfig
from jaxpref.data.loader import Loader
from jaxpref.data.pack import Layout
from jaxpref.data.pictures.decode import digest_of
from jaxpref.data.pictures.windows import window_order
from jaxpref.errors import InputError
from jaxpref.generation.pictures import PromptTiles
from jaxpref.models import hf, lora, peft
from jaxpref.models.chunked_head import logits
from jaxpref.models.decoder import build_model
from jaxpref.models.families import forms
from jaxpref.models.logprobs import completion_logps
from jaxpref.models.lora import LoraSpec
from jaxpref.models.parameters import flatten
from jaxpref.models.placement import param_shardings
from jaxpref.models.stored import stored_form, stored_tensors, used_leaves
from jaxpref.models.tower import embeddings, patch_features
from jaxpref.sharding import make_mesh
from jaxpref.types import EncodedGroup, Picture

pytestmark = pytest.mark.usefixtures("quick_compile")

VALUES = 1e-4  # absolute, float32 against torch's float32, on logits of up to 6 and embeddings of up to 9
SLOW = ("llava", "smolvlm")
GRADIENTS = 1e-3  # relative to the largest element, and for projections to the norm, of a tensor's gradient


def golden(case):
    return json.loads((cases.GOLDEN / f"{case}.json").read_text())


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    @cache
    def load(case):
        directory, wanted = tmp_path_factory.mktemp(case), golden(case)
        (directory / "config.json").write_text(json.dumps(wanted["config"]))
        shapes = wanted["tensors"].items()
        tensors = {name: family_cases.tensor(case, name, tuple(shape)) for name, shape in shapes}
        save_file(tensors, directory / hf.WEIGHTS_FILE)
        spec = hf.load_spec(directory, pictures=True)
        return spec, hf.load_params(directory, spec), wanted

    return load


class Cutter:
    """In place of a checkpoint's processor: a picture is its tiles, row by row."""

    def __init__(self, case):
        self.image_size, self.tile_embeddings = cases.side(case), cases.EMBEDDINGS[case]
        self.token_id, self.window = cases.TOKEN, cases.WINDOW if case in cases.ANY_SHAPE else 0

    def tiles(self, image):
        side, array = self.image_size, np.asarray(image)
        rows, columns = array.shape[0] // side, array.shape[1] // side
        tiles = array.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
        return tiles[window_order((rows, columns), self.window)] if self.window else tiles


def pictures_of(case, group):
    """The pictures of a group, as files that are read."""
    tiles, found = list(cases.pixels(case, group)), []
    while tiles:
        rows, columns = cases.GRIDS[group][len(found)] if case in cases.ANY_SHAPE else (1, 1)
        own, tiles = tiles[: rows * columns], tiles[rows * columns :]
        lines = [np.concatenate(own[columns * r : columns * (r + 1)], 1) for r in range(rows)]
        data = stored(Image.fromarray(np.concatenate(lines)))
        found.append(Picture(data=data, digest=digest_of(data), grid=(rows, columns), whole=False))
    return tuple(found)


def make_batch(case, *, share: bool, rows: int = 1):
    """All groups as one micro-batch, with the pictures of each in its row."""
    found = cases.groups(case)
    groups = [
        EncodedGroup(np.int32(prompt), tuple(map(np.int32, completions)), i, f"row {i}", pictures=pictures_of(case, i))
        for i, (prompt, completions, _) in enumerate(found)
    ]
    length = max(len(prompt) + sum(map(len, completions)) for prompt, completions, _ in found)
    length = -(-(3 if share else 2) * length // 16) * 16
    options = {"layout": Layout(length, share_prefix=share, pack=share), "processor": Cutter(case)}
    needed = Loader(groups, batch_size=3, micro_rows=rows, **options).plan.micro_batches * rows
    (step,) = Loader(groups, batch_size=3, micro_rows=needed, **options).iterate()
    return jax.tree.map(lambda x: x[0], step.batch)


def of_completions(batch):
    """(row, indices whose hidden state predicts the completion's tokens), group by group."""
    found = {}
    R, G, K = batch.slot_count_RGK.shape
    for r, g, k in np.ndindex(R, G, K):
        indices = batch.loss_src_RS[r][batch.loss_slot_RS[r] == g * K + k]
        if len(indices):
            found[int(batch.row_id_RG[r, g]), k] = r, indices
    return [found[key] for key in sorted(found)]


def check(loaded, batch, case, **options):
    spec, params, wanted = loaded
    model = build_model(spec, attention_block=16, **options)
    weight_RGK = np.reshape(cases.WEIGHTS, (-1, 2))[batch.row_id_RG]

    def loss(params, batch):
        logps = completion_logps(model, params, batch, chunk=8, stats=False)
        weight_BK = jnp.asarray(weight_RGK.reshape(logps.sum.shape)) * (logps.count > 0)
        inputs = params, batch.token_RL, batch.position_RL, batch.expiry_RL
        hidden_RLD = model.hidden(*inputs, pictures=batch.pictures)
        return jnp.sum(weight_BK * logps.sum), logits(model, hidden_RLD, model.head(params))

    (value, logits_RLV), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)
    for (row, indices), kept in zip(of_completions(batch), wanted["logits"], strict=True):
        np.testing.assert_allclose(np.asarray(logits_RLV)[row, indices], kept, atol=VALUES, rtol=0)
    np.testing.assert_allclose(value, wanted["loss"], rtol=1e-4)
    leaves = flatten(gradient)
    fetch = lambda path, at: np.asarray(leaves[path][at] if at else leaves[path])
    form = stored_form(wanted["gradients"], forms(spec.family), spec)
    tensors = stored_tensors(used_leaves(form, spec), spec)
    assert {tensor.name for tensor in tensors} == wanted["gradients"].keys()
    nothing = 1e-3 * max(digest["largest"] for digest in wanted["gradients"].values())
    for tensor in tensors:
        ours = family_cases.digest(case, tensor.name, tensor.build(fetch))
        theirs = wanted["gradients"][tensor.name]
        for kept, size in (("elements", "largest"), ("projections", "norm"), ("norm", "norm")):
            atol = GRADIENTS * max(theirs[size], nothing)
            np.testing.assert_allclose(ours[kept], theirs[kept], atol=atol, rtol=0, err_msg=tensor.name)


@pytest.mark.parametrize("case", cases.CASES)
def test_embeddings(load, case):
    spec, params, wanted = load(case)
    for group, kept in enumerate(wanted["embeddings"]):
        if kept:
            prompt = np.int32(cases.groups(case)[group][0])
            pictures = PromptTiles(Cutter(case)).read(prompt, pictures_of(case, group), "here")
            features = patch_features(spec, params, pictures, dtype=jnp.float32)
            ours = np.asarray(embeddings(spec, params, features))[0]
            ours = ours[pictures.index_RL[pictures.index_RL >= 0]]  # in the order of the tokens
            np.testing.assert_allclose(ours, kept, atol=VALUES, rtol=0)
            assert len(ours) == 1 or np.abs(ours[0] - ours[-1]).max() > 100 * VALUES, "tiles and patches differ"


@pytest.mark.parametrize(
    "case", ["idefics3", "gemma3", "qwen2_5_vl", *(pytest.param(c, marks=pytest.mark.slow) for c in SLOW)]
)
def test_logits_and_gradients_in_one_row_that_shares_prompts(load, case):
    batch = make_batch(case, share=True)
    assert batch.token_RL.shape[0] == 1, "all groups in one row"
    check(load(case), batch, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.CASES)
@pytest.mark.parametrize("remat", ["none", "dots"])
def test_the_same_a_group_a_row(load, case, remat):
    check(load(case), make_batch(case, share=False), case, remat=remat)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.CASES)
def test_the_same_on_a_mesh(load, case):
    spec, params, wanted = load(case)
    mesh = make_mesh(MeshConfig(1, 2, 2), devices=jax.devices()[:4])
    shardings = param_shardings(params, mesh)
    spread = lambda tree: any(not sharding.is_fully_replicated for sharding in jax.tree.leaves(tree))
    assert spread(shardings["vision"]) and spread(shardings["connector"])
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings)
        check((spec, placed, wanted), make_batch(case, share=False, rows=4), case)


@pytest.mark.parametrize("case", ["idefics3", "gemma3", pytest.param("qwen2_5_vl", marks=pytest.mark.slow)])
def test_a_prompt_read_into_a_cache(load, case):
    """Behind padding, and what comes after it one token at a time."""
    spec, params, wanted = load(case)
    model = build_model(spec, attention_block=16)
    prompt, completions, _ = cases.groups(case)[0]
    tokens, padding, new = np.array(prompt + completions[0]), 3, len(completions[0])
    row = lambda x, value: np.concatenate([np.full(padding, value), x])[None].astype(np.int32)
    pictures = PromptTiles(Cutter(case)).read(np.int32(prompt), pictures_of(case, 0), "here")
    pictures = pictures._replace(index_RL=row(pictures.index_RL[0], -1))
    if pictures.offset_RL3 is not None:
        pictures = pictures._replace(offset_RL3=np.pad(pictures.offset_RL3, ((0, 0), (padding, 0), (0, 0))))
    cache = model.init_cache(1, padding + len(tokens))
    positions = row(np.arange(len(prompt)), -1)
    read = row(tokens[: len(prompt)], 0), positions
    hidden_RCD, cache = jax.jit(model.extend)(params, *read, cache, jnp.int32(0), pictures)
    ours = [logits(model, hidden_RCD[:, -1:], model.head(params))[0, 0]]
    for t in range(len(prompt), len(tokens) - 1):
        one = tokens[t : t + 1][None].astype(np.int32), np.full((1, 1), t, np.int32)
        hidden_RCD, cache = jax.jit(model.extend)(params, *one, cache, jnp.int32(padding + t))
        ours.append(logits(model, hidden_RCD, model.head(params))[0, 0])
    assert len(ours) == new
    np.testing.assert_allclose(np.array(ours), wanted["logits"][0], atol=VALUES, rtol=0)


@pytest.mark.parametrize("case", cases.CASES)
def test_load_save_load(load, case, tmp_path):
    """Bit for bit, tower and all; what is written is read by transformers in test_families_torch.py."""
    spec, params, wanted = load(case)
    options = dict(dtype=np.float32, generation_config=None, model_card="# tiny\n")
    hf.save_pretrained(tmp_path / "model", spec, params, None, **options)
    assert len(load_file(tmp_path / "model" / hf.WEIGHTS_FILE)) == len(wanted["tensors"])
    assert hf.load_spec(tmp_path / "model", pictures=True) == spec
    ours, again = flatten(params), flatten(hf.load_params(tmp_path / "model", spec))
    assert ours.keys() == again.keys() and any(path.startswith("vision/") for path in ours)
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, again[path], err_msg=path, strict=True)


@pytest.mark.parametrize("case", ["idefics3", "qwen2_5_vl"])
def test_an_adapter_for_peft_is_read_as_it_was_written(load, case, tmp_path):
    """On every part; tower and decoder have modules of one name, and q, k and v of Qwen's tower lie in one."""
    spec, params, _ = load(case)
    adapter = LoraSpec(2, 3.0, tuple(peft.target_names(spec)))
    rng, shapes = np.random.default_rng(0), jax.eval_shape(partial(lora.init, spec=adapter), jax.random.key(0), params)
    tree = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    peft.save_adapter(tmp_path / "adapter", tree, adapter, spec, base="", model_card="# tiny\n")
    again, read = peft.load_adapter(tmp_path / "adapter", spec)
    assert again.targets == adapter.targets
    weights, ours, theirs = flatten(params), flatten(tree), flatten(read)
    for target in adapter.targets:
        path = lora.path_of(target)
        added = []
        for spec_of, leaves in ((adapter, ours), (again, theirs)):
            factors = {part: leaves[f"{path}/{part}"][-1] for part in "ab"}
            nothing = np.zeros(weights[path].shape[1:], np.float32)
            added.append(lora.merged(nothing, factors, lora.TARGETS[target], spec_of.on(target).scale))
        np.testing.assert_allclose(added[1], added[0], rtol=1e-5, atol=1e-6, err_msg=target)


def test_an_adapter_on_a_weight_of_no_module_is_not_for_peft(load, tmp_path):
    spec, _, _ = load("gemma3")
    adapter = LoraSpec(2, 2.0, ("connector/project",))
    with pytest.raises(InputError, match="connector/project, which gemma3 holds as model.multi_modal_projector"):
        peft.save_adapter(tmp_path / "adapter", {}, adapter, spec, base="", model_card="# tiny\n")
