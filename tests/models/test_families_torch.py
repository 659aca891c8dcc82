"""What is exported, run by transformers in torch; needs both."""

import json

import family_cases as cases
import jax
import numpy as np
import pytest
from test_families_parity import LOGITS, golden, write

from jaxpref.config import MeshConfig
from jaxpref.generation.decoding import Generator, decoding_model
from jaxpref.generation.sampling import Sampling
from jaxpref.models import hf
from jaxpref.models.decoder import build_model
from jaxpref.models.families import FAMILIES
from jaxpref.sharding import make_mesh

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's and transformers' own


def run(directory):
    """Logits of every sequence, each run alone."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    multimodal = hasattr(AutoConfig.from_pretrained(directory), "vision_config")
    auto_class = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
    model, info = auto_class.from_pretrained(
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


@pytest.mark.parametrize("case", ["qwen3_5"])
def test_greedy_answers_are_those_of_transformers(case, tmp_path):
    """Prompts of several lengths in one batch here, each alone there."""
    from transformers import AutoModelForCausalLM

    spec = hf.load_spec(write(case, tmp_path))
    model = decoding_model(build_model(spec, attention_block=8), unstacked=True)
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    generator = Generator(
        model, hf.load_params(tmp_path, spec), mesh,
        sampling=Sampling(), seed=0, positions=128, max_new_tokens=12, stop_ids=(),
    )  # fmt: skip
    prompts = [np.arange(1, n) * 7 % spec.vocab for n in (3, 24, 9)]
    ends, numbers = [lambda ids: None] * len(prompts), [(i, 0) for i in range(len(prompts))]
    ours = {row: ids.tolist() for row, ids, _ in generator.run(prompts, numbers, ends, limit=4)}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            ids = theirs.generate(torch.tensor(prompt[None]), max_new_tokens=12, do_sample=False)[0]
        assert ours[row] == ids[len(prompt) :].tolist()
    assert len({tuple(ids) for ids in ours.values()}) == len(prompts)
