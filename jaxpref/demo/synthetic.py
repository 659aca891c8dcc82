"""Seeded preference pairs, scored (correctness, brevity, politeness) by rules anyone can rerun.

    python -m jaxpref.demo.synthetic --rows 1200 --seed 0 --out DIR

Each row asks one checkable question and holds two answers in conversational format.  Their scores
are those of `scores.py` on the text, never what the generator meant to write; `chosen` is the
answer with the higher `overall`.  Many answers win on one axis and lose on another, so that
objective weights matter.  The test split asks about entities (countries, words, number pairs, ...)
that no training question is about, and some of its phrasings are new too: a gain there is not
memory.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from random import Random
from statistics import fmean

from jaxpref.demo import wording as tables
from jaxpref.demo.items import Item, items
from jaxpref.demo.scores import AXES, overall, score
from jaxpref.errors import InputError
from jaxpref.files import check_destination, whole_file

MIN_ROWS = 50
MIN_MARGIN = 0.2
"""Smallest difference in `overall` (equal weights) between chosen and rejected."""
MAX_WORDS = 32

# Of `Random`, only `random` is used: its sequence is the one that Python promises to keep between
# versions.


def _pick(rng: Random, options: Sequence):
    return options[int(rng.random() * len(options))]


def _shuffled(rng: Random, options: Sequence) -> list:
    out = list(options)
    for i in range(len(out) - 1, 0, -1):
        j = int(rng.random() * (i + 1))
        out[i], out[j] = out[j], out[i]
    return out


def _weighted(rng: Random, table: Sequence[tuple]):
    """An option of `table`, whose rows are (option, weight)."""
    left = rng.random() * sum(weight for _, weight in table)
    for option, weight in table:
        if left < weight:
            return option
        left -= weight


# Options with integer weights.
_TONES = (("rude", 28), ("plain", 26), ("polite", 46))
_LENGTHS = (("short", 40), ("medium", 30), ("long", 30))
_ANY = (_TONES, _LENGTHS)
_PLEASING = ((("polite", 1),), (("short", 1),))
_TIRESOME = ((("rude", 1),), (("long", 1),))
_PLANS = (  # whether chosen and rejected are right, and their style
    (((True, _ANY), (False, _ANY)), 55),
    (((True, _ANY), (True, _ANY)), 34),
    (((False, _PLEASING), (True, _TIRESOME)), 7),  # wins on brevity and tone alone
    (((False, _ANY), (False, _ANY)), 4),
)
_TONE_TEXT = {
    "rude": (tables.RUDE_OPENERS, tables.RUDE_LEADS, tables.RUDE_CLOSERS),
    "polite": (tables.POLITE_OPENERS, tables.POLITE_LEADS, tables.POLITE_CLOSERS),
}


def _row(rng: Random, kind: str, item: Item, prompt: str) -> dict:
    """One row; answers are drawn until their scores are as planned and far enough apart."""
    plan = _weighted(rng, _PLANS)
    while True:
        texts = [_answer(rng, kind, item, right, *style) for right, style in plan]
        scores = [score(text, item.answer, item.wrong) for text in texts]
        # A filler can hold a candidate by accident ("went" where that is the answer): draw again.
        as_planned = all(
            s["correctness"] == right for s, (right, _) in zip(scores, plan, strict=True)
        )
        short_enough = max(len(text.split()) for text in texts) <= MAX_WORDS
        if as_planned and short_enough and overall(scores[0]) - overall(scores[1]) >= MIN_MARGIN:
            break
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": texts[0]}],
        "rejected": [{"role": "assistant", "content": texts[1]}],
        "scores_chosen": scores[0],
        "scores_rejected": scores[1],
        "kind": kind,
        "entity": item.entity,
        "answer": item.answer,
        "wrong": list(item.wrong),
    }


def _answer(rng: Random, kind: str, item: Item, right: bool, tones: tuple, lengths: tuple) -> str:
    """One answer in a random tone and length.

    Args:
        right: whether it is meant to assert the right candidate.
    """
    tone, length = _weighted(rng, tones), _weighted(rng, lengths)
    core = _core(rng, kind, item, right, length)
    opener = lead = closer = ""
    if tone == "plain":
        lead = _pick(rng, tables.PLAIN_LEADS) if rng.random() < 0.25 else ""
    else:
        openers, leads, closers = _TONE_TEXT[tone]
        where = _pick(rng, ("front", "end", "both"))
        if where != "end":
            if rng.random() < 0.65:
                opener = _pick(rng, openers)
            else:
                lead = _pick(rng, leads)
        if where != "front":
            closer = _pick(rng, closers)
    parts = [opener, f"{lead} {core}".strip(), closer]
    if length == "long":
        target = 15 + int(rng.random() * 10)
        before = rng.random() < 0.5
        while len(" ".join(parts).split()) < target:
            filler = _pick(rng, tables.FILLERS_BEFORE if before else tables.FILLERS_AFTER)
            if filler not in parts:
                parts.insert(1 if before else -1, filler)
            before = False
    return " ".join(_capitalised(part) for part in parts if part)


def _core(rng: Random, kind: str, item: Item, right: bool, length: str) -> str:
    """The sentence that holds the answer."""
    _, statements, details = tables.KINDS[kind]
    candidates = [item.answer, _pick(rng, item.wrong)]
    said, other = candidates if right else candidates[::-1]
    if not right and rng.random() < 0.1:
        said, other = _shuffled(rng, candidates)
        template = _pick(rng, tables.HEDGED)
    elif length == "short":
        template = _pick(rng, tables.SHORT)
    else:
        detailed = length == "long" and rng.random() < 0.6
        template = _pick(rng, tables.cells(details if detailed else statements))
    return template.format(a=said, w=other, **item.slots)


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def generate(rows: int, *, seed: int, test_fraction: float = 0.2) -> tuple[list[dict], list[dict]]:
    """Train and test rows, together `rows` of them, the kinds in equal shares as far as they last.

    Args:
        rows: rows of both splits together, at least 50.
        seed: 0 or more; the same seed gives the same rows on every Python version.
        test_fraction: share of rows, and of the entities of every kind, that the test split gets;
            in (0, 1).

    Returns:
        (train, test).  A row has prompt, chosen and rejected as messages, scores_chosen and
        scores_rejected by axis, kind, entity, and answer and wrong for the scorers.  No prompt
        occurs twice, and no entity is in both splits.

    Raises:
        InputError: a bad argument, or more rows than there are questions.
    """
    _check(rows, seed, test_fraction)
    rng = Random(seed)
    train_items, test_items = _split(rng, items(rng), test_fraction)
    test_rows = int(rows * test_fraction + 0.5)
    train_questions = _questions(rng, train_items, held_out_prompts=False)
    test_questions = _questions(rng, test_items, held_out_prompts=True)
    splits = []
    wants = (("train", rows - test_rows, train_questions), ("test", test_rows, test_questions))
    for name, wanted, have in wants:
        if not 0 < wanted <= len(have):
            raise InputError(
                f"1 to {len(have)} {name} rows at test_fraction={test_fraction}",
                f"rows={rows}, which makes {wanted} {name} rows",
                "change rows or test_fraction",
            )
        splits.append([_row(rng, *question) for question in _shuffled(rng, have[:wanted])])
    return splits[0], splits[1]


def _check(rows: int, seed: int, test_fraction: float) -> None:
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < MIN_ROWS:
        raise InputError(
            f"rows as an integer of at least {MIN_ROWS}", f"rows={rows!r}", "ask for more rows"
        )
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InputError(
            "seed as an integer from 0", f"seed={seed!r}", "use 0 or a positive integer"
        )
    if not isinstance(test_fraction, float) or not 0 < test_fraction < 1:
        got = f"test_fraction={test_fraction!r}"
        raise InputError(
            "test_fraction between 0 and 1, both excluded", got, "use 0.2, the default"
        )


def _split(rng: Random, by_kind: dict[str, list[Item]], test_fraction: float) -> tuple[dict, dict]:
    """Items of the training and of the test entities; an entity is on one side for all kinds."""
    is_test: dict[str, bool] = {}
    for members in by_kind.values():
        entities = dict.fromkeys(item.entity for item in members)
        fresh = _shuffled(rng, [entity for entity in entities if entity not in is_test])
        held_out = int(len(fresh) * test_fraction + 0.5)
        is_test.update((entity, i < held_out) for i, entity in enumerate(fresh))

    def side(test: bool) -> dict[str, list[Item]]:
        return {
            kind: [item for item in members if is_test[item.entity] == test]
            for kind, members in by_kind.items()
        }

    return side(test=False), side(test=True)


def _questions(
    rng: Random, by_kind: dict[str, list[Item]], *, held_out_prompts: bool
) -> list[tuple]:
    """Every (kind, item, prompt), in random order within a kind, the kinds taking turns."""
    queues = []
    for kind, members in by_kind.items():
        templates = tables.cells(tables.KINDS[kind][0])
        if not held_out_prompts:
            templates = templates[: -tables.HELD_OUT_PROMPTS]
        asked = [
            (kind, item, _capitalised(template.format(**item.slots)))
            for item in members
            for template in templates
        ]
        queues.append(_shuffled(rng, asked))
    longest = max(map(len, queues))
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def chosen_is_good(row: Mapping) -> bool:
    """Whether the chosen answer is right, polite, and of at most 15 words."""
    scores = row["scores_chosen"]
    return scores["correctness"] == 1 and scores["politeness"] > 0.5 and scores["brevity"] >= 0.6


def write(
    directory: str | Path,
    rows: int,
    seed: int,
    test_fraction: float = 0.2,
    train_on: Callable[[Mapping], bool] = lambda row: True,
) -> tuple[Path, Path]:
    """Writes `train.jsonl` and `test.jsonl` into `directory` and returns their paths.

    Args:
        rows, seed, test_fraction: as of `generate`.
        train_on: which rows of the training split are written.
    Errors: InputError for such files that hold something else.
    """
    directory = Path(directory)
    train, test = generate(rows, seed=seed, test_fraction=test_fraction)
    splits = [row for row in train if train_on(row)], test
    paths = (directory / "train.jsonl", directory / "test.jsonl")
    texts = ["".join(json.dumps(row) + "\n" for row in split) for split in splits]
    for path, text in zip(paths, texts, strict=True):
        same = path.is_file() and path.read_bytes() == text.encode()
        if not same:
            check_destination(path, "a directory without other data, for the generated rows")
    for path, text in zip(paths, texts, strict=True):
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
    return paths


LONG_BREVITY = 0.5
"""Below this score for brevity an answer is long."""


def long_answers(rows: Sequence[Mapping]) -> list[dict]:
    """The long answers of the pairs, rude ones too, as rows of one completion each.

    A model that is first trained on them is wordy and polite half of the time, so that what
    preferences then change is plain to see.
    """
    return [
        {"prompt": row["prompt"], "completion": row[side]}
        for row in rows
        for side in ("chosen", "rejected")
        if row[f"scores_{side}"]["brevity"] < LONG_BREVITY
    ]


def summary(rows: Sequence[Mapping]) -> str:
    """Kinds of the rows, mean scores, how often chosen wins on each axis, and axes conflict."""
    counts = sorted(Counter(row["kind"] for row in rows).items())
    lines = [", ".join(f"{kind} {count}" for kind, count in counts)]
    lines.append(f"{'axis':<12} {'chosen':>7} {'rejected':>9} {'wins':>6} {'ties':>6} {'loses':>6}")
    gaps = {}
    for axis in AXES:
        chosen = [row["scores_chosen"][axis] for row in rows]
        rejected = [row["scores_rejected"][axis] for row in rows]
        gap = gaps[axis] = [high - low for high, low in zip(chosen, rejected, strict=True)]
        wins, ties = fmean(g > 0 for g in gap), fmean(g == 0 for g in gap)
        loses = fmean(g < 0 for g in gap)
        means = f"{fmean(chosen):>7.3f} {fmean(rejected):>9.3f}"
        lines.append(f"{axis:<12} {means} {wins:>6.1%} {ties:>6.1%} {loses:>6.1%}")
    for one, other in combinations(AXES, 2):
        conflicts = fmean(a * b < 0 for a, b in zip(gaps[one], gaps[other], strict=True))
        lines.append(f"{one} against {other}: {conflicts:.1%} of pairs conflict")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: writes the two files and prints a summary of each."""
    parser = argparse.ArgumentParser(
        prog="jaxpref.demo.synthetic", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--rows", type=int, default=1200, help="rows of both splits together (default 1200)"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same rows (default 0)")
    parser.add_argument(
        "--test-fraction", type=float, default=0.2, help="share of test rows (default 0.2)"
    )
    parser.add_argument("--out", required=True, help="directory for train.jsonl and test.jsonl")
    parser.add_argument(
        "--long", action="store_true", help="also long.jsonl: the long answers of the training rows"
    )
    options = parser.parse_args(arguments)
    try:
        paths = write(options.out, options.rows, options.seed, options.test_fraction)
    except InputError as error:
        sys.exit(str(error))
    for path in paths:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        print(f"{path}: {len(rows)} rows\n{summary(rows)}\n")
        if options.long and path.name == "train.jsonl":
            _write_long(path.with_name("long.jsonl"), rows)


def _write_long(path: Path, rows: Sequence[Mapping]) -> None:
    answers = long_answers(rows)
    with whole_file(path) as partial:
        lines = "".join(json.dumps(answer) + "\n" for answer in answers)
        partial.write_text(lines, encoding="utf-8", newline="\n")
    print(f"{path}: {len(answers)} rows\n")


if __name__ == "__main__":
    main()
