"""Data on its way into a run: how long sequences may be."""

import jax
import numpy as np
import plain
import pytest
import tiny

from jaxpref.errors import InputError
from jaxpref.models.decoder import build_model
from jaxpref.models.hf import save_pretrained
from jaxpref.models.spec import ModelSpec
from jaxpref.runs.feed import check_positions
from jaxpref.types import EncodedGroup

LEARNED = ModelSpec(
    family="gpt2",
    vocab=128,
    width=8,
    ffn=32,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=4,
    max_positions=64,
    rope_theta=0.0,
    norm_eps=1e-5,
    tied=True,
    activation="gelu_tanh",
    gated=False,
    norm="layer",
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    learned_positions=True,
)
"""64 learned positions, and as many tokens as the tests' tokenizer."""


def group(prompt: int, *completions: int) -> EncodedGroup:
    return EncodedGroup(np.arange(prompt), tuple(map(np.arange, completions)), 0, "pairs.jsonl, row 7")


def test_positions_are_those_of_a_sequence_not_of_its_row():
    check_positions([group(30, 20, 20)], LEARNED)  # 70 tokens in a row, no sequence above 50
    check_positions([group(44, 20, 20)], LEARNED)
    with pytest.raises(InputError, match="within the model's 64 positions(.|\n)*pairs.jsonl, row 7: 65 tokens"):
        check_positions([group(30, 20), group(44, 3, 21)], LEARNED)


def test_long_rope_reaches_to_its_original_length():
    spec = plain.SPECS["phi3"]
    assert spec.longest_sequence == spec.rope_scaling.original_length < spec.max_positions
    with pytest.raises(InputError, match=f"{spec.longest_sequence} positions"):
        check_positions([group(spec.longest_sequence, 1)], spec)


@pytest.mark.parametrize("row_length", [80, None])
def test_rows_may_be_longer_than_any_sequence(row_length, tmp_path, any_mesh, quick_compile):
    """A prompt of 30 tokens and answers of 20: rows of 80 positions that start again in every answer."""
    params = build_model(LEARNED).init(jax.random.key(0))
    save_pretrained(
        tmp_path / "model",
        LEARNED,
        params,
        tiny.make_tokenizer(),
        dtype=np.float32,
        generation_config=None,
        model_card="",
    )
    pairs = [{"prompt": "p" * 30, "chosen": "c" * 19 + str(i), "rejected": "r" * 19 + str(i)} for i in range(4)]
    rows = tiny.write_rows(tmp_path / "pairs.jsonl", pairs)
    data = {"row_length": row_length} if row_length else {}
    run = tiny.run(tiny.config(tmp_path / "run", tmp_path / "model", rows, data=data, train={"max_steps": 1}))
    assert run.losses == [pytest.approx(np.log(2), abs=1e-6)]

    longer = tiny.write_rows(tmp_path / "longer.jsonl", [pairs[0] | {"prompt": "p" * 60}])
    with pytest.raises(InputError, match="within the model's 64 positions(.|\n)*longer.jsonl, row 1"):
        tiny.run(tiny.config(tmp_path / "other", tmp_path / "model", longer, data=data))
