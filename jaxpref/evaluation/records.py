"""What is known of every group after one pass over the data: log-probs and values of the loss.

The log-probs are those under policy and reference.  The compiled step gives them replicated, so
every process ends with those of all groups, in the order of the data.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.data.loader import Loader
from jaxpref.models.logprobs import Logps, sums_of_completions
from jaxpref.progress import Watch, unwatched
from jaxpref.runs.feed import batches, own_steps
from jaxpref.sharding import replicated
from jaxpref.step.batch_loss import LossSpec, all_logps, group_values
from jaxpref.step.micro_batches import whole_batch
from jaxpref.types import Batch, EncodedGroup


class Records(NamedTuple):
    """Values of every group: arrays on the device in the step, on the host (float64) afterwards."""

    row_id: Any
    """[B] int; -1 in a slot without a group; `gather` drops those slots."""
    policy: Logps
    """[B, K]; 0 where a group has fewer completions."""
    ref: Logps | None
    k3: Any
    """[B, K] sum over a completion's tokens of exp(-r) - 1 + r, r the token's log-ratio to the
    reference (nats); None where the reference is cached, for then only sums are known."""
    values: Any
    """The terms of which loss and metrics are sums: `batch_loss.group_values`."""


def make_record_step(
    loss_spec: LossSpec,
) -> Callable[[Any, Any, Any, Batch, jax.Array], tuple[dict[str, Any], Records]]:
    """As `train_step.make_eval_step`, with the values of every group beside the sums."""

    def record_step(params, ref_params, running, batch: Batch, micro_batches: jax.Array):
        logps, ref = all_logps(loss_spec, params, ref_params, batch, micro_batches)
        batch, k3 = whole_batch(batch), None
        if ref is not None and ref.tokens is not None:
            r_RS = logps.tokens - ref.tokens
            k3 = sums_of_completions(jnp.expm1(-r_RS) + r_RS, batch)
            ref = ref._replace(tokens=None)
        values, _ = group_values(loss_spec, logps, ref, batch, running)
        records = Records(batch.row_id_RG.reshape(-1), logps._replace(tokens=None), ref, k3, values)
        return jax.tree.map(jnp.sum, values), records

    return record_step


def gather(
    loss_spec: LossSpec,
    loader: Loader,
    mesh: Any,
    params: Any,
    ref_params: Any,
    running: Any,
    watch: Watch = unwatched,
) -> tuple[dict[str, Any], Records]:
    """One pass over the loader's groups.

    Args:
        watch: told of every batch.
    Returns: the sums that `batch_loss.finish_metrics` takes; the records in the groups' order.
    """
    step = jax.jit(make_record_step(loss_spec), out_shardings=replicated(mesh))
    total, parts = None, []
    with jax.set_mesh(mesh):
        for _, batch, micro_batches in batches(own_steps(loader, mesh), mesh):
            sums, records = step(params, ref_params, running, batch, micro_batches)
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
            parts.append(jax.device_get(records))
            watch("batch of held-out data", len(parts), loader.plan.steps)
    return jax.device_get(total), _in_order(parts, loader.groups)


def _in_order(parts: Sequence[Records], groups: Sequence[EncodedGroup]) -> Records:
    """Those of all steps as one, without empty slots, in the order of the groups."""
    whole = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    index = {int(row): i for i, row in enumerate(whole.row_id) if row >= 0}
    order_B = np.array([index[group.row_id] for group in groups])
    picked = jax.tree.map(lambda x: x[order_B].astype(np.float64), whole)
    return picked._replace(row_id=whole.row_id[order_B])
