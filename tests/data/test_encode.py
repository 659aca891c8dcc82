"""Token ids by TRL's rules: the end token, the prompt boundary, the length limit; and the counts of it all."""

import copy
import json
import random
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jaxpref.data.encode import EncodeReport, encode_group, encode_groups, encode_prompts
from jaxpref.data.kinds import to_group
from jaxpref.data.sources import read_rows
from jaxpref.data.truncation import TRUNCATIONS, Dropped
from jaxpref.errors import InputError, RowError
from jaxpref.models.hf.tokenizer import load_tokenizer
from jaxpref.types import EncodedGroup, Group

CHATML = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% if style %}<|im_start|>system\n{{ style }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'bad' %}{{ raise_exception('no such role') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]
MERGES = [("a", "b"), ("ab", "c"), ("Ġ", "y"), ("Ġy", "es"), ("e", "s"), ("n", "o"), ("Ġ", "no")]


def make_tokenizer(bos=False, eos="<|im_end|>", template=CHATML, adds_eos=False):
    """Byte-level BPE with the merges above: ids can be worked out by hand."""
    tokens = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()) + [a + b for a, b in MERGES]
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    if bos:
        single = "<s> $A <|im_end|>" if adds_eos else "<s> $A"
        backend.post_processor = processors.TemplateProcessing(single, special_tokens=[("<s>", 1), ("<|im_end|>", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, pad_token="<pad>", bos_token="<s>" if bos else None
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def pair(prompt, *completions, row_id=0, **more):
    return Group(prompt, completions, row_id, f"train.jsonl, row {row_id + 1}", **more)


def chat(prompt, *completions, row_id=0, **more):
    messages = [[{"role": "assistant", "content": c}] for c in completions]
    return pair([{"role": "user", "content": prompt}], *messages, row_id=row_id, **more)


def encode(group, tokenizer, max_length=None, **options):
    """Tokens as text, (prompt, completions...), and the report."""
    report = EncodeReport()
    result = encode_group(group, tokenizer, max_length=max_length, report=report, **options)
    if isinstance(result, Dropped):
        return result, report
    parts = (result.prompt_ids, *result.completion_ids)
    assert all(part.dtype == np.int32 for part in parts)
    return [tokenizer.convert_ids_to_tokens(part.tolist()) for part in parts], report


# ---- rules


def test_standard_format_appends_the_end_token_once(tokenizer):
    parts, _ = encode(pair("q:", " yes", " no<|im_end|>"), tokenizer)
    assert parts == [["q", ":"], ["Ġyes", "<|im_end|>"], ["Ġno", "<|im_end|>"]]


def test_standard_format_takes_special_tokens_of_the_tokenizer_once():
    parts, _ = encode(pair("q:", " yes", " no"), make_tokenizer(bos=True))
    assert parts == [["<s>", "q", ":"], ["Ġyes", "<|im_end|>"], ["Ġno", "<|im_end|>"]]


@pytest.mark.parametrize("adds_eos", [False, True])
@pytest.mark.parametrize("prompt", ["q:", "<s>q:"])
def test_one_bos_and_one_end_token_whoever_writes_them(prompt, adds_eos):
    tokenizer = make_tokenizer(bos=True, adds_eos=adds_eos)
    group = pair(prompt, " yes", " no<|im_end|>")
    parts, report = encode(group, tokenizer)
    assert parts == [["<s>", "q", ":"], ["Ġyes", "<|im_end|>"], ["Ġno", "<|im_end|>"]]
    assert report.boundary_merges == 0
    [prompt_ids] = encode_prompts([replace(group, completions=())], tokenizer)
    assert tokenizer.convert_ids_to_tokens(prompt_ids.tolist()) == ["<s>", "q", ":"]


def test_an_empty_prompt_is_the_bos_token():
    tokenizer = make_tokenizer(bos=True, adds_eos=True)
    assert encode(pair("", "yes", "<s>no"), tokenizer)[0] == [
        ["<s>"],
        ["y", "es", "<|im_end|>"],
        ["no", "<|im_end|>"],
    ]


def test_a_llama_tokenizer_that_ends_texts_itself(shared_dir):
    folder = shared_dir / "cases" / "tokenizers" / "double_eos"
    [(row, where)] = read_rows(str(folder / "rows.jsonl"))
    tokenizer = load_tokenizer(folder / "model")
    [encoded], _ = encode_groups([to_group(row, where, 0)], tokenizer, max_length=None)
    assert encoded.prompt_ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in encoded.prompt_ids
    for ids in encoded.completion_ids:
        assert ids.tolist().index(tokenizer.eos_token_id) == len(ids) - 1


def test_conversational_format_is_the_template_alone():
    tokenizer = make_tokenizer(bos=True)
    group = chat("no", "yes", "ab<|im_end|>")
    parts, _ = encode(group, tokenizer)
    text = [tokenizer.decode(tokenizer.convert_tokens_to_ids(p)) for p in parts]
    assert text == [
        "<|im_start|>user\nno<|im_end|>\n<|im_start|>assistant\n",
        "yes<|im_end|>\n",
        "ab<|im_end|><|im_end|>\n",
    ]


def test_conversational_ids_are_those_of_apply_chat_template(tokenizer):
    group = chat("no é\n", "  yes", "ab", tools=[{"name": "f"}], template_kwargs={"style": "terse"})
    encoded = encode_group(group, tokenizer, max_length=None)
    for messages, generation, ids in [
        (group.prompt, True, encoded.prompt_ids),
        *(
            (group.prompt + c, False, np.concatenate([encoded.prompt_ids, part]))
            for c, part in zip(group.completions, encoded.completion_ids, strict=True)
        ),
    ]:
        expected = tokenizer.apply_chat_template(
            messages,
            tools=[{"name": "f"}],
            style="terse",
            add_generation_prompt=generation,
            tokenize=True,
            return_dict=False,
        )
        assert ids.tolist() == expected


def test_tools_and_template_variables_reach_the_template(tokenizer):
    group = chat("q", "yes", "no", tools=[{"name": "f"}], template_kwargs={"style": "terse"})
    prompt = tokenizer.decode(encode_group(group, tokenizer, max_length=None).prompt_ids)
    assert prompt.startswith('<|im_start|>tools\n[{"name": "f"}]<|im_end|>\n<|im_start|>system\nterse<|im_end|>\n')


def test_generation_prompt_even_after_an_assistant_message(tokenizer):
    """The prompt is what the sequences share, so an unused generation prompt is no part of it."""
    prompt = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    group = pair(prompt, [{"role": "user", "content": "x"}], [{"role": "user", "content": "y"}])
    parts, report = encode(group, tokenizer)
    assert parts[0][-1] == "<|im_start|>"  # shared with the next message
    assert (report.boundary_merges, report.completions_with_other_turns) == (1, 2)


def test_a_merge_over_the_boundary_moves_prompt_tokens_into_all_completions(tokenizer):
    parts, report = encode(pair("x ab", "c", " no"), tokenizer)
    assert parts == [["x", "Ġ"], ["abc", "<|im_end|>"], ["ab", "Ġno", "<|im_end|>"]]
    assert (report.boundary_merges, report.boundary_tokens, report.empty_prompts) == (1, 1, 0)
    assert "1 groups whose completions replace 1 prompt tokens" in str(report)


def test_a_merge_may_leave_no_prompt(tokenizer):
    parts, report = encode(pair("ab", "c", " no"), tokenizer)
    assert parts == [[], ["abc", "<|im_end|>"], ["ab", "Ġno", "<|im_end|>"]]
    assert (report.boundary_merges, report.empty_prompts) == (1, 1)


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_completions(tokenizer, count):
    parts, _ = encode(pair("x ab", *["c", " no", " yes"][:count]), tokenizer)
    assert parts[0] == ["x", "Ġ"]
    assert len(parts) == 1 + count


def test_row_id_place_and_columns_pass_through(tokenizer):
    group = pair("q:", " yes", " no", row_id=4, columns={"margin": 1.0})
    encoded = encode_group(group, tokenizer, max_length=None)
    assert (encoded.row_id, encoded.where, encoded.columns) == (4, "train.jsonl, row 5", {"margin": 1.0})


# ---- the length limit: prompt of 3 tokens, completions of 4 and 2 (with the end token)

LONG = pair("q:?", "xyz", "w")


def letters(text):
    """One token a character, `.` for the end token."""
    return ["<|im_end|>" if c == "." else c for c in text]


@pytest.mark.parametrize(
    "truncation, max_length, expected, counts",
    [
        # counts: completions truncated, their tokens cut, prompts truncated, their tokens cut
        ("keep_start", 7, ("q:?", "xyz.", "w."), (0, 0, 0, 0)),
        ("keep_start", 6, ("q:?", "xyz", "w."), (1, 1, 0, 0)),
        ("keep_start", 4, ("q:?", "x", "w"), (2, 4, 0, 0)),
        ("keep_start", 3, "prompt as long as max_length", None),
        ("keep_end", 7, ("q:?", "xyz.", "w."), (0, 0, 0, 0)),
        ("keep_end", 6, (":?", "xyz.", "w."), (0, 0, 1, 1)),
        ("keep_end", 5, ("?", "xyz.", "w."), (0, 0, 1, 2)),
        ("keep_end", 4, ("?", "xyz", "w."), (1, 1, 1, 2)),
        ("keep_end", 2, ("?", "x", "w"), (2, 4, 1, 2)),
        ("drop", 7, ("q:?", "xyz.", "w."), (0, 0, 0, 0)),
        ("drop", 6, "longer than max_length", None),
        ("error", 7, ("q:?", "xyz.", "w."), (0, 0, 0, 0)),
    ],
)
def test_truncation(tokenizer, truncation, max_length, expected, counts):
    result, report = encode(LONG, tokenizer, max_length, truncation=truncation)
    if isinstance(expected, str):
        assert result == Dropped(expected, "train.jsonl, row 1")
        assert (report.groups_in, report.groups_kept, report.dropped) == (1, 0, {expected: 1})
        return
    assert result == [letters(part) for part in expected]
    assert (report.groups_in, report.groups_kept, report.dropped) == (1, 1, {})
    assert counts == (
        report.completions_truncated,
        report.completion_tokens_cut,
        report.prompts_truncated,
        report.prompt_tokens_cut,
    )


def test_truncation_error_names_row_and_lengths(tokenizer):
    with pytest.raises(InputError, match=r"train\.jsonl, row 1: 7 tokens, 3 of them in the prompt"):
        encode(LONG, tokenizer, 6, truncation="error")


@pytest.mark.parametrize("max_length, prompt", [(7, ["<s>", ":", "?"]), (5, ["<s>"]), (2, ["<s>"])])
def test_keep_end_keeps_the_token_that_starts_every_text(max_length, prompt):
    parts, _ = encode(LONG, make_tokenizer(bos=True), max_length, truncation="keep_end")
    assert parts[0] == prompt


def test_keep_end_with_an_empty_prompt(tokenizer):
    parts, report = encode(pair("", "xyz", "w"), tokenizer, 3, truncation="keep_end")
    assert parts == [[], letters("xyz"), letters("w.")]
    assert (report.empty_prompts, report.prompts_truncated) == (1, 0)


@pytest.mark.parametrize("truncation", TRUNCATIONS[:3])
def test_no_sequence_beyond_the_limit_and_no_completion_empty(tokenizer, truncation):
    rng = random.Random(1)
    groups = [
        pair(*("".join(rng.choice("abc y") for _ in range(rng.randrange(1, 14))) for _ in range(3)), row_id=i)
        for i in range(300)
    ]
    encoded, report = encode_groups(groups, tokenizer, max_length=9, truncation=truncation)
    for group in encoded:
        assert min(map(len, group.completion_ids)) >= 1
        assert len(group.prompt_ids) + max(map(len, group.completion_ids)) <= 9
    assert report.groups_kept == len(encoded) == 300 - report.dropped.total()
    assert (report.groups_kept == 300) == (truncation == "keep_end")


def test_completions_that_truncation_makes_equal_are_kept_and_counted(tokenizer):
    parts, report = encode(pair("q:", "xya", "xyb"), tokenizer, 4)
    assert parts[1] == parts[2] == letters("xy")
    assert report.identical_completions == 1
    assert "1 groups with completions of the same tokens" in str(report)
    assert encode(pair("q:", "xya", "xyb"), tokenizer)[1].identical_completions == 0


# ---- many groups


def mixed_groups():
    rng = random.Random(0)
    groups = []
    for row_id in range(700):  # several batches
        texts = ["".join(rng.choice("abc yesno\n") for _ in range(rng.randrange(1, 30))) for _ in range(3)]
        groups.append((pair if rng.random() < 0.5 else chat)(*texts, row_id=row_id))
    return groups


def test_batches_give_what_single_groups_give_in_order(tokenizer):
    groups = mixed_groups()
    encoded, report = encode_groups(iter(groups), tokenizer, max_length=40)
    single_report = EncodeReport()
    single = [encode_group(g, tokenizer, max_length=40, report=single_report) for g in groups]
    single = [s for s in single if isinstance(s, EncodedGroup)]
    assert report == single_report
    assert 0 < report.groups_kept < 700
    assert [g.row_id for g in encoded] == [g.row_id for g in single]
    for a, b in zip(encoded, single, strict=True):
        assert a.prompt_ids.tolist() == b.prompt_ids.tolist()
        assert [c.tolist() for c in a.completion_ids] == [c.tolist() for c in b.completion_ids]


def test_encoding_changes_neither_groups_nor_results(tokenizer):
    groups = mixed_groups()[:50]
    before = copy.deepcopy(groups)
    first, second = (encode_groups(groups, tokenizer, max_length=None) for _ in range(2))
    assert groups == before
    assert first[1] == second[1]
    assert [g.prompt_ids.tolist() for g in first[0]] == [g.prompt_ids.tolist() for g in second[0]]


def test_dropped_rows_are_counted_by_reason(tokenizer):
    groups = [LONG, pair("q", "a", "b"), chat("q" * 9, "a", "b"), pair("q:?", "x", "y")]
    encoded, report = encode_groups(groups, tokenizer, max_length=4, truncation="drop")
    assert [g.prompt_ids.tolist() for g in encoded] == [tokenizer("q")["input_ids"]]
    assert report.dropped == {"longer than max_length": 3}
    assert str(report) == "groups: 4 in, 1 kept; dropped: longer than max_length: 3"


def test_the_first_row_dropped_for_each_reason_is_named(tokenizer):
    encoded, report = encode_groups([LONG, pair("q" * 9, "a", "b", row_id=1)], tokenizer, max_length=3)
    assert (encoded, report.dropped) == ([], {"prompt as long as max_length": 2})
    assert report.first_dropped == {"prompt as long as max_length": LONG.where}
    refusing = pair([{"role": "bad", "content": "q"}], [{"role": "assistant", "content": "a"}])
    _, report = encode_groups([refusing], tokenizer, max_length=None, on_bad_row="drop")
    assert "no such role" in report.first_dropped["refused by the chat template"]


# ---- refusals


def refused(group, tokenizer, *parts, reason=None, **options):
    with pytest.raises(InputError) as caught:
        encode_groups([pair("q", "a", "b"), group], tokenizer, max_length=None, **options)
    for part in (group.where, *parts):
        assert part in str(caught.value), f"{part!r} not in:\n{caught.value}"
    assert getattr(caught.value, "reason", None) == reason


def test_completion_without_tokens_can_be_dropped():
    silent = make_tokenizer(template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    group = chat("q", "a", "", row_id=1)
    refused(group, silent, "completion 2 of 2", reason="completion without tokens")
    with pytest.raises(RowError, match="row 2"):
        encode_group(group, silent, max_length=None)
    encoded, report = encode_groups([LONG, group], silent, max_length=None, on_bad_row="drop")
    assert (len(encoded), report.dropped) == (1, {"completion without tokens": 1})


def test_messages_that_the_template_refuses_can_be_dropped(tokenizer):
    group = pair([{"role": "bad", "content": "q"}], *chat("q", "a", "b").completions, row_id=1)
    refused(group, tokenizer, "no such role", reason="refused by the chat template")
    encoded, report = encode_groups([LONG, group, LONG], tokenizer, max_length=None, on_bad_row="drop")
    assert (len(encoded), report.dropped) == (2, {"refused by the chat template": 1})


def test_tokenizer_without_what_the_rows_need():
    refused(chat("q", "a", "b", row_id=1), make_tokenizer(template=None), "chat template", "plain text")
    with pytest.raises(InputError, match=r"train\.jsonl, row 1: plain text, and tokenizer\.eos_token"):
        encode_group(LONG, make_tokenizer(eos=None), max_length=None)
    # Neither is needed for the other kind of rows.
    encode_group(LONG, make_tokenizer(template=None), max_length=None)
    encode_group(chat("q", "a", "b"), make_tokenizer(eos=None), max_length=None)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"max_length": 1}, "max_length"),
        ({"truncation": "left"}, "keep_start, keep_end, drop, error"),
        ({"on_bad_row": "skip"}, "error, drop"),
    ],
)
def test_unknown_options(tokenizer, options, text):
    with pytest.raises(InputError, match=text):
        encode_groups([LONG], tokenizer, **{"max_length": None} | options)


# ---- against TRL


def recorded(shared_dir, form):
    folder = shared_dir / "golden" / "trl_run"
    rows = read_rows(str(folder / f"rows_{form}.jsonl"))
    groups = [to_group(row, where, i) for i, (row, where) in enumerate(rows)]
    return folder, groups, AutoTokenizer.from_pretrained(folder / "model")


@pytest.mark.parametrize("form", ["standard", "conversational"])
def test_token_ids_are_trls(shared_dir, form):
    """Rows and ids recorded from TRL 1.16.0 (DPOTrainer)."""
    folder, groups, tokenizer = recorded(shared_dir, form)
    encoded, report = encode_groups(groups, tokenizer, max_length=128)
    expected = json.loads((folder / f"token_ids_{form}.json").read_text())
    found = [
        {
            "prompt_ids": g.prompt_ids.tolist(),
            "chosen_ids": g.completion_ids[0].tolist(),
            "rejected_ids": g.completion_ids[1].tolist(),
        }
        for g in encoded
    ]
    assert found == expected
    assert report == EncodeReport(groups_in=16, groups_kept=16)


def test_truncated_lengths_are_trls(shared_dir):
    """TRL logs the tokens seen so far: prompt + completion, twice a pair, four pairs a step in file order."""
    folder, groups, tokenizer = recorded(shared_dir, "standard")
    run = json.loads((folder / "trl_runs.json").read_text())["runs"]["standard/dpo_truncated"]
    encoded, report = encode_groups(groups, tokenizer, max_length=run["config"]["max_length"])
    lengths = [2 * len(g.prompt_ids) + sum(map(len, g.completion_ids)) for g in encoded]
    steps = np.cumsum(lengths).reshape(-1, 4)[:, -1]
    assert steps.tolist() == [step["num_tokens"] for step in run["log"][: len(steps)]]
    assert report.completions_truncated > 0
