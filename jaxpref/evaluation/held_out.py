"""Metrics of a policy on held-out groups, as training logs them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.data.memory import Given
from jaxpref.runs.build import Pieces, build
from jaxpref.runs.cached_reference import with_reference_logps
from jaxpref.runs.directory import load_run, open_run
from jaxpref.runs.feed import batches, make_loader, own_steps, read_held_out, with_given
from jaxpref.sharding import place_numbers, replicated
from jaxpref.step.batch_loss import LossSpec, finish_metrics
from jaxpref.step.train_step import make_eval_step
from jaxpref.types import EncodedGroup


class Evaluator:
    """Plans the evaluation data and compiles its step once, at the first call.

    Args:
        make_step: (loss specification, numbers) -> the step; stacked training evaluates several
            policies at once.
        numbers: what `make_step` takes, traced; None: those of the objective's parts.
        name: of the set of held-out data, where there are several.
    """

    def __init__(
        self,
        pieces: Pieces,
        groups: Sequence[EncodedGroup],
        kind: str,
        make_step: Callable | None = None,
        numbers: Any = None,
        name: str = "",
    ):
        self._pieces, self._name = pieces, name
        self._loader = make_loader(pieces, groups, training=False)
        numbers = [part.numbers for part in pieces.parts] if numbers is None else numbers
        self._numbers = place_numbers(numbers, pieces.mesh)
        loss_spec = pieces.loss_spec(self._loader.layout, kind)
        make_step = make_step or _one_policy

        def eval_step(numbers: Any, *arguments: Any) -> dict[str, Any]:
            return make_step(loss_spec, numbers)(*arguments)

        self._step = jax.jit(eval_step, out_shardings=replicated(pieces.mesh))

    def __call__(self, params: Any, ref_params: Any, running: Any) -> dict[str, float]:
        """`eval/...` means over all groups, `eval/NAME/...` of a named set.

        They are those of the objective, its rewards, log-probs, entropy and accuracy.
        """
        mesh, total = self._pieces.mesh, None
        with jax.set_mesh(mesh):
            for _, batch, micro_batches in batches(own_steps(self._loader, mesh), mesh):
                arguments = params, ref_params, running, batch, micro_batches
                sums = self._step(self._numbers, *arguments)
                total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        return as_metrics(jax.device_get(total), self._pieces, self._name)


def _one_policy(loss_spec: LossSpec, numbers: Sequence[Mapping[str, Any]]) -> Callable:
    return make_eval_step(loss_spec.with_numbers(numbers))


def as_metrics(sums: dict[str, Any], pieces: Pieces, of_set: str = "") -> dict[str, float]:
    """The metrics of an evaluation, under the names by which training logs them.

    Args:
        of_set: the name of the held-out set; "": it has none.
    """
    prefix = f"eval/{of_set}/" if of_set else "eval/"
    return {
        f"{prefix}{name}": np.asarray(value, float).tolist()
        for name, value in finish_metrics(sums, pieces.parts).items()
    }


def evaluate_run(
    run: str | Path,
    *,
    step: str | int = "best",
    overrides: Sequence[str] = (),
    objective: Sequence[Any] | Callable | None = None,
    eval: Given = None,
) -> tuple[dict[str, float], int]:
    """Metrics of a run's checkpoint on its held-out data, and the checkpoint's step.

    `data.eval` of the overrides names other data.

    Args:
        eval: as of `train`.
        objective: as given to `train`, when it was.
    """
    pieces = build(load_run(run, overrides, objective), objective)
    pieces = with_given(pieces, None, eval)
    sets = read_held_out(pieces)
    opened = open_run(pieces, run, step)
    metrics: dict[str, float] = {}
    for name, (groups, report) in sets.items():
        groups, _ = with_reference_logps(pieces, groups)
        evaluator = Evaluator(pieces, groups, report.kind, name=name)
        metrics |= evaluator(opened.params, opened.ref_params, opened.running)
    return metrics, opened.step
