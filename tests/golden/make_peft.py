"""Writes peft/: adapters that PEFT made on llama_tiny, with PEFT's logits and gradients.  Needs torch and peft.

python tests/golden/make_peft.py
"""

import json
from pathlib import Path

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


def main() -> None:
    ids = torch.tensor(IDS)
    for name, settings in ADAPTERS.items():
        torch.manual_seed(0)
        base = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
        model = peft.get_peft_model(base, config)
        randomise(model)
        model.eval()
        model.save_pretrained(OUT / name)
        (OUT / name / "README.md").unlink()
        written = json.loads((OUT / name / "adapter_config.json").read_text())
        written |= {"base_model_name_or_path": BASE.name, "target_modules": sorted(written["target_modules"])}
        (OUT / name / "adapter_config.json").write_text(json.dumps(written, indent=1) + "\n")
        logits = model(ids).logits
        logp = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None]).sum()
        logp.backward()
        gradients = {n: w.grad for n, w in model.named_parameters() if w.grad is not None}
        # Under the names of the adapter's file: without the adapter's own name and DoRA's wrapper.
        rename = lambda n: n.replace(".default.weight", ".weight").replace("vector.weight", "vector")
        values = {"logits": logits.detach()} | {rename(n): g for n, g in gradients.items()}
        save_file({n: x.contiguous() for n, x in values.items()}, OUT / f"{name}_values.safetensors")
    versions = {m.__name__: m.__version__ for m in (peft, torch, transformers)}
    (OUT / "versions.json").write_text(json.dumps({"ids": IDS, "versions": versions}) + "\n")


if __name__ == "__main__":
    main()
