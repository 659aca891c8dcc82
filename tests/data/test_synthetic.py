"""The synthetic preference data: scorers against hand-made cases, and what every generated row must keep to."""

import hashlib
import json
import re
import sys
from collections import Counter
from pathlib import Path
from random import Random
from statistics import correlation, fmean

import pytest

from jaxpref.data import synthetic, synthetic_text
from jaxpref.data.synthetic import (
    AXES,
    MAX_WORDS,
    MIN_MARGIN,
    generate,
    main,
    overall,
    score,
    score_brevity,
    score_correctness,
    score_politeness,
    summary,
    write,
)
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


class TestCorrectness:
    @pytest.mark.parametrize(
        "text",
        [
            "12.",
            "It's 12!",
            "5 + 7 = 12",
            "5+7=12",
            "Twelve.",
            "The answer is **12**.",
            "12, not 13.",
            "Not 13. It's 12.",
            "It is not 13 but 12.",
            "No, it's 12.",
            "It isn’t 13, it’s 12.",
            "13 is wrong, it is 12.",
            "12 is more than 13.",  # 13 is only what 12 is compared with
            "112 is something else; here it is 12.",
        ],
    )
    def test_right(self, text):
        assert score_correctness(text, "12", ["13", "11"]) == 1.0

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "I do not know.",
            "Not 12.",
            "It is not 12.",
            "It isn't really equal to 12.",
            "12 is not the answer.",
            "12 is wrong.",
            "112",
            "120",
            "12.5",
            "1.12",
            "12,000",
            "-12",
            "12th",
            "13, not 12.",
            "12 or 13.",
            "Either 12 or 13.",
            "It is 12. Or is it thirteen?",
            "13 is more than 12.",
        ],
    )
    def test_wrong(self, text):
        assert score_correctness(text, "12", ["13", "11"]) == 0.0

    @pytest.mark.parametrize(
        ("text", "answer", "wrong", "expected"),
        [
            ("3,000 metres", "3000", ["300"], 1.0),
            ("Roughly 3,000,000.", "3000", [], 0.0),
            ("Cold.", "cold", ["cool"], 1.0),
            ("The opposite is 'cold'.", "cold", ["cool"], 1.0),
            ("scolded", "cold", [], 0.0),
            ("cold-blooded", "cold", [], 0.0),
            ("You may go. It is June.", "May", ["June"], 0.0),
            ("It may be May.", "May", ["June"], 1.0),
            ("It may be June.", "June", ["May"], 1.0),
            ("The capital is Bogotá.", "Bogota", ["Cali"], 1.0),
            ("South America.", "South America", ["North America", "Africa"], 1.0),
            ("It's Canberra rather than Sydney.", "Canberra", ["Sydney"], 1.0),
            ("Many say Sydney, yet it is Canberra.", "Canberra", ["Sydney"], 0.0),
            ("34 is smaller than the 57.", "34", ["57"], 1.0),
        ],
    )
    def test_other_kinds(self, text, answer, wrong, expected):
        assert score_correctness(text, answer, wrong) == expected


class TestBrevity:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [(0, 0.0), (1, 1.0), (5, 1.0), (6, 0.96), (10, 0.8), (29, 0.04), (30, 0.0), (99, 0.0)],
    )
    def test_by_words(self, words, expected):
        assert score_brevity(" ".join(["word"] * words)) == expected

    def test_white_space_adds_no_words(self):
        assert score_brevity("  a \n b\tc ") == score_brevity("a b c")


class TestPoliteness:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", 0.5),
            ("The answer is 12.", 0.5),
            ("Thank you for asking. It's 12.", 0.75),
            ("Thank you, thank you, thank you!", 0.75),  # one phrase, three times
            ("Great question! It's 12. Hope that helps!", 1.0),
            ("Great question! Gladly, please, thanks, take care: 12.", 1.0),
            ("Any child knows that.", 0.25),
            ("Ugh. 12. Now go away.", 0.0),
            ("Please stop asking stupid questions.", 0.0),  # polite word in a rude sentence
            ("Thanks for nothing.", 0.25),
            ("That is not a stupid question.", 0.5),
            ("I'm not happy to help.", 0.5),
            ("Don't be silly, thank you very much.", 0.75),  # a negated insult is no insult
            ("DON’T ASK AGAIN.", 0.25),
            ("It is a foolproof pleasureland.", 0.5),  # whole words only
        ],
    )
    def test_cases(self, text, expected):
        assert score_politeness(text) == expected

    @pytest.mark.parametrize(
        ("tables", "expected"),
        [
            (("POLITE_OPENERS", "POLITE_LEADS", "POLITE_CLOSERS"), 0.75),
            (("RUDE_OPENERS", "RUDE_LEADS", "RUDE_CLOSERS"), 0.25),
            (("PLAIN_LEADS", "FILLERS_BEFORE", "FILLERS_AFTER", "SHORT", "HEDGED"), 0.5),
        ],
    )
    def test_every_piece_of_wording_has_its_tone(self, tables, expected):
        pieces = [piece for table in tables for piece in getattr(synthetic_text, table)]
        assert {piece: score_politeness(piece) for piece in pieces} == dict.fromkeys(pieces, expected)


class TestOverall:
    scores = {"correctness": 1.0, "brevity": 0.5, "politeness": 0.0}

    def test_equal_weights_by_default(self):
        assert overall(self.scores) == pytest.approx(0.5)

    def test_weights(self):
        assert overall(self.scores, {"correctness": 0.0, "brevity": 2.0, "politeness": 1.0}) == 1.0

    @pytest.mark.parametrize("weights", [{}, {"brevity": 1.0}, dict.fromkeys((*AXES, "humour"), 1.0)])
    def test_weights_must_name_the_axes(self, weights):
        with pytest.raises(InputError, match="one weight for each of correctness, brevity, politeness"):
            overall(self.scores, weights)


class TestFacts:
    items = [(kind, item) for kind, members in synthetic_text.items(Random(0)).items() for item in members]

    @pytest.mark.parametrize("kind", synthetic_text.KINDS)
    def test_every_sentence_scores_as_it_says(self, kind):
        """Each statement and detail, filled with the answer and with each wrong candidate."""
        _, *wordings = synthetic_text.KINDS[kind]
        templates = [*synthetic_text.SHORT, *(cell for w in wordings for cell in synthetic_text.cells(w))]
        for item in (item for of, item in self.items if of == kind):
            assert item.wrong and item.answer not in item.wrong
            for template in templates:
                for wrong in item.wrong:
                    right_text = template.format(a=item.answer, w=wrong, **item.slots)
                    wrong_text = template.format(a=wrong, w=item.answer, **item.slots)
                    assert score_correctness(right_text, item.answer, item.wrong) == 1.0, right_text
                    assert score_correctness(wrong_text, item.answer, item.wrong) == 0.0, wrong_text

    def test_arithmetic_answers(self):
        operators = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__}
        seen = set()
        for item in (item for kind, item in self.items if kind == "arithmetic"):
            a, sign, b = item.slots["expr"].split()
            assert item.answer == str(operators[sign](int(a), int(b)))
            seen.add(sign)
        assert seen == operators.keys()

    def test_some_answers_by_hand(self):
        answers = {(kind, *item.slots.values()): item.answer for kind, item in self.items}
        by_prompt = {
            ("capital", "Australia"): "Canberra",
            ("continent", "Kenya"): "Africa",
            ("opposite", "cold"): "hot",
            ("opposite", "hot"): "cold",
            ("calendar", "day", "Sunday", "two days after Sunday", "forward"): "Tuesday",
            ("calendar", "month", "February", "three months before February", "back"): "November",
            ("units", "minutes", "hours", "hour", "60", "3"): "180",
            ("letters", "butterfly"): "9",
            ("plural", "mouse"): "mice",
            ("past_tense", "go"): "went",
            ("colour", "a lemon"): "yellow",
        }
        assert {key: answers[key] for key in by_prompt} == by_prompt

    def test_entities_are_unique_within_a_kind(self):
        keys = Counter((kind, item.entity, item.answer) for kind, item in self.items)
        assert max(keys.values()) == 1


class TestReproducible:
    def test_same_seed_same_bytes(self, tmp_path):
        first, second = (write(tmp_path / name, 60, 7) for name in ("a", "b"))
        data = [path.read_bytes() for path in first]
        assert data == [path.read_bytes() for path in second]
        # Changes whenever wording, facts or the order of random draws change: then replace it, knowingly.
        assert hashlib.sha256(b"".join(data)).hexdigest() == GOLDEN_60_ROWS_SEED_7

    def test_another_seed_another_file(self):
        assert generate(60, seed=7) != generate(60, seed=8)

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
    source = "".join(Path(module.__file__).read_text() for module in (synthetic, synthetic_text))
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    assert imported - {"jaxpref"} <= sys.stdlib_module_names
