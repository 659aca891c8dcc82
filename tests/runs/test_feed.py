"""Data on its way into a run: how long sequences may be."""

import dataclasses

import jax
import numpy as np
import plain
import pytest
import tiny

from jaxpref.errors import InputError
from jaxpref.generation.answer_logps import answer_logps
from jaxpref.generation.mixing import Mix
from jaxpref.generation.opening import open_source
from jaxpref.models.decoder import build_model
from jaxpref.models.hf import save_pretrained
from jaxpref.models.spec import ModelSpec
from jaxpref.runs.build import build
from jaxpref.runs.feed import check_positions, check_weights, read_data
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


def write_model(directory, spec=LEARNED):
    save_pretrained(
        directory,
        spec,
        build_model(spec).init(jax.random.key(0)),
        tiny.make_tokenizer(),
        dtype=np.float32,
        generation_config=None,
        model_card="",
    )
    return directory


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
    model = write_model(tmp_path / "model")
    pairs = [{"prompt": "p" * 30, "chosen": "c" * 19 + str(i), "rejected": "r" * 19 + str(i)} for i in range(4)]
    rows = tiny.write_rows(tmp_path / "pairs.jsonl", pairs)
    data = {"row_length": row_length} if row_length else {}
    run = tiny.run(tiny.config(tmp_path / "run", model, rows, data=data, train={"max_steps": 1}))
    assert run.losses == [pytest.approx(np.log(2), abs=1e-6)]

    longer = tiny.write_rows(tmp_path / "longer.jsonl", [pairs[0] | {"prompt": "p" * 60}])
    refused = pytest.raises(InputError, match="within the model's 64 positions(.|\n)*longer.jsonl, row 1")
    with refused:
        tiny.run(tiny.config(tmp_path / "other", model, longer, data=data))
    held_out = tiny.config(tmp_path / "other", model, rows, longer)
    with refused:  # as it is read, before weights are
        read_data(build(held_out), "eval")


@pytest.mark.parametrize(
    "changes, got",
    [
        ({"data": {"row_length": 2**34}}, "micro-batches of 17,179,869,184 tokens"),
        ({"train": {"micro_rows": 2**30}}, "micro-batches of 51,539,607,552 tokens"),
        ({"train": {"epochs": 10**8}}, "500,000,000 steps; an epoch has 5"),
    ],
)
def test_what_no_machine_has_room_for_is_refused_before_weights_are_read(changes, got, tiny_files, tmp_path, any_mesh):
    config = tiny.config(tmp_path / "run", tiny_files.model, tiny_files.train, **changes)
    with pytest.raises(InputError) as caught:
        read_data(build(config), "train")
    assert got in caught.value.got


@pytest.mark.parametrize("first", [0, 1])
def test_a_mix_has_the_positions_that_all_its_policies_have(first, tmp_path, any_mesh, quick_compile):
    shorter = dataclasses.replace(LEARNED, max_positions=32)
    models = [write_model(tmp_path / "64"), write_model(tmp_path / "32", shorter)]
    opened = open_source(Mix({models[first]: 0.5, models[1 - first]: 0.5}))
    assert opened.positions == 32
    with pytest.raises(InputError, match="within the model's 32 positions(.|\n)*row 7: 33 tokens"):
        answer_logps(opened, [group(20, 12, 13)])


def test_weights_of_rows_are_not_negative_and_not_all_zero(tmp_path, tiny_files, monkeypatch):
    tiny.allow_any_mesh(monkeypatch)

    def read(weights, objective, key="weight"):
        rows = [row | {key: weight} for row, weight in zip(tiny.rows(3), weights, strict=True)]
        path = tiny.write_rows(tmp_path / "weighted.jsonl", rows)
        return read_data(build(tiny.config(tmp_path / "run", tiny_files.model, path, objective=objective)), "train")

    dpo = {"name": "dpo"}
    groups, _ = read([0, 1, 2.5], [dpo])
    assert [group.columns["weight"] for group in groups] == [0, 1, 2.5]
    with pytest.raises(InputError, match=r"row 2: -1\.0") as caught:
        read([1, -1, 1], [dpo])
    assert "exchange chosen and rejected" in caught.value.fix
    with pytest.raises(InputError, match="0 in all 3 groups"):
        read([0, 0, 0], [dpo])
    # The weight may be another column.
    mapped = [dpo | {"columns": {"weight": "trust"}}]
    assert len(read([1, 1, 1], mapped, "trust")[0]) == 3
    with pytest.raises(InputError, match=r"(?s)trust.*row 2: -1\.0"):
        read([1, -1, 1], mapped, "trust")
    assert len(read([-1, -1, -1], [dpo], "trust")[0]) == 3, "what nothing reads may be anything"


def test_weights_of_completions():
    groups = [EncodedGroup(np.arange(1), (np.arange(1),) * 2, 0, "w", {"x": (1.0, -0.5)})]
    with pytest.raises(InputError, match="-0.5"):
        check_weights(groups, ["x"])
    check_weights(groups, [])
