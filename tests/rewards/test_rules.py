"""Rule rewards, and the scores that the data has already."""

import importlib
import re

import numpy as np
import pytest
import tiny
import tiny_pictures

from jaxpref.data.encode import encode_groups
from jaxpref.errors import InputError, RowError
from jaxpref.rewards import Limits, open_reward
from jaxpref.types import Group, Picture

PLAIN = "The cat sat on the mat. The dog ran to the park."
HARD = "Notwithstanding considerable institutional deliberation, comprehensive reorganisation necessitates compromise."


def score(what, *answers):
    return open_reward(what)(["q"] * len(answers), list(answers)).tolist()


def test_words():
    assert score("rule:words", "one", " two  words\n", "a-b c, d") == [-1, -2, -3]


def test_sentiment_orders_texts_and_stays_in_its_range():
    good, nothing, bad = score(
        "rule:vader", "I love this, it is wonderful!", "The train has wheels.", "Horrible. I hate it."
    )
    assert 1 >= good > 0.5 > nothing == 0 > -0.5 > bad >= -1


def test_readability_is_flesch_reading_ease():
    """206.835 - 1.015 words / sentences - 84.6 syllables / words; all words of the first text have one syllable."""
    plain, hard = score("rule:readability", PLAIN, HARD)
    assert plain == pytest.approx(206.835 - 1.015 * 12 / 2 - 84.6 * 12 / 12, abs=0.02)
    assert hard < 0


def test_profanity_counts_words():
    assert score("rule:profanity", "What a lovely day, classic!", "Shit, this is SHIT", "sh1t!") == [0, -2, -1]


def test_a_package_that_is_missing(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    for rule in ("vader", "readability", "profanity"):
        with pytest.raises(InputError, match=rf"(?s)rule:{rule}.*jaxpref\[rewards\]"):
            open_reward(f"rule:{rule}")


@pytest.mark.parametrize("what", ["rule:length", "rule:", "rule:tokens", "rule:words:3"])
def test_rules_that_do_not_exist(what):
    with pytest.raises(InputError, match="rule:words, rule:vader, .* or rule:tokens:MODEL"):
        open_reward(what)


# ---- tokens


@pytest.fixture(scope="module")
def token_reward(tiny_files):
    return open_reward(f"rule:tokens:{tiny_files.model}")


def test_rewards_of_models_of_text_see_no_pictures(token_reward):
    """What would be set for a model of its own (model.pictures) is not what helps here."""
    seen = Group([{"role": "user", "content": "q"}], (), 0, "rows.jsonl, row 1", pictures=(Picture("a.png"),))
    with pytest.raises(InputError, match="sees no pictures") as caught:
        token_reward([seen], ["a"])
    assert "rows.jsonl, row 1: 1 pictures" in str(caught.value) and "model.pictures" not in str(caught.value)


def test_tokens_of_answers_after_pictures(tmp_path):
    """Those of the pictures count where the limit cuts."""
    reward = open_reward(f"rule:tokens:{tiny_pictures.write_model(tmp_path / 'model')}")
    tiny_pictures.picture().save(tmp_path / "a.png")
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]}]
    group = Group(
        prompt, ([{"role": "assistant", "content": "abcd"}],), 0, "w", pictures=(Picture(f"{tmp_path}/a.png"),)
    )
    processor = tiny_pictures.make_processor(tmp_path, tiny_pictures.make_tokenizer())
    ((encoded,), _) = encode_groups([group], tiny_pictures.make_tokenizer(), max_length=None, processor=processor)
    tokens, prompt_tokens = len(encoded.completion_ids[0]), len(encoded.prompt_ids)
    assert reward.sees_pictures and reward.of([group]) == [(-tokens,)]
    assert reward.of([group], Limits(prompt_tokens + 2)) == [(-2,)] and tokens > 2


def test_tokens_are_those_of_training(token_reward):
    tokenizer = tiny.make_tokenizer()
    groups = [Group([{"role": "user", "content": "hi"}], ([{"role": "assistant", "content": "abc"}],), 0, "w"),
              Group("q", ("abcd", "ab"), 1, "w")]  # fmt: skip
    encoded, _ = encode_groups(groups, tokenizer, max_length=None)
    expected = [tuple(-len(ids) for ids in group.completion_ids) for group in encoded]
    assert token_reward.of(groups) == expected and expected[1] == (-5, -3)
    assert token_reward(["q", "q"], ["abcd", "ab"]).tolist() == [-5, -3]
    assert token_reward.of(groups, Limits(4))[1] == (-3, -3), "a token of the prompt, three of an answer"
    assert token_reward.of([Group("qqqqqq", ("a", "b"), 0, "w"), groups[1]], Limits(6)) == [None, (-5, -3)]


# ---- columns


def pair(**columns):
    return Group("q", ("a", "b"), 0, "d.jsonl, row 3", columns=columns)


def test_columns_are_read_where_they_stand():
    reward = open_reward("column:help")
    assert reward.of([pair(**{"scores/help": (2.0, 1.0), "scores/brief": (0.0, 0.0)})]) == [(2.0, 1.0)]
    assert reward.of([pair(help=(4.0, 3.0))]) == [(4.0, 3.0)] and reward.columns == ("help", "scores/help")
    with pytest.raises(RowError, match="(?s)row 3: the scores there are: brief"):
        reward.of([pair(**{"scores/brief": (2.0, 1.0)})])
    with pytest.raises(RowError, match="no scores"):
        reward.of([pair(help=3.0)])


def test_a_column_does_not_score_new_answers():
    with pytest.raises(InputError, match="a score that is in the data"):
        open_reward("column:help")(["q"], ["a"])


def test_answers_of_several_messages_are_refused_by_rewards_of_texts():
    turns = [
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    group = Group([{"role": "user", "content": "q"}], (turns,), 0, "d.jsonl, row 7")
    with pytest.raises(RowError, match="(?s)row 7: 3 messages"):
        open_reward("rule:words").of([group])
    one = [{"role": "assistant", "content": "a b"}]
    assert open_reward("rule:words").of([Group(group.prompt, (one, one), 0, "w")]) == [(-2.0, -2.0)]


def test_identities_tell_rules_apart(tiny_files, tmp_path):
    other = tiny.write_model(tmp_path / "other")
    (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    names = ["rule:words", "rule:vader", f"rule:tokens:{tiny_files.model}", f"rule:tokens:{other}"]
    found = [open_reward(name).identity() for name in names]
    assert len(set(found)) == 4 and found == [open_reward(name).identity() for name in names]
    assert re.search(r"vaderSentiment \d", found[1]) and open_reward("column:x").identity is None
    assert np.isfinite(score("rule:readability", "")).all()


@pytest.mark.parametrize("text", ["adapter:", "adapter:dir", "adapter:dir,base=m", "adapter:dir,base=m,beta=x"])
def test_an_adapter_needs_base_and_beta(text):
    with pytest.raises(InputError, match="adapter:DIR,base=MODEL,beta=NUMBER"):
        open_reward(text)
