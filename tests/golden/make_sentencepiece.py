"""Writes sentencepiece.json: a small BPE tokenizer that SentencePiece trained as Llama 2's was, and encoded texts.

    cd tests/golden
    python make_sentencepiece.py sentencepiece.json

Needs sentencepiece (made with 0.2.3); the tests do not.  Format: {tokens, scores, types (as tokenizer.ggml.token_type),
texts: [{text, ids}]}.
"""

import io
import json
import sys
from pathlib import Path

import sentencepiece

TEXTS = [
    "The policy is the reference at first, and every pair ties.",
    " a space in front", "  two spaces,  and   three inside ", "line\n\nafter line\n",
    "\ttabs\t\tand 12345 digits, 3.14",
    "I'll say it isn't SO", "naïve café, Größe, Übung", "漢字とかな", "🙂🙃 and ▁ itself", "a", " ", "", "x" * 40,
    "def f(x):\n    return x ** 2  # squared\n", "gradient of the loss with respect to the log-probabilities",
]  # fmt: skip


def main(path: str) -> None:
    documents = Path(__file__).parents[2] / "docs"
    lines = [line for name in ("design.md", "objectives.md") for line in (documents / name).read_text().splitlines()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=700, model_type="bpe", byte_fallback=True,
        add_dummy_prefix=True, remove_extra_whitespaces=False, split_digits=True, normalization_rule_name="identity",
        character_coverage=0.999, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    numbers = range(processor.get_piece_size())
    kinds = [(processor.is_unknown, 2), (processor.is_control, 3), (processor.is_byte, 6)]
    golden = {
        "tokens": [processor.id_to_piece(i) for i in numbers],
        "scores": [processor.get_score(i) for i in numbers],
        "types": [next((kind for is_kind, kind in kinds if is_kind(i)), 1) for i in numbers],
        "texts": [{"text": text, "ids": processor.encode(text)} for text in TEXTS],
    }
    Path(path).write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
