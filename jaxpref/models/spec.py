"""What a decoder is, whichever family it comes from: the numbers that it is built from."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Llama3Rope:
    """Llama 3.1's frequency rescaling (Hugging Face `rope_type: llama3`); lengths in tokens."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


@dataclass(frozen=True)
class LinearRope:
    """Positions divided by `factor` (Hugging Face `rope_type: linear`).

    In Gemma 3 on global layers only.
    """

    factor: float


@dataclass(frozen=True)
class LongRope:
    """LongRoPE: every frequency has a divisor (Hugging Face `rope_type: longrope`).

    Sequences up to `original_length` tokens use the short divisors; beyond it a model would need
    the long ones.  Source: Ding et al., arXiv 2402.13753.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_length: int
    attention_factor: float | None
    """Multiplies cos and sin.

    None: sqrt(1 + ln(max_positions / original_length) / ln(original_length)).
    """


@dataclass(frozen=True)
class YarnRope:
    """YaRN (Hugging Face `rope_type: yarn`): rare rotations are slowed down by `factor`.

    Within `original_length` tokens, frequencies of more than `beta_fast` turns stay as they are,
    those of less than `beta_slow` are divided by `factor`, and those between are blended.
    Source: Peng et al., arXiv 2309.00071.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """The blended band is widened to whole frequencies."""
    attention_factor: float | None = None
    """Multiplies cos and sin; None: `yarn_amplitude(factor)`."""


def yarn_amplitude(factor: float, weight: float = 1.0) -> float:
    """1 + 0.1 weight ln(factor), eq. 22 of the paper on YaRN; 1 where nothing is stretched."""
    return 1.0 + 0.1 * weight * math.log(factor) if factor > 1 else 1.0


@dataclass(frozen=True)
class DynamicRope:
    """Rescaling by the length of the longest sequence (Hugging Face `rope_type: dynamic`).

    Up to `max_positions` tokens it is plain RoPE.  Beyond, the frequencies of every sequence depend
    on the longest one of its batch, so that no sequence has log-probs of its own: those lengths are
    refused (`ModelSpec.longest_sequence`).
    """

    factor: float


RopeScaling = Llama3Rope | LinearRope | LongRope | YarnRope | DynamicRope


@dataclass(frozen=True)
class ClampedSwiglu:
    """gate sigmoid(alpha gate) (up + 1): gate at most `limit`, up within `limit` of 0 (gpt-oss)."""

    alpha: float
    limit: float


@dataclass(frozen=True)
class DeltaNet:
    """Sizes of the layers that are Gated DeltaNet (`deltanet.py`)."""

    key_heads: int
    """Of queries and keys."""
    value_heads: int
    """Each with a state of its own; several in succession share the queries and keys of a head."""
    key_size: int
    value_size: int
    taps: int
    """Of the short convolution: a token is mixed with the taps - 1 before it."""


@dataclass(frozen=True)
class Windows:
    """How a tower reads pictures of any shape (Qwen2.5-VL).

    A tile is the square of patches of which one embedding is made, and a picture has as many as it
    needs.  Patches see those of their window, in some layers all of their picture, and are rotated
    by row and column in place of learned positions.
    """

    side: int
    """Tiles along a side of a window."""
    whole_layers: tuple[int, ...]
    """Layers in which patches see all of their picture."""
    rope_theta: float


@dataclass(frozen=True)
class VisionSpec:
    """Sizes and constants of the tower and the connector that make embeddings of pictures."""

    image_size: int
    """Pixels of a tile's side."""
    patch_size: int
    """Pixels of a patch's side."""
    width: int
    ffn: int
    layers: int
    heads: int
    norm_eps: float
    activation: Literal["gelu_tanh", "gelu", "quick_gelu", "silu"]
    connector: Literal["shuffle", "mlp", "pool", "merge"]
    """`shuffle`: patches of a square side by side, then a linear map (Idefics3).  `mlp`: two linear
    maps with an activation between them (LLaVA).  `pool`: the mean over a square, a norm and a
    linear map (Gemma 3).  `merge`: a norm, then as `mlp`, but of all patches of a tile
    together (Qwen2.5-VL)."""
    tile_embeddings: int
    """That the decoder gets of a tile."""
    token_id: int
    """Of the tokens in whose place they stand."""
    mean: tuple[float, float, float]
    """Of each colour, taken from pixels between 0 and 1, which are then divided by `std`."""
    std: tuple[float, float, float]
    mutual: bool = False
    """Whether the tokens of a tile see each other, the later ones too (Gemma 3)."""
    around_ids: tuple[int, ...] = ()
    """Of the tokens before and after a picture's, where the config says them; read by no part of
    the model."""
    layers_run: int | None = None
    """Layers whose output is used; None: all, and the norm behind them."""
    class_token: bool = False
    """CLIP's: before the patches, and none of the decoder's embeddings; a norm comes before the
    first layer, and the patches' product has no bias."""
    norm: Literal["layer", "rms"] = "layer"
    gated: bool = False
    """As of `ModelSpec`."""
    frames: int | None = None
    """Of a video, of which a patch's product is taken; a picture stands in each.  None: of a
    picture alone."""
    windows: Windows | None = None
    """None: the patches of a tile see each other, and have learned positions."""

    @property
    def window(self) -> int:
        """Tiles along a window's side, of a tower that reads pictures of any shape; else 0."""
        return self.windows.side if self.windows else 0

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def patches(self) -> int:
        """Of a tile."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def square(self) -> int:
        """Patches along a side of the square of which an embedding is made."""
        return math.isqrt(self.patches // self.tile_embeddings)


Mixer = Literal["attention", "delta"]
"""What mixes the tokens of a layer: a group of the parameter tree that only such layers have."""


@dataclass(frozen=True)
class LayerKind:
    """How one layer of a decoder differs from the others."""

    window: int | None = None
    """Tokens: a key is visible iff position[query] - position[key] < window."""
    rope: Literal["global", "local"] | None = "global"
    """`local`: rotated by `rope_local_theta`, without rescaling; None: not rotated."""
    mixer: Mixer = "attention"
    """`delta`: Gated DeltaNet, without rotation and window."""


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and constants of a decoder.  The defaults are Llama's.

    The parameters that such a decoder has are in `jaxpref.models.parameters.LEAVES`.
    """

    family: str
    vocab: int
    width: int
    ffn: int
    """Of one expert, in a mixture."""
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    rope_theta: float
    norm_eps: float
    tied: bool
    rope_scaling: RopeScaling | None = None
    """Of the global rotation."""
    activation: Literal["silu", "gelu_tanh", "gelu"] | ClampedSwiglu = "silu"
    gated: bool = True
    """down(activation(gate x) * up x); otherwise down(activation(up x))."""
    norm: Literal["rms", "rms_plus_one", "layer"] = "rms"
    """`rms_plus_one` multiplies by 1 + scale; `layer` is LayerNorm."""
    norm_at: Literal["pre", "post", "both"] = "pre"
    """x + f(norm(x)), x + norm(f(x)), or x + norm(f(norm(x)))."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["head", "whole"] | None = None
    """RMS norm of queries and keys before rotation: over each head, or over all heads together."""
    attention_sinks: bool = False
    """One more attention logit per head, of no key and without a value."""
    attention_gate: bool = False
    """What a head's attention gives is multiplied by sigmoid(gate x)."""
    attention_softcap: float | None = None
    """Attention logits become cap * tanh(logit / cap), before the mask."""
    logit_softcap: float | None = None
    """Logits over the vocabulary become cap * tanh(logit / cap)."""
    logit_divisor: float | None = None
    """Divides the logits over the vocabulary."""
    attention_scale: float | None = None
    """Multiplies the attention logits; None: 1 / sqrt(head_dim)."""
    embed_scale: float | None = None
    """Multiplies the embedding."""
    residual_scale: float | None = None
    """Multiplies what attention and MLP add to the residual stream."""
    learned_positions: bool = False
    """One vector per position is added to the embedding, in place of rotation."""
    rope_local_theta: float | None = None
    rope_sections: tuple[int, int, int] | None = None
    """Of the frequencies, how many rotate by time, by row and by column of a token that stands for
    a part of a picture (M-RoPE).  None: all by the position alone, as all do in a text."""
    partial_rotary: float = 1.0
    """Part of each head, from its front, that is rotated."""
    kinds: tuple[LayerKind, ...] = ()
    """One per layer; empty: all plain."""
    experts: int = 0
    """Per layer; 0: one MLP in each."""
    experts_per_token: int = 0
    norm_topk: bool = True
    """The chosen experts' probabilities are divided by their sum."""
    expert_bias: bool = False
    """Of router and experts."""
    delta: DeltaNet | None = None
    """Of the layers whose `LayerKind.mixer` says so."""
    vision: VisionSpec | None = None
    """Of a model that sees pictures; None: text only."""

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """One per layer."""
        return tuple(kind.mixer for kind in self.kinds or (LayerKind(),) * self.layers)

    @property
    def longest_sequence(self) -> int:
        """Most tokens of a prompt and a completion together: the model has no further positions."""
        rope = self.rope_scaling
        if isinstance(rope, LongRope):  # the short divisors reach no further
            return min(self.max_positions, rope.original_length)
        if isinstance(rope, YarnRope):  # also where it was added to a config that is else unchanged
            return max(self.max_positions, int(rope.factor * rope.original_length))
        return self.max_positions
