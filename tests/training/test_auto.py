"""`mesh: auto` and `train.micro_rows: auto`: all devices, and the most rows that fit."""

import logging

import jax
import pytest
import tiny

from jaxpref.config import MeshConfig
from jaxpref.errors import InputError
from jaxpref.settings import load_config, make_config, save_config
from jaxpref.sharding import axis_sizes, make_mesh
from jaxpref.training import micro_rows
from jaxpref.training.run import train

# ---- the mesh


def test_an_automatic_mesh_spreads_rows_and_parameters_over_all_devices(tmp_path):
    config = make_config({"mesh": "auto"})
    assert config.mesh == MeshConfig(fsdp="auto") and dict(make_mesh(config.mesh).shape)["fsdp"] == 8
    assert dict(make_mesh(config.mesh, devices=jax.devices()[:1]).shape)["fsdp"] == 1
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").mesh == config.mesh
    assert load_config(tmp_path / "config.yaml", ["mesh.tensor=2"]).mesh.tensor == 2


@pytest.mark.parametrize("sizes, fsdp", [({"tensor": 2}, 4), ({"data": 2, "tensor": 2}, 2), ({"context": 8}, 1)])
def test_the_other_axes_come_first(sizes, fsdp):
    assert axis_sizes(MeshConfig(fsdp="auto", **sizes), 8)["fsdp"] == fsdp


def test_a_mesh_of_other_sizes_says_how_to_take_all_devices():
    with pytest.raises(InputError, match=r"for example mesh.fsdp=8; mesh=auto takes all devices so"):
        make_mesh(MeshConfig())
    with pytest.raises(InputError, match=r"mesh.data=3 \* mesh.fsdp=2"):
        make_mesh(MeshConfig(data=3, fsdp="auto"))


@pytest.mark.parametrize("given", [{"fsdp": 0}, {"fsdp": "all"}, "all", {"fsdp": True}])
def test_what_is_no_mesh(given):
    with pytest.raises(InputError, match="mesh"):
        make_config({"mesh": given})


def test_rows_that_an_automatic_mesh_does_not_divide(tmp_path, tiny_files, caplog):
    """Known when the devices are: here there are 8, which is said."""
    caplog.set_level(logging.INFO, "jaxpref")
    config = tiny.long_config(tmp_path / "run", tiny_files, mesh="auto", train={"micro_rows": 3})
    with pytest.raises(InputError, match=r"train.micro_rows as a multiple of mesh.data \* mesh.fsdp = 8"):
        train(config)
    assert "mesh: fsdp 8 (auto)" in caplog.text


# ---- the rows


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile", "any_mesh")
def test_the_most_rows_that_fit_are_taken_and_said(tmp_path, tiny_files, monkeypatch, caplog):
    """With ever less memory ever fewer rows, and the same losses; without room for one, an error."""
    caplog.set_level(logging.INFO, "jaxpref")
    settings = {"micro_rows": "auto", "max_steps": 1, "log_every": 1, "batch_size": 4, "eval_every": None}
    needed = {}
    measured = micro_rows._needed

    def remember(prepared, state, loader, step):
        needed[loader.plan.micro_rows] = measured(prepared, state, loader, step)
        return needed[loader.plan.micro_rows]

    monkeypatch.setattr(micro_rows, "_needed", remember)
    data = {"pack": False, "eval": []}
    config = lambda name: tiny.long_config(tmp_path / name, tiny_files, train=settings, data=data)
    whole = train(config("whole"))
    assert sorted(needed) == [1, 2, 4] and "micro_rows: 4 (auto: the step takes" in caplog.text
    assert needed[1] < needed[2] < needed[4]
    assert load_config(whole.out / "config.yaml").train.micro_rows == "auto"
    for room, rows in (((needed[2] + needed[4]) / 2, 2), (needed[1] + 1, 1)):
        monkeypatch.setattr(micro_rows, "_room", lambda mesh, memory, room=room: room)
        run = train(config(str(rows)))
        assert f"micro_rows: {rows} (auto" in caplog.text
        assert run.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-5)
    monkeypatch.setattr(micro_rows, "_room", lambda mesh, memory: needed[1] - 1)
    with pytest.raises(InputError, match="a step that fits a device"):
        train(config("none"))
