"""Writes smollm2_golden.json: SmolLM2-135M-Instruct as transformers reads its GGUF file.

    cd tests/golden
    python make_smollm2_golden.py DIRECTORY/SmolLM2-135M-Instruct.Q4_1.gguf smollm2_golden.json

Needs torch, transformers and gguf; the tests do not need torch.  Made with torch 2.13.0 (CPU), transformers
5.23.0, gguf 0.19.0.

transformers drops the digit splitting of the tokenizer when it reads a GGUF file; it is put back here, as the
original tokenizer.json has it.

Format: `texts` [{text, ids}], `chat` {messages, ids with generation prompt}, `sha256` {tensor name: of its
float32 bytes, in the layout and under the name that transformers uses}.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = (
    "\n\n3", "\n\nThree", "1,234.56 + 78", "a  b   c\t\n d", "It's 5 o'clock", "naïve café 🙂 Ⅷ ½ 你好",
    "<|im_start|>user\nHi<|im_end|>\n", " leading and trailing ", "def f(x):\n    return x**2\n",
)  # fmt: skip
MESSAGES = [{"role": "user", "content": "Count to 3"}, {"role": "assistant", "content": "1\n\n2\n\n3"}]
TENSORS = (
    "model.embed_tokens.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.weight",
    "model.layers.17.self_attn.k_proj.weight", "model.layers.17.self_attn.v_proj.weight",
    "model.layers.29.self_attn.o_proj.weight", "model.layers.29.mlp.down_proj.weight",
    "model.layers.3.mlp.gate_proj.weight", "model.layers.3.mlp.up_proj.weight",
    "model.layers.12.input_layernorm.weight", "model.layers.12.post_attention_layernorm.weight",
)  # fmt: skip


def main(gguf: Path, out: Path) -> None:
    where = dict(pretrained_model_name_or_path=gguf.parent, gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    weights = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).state_dict()
    result = dict(
        texts=[dict(text=text, ids=tokenizer(text, add_special_tokens=False).input_ids) for text in TEXTS],
        chat=dict(
            messages=MESSAGES,
            ids=tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False),
        ),
        sha256={name: hashlib.sha256(weights[name].numpy().tobytes()).hexdigest() for name in TENSORS},
    )
    out.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
