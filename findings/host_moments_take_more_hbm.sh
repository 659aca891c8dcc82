#!/usr/bin/env bash
# jax 0.10.2 with libtpu 0.0.42.1: Adam's moments in pinned_host take more HBM than on the TPU, unless a loop brings them.
#
# Moments of stacked layers that lie in the host's memory, brought to the device by device_put for the update and sent
# back, as the usual way to offload an optimizer goes, leave the arguments (256 MiB less a device here) and come back in the
# temporaries, two and a half times as large: the program needs 896 MiB where without offloading it needs 512. The same
# update in a loop over the layers, whose body brings one slice, needs 289. No TPU is needed to see it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
cat > "$work/show.py" <<'PY'
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

LAYERS, WIDTH, MIB = 32, 2048, 2**20
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,), devices=list(devices))


def at(spec, host=False):
    sharding = NamedSharding(mesh, spec)
    return sharding.with_memory_kind("pinned_host") if host else sharding


def loss(weights, x):
    layer = jax.checkpoint(lambda x, weight: (jnp.tanh(x @ weight), None))
    return jnp.mean(jax.lax.scan(layer, x, weights)[0] ** 2)


def adam(weight, m, v, gradient):
    m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    return weight - 1e-3 * m / (jnp.sqrt(v) + 1e-8), m, v


def on_the_device(weights, m, v, x):
    return adam(weights, m, v, jax.grad(loss)(weights, x))


def on_the_host(weights, m, v, x):
    m, v = (jax.device_put(moment, at(P(None, "x"))) for moment in (m, v))
    weights, m, v = adam(weights, m, v, jax.grad(loss)(weights, x))
    return weights, *(jax.device_put(moment, at(P(None, "x"), host=True)) for moment in (m, v))


def by_layer(weights, m, v, x):
    gradients = jax.grad(loss)(weights, x)

    def one(i, changed):
        weight, m_i, v_i, gradient = (x[i] for x in (*changed, gradients))
        m_i, v_i = (jax.device_put(moment, at(P("x"))) for moment in (m_i, v_i))
        weight, m_i, v_i = adam(weight, m_i, v_i, gradient)
        m_i, v_i = (jax.device_put(moment, at(P("x"), host=True)) for moment in (m_i, v_i))
        new = (weight, m_i, v_i)
        return tuple(jax.lax.dynamic_update_index_in_dim(*pair, i, 0) for pair in zip(changed, new))

    return jax.lax.fori_loop(0, LAYERS, one, (weights, m, v))


for step in (on_the_device, on_the_host, by_layer):
    host = step is not on_the_device
    shape = lambda sharding: jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32, sharding=sharding)
    weights, moment = at(P(None, "x")), at(P(None, "x"), host)
    x = jax.ShapeDtypeStruct((64, WIDTH), jnp.float32, sharding=at(P("x")))
    jitted = jax.jit(step, donate_argnums=(0, 1, 2), out_shardings=(weights, moment, moment))
    memory = jitted.lower(shape(weights), shape(moment), shape(moment), x).compile().memory_analysis()
    held, more = memory.argument_size_in_bytes / MIB, memory.temp_size_in_bytes / MIB
    print(f"{step.__name__}: {held:.0f} MiB of arguments, {more:.0f} of temporaries, {held + more:.0f} in all")
PY
export TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5p-128 TPU_WORKER_HOSTNAMES=localhost JAX_PLATFORMS=cpu
"$work/venv/bin/python" "$work/show.py" 2> "$work/log" > "$work/seen" || { cat "$work/log"; exit 1; }
cat "$work/seen"
diff "$work/seen" - <<'SEEN' || { echo "changed: look at it again"; exit 1; }
on_the_device: 384 MiB of arguments, 128 of temporaries, 512 in all
on_the_host: 128 MiB of arguments, 768 of temporaries, 896 in all
by_layer: 128 MiB of arguments, 161 of temporaries, 289 in all
SEEN
