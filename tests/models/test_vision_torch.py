"""What is exported of models that see pictures, run by transformers and PEFT in torch; needs all three."""

import jax
import numpy as np
import pytest
import vision_cases as cases
from safetensors.numpy import load_file
from test_vision_parity import VALUES, golden, load, make_batch, of_completions  # noqa: F401

from jaxpref.models import hf, lora, peft
from jaxpref.models.chunked_head import logits
from jaxpref.models.decoder import build_model
from jaxpref.models.lora import LoraSpec
from jaxpref.models.parameters import LORA
from jaxpref.models.spec import VisionSpec

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's and transformers' own


def inputs(vision: VisionSpec, case: str, group: int):
    tiles = cases.pixels(case, group)
    normalised = (tiles.astype(np.float32) / np.float32(255) - np.float32(vision.mean)) / np.float32(vision.std)
    pixel_values = torch.tensor(normalised).permute(0, 3, 1, 2)
    if case == "qwen2_5_vl":
        return cases.flat_patches(pixel_values, cases.GRIDS[group])
    return {"pixel_values": pixel_values[None] if case in ("idefics3", "smolvlm") else pixel_values}


def exported(loaded, directory):
    """The model as transformers loads our export of it."""
    from transformers import AutoModelForImageTextToText

    spec, params, _ = loaded
    options = dict(dtype=np.float32, generation_config=None, model_card="# tiny\n", max_shard_bytes=20_000)
    hf.save_pretrained(directory, spec, params, None, **options)
    model, info = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def of_torch(model, vision: VisionSpec, case: str):
    """The logits that predict the tokens of every completion."""
    for number, (prompt, completions, tiles) in enumerate(cases.groups(case)):
        pictures = inputs(vision, case, number) if tiles else {}
        for completion in completions:
            kinds = torch.tensor([[int(t == cases.TOKEN) for t in prompt + completion]])
            if case == "gemma3":
                pictures["token_type_ids"] = kinds
            if case == "qwen2_5_vl" and tiles:
                pictures["mm_token_type_ids"] = kinds
            with torch.no_grad():
                yield model(input_ids=torch.tensor([prompt + completion]), **pictures).logits[0, len(prompt) - 1 : -1]


@pytest.mark.parametrize("case", cases.CASES)
def test_an_export_has_the_same_logits_in_transformers(load, case, tmp_path):  # noqa: F811
    spec, _, wanted = load(case)
    theirs = of_torch(exported(load(case), tmp_path / "exported"), spec.vision, case)
    for ours, kept in zip(theirs, wanted["logits"], strict=True):
        np.testing.assert_allclose(ours.numpy(), kept, atol=VALUES, rtol=0)


@pytest.mark.parametrize("case", cases.CASES)
def test_an_adapter_on_every_part_has_the_same_logits_in_peft(load, case, tmp_path):  # noqa: F811
    peft_of_torch = pytest.importorskip("peft")
    spec, params, wanted = load(case)
    targets = tuple(t for t in peft.target_names(spec) if (case, t) != ("gemma3", "connector/project"))
    adapter = LoraSpec(2, 3.0, targets)
    moved = lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape)
    params = params | {LORA: jax.tree.map(moved, lora.init(jax.random.key(0), params, adapter))}
    peft.save_adapter(tmp_path / "adapter", params[LORA], adapter, spec, base="", model_card="# tiny\n")
    model = peft_of_torch.PeftModel.from_pretrained(exported(load(case), tmp_path / "base"), tmp_path / "adapter")
    written = load_file(tmp_path / "adapter" / peft.WEIGHTS_FILE)
    assert sum("lora_" in name for name, _ in model.named_parameters()) == len(written)
    batch, ours = make_batch(case, share=True), build_model(spec, attention_block=16, lora=adapter)

    @jax.jit
    def of_rows(params):
        hidden_RLD = ours.hidden(params, batch.token_RL, batch.position_RL, batch.expiry_RL, pictures=batch.pictures)
        return logits(ours, hidden_RLD, ours.head(params))

    logits_RLV, theirs = np.asarray(of_rows(params)), of_torch(model.eval(), spec.vision, case)
    for (row, indices), their, kept in zip(of_completions(batch), theirs, wanted["logits"], strict=True):
        np.testing.assert_allclose(logits_RLV[row, indices], their.numpy(), atol=2 * VALUES, rtol=0)
        assert np.abs(their.numpy() - kept).max() > 0.1
