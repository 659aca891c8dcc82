"""Writes kto_tokens.json: preference rows as TRL's KTOTrainer unpairs and tokenises them.

    cd tests/golden
    python make_kto_tokens.py kto_tokens.json

Needs torch and trl; the tests need neither.  Made with trl 1.16.0, torch 2.13.0 (CPU), transformers 5.23.0 and the
tokenizer of trl_run_small/model.

Format: {form: {rows, groups: [{prompt_ids, completion_ids, label}]}, max_length}.  Groups whose prompt has `max_length`
tokens or more are dropped; completions are whole (TRL cuts them when it collates).
"""

import json
import sys
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer
from trl import KTOConfig, KTOTrainer

MAX_LENGTH = 36
PAIRS = (
    ("Question 0: what is 0 plus 1?", " The answer is 1.", " I do not know."),
    # The last token of the prompt may merge with the answer, otherwise for chosen than for rejected.
    ("Question 1: what is 1 plus 2? The answer is ", "3.", " I do not know."),
    ("Question 2: what is 2 plus 3? The ans", "wer is 5.", "\n\nI do not know."),
    ("Q", "uestion 3", " I do not know. This is a rude reply indeed. This is a rude reply indeed."),
    ("A prompt of more than so many tokens: " + "what is 2 plus 3? " * 9, "5.", " I do not know."),
)


def messages(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


def main(out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parent / "trl_run_small" / "model")
    rows = {
        "standard": [dict(prompt=p, chosen=c, rejected=r) for p, c, r in PAIRS],
        "conversational": [
            dict(prompt=messages("user", p), chosen=messages("assistant", c), rejected=messages("assistant", r))
            for p, c, r in PAIRS
        ],
    }
    result = {"max_length": MAX_LENGTH}
    for form, pairs in rows.items():
        trainer = object.__new__(KTOTrainer)
        trainer._tokenizer, trainer.calculate_KL = tokenizer, False
        trainer.desirable_weight = trainer.undesirable_weight = 1.0
        args = KTOConfig(output_dir="unused", max_length=MAX_LENGTH, use_cpu=True, bf16=False, report_to="none")
        groups = trainer._prepare_dataset(Dataset.from_list(pairs), tokenizer, args, "train")
        keys = ("prompt_ids", "completion_ids", "label")
        result[form] = {"rows": pairs, "groups": [{key: group[key] for key in keys} for group in groups]}
    out.write_text(json.dumps(result, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
