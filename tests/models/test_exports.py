"""What transformers makes of an exported directory, for every family; the tests of its arithmetic need torch."""

import json

import family_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpref.errors import InputError
from jaxpref.models import hf
from jaxpref.models.decoder import build_model
from jaxpref.models.parameters import SCALAR_HEADS

LOGITS = 1e-4
"""Absolute, float32 against torch's float32, on logits of up to 10."""


def export(case, directory, *, reward=False):
    """The case read from the form in which transformers stored it, and written again; with a random reward head."""
    golden = json.loads((cases.GOLDEN / f"{case}.json").read_text())
    source, to = directory / "source", directory / "export"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(golden["config"]))
    tensors = {name: cases.tensor(case, name, tuple(shape)) for name, shape in golden["tensors"].items()}
    save_file(tensors, source / hf.WEIGHTS_FILE)
    spec = hf.load_spec(source)
    params = hf.load_params(source, spec)
    if reward:
        params[SCALAR_HEADS] = {"reward": np.float32(cases.draw(f"{case}/reward", (1, spec.width)))}
    hf.save_pretrained(
        to, spec, params, None, dtype=np.float32, generation_config={"pad_token_id": 0}, model_card="# tiny\n",
        max_shard_bytes=20_000,
    )  # fmt: skip
    assert len(list(to.glob("model-*.safetensors"))) > 1
    return golden, spec, params, to


# transformers has no classifier of Granites.
CLASSIFIERS = [case for case in cases.CASES if case != "granite"]


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_reward_models_are_sequence_classifiers(case, tmp_path):
    golden, _, params, to = export(case, tmp_path, reward=True)
    config = json.loads((to / "config.json").read_text())
    (name,) = config["architectures"]
    assert name.endswith("ForSequenceClassification") and config["num_labels"] == 1
    stored = {key: value for file in to.glob("*.safetensors") for key, value in load_file(file).items()}
    np.testing.assert_array_equal(stored.pop("score.weight"), params[SCALAR_HEADS]["reward"])
    assert stored.keys() == cases.text_tensors(golden["tensors"]).keys() - {"lm_head.weight"}


def test_a_family_without_a_classifier_is_refused(tmp_path):
    with pytest.raises(InputError, match="model_type granite"):
        export("granite", tmp_path, reward=True)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("case", cases.CASES)
def test_transformers_logits(case, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    golden, _, _, to = export(case, tmp_path)
    model, report = AutoModelForCausalLM.from_pretrained(to, output_loading_info=True)
    assert not any(report.values()), report
    for (tokens, _), wanted in zip(cases.sequences(), golden["logits"], strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0].numpy()
        np.testing.assert_allclose(logits[:, golden["columns"]], wanted, atol=LOGITS, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("case", CLASSIFIERS)
def test_transformers_rewards(case, tmp_path):
    """The classifier's score is our hidden state at the last token times the reward head."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    _, spec, params, to = export(case, tmp_path, reward=True)
    theirs, report = AutoModelForSequenceClassification.from_pretrained(to, output_loading_info=True)
    assert not any(report.values()), report
    tokens, _ = cases.sequences()[0]
    row = np.zeros((1, 24), np.int32)
    row[0, : len(tokens)] = tokens
    ours = build_model(spec, attention_block=8, remat="none")
    position, expiry = jnp.arange(24)[None], jnp.where(jnp.arange(24) < len(tokens), len(tokens), 0)[None]
    base = {name: leaf for name, leaf in params.items() if name != SCALAR_HEADS}
    hidden_D = jax.jit(ours.hidden)(base, row, position, expiry)[0, len(tokens) - 1]
    with torch.no_grad():
        score = theirs(torch.tensor([tokens])).logits.item()
    np.testing.assert_allclose(score, params[SCALAR_HEADS]["reward"][0] @ np.asarray(hidden_D), rtol=1e-4, atol=LOGITS)
