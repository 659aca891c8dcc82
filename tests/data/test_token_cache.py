"""Rows tokenised by several processes and kept on disk: the same groups, account and errors as by one process."""

import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import tiny

from jaxpref.config import DataConfig
from jaxpref.data import dataset
from jaxpref.data.dataset import load_groups
from jaxpref.data.kept_groups import KeptGroups, as_batch, places_of, write_batches
from jaxpref.data.workers import in_workers
from jaxpref.errors import InputError, RunError
from jaxpref.types import EncodedGroup

COUNT = 700
"""Rows: three jobs of 256 or fewer."""


@pytest.fixture
def in_processes(monkeypatch, tmp_path):
    """Every data set is tokenised by two workers, and kept below `tmp_path`."""
    monkeypatch.setattr(dataset, "ALONE", 1)
    monkeypatch.setattr(dataset, "processors", lambda: 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "jaxpref" / "tokens"


@pytest.fixture
def kept(in_processes, monkeypatch):
    """The same without the seconds in which workers start: jobs are done here."""
    monkeypatch.setattr(dataset, "in_workers", lambda function, jobs, count: map(function, jobs))
    return in_processes


def of_one_process(*args, **kwargs):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(dataset, "ALONE", 10**9)
        return load_groups(*args, **kwargs)


def pairs(count=COUNT):
    return [
        {"prompt": f"q{i % 90}", "chosen": "y" * (i % 13 + 1), "rejected": f"n{i}", "margin": i / 7, "note": "x"}
        for i in range(count)
    ]


def mixed(count=COUNT):
    """Pairs and judged answers, of which every fiftieth cannot be used."""
    rows = pairs(count)
    rows[1::3] = [
        {"prompt": r["prompt"], "completion": r["chosen"], "label": i % 2 == 0} for i, r in enumerate(rows[1::3])
    ]
    for row in rows[::50]:
        row["chosen" if "chosen" in row else "completion"] = ""
    return rows


def ranked(count=COUNT):
    """Ranked answers with two kinds of scores; some are equal."""
    return [
        {
            "prompt": f"q{i}",
            "completions": ["a", "b" * (i % 5 + 1), f"c{i}"],
            "scores_completions": {"good": [1, i % 3, 2.5], "short": [3, 2, i % 4]},
        }
        for i in range(count)
    ]


CASES = {
    "pairs": (pairs, {"max_length": 12}, {}),
    "judged": (mixed, {"on_bad_row": "drop", "truncation": "drop", "max_length": 11}, {"kinds": ("judged",)}),
    "other answers": (mixed, {"on_bad_row": "drop"}, {"kinds": ("judged_other",), "seed": 5}),
    "scores": (ranked, {"prefer": "good", "other_rewards": ["short"]}, {"columns": []}),
}


def same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert (one.row_id, one.where, dict(one.columns)) == (other.row_id, other.where, dict(other.columns))
        for a, b in zip((one.prompt_ids, *one.completion_ids), (other.prompt_ids, *other.completion_ids), strict=True):
            assert a.dtype == b.dtype == np.int32 and a.tolist() == b.tolist()


@pytest.mark.parametrize("case", ["judged", *(pytest.param(c, marks=pytest.mark.slow) for c in CASES if c != "judged")])
def test_same_groups_and_account_as_of_one_process(case, in_processes, tmp_path):
    rows, settings, asked = CASES[case]
    path = str(tiny.write_rows(tmp_path / "rows.jsonl", rows()))
    call = DataConfig(**settings), tiny.make_tokenizer(), [path], "train"
    expected, account = of_one_process(*call, **asked)
    assert not in_processes.exists()
    told = []
    groups, report = load_groups(*call, **asked, watch=lambda *done: told.append(done))
    assert told[0] == ("tokenising rows", 0, COUNT) and told[-1] == ("tokenising rows", COUNT, COUNT)
    again, again_report = load_groups(*call, **asked, watch=lambda *done: pytest.fail("tokenised again"))
    assert len(list(in_processes.glob("*/groups.arrow"))) == 1
    for loaded in (groups, again):
        same(loaded, expected)
    assert report == again_report == account
    assert str(report) == str(again_report) == str(account)


def test_what_tokens_depend_on_makes_another_entry(kept, tmp_path):
    path = tiny.write_rows(tmp_path / "rows.jsonl", pairs())
    tokenizer = tiny.make_tokenizer()

    def entries(config=None, tokenizer=tokenizer, **asked):
        load_groups(config or DataConfig(), tokenizer, [str(path)], "train", **asked)
        return len(list(kept.glob("*/groups.arrow")))

    assert entries() == 1
    assert entries(DataConfig(row_length=512, pack=False, cache_gb=19)) == 1, "rows are packed later"
    assert entries(DataConfig(max_length=9)) == 2
    assert entries(columns=["margin"]) == 3
    other = tiny.make_tokenizer()
    other.chat_template += " "
    assert entries(tokenizer=other) == 4
    times = path.stat()
    tiny.write_rows(path, [*pairs()[:-1], pairs()[-1] | {"rejected": "n698"}])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size and entries() == 5, "what is in a file counts, not when it was written"


def test_no_cache_leaves_nothing(kept, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    path = str(tiny.write_rows(tmp_path / "rows.jsonl", pairs()))
    call = tiny.make_tokenizer(), [path], "train"
    groups, _ = load_groups(DataConfig(cache="none"), *call)
    assert not kept.exists() and not list((tmp_path / "scratch").iterdir())
    same(groups, of_one_process(DataConfig(), *call)[0])


def test_a_directory_that_cannot_be_written_is_said(kept, tmp_path, caplog):
    path = str(tiny.write_rows(tmp_path / "rows.jsonl", pairs()))
    (tmp_path / "file").write_text("")
    groups, _ = load_groups(DataConfig(cache=str(tmp_path / "file" / "below")), tiny.make_tokenizer(), [path], "train")
    assert len(groups) == COUNT and "cannot be written" in caplog.text
    with pytest.raises(InputError, match="s3://bucket/tokens"):
        load_groups(DataConfig(cache="s3://bucket/tokens"), tiny.make_tokenizer(), [path], "train")


def test_oldest_entries_are_removed_beyond_the_limit(kept, tmp_path, caplog):
    caplog.set_level("INFO")
    tokenizer = tiny.make_tokenizer()
    for age, name in enumerate(["first", "second", "third"]):
        path = tiny.write_rows(tmp_path / f"{name}.jsonl", pairs()[age:])
        load_groups(DataConfig(), tokenizer, [str(path)], "train")
        for entry in kept.glob("*/"):
            seconds = entry.stat().st_mtime - 100
            os.utime(entry, (seconds, seconds))
    one = max(sum(f.stat().st_size for f in entry.iterdir()) for entry in kept.glob("*/"))
    load_groups(DataConfig(cache_gb=2.5 * one / 1e9, max_length=9), tokenizer, [str(path)], "train")
    left = {json.loads((e / "report.json").read_text())["paths"][0] for e in kept.glob("*/")}
    assert left == {str(tmp_path / "third.jsonl")} and "removed the token ids of" in caplog.text


@pytest.mark.parametrize(
    ("bad", "settings", "place"),
    [
        ({"prompt": "q", "chosen": "", "rejected": "n"}, {}, "row 301"),
        pytest.param(
            *(
                {"prompt": "q" * 99, "chosen": "y", "rejected": "n"},
                {"max_length": 50, "truncation": "error"},
                "row 301",
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *({"prompt": "q", "chosen": 3, "rejected": "n"}, {"on_bad_row": "drop"}, "row 301"), marks=pytest.mark.slow
        ),
    ],
)
def test_errors_are_those_of_one_process(bad, settings, place, in_processes, tmp_path):
    rows = pairs()
    rows[300] = bad
    rows[600] = bad
    path = str(tiny.write_rows(tmp_path / "rows.jsonl", rows))
    call = DataConfig(**settings), tiny.make_tokenizer(), [path], "train"
    with pytest.raises(InputError) as expected:
        of_one_process(*call)
    with pytest.raises(InputError) as raised:
        load_groups(*call)
    assert type(raised.value) is type(expected.value) and str(raised.value) == str(expected.value)
    assert place in str(raised.value) and vars(raised.value) == vars(expected.value)
    assert not list(in_processes.glob("*/groups.arrow")), "half an entry is none"


def test_all_rows_dropped_is_the_same_error_at_the_second_start(kept, tmp_path):
    rows = [{"prompt": "q", "chosen": "y", "rejected": "y"}] * 400
    path = str(tiny.write_rows(tmp_path / "rows.jsonl", rows))
    for _ in range(2):
        with pytest.raises(InputError, match=r"all 400 rows .* dropped; identical completions: 400 \(first: .*row 1"):
            load_groups(DataConfig(on_bad_row="drop"), tiny.make_tokenizer(), [path], "train")


# ---- groups in a file


def some_groups(count, first=0):
    rng = np.random.default_rng(first)
    ids = lambda n: rng.integers(0, 99, n).astype(np.int32)
    columns = [{}, {"weight": 0.1 + 0.2, "score": (1.0, -2.5e-300)}, {"other_rewards": ((1.0, 2.0), (3.0, 4.0))}]
    return [
        EncodedGroup(
            ids(i % 4), tuple(ids(k + 1) for k in range(i % 3 + 1)), 3 * i, f"ä.jsonl, row {i}", columns[i % 3]
        )
        for i in range(first, first + count)
    ]


def test_groups_come_out_of_a_file_as_they_went_in(tmp_path):
    groups = some_groups(50)
    batches = [groups[:20], [], groups[20:21], groups[21:]]
    write_batches(tmp_path / "groups.arrow", map(as_batch, batches))
    kept = KeptGroups(tmp_path / "groups.arrow")
    same(kept, groups)
    same([kept[i] for i in (0, 19, 20, 21, -1)], [groups[i] for i in (0, 19, 20, 21, 49)])
    same(kept[18:23], groups[18:23])
    places = places_of(kept)
    assert dict(places) == places_of(groups) and places[3 * 20] == "ä.jsonl, row 20"
    with pytest.raises(KeyError):
        places[1]
    with pytest.raises(IndexError):
        kept[50]


def test_a_file_without_groups(tmp_path):
    write_batches(tmp_path / "groups.arrow", [])
    assert not KeptGroups(tmp_path / "groups.arrow")


# ---- workers


def test_a_worker_that_was_killed_is_said():
    with pytest.raises(RunError, match="exit code 7"):
        list(in_workers(os._exit, [7] * 5, 2))


def test_results_come_in_order_and_a_script_is_not_run_again(tmp_path):
    """A script without `if __name__ == "__main__"`, which `multiprocessing` would run once more in every worker."""
    script = tmp_path / "script.py"
    script.write_text(
        "import operator\nfrom functools import partial\nfrom jaxpref.data.workers import in_workers\n"
        "print('begun')\nprint(list(in_workers(partial(operator.mul, 2), range(20), 3)))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert Counter(done.stdout.splitlines())["begun"] == 1
    assert str([2 * i for i in range(20)]) in done.stdout
