#!/usr/bin/env bash
# optax 0.2.8 with jax 0.10.2: contrib.muon takes Nesterov's momentum in its AdamW part too.
#
# optax.contrib.muon updates matrices by Muon and the other parameters by AdamW. Its nesterov, True unless set, is one
# argument for both, so biases and the gains of norms take NAdam's steps. Under a constant gradient these are 1.47, 1.16
# and 1.08 times the learning rate where those of optax.adamw are 1.00, so the first steps are longer than a schedule
# says. nesterov=False mends them and takes Nesterov's momentum from the matrices. Parameters given to optax.adamw
# themselves, beside Muon in an optax.partition, take AdamW's steps.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
cat > "$work/show.py" <<'PY'
import jax.numpy as jnp
import optax
from optax import contrib

RATE = 0.01


def steps(optimizer):
    """Lengths of a bias's first three steps under a constant gradient, in learning rates."""
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    grads = {"kernel": jnp.eye(2), "bias": jnp.array([3.0, -0.5])}
    state = optimizer.init(params)
    lengths = []
    for _ in range(3):
        updates, state = optimizer.update(grads, state, params)
        ratios = -updates["bias"] / jnp.sign(grads["bias"]) / RATE
        assert jnp.ptp(ratios) < 1e-5  # The gradient's size is divided out.
        lengths.append(round(float(ratios[0]), 2))
    return lengths


adamw = optax.adamw(RATE, weight_decay=0.0)
parts = {"muon": contrib.muon(RATE), "adamw": adamw}
seen = {
    "adamw": steps(adamw),
    "adamw, nesterov=True": steps(optax.adamw(RATE, weight_decay=0.0, nesterov=True)),
    "muon": steps(contrib.muon(RATE)),
    "muon, nesterov=False": steps(contrib.muon(RATE, nesterov=False)),
    "muon and adamw in a partition": steps(optax.partition(parts, {"kernel": "muon", "bias": "adamw"})),
}
for name, lengths in seen.items():
    print(f"{name}: {lengths}")
plain, nesterov = [1.0, 1.0, 1.0], [1.47, 1.16, 1.08]
assert list(seen.values()) == [plain, nesterov, nesterov, plain, plain], "changed: look at it again"
PY
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/show.py"
