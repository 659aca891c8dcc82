"""Loading holds a piece of the checkpoint on the host and never all of it."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxpref.config import MeshConfig
from jaxpref.models import streaming
from jaxpref.models.families import FAMILIES, llama
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import stored_shapes, used_leaves
from jaxpref.models.streaming import place_leaf, with_zero_rows
from jaxpref.sharding import make_mesh

MIB = 2**20
# 201 M parameters: 403 MB of bfloat16 on disk, 805 MB in float32.  The largest tensor is the embedding, the largest
# leaf (`gate`, `up` or `down` of all layers) is 2.5 times as large.
SPEC = ModelSpec(
    family="llama", vocab=16384, width=1024, ffn=4096, layers=10, heads=16, kv_heads=16, head_dim=64,
    max_positions=128, rope_theta=1e4, norm_eps=1e-5, tied=False,
)  # fmt: skip
LARGEST_TENSOR = 16384 * 1024 * 4
"""Bytes in float32."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A directory of five shards with an index."""
    directory = tmp_path_factory.mktemp("checkpoint")
    (directory / "config.json").write_text(json.dumps(llama.to_hf(SPEC)))
    values = np.random.default_rng(0).normal(size=MIB).astype(ml_dtypes.bfloat16)
    names = list(shapes := stored_shapes(used_leaves(FAMILIES["llama"].TENSORS, SPEC), SPEC))
    weight_map = {}
    for shard in range(5):
        file, mine = f"model-{shard}.safetensors", names[shard::5]
        save_file({name: np.resize(values, shapes[name]) for name in mine}, directory / file)
        weight_map |= dict.fromkeys(mine, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def memory(process):
    """Bytes of a process's own (anonymous) memory.

    Mapped pages of the checkpoint are left out: they are the kernel's cache of the file, which it drops whenever memory
    is wanted, as it does the cache of a file that is read in the ordinary way.
    """
    status = Path(f"/proc/{process.pid}/status").read_text()
    return sum(int(status.split(key + ":")[1].split()[0]) * 1024 for key in ("RssAnon", "RssShmem"))


def watch(directory, how):
    """(bytes of the loaded arrays, peak of the process's own memory during the load, above what it was before).

    Watched from outside, so that nothing in the process can keep a sample from being taken.
    """
    command = [sys.executable, str(Path(__file__).with_name("load_checkpoint.py")), str(directory), how]
    # The C library gives freed memory back at once; as it comes it keeps tens of MB for later.
    allocator = {"MALLOC_MMAP_THRESHOLD_": str(MIB), "MALLOC_TRIM_THRESHOLD_": str(MIB), "MALLOC_ARENA_MAX": "2"}
    process = subprocess.Popen(
        command, env=os.environ | allocator, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        before = memory(process)
        process.stdin.write("\n"), process.stdin.flush()
        peak = before
        while not select.select([process.stdout], [], [], 0.002)[0]:
            peak = max(peak, memory(process))
        loaded = int(process.stdout.readline())
        peak = max(peak, memory(process))
    assert process.returncode == 0
    return loaded, peak - before


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


@linux
def test_the_whole_model_on_one_host(checkpoint):
    """Device memory is host memory here, so the arrays are taken off."""
    loaded, peak = watch(checkpoint, "whole")
    assert loaded > 750 * MIB
    assert peak > loaded, "the measurement sees the arrays"
    assert peak - loaded < LARGEST_TENSOR


@linux
def test_one_of_eight_processes(checkpoint):
    loaded, peak = watch(checkpoint, "eighth")
    assert 90 * MIB < loaded < 105 * MIB
    assert peak > loaded
    assert peak - loaded < 0.3 * LARGEST_TENSOR


# ---- pieces


@pytest.mark.parametrize("piece_bytes", [1, 200, 500, 10**6])
@pytest.mark.parametrize("axes", [(None, "fsdp", "tensor"), (None, None, None), ("fsdp", "tensor", None)], ids=str)
def test_pieces_make_the_leaf(monkeypatch, piece_bytes, axes):
    monkeypatch.setattr(streaming, "PIECE_BYTES", piece_bytes)
    leaf = np.arange(8 * 4 * 6, dtype=np.float32).reshape(8, 4, 6)
    sharding = jax.NamedSharding(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), jax.P(*axes))
    read = []

    def read_slice(index):
        read.append(leaf[index].nbytes)
        return leaf[index].copy()

    placed = place_leaf(leaf.shape, leaf.dtype, sharding, read_slice)
    assert placed.sharding == sharding
    np.testing.assert_array_equal(np.asarray(placed), leaf, strict=True)
    assert sum(read) == leaf.nbytes, "what two devices hold is read once"
    pieces = 1 if axes[0] else {1: 8, 200: 4, 500: 2, 10**6: 1}[piece_bytes]
    assert len(read) == pieces * (1 if axes[1] is None and axes[0] is None else 4)


@pytest.mark.parametrize("index", [slice(None), slice(0, 4), slice(4, 8), slice(5, 8), slice(3, 6)], ids=str)
def test_zero_rows(index):
    leaf = np.arange(10, dtype=np.float16).reshape(5, 2) + np.float16(1)
    wanted = np.concatenate([leaf, np.zeros((3, 2), np.float16)])
    read = with_zero_rows(lambda part: leaf[part], 5, 8)
    np.testing.assert_array_equal(read((index, slice(0, 1))), wanted[index, :1], strict=True)
