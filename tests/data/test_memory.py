"""Rows in memory are the rows of a file: the same groups, with places as Python names them."""

import datasets
import numpy as np
import pandas
import pytest
import tiny

from jaxpref.config import DataConfig
from jaxpref.data.dataset import load_groups
from jaxpref.data.memory import tables_in_memory
from jaxpref.data.splits import Part
from jaxpref.errors import InputError

ROWS = [
    row | {"score_chosen": i / 7, "score_rejected": 0.0, "day": "2024-01-31", "more": None}
    for i, row in enumerate(tiny.rows(12))
]


def generator():
    yield from ROWS


GIVEN = {
    "list": lambda: ROWS,
    "tuple": lambda: tuple(ROWS),
    "function": lambda: generator,
    "iterator": lambda: iter(ROWS),
    "frame": lambda: pandas.DataFrame(ROWS),
    "dataset": lambda: datasets.Dataset.from_list(ROWS),
    "formatted dataset": lambda: datasets.Dataset.from_list(ROWS).with_format("numpy", columns=["prompt"]),
    "frame with an index": lambda: pandas.DataFrame(ROWS).set_index("chosen"),
    "function of a frame": lambda: lambda: pandas.DataFrame(ROWS),
    "function of splits": lambda: lambda: datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}),
    "numpy's numbers": lambda: (row | {"score_chosen": np.float64(row["score_chosen"])} for row in ROWS),
    "streamed": lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
}


TRAIN = Part(default="train")


def loaded(given, part=TRAIN, **settings):
    tables = tables_in_memory(given, "data", part)
    return load_groups(DataConfig(**settings), tiny.make_tokenizer(), tables, "train", columns=["score"])


@pytest.mark.parametrize("kind", GIVEN)
def test_every_kind_gives_the_groups_of_a_file(kind, tmp_path):
    file = str(tiny.write_rows(tmp_path / "rows.jsonl", ROWS))
    expected, _ = load_groups(DataConfig(), tiny.make_tokenizer(), [file], "train", columns=["score"])
    groups, report = loaded(GIVEN[kind]())
    name = 'data["train"]' if kind == "function of splits" else "data"
    assert report.paths == [name] and [group.where for group in groups] == [f"{name}[{i}]" for i in range(12)]
    for one, other in zip(groups, expected, strict=True):
        assert one.prompt_ids.tolist() == other.prompt_ids.tolist()
        assert [ids.tolist() for ids in one.completion_ids] == [ids.tolist() for ids in other.completion_ids]
        assert one.columns == other.columns and one.row_id == other.row_id


def test_splits_of_a_dataset_dict():
    parts = {"train": datasets.Dataset.from_list(ROWS[:8]), "test": datasets.Dataset.from_list(ROWS[8:])}
    both = datasets.DatasetDict(parts)
    groups, _ = loaded(both)
    assert len(groups) == 8 and groups[7].where == 'data["train"][7]'
    assert len(loaded(both, Part(default="test"))[0]) == 4
    with pytest.raises(InputError, match="validation(.|\n)*one of: train, test"):
        loaded(both, Part("validation"))


def test_paths_are_paths(tmp_path):
    file = str(tiny.write_rows(tmp_path / "rows.jsonl", ROWS))
    for given in (file, [file], tmp_path / "rows.jsonl", [tmp_path / "rows.jsonl"], lambda: file):
        assert loaded(given)[0][0].where == f"{file}, row 1"
    with pytest.raises(InputError, match=r"data\[0\]: a path, data\[1\]: a dict"):
        loaded([file, ROWS[0]])


def test_missing_values_of_a_frame_are_null():
    frame = pandas.DataFrame([*ROWS[:2], ROWS[2] | {"chosen": None, "score_chosen": np.nan}])
    with pytest.raises(InputError, match=r'data\[2\], key "chosen": null'):
        loaded(frame)
    groups, report = loaded(frame.iloc[::-1], on_bad_row="drop")
    assert [group.where for group in groups] == ["data[1]", "data[2]"], "places are positions, not labels"
    assert report.unusable.total() == 1


def test_a_function_is_called_once():
    calls = []

    def rows():
        calls.append(1)
        return iter(ROWS[len(calls) - 1 :])

    assert len(loaded(rows)[0]) == 12 and len(calls) == 1


def test_an_error_of_a_generator_says_where_it_was():
    def rows():
        yield from ROWS[:2]
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        loaded(rows)
    assert caught.value.__notes__ == ["raised while data[2] was asked for"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "data: int"),
        (lambda count: ROWS, "a function without arguments(.|\n)*data: missing"),
        (pandas.DataFrame(ROWS)["chosen"], "data: a Series"),
        (pandas.DataFrame([["a", "b"]], columns=["chosen", "chosen"]), "names of their own(.|\n)*Duplicate"),
        ({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}, r"data\['prompt'\]: list without rows"),
        (ROWS[0] | {"prompt": "a"}, r"data\['prompt'\]: str without rows"),
        ([], "data, which holds none"),
        ([pandas.DataFrame(ROWS)], r"data\[0\]: a DataFrame(.|\n)*pandas.concat"),
        ([ROWS[0], "text"], r"data\[1\]: a str"),
        ([ROWS[0], ROWS[1] | {"rejected": []}], r'data\[1\], key "rejected"'),
        ([ROWS[0] | {"score_chosen": float("nan")}], r'data\[0\], key "score_chosen": NaN'),
        (lambda: iter([ROWS[0] | {"seen": {1, 2}}]), r"data\[0\]: Object of type set"),
        (pandas.DataFrame({"prompt": ["a", 1], "chosen": ["b", "c"], "rejected": ["d", "e"]}), "data: (.|\n)*prompt"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(given, said):
    with pytest.raises(InputError, match=said):
        loaded(given)
