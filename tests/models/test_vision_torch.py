"""What is exported of models that see pictures, run by transformers in torch; needs both."""

import numpy as np
import pytest
import vision_cases as cases
from test_vision_parity import VALUES, golden, load  # noqa: F401

from jaxpref.models import hf
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


@pytest.mark.parametrize("case", cases.CASES)
def test_an_export_has_the_same_logits_in_transformers(load, case, tmp_path):  # noqa: F811
    from transformers import AutoModelForImageTextToText

    spec, params, wanted = load(case)
    options = dict(dtype=np.float32, generation_config=None, model_card="# tiny\n", max_shard_bytes=20_000)
    hf.save_pretrained(tmp_path / "exported", spec, params, None, **options)
    model, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "exported", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    kept = iter(wanted["logits"])
    for number, (prompt, completions, tiles) in enumerate(cases.groups(case)):
        pictures = inputs(spec.vision, case, number) if tiles else {}
        for completion in completions:
            kinds = torch.tensor([[int(t == cases.TOKEN) for t in prompt + completion]])
            if case == "gemma3":
                pictures["token_type_ids"] = kinds
            if case == "qwen2_5_vl" and tiles:
                pictures["mm_token_type_ids"] = kinds
            with torch.no_grad():
                logits = model.eval()(torch.tensor([prompt + completion]), **pictures).logits[0]
            np.testing.assert_allclose(logits[len(prompt) - 1 : -1].numpy(), next(kept), atol=VALUES, rtol=0)
