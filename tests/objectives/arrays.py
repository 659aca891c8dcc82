"""Arrays for any objective, from what it says that it needs."""

import inspect

import jax.numpy as jnp
import numpy as np

from jaxpref.models.logprobs import Logps

COMPLETIONS = {
    "pair": 2,
    "triple": 3,
    "pair_cropped": 3,
    "pair_masked": 3,
    "single": 1,
    "judged": 1,
    "judged_other": 2,
    "ranked": 3,
}
EXTRA = 2  # further references, further rewards


def completions(part) -> int:
    return COMPLETIONS[part.needs.groups[0]]


def logps(total, count, *, per_token=0.5) -> Logps:
    """All fields filled with something plausible that moves with the sums."""
    total, count = jnp.asarray(total), jnp.asarray(count, jnp.asarray(total).dtype)
    real = (count > 0).astype(total.dtype)
    return Logps(
        sum=total * real,
        count=count,
        entropy=per_token * count,
        top1=jnp.floor(count / 2),
        common=0.6 * total * real,
        sampled=0.4 * total * real,
        collision=-per_token * count,
        kl=0.1 * count,
        prompt=0.3 * total[:, 0] * real[:, 0],
        prompt_count=jnp.maximum(count[:, 0] - 1, 0),
        reward=0.01 * total * real,
        value=0.02 * total[:, 0] * real[:, 0],
        router=_router(real),
    )


def _router(real_BK) -> jnp.ndarray:
    """[B, 2, 4] of a mixture with 2 of 4 experts a token: 10 choices a group, more of the first experts."""
    share_E = jnp.array([[0.5, 0.7, 0.4, 0.4], [0.4, 0.3, 0.2, 0.1]], real_BK.dtype)
    return 10.0 * share_E[None] * real_BK.max(1)[:, None, None]


def columns(part, batch: int, K: int, seed: int = 0) -> dict:
    """Every array that the objective may be given, by name; `weight` is left out."""
    rng = np.random.default_rng(seed)
    one = lambda: jnp.asarray(rng.random(batch), jnp.float32)
    each = lambda *n: jnp.asarray(rng.normal(size=(batch, K, *n)), jnp.float32)
    have = {
        "margin": one(), "probability": one(), "baseline": one(), "uniform": one(), "label": jnp.arange(batch) % 2.0,
        "score": jnp.sort(each(), axis=1)[:, ::-1], "scores": each(EXTRA), "other_rewards": each(EXTRA),
        "labels": jnp.asarray(rng.choice([-1.0, 0.0, 0.5, 1.0], (batch, EXTRA)), jnp.float32),
        "objective_weights": jnp.asarray(rng.dirichlet(np.ones(EXTRA), batch), jnp.float32),
        "sampled_logp": -6.0 + each(), "sign": 1.0 - 2.0 * (jnp.arange(batch) % 2), "extra_refs": -5.0 + each(EXTRA),
        "running": dict(part.needs.running),
    }  # fmt: skip
    asked = inspect.signature(part.function).parameters
    return {name: value for name, value in have.items() if name in asked}
