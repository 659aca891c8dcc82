"""Loads a checkpoint when told to, so that test_streaming.py can watch this process's memory; run by it.

python load_checkpoint.py DIRECTORY whole     onto a mesh of 8 devices of this process
python load_checkpoint.py DIRECTORY eighth    what the first of 8 devices holds, as one of 8 processes would
"""

import ctypes
import gc
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np

from jaxpref.config import MeshConfig
from jaxpref.models.decoder import build_model
from jaxpref.models.hf import load_params, load_spec
from jaxpref.models.parameters import leaf_path
from jaxpref.models.placement import param_shardings
from jaxpref.models.streaming import place_leaf
from jaxpref.sharding import make_mesh


def main(directory: str, how: str) -> None:
    spec, mesh = load_spec(directory), make_mesh(MeshConfig(fsdp=4, tensor=2))
    shapes = jax.eval_shape(build_model(spec).init, jax.random.key(0))
    shardings = {
        leaf_path(path): sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(param_shardings(shapes, mesh))
    }

    def put(path, shape, dtype, read_slice):
        if how == "whole":
            return place_leaf(shape, dtype, shardings[path], read_slice)
        return read_slice(shardings[path].devices_indices_map(shape)[jax.devices()[0]])

    jax.block_until_ready(jax.numpy.zeros(8) + 1)  # what jax allocates for itself is there before the measurement
    # What was garbage before must not be given back during the measurement and stand against the arrays.
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    gc.freeze()
    print("ready", flush=True)
    sys.stdin.readline()
    params = load_params(directory, spec, dtype=np.float32, put=put)
    print(sum(leaf.nbytes for leaf in jax.tree.leaves(params)), flush=True)
    sys.stdin.readline()  # the arrays stay until the last look


if __name__ == "__main__":
    main(*sys.argv[1:])
