"""The first loss, held against what it must be where policy and reference start as one model.

There an objective's value follows from the data (`objectives/equality.py`).  A first loss of 6 ln 2
in place of ln 2 says that packing, masks, dtypes or denominators are wrong, before any checkpoint.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxpref.data.pack import loss_tokens_of
from jaxpref.errors import RunError
from jaxpref.objectives import Part
from jaxpref.objectives.equality import Span, span_at_equality
from jaxpref.runs.adapters import reference_adapter
from jaxpref.runs.build import Pieces
from jaxpref.step.batch_loss import init_running
from jaxpref.types import EncodedGroup

TOGETHER = 1e-3
APART = {"float32": 2e-2, "bfloat16": 0.15}
"""Nats by which the log-ratio of one token may differ from 0; of n tokens, sqrt(n) times that.

Run in one program on a CPU, policy and reference are equal to the bit in every dtype.  Cached
log-probs and stacked adapters are computed in arrays of other shapes, DoRA scales what it leaves as
it is, and on TPUs and GPUs each of two models may be rounded in its own way.  Between three layouts
of the same rows, 16 log-probs of 56 to 262 tokens under SmolLM2-135M differed by up to 1.7e-5 in
float32 and 0.126 in bfloat16, divided by sqrt(n), on a CPU; float32 has room for tf32.
"""

Check = Callable[[Mapping[str, Any]], None]
"""Given the metrics of the first step.  Errors: FirstLossError."""


class FirstLossError(RunError):
    """Policy and reference are the same model, and the loss is not what it then is."""


def first_loss_check(
    pieces: Pieces,
    groups: Callable[[], Sequence[EncodedGroup]],
    points: Sequence[Sequence[Part]],
) -> Check | None:
    """What to do with the metrics of a new run's first step; None: nothing is known of its loss.

    Args:
        groups: gives those of the first step, once it was taken.
        points: the parts of the objective, of each policy that is trained together.
    """
    if not starts_as_reference(pieces):
        return None

    def check(metrics: Mapping[str, Any]) -> None:
        rounding = _rounding(pieces, stacked=len(points) > 1)
        for each in (False, True):  # the wider span takes longer, and few losses need it
            spans = _spans(groups(), points, rounding, each)
            outside = next(_outside(metrics, points[0], spans), None)
            if outside is None:
                return
        raise FirstLossError(_said(*outside))

    return check


def _outside(
    metrics: Mapping[str, Any], parts: Sequence[Part], spans: Mapping[str, Sequence[Span | None]]
) -> Iterator[tuple[str, float, Part, Span]]:
    """(metric, its value, part, where it must lie) of what lies elsewhere."""
    for part in parts:
        name = "loss" if len(parts) == 1 else f"loss/{part.name}"
        losses = np.atleast_1d(metrics[name])
        for loss, span in zip(losses, spans[part.name], strict=True):
            if span is not None and not span.low <= loss <= span.high:
                yield name, float(loss), part, span


def _spans(
    groups: Sequence[EncodedGroup], points: Sequence[Sequence[Part]], rounding: float, each: bool
) -> dict[str, list[Span | None]]:
    """Part -> where its loss must lie, for each of several policies.

    Args: as of `span_at_equality`.
    """
    count_BK, columns = _arrays(groups)
    spans: dict[str, list[Span | None]] = {}
    for parts in points:
        running = init_running(parts)
        for part in parts:
            own = {"running": running[part.name]} if part.name in running else {}
            span = span_at_equality(part, count_BK, columns | own, rounding, each=each)
            spans.setdefault(part.name, []).append(_of_metric(span, part, parts))
    return spans


def starts_as_reference(pieces: Pieces) -> bool:
    """Whether the policy from which training starts is the reference."""
    if not pieces.needs_reference:
        return False
    config, adapter = pieces.config, pieces.config.adapter
    if config.reference.path is not None:
        return config.reference.path == config.model.path and not adapter.trained
    if config.train.neftune_alpha is not None:
        return False
    # A new adapter adds nothing yet, whatever is dropped of its inputs.
    drops = adapter.path is not None and pieces.lora.dropout > 0
    return reference_adapter(config) == adapter.path and not drops


def _rounding(pieces: Pieces, stacked: bool) -> float:
    config = pieces.config
    on_cpu = pieces.mesh.devices.flat[0].platform == "cpu"
    scaled = pieces.lora is not None and pieces.lora.dora
    if on_cpu and config.reference.mode == "copy" and not stacked and not scaled:
        return TOGETHER
    return APART[config.model.compute_dtype]


def _of_metric(span: Span | None, part: Part, parts: Sequence[Part]) -> Span | None:
    """A sum's parts are logged without their weights, an only part with it."""
    if span is None or len(parts) > 1:
        return span
    return Span(*(part.weight * x for x in span))


def _arrays(groups: Sequence[EncodedGroup]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(loss tokens [B, K], data columns [B] or [B, K, ...]) of groups as they are: unpacked."""
    K = max(len(group.completion_ids) for group in groups)

    def stacked(of_groups: Iterable[Any]) -> np.ndarray:
        return np.stack([padded(np.asarray(x, np.float32)) for x in of_groups])

    def padded(x: np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, K - len(x)), *[(0, 0)] * (x.ndim - 1)]) if x.ndim else x

    columns = {name: stacked(g.columns[name] for g in groups) for name in groups[0].columns}
    return stacked(map(loss_tokens_of, groups)), columns


def _said(name: str, loss: float, part: Part, span: Span) -> str:
    return (
        f"step 1: {name}={loss:.6g}, but policy and reference are the same model before it, for "
        f"which {part.name} gives {span.value:.6g} on these rows ({span.low:.6g} to "
        f"{span.high:.6g} with rounding). So packing, masks, dtypes or denominators "
        "are wrong, and nothing was saved. With reference.mode=cache, try an empty "
        "reference.cache_dir. With an objective of your own: where a group's loss depends on the "
        "other groups, it must say needs(coupled=True). Anything else is a fault of jaxpref."
    )
