"""Writes peft/: adapters that PEFT made on llama_tiny, with PEFT's logits and gradients.  Needs torch and peft.

python tests/golden/make_peft.py [NAME ...]

Those of FUSED lie on the tiny Phi-3, GPT-2 and Qwen3.5 of the families' golden values (make_families.py).
"""

import json
import sys
import tempfile
from pathlib import Path

import make_families
import peft
import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).parent
BASE, OUT = HERE / "llama_tiny", HERE / "peft"
IDS = [[5, 99, 3, 41, 7, 7, 120, 64, 2, 11]]
ADAPTERS = {
    "lora": dict(r=3, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "rslora": dict(r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear"),
    "dora": dict(r=4, lora_alpha=4, use_dora=True, target_modules="all-linear", lora_dropout=0.25),
    # Every weight has one scale in both layers: 3, 2 and, for v_proj, 1.5.
    "patterns": dict(
        r=4, lora_alpha=8, target_modules="all-linear",
        rank_pattern={"q_proj": 2, "k_proj": 6, "layers.1.mlp.up_proj": 2},
        alpha_pattern={"q_proj": 6, "v_proj": 6, "k_proj": 12, "1.mlp.up_proj": 4},
    ),
    "layers": dict(
        r=3, lora_alpha=8, target_modules=["q_proj", "down_proj"], layers_to_transform=[1],
        modules_to_save=["lm_head", "embed_tokens"],
    ),
}  # fmt: skip
FUSED = {
    "phi3": dict(r=2, lora_alpha=5, target_modules=["qkv_proj", "o_proj", "gate_up_proj"]),
    "gpt2": dict(r=2, lora_alpha=4, use_dora=True, target_modules=["attn.c_attn", "c_fc"], fan_in_fan_out=True),
    "qwen3_5": dict(r=2, lora_alpha=6, target_modules=["in_proj_qkv", "in_proj_a", "out_proj", "q_proj", "up_proj"]),
}


def randomise(model: torch.nn.Module) -> None:
    """A trained adapter differs from the base."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_magnitude_vector" in name:
                weight.mul_(1 + 0.2 * torch.rand(weight.shape, generator=generator))
            elif "lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
            elif "modules_to_save" in name:
                weight.add_(0.02 * torch.randn(weight.shape, generator=generator))


def write(name: str, settings: dict, base: torch.nn.Module, base_name: str) -> None:
    torch.manual_seed(0)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    randomise(model)
    model.eval()
    model.save_pretrained(OUT / name)
    (OUT / name / "README.md").unlink()
    written = json.loads((OUT / name / "adapter_config.json").read_text())
    written |= {"base_model_name_or_path": base_name, "target_modules": sorted(written["target_modules"])}
    (OUT / name / "adapter_config.json").write_text(json.dumps(written, indent=1) + "\n")
    ids = torch.tensor(IDS) % base.config.vocab_size
    logits = model(ids).logits
    logp = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None]).sum()
    logp.backward()
    gradients = {n: w.grad for n, w in model.named_parameters() if w.grad is not None}
    # Under the names of the adapter's file: without the adapter's own name and wrappers.
    rename = lambda n: (
        n.replace("modules_to_save.default.", "")
        .replace(".default.weight", ".weight")
        .replace("vector.weight", "vector")
    )
    values = {"logits": logits.detach()} | {rename(n): g for n, g in gradients.items()}
    save_file({n: x.contiguous() for n, x in values.items()}, OUT / f"{name}_values.safetensors")


def main() -> None:
    wanted = sys.argv[1:] or [*ADAPTERS, *FUSED]
    for name in wanted:
        if name in ADAPTERS:
            base = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
            write(name, ADAPTERS[name], base, BASE.name)
            continue
        with tempfile.TemporaryDirectory() as directory:
            base, _ = make_families.load(name, Path(directory))
            write(name, FUSED[name], base, name)
    versions = {m.__name__: m.__version__ for m in (peft, torch, transformers)}
    (OUT / "versions.json").write_text(json.dumps({"ids": IDS, "versions": versions}) + "\n")


if __name__ == "__main__":
    main()
