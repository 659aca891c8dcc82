"""What a decoder is, whichever family it comes from: the numbers that the one decoder is built from."""

from dataclasses import dataclass

SCALAR_HEADS = "scalar_heads"
"""Top level of the parameter tree under which linear maps of the hidden state to one number are kept."""


@dataclass(frozen=True)
class Llama3Rope:
    """Llama 3.1's frequency rescaling (Hugging Face `rope_type: llama3`); lengths in tokens."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and constants of a decoder; letters as in `jaxpref.types`.  The parameters form this tree:

    embed/table [V, D]
    layers/attention_norm/scale [Y, D]     layers/mlp_norm/scale [Y, D]
    layers/attention/q [Y, D, N, H]        layers/attention/k, v [Y, D, M, H]    layers/attention/o [Y, N, H, D]
    layers/mlp/gate, up [Y, D, F]          layers/mlp/down [Y, F, D]
    final_norm/scale [D]
    head/kernel [V, D]                     (absent when `tied`: the head is the embedding)
    """

    family: str
    vocab: int
    width: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    rope_theta: float
    norm_eps: float
    tied: bool
    rope_scaling: Llama3Rope | None = None
