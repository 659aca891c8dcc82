"""The data of MODPO's two recipes as files of pairs, as in the authors' repository.

python configs/modpo_data.py safety data/safe-rlhf       # {better,safer}-{train,eval}.jsonl
python configs/modpo_data.py summarize data/summarize    # {train,eval}.jsonl

The first is PKU-SafeRLHF-10K, the second summarize_from_feedback.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SAFETY_TEMPLATE = "BEGINNING OF CONVERSATION: USER: {raw_prompt} ASSISTANT:"
SUMMARY_TEMPLATE = "\n\nParagraph:\n{raw_prompt}\n\nTL;DR:\n"


def safety_pair(row: Mapping[str, Any], dimension: str) -> dict[str, str]:
    """A row of PKU-SafeRLHF as the pair of one dimension, `better` or `safer`."""
    chosen = row[f"{dimension}_response_id"]
    prompt = SAFETY_TEMPLATE.format(raw_prompt=row["prompt"])
    return {
        "prompt": prompt,
        "chosen": row[f"response_{chosen}"],
        "rejected": row[f"response_{1 - chosen}"],
    }


def summary_pair(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of summarize_from_feedback's comparisons as a pair."""
    summaries, chosen = row["summaries"], row["choice"]
    return {
        "prompt": SUMMARY_TEMPLATE.format(raw_prompt=row["info"]["post"]),
        "chosen": summaries[chosen]["text"],
        "rejected": summaries[1 - chosen]["text"],
    }


def safety_files(rows: Any) -> dict[str, Iterable[dict[str, str]]]:
    """File -> pairs.

    Args:
        rows: the data set, of which a tenth is held out.
    """
    parts = rows.train_test_split(test_size=0.1, seed=0)
    return {
        f"{dimension}-{name}.jsonl": [safety_pair(row, dimension) for row in parts[part]]
        for dimension in ("better", "safer")
        for name, part in (("train", "train"), ("eval", "test"))
    }


def summary_files(train: Any, validation: Any) -> dict[str, Iterable[dict[str, str]]]:
    """File -> pairs.

    Args:
        validation: the data set's own; half of it is held out, the other half is for tests.
    """
    held_out = validation.train_test_split(test_size=0.5, seed=0)["train"]
    return {"train.jsonl": map(summary_pair, train), "eval.jsonl": map(summary_pair, held_out)}


def main() -> None:
    from datasets import load_dataset

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", choices=["safety", "summarize"])
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    if args.recipe == "safety":
        files = safety_files(load_dataset("PKU-Alignment/PKU-SafeRLHF-10K", split="train"))
    else:
        splits = load_dataset("openai/summarize_from_feedback", "comparisons")
        files = summary_files(splits["train"], splits["validation"])
    args.out.mkdir(parents=True, exist_ok=True)
    for name, pairs in files.items():
        with (args.out / name).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
        print(args.out / name)


if __name__ == "__main__":
    main()
