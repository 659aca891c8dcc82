"""What a step costs, in model FLOPs, and what the devices could do."""

from collections.abc import Sequence

import jax

from jaxpref.data.loader import Step, visible_pairs
from jaxpref.data.pack import loss_tokens_of, row_tokens
from jaxpref.models.spec import ModelSpec
from jaxpref.types import EncodedGroup

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12 / 2,  # a chip is two devices
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""Dense bfloat16 peak of one device, FLOP/s, by jax's device_kind (vendors' data sheets)."""


def step_flops(
    spec: ModelSpec, step: Step, *, reference: bool, frozen: bool = False, policies: int = 1
) -> float:
    """Model FLOPs of a step, of real tokens only: padding and recomputation (remat) do not count.

    2 per multiply-add; the backward pass is twice the forward, once where weights are frozen (an
    adapter's own products are not counted).  A shared prompt counts once, it runs once; the
    vocabulary is multiplied at loss tokens only; attention counts visible (query, key) pairs; a
    mixture's token runs through the experts chosen for it.

    Args:
        reference: a reference model runs beside the policy.
        frozen: the weights are frozen, and an adapter is trained.
        policies: trained at once on the same reference.
    """
    weights, pairs = _multiply_adds(spec, step.tokens, step.loss_tokens, step.visible)
    passes = 2 if frozen else 3
    flops = policies * (2.0 * weights * passes + 2.0 * pairs * 3)
    if reference:
        flops += 2.0 * (weights + pairs)
    return flops


def forward_flops(spec: ModelSpec, groups: Sequence[EncodedGroup], *, share_prefix: bool) -> float:
    """Model FLOPs of one forward pass over groups, counted as `step_flops` counts."""
    tokens = sum(row_tokens(group, share_prefix) for group in groups)
    loss_tokens = sum(sum(loss_tokens_of(group)) for group in groups)
    visible = sum(visible_pairs(group, share_prefix) for group in groups)
    return 2.0 * sum(_multiply_adds(spec, tokens, loss_tokens, visible))


def _multiply_adds(spec: ModelSpec, tokens: int, loss_tokens: int, visible: int) -> tuple[int, int]:
    """Of a forward pass: with weights, and of queries with keys and values.

    Args:
        visible: (query, key) pairs that the mask allows.
    """
    attention = 2 * spec.width * spec.head_dim * (spec.heads + spec.kv_heads)
    mlp = (3 if spec.gated else 2) * spec.width * spec.ffn * (spec.experts_per_token or 1)
    weights = spec.layers * (attention + mlp) * tokens + spec.vocab * spec.width * loss_tokens
    return weights, spec.layers * 2 * spec.heads * spec.head_dim * visible


def peak_flops() -> float | None:
    """Peak of all devices together; None where it is not known (CPU)."""
    one = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return None if one is None else one * jax.device_count()
