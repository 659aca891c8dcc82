"""One direction from the gradients of several objectives, where they may conflict.

Every rule here gives coefficients a, for the direction sum_i a_i g_i, and needs of the gradients
g_i only their inner products <g_i, g_j>, an O x O matrix over all parameters and the whole batch.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpref.config import OptimConfig
from jaxpref.errors import InputError
from jaxpref.objectives import Part

MOST_COMBINED = 6
"""Objectives whose gradients may be combined: every set of them is tried."""
_RIDGE = 1e-6
"""Added to the diagonal of inner products before they are inverted, of a mean square of 1."""


def check_combinable(optim: OptimConfig, parts: Sequence[Part]) -> None:
    """Errors: InputError where gradients are to be combined, but not of several objectives.

    Only training asks: a run may be opened without its objective, to generate or to export.
    """
    if optim.combine != "sum" and not 2 <= len(parts) <= MOST_COMBINED:
        raise InputError(
            f"2 to {MOST_COMBINED} entries in `objective`, whose gradients are combined",
            f"optim.combine={optim.combine}, and {len(parts)} of them",
            "list as many objectives, or set optim.combine=sum",
        )


@dataclass(frozen=True)
class Combine:
    """How the gradients of the objective's parts become one; None is made for a plain sum.

    Args:
        how: `optim.combine`.
        c: of RACO, `optim.combine_c`.
    """

    how: str
    c: float

    @classmethod
    def of(cls, optim: OptimConfig) -> "Combine | None":
        """None for the weighted sum, as which RACO with c = 0 is computed too: of one gradient."""
        if optim.combine == "sum" or (optim.combine == "raco" and optim.combine_c == 0):
            return None
        return cls(optim.combine, optim.combine_c)

    def __call__(
        self, grads_O: Any, parts: Sequence[Part], losses: Mapping[str, jax.Array]
    ) -> tuple[Any, dict[str, jax.Array]]:
        """The direction, and what to log.

        Args:
            grads_O: of the parts' own losses, without their weights, on a leading axis.
            losses: of the parts, by name.
        """
        gram_OO = inner_products(grads_O)
        w_O = jnp.stack([jnp.asarray(part.weight, jnp.float32) for part in parts])
        loss_O = jnp.stack([losses[part.name] for part in parts])
        # Accelerators would round the factors of these small products to bfloat16 or TF32.
        with jax.default_matmul_precision("highest"):
            a_O = self.coefficients(gram_OO, w_O, loss_O)
        direction = jax.tree.map(lambda g: jnp.tensordot(a_O, g, 1, precision="highest"), grads_O)
        metrics = {f"combined/{part.name}": a for part, a in zip(parts, a_O, strict=True)}
        return direction, metrics | {"gradient_cosine": _least_cosine(gram_OO)}

    def coefficients(self, gram_OO: jax.Array, w_O: jax.Array, loss_O: jax.Array) -> jax.Array:
        """a, [O].

        Args:
            gram_OO: inner products of the gradients.
            w_O: weights of the objectives, > 0.
        """
        if self.how == "raco":
            return _raco(gram_OO, w_O, self.c)
        if self.how == "mgda":
            return w_O.sum() * _min_norm(gram_OO)
        if self.how == "pcgrad":
            return _pcgrad(gram_OO, w_O)
        assert self.how == "tchebycheff"
        return w_O * (jnp.arange(len(w_O)) == jnp.argmax(w_O * loss_O))


def inner_products(tree_O: Any) -> jax.Array:
    """[O, O] of the trees on a leading axis, over all their numbers."""

    def of_leaf(x):
        x = x.astype(jnp.float32)
        axes = list(range(1, x.ndim))
        return jnp.tensordot(x, x, (axes, axes), precision="highest")

    return jax.tree.reduce(jnp.add, jax.tree.map(of_leaf, tree_O))


def _raco(gram_OO: jax.Array, w_O: jax.Array, c: float) -> jax.Array:
    """RACO (arXiv 2602.02495, algorithm 1 and the authors' code).

    With weights that sum to 1 and g0 = sum_i w_i g_i, p on the simplex makes <G_p, g0> + c |g0|
    |G_p| least, G_p = sum_i p_i g_i.  Clipped to q = min(p, w), it turns g0 into g0 + c |g0| G_q /
    |G_q|.  The authors' code does so for every micro-batch; here the gradients are the batch's.
    """
    total = w_O.sum()
    share_O = w_O / total
    gram_OO, scale = _scaled(gram_OO)
    length = _length(gram_OO, share_O)
    p_O = _least(gram_OO, gram_OO @ share_O, c * length)
    q_O = jnp.minimum(p_O, share_O)
    q_length = _length(gram_OO, q_O)
    turn = jnp.where(q_length > 0, c * length / jnp.where(q_length > 0, q_length, 1.0), 0.0)
    return w_O + total * turn * q_O  # the weights to the bit where c is 0


def _min_norm(gram_OO: jax.Array) -> jax.Array:
    """MGDA (Desideri, 2012): the weights on the simplex whose gradient is shortest.

    It is where RACO's p goes as c grows.
    """
    gram_OO, _ = _scaled(gram_OO)
    return _least(gram_OO, jnp.zeros(len(gram_OO)), jnp.ones(()))


def _pcgrad(gram_OO: jax.Array, w_O: jax.Array) -> jax.Array:
    """PCGrad (Yu et al., arXiv 2001.06782): every gradient loses what opposes another one.

    The others come in the order of the objectives, where the paper draws it.
    """
    count, total_O = len(w_O), jnp.zeros_like(w_O)
    for i in range(count):
        a_O = jnp.where(jnp.arange(count) == i, w_O, 0.0)
        for j in range(count):
            if j != i:
                opposed = jnp.minimum(a_O @ gram_OO[:, j], 0.0)
                square = jnp.where(gram_OO[j, j] > 0, gram_OO[j, j], 1.0)
                a_O = a_O.at[j].add(-opposed / square)
        total_O = total_O + a_O
    return total_O


def _least(gram_OO: jax.Array, b_O: jax.Array, s: jax.Array) -> jax.Array:
    """p on the simplex that makes <p, b> + s * sqrt(p' H p) least, H the inner products.

    The problem is convex.  On every set of objectives, those with p_i > 0, there is at most one
    point where the derivatives are equal: p ~ inv(H) (l - b), with l the larger root of
    (l - b)' inv(H) (l - b) = s^2.  The least of all of them, of each set's shortest gradient and of
    the corners is the answer.
    """
    sets = jnp.asarray(list(itertools.product([False, True], repeat=len(b_O)))[1:])
    points = jax.vmap(_stationary, (None, None, None, 0))(gram_OO, b_O, s, sets)
    candidates = jnp.concatenate(points)
    inside = jnp.all(candidates >= 0, axis=-1) & jnp.all(jnp.isfinite(candidates), axis=-1)
    candidates = jnp.where(inside[:, None], candidates, 1.0 / len(b_O))
    values = candidates @ b_O + s * jax.vmap(_length, (None, 0))(gram_OO, candidates)
    return candidates[jnp.argmin(values)]


def _stationary(
    gram_OO: jax.Array, b_O: jax.Array, s: jax.Array, member_O: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of one set of objectives: where the derivatives are equal, and the shortest gradient.

    Those that are not members have 0 in both: their rows of the system are those of the identity.
    """
    member_OO = member_O[:, None] & member_O[None, :]
    inner_OO = jnp.where(member_OO, gram_OO, 0.0) + jnp.diag(jnp.where(member_O, _RIDGE, 1.0))
    right = jnp.where(member_O[:, None], jnp.stack([jnp.ones_like(b_O), b_O], -1), 0.0)
    ones_O, at_b_O = _solve(inner_OO, right).T
    a, e, f = ones_O.sum(), at_b_O.sum(), at_b_O @ b_O
    root = jnp.sqrt(jnp.maximum(e * e - a * (f - s * s), 0.0))
    level = (e + root) / a
    p_O = level * ones_O - at_b_O
    sums_to = jnp.where(root > 0, p_O.sum(), jnp.nan)
    return p_O / sums_to, ones_O / a


def _solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """inv(matrix) @ right by elimination; a positive definite matrix needs no pivoting.

    Written out because matrices are small and, in stacked runs, many: on CPUs LAPACK would be
    called for each of them.
    """
    count = len(matrix)
    rows = jnp.concatenate([matrix, right], axis=1)
    for i in range(count):
        own = rows[i] / rows[i, i]
        rows = (rows - jnp.outer(rows[:, i], own)).at[i].set(own)
    return rows[:, count:]


def _scaled(gram_OO: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The inner products as of gradients whose mean square is 1, and what they were divided by."""
    scale = jnp.trace(gram_OO) / len(gram_OO)
    scale = jnp.where(scale > 0, scale, 1.0)
    return gram_OO / scale, scale


def _length(gram_OO: jax.Array, p_O: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum(p_O @ gram_OO @ p_O, 0.0))


def _least_cosine(gram_OO: jax.Array) -> jax.Array:
    """Between any two gradients; 0 where one of them is 0."""
    length_O = jnp.sqrt(jnp.diagonal(gram_OO))
    product_OO = length_O[:, None] * length_O[None, :]
    return jnp.min(
        jnp.where(product_OO > 0, gram_OO / jnp.where(product_OO > 0, product_OO, 1.0), 0.0)
    )
