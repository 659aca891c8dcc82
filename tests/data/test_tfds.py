"""tensorflow-datasets: builders' directories and names are read as files are, and written without loss."""

import json
import sys
from datetime import date

import numpy as np
import pytest
import tiny

from jaxpref.config import DataConfig
from jaxpref.data.dataset import load_groups
from jaxpref.data.sources import read_rows, tables_of
from jaxpref.data.splits import Part
from jaxpref.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets")
from jaxpref.data import tfds as ours  # noqa: E402

# Of the package, while it writes.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TEXT, MESSAGES = (
    tfds.features.Text(),
    tfds.features.Sequence({"role": tfds.features.Text(), "content": tfds.features.Text()}),
)
PAIRS = [
    {
        "prompt": f"q{i} ä",
        "chosen": "y" * (i % 4 + 1),
        "rejected": f"n{i}",
        "margin": i / 4,
        "scores_chosen": {"good": i},
        "scores_rejected": {"good": -1},
    }
    for i in range(20)
]
KINDS = {
    "pair": (
        {
            **dict.fromkeys(["prompt", "chosen", "rejected"], TEXT),
            "margin": np.float32,
            **{f"scores_{side}": {"good": np.int64} for side in ("chosen", "rejected")},
        },
        PAIRS,
    ),
    "conversation": (dict.fromkeys(["prompt", "chosen", "rejected"], MESSAGES), tiny.rows(20)),
    "judged": (
        {"prompt": TEXT, "completion": TEXT, "label": np.bool_},
        [{"prompt": f"q{i}", "completion": "y" * (i + 1), "label": i % 3 == 0} for i in range(20)],
    ),
    "ranked": (
        {"prompt": TEXT, "completions": tfds.features.Sequence(TEXT), "scores": tfds.features.Sequence(np.float32)},
        [{"prompt": f"q{i}", "completions": ["a", f"b{i}", "c"], "scores": [1.0, 0.5, i / 2]} for i in range(20)],
    ),
}


def build(folder, features, rows, name="made", configuration=None):
    """A builder in the plainest form: shuffled, as tensorflow-datasets does."""
    configurations = [tfds.core.BuilderConfig(name=configuration, version="1.0.0")] if configuration else []

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        # Its name is not known to the package: what reads it has its files alone.
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = configurations

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(rows[:16]), "test": self._generate_examples(rows[16:])}

        def _generate_examples(self, part):
            yield from enumerate(part)

    Made.name = name
    builder = Made(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


def groups_of(paths, side="train", kinds=("pair",), columns=None, **settings):
    return load_groups(DataConfig(**settings), tiny.make_tokenizer(), paths, side, kinds, columns=columns)[0]


def contents(groups):
    return sorted((g.prompt_ids.tolist(), [ids.tolist() for ids in g.completion_ids], dict(g.columns)) for g in groups)


@pytest.mark.parametrize("kind", KINDS)
def test_builders_give_the_groups_of_files(kind, tmp_path):
    features, rows = KINDS[kind]
    folder = build(tmp_path / "tfds", features, rows)
    kinds = ("pair",) if kind == "conversation" else (kind,)
    for side, part in {"train": rows[:16], "eval": rows[16:]}.items():
        file = str(tiny.write_rows(tmp_path / f"{side}.jsonl", part))
        for path in (folder, folder.rpartition("/")[0]):  # and that of its versions
            groups = groups_of([path], side, kinds)
            assert contents(groups) == contents(groups_of([file], side, kinds))
    assert groups[0].where == f"{folder.rpartition('/')[0]} (test), index 0"
    assert "tensorflow" not in sys.modules


def test_strings_that_are_no_text_features_are_text(tmp_path):
    strings = tfds.features.Tensor(shape=(2,), dtype=np.str_)
    row = {"prompt": "ä", "pair": ["é", "b"], "list": ["ü"], "raw": b"\xff\xd8"}
    features = {"prompt": np.str_, "pair": strings, "list": tfds.features.Sequence(np.str_), "raw": np.object_}
    assert [row for row, _ in read_rows(build(tmp_path, features, [row] * 17), "test")] == [row]


def test_text_that_is_not_in_utf8_is_told_with_its_place(tmp_path):
    folder = build(tmp_path, {"prompt": TEXT}, [{"prompt": b"\xff"}] * 17)
    with pytest.raises(InputError, match=r"text in UTF-8(.|\n)*\(train\), index 0"):
        list(read_rows(folder, "train"))


def test_configurations_of_a_builder_are_chosen_by_name(tmp_path):
    features, rows = KINDS["pair"]
    build(tmp_path, features, rows, configuration="one")
    folder = str(tmp_path / "made")
    assert len(groups_of([folder])) == 16, "the only one"
    build(tmp_path, features, rows[:17], configuration="two")
    assert len(groups_of([folder], "eval", config_name="one")) == 4
    assert len(groups_of([folder], "eval", config_name="two")) == 1
    for wanted in (None, "three"):
        with pytest.raises(InputError, match=rf"config_name={wanted!r}(.|\n)*one, two"):
            groups_of([folder], config_name=wanted)


def test_splits_in_tensorflow_datasets_own_words(tmp_path):
    folder = build(tmp_path, *KINDS["pair"])
    every = [row["prompt"] for row, _ in read_rows(folder, "train")]
    for split, expected in {"train[:75%]": every[:12], "train[75%:]": every[12:], "train[2:4]": every[2:4]}.items():
        assert [row["prompt"] for row, _ in read_rows(folder, split)] == expected
    assert len(list(read_rows(folder, "train[:25%]+test"))) == 8
    assert len(list(read_rows(folder, "all"))) == 20
    assert len(groups_of([folder], train_split="train[:50%]")) == 8
    for split in ("train[:x]", "validation", "nope[:3]"):
        with pytest.raises(InputError, match="split"):
            list(read_rows(folder, split))
    with pytest.raises(InputError, match=r"at least one row(.|\n)*train\[:0\]"):
        list(read_rows(folder, "train[:0]"))


def test_tables_of_a_name_and_their_digests(tmp_path, monkeypatch):
    # As TFDS_DATA_DIR, which is read when the package is imported.
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    build(tmp_path, *KINDS["pair"], name="my_pairs")
    assert contents(groups_of(["tfds:my_pairs"])) == contents(groups_of([str(tmp_path / "my_pairs")]))
    assert len(groups_of(["tfds:my_pairs:1.0.0"], train_split="train[:10]")) == 10
    digests = {tables_of(["tfds:my_pairs"], Part(split))[0].digest() for split in ("train", "test")}
    assert len(digests) == 2
    with pytest.raises(InputError, match="tfds:no_such_data: (.|\n)*not found"):
        groups_of(["tfds:no_such_data"])


def test_a_data_set_that_a_package_ships(tmp_path):
    """tensorflow-datasets' own for tests, made without a network."""
    builder = tfds.testing.DummyDataset(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    rows = [row for row, _ in read_rows(builder.data_dir)]
    assert sorted(row["id"] for row in rows) == [0, 1, 2] and type(rows[0]["id"]) is int


AWKWARD = [
    {"prompt": "q", "chosen": "y", "rejected": "n", "margin": 0.1, "n": 1, "extra": None, "tags": []},
    {"prompt": "ä\n", "chosen": "z", "rejected": "", "margin": 2.0, "n": 2.5, "tags": ["a"], "deep": [[{"a": "b"}]]},
    {"prompt": "\ud800", "chosen": "z", "rejected": "m", "margin": 1e300, "n": True, "tags": ["b", "c"], "big": 2**70},
]


@pytest.mark.parametrize("rows", [*(rows for _, rows in KINDS.values()), AWKWARD], ids=[*KINDS, "awkward"])
def test_what_is_written_is_read_again(rows, tmp_path):
    ours.write({"train": lambda: iter(rows), "test": lambda: iter(rows[:2])}, tmp_path / "written")
    again = [row for row, _ in read_rows(str(tmp_path / "written"), "train")]
    for row, expected in zip(again, rows, strict=True):
        assert {key: value for key, value in row.items() if value is not None} == {
            key: value for key, value in expected.items() if value is not None
        }
    assert len(list(read_rows(str(tmp_path / "written"), "test"))) == 2
    with pytest.raises(InputError, match="exists|holds"):
        ours.write({"train": lambda: iter(rows)}, tmp_path / "written")


def test_what_json_cannot_write_is_told_with_its_place(tmp_path):
    with pytest.raises(InputError, match=r'train, row 2, key "day": (.|\n)*date'):
        ours.write({"train": lambda: iter([{"day": None}, {"day": date(2024, 1, 31)}])}, tmp_path / "written")
    assert not (tmp_path / "written").exists()


def test_plain_columns_are_features_that_others_can_read(tmp_path):
    ours.write({"train": lambda: iter(tiny.rows(5))}, tmp_path / "written")
    source = tfds.builder_from_directory(str(tmp_path / "written")).as_data_source("train")
    assert source[3]["prompt"]["content"][0] == b"n 3"


def test_the_command_writes_the_data_of_a_config(call, tiny_files, tmp_path, any_mesh):
    raw = tiny.settings(tmp_path / "run", tiny_files.model, tiny_files.train, tiny_files.held_out)
    (tmp_path / "config.yaml").write_text(json.dumps(raw))
    code, out, err = call("data", tmp_path / "config.yaml", "--write-tfds", tmp_path / "written")
    assert code == 0, err
    assert f"train: 18 rows, test: 6 rows; written to {tmp_path / 'written'}" in " ".join(out.split())
    assert "Dataset rows" not in out + err, "which names a directory that is gone"
    written = [str(tmp_path / "written")]
    for side, file in {"train": tiny_files.train, "eval": tiny_files.held_out}.items():
        for one, other in zip(groups_of(written, side), groups_of([str(file)], side), strict=True):
            assert one.prompt_ids.tolist() == other.prompt_ids.tolist()
