"""Data of several dimensions: which answer a score makes the chosen one, and the margins made of the others."""

import itertools

import numpy as np
import pytest
import tiny

from jaxpref.config import DataConfig
from jaxpref.data.dataset import common_columns, load_groups
from jaxpref.data.dimensions import Preferred, preferred_pairs
from jaxpref.errors import InputError
from jaxpref.runs.build import build
from jaxpref.runs.feed import make_loader, read_data
from jaxpref.settings import make_config
from jaxpref.types import Group


def pair(i, help_chosen, help_rejected, **more):
    scores = lambda value, other: {"help": value, "brief": other}
    return {
        "prompt": f"q{i}:", "chosen": f"c{i}", "rejected": f"r{i}", "scores_chosen": scores(help_chosen, 1.0),
        "scores_rejected": scores(help_rejected, -2.0), **more,
    }  # fmt: skip


PAIRS = [pair(0, 2, 1), pair(1, 1, 2), pair(2, 3, 3), pair(3, -1, -0.5)]
RANKED = {
    "prompt": "u:", "completions": ["a", "b", "c", "d"], "scores": [1, 4, 3, 2],
    "scores_completions": {"help": [5, 1, 5, 2], "brief": [1, 2, 3, 4]},
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.make_tokenizer()


@pytest.fixture
def load(tmp_path, tokenizer):
    """Rows (one file a list) and options -> [(texts of the completions, group)], report."""

    def run(*files, kinds=("pair",), columns=None, **options):
        paths = [str(tiny.write_rows(tmp_path / f"{i}.jsonl", rows)) for i, rows in enumerate(files)]
        groups, report = load_groups(DataConfig(**options), tokenizer, paths, "train", kinds=kinds, columns=columns)
        text = lambda ids: tokenizer.decode(ids.tolist()).removesuffix("<|im_end|>")
        return [([text(ids) for ids in group.completion_ids], group) for group in groups], report

    return run


def test_pairs_are_kept_turned_round_or_dropped(load):
    groups, report = load(PAIRS, prefer="help")
    assert [texts for texts, _ in groups] == [["c0", "r0"], ["r1", "c1"], ["r3", "c3"]]
    assert [g.columns["scores/brief"] for _, g in groups] == [(1.0, -2.0), (-2.0, 1.0), (-2.0, 1.0)]
    assert [g.row_id for _, g in groups] == [0, 1, 3]
    assert report.preferred == Preferred("help", kept=1, swapped=2, tied=1)
    assert "preferred by help: 1 pairs as they stood, 2 turned round, 1 dropped as ties" in str(report)
    assert load(PAIRS)[1].preferred is None


def test_all_numbers_of_a_pair_turn_with_it(load):
    own = {
        "weight": 3.0, "baseline": 0.5, "margin": 0.75, "probability": 0.9, "score_chosen": 1, "score_rejected": 2,
        "other_rewards_chosen": [1, 2], "other_rewards_rejected": [3, 4], "mine_chosen": 7, "mine_rejected": 8,
        "ours": 9,
    }  # fmt: skip
    asked = ["weight", "baseline", "margin", "probability", "score", "other_rewards", "scores/brief", "mine", "ours"]
    rows = [pair(0, 2, 1, **own), pair(1, 1, 2, **own)]
    [(_, kept), (_, turned)], _ = load(rows, prefer="help", columns=asked)
    assert kept.columns["margin"] == 0.75 and kept.columns["mine"] == (7.0, 8.0)
    assert turned.columns == kept.columns | {
        "margin": -0.75, "probability": pytest.approx(0.1), "score": (2.0, 1.0),
        "other_rewards": ((3.0, 4.0), (1.0, 2.0)),
        "mine": (8.0, 7.0), "scores/help": (2.0, 1.0), "scores/brief": (-2.0, 1.0),
    }  # fmt: skip


def test_a_gold_answer_stays_where_it_is(load):
    [(texts, group)], _ = load([pair(0, 1, 2, reference="gold")], kinds=("triple",), prefer="help")
    assert texts == ["r0", "c0", "gold"] and group.columns["scores/help"] == (2.0, 1.0, 0.0)


def test_ranked_rows_give_all_their_pairs(load):
    groups, report = load([RANKED, PAIRS[0]], prefer="help", other_rewards=["brief"])
    help_, brief = (dict(zip("abcd", RANKED["scores_completions"][name], strict=True)) for name in ("help", "brief"))
    expected = {(x, y) for x, y in itertools.permutations("abcd", 2) if help_[x] > help_[y]}
    assert {tuple(texts) for texts, _ in groups[:-1]} == expected and len(groups) == len(expected) + 1 == 6
    for (x, y), group in groups[:-1]:
        assert group.columns["other_rewards"] == ((brief[x],), (brief[y],))
        assert group.columns["scores/help"] == (help_[x], help_[y])
    assert len({group.row_id for _, group in groups}) == 6
    assert report.preferred == Preferred("help", kept=1, made=5, tied=1) and report.rows == {"ranked": 1, "pair": 1}
    assert "5 made of ranked rows" in str(report)


def test_named_scores_of_ranked_rows_follow_its_order(load):
    [(texts, group)], _ = load([RANKED], kinds=("ranked",))
    assert texts == ["b", "c", "d", "a"] and group.columns["scores/help"] == (1.0, 5.0, 2.0, 5.0)
    assert group.columns["score"] == (4.0, 3.0, 2.0, 1.0)
    with pytest.raises(InputError, match='each of the 4.*\n.*"scores_completions.help": 3'):
        load([RANKED | {"scores_completions": {"help": [1, 2, 3]}}], kinds=("ranked",))


def test_relabelled_pairs_become_judged_answers(load):
    groups, report = load([PAIRS[1], RANKED], kinds=("judged",), prefer="help")
    assert [(*texts, g.columns["label"]) for texts, g in groups[:2]] == [("r1", 1.0), ("c1", 0.0)]
    assert len(groups) == 12 == len({g.row_id for _, g in groups}) and report.converted == 6


def test_margins_in_the_order_of_the_names(load):
    groups, _ = load(PAIRS, other_rewards=["brief", "help"])
    assert groups[1][1].columns["other_rewards"] == ((1.0, 1.0), (-2.0, 2.0))
    assert common_columns([g for _, g in groups]) == ["other_rewards", "scores/brief", "scores/help"]
    [(_, turned)], _ = load(PAIRS[1:2], other_rewards=["brief"], prefer="help")
    assert turned.columns["other_rewards"] == ((-2.0,), (1.0,))


def test_a_score_that_is_not_there(load):
    lacking = [PAIRS[0], PAIRS[1] | {"scores_chosen": {"brief": 1}, "scores_rejected": {"brief": 2}}]
    for option in ({"prefer": "help"}, {"other_rewards": ["help"]}):
        with pytest.raises(InputError) as caught:
            load(lacking, **option)
        assert "0.jsonl, row 2: the scores there are: brief" in caught.value.got and "'help'" in caught.value.expected
        groups, report = load(lacking, on_bad_row="drop", **option)
        assert len(groups) == 1 and report.unusable == {"no score help": 1}
    with pytest.raises(InputError, match="no scores"):
        load([{"prompt": "q", "chosen": "a", "rejected": "b"}], prefer="help")


def test_what_prefer_and_margins_refuse(load):
    with pytest.raises(InputError, match="0.jsonl, row 1: one answer"):
        load([{"prompt": "q", "completion": "a", "label": True}], kinds=("judged",), prefer="help")
    with pytest.raises(InputError, match="0.jsonl: 1 ties and nothing else"):
        load(PAIRS[2:3], prefer="help")
    with pytest.raises(InputError, match="other_rewards from one place"):
        load([pair(0, 1, 2, other_rewards_chosen=[1], other_rewards_rejected=[2])], other_rewards=["help"])


def test_swapping_twice_is_nothing():
    group = Group("q", ("a", "b"), 0, "w", columns={"scores/x": (1.0, 2.0), "margin": 0.5, "probability": 0.25})
    [once] = preferred_pairs(group, "pair", Preferred("x"))
    back = Group("q", once.completions, 0, "w", columns=once.columns | {"scores/x": (-2.0, -1.0)})
    [twice] = preferred_pairs(back, "pair", Preferred("x"))
    assert twice.completions == group.completions and once.completions != group.completions
    assert twice.columns == group.columns | {"scores/x": (-1.0, -2.0)}


@pytest.mark.parametrize(
    "objective, other_rewards, said",
    [
        ([{"name": "dpo"}], ["help"], "no objective reads `other_rewards`"),
        ([{"name": "modpo", "w": [0.6, 0.4]}], ["help", "brief"], "modpo.w has 2 weights; .*: 3, base first"),
        ([{"name": "modpo", "w": [1, 1, 1]}], ["help", "help"], "names a score twice"),
        ([{"name": "modpo", "w": [1, 1], "columns": {"other_rewards": ["scores/a"]}}], ["help"], "no objective reads"),
    ],
)
def test_contradictions(objective, other_rewards, said):
    with pytest.raises(InputError, match=said):
        make_config({"objective": objective, "data": {"other_rewards": other_rewards}})


# ---- training


@pytest.mark.usefixtures("quick_compile", "any_mesh")
@pytest.mark.slow
def test_modpo_through_the_two_keys_is_modpo_on_rows_written_out(tmp_path, tiny_files):
    """The same run, its pairs and margins once made from scores by the keys and once by hand."""
    scored, written = [], []
    rng = np.random.default_rng(0)
    for i, row in enumerate(tiny.rows(12)):
        scores = [{"a": float(i % 3), "b": float(x), "c": float(y)} for x, y in rng.normal(size=(2, 2))]
        scores[1]["a"] = float((i * 2) % 3)
        scored.append(row | {"scores_chosen": scores[0], "scores_rejected": scores[1]})
        if scores[0]["a"] != scores[1]["a"]:
            sides = ("chosen", "rejected")
            order = (0, 1) if scores[0]["a"] > scores[1]["a"] else (1, 0)
            made = {side: row[sides[k]] for side, k in zip(sides, order, strict=True)}
            made |= {
                f"other_rewards_{side}": [scores[k]["c"], scores[k]["b"]] for side, k in zip(sides, order, strict=True)
            }
            written.append({"prompt": row["prompt"], **made})
    assert 6 < len(written) < 12 and any(row["chosen"][0]["content"].startswith("no") for row in written)
    losses = []
    for name, rows, data in (("keys", scored, {"prefer": "a", "other_rewards": ["c", "b"]}), ("by_hand", written, {})):
        file = tiny.write_rows(tmp_path / f"{name}.jsonl", rows)
        config = tiny.config(
            tmp_path / name, tiny_files.model, file, objective=[{"name": "modpo", "beta": 0.1, "w": [0.5, 0.3, 0.2]}],
            data={"train": [str(file)], "eval": [], "shuffle": False, **data}, train={"batch_size": 4, "max_steps": 4},
        )  # fmt: skip
        losses.append(tiny.run(config).losses)
    assert losses[0] == losses[1] and len(set(losses[0])) == 4


def test_the_keys_reach_the_loader(tmp_path, tiny_files, any_mesh):
    scores = lambda i: {"scores_chosen": {"a": 0, "b": i}, "scores_rejected": {"a": i % 2, "b": -i}}
    rows = [row | scores(i) for i, row in enumerate(tiny.rows(6))]
    file = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    config = tiny.config(
        tmp_path / "run", tiny_files.model, file, objective=[{"name": "modpo", "w": [0.6, 0.4]}],
        data={"train": [str(file)], "eval": [], "prefer": "a", "other_rewards": ["b"]},
    )  # fmt: skip
    pieces = build(config)
    groups, report = read_data(pieces, "train")
    assert (report.preferred.swapped, report.preferred.tied) == (3, 3)
    [step] = make_loader(pieces, groups, training=False).iterate()
    margins = step.batch.columns["other_rewards"][step.batch.row_id_RG >= 0]
    assert sorted(margins.tolist()) == [[[-1.0], [1.0]], [[-3.0], [3.0]], [[-5.0], [5.0]]][::-1]


# ---- former names


def test_the_former_name_of_other_rewards_is_read_with_a_notice(load):
    rows = {"margins_chosen": [1], "margins_rejected": [2]}
    with pytest.warns(FutureWarning, match="called other_rewards_chosen"):
        groups, _ = load([pair(0, 1, 2, **rows)])
    assert groups[0][1].columns["other_rewards"] == ((1.0,), (2.0,))
    with pytest.raises(InputError, match="under one name"):
        load([pair(0, 1, 2, other_rewards_chosen=[1], other_rewards_rejected=[2], **rows)])


def test_the_former_name_in_a_config_is_read_with_a_notice():
    objective = [{"name": "modpo", "w": [0.6, 0.4]}]
    with pytest.warns(FutureWarning, match=r"data\.margins: `margins` is called `other_rewards`"):
        config = make_config({"objective": objective, "data": {"margins": ["help"]}})
    assert config == make_config({"objective": objective, "data": {"other_rewards": ["help"]}})
    mapped = lambda name: {"objective": [objective[0] | {"columns": {name: ["scores/help"]}}]}
    with pytest.warns(FutureWarning, match=r"objective\.0\.columns\.margins"):
        assert make_config(mapped("margins")) == make_config(mapped("other_rewards"))
    with pytest.raises(InputError, match="data.other_rewards alone"):
        make_config({"objective": objective, "data": {"margins": ["help"], "other_rewards": ["help"]}})
