"""What a step costs, in model FLOPs, and what the devices could do."""

from collections.abc import Sequence

import jax

from jaxpref.data.loader import Step, visible_pairs
from jaxpref.data.pack import loss_tokens_of, row_tokens
from jaxpref.data.pictures.layout import tile_pairs_of, tiles_of
from jaxpref.models.own import OwnSpec
from jaxpref.models.spec import DeltaNet, ModelSpec, VisionSpec
from jaxpref.types import EncodedGroup

PEAK_FLOPS = {
    "TPU v2": 46e12 / 2,  # a chip is two devices
    "TPU v3": 123e12 / 2,
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
    spec: ModelSpec | OwnSpec,
    step: Step,
    *,
    reference: bool,
    frozen: bool = False,
    policies: int = 1,
    backward: int = 1,
    tower: str = "trained",
) -> float:
    """Model FLOPs of a step, of real tokens only: padding and recomputation (remat) do not count.

    2 per multiply-add; the backward pass is twice the forward, once where weights are frozen (an
    adapter's own products are not counted).  A shared prompt counts once, it runs once; the
    vocabulary is multiplied at loss tokens only; attention counts visible (query, key) pairs, Gated
    DeltaNet its recurrence; a mixture's token runs through the experts chosen for it.

    Args:
        reference: a reference model runs beside the policy.
        frozen: the weights are frozen, and an adapter is trained.
        policies: trained at once on the same reference.
        backward: passes back through one forward pass, of objectives whose gradients are combined.
        tower: what becomes of the tower that sees pictures: `trained`; `adapted`; `frozen`, then it
            runs once for all.
    """
    weights, pairs = _multiply_adds(spec, step.tokens, step.loss_tokens, step.visible)
    passes = 1 + backward * (1 if frozen else 2)
    flops = policies * (2.0 * weights * passes + 2.0 * pairs * (1 + 2 * backward))
    if reference:
        flops += 2.0 * (weights + pairs)
    if step.tiles and isinstance(spec, ModelSpec) and spec.vision is not None:
        of_tower, of_connector = tile_multiply_adds(spec.vision, spec.width)
        pairs = _pair_multiply_adds(spec.vision, step.tile_pairs)
        runs = policies * (1 + backward * {"trained": 2, "adapted": 1, "frozen": 0}[tower])
        runs = 1 if tower == "frozen" else runs + reference
        tower_runs = runs * (step.tiles * of_tower + pairs)
        connector_runs = (policies * passes + reference) * step.tiles * of_connector
        flops += 2.0 * (tower_runs + connector_runs)
    return flops


def tile_multiply_adds(vision: VisionSpec, width: int) -> tuple[int, int]:
    """Of a tile of a picture in the tower, and in the connector.

    Of a tower whose patches see other tiles too, without attention.

    Args:
        width: of the decoder.
    """
    d, tokens = vision.width, vision.patches + vision.class_token
    layers = vision.layers if vision.layers_run is None else vision.layers_run
    weights = vision.patches * 3 * vision.patch_size**2 * d * (vision.frames or 1)
    weights += layers * tokens * (4 * d * d + (3 if vision.gated else 2) * d * vision.ffn)
    attention = 0 if vision.windows else layers * 2 * tokens * tokens * d
    square = vision.square**2 * d
    of_embedding = {
        "shuffle": square * width,
        "pool": d * width,
        "mlp": (d + width) * width,
        "merge": square * (square + width),
    }
    return weights + attention, vision.tile_embeddings * of_embedding[vision.connector]


def _pair_multiply_adds(vision: VisionSpec, tile_pairs: tuple[int, int]) -> int:
    """Of attention between the tiles of windows and of pictures (`layout.tile_pairs_of`)."""
    if vision.windows is None:
        return 0
    whole = len(set(vision.windows.whole_layers))
    pairs = (vision.layers - whole) * tile_pairs[0] + whole * tile_pairs[1]
    return 2 * vision.width * vision.patches**2 * pairs


def forward_flops(
    spec: ModelSpec | OwnSpec, groups: Sequence[EncodedGroup], *, share_prefix: bool
) -> float:
    """Model FLOPs of one forward pass over groups, counted as `step_flops` counts."""
    tokens = sum(row_tokens(group, share_prefix) for group in groups)
    loss_tokens = sum(sum(loss_tokens_of(group)) for group in groups)
    visible = sum(visible_pairs(group, share_prefix) for group in groups)
    flops = 2.0 * sum(_multiply_adds(spec, tokens, loss_tokens, visible))
    tiles = sum(map(tiles_of, groups))
    if tiles and isinstance(spec, ModelSpec) and spec.vision is not None:
        pairs = _pair_multiply_adds(spec.vision, tile_pairs_of(groups, spec.vision.window))
        flops += 2.0 * (tiles * sum(tile_multiply_adds(spec.vision, spec.width)) + pairs)
    return flops


def _multiply_adds(
    spec: ModelSpec | OwnSpec, tokens: int, loss_tokens: int, visible: int
) -> tuple[int, int]:
    """Of a forward pass: with weights, and of queries with keys and values (or with states).

    Args:
        visible: (query, key) pairs that the mask allows.
    """
    if isinstance(spec, OwnSpec):
        return spec.multiplied * tokens + spec.vocab * spec.width * loss_tokens, 0
    query_parts = 2 if spec.attention_gate else 1
    attention = spec.width * spec.head_dim * ((query_parts + 1) * spec.heads + 2 * spec.kv_heads)
    mlp = (3 if spec.gated else 2) * spec.width * spec.ffn * (spec.experts_per_token or 1)
    layers = spec.mixers.count("attention")
    weights = (layers * attention + spec.layers * mlp) * tokens
    weights += spec.vocab * spec.width * loss_tokens
    pairs = layers * 2 * spec.heads * spec.head_dim * visible
    if spec.delta is not None:
        delta_weights, delta_states = _delta_multiply_adds(spec.delta, spec.width)
        weights += (spec.layers - layers) * delta_weights * tokens
        pairs += (spec.layers - layers) * delta_states * tokens
    return weights, pairs


def _delta_multiply_adds(delta: DeltaNet, width: int) -> tuple[int, int]:
    """Of a token in a layer of Gated DeltaNet: with weights, and with states.

    A state is read with the key, changed, and read with the query.
    """
    keys, values = delta.key_heads * delta.key_size, delta.value_heads * delta.value_size
    products = width * (2 * keys + 3 * values + 2 * delta.value_heads)  # q, k; v, z, o; beta, decay
    return products + delta.taps * (2 * keys + values), 3 * delta.key_size * values


def peak_flops() -> float | None:
    """Peak of all devices together; None where it is not known (CPU)."""
    one = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return None if one is None else one * jax.device_count()
