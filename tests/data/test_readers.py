"""Rows are the same rows, to the token, whatever kind of file or folder holds them."""

import datetime
import json
import re

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import tiny

from jaxpref.config import DataConfig
from jaxpref.data.dataset import load_groups
from jaxpref.data.encode import encode_groups
from jaxpref.data.kinds import kind_of_row, read_group
from jaxpref.data.sources import read_rows
from jaxpref.errors import InputError

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% if style is defined %}{{ style | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def call(arguments, **more):
    return {"type": "function", "function": {"name": "f", "arguments": arguments}, **more}


def row(number, arguments, parameters, **more):
    return {
        "prompt": [{"role": "user", "content": f"q{number}"}],
        "chosen": [{"role": "assistant", "content": "", "tool_calls": [call(arguments)]}],
        "rejected": [{"role": "assistant", "content": "No idea"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}],
        "chat_template_kwargs": None,  # `from_list` takes the columns from the first row
    } | more


UNLIKE_KEYS = [
    row(0, {"city": "Rome"}, {"type": "object", "properties": {"city": {"type": "string"}}}),
    row(1, {"expr": "2*3", "deep": {"a": [1, 2], "b": {"c": "x"}}}, {"properties": {"expr": {"enum": ["a", None]}}}),
    # Without arguments; without tools, but with a variable of the template.
    row(2, {}, {"type": "object", "properties": {}}),
    row(3, {"deep": {"b": {"c": "2024-01-31"}}}, {}, tools=None, chat_template_kwargs={"style": {"tone": "dry"}}),
    row(4, {"city": "Rome", "expr": "1"}, {"type": "object"}, chat_template_kwargs={"style": {"n": 1}}),
    # Text in place of a call, and in the other answer a call with a key more.
    row(5, {}, {}, chosen=[{"role": "assistant", "content": "Yes"}])
    | {"rejected": [{"role": "assistant", "content": "", "tool_calls": [call({"city": "Oslo"}, id="call_1")]}]},
]
# Only JSON has these: more than one type under a key, another order of keys, a null that is meant.
UNLIKE_TYPES = [
    row(0, {"n": 1}, {"type": "object", "properties": {"n": {"type": "integer", "default": None}}}),
    row(
        1, {"n": "one", "exact": True}, {"properties": {"exact": {"default": False}, "n": {"type": ["string", "null"]}}}
    ),
    row(2, {"exact": False, "n": [1.5, None, {"a": None, "b": 0}]}, {"type": "object"}),
]


def as_json(rows):
    return datasets.Dataset.from_list(rows, on_mixed_types="use_json")


def as_structs(rows):
    return datasets.Dataset.from_list(rows)


def jsonl(folder, rows, _):
    return tiny.write_rows(folder / "rows.jsonl", rows)


def parquet(folder, rows, make):
    make(rows).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def saved(folder, rows, make):
    make(rows).save_to_disk(folder / "saved")
    return folder / "saved"


def saved_splits(folder, rows, make):
    datasets.DatasetDict(train=make(rows), test=make(rows[:1])).save_to_disk(folder / "saved")
    return folder / "saved"


def copy_of_a_hub_dataset(folder, rows, make):
    (folder / "copy" / "data").mkdir(parents=True)
    make(rows).to_parquet(folder / "copy" / "data" / "train-00000-of-00001.parquet")
    return folder / "copy"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def ids(groups):
    return [[group.prompt_ids.tolist(), *(c.tolist() for c in group.completion_ids)] for group in groups]


def from_memory(rows, tokenizer):
    made = (read_group(kind_of_row(row, "rows"), row, "rows", i) for i, row in enumerate(rows))
    return ids(encode_groups(made, tokenizer, max_length=None, truncation="error", on_bad_row="error")[0])


def from_path(path, tokenizer):
    return ids(load_groups(DataConfig(max_length=None), tokenizer, [str(path)], "train")[0])


@pytest.mark.parametrize("write", [jsonl, parquet, saved, saved_splits, copy_of_a_hub_dataset])
@pytest.mark.parametrize("rows, make", [(UNLIKE_KEYS, as_structs), (UNLIKE_KEYS, as_json), (UNLIKE_TYPES, as_json)])
def test_token_ids_are_the_same_from_every_kind_of_source(tmp_path, tokenizer, rows, make, write):
    assert from_path(write(tmp_path, rows, make), tokenizer) == from_memory(rows, tokenizer)


def test_what_a_row_does_not_have_is_in_no_prompt(tmp_path, tokenizer):
    prompt, chosen, _ = from_path(parquet(tmp_path, UNLIKE_KEYS, as_structs), tokenizer)[1]
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"properties": {"expr": {"enum": ["a", None]}}}}}
    ]
    assert tokenizer.decode(prompt) == f"{json.dumps(tools)}\nuser: q1<|im_end|>\nassistant: "
    calls = [call({"expr": "2*3", "deep": {"a": [1, 2], "b": {"c": "x"}}})]
    assert tokenizer.decode(chosen) == f"{json.dumps(calls)}<|im_end|>\n"


def test_a_null_that_is_meant_stays(tmp_path, tokenizer):
    prompt, _, _ = from_path(parquet(tmp_path, UNLIKE_TYPES, as_json), tokenizer)[0]
    assert '"n": {"type": "integer", "default": null}' in tokenizer.decode(prompt)


@pytest.mark.parametrize(
    "path", ["data_04/json_type.parquet", "data_04/saved", "data_05/null_filled.parquet", "data_05/saved"]
)
def test_columns_of_json_and_columns_filled_with_null(shared_dir, tokenizer, path):
    expected = from_path(shared_dir / "cases" / "data_04" / "rows.jsonl", tokenizer)
    assert from_path(shared_dir / "cases" / path, tokenizer) == expected


def test_maps_are_objects(tmp_path, tokenizer):
    """As Spark and DuckDB write objects whose keys differ."""
    rows = [row(0, {}, None, tools=None, chat_template_kwargs={"style": "dry", "n": "1"})]
    table = pyarrow.Table.from_pylist([{**rows[0], "chosen": [{"role": "assistant", "content": "Yes"}]}])
    maps = pyarrow.array([[("style", "dry"), ("n", "1")]], pyarrow.map_(pyarrow.string(), pyarrow.string()))
    column = table.schema.get_field_index("chat_template_kwargs")
    pyarrow.parquet.write_table(table.set_column(column, "chat_template_kwargs", maps), tmp_path / "rows.parquet")
    [(read, _)] = read_rows(str(tmp_path / "rows.parquet"))
    assert read["chat_template_kwargs"] == {"style": "dry", "n": "1"}


def test_a_saved_format_does_not_change_rows(tmp_path, tokenizer):
    whole = as_structs(UNLIKE_KEYS)
    whole.with_format("numpy", columns=["prompt", "chosen", "rejected"]).save_to_disk(tmp_path / "saved")
    assert from_path(tmp_path / "saved", tokenizer) == from_memory(UNLIKE_KEYS, tokenizer)


def test_text_that_looks_like_a_time_stays_text(tmp_path, tokenizer):
    """`datasets` reads such JSON lines as times, so the copy of a hub dataset is not read through it."""
    (tmp_path / "copy" / "data").mkdir(parents=True)
    rows = [{"prompt": "When?", "chosen": "2024-01-31", "rejected": "2024-02-01"}]
    tiny.write_rows(tmp_path / "copy" / "data" / "train.jsonl", rows)
    loaded = datasets.load_dataset(str(tmp_path / "copy"))["train"]
    assert loaded[0]["chosen"] == datetime.datetime(2024, 1, 31)
    assert from_path(tmp_path / "copy", tokenizer) == from_memory(rows, tokenizer)


def test_values_that_json_does_not_have(tmp_path, tokenizer):
    place = 'rows.parquet, index 0, key "chosen[0].tool_calls[0].function.arguments.day": date'
    with pytest.raises(InputError, match=re.escape(place)):
        from_path(parquet(tmp_path, [row(0, {"day": datetime.date(2024, 1, 31)}, None)], as_structs), tokenizer)
    with pytest.raises(InputError, match=r"NaN|nan"):
        from_memory([row(0, {"n": float("nan")}, {})], tokenizer)


def test_a_column_of_json_that_is_none(tmp_path):
    table = pyarrow.table({"prompt": pyarrow.array(['{"a": 1}', '{"a"'], pyarrow.json_())})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    rows = read_rows(str(tmp_path / "rows.parquet"))
    assert next(rows)[0] == {"prompt": {"a": 1}}
    with pytest.raises(InputError, match=r"rows.parquet: Expecting ':' .* \(after 1 rows\)"):
        next(rows)
