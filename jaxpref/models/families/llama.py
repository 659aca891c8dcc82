"""The Llama family, as a small spec: Llama 1 to 3, SmolLM2 and what else says `model_type: llama`."""

import math
from typing import Any

from jaxpref.errors import InputError
from jaxpref.models.spec import Llama3Rope, ModelSpec
from jaxpref.models.weights import Weight

WEIGHTS: dict[str, Weight] = {
    "embed/table": Weight("model.embed_tokens.weight", "V,D -> VD"),
    "layers/attention_norm/scale": Weight("model.layers.{layer}.input_layernorm.weight", "D -> D"),
    "layers/attention/q": Weight("model.layers.{layer}.self_attn.q_proj.weight", "NH,D -> DNH"),
    "layers/attention/k": Weight("model.layers.{layer}.self_attn.k_proj.weight", "MH,D -> DMH"),
    "layers/attention/v": Weight("model.layers.{layer}.self_attn.v_proj.weight", "MH,D -> DMH"),
    "layers/attention/o": Weight("model.layers.{layer}.self_attn.o_proj.weight", "D,NH -> NHD"),
    "layers/mlp_norm/scale": Weight("model.layers.{layer}.post_attention_layernorm.weight", "D -> D"),
    "layers/mlp/gate": Weight("model.layers.{layer}.mlp.gate_proj.weight", "F,D -> DF"),
    "layers/mlp/up": Weight("model.layers.{layer}.mlp.up_proj.weight", "F,D -> DF"),
    "layers/mlp/down": Weight("model.layers.{layer}.mlp.down_proj.weight", "D,F -> FD"),
    "final_norm/scale": Weight("model.norm.weight", "D -> D"),
    "head/kernel": Weight("lm_head.weight", "V,D -> VD"),
}

# Buffers that old checkpoints carry and that follow from the config.
IGNORED_TENSORS = r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"

_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip
_READ = {*_SIZES, "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings",
         "rope_theta", "rope_scaling", "rope_parameters"}  # fmt: skip
# Values that the decoder implements; anything else would be another model.
_ONLY: dict[str, tuple] = {
    "model_type": ("llama",),
    "architectures": (["LlamaForCausalLM"], ["LLaMAForCausalLM"]),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0,),
    "partial_rotary_factor": (1,),
}
# Knowingly ignored: they change neither the function nor its gradient (`pretraining_tp` only splits a
# product).  Token ids are taken from the tokenizer and generation_config.json.
_IGNORED = {
    "initializer_range", "use_cache", "pretraining_tp", "bos_token_id", "eos_token_id", "pad_token_id",
    "dtype", "torch_dtype", "transformers_version", "transformers.js_config", "_name_or_path",
    "_attn_implementation", "_attn_implementation_autoset", "return_dict", "id2label", "label2id",
    "is_llama_config", "unsloth_fixed", "unsloth_version",
}  # fmt: skip


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face Llama config.

    Args:
        config: the parsed config.json; `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling`
            (older).
        where: the file, for error messages.

    Errors: one InputError naming every attribute that is missing, out of range, not implemented or unknown.
        An unknown attribute that is None, False, 0 or empty is off, and passes.
    """
    problems = [f"{key} is missing" for key in (*_SIZES, "rms_norm_eps") if config.get(key) is None]
    for key, value in config.items():
        if key in _ONLY and value is not None and value not in _ONLY[key]:
            problems.append(f"{key} = {value!r}, only {_ONLY[key][0]!r} is implemented")
        if key not in _READ | _IGNORED | _ONLY.keys() and value:
            problems.append(f"{key} = {value!r} is unknown for this family")
    if not problems:
        problems = _size_problems(config)
    theta, scaling = _rope(config, problems)
    if problems:
        raise InputError(
            "a Llama config whose every attribute is understood",
            f"in {where}: " + "; ".join(problems),
            "use a model of the plain Llama architecture, or remove an attribute that has no effect",
        )
    return ModelSpec(
        family="llama",
        vocab=config["vocab_size"],
        width=config["hidden_size"],
        ffn=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=_kv_heads(config),
        head_dim=_head_dim(config),
        max_positions=config["max_position_embeddings"],
        rope_theta=theta,
        norm_eps=config["rms_norm_eps"],
        tied=bool(config.get("tie_word_embeddings")),
        rope_scaling=scaling,
    )


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids.

    The rope is written twice, as `rope_parameters` (read by transformers 5) and as `rope_theta` with
    `rope_scaling`: older readers know the second form only and would fall back to theta 10000 without a word.
    """
    scaling = None
    if spec.rope_scaling is not None:
        scaling = {
            "rope_type": "llama3",
            "factor": spec.rope_scaling.factor,
            "low_freq_factor": spec.rope_scaling.low_freq_factor,
            "high_freq_factor": spec.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": spec.rope_scaling.original_length,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "intermediate_size": spec.ffn,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {**(scaling or {"rope_type": "default"}), "rope_theta": spec.rope_theta},
        "tie_word_embeddings": spec.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
    }


def _kv_heads(config: dict[str, Any]) -> int:
    kv_heads = config.get("num_key_value_heads")
    return config["num_attention_heads"] if kv_heads is None else kv_heads


def _head_dim(config: dict[str, Any]) -> int:
    head_dim = config.get("head_dim")
    return config["hidden_size"] // config["num_attention_heads"] if head_dim is None else head_dim


def _size_problems(config: dict[str, Any]) -> list[str]:
    sizes = {key: config[key] for key in _SIZES} | {
        key: config[key] for key in ("num_key_value_heads", "head_dim") if config.get(key) is not None
    }
    problems = [f"{key} = {n!r} is not a positive integer" for key, n in sizes.items() if type(n) is not int or n < 1]
    if problems:
        return problems
    if not (isinstance(config["rms_norm_eps"], float) and 0 < config["rms_norm_eps"] < 1):
        problems.append(f"rms_norm_eps = {config['rms_norm_eps']!r} is not between 0 and 1")
    heads = config["num_attention_heads"]
    if config.get("head_dim") is None and config["hidden_size"] % heads:
        problems.append(f"hidden_size = {config['hidden_size']} is not a multiple of num_attention_heads = {heads}")
    if _head_dim(config) % 2:
        problems.append(f"head_dim = {_head_dim(config)} is odd, rope rotates pairs")
    if heads % _kv_heads(config):
        problems.append(f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {_kv_heads(config)}")
    return problems


def _rope(config: dict[str, Any], problems: list[str]) -> tuple[float, Llama3Rope | None]:
    """Theta and scaling from either form; what is wrong is appended to `problems`."""
    new, old = dict(config.get("rope_parameters") or {}), dict(config.get("rope_scaling") or {})
    for form in (new, old):
        if "type" in form:  # the spelling before transformers 4.43
            form["rope_type"] = form.pop("type")
    new_theta = new.pop("rope_theta", None)
    thetas = {
        theta for theta in (new_theta, old.pop("rope_theta", None), config.get("rope_theta")) if theta is not None
    }
    if len(thetas) > 1 or (new and old and new != old):
        problems.append("rope_parameters and rope_theta/rope_scaling disagree")
    theta = max(thetas, default=10000.0)  # transformers' default, which old configs rely on
    if not isinstance(theta, (int, float)) or not 0 < theta < math.inf:
        problems.append(f"rope_theta = {theta!r} is not a positive number")
        theta = math.nan

    params = new or old
    rope_type = params.pop("rope_type", "default")
    partial = params.pop("partial_rotary_factor", None)
    if partial not in (None, 1):
        problems.append(f"partial_rotary_factor = {partial!r}, only 1 is implemented")
    scaling = None
    if rope_type == "llama3":
        params.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        values = [params.pop(key, None) for key in keys]
        missing = [key for key, value in zip(keys, values, strict=True) if value is None]
        if missing:
            problems.append(f"rope_type llama3 without {', '.join(missing)}")
        elif not all(isinstance(v, (int, float)) and 0 < v < math.inf for v in values) or values[1] >= values[2]:
            problems.append(f"rope_type llama3 with {dict(zip(keys, values, strict=True))} is not a rescaling")
        scaling = Llama3Rope(*values)
    elif rope_type != "default":
        problems.append(f"rope_type = {rope_type!r}, only 'default' and 'llama3' are implemented")
        params = {}  # they belong to the refused type
    problems += [f"rope parameter {key} = {value!r} is unknown" for key, value in params.items() if value]
    return float(theta), scaling
