"""What is exported, run by transformers in torch; needs both."""

import json

import family_cases as cases
import numpy as np
import pytest
from test_families_parity import LOGITS, golden, write

from jaxpref.models import hf
from jaxpref.models.families import FAMILIES

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's and transformers' own


def run(directory):
    """Logits of every sequence, each run alone."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    with torch.no_grad():
        return [model.eval()(torch.tensor([tokens])).logits[0].numpy() for tokens, _ in cases.sequences()]


@pytest.mark.parametrize("case", cases.CASES)
def test_an_export_is_the_same_model_in_transformers(case, tmp_path):
    spec = hf.load_spec(write(case, tmp_path))
    params = hf.load_params(tmp_path, spec)
    options = dict(dtype=np.float32, generation_config=None, model_card="# tiny\n", max_shard_bytes=20_000)
    hf.save_pretrained(tmp_path / "exported", spec, params, None, **options)
    assert len(list((tmp_path / "exported").glob("*.safetensors"))) > 1
    written = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert written != golden(case)["config"] and written["model_type"] in FAMILIES
    ours, wanted = run(tmp_path / "exported"), golden(case)
    for logits, original, kept in zip(ours, run(tmp_path), wanted["logits"], strict=True):
        np.testing.assert_array_equal(logits, original)
        np.testing.assert_allclose(logits[:, wanted["columns"]], kept, atol=LOGITS, rtol=0)
