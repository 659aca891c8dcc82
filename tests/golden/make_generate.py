"""Writes generate_*.json: greedy continuations and warped logits of transformers.

    cd tests/golden
    python make_generate.py warpers generate_warpers.json
    python make_generate.py greedy DIRECTORY/stories260k generate_stories260k.json --new 200
    python make_generate.py greedy DIRECTORY/SmolLM2-135M-Instruct.Q4_1.gguf generate_smollm2.json --new 48

Needs torch and transformers (and gguf for a .gguf file); the tests need neither.  Made with torch 2.13.0 (CPU),
transformers 5.23.0, gguf 0.19.0.

Format of the continuations: `rows` [{prompt ids, new ids}] in float32, each prompt alone, up to and with the
end-of-text token; `least_margin`, the smallest difference between the two largest logits of any step, which rounding
must not reach.

Format of the warped logits: `logits` [R][V]; `cases` [{settings, warped [R][V], null where a token is left out}].
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation import logits_process

STORIES = (
    "Once upon a time", "Lily and Tom went to the park. They saw a big dog", "The", "One day, a little boy named Ben",
    "Once upon a time, there was a tiny bird who lived in a tall tree with his mom and dad. One morning he woke up and",
)  # fmt: skip
CHATS = (
    "What is the capital of France?", "Name three colours.", "Write one sentence about the sea.",
    "I have a box with 12 eggs. I use 5 of them for a cake and my neighbour takes 2. How many are left in the box?",
)  # fmt: skip
CASES = (
    dict(temperature=0.7), dict(temperature=2.0), dict(top_k=1), dict(top_k=5), dict(top_k=1000), dict(top_p=0.05),
    dict(top_p=0.5), dict(top_p=0.95), dict(min_p=0.05), dict(min_p=0.5),
    dict(temperature=0.5, top_k=12, top_p=0.9, min_p=0.02), dict(temperature=1.7, top_k=20, top_p=0.6),
    dict(temperature=3.0, top_p=0.8, min_p=0.4),
)  # fmt: skip


def load(path: Path):
    where = dict(pretrained_model_name_or_path=path)
    if path.suffix == ".gguf":
        where = dict(pretrained_model_name_or_path=path.parent, gguf_file=path.name)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    if path.suffix == ".gguf":  # transformers loses the digit splitting, see make_smollm2_golden.py
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32), tokenizer


def encode(tokenizer, text: str) -> list[int]:
    if not tokenizer.chat_template:
        return tokenizer(text).input_ids
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


@torch.no_grad()
def greedy(path: Path, new: int) -> dict:
    model, tokenizer = load(path)
    rows, margins = [], []
    for text in CHATS if tokenizer.chat_template else STORIES:
        prompt = torch.tensor([encode(tokenizer, text)])
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=new,
            return_dict_in_generate=True, output_logits=True, pad_token_id=0,
        )  # fmt: skip
        top = torch.stack(out.logits).topk(2, dim=-1).values
        margins.append((top[..., 0] - top[..., 1]).min().item())
        rows.append(dict(prompt=prompt[0].tolist(), new=out.sequences[0, prompt.shape[1] :].tolist()))
    return dict(rows=rows, least_margin=min(margins))


def warpers() -> dict:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 40, generator=draw) * torch.tensor([0.3, 1.0, 2.5, 6.0])[:, None]
    cases = []
    for settings in CASES:
        out = logits.clone()
        for name, make in (
            ("temperature", logits_process.TemperatureLogitsWarper), ("top_k", logits_process.TopKLogitsWarper),
            ("top_p", logits_process.TopPLogitsWarper), ("min_p", logits_process.MinPLogitsWarper),
        ):  # fmt: skip
            if name in settings:
                out = make(settings[name])(None, out)
        warped = [[None if x == float("-inf") else x for x in row] for row in out.tolist()]
        cases.append(dict(settings=settings, warped=warped))
    return dict(logits=logits.tolist(), cases=cases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    continuations = kinds.add_parser("greedy")
    continuations.add_argument("model", type=Path)
    continuations.add_argument("--new", type=int, required=True, help="new tokens of a row")
    for kind in (continuations, kinds.add_parser("warpers")):
        kind.add_argument("out", type=Path)
    args = parser.parse_args()
    result = warpers() if args.kind == "warpers" else greedy(args.model, args.new)
    versions = dict(torch=torch.__version__, transformers=transformers.__version__)
    args.out.write_text(json.dumps(dict(versions=versions) | result) + "\n")


if __name__ == "__main__":
    main()
