"""Files into groups of one kind, and the account of what became of their rows."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from rich.console import Console
from transformers import AutoTokenizer

from jaxpref.config import DataConfig
from jaxpref.data.dataset import common_columns, load_groups
from jaxpref.data.inspect import show
from jaxpref.data.loader import Loader
from jaxpref.data.pack import Layout
from jaxpref.errors import InputError
from jaxpref.objectives import KINDS
from jaxpref.types import EncodedGroup

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
PAIRS = [{"prompt": f"q{i}:", "chosen": "yes" * (i + 1), "rejected": "no" * (i + 1)} for i in range(4)]
JUDGED = [{"prompt": f"r{i}:", "completion": f"maybe{i}", "label": i % 2 == 0} for i in range(4)]
SINGLE = [{"prompt": f"s{i}:", "completion": f"ok{i}"} for i in range(3)]
TRIPLES = [row | {"reference": f"gold{i}"} for i, row in enumerate(PAIRS)]
RANKED = [
    {"prompt": "u:", "completions": ["a", "b", "c"], "scores": [1, 3, 2]},
    {"prompt": "v:", "completions": ["d", "e"], "scores": [5, 5]},
]
ROWS = {
    "pair": PAIRS,
    "triple": TRIPLES,
    "single": SINGLE,
    "judged": JUDGED,
    "judged_other": PAIRS + JUDGED,
    "ranked": RANKED,
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.make_tokenizer()


@pytest.fixture
def load(tmp_path, tokenizer):
    """Rows (one file a list) to groups and their report."""

    def run(*files, kinds=("pair",), seed=0, columns=None, columns_key=None, **options):
        paths = [str(tiny.write_rows(tmp_path / f"{i}.jsonl", rows)) for i, rows in enumerate(files)]
        config = DataConfig(columns=columns_key or {}, **options)
        return load_groups(config, tokenizer, paths, "train", kinds=kinds, seed=seed, columns=columns)

    return run


@pytest.fixture
def texts(tokenizer):
    """Completions of a group as text, without their end token."""
    return lambda group: [tokenizer.decode(ids.tolist()).removesuffix("<|im_end|>") for ids in group.completion_ids]


def test_pairs_are_the_default(load, texts):
    groups, report = load(PAIRS)
    assert [texts(group) for group in groups] == [[row["chosen"], row["rejected"]] for row in PAIRS]
    assert (report.kind, report.rows, report.converted) == ("pair", {"pair": 4}, 0)


def test_a_gold_answer_is_read_only_where_no_pair_will_do(load, texts):
    assert [len(g.completion_ids) for g in load(TRIPLES, kinds=("pair", "triple"))[0]] == [2] * 4
    groups, report = load(TRIPLES, kinds=("triple",))
    assert texts(groups[1]) == ["yesyes", "nono", "gold1"] and report.rows == {"triple": 4}
    # Elsewhere the column may hold anything.
    assert len(load([row | {"reference": 7} for row in PAIRS])[0]) == 4


def test_pairs_and_judged_answers_together(load, texts):
    groups, report = load(JUDGED, PAIRS, kinds=("judged",))
    assert [texts(g)[0] for g in groups[4:]] == [row[side] for row in PAIRS for side in ("chosen", "rejected")]
    assert [g.columns["label"] for g in groups] == [1, 0, 1, 0] + [1, 0] * 4
    assert len({g.row_id for g in groups}) == 12
    assert groups[5].where.endswith("1.jsonl, row 1, rejected")
    assert (report.kind, report.rows, report.converted) == ("judged", {"judged": 4, "pair": 4}, 4)
    assert "kind of groups: judged; 4 rows (judged), 4 rows (pair)" in str(report)
    assert "4 pairs made into two judged answers each" in str(report)


def test_judged_with_other_answers(load, texts):
    alone, _ = load(JUDGED, PAIRS, kinds=("judged",))
    groups, report = load(JUDGED, PAIRS, kinds=("judged_other",), seed=5)
    prompts = {texts(g)[0]: g.prompt_ids.tolist() for g in alone}
    for before, after in zip(alone, groups, strict=True):
        own, other = texts(after)
        assert np.array_equal(after.completion_ids[0], before.completion_ids[0]) and own == texts(before)[0]
        assert prompts[other] != after.prompt_ids.tolist()
        assert after.columns == before.columns
    assert sorted(texts(g)[1] for g in groups) == sorted(texts(g)[0] for g in groups), "each is lent once"
    assert (report.lent, report.lent_cut) == (12, 0)
    assert "12 groups lent an answer to another prompt (0 of these cut)" in str(report)
    lent = lambda seed: [texts(g)[1] for g in load(JUDGED, PAIRS, kinds=("judged_other",), seed=seed)[0]]
    assert lent(5) == [texts(g)[1] for g in groups] != lent(6)


def test_an_answer_that_is_lent_drops_no_row_and_cuts_no_prompt(load):
    rows = [JUDGED[0], JUDGED[1] | {"completion": "m" * 19}]
    for truncation in ("drop", "error", "keep_start", "keep_end"):
        options = {"max_length": 23, "truncation": truncation}
        alone, _ = load([rows[0] | {"prompt": "pppppp:"}, rows[1]], kinds=("judged",), **options)
        groups, report = load([rows[0] | {"prompt": "pppppp:"}, rows[1]], kinds=("judged_other",), **options)
        assert [len(g.prompt_ids) for g in groups] == [len(g.prompt_ids) for g in alone] == [7, 3]
        assert [len(g.completion_ids[1]) for g in groups] == [16, 7]
        assert report.lent_cut == 1 and report.encoding.completions_truncated == 0


def test_judged_answers_to_one_prompt_only(load):
    with pytest.raises(InputError, match="one prompt in all 2 groups"):
        load(PAIRS[:1], kinds=("judged_other",))


def test_the_chosen_answers_of_pairs_beside_single_ones(load, texts):
    groups, report = load(PAIRS, SINGLE, kinds=tuple(KINDS))
    assert [texts(g) for g in groups] == [[r["chosen"]] for r in PAIRS] + [[r["completion"]] for r in SINGLE]
    assert report.kind == "single" and "4 pairs made into their chosen answers" in str(report)


def test_ranked_rows(load, texts):
    groups, report = load(RANKED, kinds=("ranked",))
    assert [texts(g) for g in groups] == [["b", "c", "a"], ["d", "e"]]
    assert [g.columns["score"] for g in groups] == [(3.0, 2.0, 1.0), (5.0, 5.0)]
    assert report.tied == 1 and "1 ranked rows with equal scores" in str(report)


def test_rows_that_are_dropped_are_counted_by_reason(load):
    bad = [JUDGED[0] | {"label": None}, JUDGED[1] | {"completion": ""}, JUDGED[2] | {"completion": " "}]
    groups, report = load(JUDGED + bad, kinds=("judged",), on_bad_row="drop")
    assert len(groups) == 4 and report.rows == {"judged": 7}
    assert report.unusable == {"missing value": 1, "empty completion": 2}
    with pytest.raises(InputError, match='0.jsonl, row 5, key "label"'):
        load(JUDGED + bad, kinds=("judged",))


def test_a_row_without_a_column_is_dropped_as_one_with_null_is(load, texts):
    bad = [{"prompt": "q:", "chosen": "a"}, PAIRS[1] | {"rejected": None}, {"prompt": "q:"}, {}]
    groups, report = load(PAIRS + bad, on_bad_row="drop")
    assert [texts(g) for g in groups] == [[row["chosen"], row["rejected"]] for row in PAIRS]
    assert report.unusable == {"missing value": 4} and report.rows == {"pair": 6, "unusable": 2}
    assert [group.row_id for group in groups] == [0, 1, 2, 3]
    with pytest.raises(InputError, match='0.jsonl, row 5: no key "rejected"'):
        load(PAIRS + bad[:2])
    with pytest.raises(InputError, match='0.jsonl, row 1: no key "chosen"'):
        load(bad[2:])


def test_one_line_says_what_is_dropped_cut_and_not_read(load):
    assert load(PAIRS)[1].summary() == "4 rows, 4 groups (pair); 0 dropped; 0 completions and 0 prompts cut"
    rows = [
        {"prompt": "q" * 30, "chosen": "a", "rejected": "b", "id": 1},
        {"prompt": "q", "chosen": "a" * 30, "rejected": "b", "id": 2, "margin": "large"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "id": None},
        {"prompt": "q", "chosen": "", "rejected": "b", "id": 4},
    ]
    _, report = load(rows, max_length=20, on_bad_row="drop", columns=["weight"])
    assert report.summary() == (
        "4 rows, 2 groups (pair); 2 dropped (empty completion: 1, prompt as long as max_length: 1); "
        "1 completions and 0 prompts cut; columns not read: id (2 rows), margin (1 row)"
    )
    assert "columns not read: id (2 rows), margin (1 row)" in str(report)


def test_nothing_left_is_an_error_with_the_counted_reasons(load):
    rows = [PAIRS[0] | {"rejected": ""}, {"prompt": "q"}, PAIRS[1], PAIRS[2], PAIRS[2] | {"chosen": " "}]
    with pytest.raises(InputError) as caught:
        load(rows, on_bad_row="drop", max_length=3)
    for part in (
        "all 5 rows of ",
        "empty completion: 2 (first: ",
        '0.jsonl, row 1, key "rejected"',
        "missing value: 1 (first: ",
        "prompt as long as max_length: 2 (first: ",
        "0.jsonl, row 3)",
    ):
        assert part in caught.value.got, f"{part!r} not in:\n{caught.value}"
    with pytest.raises(InputError, match="all 1 rows of .*missing value: 1 .*no key"):
        load([{"text": "x"}], on_bad_row="drop")


def test_columns_that_nothing_asks_for_are_not_checked(load):
    row = PAIRS[0] | {"weight": 2, "margin": "significantly better", "score_chosen": "high"}
    row |= {"scores_chosen": {"help": 1, "brief": "x"}, "scores_rejected": {"help": 2, "brief": "y"}}
    rows = [row, PAIRS[1] | {"weight": 1, "scores_chosen": {"help": 1}, "scores_rejected": {"help": 2}}]
    groups, report = load(rows, columns=["weight", "scores/help"])
    assert common_columns(groups) == ["scores/help", "weight"]
    assert report.unread == {"margin": 1, "score_chosen": 1}
    for asked, key in (("margin", "margin"), ("score", "score_chosen"), ("scores/brief", "scores_chosen.brief")):
        with pytest.raises(InputError, match=f'row 1, key "{key}"'):
            load(rows, columns=[asked])
    assert load(rows, columns=["weight"], prefer="help")[1].preferred.swapped == 2
    groups, _ = load(rows, columns=["other_rewards"], other_rewards=["help"])
    assert groups[0].columns == {"scores/help": (1.0, 2.0), "other_rewards": ((1.0,), (2.0,))}
    judged = JUDGED[0] | {"score": "x", "weight": 3}
    groups, report = load([judged, JUDGED[1]], columns=["label"], kinds=("judged",))
    assert groups[0].columns == {"label": 1.0} and report.unread == {"score": 1, "weight": 1}
    ranked = RANKED[0] | {"scores_completions": ["x"]}
    groups, report = load([ranked, RANKED[1]], columns=["weight"], kinds=("ranked",))
    assert report.unread == {"scores_completions": 1} and groups[0].columns == {"score": (3.0, 2.0, 1.0)}


def test_rows_of_other_projects(load, texts):
    orca = {"system": "Be brief.", "question": "Sky?", "chosen": "blue", "rejected": "red", "source": "x"}
    groups, report = load([orca, PAIRS[0]])
    assert texts(groups[0]) == ["blue<|im_end|>\n", "red<|im_end|>\n"]
    assert report.unread == {"source": 1}
    assert "read as: orca (1 row)\ncolumns not read: source (1 row)" in str(report)
    assert report.summary().endswith("read as: orca (1 row); columns not read: source (1 row)")
    named = [{"q": "Sky?", "good": "blue", "bad": "red", "prompt": "old"}]
    groups, report = load(named, format="orca", columns_key={"question": "q", "chosen": "good", "rejected": "bad"})
    assert report.unread == {"prompt": 1} and texts(groups[0]) == texts(load([orca])[0][0])
    with pytest.raises(InputError, match='row 1: no key "prompt", and "question" may be it'):
        load([{"question": "Sky?", "chosen": "blue", "rejected": "red"}], on_bad_row="drop")
    with pytest.raises(InputError, match="questoin: in no row of"):
        load(PAIRS, columns_key={"prompt": "questoin"})
    with pytest.raises(InputError, match="promt"):
        load(PAIRS, columns_key={"promt": "prompt"})


@pytest.mark.parametrize(
    "files, kinds, said",
    [
        ([SINGLE], ("judged_other",), ["judged_other", "0.jsonl, row 1", "`label`"]),
        ([RANKED], ("pair", "triple"), ["pair or triple", "`completions`"]),
        ([PAIRS, RANKED], tuple(KINDS), ["0.jsonl, row 1", "1.jsonl, row 1", "separate runs"]),
        ([PAIRS], ("triple",), ["`reference`"]),
        ([PAIRS, [{"text": "x"}]], ("pair",), ["1.jsonl, row 1", 'no key "chosen"']),
    ],
)
def test_rows_of_the_wrong_kind(load, files, kinds, said):
    with pytest.raises(InputError) as caught:
        load(*files, kinds=kinds)
    for part in said:
        assert part in str(caught.value), f"{part!r} not in:\n{caught.value}"


def test_margins_are_as_many_on_every_row(load):
    margins = lambda n: {"other_rewards_chosen": [1.0] * n, "other_rewards_rejected": [0.5] * n}
    groups, _ = load([PAIRS[0] | margins(2), PAIRS[1] | margins(2)])
    assert common_columns(groups) == ["other_rewards"] and np.shape(groups[0].columns["other_rewards"]) == (2, 2)
    groups, _ = load([PAIRS[0] | margins(2), PAIRS[1] | margins(3)])
    with pytest.raises(InputError, match="2 in .*row 1, 3 in .*row 2"):
        common_columns(groups)


def test_numbers_of_completions_may_be_fewer_where_completions_are(load):
    assert common_columns(load(RANKED, kinds=("ranked",))[0]) == ["score"]
    rows = [RANKED[0], {"prompt": "v:", "completions": ["d", "e"]}]
    with pytest.raises(InputError, match="'score' is in .*row 1 but not in .*row 2"):
        common_columns(load(rows, kinds=("ranked",))[0])


def test_widths_of_columns_that_are_arrays_are_left_alone():
    """Log-probs of further references are added as arrays."""
    groups = [EncodedGroup(np.arange(2), (np.arange(2),) * 2, i, "w", {"x": np.zeros((2, i + 1))}) for i in range(2)]
    assert common_columns(groups) == ["x"]


@pytest.mark.parametrize("kind", ROWS)
def test_every_kind_reaches_the_batch(kind, load):
    groups, report = load(ROWS[kind], kinds=(kind,))
    assert report.kind == kind
    columns = common_columns(groups)
    loader = Loader(groups, batch_size=len(groups), micro_rows=1, layout=Layout(128), columns=columns)
    [step] = loader.iterate()
    batch, by_id = step.batch, {group.row_id: group for group in groups}
    assert sorted(i for i in batch.row_id_RG.ravel() if i >= 0) == sorted(by_id)
    most = max(len(group.completion_ids) for group in groups)
    for at in zip(*np.nonzero(batch.row_id_RG >= 0), strict=True):
        group = by_id[int(batch.row_id_RG[at])]
        lengths = [len(ids) for ids in group.completion_ids]
        assert batch.slot_count_RGK[at].tolist() == lengths + [0] * (most - len(lengths))
        for name in columns:
            value = np.ravel(group.columns[name])
            assert batch.columns[name][at].ravel()[: len(value)].tolist() == value.tolist()
            assert not batch.columns[name][at].ravel()[len(value) :].any()


SHOWN = {
    "pair": ["chosen", "rejected", "columns for objectives: none"],
    "triple": ["[gold: 6 loss tokens] "],
    "single": ["[completion: 4 loss tokens] o|k|0"],
    "judged": ["columns for objectives: label, labels: 2 desirable of 4"],
    "judged_other": ["[other: ", "labels: 6 desirable of 12", "4 pairs made into two judged answers each"],
    "ranked": ["[best: 2 loss tokens] b", "[completion 3: 2 loss tokens] a", "objectives: score [3]"],
}


@pytest.mark.parametrize("kind", ROWS)
def test_what_is_shown(kind, load, tokenizer):
    groups, report = load(ROWS[kind], kinds=(kind,))
    console = Console(record=True, width=200, file=io.StringIO())
    loader = Loader(groups, batch_size=2, micro_rows=1, layout=Layout(128))
    show(console, "train", groups, report, loader, tokenizer)
    printed = console.export_text()
    for part in (f"kind of groups: {kind};", *SHOWN[kind]):
        assert part in printed, f"{part!r} not in:\n{printed}"


# ---- against TRL


@pytest.mark.parametrize("form", ["standard", "conversational"])
def test_token_ids_are_those_of_trls_kto(form, tmp_path):
    """Every answer of a pair has its own prompt boundary; ids recorded from TRL 1.16.0 (KTOTrainer)."""
    golden = json.loads((GOLDEN / "kto_tokens.json").read_text())
    limit, rows, expected = golden["max_length"], golden[form]["rows"], golden[form]["groups"]
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "trl_run_small" / "model")
    path = str(tiny.write_rows(tmp_path / "rows.jsonl", rows))
    groups, report = load_groups(DataConfig(max_length=limit), tokenizer, [path], "train", kinds=("judged",))
    # TRL has all chosen answers first, and cuts when it collates.
    cut = lambda prompt, completion: completion[: limit - len(prompt)]
    expected = [(g["prompt_ids"], cut(g["prompt_ids"], g["completion_ids"]), g["label"]) for g in expected]
    found = [(g.prompt_ids.tolist(), g.completion_ids[0].tolist(), bool(g.columns["label"])) for g in groups]
    assert [g for g in found if g[2]] + [g for g in found if not g[2]] == expected
    assert report.encoding.dropped == {"prompt as long as max_length": 2}
    if form == "standard":  # the rows are such that the two answers of a pair part from the prompt at different places
        assert any(
            len(chosen.prompt_ids) != len(rejected.prompt_ids)
            for chosen, rejected in zip(groups[::2], groups[1::2], strict=True)
        )
