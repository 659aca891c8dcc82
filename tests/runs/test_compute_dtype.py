"""`model.compute_dtype: auto`: what it is on a device, and that a run keeps it."""

import logging
from types import SimpleNamespace

import jax
import pytest
import tiny

from jaxpref.errors import InputError
from jaxpref.runs.compute_dtype import _instructions, choose_compute_dtype
from jaxpref.runs.directory import load_run
from jaxpref.runs.resume import check_unchanged

TPU = SimpleNamespace(platform="tpu", device_kind="TPU v5p")
H100 = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100", compute_capability="9.0")
V100 = SimpleNamespace(platform="gpu", device_kind="NVIDIA V100", compute_capability="7.0")
MI300 = SimpleNamespace(platform="gpu", device_kind="AMD Instinct MI300X", compute_capability="gfx942")


@pytest.mark.parametrize(
    "device, dtype", [(TPU, "bfloat16"), (H100, "bfloat16"), (V100, "float32"), (MI300, "bfloat16")]
)
def test_accelerators(device, dtype):
    choice = choose_compute_dtype(device)
    assert choice.name == dtype and device.device_kind in choice.why


@pytest.mark.parametrize(
    "flags, dtype",
    [
        ("fpu sse avx2 avx512f avx512_bf16 avx512_vnni", "bfloat16"),
        ("fpu avx512f amx_tile amx_bf16 amx_int8", "bfloat16"),
        ("fpu sse avx2 fma", "float32"),
        ("fpu avx512f avx512_bf16_of_another_name", "float32"),
    ],
)
def test_processors(flags, dtype, tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: X amx_bf16\nflags\t\t: {flags}\nbugs\t\t: avx512_bf16\n")
    monkeypatch.setattr("jaxpref.runs.compute_dtype._instructions", lambda: _instructions(cpuinfo))
    assert choose_compute_dtype(jax.devices("cpu")[0]).name == dtype
    assert _instructions(tmp_path / "none, as on macOS") == set()


@pytest.mark.usefixtures("quick_compile", "any_mesh")
def test_a_run_keeps_what_it_began_with(tmp_path, tiny_files, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="jaxpref")

    def told():
        lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("compute dtype")]
        caplog.clear()
        return lines

    def config(dtype):
        model = {"compute_dtype": dtype}
        return tiny.config(tmp_path / "run", tiny_files.model, tiny_files.train, model=model, train={"max_steps": 2})

    units = {"avx512_bf16"}
    monkeypatch.setattr("jaxpref.runs.compute_dtype._instructions", lambda: units)
    first = tiny.run(config("auto"))
    assert told() == ["compute dtype: bfloat16 (the processor has avx512_bf16)"]
    assert load_run(first.out).model.compute_dtype == "bfloat16"

    units.clear()  # on another machine
    again = tiny.run(config("auto"))
    assert told() == ["compute dtype: bfloat16 (with which the run began)"]
    assert again.result.metrics == first.result.metrics and not again.steps, "it goes on, and is finished"
    check_unchanged(config("bfloat16"))
    with pytest.raises(InputError, match="model.compute_dtype 'bfloat16' -> 'float32'"):
        check_unchanged(config("float32"))
