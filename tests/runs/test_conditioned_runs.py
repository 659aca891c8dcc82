"""Runs with an adapter that serves all objective weights: trained on packed rows, exported at some weights."""

from dataclasses import replace

import numpy as np
import pytest
import tiny

from jaxpref.cli import main
from jaxpref.data.encode import encode_groups
from jaxpref.errors import InputError
from jaxpref.generation.answer_logps import answer_logps
from jaxpref.generation.opening import OpenPolicy, open_source
from jaxpref.models import peft
from jaxpref.models.parameters import LORA
from jaxpref.runs.adapters import adapter_at
from jaxpref.runs.build import build
from jaxpref.runs.directory import run_params
from jaxpref.runs.export import export_run
from jaxpref.runs.feed import read_data
from jaxpref.runs.sequence_logps import compute_logps
from jaxpref.settings import make_config
from jaxpref.types import Group

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

WEIGHTS = [(0.1, 0.9), (0.7, 0.3), (1.0, 0.0)]
COLUMNS = ["w/a", "w/b"]


def lines() -> list[dict]:
    """Pairs whose labels disagree, with weights of their own."""
    made = []
    for i, w in enumerate(WEIGHTS * 4):
        pair = {"prompt": f"n {i}", "chosen": "good", "rejected": "bad bad"}
        made.append(pair | {"label/a": 1, "label/b": -1} | dict(zip(COLUMNS, w, strict=True)))
    return made


def config_of(directory, kind, **changes):
    model = tiny.write_model(directory / "model", scale=0.5)
    data = tiny.write_rows(directory / "rows.jsonl", lines())
    columns = {"labels": ["label/a", "label/b"], "objective_weights": COLUMNS}
    settings = {
        "objective": [{"name": "cos_dpo", "columns": columns}],
        "adapter": {"rank": 2, "kind": kind, "weight_columns": COLUMNS},
        "data": {"train": [str(data)], "eval": [], "row_length": 64},
        "train": {"batch_size": 6, "epochs": 3, "micro_rows": 2, "log_every": 1},
        "optim": {"learning_rate": 3e-2},
    }
    return tiny.config(directory / "run", model, data, **settings | changes)


ON_A_MESH = pytest.param("pblora", {"fsdp": 2, "tensor": 2}, marks=pytest.mark.slow)


@pytest.mark.parametrize("kind, mesh", [("panacea", {}), ON_A_MESH])
def test_a_run_serves_every_row_at_its_weights(kind, mesh, tmp_path):
    """In packed rows; for given weights it is an ordinary adapter, exported for PEFT too."""
    config = config_of(tmp_path, kind, mesh=mesh)
    tiny.run(config)
    pieces = build(config)
    params, _ = run_params(pieces, config.out, "latest")
    groups, _ = read_data(pieces, "train")
    packed = compute_logps(pieces, params, groups)
    alone = {}
    for w in WEIGHTS:
        tree, _ = adapter_at(params[LORA], pieces.lora, w)
        opened = OpenPolicy(pieces, params | {LORA: tree})
        alone[w] = answer_logps(opened, [replace(group, columns={}) for group in groups])
    for group in groups:
        own = alone[WEIGHTS[group.row_id % 3]]
        np.testing.assert_allclose(packed[group.row_id], own[group.row_id], atol=tiny.LOGP_TOLERANCE)
    margin = {w: alone[w][0][0] - alone[w][0][1] for w in WEIGHTS}
    assert margin[1.0, 0.0] > margin[0.7, 0.3] + 0.1 > margin[0.1, 0.9] + 0.2

    to = tmp_path / "adapter"
    main(["export", config.out, "--to", str(to), "--adapter", "--step", "latest", "--weights", "0.7,0.3"])
    assert peft.read_spec(to, pieces.source.spec).rank == 4
    assert "the policy for w/a=0.7, w/b=0.3." in (to / "README.md").read_text()
    np.testing.assert_allclose(answers_of(to, lines()[0]), alone[0.7, 0.3][0], atol=tiny.LOGP_TOLERANCE)


def answers_of(source, line) -> np.ndarray:
    opened = open_source(source, overrides=["model.compute_dtype=float32"])
    group = Group(line["prompt"], (line["chosen"], line["rejected"]), 0, "")
    encoded, _ = encode_groups([group], opened.pieces.tokenizer, max_length=None)
    return answer_logps(opened, encoded)[0]


def test_it_is_no_policy_without_weights(tmp_path):
    config = config_of(tmp_path, "panacea", train={"batch_size": 6, "max_steps": 1, "micro_rows": 2})
    tiny.run(config)
    with pytest.raises(InputError, match=r"(?s)serves all objective weights.*--weights 0.5,0.5"):
        open_source(config.out)
    with pytest.raises(InputError, match="serves all objective weights"):
        export_run(config.out, tmp_path / "whole", step="latest")
    with pytest.raises(InputError, match=r"(?s)2 objective weights.*weights \[1.0\]"):
        export_run(config.out, tmp_path / "adapter", step="latest", adapter=True, weights=[1.0])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"adapter": {"rank": 2, "kind": "panacea"}}, "name their columns in adapter.weight_columns"),
        ({"adapter": {"kind": "pblora", "weight_columns": COLUMNS}}, "set adapter.rank"),
        ({"adapter": {"rank": 2, "weight_columns": COLUMNS}}, "adapter.weight_columns is read by"),
        ({"adapter": {"rank": 2, "kind": "pblora", "weight_columns": COLUMNS, "dora": True}}, "adapter.dora and"),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    with pytest.raises(InputError, match=message):
        make_config({"model": {"path": "m"}, "data": {"train": ["x.jsonl"]}} | change)


def test_a_column_that_the_data_lack_is_named(tmp_path):
    adapter = {"rank": 2, "kind": "panacea", "weight_columns": ["w/a", "w/c"]}
    pieces = build(config_of(tmp_path, "panacea", adapter=adapter))
    with pytest.raises(InputError, match="adapter.weight_columns names 'w/c'"):
        read_data(pieces, "train")
