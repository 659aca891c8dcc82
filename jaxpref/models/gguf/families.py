"""What llama.cpp's converter makes of each model family: metadata, names and layouts of tensors.

Every line here answers one of conversion/*.py in https://github.com/ggml-org/llama.cpp; the
tensors' names are those of the `gguf` package.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gguf
from gguf import MODEL_ARCH

from jaxpref.errors import InputError
from jaxpref.models.families import forms
from jaxpref.models.gguf import finish
from jaxpref.models.gguf.finish import Vectors, decimal
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
            config[key] = decimal(rest.pop(theirs))
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


def _mixture(**keys: str) -> dict[str, str]:
    return {**_SHARED, "expert_used_count": "num_experts_per_tok", **keys}


_GEMMA = {"hidden_activation": "gelu_pytorch_tanh"}
_ATTENTION = {"attention_bias": "blk.0.attn_output.bias"}
_LLAMA = _ATTENTION | {"mlp_bias": "blk.0.ffn_up.bias"}

ARCHITECTURES = (
    Architecture(MODEL_ARCH.LLAMA, "llama", finish=finish.rope, biases=_LLAMA, permuted=True),
    Architecture(
        MODEL_ARCH.LLAMA,
        "mixtral",
        "expert_count",
        _mixture(expert_count="num_local_experts"),
        finish=finish.rope,
        permuted=True,
    ),
    Architecture(
        MODEL_ARCH.GRANITE,
        "granite",
        keys=_GRANITE,
        finish=finish.rope,
        biases=_LLAMA,
        permuted=True,
    ),
    Architecture(MODEL_ARCH.QWEN2, "qwen2", finish=finish.rope),
    Architecture(MODEL_ARCH.QWEN3, "qwen3", finish=finish.rope, biases=_ATTENTION),
    Architecture(
        MODEL_ARCH.QWEN3MOE,
        "qwen3_moe",
        keys=_mixture(
            expert_count="num_experts", expert_feed_forward_length="moe_intermediate_size"
        ),
        fixed={"norm_topk_prob": True},
        finish=finish.rope,
        biases=_ATTENTION,
    ),
    Architecture(
        MODEL_ARCH.GPT_OSS,
        "gpt_oss",
        keys=_mixture(
            expert_count="num_local_experts", expert_feed_forward_length="intermediate_size"
        ),
        fixed={"swiglu_alpha": 1.702, "swiglu_limit": 7.0},
        finish=finish.gpt_oss,
    ),
    Architecture(
        MODEL_ARCH.GEMMA2,
        "gemma2",
        fixed=_GEMMA,
        finish=finish.gemma(46),
        biases=_ATTENTION,
        norm_offset=1.0,
    ),
    Architecture(
        MODEL_ARCH.GEMMA3,
        "gemma3_text",
        fixed=_GEMMA,
        finish=finish.gemma(62),
        biases=_ATTENTION,
        norm_offset=1.0,
    ),
    Architecture(MODEL_ARCH.PHI3, "phi3", finish=finish.phi3),
    Architecture(MODEL_ARCH.OLMO2, "olmo2", finish=finish.rope, biases=_ATTENTION),
    Architecture(
        MODEL_ARCH.OLMO2,
        "olmo3",
        "attention.sliding_window",
        finish=finish.olmo3,
        biases=_ATTENTION,
    ),
    Architecture(
        MODEL_ARCH.SMOLLM3,
        "smollm3",
        fixed={"no_rope_layer_interval": 4},
        finish=finish.rope,
        biases=_ATTENTION,
        permuted=True,
    ),
    Architecture(MODEL_ARCH.GPT2, "gpt2", keys=_GPT2),
)
