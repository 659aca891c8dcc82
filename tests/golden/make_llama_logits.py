"""Writes llama_logits.json and llama_tiny/: logits of transformers' Llama, to test the decoder against.

    cd tests/golden && python make_llama_logits.py --tiny llama_tiny --out llama_logits.json \
        smollm2=DIRECTORY/SmolLM2-135M-Instruct.Q4_1.gguf stories260k=DIRECTORY ...

Needs torch and transformers (and gguf for a .gguf file); the tests need neither.  Made with torch 2.13.0
(CPU), transformers 5.23.0, gguf 0.19.0.

Format of the JSON:

    versions               {package: version}
    models                 {name: one model}; `llama_tiny` is in this folder, tests look for the others
      parameters           number of parameters
      tokens               [sequences][length] token ids; the first sequence is text (random where there is no
                           tokenizer), the second is random; no padding, positions 0, 1, 2, ...
      positions            [P] columns whose logits are kept
      vocab_ids            [C] columns of the vocabulary that are kept
      logits               [sequences][P][C] float32 next-token logits
      logsumexp            [sequences][length] over the whole vocabulary, of every column
      top1                 [sequences][length] id of the largest logit
      without_rope_scaling [sequences][P][C] logits with the rope rescaling off, null where there is none: a
                           parity test that cannot tell the two apart tests nothing
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

LENGTH, POSITIONS, COLUMNS = 24, (0, 1, 5, 11, 17, 23), 16
TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    "\n\nOne day, she saw 3 birds."
)
TINY = dict(
    vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=12,  # not hidden_size / heads, so a mixed-up axis shows
    max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=False, initializer_range=0.4,
    bos_token_id=None, eos_token_id=2, pad_token_id=0,
    # Short enough that all three bands of frequencies (kept, blended, divided) matter within LENGTH tokens.
    rope_parameters=dict(
        rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
)  # fmt: skip


def make_tiny(directory: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY)).float()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # ones would hide a norm that is left out of place
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    model.save_pretrained(directory)


def load(path: Path):
    where = dict(pretrained_model_name_or_path=path)
    if path.suffix == ".gguf":
        where = dict(pretrained_model_name_or_path=path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, attn_implementation="eager").eval()
    try:
        return model, AutoTokenizer.from_pretrained(**where)
    except (OSError, ValueError):
        return model, None


@torch.no_grad()
def golden(path: Path) -> dict:
    model, tokenizer = load(path)
    vocab = model.config.vocab_size
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(vocab, (2, LENGTH), generator=draw)
    if tokenizer is not None:
        tokens[0] = torch.tensor(tokenizer(TEXT, add_special_tokens=False).input_ids[:LENGTH])
    vocab_ids = torch.randperm(vocab, generator=draw)[:COLUMNS].sort().values
    logits = model(tokens).logits
    plain = None
    if model.config.rope_parameters["rope_type"] != "default":
        theta = model.config.rope_parameters["rope_theta"]
        config = LlamaConfig(
            **{**model.config.to_dict(), "rope_parameters": dict(rope_type="default", rope_theta=theta)}
        )
        unscaled = LlamaForCausalLM(config).eval()
        unscaled.load_state_dict(model.state_dict())
        plain = unscaled(tokens).logits[:, POSITIONS][:, :, vocab_ids].tolist()
    return dict(
        parameters=model.num_parameters(),
        tokens=tokens.tolist(),
        positions=POSITIONS,
        vocab_ids=vocab_ids.tolist(),
        logits=logits[:, POSITIONS][:, :, vocab_ids].tolist(),
        logsumexp=torch.logsumexp(logits, -1).tolist(),
        top1=logits.argmax(-1).tolist(),
        without_rope_scaling=plain,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", type=Path, required=True, help="where to write the tiny random model")
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument("models", nargs="*", metavar="NAME=PATH", help="more models: directories or .gguf files")
    args = parser.parse_args()
    make_tiny(args.tiny)
    paths = {"llama_tiny": args.tiny} | {name: Path(path) for name, _, path in (m.partition("=") for m in args.models)}
    result = dict(
        versions=dict(torch=torch.__version__, transformers=transformers.__version__),
        models={name: golden(path) for name, path in paths.items()},
    )
    args.out.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
