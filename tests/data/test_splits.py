"""Which split is read: the one that was asked for, or the one that is meant where there are several."""

import shutil

import datasets
import pytest
import tiny

from jaxpref import cli
from jaxpref.config import DataConfig
from jaxpref.data.dataset import load_groups
from jaxpref.data.memory import tables_in_memory
from jaxpref.data.rewrite import configured, read_pairs
from jaxpref.data.sources import read_all
from jaxpref.data.splits import Part, choose, part_of_side, split_in_name
from jaxpref.errors import InputError

ULTRAFEEDBACK = ["train_prefs", "train_sft", "train_gen", "test_prefs", "test_sft", "test_gen"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def rows_of(name):
    return [{"prompt": f"{name} {i}", "chosen": "good", "rejected": "bad"} for i in range(2)]


def folder_of(folder, *names, ending=".jsonl"):
    folder.mkdir(parents=True)
    for name in names:
        tiny.write_rows(folder / f"{name}{ending}", rows_of(name))
    return folder


def read(path, side="train", **options):
    """Prompts of what a run reads, by training and by the commands that read pairs."""
    config = DataConfig(max_length=None, **options)
    groups, _ = load_groups(config, tiny.make_tokenizer(), [str(path)], side)
    texts = [tiny.make_tokenizer().decode(group.prompt_ids) for group in groups]
    assert [group.prompt for group in read_pairs(configured(config, [str(path)], side))] == texts
    return [text.removesuffix(" 0") for text in texts if text.endswith(" 0")]


def refused(path, side="train", *, names, **options):
    """The error ends with the choices."""
    with pytest.raises(InputError) as caught:
        read(path, side, **options)
    assert f"to one of: {', '.join(names)}; or" in str(caught.value)


@pytest.mark.parametrize(
    "name, split",
    [
        ("train", "train"),
        ("train-00000-of-00008", "train"),
        ("base.train", "train"),
        ("Train_2", "train"),
        ("test1", "test"),
        ("train_prefs-00000-of-00001", "train_prefs"),
        ("ultra-train_prefs", "train_prefs"),
        ("train_v2", "train_v2"),
        ("validation", "validation"),
        ("trainer", None),
        ("contest", None),
        ("rows-00000-of-00002", None),
    ],
)
def test_split_in_the_name_of_a_file(name, split):
    assert split_in_name(name) == split


@pytest.mark.parametrize(
    "splits, asked, default, chosen",
    [
        (ULTRAFEEDBACK, "train_prefs", "train", "train_prefs"),
        (ULTRAFEEDBACK, "Train_Prefs", None, "train_prefs"),
        (["train", "train_prefs"], "train", None, "train"),
        (["train_prefs", "test_sft"], "prefs", None, "train_prefs"),
        (["train_prefs", "test_prefs"], None, "train", "train_prefs"),
        (["train", "test"], None, "test", "test"),
        (["everything"], None, "train", "everything"),
        (["everything"], None, None, "everything"),
        (["validation"], None, "test", "validation"),
        # Refused:
        (ULTRAFEEDBACK, "train", "train", None),
        (ULTRAFEEDBACK, "prefs", None, None),
        (ULTRAFEEDBACK, None, "train", None),
        (["train", "test"], "dev", None, None),
        (["train", "test"], None, None, None),
        (["train", "validation"], None, "test", None),
        (["a", "b"], None, "train", None),
        # One split, but named for the other purpose.
        (["train"], None, "test", None),
        (["test_prefs"], None, "train", None),
    ],
)
def test_choice(splits, asked, default, chosen):
    own = {split: split for split in splits}
    if chosen is None:
        with pytest.raises(InputError, match="to one of: "):
            choose(own, Part(asked, default), "rows")
    else:
        assert choose(own, Part(asked, default), "rows") == [chosen]


def test_without_splits_all_is_read_unless_one_is_asked_for(tmp_path):
    folder = folder_of(tmp_path / "files", "one", "two")
    datasets.Dataset.from_list(rows_of("saved")).save_to_disk(tmp_path / "saved")
    for side in ("train", "eval"):
        assert read(folder, side) == ["one", "two"]
        assert read(tmp_path / "saved", side) == ["saved"]
        for path in (folder, tmp_path / "saved"):
            with pytest.raises(InputError, match="which has none"):
                read(path, side, train_split="train", eval_split="train")


def test_a_split_of_files_alone_is_refused(tmp_path, capsys):
    """Beside a path that has splits, a file is read whole."""
    parts = folder_of(tmp_path / "parts", "train_prefs", "train_sft")
    own = tiny.write_rows(tmp_path / "own.jsonl", rows_of("own"))
    for side in ("train", "eval"):
        with pytest.raises(InputError, match=f"data.{side}_split='train_sft' with the file .*own.jsonl(.|\n)*remove"):
            part_of_side(DataConfig(**{side: [str(own)], f"{side}_split": "train_sft"}), side)
    data = DataConfig(train=[str(own), str(parts)], train_split="train_sft")
    rows = read_all(data.train, part_of_side(data, "train"))
    assert [row["prompt"] for row, _ in rows] == ["own 0", "own 1", "train_sft 0", "train_sft 1"]
    sets = {"own": [str(own)], "other": [str(parts)]}
    assert part_of_side(DataConfig(eval=sets, eval_split="train_sft"), "eval").split == "train_sft"
    with pytest.raises(InputError, match="split='sft' with data, rows without splits(.|\n)*data.train_split"):
        tables_in_memory(rows_of("own"), "data", Part("sft"))
    assert cli.main(["score", str(own), "--reward", "words=rule:words", "--out", "scored.jsonl", "--split", "sft"]) == 2
    assert cli.main(["generate", "no-model", "--prompts", str(own), "--split", "sft"]) == 2
    assert capsys.readouterr().err.count("--split='sft' with the file") == 2


def test_files_of_one_split(tmp_path):
    """What stands before the split's word is a part of the data, what follows it is another split."""
    folder = folder_of(tmp_path / "files", *ULTRAFEEDBACK)
    refused(folder, names=["train_gen", "train_prefs", "train_sft"])
    refused(folder, train_split="prefs", names=["test_prefs", "train_prefs"])
    refused(folder, "eval", names=["test_gen", "test_prefs", "test_sft"])
    assert read(folder, train_split="train_prefs") == ["train_prefs"]
    assert read(folder, "eval", eval_split="test_prefs") == ["test_prefs"]
    parts = folder_of(tmp_path / "parts", "b.train-1-of-2", "b.train-2-of-2", "a-train", "test1", "test2", "notes")
    assert read(parts) == ["a-train", "b.train-1-of-2", "b.train-2-of-2"]
    assert read(parts, "eval") == ["test1", "test2"]


def test_saved_splits(tmp_path):
    splits = {name: datasets.Dataset.from_list(rows_of(name)) for name in ("train_prefs", "train_sft", "test_prefs")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    refused(tmp_path / "saved", names=["train_prefs", "train_sft"])
    assert read(tmp_path / "saved", train_split="train_sft") == ["train_sft"]
    assert read(tmp_path / "saved", "eval") == ["test_prefs"]
    assert read(tmp_path / "saved" / "train_sft") == ["train_sft"]
    datasets.DatasetDict().save_to_disk(tmp_path / "empty")
    with pytest.raises(InputError, match="empty, which holds none"):
        read(tmp_path / "empty")


CARD = """---
license: mit
configs:
- config_name: prefs
  data_files:
  - split: train
    path: data/train_prefs-*
  - split: held_out
    path: [data/test_prefs-*, more/extra.jsonl]
- config_name: sft
  data_files: data/train_sft-*
---
# Preferences
"""


def hub_copy(folder, card=None):
    folder_of(folder / "data", *ULTRAFEEDBACK, ending="-00000-of-00001.jsonl")
    folder_of(folder / "more", "extra")
    if card:
        (folder / "README.md").write_text(card)
    return folder


def of_datasets(path, split, **options):
    rows = datasets.load_dataset(str(path), split=split, **options)
    return [row["prompt"].removesuffix(" 0") for row in rows if row["prompt"].endswith(" 0")]


def test_copy_of_a_hub_dataset_has_the_splits_that_it_declares(tmp_path):
    copy = hub_copy(tmp_path / "copy", CARD)
    for name, split in (("prefs", "train"), ("prefs", "held_out"), ("sft", "train")):
        expected = of_datasets(copy, split, name=name)
        assert read(copy, config_name=name, train_split=split) == expected
    assert expected == ["train_sft"]
    assert read(copy, config_name="prefs") == ["train_prefs"]
    refused(copy, "eval", config_name="prefs", names=["train", "held_out"])
    with pytest.raises(InputError, match=r"\['prefs', 'sft'\](.|\n)*data.config_name"):
        read(copy)
    with pytest.raises(InputError, match=r"Available: \['prefs', 'sft'\]"):
        read(copy, config_name="gen")


def test_copy_of_a_hub_dataset_without_a_card(tmp_path):
    copy = hub_copy(tmp_path / "copy")
    shutil.rmtree(copy / "more")
    assert read(copy, train_split="train_sft") == of_datasets(copy, "train_sft") == ["train_sft"]
    refused(copy, names=["train_gen", "train_prefs", "train_sft"])
    refused(copy, train_split="dev", names=sorted(ULTRAFEEDBACK))


def test_links_of_the_hubs_cache(tmp_path):
    copy = hub_copy(tmp_path / "copy", CARD)
    linked = tmp_path / "datasets--o--n" / "snapshots" / "0123"
    for number, file in enumerate(sorted(p for p in copy.rglob("*") if p.is_file())):
        blob = tmp_path / "datasets--o--n" / "blobs" / f"{number}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blob)
        link = linked / file.relative_to(copy)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    assert read(linked, config_name="prefs") == ["train_prefs"]


def test_copies_that_only_datasets_can_read(tmp_path, monkeypatch):
    """Another kind of file, and options of a reader in the card."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "csv" / "data").mkdir(parents=True)  # relative, it would be taken for the file format
    (tmp_path / "csv" / "data" / "train.csv").write_text("prompt,chosen,rejected\na 0,x,y\n")
    assert read("csv") == ["a"]
    (tmp_path / "nested" / "data").mkdir(parents=True)
    (tmp_path / "nested" / "data" / "train.json").write_text(
        '{"rows": [{"prompt": "b 0", "chosen": "x", "rejected": "y"}]}'
    )
    card = "---\nconfigs:\n- config_name: default\n  data_dir: data\n  field: rows\n---\n"
    (tmp_path / "nested" / "README.md").write_text(card)
    assert read("nested") == ["b"]


def test_files_that_describe_a_dataset_hold_no_rows(tmp_path):
    folder = folder_of(tmp_path / "files", "rows")
    (folder / "dataset_infos.json").write_text('{"default": {}}')
    assert read(folder) == ["rows"]
    with pytest.raises(InputError, match="config_name='v2' with .*, which has no configurations"):
        read(folder, config_name="v2")


def test_published_layouts(shared_dir):
    cases = shared_dir / "cases"
    assert read(cases / "data_01" / "saved") == ["Name colour"]
    assert read(cases / "data_02" / "ufb", train_split="train_prefs") == ["train_prefs question"]
    refused(cases / "data_02" / "ufb", names=["train_gen", "train_prefs", "train_sft"])
    snapshot = cases / "data_02" / "snapshot"
    refused(snapshot, names=["train_prefs", "train_sft"])  # train_gen lies there, and is not declared
    assert read(snapshot, train_split="train_sft") == ["train_sft question"]
    assert read(snapshot, "eval") == ["test_prefs question"]
