"""The scorers of the synthetic data against hand-made cases, and the facts that they score by."""

from collections import Counter
from random import Random

import pytest

from jaxpref.demo import wording as synthetic_text
from jaxpref.demo.items import items
from jaxpref.demo.scores import AXES, overall, score_brevity, score_correctness, score_politeness
from jaxpref.errors import InputError


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
    items = [(kind, item) for kind, members in items(Random(0)).items() for item in members]

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
