"""Rows from every kind of source with their places; an error with a place for whatever is no row."""

import gzip
import json
from types import SimpleNamespace

import datasets
import pytest
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.packaged_modules.json.json import JsonConfig

from jaxpref.data.sources import read_rows
from jaxpref.errors import InputError

ROWS = [{"chosen": "good é", "rejected": "bad"}, {"chosen": "fine", "rejected": "poor"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(path, *parts, **kwargs):
    """Reads everything; the error must hold each of `parts`."""
    with pytest.raises(InputError) as caught:
        list(read_rows(str(path), **kwargs))
    for part in parts:
        assert part in str(caught.value), f"{part!r} not in:\n{caught.value}"


def placed(*places):
    return list(zip(ROWS, places, strict=True))


def write(name, text):
    with open(name, "w", encoding="utf-8", newline="") as file:
        file.write(text)


@pytest.mark.parametrize("text", [LINES, LINES.rstrip("\n"), LINES + "\n \n", LINES.replace("\n", "\r\n")])
def test_json_lines_count_lines_from_one(text):
    write("train.jsonl", text)
    assert list(read_rows("train.jsonl")) == placed("train.jsonl, row 1", "train.jsonl, row 2")


def test_blank_lines_do_not_shift_the_row_number():
    write("train.jsonl", "\n" + LINES.replace("\n", "\n\n"))
    assert [where for _, where in read_rows("train.jsonl")] == ["train.jsonl, row 2", "train.jsonl, row 4"]


def test_byte_order_mark_is_skipped():
    write("train.jsonl", "\ufeff" + LINES)
    write("train.json", "\ufeff" + json.dumps(ROWS))
    assert [row for row, _ in read_rows("train.jsonl")] == ROWS
    assert [row for row, _ in read_rows("train.json")] == ROWS


@pytest.mark.parametrize("ending", ["jsonl.gz", "json.gz"])
def test_gzip(ending):
    with gzip.open(f"train.{ending}", "wt", encoding="utf-8") as file:
        file.write(LINES)
    assert [row for row, _ in read_rows(f"train.{ending}")] == ROWS


def test_json_holds_one_list_or_lines():
    write("list.json", json.dumps(ROWS, indent=1))
    write("lines.json", LINES)
    assert list(read_rows("list.json")) == placed("list.json, index 0", "list.json, index 1")
    assert [where for _, where in read_rows("lines.json")] == ["lines.json, row 1", "lines.json, row 2"]


def test_parquet():
    datasets.Dataset.from_list(ROWS).to_parquet("train.parquet")
    expected = placed("train.parquet, index 0", "train.parquet, index 1")
    assert list(read_rows("train.parquet")) == expected


def test_saved_dataset():
    datasets.Dataset.from_list(ROWS).save_to_disk("saved")
    assert list(read_rows("saved")) == placed("saved, index 0", "saved, index 1")
    refused("saved", "which has none", split="train")


def test_saved_dataset_with_splits():
    train, test = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:1])
    datasets.DatasetDict(train=train, test=test).save_to_disk("saved")
    assert list(read_rows("saved", "test")) == [(ROWS[0], "saved (test), index 0")]
    refused("saved", "split=None", "train, test")
    refused("saved", "split='dev'", "train, test", split="dev")
    datasets.DatasetDict(train=train).save_to_disk("single")
    assert len(list(read_rows("single"))) == 2


def test_folder_of_files_picks_the_split_by_a_word_of_the_name(in_tmp):
    folder = "mixed/"
    (in_tmp / "mixed").mkdir()
    write(folder + "b.train.jsonl", LINES)
    write(folder + "a-train-00000.jsonl", LINES.splitlines()[0])
    write(folder + "test.jsonl", LINES)
    write(folder + "README.md", "not data")
    write(folder + ".train.jsonl", "hidden")
    expected = [
        "mixed/a-train-00000.jsonl, row 1",
        "mixed/b.train.jsonl, row 1",
        "mixed/b.train.jsonl, row 2",
    ]
    assert [where for _, where in read_rows("mixed", "train")] == expected
    # Without a split, train and test would be mixed.
    refused("mixed", "split=None", "test, train")
    refused("mixed", "split='dev'", "b.train.jsonl", "test, train", split="dev")


def test_folder_without_split_words_is_read_whole(in_tmp):
    (in_tmp / "plain").mkdir()
    write("plain/one.jsonl", LINES)
    write("plain/two.jsonl", LINES)
    assert len(list(read_rows("plain"))) == 4
    refused("plain", "remove `split`", split="train")


def test_folder_without_data_names_what_it_holds(in_tmp):
    (in_tmp / "outer" / "data").mkdir(parents=True)
    refused("outer", "outer, which holds data", ".jsonl.gz")


def test_damaged_saved_dataset(in_tmp):
    (in_tmp / "saved").mkdir()
    write("saved/state.json", "{}")
    refused("saved", "saved:", "save_to_disk")


def test_hub_id_goes_through_load_dataset(monkeypatch):
    calls = []

    def load_dataset(path, name, split):
        calls.append((path, name, split))
        loaded = datasets.Dataset.from_list(ROWS)
        return loaded if split else datasets.DatasetDict(train=loaded)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert next(read_rows("owner/pairs", "train", name="v2")) == (ROWS[0], "owner/pairs (train), index 0")
    assert next(read_rows("owner/pairs")) == (ROWS[0], "owner/pairs (train), index 0")
    assert calls == [("owner/pairs", "v2", "train"), ("owner/pairs", None, None)]


class Hub:
    """A hub with one data set; its files lie below `folder`."""

    def __init__(self, folder, monkeypatch, **options):
        self.folder, self.downloads = folder, []
        files = {
            split: [
                f"hf://datasets/owner/pairs@refs%2Fmain/data/{file.name}" for file in sorted(folder.glob(f"{split}*"))
            ]
            for split in ("train", "test")
        }
        files = DataFilesDict({split: DataFilesList(names, []) for split, names in files.items() if names})
        config = JsonConfig(data_files=files, **options)
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda path, name: SimpleNamespace(config=config))
        monkeypatch.setattr("huggingface_hub.hf_hub_download", self.download)

    def download(self, repo_id, filename, *, repo_type, revision):
        assert (repo_id, repo_type, revision) == ("owner/pairs", "dataset", "refs/main")
        self.downloads.append(filename)
        return str(self.folder / filename.removeprefix("data/"))


def test_files_of_the_hub_are_read_as_they_stand(tmp_path, monkeypatch):
    """Dates, integers beside other numbers, and objects whose keys differ, as in the file."""
    rows = [
        ROWS[0] | {"day": "2024-01-31", "number": 1, "about": {"a": 1}},
        ROWS[0] | {"day": "2024-02-01T00:00:00", "number": 2.5, "about": {"b": [None]}},
    ]
    write(tmp_path / "train-0.jsonl", "".join(json.dumps(row) + "\n" for row in rows[:1]))
    write(tmp_path / "train-1.jsonl", "".join(json.dumps(row) + "\n" for row in rows[1:]))
    write(tmp_path / "test.jsonl", LINES)
    hub = Hub(tmp_path, monkeypatch)
    found = list(read_rows("owner/pairs", "train"))
    assert [row for row, _ in found] == rows and type(found[0][0]["number"]) is int
    assert [where for _, where in found] == [f"owner/pairs/data/train-{i}.jsonl, row 1" for i in range(2)]
    assert hub.downloads == ["data/train-0.jsonl", "data/train-1.jsonl"], "the other split stays where it is"
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **kwargs: 1 / 0)
    refused("owner/pairs", "owner/pairs", "ZeroDivisionError", split="train")


def test_files_with_options_of_their_own_go_through_datasets(tmp_path, monkeypatch):
    write(tmp_path / "train.jsonl", LINES)
    Hub(tmp_path, monkeypatch, field="rows")
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: datasets.Dataset.from_list(ROWS))
    assert next(read_rows("owner/pairs", "train"))[1] == "owner/pairs (train), index 0"


def test_what_was_downloaded_before_is_read_without_a_network(tmp_path, monkeypatch):
    write(tmp_path / "train.jsonl", LINES)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, local_files_only, **kwargs: str(tmp_path))
    assert next(read_rows("owner/pairs"))[1] == f"{tmp_path / 'train.jsonl'}, row 1"


def test_hub_failure_names_id_and_cause(monkeypatch):
    def load_dataset(path, name, split):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    refused("owner/pairs", "owner/pairs", "ConnectionError: no route", "download it")


def test_missing_file_names_its_neighbours():
    write("train.jsonl", LINES)
    refused("tain.jsonl", "tain.jsonl", "did you mean train.jsonl?")
    refused("nowhere/train.jsonl", "nowhere does not exist")  # not taken for a hub id: it has a file's ending
    refused("pairs", "owner/name")
    refused("az://bucket/train.jsonl", "gs://BUCKET/PATH", "copy it")


def test_options_that_do_not_apply():
    write("train.jsonl", LINES)
    refused("train.jsonl", "train.jsonl", "split='train'", split="train")
    refused("train.jsonl", "name='v2'", name="v2")


def test_the_call_itself_checks_the_path():
    write("train.csv", "a,b")
    for path in ("absent.jsonl", "train.csv"):
        with pytest.raises(InputError):
            read_rows(path)


@pytest.mark.parametrize(
    "text, parts",
    [
        (LINES + '{"chosen": }\n', ["train.jsonl, row 3, column 12", "Expecting value"]),
        (LINES + '{"chosen": "a"', ["row 3, column 15"]),
        (LINES + '["a", "b"]\n', ["train.jsonl, row 3: a list"]),
        ("7\n", ["row 1: a int"]),
        (LINES + "\ufeff" + LINES, ["train.jsonl, row 3, column 1"]),
        ('{"margin": NaN}\n', ["train.jsonl, row 1", 'key "margin"', "NaN"]),
        ('{"margin": -Infinity}\n', ['row 1, key "margin"']),
        ('{"scores_chosen": {"x": [1e999]}}\n', ['row 1, key "scores_chosen"']),
        ("", ["train.jsonl, which holds none"]),
        (" \n\n", ["train.jsonl, which holds none"]),
    ],
)
def test_bad_json_lines(text, parts):
    write("train.jsonl", text)
    refused("train.jsonl", *parts)


def test_bad_json_list():
    write("train.json", '[\n {"chosen": "a"},\n {"chosen": }\n]')
    refused("train.json", "train.json, row 3, column 13")
    write("train.json", '[{"chosen": "a"}, 3]')
    refused("train.json", "train.json, index 1: a int")
    write("train.json", "[]")
    refused("train.json", "train.json, which holds none")


@pytest.mark.parametrize("name", ["train.jsonl", "train.json"])
def test_text_that_is_not_utf8(in_tmp, name):
    raw = json.dumps(ROWS[:1]).encode()[:-1] + b',\n{"chosen": "\xe9"}]' if name == "train.json" else None
    (in_tmp / name).write_bytes(raw or LINES.encode() + b'{"chosen": "\xe9"}\n')
    line = 2 if raw else 3
    refused(name, f"{name}, row {line}, column 13", "0xe9", "UTF-8")


def test_damaged_archives(in_tmp):
    whole = gzip.compress(LINES.encode() * 500)
    (in_tmp / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (in_tmp / "plain.jsonl.gz").write_bytes(LINES.encode())
    (in_tmp / "broken.parquet").write_bytes(b"PAR1 nothing here")
    refused("cut.jsonl.gz", "cut.jsonl.gz", "gzip")
    refused("plain.jsonl.gz", "plain.jsonl.gz", "gzip")
    refused("broken.parquet", "broken.parquet", "Parquet")


def test_empty_parquet_and_dataset(monkeypatch):
    empty = datasets.Dataset.from_list(ROWS).select([])
    empty.to_parquet("train.parquet")
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, split: empty)
    refused("train.parquet", "train.parquet, which holds none")
    refused("owner/pairs", "owner/pairs (train), which holds none", split="train")
