#!/usr/bin/env bash
# jax 0.10.2 with libtpu 0.0.42.1: on most TPU slices lax.psum_scatter is compiled into an all-reduce.
#
# Under fully sharded training the gradient of a weight is summed over the devices and spread over them again. Written
# as psum_scatter in shard_map it should be one reduce-scatter, which sends half of what an all-reduce sends. The TPU
# compiler keeps it on v5e:2x4 and makes an all-reduce and a slice of it on v5e:4x4, v5p:2x2x4 and v6e:16x16. Written as two
# sharding constraints (whole, then spread) it is an all-reduce on all four, v5e:2x4 too. No TPU is needed to see it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
cat > "$work/show.py" <<'PY'
import re
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

devices = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices
mesh = jax.make_mesh((len(devices),), ("x",), axis_types=(AxisType.Auto,), devices=list(devices))
spread, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())


def scattered(rows, gradients):
    def own(rows, gradients):
        product = jnp.einsum("rd,rf->df", rows, gradients, preferred_element_type=jnp.float32)
        return jax.lax.psum_scatter(product, "x", scatter_dimension=0, tiled=True)

    return jax.shard_map(own, mesh=mesh, in_specs=P("x"), out_specs=P("x"))(rows, gradients)


def constrained(rows, gradients):
    product = jnp.einsum("rd,rf->df", rows, gradients, preferred_element_type=jnp.float32)
    product = jax.lax.with_sharding_constraint(product, whole)
    return jax.lax.with_sharding_constraint(product, spread)


def collectives(function):
    rows = jax.ShapeDtypeStruct((len(devices) * 1024, 4096), jnp.bfloat16, sharding=spread)
    gradients = jax.ShapeDtypeStruct((len(devices) * 1024, 1024), jnp.bfloat16, sharding=spread)
    program = jax.jit(function).lower(rows, gradients).compile().as_text()
    kinds = ("all-reduce", "reduce-scatter")
    return " ".join(kind for kind in kinds if re.search(rf" {kind}(-start)?\(", program))


print(sys.argv[1], "psum_scatter:", collectives(scattered), "| constraints:", collectives(constrained))
PY
export TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5p-128 TPU_WORKER_HOSTNAMES=localhost JAX_PLATFORMS=cpu
for slice in v5e:2x4 v5e:4x4 v5p:2x2x4 v6e:16x16; do
  "$work/venv/bin/python" "$work/show.py" "$slice" 2> "$work/log" >> "$work/seen" || { cat "$work/log"; exit 1; }
done
cat "$work/seen"
diff "$work/seen" - <<'SEEN' || { echo "changed: look at it again"; exit 1; }
v5e:2x4 psum_scatter: reduce-scatter | constraints: all-reduce
v5e:4x4 psum_scatter: all-reduce | constraints: all-reduce
v5p:2x2x4 psum_scatter: all-reduce | constraints: all-reduce
v6e:16x16 psum_scatter: all-reduce | constraints: all-reduce
SEEN
