"""What a decoder is, whichever family it comes from: the numbers that the one decoder is built
from."""

from dataclasses import dataclass
from typing import Literal

SCALAR_HEADS = "scalar_heads"
"""Top level of the parameter tree under which linear maps of the hidden state to one number are
kept."""

LORA = "lora"
"""Top level of the parameter tree under which an adapter is kept; its tree mirrors the
parameters'."""


@dataclass(frozen=True)
class Llama3Rope:
    """Llama 3.1's frequency rescaling (Hugging Face `rope_type: llama3`); lengths in tokens."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


@dataclass(frozen=True)
class LinearRope:
    """Positions divided by `factor` (Hugging Face `rope_type: linear`); in Gemma 3 on global layers
    only."""

    factor: float


@dataclass(frozen=True)
class LongRope:
    """LongRoPE (Ding et al., arXiv 2402.13753; Hugging Face `rope_type: longrope`): every frequency
    has a divisor.

    Sequences up to `original_length` tokens use the short divisors; beyond it a model would need
    the long ones.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_length: int
    attention_factor: float | None
    """Multiplies cos and sin; None: sqrt(1 + ln(max_positions / original_length) /
    ln(original_length))."""


RopeScaling = Llama3Rope | LinearRope | LongRope


@dataclass(frozen=True)
class LayerKind:
    """In what the layers of a decoder differ."""

    window: int | None = None
    """Tokens: a key is visible iff position[query] - position[key] < window."""
    rope: Literal["global", "local"] | None = "global"
    """`local`: rotated by `rope_local_theta`, without rescaling; None: not rotated."""


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and constants of a decoder; letters as in `jaxpref.types`.  The defaults are Llama's.

    The parameters form this tree; in brackets, when a leaf is there:

    embed/table [V, D]                    embed/position [P, D] (learned_positions)
    layers/attention_norm/scale [Y, D]    layers/mlp_norm/scale [Y, D] (both unless norm_at is post)
    layers/attention_post_norm/scale, layers/mlp_post_norm/scale [Y, D] (norm_at post, both)
    layers/attention/q [Y, D, N, H]       layers/attention/k, v [Y, D, M, H]    layers/attention/o [Y, N, H, D]
    layers/attention/q_bias [Y, N, H], k_bias, v_bias [Y, M, H] (qkv_bias)      o_bias [Y, D] (o_bias)
    layers/attention/q_norm, k_norm       [Y, H] (qk_norm head), [Y, N, H] and [Y, M, H] (whole)
    layers/mlp/up [Y, D, F]               layers/mlp/down [Y, F, D]             layers/mlp/gate [Y, D, F] (gated)
    layers/mlp/up_bias [Y, F], down_bias [Y, D] (mlp_bias)
    layers/experts/router [Y, D, E], gate, up [Y, E, D, F], down [Y, E, F, D]   (experts: in place of mlp)
    final_norm/scale [D]
    head/kernel [V, D]                    (absent when `tied`: the head is the embedding)

    A norm has a bias beside its scale when `norm` is "layer".
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
    activation: Literal["silu", "gelu_tanh", "gelu"] = "silu"
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
    attention_softcap: float | None = None
    """Scores become cap * tanh(score / cap), before the mask."""
    logit_softcap: float | None = None
    attention_scale: float | None = None
    """Multiplies the scores; None: 1 / sqrt(head_dim)."""
    embed_scale: float | None = None
    learned_positions: bool = False
    """A vector a position is added to the embedding, in place of rotation."""
    rope_local_theta: float | None = None
    partial_rotary: float = 1.0
    """Part of each head, from its front, that is rotated."""
    kinds: tuple[LayerKind, ...] = ()
    """One a layer; empty: all plain."""
    experts: int = 0
    """0: one MLP a layer."""
    experts_per_token: int = 0
    norm_topk: bool = True
    """The chosen experts' probabilities are divided by their sum."""

    @property
    def longest_sequence(self) -> int:
        """Tokens of a prompt and a completion together, at most: what the model has positions
        for."""
        if isinstance(self.rope_scaling, LongRope):
            return min(
                self.max_positions, self.rope_scaling.original_length
            )  # the short divisors reach no further
        return self.max_positions
