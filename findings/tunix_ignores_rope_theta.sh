#!/usr/bin/env bash
# google-tunix 0.1.7 with jax 0.10.2 and flax 0.12.8: Llama3 and Qwen3 take no notice of rope_theta in their config.
#
# Both have a rope_theta in ModelConfig and an apply_rope with an argument of that name, which attention leaves at its
# default of 1,000,000. So two configs that differ in it alone give the same logits, and nothing is said. The configs
# that the package has for Llama 3.2 1B and Qwen3-4B-Instruct-2507 ask for 500,000 and 5,000,000: such a checkpoint is
# run and tuned with other rotations than it was trained with. Qwen2 follows its config. Positions matter to all three.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cat > "$work/show.py" <<'PY'
import inspect

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.models.llama3 import model as llama3
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen3 import model as qwen3

SHAPE = {"num_layers": 1, "vocab_size": 32, "embed_dim": 16, "hidden_dim": 32, "num_heads": 2, "head_dim": 8}
SHAPE |= {"num_kv_heads": 1, "norm_eps": 1e-5}
TOKENS = np.arange(16)[None]


def logits(family, name, theta, positions):
    """Logits of a model with the same random weights at each call."""
    model = getattr(family, name)(family.ModelConfig(**SHAPE, rope_theta=theta), rngs=nnx.Rngs(0))
    draws = np.random.default_rng(0)
    weights = jax.tree.map(lambda weight: jnp.float32(draws.normal(size=weight.shape)), nnx.state(model))
    nnx.update(model, weights)
    causal = np.tril(np.ones((1, 16, 16), bool))
    return model(jnp.array(TOKENS), jnp.array(positions), None, jnp.array(causal))[0]


seen = {}
for family, name in ((llama3, "Llama3"), (qwen3, "Qwen3"), (qwen2, "Qwen2")):
    first = logits(family, name, 10_000, TOKENS)
    theta = float(abs(first - logits(family, name, 500_000, TOKENS)).max())
    spread = float(abs(first - logits(family, name, 10_000, 2 * TOKENS)).max())
    print(f"{name}: logits differ by {theta:.2g} with another rope_theta, by {spread:.2g} with other positions")
    seen[name] = (theta > 0, spread > 0)
asked = [llama3.ModelConfig.llama3p2_1b().rope_theta, qwen3.ModelConfig.qwen3_4b_instruct_2507().rope_theta]
used = [inspect.signature(family.apply_rope).parameters["rope_theta"].default for family in (llama3, qwen3)]
print("the package's configs ask for", asked, "and apply_rope takes", used)
assert seen == {"Llama3": (False, True), "Qwen3": (False, True), "Qwen2": (True, True)}, "changed: look at it again"
assert asked == [500_000, 5_000_000] and used == [1_000_000] * 2, "changed: look at it again"
PY
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/show.py"
