"""Tiles of pictures -> the embeddings that stand in place of their tokens: tower and connector.

A tower is a vision transformer whose patches all see each other (SigLIP, CLIP), or those of a
window (`tower_windows.py`); a connector makes of its patches what the decoder takes.  Both are
described by `VisionSpec`, and their parameters by the lines below `vision` and `connector` in
parameters.py.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxpref.models import layers, tower_windows
from jaxpref.models.blocks import PRODUCT
from jaxpref.models.lora import LoraSpec, adapted
from jaxpref.models.parameters import LORA, model_leaves, nest
from jaxpref.models.spec import ModelSpec, VisionSpec
from jaxpref.models.tower_leaves import TOWER_PARTS
from jaxpref.sharding import constrain
from jaxpref.types import Pictures

_LOGITS_PER_ROW = 2**24
"""Attention logits that are in memory at a time, at most, per row."""


class Weights(NamedTuple):
    """Parameters of a part, and the adapter on them, that products are taken with."""

    params: Mapping[str, Any]
    adapter: Mapping[str, Any]
    """Empty: none."""
    key: jax.Array | None
    """Of the adapter's dropout; None: no dropout."""

    def part(self, name: str) -> "Weights":
        return Weights(self.params[name], self.adapter.get(name, {}), self.key)


def init(key: jax.Array, spec: ModelSpec, weight_init) -> dict[str, Any]:
    """Random parameters of tower and connector.

    Biases are 0 and norms do nothing yet: their scales are 1, or 0 where 1 is added (the
    connector's).
    """
    leaves = {p: leaf for p, leaf in model_leaves(spec).items() if p.startswith(TOWER_PARTS)}
    zeros = ("bias", "connector/norm/scale") if _vision(spec).connector == "pool" else ("bias",)
    flat = {}
    for number, (path, leaf) in enumerate(leaves.items()):
        shape = leaf.shape(spec)
        if leaf.decay:
            flat[path] = weight_init(jax.random.fold_in(key, number), shape)
        elif path.endswith(zeros):
            flat[path] = jnp.zeros(shape)
        else:
            flat[path] = jnp.ones(shape)
    return nest(flat)


def patch_features(
    spec: ModelSpec,
    params: Mapping[str, Any],
    pictures: Pictures,
    *,
    dtype: Any,
    lora: LoraSpec | None = None,
    key: jax.Array | None = None,
    checkpoint: Any = None,
) -> jax.Array:
    """[R, p, a, d] what the tower makes of every patch of a row's tiles, in the compute dtype.

    Args:
        params: of the whole model, with its adapter.
        lora: what the adapter is.
        key: of its dropout; None: no dropout.
        checkpoint: what the tower's layers are wrapped in; None: nothing.
    """
    vision, weights = _vision(spec), _part("vision", params, key)
    patch_Rpakoc = _patches(vision, pictures.pixels_Rpijc).astype(dtype)
    walk = None
    if vision.windows is not None:
        assert pictures.places is not None, "of a model that reads pictures of any shape"
        walk = tower_windows.walk(vision, pictures.places)
    return _tower(vision, weights, lora, patch_Rpakoc, walk, checkpoint)


def embeddings(
    spec: ModelSpec,
    params: Mapping[str, Any],
    x_Rpad: jax.Array,
    *,
    lora: LoraSpec | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """[R, x, D] what the connector makes of the patches: the row's embeddings, tile by tile.

    Args: as of `patch_features`.
    """
    x_RpeD = _connector(spec, _part("connector", params, key), lora, x_Rpad)
    rows, tiles, count, width = x_RpeD.shape
    return constrain(x_RpeD.reshape(rows, tiles * count, width), "rows", None, None)


def _vision(spec: ModelSpec) -> VisionSpec:
    assert spec.vision is not None, "a text model sees no pictures"
    return spec.vision


def _part(name: str, params: Mapping[str, Any], key: jax.Array | None) -> Weights:
    return Weights(params[name], params.get(LORA, {}).get(name, {}), key)


def _patches(vision: VisionSpec, pixels_Rpijc: jax.Array) -> jax.Array:
    """[R, p, a, k, o, c] normalised pixels of the patches, row by row, float32."""
    mean_c, std_c = np.asarray(vision.mean, np.float32), np.asarray(vision.std, np.float32)
    broadcast = (None,) * (pixels_Rpijc.ndim - 1)
    x_Rpijc = pixels_Rpijc.astype(jnp.float32) / 255.0
    x_Rpijc = (x_Rpijc - mean_c[broadcast]) / std_c[broadcast]
    side, size = vision.image_size // vision.patch_size, vision.patch_size
    rows, tiles, _, _, colours = x_Rpijc.shape
    used = x_Rpijc[:, :, : side * size, : side * size]  # what no whole patch covers is not seen
    split = used.reshape(rows, tiles, side, size, side, size, colours).swapaxes(3, 4)
    return split.reshape(rows, tiles, side * side, size, size, colours)


def _tower(vision: VisionSpec, tower: Weights, lora, patch_Rpakoc, walk, checkpoint) -> jax.Array:
    """[R, p, a, d] what the tower makes of the patches, without the class token."""
    x_Rpad = _embed(vision, tower.part("embed"), lora, patch_Rpakoc)
    if vision.class_token:
        x_Rpad = _norm(vision, tower.params["first_norm"], x_Rpad)

    def layer(x_Rpad, of_layer):
        params, adapter, key, whole = of_layer
        attend = _attention if walk is None else partial(tower_windows.attend, walk, whole)
        return _layer(vision, Weights(params, adapter, key), lora, x_Rpad, attend), None

    stacks = tower.part("layers")
    run = vision.layers if vision.layers_run is None else vision.layers_run
    keys = None if tower.key is None else jax.random.split(tower.key, vision.layers)
    of_layers = stacks.params, stacks.adapter, keys, tower_windows.is_whole(vision)
    used = jax.tree.map(lambda x: x[:run], of_layers)
    x_Rpad, _ = lax.scan(layer if checkpoint is None else checkpoint(layer), x_Rpad, used)
    if "final_norm" in tower.params and vision.layers_run is None:
        x_Rpad = _norm(vision, tower.params["final_norm"], x_Rpad)
    return x_Rpad[:, :, 1:] if vision.class_token else x_Rpad


def _embed(vision: VisionSpec, embed: Weights, lora, patch_Rpakoc) -> jax.Array:
    """[R, p, a, d] patches before the first layer, with a class token where there is one."""
    product = partial(_product, lora, "vision/embed")
    if vision.frames is not None:
        shape = (*patch_Rpakoc.shape[:3], vision.frames, *patch_Rpakoc.shape[3:])
        patch_Rpaykoc = jnp.broadcast_to(patch_Rpakoc[:, :, :, None], shape)
        return product(embed, "patch", "Rpaykoc,cykod->Rpad", patch_Rpaykoc)
    bias = not vision.class_token
    x_Rpad = product(embed, "patch", "Rpakoc,ckod->Rpad", patch_Rpakoc, bias=bias)
    dtype, position_ad = x_Rpad.dtype, embed.params["position"].astype(x_Rpad.dtype)
    if vision.class_token:
        shape = (*x_Rpad.shape[:2], 1, x_Rpad.shape[3])
        class_Rp1d = jnp.broadcast_to(embed.params["class"].astype(dtype)[None, None, None], shape)
        x_Rpad = jnp.concatenate([class_Rp1d, x_Rpad], axis=2)
    return x_Rpad + position_ad[None, None]


def _layer(vision: VisionSpec, weights: Weights, lora, x_Rpad, attend) -> jax.Array:
    """Args: attend: (queries, keys, values) -> what the patches' attention gives."""
    attention, mlp = weights.part("attention"), weights.part("mlp")
    product = partial(_product, lora, "vision/layers/attention")
    normed_Rpad = _norm(vision, weights.params["attention_norm"], x_Rpad)
    q, k, v = (
        product(attention, name, "Rpad,dqr->Rpaqr", normed_Rpad, bias=True) for name in "qkv"
    )
    out_Rpaqr = attend(q, k, v)
    x_Rpad = x_Rpad + product(attention, "o", "Rpaqr,qrd->Rpad", out_Rpaqr, bias=True)
    product = partial(_product, lora, "vision/layers/mlp")
    normed_Rpad = _norm(vision, weights.params["mlp_norm"], x_Rpad)
    up_Rpaf = product(mlp, "up", "Rpad,df->Rpaf", normed_Rpad, bias=True)
    if vision.gated:
        gate_Rpaf = product(mlp, "gate", "Rpad,df->Rpaf", normed_Rpad, bias=True)
        hidden_Rpaf = layers.activate(gate_Rpaf, vision.activation) * up_Rpaf
    else:
        hidden_Rpaf = layers.activate(up_Rpaf, vision.activation)
    x_Rpad = x_Rpad + product(mlp, "down", "Rpaf,fd->Rpad", hidden_Rpaf, bias=True)
    return constrain(x_Rpad, "rows", None, None, None)


def _attention(q_Rpaqr, k_Rpaqr, v_Rpaqr) -> jax.Array:
    """Every patch sees every patch of its tile; some queries at a time, so that logits fit."""
    rows, tiles, patches, heads, head_dim = q_Rpaqr.shape
    chunk = min(patches, max(1, _LOGITS_PER_ROW // (tiles * heads * patches)))
    count = -(-patches // chunk)

    @jax.checkpoint
    def attend(q_Rpbqr):
        logits = jnp.einsum(
            "Rpbqr,Rpaqr->Rpqba", q_Rpbqr, k_Rpaqr, preferred_element_type=jnp.float32
        )
        weight_Rpqba = jax.nn.softmax(logits * head_dim**-0.5).astype(q_Rpbqr.dtype)
        return jnp.einsum("Rpqba,Rpaqr->Rpbqr", weight_Rpqba, v_Rpaqr)

    if count == 1:
        return attend(q_Rpaqr)
    padding = [(0, 0)] * 5
    padding[2] = (0, count * chunk - patches)
    parts = jnp.pad(q_Rpaqr, padding).reshape(rows, tiles, count, chunk, heads, head_dim)
    out = jnp.moveaxis(lax.map(attend, jnp.moveaxis(parts, 2, 0)), 0, 2)
    return out.reshape(rows, tiles, count * chunk, heads, head_dim)[:, :, :patches]


def _connector(spec: ModelSpec, weights: Weights, lora, x_Rpad) -> jax.Array:
    """[R, p, e, D]."""
    params, adapter = jax.tree.map(lambda x: x[0], (weights.params, weights.adapter))
    weights = Weights(params, adapter, weights.key)  # its one layer
    vision, product = _vision(spec), partial(_product, lora, "connector")
    if vision.connector in ("mlp", "merge"):
        return _two_maps(vision, weights, product, x_Rpad)
    if vision.connector == "shuffle":
        x_Rpew = _squares(vision, x_Rpad)
        x_Rpew = x_Rpew.reshape(*x_Rpew.shape[:3], -1)
    else:
        pooled_Rped = _squares(vision, x_Rpad).astype(jnp.float32).mean(axis=3)
        scale_d = 1.0 + weights.params["norm"]["scale"].astype(jnp.float32)
        x_Rpew = layers.rms_norm(pooled_Rped.astype(x_Rpad.dtype), scale_d, vision.norm_eps)
    return product(weights, "project", "Rpew,wD->RpeD", x_Rpew)


def _two_maps(vision: VisionSpec, weights: Weights, product, x_Rpad) -> jax.Array:
    """[R, p, e, D] of every patch, or of all patches of a tile together."""
    if vision.connector == "mlp":
        up_Rpeu = product(weights, "up", "Rpad,du->Rpau", x_Rpad, bias=True)
    else:
        x_Rpad = layers.rms_norm(x_Rpad, weights.params["norm"]["scale"], vision.norm_eps)
        up_Rpeu = product(weights, "merge", "Rpad,adu->Rpu", x_Rpad, bias=True)[:, :, None]
    hidden_Rpeu = layers.activate(up_Rpeu, "gelu")
    return product(weights, "down", "Rpeu,uD->RpeD", hidden_Rpeu, bias=True)


def _squares(vision: VisionSpec, x_Rpad) -> jax.Array:
    """[R, p, e, square², d] patches by the square that they lie in, row by row."""
    rows, tiles, _, width = x_Rpad.shape
    square, side = vision.square, vision.image_size // vision.patch_size
    part = side // square
    split = x_Rpad.reshape(rows, tiles, part, square, part, square, width).swapaxes(3, 4)
    return split.reshape(rows, tiles, part * part, square * square, width)


def _norm(vision: VisionSpec, params: Mapping[str, Any], x_Rpad) -> jax.Array:
    if vision.norm == "rms":
        return layers.rms_norm(x_Rpad, params["scale"], vision.norm_eps)
    return layers.layer_norm(x_Rpad, params["scale"], params["bias"], vision.norm_eps)


def _product(
    lora: LoraSpec | None,
    path: str,
    weights: Weights,
    name: str,
    equation: str,
    x: jax.Array,
    *,
    bias: bool = False,
) -> jax.Array:
    """x times the parameter `name` at a path and its adapter, if any, plus `<name>_bias`."""
    w = weights.params[name]
    if name in weights.adapter:
        assert lora is not None
        key = weights.key
        if key is not None:  # another draw for every weight of a layer
            key = jax.random.fold_in(key, lora.targets.index(f"{path}/{name}"))
        y = adapted(equation, x, w, weights.adapter[name], lora.on(f"{path}/{name}"), key)
    else:
        y = layers.product(equation, x, w)
    if bias:
        b = weights.params[f"{name}_bias"].astype(jnp.float32)
        y = y + b[(None,) * (y.ndim - b.ndim)]
    return checkpoint_name(y.astype(x.dtype), PRODUCT)
