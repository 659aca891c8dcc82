"""A batch whose losses under TRL 1.16.0 (float64) are known: four pairs, vocabulary of 11, logits in closed form.

    policy[b, t, v] = 1.5 sin(0.9 b + 1.7 t + 2.3 v) + 0.2 cos(0.31 b v + 0.11 t)
    ref[b, t, v]    = 1.5 sin(0.7 b + 1.7 t + 2.3 v + 1) + 0.6 cos(0.27 b v - 0.19 t)

b counts the chosen completions 0 to 3, then the rejected 4 to 7; a completion's tokens (3 b + 5 t + b t) mod 11 stand
at positions t from 3 on.  The losses are those of TRL's own DPOTrainer, made once with the options in the names.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.models.logprobs import Logps

COUNTS = np.array([[5, 4], [3, 6], [7, 2], [4, 5]])
PROMPT, VOCABULARY = 3, 11

# The summed log-probs that TRL got, to hold this file against: policy chosen, policy rejected.
SUMS = np.array(
    [
        [-9.493804646781344, -11.083463177320406],
        [-7.426259809990121, -14.233428177811284],
        [-21.86531194202625, -4.374365948002692],
        [-9.29054636156723, -14.030379867676519],
    ]
)


def _logits(model: str, b: int, t: np.ndarray) -> np.ndarray:
    t, v = t[:, None], np.arange(VOCABULARY)[None, :]
    if model == "policy":
        return 1.5 * np.sin(0.9 * b + 1.7 * t + 2.3 * v) + 0.2 * np.cos(0.31 * b * v + 0.11 * t)
    return 1.5 * np.sin(0.7 * b + 1.7 * t + 2.3 * v + 1.0) + 0.6 * np.cos(0.27 * b * v - 0.19 * t)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _per_completion(of) -> np.ndarray:
    """[4, 2] of a function of the row b, the positions t of its tokens, and the shorter length of the pair."""
    cell = lambda i, k: of(i + 4 * k, PROMPT + np.arange(COUNTS[i, k]), COUNTS[i].min())
    return np.array([[cell(i, k) for k in range(2)] for i in range(4)])


def _log_probs(model: str, b: int, t: np.ndarray) -> np.ndarray:
    token = (3 * b + 5 * t + b * t) % VOCABULARY
    return _log_softmax(_logits(model, b, t - 1))[np.arange(len(t)), token]


def _model(model: str) -> Logps:
    log_p = lambda b, t: _log_softmax(_logits(model, b, t - 1))
    kl = lambda b, t: _log_softmax(_logits("ref", b, t - 1)) - log_p(b, t)
    total = _per_completion(lambda b, t, n: _log_probs(model, b, t).sum())
    return Logps(
        sum=total,
        count=COUNTS.astype(np.float64),
        entropy=np.zeros_like(total),
        top1=np.zeros_like(total),
        common=_per_completion(lambda b, t, n: _log_probs(model, b, t)[:n].sum()),
        sampled=_per_completion(lambda b, t, n: _log_probs(model, b, t)[-n:].sum()),  # the last n as well as any n
        collision=_per_completion(lambda b, t, n: np.log(np.exp(2 * log_p(b, t)).sum(-1)).sum()),
        kl=_per_completion(lambda b, t, n: (np.exp(log_p(b, t) + kl(b, t)) * kl(b, t)).sum()),
    )


def batch(dtype=np.float64) -> tuple[Logps, Logps]:
    """(policy, ref); float64 takes effect inside `jax.enable_x64(True)`."""
    cast = lambda x: jnp.asarray(x, dtype)
    return jax.tree.map(cast, _model("policy")), jax.tree.map(cast, _model("ref"))


def value(out) -> float:
    """The objective's value of a batch."""
    return float(jnp.sum(out.weight_B * out.loss_B) / jnp.sum(out.weight_B))
