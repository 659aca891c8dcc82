"""What llama.cpp's converter makes of each model family: metadata, names and layouts of tensors.

Every line here answers one of conversion/*.py in https://github.com/ggml-org/llama.cpp; the
tensors' names are those of the `gguf` package.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np
from gguf import MODEL_ARCH

from jaxpref.errors import InputError
from jaxpref.models.families import forms
from jaxpref.models.families.hf_config import FULL, SLIDING
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import StoredLeaf, used_leaves

# Metadata key (after the architecture's name) -> Hugging Face config key.
_SHARED = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
_GPT2 = {
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "block_count": "n_layer",
    "attention.head_count": "n_head",
    "context_length": "n_positions",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "vocab_size": "vocab_size",
}
_REQUIRED = (
    "context_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
)
"""Metadata without which llama.cpp does not load a file."""
_GRANITE = {
    **_SHARED,
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_UNLIKE = {
    "layers/attention/sinks": StoredLeaf("blk.{layer}.attn_sinks.weight", "N -> N"),
    "layers/experts/router": StoredLeaf("blk.{layer}.ffn_gate_inp.weight", "E,D -> DE"),
    "layers/experts/router_bias": StoredLeaf("blk.{layer}.ffn_gate_inp.bias", "E -> E"),
    "layers/experts/gate": StoredLeaf("blk.{layer}.ffn_gate_exps.weight", "E,F,D -> EDF"),
    "layers/experts/up": StoredLeaf("blk.{layer}.ffn_up_exps.weight", "E,F,D -> EDF"),
    "layers/experts/down": StoredLeaf("blk.{layer}.ffn_down_exps.weight", "E,D,F -> EFD"),
    "layers/experts/gate_bias": StoredLeaf("blk.{layer}.ffn_gate_exps.bias", "E,F -> EF"),
    "layers/experts/up_bias": StoredLeaf("blk.{layer}.ffn_up_exps.bias", "E,F -> EF"),
    "layers/experts/down_bias": StoredLeaf("blk.{layer}.ffn_down_exps.bias", "E,D -> ED"),
}
"""Leaves whose tensors Hugging Face names or joins in another way."""
# Weights of GPT-2 that the converter transposes.
_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that are no weights: they are read into the config."""

Vectors = Mapping[str, np.ndarray]
"""The tensors of ROPE_TENSORS that the file has, float64."""


@dataclass(frozen=True)
class Architecture:
    """A value of `general.architecture`, for one family."""

    arch: MODEL_ARCH
    model_type: str
    """The family, as Hugging Face calls it."""
    marked_by: str = ""
    """Metadata that tells this family from another one of the same architecture."""
    keys: Mapping[str, str] = field(default_factory=lambda: _SHARED)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Config attributes that llama.cpp has in its code and not in the file."""
    finish: Callable[[dict[str, Any], dict[str, Any], Vectors], dict[str, Any]] = (
        lambda config, rest, vectors: {}
    )
    """(config so far, metadata that no key translates, vectors) -> more of the config.

    It takes what it understands from the metadata that is left.
    """
    biases: Mapping[str, str] = field(default_factory=dict)
    """Config attribute -> a tensor whose presence means that it is true."""
    permuted: bool = False
    """Rows of q and k are in llama.cpp's order: it rotates neighbours, Hugging Face halves."""
    norm_offset: float = 0.0
    """Norms are stored with this added."""

    @property
    def name(self) -> str:
        return gguf.MODEL_ARCH_NAMES[self.arch]


def find_architecture(metadata: Mapping[str, Any], where: str) -> Architecture:
    """Errors: InputError for an architecture that is not known here."""
    name = metadata.get("general.architecture")
    of_name = [known for known in ARCHITECTURES if known.name == name]
    for known in sorted(of_name, key=lambda known: not known.marked_by):
        if not known.marked_by or metadata.get(f"{name}.{known.marked_by}"):
            return known
    names = ", ".join(dict.fromkeys(known.name for known in ARCHITECTURES))
    raise InputError(
        f"general.architecture among {names}", f"{name!r} in {where}", "use a file of such a model"
    )


def hf_config(
    architecture: Architecture,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    vectors: Vectors,
) -> dict[str, Any]:
    """The Hugging Face config that a file amounts to.

    Metadata that nothing here understands keeps its own key, which the family refuses unless it is
    off.

    Args:
        shapes: of the file's tensors, rows first.
    """
    prefix = architecture.name + "."
    rest = {
        key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)
    }
    config = {
        "model_type": architecture.model_type,
        "tie_word_embeddings": "output.weight" not in shapes,
        **architecture.fixed,
    }
    for key, tensor in architecture.biases.items():
        if tensor in shapes:
            config[key] = True
    for theirs, key in architecture.keys.items():
        if theirs in rest:
            config[key] = _decimal(rest.pop(theirs))
        elif theirs in _REQUIRED:
            config[key] = None  # or the family would take transformers' default
    if "token_embd.weight" in shapes:  # `vocab_size` is optional, and does not count padding rows
        config["vocab_size"] = shapes["token_embd.weight"][0]
    width = config.get(architecture.keys["embedding_length"])
    heads = config.get(architecture.keys["attention.head_count"])
    # Otherwise the family says what is wrong.
    if all(type(size) is int and size > 0 for size in (width, heads)):
        config |= architecture.finish(config, rest, vectors)
    return config | {prefix + key: value for key, value in rest.items()}


def stored_leaves(architecture: Architecture, spec: ModelSpec) -> dict[str, StoredLeaf]:
    """Leaf path -> where the file stores it."""
    names, table = gguf.get_tensor_name_map(architecture.arch, 1), {}
    for path, theirs in used_leaves(forms(spec.family)[0], spec).items():
        if path in _UNLIKE:
            table[path] = _UNLIKE[path]
            continue
        stored, leaf = theirs.layout.split(" -> ")
        if theirs.name.endswith(_TRANSPOSED):
            stored = ",".join(reversed(stored.split(",")))
        name = names.get_name(theirs.name.format(layer=0), try_suffixes=(".weight", ".bias"))
        table[path] = StoredLeaf(name.replace("blk.0.", "blk.{layer}."), f"{stored} -> {leaf}")
    return table


def _decimal(value: Any) -> Any:
    """The decimal that a float32 was meant to be: 1e-05, and not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


# ---- what is particular to a family


def _rope(config: dict[str, Any], rest: dict[str, Any], vectors: Vectors) -> dict[str, Any]:
    """Heads and rescaled RoPE, of families that rotate whole heads."""
    more = _heads(config, rest)
    head_dim = more["head_dim"]
    if rest.get("rope.dimension_count") == head_dim:
        del rest["rope.dimension_count"]
    kind = rest.pop("rope.scaling.type", "none")
    if kind != "none":
        factor = _decimal(rest.pop("rope.scaling.factor", None))
        more["rope_scaling"] = {"rope_type": kind, "factor": factor}
        length = rest.pop("rope.scaling.original_context_length", None)
        if length is not None:
            more["rope_scaling"]["original_max_position_embeddings"] = length
        for end in ("beta_fast", "beta_slow"):
            if f"rope.scaling.yarn_{end}" in rest:
                more["rope_scaling"][end] = _decimal(rest.pop(f"rope.scaling.yarn_{end}"))
    elif "rope_freqs.weight" in vectors:
        divisors = vectors["rope_freqs.weight"]
        more["rope_scaling"] = _llama3(divisors, head_dim, more["rope_theta"])
    return more


def _heads(config: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp's defaults where the file says nothing: the families would take transformers'."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    if rest.get("attention.value_length") == head_dim:
        del rest["attention.value_length"]
    return {
        "head_dim": head_dim,
        "num_key_value_heads": config.get("num_key_value_heads", heads),
        "rope_theta": config.get("rope_theta", 10000.0),
    }


def _llama3(divisor: np.ndarray, head_dim: int, theta: float) -> dict[str, Any]:
    """Llama 3.1's rescaling from the per-frequency divisors that llama.cpp keeps instead of it.

    Every Llama 3 model has low 1, high 4 and length 8192, and differs in the factor only, which is
    the divisor of the lowest frequency; the others must follow from it.
    """
    factor, low, high, length = float(divisor.max(initial=1.0)), 1.0, 4.0, 8192
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = length / wavelength  # rotations within the length
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if divisor.shape != expected.shape or not np.allclose(divisor, expected, rtol=1e-4):
        # The family refuses this type.
        return {"rope_type": "divisors in rope_freqs.weight that are not Llama 3.1's"}
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }


def _phi3(config: dict[str, Any], rest: dict[str, Any], vectors: Vectors) -> dict[str, Any]:
    """A part of each head may be rotated, and by LongRoPE; a window of 0 is none."""
    more = _heads(config, rest)
    head_dim = more["head_dim"]
    more["partial_rotary_factor"] = rest.pop("rope.dimension_count", head_dim) / head_dim
    more["sliding_window"] = rest.pop("attention.sliding_window", 0) or None
    longest = config.get("max_position_embeddings", 4096)
    length = rest.pop("rope.scaling.original_context_length", longest)
    more["original_max_position_embeddings"] = length
    factors = {}
    for name in ("short", "long"):
        tensor = f"rope_factors_{name}.weight"
        if tensor in vectors:
            factors[f"{name}_factor"] = [_decimal(float(x)) for x in vectors[tensor]]
    if factors:
        more["rope_scaling"] = {"rope_type": "longrope", **factors}
        amplitude = rest.pop("rope.scaling.attn_factor", 1.0)
        # The family knows this rule.
        rule = math.sqrt(1 + math.log(max(1.0, longest / length)) / math.log(length))
        if not math.isclose(amplitude, rule, rel_tol=1e-5):
            more["rope_scaling"]["attention_factor"] = _decimal(amplitude)
    return more


def _gemma(largest: int) -> Callable[[dict[str, Any], dict[str, Any], Vectors], dict[str, Any]]:
    """How a Gemma is finished.

    Args:
        largest: number of layers of the one model whose attention logits are scaled by the width
            per head, and not by the size of a head.
    """

    def finish(config: dict[str, Any], rest: dict[str, Any], vectors: Vectors) -> dict[str, Any]:
        more = _rope(config, rest, vectors)
        scalar = more["head_dim"]
        if config.get("num_hidden_layers") == largest:
            scalar = config["hidden_size"] // config["num_attention_heads"]
        keys = {
            "attention.sliding_window": "sliding_window",
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
            "rope.freq_base_swa": "rope_local_base_freq",
        }
        for theirs, key in keys.items():
            if theirs in rest:
                more[key] = _decimal(rest.pop(theirs))
        return more | {"query_pre_attn_scalar": scalar}

    return finish


def _olmo3(config: dict[str, Any], rest: dict[str, Any], vectors: Vectors) -> dict[str, Any]:
    """llama.cpp rotates sliding layers by the same theta, and does not rescale them."""
    more = _rope(config, rest, vectors)
    more["sliding_window"] = rest.pop("attention.sliding_window")
    slides = rest.pop("attention.sliding_window_pattern", None)
    if isinstance(slides, list):
        more["layer_types"] = [SLIDING if slide else FULL for slide in slides]
    local = {"rope_type": "default", "rope_theta": more["rope_theta"]}
    return more | {"rope_parameters": {SLIDING: local}}


def _gpt_oss(config: dict[str, Any], rest: dict[str, Any], vectors: Vectors) -> dict[str, Any]:
    """llama.cpp widens YaRN's band to whole frequencies; the model was trained with it as it is."""
    more = _rope(config, rest, vectors)
    more["sliding_window"] = rest.pop("attention.sliding_window", None)
    scaling = more.get("rope_scaling", {"rope_type": "default"})
    return more | {"rope_scaling": scaling | {"truncate": False}}


def _mixture(**keys: str) -> dict[str, str]:
    return {**_SHARED, "expert_used_count": "num_experts_per_tok", **keys}


_GEMMA = {"hidden_activation": "gelu_pytorch_tanh"}
_ATTENTION = {"attention_bias": "blk.0.attn_output.bias"}
_LLAMA = _ATTENTION | {"mlp_bias": "blk.0.ffn_up.bias"}

ARCHITECTURES = (
    Architecture(MODEL_ARCH.LLAMA, "llama", finish=_rope, biases=_LLAMA, permuted=True),
    Architecture(
        MODEL_ARCH.LLAMA,
        "mixtral",
        "expert_count",
        _mixture(expert_count="num_local_experts"),
        finish=_rope,
        permuted=True,
    ),
    Architecture(
        MODEL_ARCH.GRANITE, "granite", keys=_GRANITE, finish=_rope, biases=_LLAMA, permuted=True
    ),
    Architecture(MODEL_ARCH.QWEN2, "qwen2", finish=_rope),
    Architecture(MODEL_ARCH.QWEN3, "qwen3", finish=_rope, biases=_ATTENTION),
    Architecture(
        MODEL_ARCH.QWEN3MOE,
        "qwen3_moe",
        keys=_mixture(
            expert_count="num_experts", expert_feed_forward_length="moe_intermediate_size"
        ),
        fixed={"norm_topk_prob": True},
        finish=_rope,
        biases=_ATTENTION,
    ),
    Architecture(
        MODEL_ARCH.GPT_OSS,
        "gpt_oss",
        keys=_mixture(
            expert_count="num_local_experts", expert_feed_forward_length="intermediate_size"
        ),
        fixed={"swiglu_alpha": 1.702, "swiglu_limit": 7.0},
        finish=_gpt_oss,
    ),
    Architecture(
        MODEL_ARCH.GEMMA2,
        "gemma2",
        fixed=_GEMMA,
        finish=_gemma(46),
        biases=_ATTENTION,
        norm_offset=1.0,
    ),
    Architecture(
        MODEL_ARCH.GEMMA3,
        "gemma3_text",
        fixed=_GEMMA,
        finish=_gemma(62),
        biases=_ATTENTION,
        norm_offset=1.0,
    ),
    Architecture(MODEL_ARCH.PHI3, "phi3", finish=_phi3),
    Architecture(MODEL_ARCH.OLMO2, "olmo2", finish=_rope, biases=_ATTENTION),
    Architecture(
        MODEL_ARCH.OLMO2,
        "olmo3",
        "attention.sliding_window",
        finish=_olmo3,
        biases=_ATTENTION,
    ),
    Architecture(
        MODEL_ARCH.SMOLLM3,
        "smollm3",
        fixed={"no_rope_layer_interval": 4},
        finish=_rope,
        biases=_ATTENTION,
        permuted=True,
    ),
    Architecture(MODEL_ARCH.GPT2, "gpt2", keys=_GPT2),
)
