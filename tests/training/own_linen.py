"""A model of the reader's own, in Linen: what docs/extend.md shows, and the tests train.

The lines between the two rules are those of docs/extend.md.
"""

# ---------------------------------------------------------------------------
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpref import OwnModel


class Block(nn.Module):
    width: int
    heads: int

    @nn.compact
    def __call__(self, x, position, mask):
        h = nn.LayerNorm(name="norm")(x)
        shape = self.heads, self.width // self.heads
        q, k, v = (nn.DenseGeneral(shape, use_bias=False, name=name)(h) for name in "qkv")
        logits = jnp.einsum("rqnh,rknh->rnqk", rotated(q, position), rotated(k, position))
        logits = jnp.where(mask[:, None], logits / shape[1] ** 0.5, -1e30)
        attended = jnp.einsum("rnqk,rknh->rqnh", jax.nn.softmax(logits), v)
        x = x + nn.DenseGeneral(self.width, axis=(-2, -1), use_bias=False, name="o")(attended)
        h = nn.gelu(nn.Dense(4 * self.width, name="up")(nn.LayerNorm(name="mlp_norm")(x)))
        return x + nn.Dense(self.width, name="down")(h)


class Own(nn.Module):
    vocab: int
    width: int = 64
    heads: int = 4
    layers: int = 2

    @nn.compact
    def __call__(self, token, position, mask):
        x = nn.Embed(self.vocab, self.width, name="embed")(token)
        for i in range(self.layers):
            x = Block(self.width, self.heads, name=f"block_{i}")(x, position, mask)
        return nn.LayerNorm(name="final_norm")(x)


def rotated(x, position):
    """Rotary embedding of [R, L, N, H] by the positions, which restart with every text of a row."""
    half = x.shape[-1] // 2
    angle = jnp.einsum("rl,h->rlh", position, 100.0 ** (-jnp.arange(half) / half))[:, :, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1)


def own_model(vocab, **about):
    module, token = Own(vocab), jnp.zeros((1, 8), jnp.int32)
    params = module.init(jax.random.key(0), token, token, jnp.ones((1, 8, 8), bool))["params"]
    axes = {}
    for i in range(module.layers):
        axes |= {f"block_{i}/{name}/kernel": ("width", "heads", None) for name in "qkv"}
        axes |= {f"block_{i}/up/kernel": ("width", "ffn"), f"block_{i}/down/kernel": ("ffn", "width")}
    return OwnModel.of_linen(module, params, head=lambda params: params["embed"]["embedding"], axes=axes, **about)


# ---------------------------------------------------------------------------
