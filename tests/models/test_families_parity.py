"""Every family against transformers: logits and parameter gradients of tiny models with all special features on.

The golden values (tests/golden/make_families.py) are of one sequence at a time; here the sequences are prompts with two
completions, packed into one row that shares the prompts, and taken through the model's real log-probabilities.
"""

import json
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import NamedTuple

import family_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpref.config import MeshConfig
from jaxpref.data.loader import Loader
from jaxpref.data.pack import Layout
from jaxpref.errors import InputError
from jaxpref.models import hf
from jaxpref.models.chunked_head import logits
from jaxpref.models.decoder import build_model
from jaxpref.models.families import FAMILIES, forms
from jaxpref.models.logprobs import completion_logps
from jaxpref.models.parameters import flatten
from jaxpref.models.placement import param_shardings
from jaxpref.models.source import open_checkpoint
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import stored_tensors, used_leaves
from jaxpref.sharding import make_mesh
from jaxpref.step.policy import Frozen
from jaxpref.types import EncodedGroup

pytestmark = pytest.mark.usefixtures("quick_compile")

LOGITS = 1e-4  # absolute, float32 against torch's float32, on logits of up to 10
GRADIENTS = 1e-3  # relative to the largest element, and for projections to the norm, of a tensor's gradient

PACKED = Layout(40)  # both groups in one row, prompts shared
SEPARATE = Layout(32, share_prefix=False, pack=False)


class Loaded(NamedTuple):
    spec: ModelSpec
    params: dict
    golden: dict


def golden(case: str) -> dict:
    return json.loads((cases.GOLDEN / f"{case}.json").read_text())


def write(case: str, directory: Path) -> Path:
    """The case as transformers stores it."""
    found = golden(case)
    (directory / "config.json").write_text(json.dumps(found["config"]))
    tensors = {name: cases.tensor(case, name, tuple(shape)) for name, shape in found["tensors"].items()}
    save_file(tensors, directory / hf.WEIGHTS_FILE)
    return directory


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    @cache
    def load(case: str) -> Loaded:
        directory = write(case, tmp_path_factory.mktemp(case))
        spec = hf.load_spec(directory)
        return Loaded(spec, hf.load_params(directory, spec), golden(case))

    return load


def make_batch(layout: Layout):
    groups = [
        EncodedGroup(np.int32(prompt), tuple(map(np.int32, completions)), i, f"row {i}")
        for i, (prompt, completions) in enumerate(cases.PROMPTS_AND_COMPLETIONS)
    ]
    rows = Loader(groups, batch_size=len(groups), micro_rows=1, layout=layout).plan.micro_batches
    (step,) = Loader(groups, batch_size=len(groups), micro_rows=rows, layout=layout).iterate()
    return jax.tree.map(lambda x: x[0], step.batch)


def of_completions(batch):
    """(row, columns whose hidden state predicts the completion's tokens) in the order of `cases.sequences()`."""
    found = {}
    R, G, K = batch.slot_count_RGK.shape
    for r in range(R):
        for g in range(G):
            for k in range(K):
                columns = batch.loss_src_RS[r][batch.loss_slot_RS[r] == g * K + k]
                if len(columns):
                    found[int(batch.row_id_RG[r, g]), k] = r, columns
    return [found[key] for key in sorted(found)]


def check(loaded: Loaded, case: str, layout: Layout, *, gradients: bool, **options):
    """Our logits, and with `gradients` the loss and all parameter gradients, against the golden values."""
    spec, params, wanted = loaded
    batch, model = make_batch(layout), build_model(spec, attention_block=8, **options)
    weight_RGK = np.reshape(cases.SLOT_WEIGHTS, (-1, 2))[batch.row_id_RG]

    def logits_of(params, batch):
        hidden_RLD = model.hidden(params, batch.token_RL, batch.position_RL, batch.expiry_RL)
        return logits(model, hidden_RLD, model.head(params))

    def loss(params, batch):
        logps = completion_logps(model, params, batch, chunk=8, stats=False)
        weight_BK = jnp.asarray(weight_RGK.reshape(logps.sum.shape)) * (logps.count > 0)
        return jnp.sum(weight_BK * logps.sum), logits_of(params, batch)

    if not gradients:
        return check_logits(jax.jit(logits_of)(params, batch), batch, wanted)
    (value, logits_RLV), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)
    check_logits(logits_RLV, batch, wanted)
    np.testing.assert_allclose(value, wanted["loss"], rtol=1e-4)
    check_gradients(case, spec, flatten(gradient), wanted["gradients"])


def check_logits(logits_RLV, batch, wanted: dict):
    sequences = zip(cases.sequences(), of_completions(batch), wanted["logits"], wanted["logsumexp"], strict=True)
    for (tokens, start), (row, columns), kept, lse in sequences:
        ours, part = np.asarray(logits_RLV)[row, columns].astype(np.float64), slice(start - 1, len(tokens) - 1)
        options = dict(atol=LOGITS, rtol=0, err_msg="logits")
        np.testing.assert_allclose(ours[:, wanted["columns"]], np.array(kept)[part], **options)
        np.testing.assert_allclose(np.log(np.exp(ours).sum(-1)), np.array(lse)[part], **options)


def check_gradients(case: str, spec: ModelSpec, leaves: dict, wanted: dict):
    fetch = lambda path, at: np.asarray(leaves[path][at])
    tensors = stored_tensors(used_leaves(FAMILIES[spec.family].TENSORS, spec), spec)
    assert {tensor.name for tensor in tensors} == wanted.keys()
    # A bias of all keys adds the same to all scores of a query, unless the keys are rotated: its gradient is 0, and
    # what is found is rounding, 1e-6 of the largest gradient at most.  Every other tensor's is well above `nothing`.
    nothing = 1e-3 * max(digest["largest"] for digest in wanted.values())
    for tensor in tensors:
        ours, theirs = cases.digest(case, tensor.name, tensor.build(fetch)), wanted[tensor.name]
        for kept, size in (("elements", "largest"), ("projections", "norm"), ("norm", "norm")):
            atol = GRADIENTS * max(theirs[size], nothing)
            np.testing.assert_allclose(ours[kept], theirs[kept], atol=atol, rtol=0, err_msg=f"{kept} of {tensor.name}")


# Between them they have every part whose gradient is written by hand; the others' gradients are slow tests.
GRADIENTS_OF = ("gemma2", "gpt2", "gpt_oss", "olmo2", "qwen3_moe")


@pytest.mark.parametrize("case", [case for case in cases.CASES if case not in GRADIENTS_OF])
def test_logits(load, case):
    check(load(case), case, PACKED, gradients=False, remat="none")


@pytest.mark.parametrize(
    "case", [c if c in GRADIENTS_OF else pytest.param(c, marks=pytest.mark.slow) for c in cases.CASES]
)
def test_gradients(load, case):
    assert make_batch(PACKED).token_RL.shape == (1, 40), "the other side runs four sequences, each alone"
    check(load(case), case, PACKED, gradients=True, remat="full")


@pytest.mark.parametrize("case", ["gemma3"])
def test_a_loop_over_layers_and_a_sequence_a_row(load, case):
    assert np.asarray(make_batch(SEPARATE).expiry_RL).any(axis=1).sum() == 2, "two groups, each in a row of its own"
    check(load(case), case, SEPARATE, gradients=False, scan=False, remat="none")


WAYS = {
    "packed scan none": (PACKED, dict(scan=True, remat="none")),
    "packed loop none": (PACKED, dict(scan=False, remat="none")),
    "packed loop full": (PACKED, dict(scan=False, remat="full")),
    "separate scan dots": (SEPARATE, dict(scan=True, remat="dots")),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", cases.CASES)
def test_gradients_however_it_is_run(load, case, way):
    layout, options = WAYS[way]
    check(load(case), case, layout, gradients=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.CASES)
def test_gradients_on_a_mesh(load, case):
    loaded, mesh = load(case), make_mesh(MeshConfig(1, 2, 2), devices=jax.devices()[:4])
    shardings = param_shardings(loaded.params, mesh)
    assert any(not sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings["layers"]))
    with jax.set_mesh(mesh):
        check(loaded._replace(params=jax.device_put(loaded.params, shardings)), case, SEPARATE, gradients=True)


@pytest.mark.parametrize("case", cases.CASES)
def test_the_golden_values_notice_every_feature(load, case):
    spec, _, wanted = load(case)
    for feature, change in wanted["without"].items():
        assert change > 100 * LOGITS, f"{feature} off changes no logit by more than {change}"
    unrotated = spec.learned_positions or any(kind.rope is None for kind in spec.kinds)
    for name, digest in wanted["gradients"].items():
        assert digest["norm"] > 0.1 or (unrotated and name.endswith("k_proj.bias")), f"{name} does nothing"


def test_the_cases_have_every_feature(load):
    """Every field of `ModelSpec` that a family sets differs from Llama's in some case.

    But for towers and M-RoPE, whose cases are test_vision_parity.py's.
    """
    specs = [load(case).spec for case in cases.CASES]
    assert {spec.family for spec in specs} == FAMILIES.keys()
    for field in fields(ModelSpec):
        if field.default is not MISSING and field.name not in ("vision", "rope_sections"):
            assert any(getattr(spec, field.name) != field.default for spec in specs), field.name


@pytest.mark.parametrize("case", cases.CASES)
def test_load_save_load(load, case, tmp_path):
    """Bit for bit, and the tensors that transformers stored; of a multimodal model the text model's."""
    spec, params, wanted = load(case)
    options = dict(dtype=np.float32, generation_config=None, model_card="# tiny\n")
    hf.save_pretrained(tmp_path / "model", spec, params, None, **options)
    stored = load_file(tmp_path / "model" / hf.WEIGHTS_FILE)
    assert {name: list(value.shape) for name, value in stored.items()} == cases.text_tensors(wanted["tensors"])
    for name, value in stored.items():
        np.testing.assert_array_equal(value, cases.tensor(case, name, value.shape), err_msg=name, strict=True)
    assert hf.load_spec(tmp_path / "model") == spec
    ours, again = flatten(params), flatten(hf.load_params(tmp_path / "model", spec))
    assert ours.keys() == again.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, again[path], err_msg=path, strict=True)


@pytest.mark.parametrize("case", ["gemma3", "gpt2", "mixtral", "qwen3_moe"])
def test_other_stored_forms(load, case, tmp_path):
    """The same model from a file in another form of its family."""
    spec, params, _ = load(case)
    leaves = flatten(params)
    assert len(forms(spec.family)) > 1
    for form in forms(spec.family):
        tensors = stored_tensors(used_leaves(form, spec), spec)
        fetch = lambda path, at: leaves[path][at]
        save_file({t.name: np.ascontiguousarray(t.build(fetch)) for t in tensors}, tmp_path / hf.WEIGHTS_FILE)
        again = flatten(hf.load_params(tmp_path, spec))
        for path, leaf in leaves.items():
            np.testing.assert_array_equal(leaf, again[path], err_msg=path, strict=True)


@pytest.mark.parametrize("case", ["gpt_oss", "llama", "mixtral", "qwen3_5"])
def test_matrices_in_the_hosts_memory_come_where_they_are_read(load, case):
    """As a reference with `reference.offload`: products, experts and other mixers bring their own."""
    spec, params, _ = load(case)
    model = build_model(spec, dtype=jnp.float32, remat="none", attention_block=8)
    host = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")

    @jax.jit
    def logps(reference):
        return completion_logps(model, Frozen({}, reference).reference_params(), make_batch(PACKED), chunk=8).sum

    found = logps(jax.device_put(params, host))
    np.testing.assert_allclose(found, logps(jax.tree.map(jnp.asarray, params)), rtol=1e-6)


def test_a_multimodal_model_carries_no_adapter_for_peft(tmp_path, caplog):
    """There the weights have other names than in the text model that they are here."""
    caplog.set_level("INFO")
    (tmp_path / "text").mkdir()
    open_checkpoint(write("gemma3", tmp_path / "text")).check_adapter_base()
    assert "multimodal" not in caplog.text
    whole = open_checkpoint(write("gemma3_multimodal", tmp_path))
    assert "is multimodal (gemma3): its text part alone is read" in caplog.text
    with pytest.raises(InputError, match="is multimodal \\(gemma3\\)"):
        whole.check_adapter_base()
