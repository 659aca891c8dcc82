"""Writes rope.json: frequencies and amplitude of transformers' rotary embeddings, for every rope type and real configs.

    python tests/golden/make_rope.py

Needs torch and transformers; the tests need neither.  Made with torch 2.13.0 (CPU), transformers 5.24.0.

Format: {name: {config, frequency [rotary_dim/2] and amplitude of the module as it is built, float32; where the
frequencies depend on the length of the sequence also `at`: {length: frequency}, after a forward pass of that length}}.
"""

import json
from pathlib import Path

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

OUT = Path(__file__).parent / "rope.json"
MODULES = {
    "llama": LlamaRotaryEmbedding,
    "qwen2": Qwen2RotaryEmbedding,
    "qwen3": Qwen3RotaryEmbedding,
    "phi3": Phi3RotaryEmbedding,
}


def config(model_type: str, width: int, heads: int, length: int, theta: float, rope: dict, **more) -> dict:
    return {
        "model_type": model_type, "hidden_size": width, "num_attention_heads": heads, "max_position_embeddings": length,
        "rope_theta": theta, "rope_scaling": rope, "vocab_size": 64, "intermediate_size": 48, "num_hidden_layers": 1,
        "rms_norm_eps": 1e-6, "num_key_value_heads": heads, **more,
    }  # fmt: skip


def yarn(**more) -> dict:
    return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, **more}


def longrope(half: int, **more) -> dict:
    short, long = [1.0 + 0.01 * i for i in range(half)], [1.0 + i for i in range(half)]
    return {"type": "longrope", "short_factor": short, "long_factor": long, **more}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
CONFIGS = {
    # As the model card of Qwen2.5 says to add it, and as DeepSeek published it.
    "Qwen2.5-7B-Instruct with YaRN": config("qwen2", 3584, 28, 32768, 1e6, {**yarn(), "type": "yarn"}),
    "DeepSeek-R1-0528-Qwen3-8B": config(
        "qwen3", 4096, 32, 131072, 1e6, yarn(attn_factor=0.8782488562869419), head_dim=128
    ),
    "yarn, mscale": config(
        "qwen2", 512, 8, 163840, 1e4, yarn(factor=40, mscale=1.5, mscale_all_dim=0.5, beta_fast=24, beta_slow=2)
    ),
    "yarn, one mscale": config("qwen2", 512, 8, 163840, 1e4, yarn(mscale=1.5)),
    "yarn, not truncated": config("llama", 512, 8, 131072, 15e4, yarn(factor=32.0, truncate=False)),
    "yarn, attention factor": config("llama", 512, 8, 65536, 5e5, yarn(factor=8.0, attention_factor=1.2079441541)),
    "yarn, length beside it": config(
        "llama", 512, 8, 65536, 5e5, {"type": "yarn", "factor": 8.0}, original_max_position_embeddings=8192
    ),
    "yarn, no length": config("llama", 96, 4, 64, 300.0, {"type": "yarn", "factor": 2.5}),
    "yarn, all rare": config("llama", 96, 4, 64, 300.0, yarn(original_max_position_embeddings=6)),
    "dynamic": config("llama", 512, 8, 4096, 1e4, {"type": "dynamic", "factor": 2.0}),
    "linear": config("llama", 512, 8, 16384, 1e5, {"type": "linear", "factor": 4.0}),
    "llama3": config("llama", 512, 4, 131072, 5e5, {**LLAMA3, "rope_type": "llama3"}),
    "longrope": config("phi3", 768, 8, 131072, 1e4, longrope(48), original_max_position_embeddings=4096),
    "longrope, a part": config(
        "phi3", 1024, 8, 131072, 1e4, longrope(48), original_max_position_embeddings=4096, partial_rotary_factor=0.75
    ),
}
LENGTHS = {"dynamic": (4096, 4097, 8192), "longrope": (4096, 4097)}


def at(module: torch.nn.Module, length: int) -> list[float]:
    module(torch.zeros(1), torch.arange(length)[None])
    return module.inv_freq.tolist()


def main() -> None:
    values = {}
    for name, settings in CONFIGS.items():
        read = CONFIG_MAPPING[settings["model_type"]].from_dict(json.loads(json.dumps(settings)))
        module = MODULES[settings["model_type"]](read)
        values[name] = {
            "config": settings,
            "frequency": module.inv_freq.tolist(),
            "amplitude": float(module.attention_scaling),
            "at": {str(length): at(module, length) for length in LENGTHS.get(name, ())},
        }
    OUT.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in values.items()) + "\n}\n")


if __name__ == "__main__":
    main()
