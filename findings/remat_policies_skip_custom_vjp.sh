#!/usr/bin/env bash
# jax 0.10.2: remat policies for dot products keep none that lies in a function with its own gradient.
#
# jax.checkpoint with dots_saveable, or dots_with_no_batch_dims_saveable, keeps what dot products give and computes the
# rest again. Where the product is taken in a jax.custom_vjp function (to accumulate in float32, say) the policy sees one
# call, not the product in it: nothing is kept, nothing is said, and the program is that of nothing_saveable. A name given
# by checkpoint_name to what the function returns is seen, and so is one given in its forward rule.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat > "$work/show.py" <<'PY'
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

policies = jax.checkpoint_policies


@jax.custom_vjp
def product(x, w):
    return x @ w


product.defvjp(lambda x, w: (product(x, w), (x, w)), lambda saved, dy: (dy @ saved[1].T, saved[0].T @ dy))


def dots(multiply, policy):
    """Dot products in the gradient of two layers."""

    def layer(x, w):
        return jnp.tanh(checkpoint_name(multiply(x, w), "product"))

    kept = jax.checkpoint(layer, policy=policy)
    loss = lambda x, w: kept(kept(x, w), w).sum()
    shape = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    return str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(shape, shape)).count("dot_general")


seen = {
    "plain, nothing_saveable": dots(jnp.matmul, policies.nothing_saveable),
    "plain, dots_saveable": dots(jnp.matmul, policies.dots_saveable),
    "custom_vjp, nothing_saveable": dots(product, policies.nothing_saveable),
    "custom_vjp, dots_saveable": dots(product, policies.dots_saveable),
    "custom_vjp, by name": dots(product, policies.save_only_these_names("product")),
}
print(seen)
assert list(seen.values()) == [5, 4, 5, 5, 4], "changed: look at it again"
PY
"$work/venv/bin/python" "$work/show.py"
