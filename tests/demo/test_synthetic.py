"""The synthetic preference data: scorers against hand-made cases, and what every generated row must keep to."""

import hashlib
import json
import re
import sys
from collections import Counter
from pathlib import Path
from statistics import correlation, fmean

import pytest

from jaxpref.demo import items, scores, synthetic
from jaxpref.demo import wording as synthetic_text
from jaxpref.demo.scores import AXES, overall, score
from jaxpref.demo.synthetic import MAX_WORDS, MIN_MARGIN, generate, main, summary, write
from jaxpref.errors import InputError

GOLDEN_60_ROWS_SEED_7 = "6aa23a675738c8267647c46d66875f07b3f7945d8c3b99e8d3fcfd871455ff3a"


def content(row: dict, side: str) -> str:
    (message,) = row[side]
    return message["content"]


def gaps(rows: list[dict], axis: str) -> list[float]:
    return [row["scores_chosen"][axis] - row["scores_rejected"][axis] for row in rows]


@pytest.fixture(scope="module")
def splits():
    return generate(1200, seed=0)


@pytest.fixture(scope="module")
def rows(splits):
    return splits[0] + splits[1]


class TestReproducible:
    def test_same_seed_same_bytes(self, tmp_path):
        first, second = (write(tmp_path / name, 60, 7) for name in ("a", "b"))
        data = [path.read_bytes() for path in first]
        assert data == [path.read_bytes() for path in second]
        # Changes whenever wording, facts or the order of random draws change: then replace it, knowingly.
        assert hashlib.sha256(b"".join(data)).hexdigest() == GOLDEN_60_ROWS_SEED_7

    def test_another_seed_another_file(self):
        assert generate(60, seed=7) != generate(60, seed=8)

    def test_training_rows_whose_chosen_answer_is_good(self, tmp_path):
        paths = write(tmp_path, 200, seed=4, train_on=synthetic.chosen_is_good)
        train, test = ([json.loads(line) for line in path.read_text().splitlines()] for path in paths)
        all_train, all_test = generate(200, seed=4)
        assert test == all_test and train == [row for row in all_train if row in train]
        assert len(all_train) / 4 < len(train) < len(all_train) * 3 / 4
        for row in train:
            scores = row["scores_chosen"]
            assert scores["correctness"] == 1 and scores["politeness"] >= 0.75
            assert len(row["chosen"][0]["content"].split()) <= 15

    def test_written_rows_are_the_generated_rows(self, tmp_path):
        paths = write(tmp_path / "new" / "folder", 60, 3, test_fraction=0.3)
        assert [path.name for path in paths] == ["train.jsonl", "test.jsonl"]
        read = tuple([json.loads(line) for line in path.read_text().splitlines()] for path in paths)
        assert read == generate(60, seed=3, test_fraction=0.3)


class TestSplits:
    @pytest.mark.parametrize(("rows", "fraction", "test_rows"), [(50, 0.2, 10), (77, 0.25, 19), (400, 0.1, 40)])
    def test_row_counts_are_exact(self, rows, fraction, test_rows):
        train, test = generate(rows, seed=1, test_fraction=fraction)
        assert (len(train), len(test)) == (rows - test_rows, test_rows)

    def test_no_prompt_twice_anywhere(self, rows):
        assert len({content(row, "prompt") for row in rows}) == len(rows) == 1200

    def test_no_entity_in_both_splits(self, splits):
        train, test = ({row["entity"] for row in split} for split in splits)
        assert train and test and not train & test

    def test_held_out_phrasings_are_asked_in_the_test_split_only(self, splits):
        train, test = splits
        held_out = {
            kind: [
                re.sub(r"\\\{\w+\\\}", ".+", re.escape(template))
                for template in synthetic_text.cells(prompts)[-synthetic_text.HELD_OUT_PROMPTS :]
            ]
            for kind, (prompts, _, _) in synthetic_text.KINDS.items()
        }

        def is_held_out(row):
            return any(re.fullmatch(p, content(row, "prompt"), re.IGNORECASE) for p in held_out[row["kind"]])

        assert not any(map(is_held_out, train))
        assert 0.1 < fmean(map(is_held_out, test)) < 0.5

    def test_all_kinds_in_both_splits_in_equal_shares(self, splits):
        for split in splits:
            counts = Counter(row["kind"] for row in split)
            assert counts.keys() == synthetic_text.KINDS.keys() and len(counts) >= 8
            assert max(counts.values()) - min(counts.values()) <= 1


class TestRows:
    def test_format(self, rows):
        for row in rows:
            assert [message["role"] for message in row["prompt"]] == ["user"]
            assert [message["role"] for message in row["chosen"] + row["rejected"]] == ["assistant"] * 2
            assert tuple(row["scores_chosen"]) == tuple(row["scores_rejected"]) == AXES

    def test_scores_are_those_of_the_text(self, rows):
        for row in rows:
            for side in ("chosen", "rejected"):
                assert row[f"scores_{side}"] == score(content(row, side), row["answer"], row["wrong"])

    def test_chosen_is_clearly_better_overall(self, rows):
        for row in rows:
            assert overall(row["scores_chosen"]) - overall(row["scores_rejected"]) >= MIN_MARGIN
            assert content(row, "chosen") != content(row, "rejected")

    def test_lengths(self, rows):
        assert all(3 <= len(content(row, "prompt").split()) <= 20 for row in rows)
        answers = [len(content(row, side).split()) for row in rows for side in ("chosen", "rejected")]
        assert min(answers) == 1 and max(answers) <= MAX_WORDS

    def test_sentences_are_well_formed(self, rows):
        for row in rows:
            for side in ("prompt", "chosen", "rejected"):
                text = content(row, side)
                assert not re.search(r"[{}|]|  |^\s|\s$", text), text
                assert re.match(r"[A-Z0-9']", text) and text[-1] in ".!?", text


class TestPreference:
    """What makes the set worth training on: no shortcut decides every pair, and the axes pull apart."""

    @pytest.mark.parametrize("axis", AXES)
    def test_no_axis_alone_decides(self, rows, axis):
        accuracy = fmean((gap > 0) + 0.5 * (gap == 0) for gap in gaps(rows, axis))
        assert 0.6 < accuracy < 0.9

    @pytest.mark.parametrize("axis", AXES)
    def test_chosen_wins_more_often_than_it_loses(self, splits, axis):
        for split in splits:
            wins, losses = (sum(sign * gap > 0 for gap in gaps(split, axis)) for sign in (1, -1))
            assert wins > 2 * losses > 0

    def test_politeness_and_brevity_conflict(self, rows):
        polite, brief = gaps(rows, "politeness"), gaps(rows, "brevity")
        assert fmean(a * b < 0 for a, b in zip(polite, brief, strict=True)) >= 0.2
        assert correlation(polite, brief) < 0.1

    def test_other_weights_turn_pairs_round(self, rows):
        """For each axis there are pairs that it alone would order the other way."""
        for axis in AXES:
            weights = {other: float(other == axis) for other in AXES}
            margins = [overall(r["scores_chosen"], weights) - overall(r["scores_rejected"], weights) for r in rows]
            assert 0.05 < fmean(margin < 0 for margin in margins) < 0.3

    def test_no_word_gives_chosen_away(self, rows):
        """Taking the answer with (or without) one fixed word or mark is right in at most 70 % of the rows."""
        balance = Counter()
        for row in rows:
            texts = (content(row, side).lower() for side in ("chosen", "rejected"))
            chosen, rejected = (set(re.findall(r"\w+|[^\w\s]", text)) for text in texts)
            balance.update(chosen - rejected)
            balance.subtract(rejected - chosen)
        word, lead = max(balance.items(), key=lambda entry: abs(entry[1]))
        assert 0.5 + abs(lead) / (2 * len(rows)) < 0.7, word


class TestErrors:
    @pytest.mark.parametrize(
        ("rows", "options", "message"),
        [
            (49, {}, "got: rows=49"),
            (60.0, {}, "got: rows=60.0"),
            (True, {}, "got: rows=True"),
            (60, {"seed": -1}, "got: seed=-1"),
            (60, {"seed": "0"}, "got: seed='0'"),
            (60, {"test_fraction": 0.0}, "got: test_fraction=0.0"),
            (60, {"test_fraction": 1.0}, "got: test_fraction=1.0"),
            (60, {"test_fraction": float("nan")}, "got: test_fraction=nan"),
            (60, {"test_fraction": "0.2"}, "got: test_fraction='0.2'"),
            (60, {"test_fraction": 0.001}, "which makes 0 test rows"),
            (10**6, {}, "which makes 800000 train rows"),
        ],
    )
    def test_bad_arguments(self, rows, options, message):
        with pytest.raises(InputError, match=re.escape(message)):
            generate(rows, **{"seed": 0, **options})

    def test_nothing_is_written_on_error(self, tmp_path):
        with pytest.raises(InputError):
            write(tmp_path / "out", 10, 0)
        assert not (tmp_path / "out").exists()


class TestCommandLine:
    def test_writes_and_summarises(self, tmp_path, capsys):
        main(["--rows", "60", "--seed", "7", "--out", str(tmp_path)])
        printed = capsys.readouterr().out
        train, test = generate(60, seed=7)
        assert f"{tmp_path / 'train.jsonl'}: 48 rows" in printed and summary(test) in printed
        assert (tmp_path / "test.jsonl").read_text().count("\n") == 12

    def test_error_is_a_message(self, tmp_path):
        with pytest.raises(SystemExit, match="rows=3"):
            main(["--rows", "3", "--out", str(tmp_path)])

    def test_summary_figures(self):
        def row(chosen, rejected):
            sides = (dict(zip(AXES, values, strict=True)) for values in (chosen, rejected))
            return {"kind": "k", **dict(zip(("scores_chosen", "scores_rejected"), sides, strict=True))}

        text = summary([row((1, 0.5, 1), (0, 1, 1)), row((1, 1, 0), (1, 0.5, 0.5))])
        assert re.search(r"^k 2$", text, re.MULTILINE)
        assert re.search(r"^correctness +1\.000 +0\.500 +50\.0% +50\.0% +0\.0%$", text, re.MULTILINE)
        assert re.search(r"^politeness +0\.500 +0\.750 +0\.0% +50\.0% +50\.0%$", text, re.MULTILINE)
        assert "correctness against brevity: 50.0% of pairs conflict" in text
        assert "brevity against politeness: 50.0% of pairs conflict" in text


def test_modules_import_the_standard_library_only():
    modules = (items, scores, synthetic, synthetic_text)
    source = "".join(Path(module.__file__).read_text() for module in modules)
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    assert imported - {"jaxpref"} <= sys.stdlib_module_names
