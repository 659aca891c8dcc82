"""Metrics of a policy on held-out groups."""

from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.build import Pieces, make_loader, owned_rows, put_batch, put_scalar
from jaxpref.step import finish_metrics, make_eval_step
from jaxpref.types import EncodedGroup


class Evaluator:
    """Plans the evaluation data and compiles its step once, at the first call."""

    def __init__(self, pieces: Pieces, groups: list[EncodedGroup]):
        self._pieces = pieces
        self._loader = make_loader(pieces, groups, training=False)
        self._step = jax.jit(
            make_eval_step(pieces.model, pieces.parts, chunk=pieces.config.model.logprob_chunk),
            out_shardings=NamedSharding(pieces.mesh, P()),
        )

    def __call__(self, params: Any, ref_params: Any) -> dict[str, float]:
        """`eval/...` means over all groups: the objective, its rewards, log-probs, entropy, accuracy."""
        mesh, total = self._pieces.mesh, None
        with jax.set_mesh(mesh):
            for item in self._loader.iterate(owned_rows(self._loader, mesh)):
                sums = self._step(params, ref_params, put_batch(item.batch, mesh), put_scalar(item.micro_batches, mesh))
                total = sums if total is None else jax.tree.map(lambda a, b: a + b, total, sums)
        metrics = finish_metrics(jax.device_get(total), self._pieces.parts)
        return {f"eval/{name}": float(value) for name, value in metrics.items()}
