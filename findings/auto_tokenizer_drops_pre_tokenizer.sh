#!/usr/bin/env bash
# transformers 5.24.0 with tokenizers 0.23.3: AutoTokenizer does not split text as tokenizer.json says.
#
# A folder whose tokenizer_config.json names GPT2Tokenizer and whose config.json says model_type llama (as SmolLM2's do)
# is loaded with a pre-tokenizer that the class makes anew. What tokenizer.json has beside it, here `Digits` before
# `ByteLevel`, is dropped without a warning: "\n\n3" becomes [0, 0, 1] where the file says [2, 1]. So a model is trained
# or asked in other tokens than those it knows, and save_pretrained writes the loss into the copy.
# With model_type qwen2 the class is replaced even where the folder names PreTrainedTokenizerFast, which asks for the
# file as it is: there a file that holds only ByteLevel is read as [2, 1] where it says [0, 0, 1].
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3
cat > "$work/show.py" <<'PY'
import json
import pathlib
import sys
import tempfile

from tokenizers import Tokenizer, models
from tokenizers import pre_tokenizers as split
from transformers import AutoTokenizer

TEXT = "\n\n3"


def ids(model_type, tokenizer_class, splits):
    """(AutoTokenizer's ids, those of tokenizer.json)."""
    backend = Tokenizer(models.BPE({"Ċ": 0, "3": 1, "ĊĊ": 2, "<e>": 3}, [("Ċ", "Ċ")]))
    backend.pre_tokenizer = split.Sequence(splits)
    folder = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[1]))
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokens = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<e>")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class, **tokens}))
    return AutoTokenizer.from_pretrained(folder)(TEXT).input_ids, backend.encode(TEXT).ids


byte_level = split.ByteLevel(add_prefix_space=False)
digits = [split.Digits(individual_digits=True), byte_level]
llama = ids("llama", "GPT2Tokenizer", digits)
print("llama, GPT2Tokenizer, Digits + ByteLevel: AutoTokenizer", llama[0], "tokenizer.json", llama[1])
qwen2 = ids("qwen2", "PreTrainedTokenizerFast", [byte_level])
print("qwen2, PreTrainedTokenizerFast, ByteLevel: AutoTokenizer", qwen2[0], "tokenizer.json", qwen2[1])
assert llama == ([0, 0, 1], [2, 1]), "changed: look at it again"
assert qwen2 == ([2, 1], [0, 0, 1]), "changed: look at it again"
PY
"$work/venv/bin/python" "$work/show.py" "$work"
