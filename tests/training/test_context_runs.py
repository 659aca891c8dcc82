"""Whole runs whose rows lie over several devices, against the same runs on one."""

import numpy as np
import pytest
import tiny
from test_multihost import PROCESS_TOLERANCE, losses_of, train_in

from jaxpref.config import MeshConfig
from jaxpref.errors import InputError
from jaxpref.runs.build import build
from jaxpref.runs.feed import read_data, row_layout
from jaxpref.settings import make_config
from jaxpref.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

CONTEXT_TOLERANCE = 1e-5
"""Relative: sums over devices are added up in another order."""

# A small learning rate keeps the loss at its size of 0.6, and float32 its digits.
GENTLY = {"optim": {"learning_rate": 1e-4, "warmup_steps": 0}}
RUNS = {
    "copy": {"data": {"length_buckets": 2}},
    "cache": {"reference": {"mode": "cache"}},
    "moving": {"reference": {"sync_every": 1, "sync_alpha": 0.5}},
    # What is dropped is drawn for whole rows, so it depends on their length.
    "lora": {"adapter": {"rank": 4, "dropout": 0.2}, "data": {"row_length": 128}},
    "qlora": {"adapter": {"rank": 4, "quantize": "int8", "quantize_block": None}},
}


def run(folder, files, mesh, **changes):
    changes = GENTLY | changes
    changes["model"] = {"attention_block": 8}
    changes["reference"] = changes.get("reference", {}) | {"cache_dir": str(folder / "reference")}
    train = {"max_steps": 3, "eval_every": 2, "save_every": 3, "micro_rows": 2}
    config = tiny.config(folder, files.model, files.train, files.held_out, mesh=mesh, train=train, **changes)
    return tiny.run(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_a_context_is_that_of_one_device(name, tiny_files, tmp_path):
    whole = run(tmp_path / "whole", tiny_files, {}, **RUNS[name])
    spread = run(tmp_path / "spread", tiny_files, {"fsdp": 2, "context": 4}, **RUNS[name])
    np.testing.assert_allclose(spread.losses, whole.losses, rtol=CONTEXT_TOLERANCE)
    assert len(set(whole.losses)) == 3, "the policy moves"
    expected = pytest.approx(whole.result.last_eval, rel=CONTEXT_TOLERANCE, abs=CONTEXT_TOLERANCE)
    assert spread.result.last_eval == expected


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 2, "slices": 2}, {"context": 4}], ids=str)
def test_two_processes_as_slices_or_with_halves_of_rows(mesh, tiny_files, tmp_path, compile_cache):
    """Of two processes with two devices each, a process counts as a slice; with a context both build every row."""
    settings = dict(train={"max_steps": 3, "save_every": 3}, **GENTLY)
    two = train_in(2, tiny.long_config(tmp_path / "two", tiny_files, mesh=mesh, **settings), tmp_path, compile_cache)
    one = tiny.run(tiny.long_config(tmp_path / "one", tiny_files, **settings))
    np.testing.assert_array_equal(losses_of(two[0]), losses_of(two[1]))
    np.testing.assert_allclose(losses_of(two[0]), one.losses, rtol=PROCESS_TOLERANCE)


# ---- what is refused


def test_rows_are_rounded_up_to_what_the_context_divides(tiny_files, tmp_path):
    """Both halves of each device's tokens are whole attention blocks."""
    lengths = {}
    for context in (1, 4):
        changes = {"mesh": {"context": context}, "model": {"attention_block": 16}}
        pieces = build(tiny.config(tmp_path, tiny_files.model, tiny_files.train, **changes))
        groups, _ = read_data(pieces, "train")
        lengths[context] = row_layout(pieces, groups).row_length
    assert lengths[1] % 16 == 0 and lengths[1] < 128 and lengths[4] == 128


def test_a_row_length_that_the_context_does_not_divide_is_refused(tiny_files, tmp_path):
    settings = tiny.settings(
        tmp_path, tiny_files.model, tiny_files.train, mesh={"context": 4}, data={"row_length": 192, "length_buckets": 2}
    )
    with pytest.raises(InputError) as error:
        make_config(settings)
    unit = "model.attention_block=16 * 2 * mesh.context=4 * data.length_buckets=2 = 256"
    assert f"data.row_length=192 is not a multiple of {unit}" in str(error.value)


@pytest.mark.parametrize(
    "mesh, message",
    [
        ({"data": 8, "slices": 3}, "mesh.data=8 with mesh.slices=3"),
        ({"fsdp": 8, "slices": 2}, "mesh.data=1 with mesh.slices=2"),
        ({"data": 8, "slices": 2}, r"8 devices of 1 process\(es\), each taken as a slice"),
        ({"data": 4, "slices": 2}, "a mesh of 8 devices"),
    ],
    ids=str,
)
def test_slices_that_are_not_there_or_do_not_divide_are_refused(mesh, message):
    with pytest.raises(InputError, match=message):
        make_mesh(MeshConfig(**mesh))
