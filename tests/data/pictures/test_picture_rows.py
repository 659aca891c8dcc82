"""Rows with pictures into groups and tokens: how they are written, counted, cut and refused."""

import pickle
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny_pictures
from tiny_pictures import picture, row, stored

from jaxpref.config import DataConfig
from jaxpref.data import dataset
from jaxpref.data.dataset import load_groups
from jaxpref.data.kept_groups import KeptGroups, as_batch, write_batches
from jaxpref.data.memory import tables_in_memory
from jaxpref.data.pictures.rows import as_picture
from jaxpref.data.splits import part_of_side
from jaxpref.data.template import group_texts
from jaxpref.errors import InputError, RowError

WHERE = "data/train.jsonl, row 3"


@pytest.fixture
def load(tmp_path, tokenizer, processor):
    """Rows, in a file beside their pictures or in memory, to groups and their report."""

    def run(rows, kinds=("pair",), processor=processor, in_memory=False, write=True, **options):
        config = DataConfig(**{"cache": str(tmp_path / "cache"), **options})
        file = tmp_path / "train.jsonl"
        if in_memory:
            paths = tables_in_memory(rows, "data", part_of_side(config, "train"))
        else:
            paths = [str(tiny_pictures.write_rows(file, rows) if write else file)]
        return load_groups(config, tokenizer, paths, "train", kinds, processor=processor)

    return run


def text_of(group, tokenizer, k=None):
    return tokenizer.decode(group.prompt_ids if k is None else group.completion_ids[k])


# ---- how pictures are written


def test_files_beside_the_rows(load, tokenizer, processor):
    groups, report = load([row(0), row(1)])
    tall, wide = groups
    assert tall.pictures[0].grid == (3, 1) and wide.pictures[0].grid == (3, 3)  # 20 x 60, 40 x 30
    assert text_of(wide, tokenizer).startswith("<|im_start|>user\n<fake_token_around_image><row_1_col_1><image>")
    assert text_of(wide, tokenizer).endswith("<fake_token_around_image>what 1<|im_end|>\n<|im_start|>assistant\n")
    assert (wide.prompt_ids == processor.token_id).sum() == 4 * 10
    assert (report.encoding.pictures, report.encoding.picture_tokens) == (2, 4 * 4 + 4 * 10)
    assert "2 pictures in 2 groups, of 28 tokens on average" in str(report)


IMAGE = picture(0, 20, 60)
FORMS = {
    "bytes": stored(IMAGE),
    "stored by datasets": {"bytes": stored(IMAGE), "path": "gone.png"},
    "in memory": IMAGE,
    "array": np.asarray(IMAGE),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_picture(form, load, tmp_path):
    (expected,), _ = load([row(0)])
    (group,), _ = load([row(0, images=[FORMS[form]])], in_memory=True)
    (alone,), _ = load([{**row(0), "images": None, "image": FORMS[form]}], in_memory=True)
    assert group.prompt_ids.tolist() == alone.prompt_ids.tolist() == expected.prompt_ids.tolist()
    assert group.pictures[0].grid == (3, 1) and group.pictures[0].data == alone.pictures[0].data
    (given_once,), _ = load(lambda: iter([row(0, images=[FORMS[form]])]), in_memory=True)
    assert given_once.pictures == group.pictures


def test_parquet_as_datasets_writes_it(load, tmp_path, tokenizer, processor):
    rows = [row(i, images=[{"bytes": stored(picture(i)), "path": None}]) for i in range(3)]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    config = DataConfig(cache="none")
    groups, _ = load_groups(config, tokenizer, [str(path)], "train", processor=processor)
    assert [len(group.pictures) for group in groups] == [1, 1, 1]
    assert len({group.pictures[0].digest for group in groups}) == 3


@pytest.mark.parametrize("content", ["what 1", [{"type": "text", "text": "what 1"}]])
def test_without_places_pictures_come_before_the_first_question(content, load):
    asked = [{"role": "system", "content": "Look."}, {"role": "user", "content": content}]
    parts = [{"type": "image"}, {"type": "text", "text": "what 1"}]
    (expected,), _ = load([row(0, prompt=[asked[0], {"role": "user", "content": parts}])])
    (group,), _ = load([row(0, prompt=asked)])
    assert group.prompt_ids.tolist() == expected.prompt_ids.tolist()


def test_parts_may_hold_their_pictures(load, tokenizer):
    two = [{"type": "image"}, {"type": "text", "text": " or "}, {"type": "image", "image": "1.png"}]
    (group, _), _ = load([row(0, prompt=[{"role": "user", "content": two}]), row(1)])
    assert [p.file.rpartition("/")[2] for p in group.pictures] == ["0.png", "1.png"]
    assert text_of(group, tokenizer).index(" or ") < text_of(group, tokenizer).index("<row_1_col_2>")


def test_the_prompt_may_stand_in_the_answers(load):
    (expected,), _ = load([row(0)])
    whole = {key: row(0)["prompt"] + row(0)[key] for key in ("chosen", "rejected")}
    (group,), _ = load([{"images": ["0.png"], **whole}])
    assert group.prompt_ids.tolist() == expected.prompt_ids.tolist()


def test_plain_text_says_itself_where_pictures_stand(load, tokenizer):
    texts = {"prompt": "<image>\nwhat? ", "chosen": "a", "rejected": "b"}
    (group,), _ = load([{"images": ["0.png"], **texts}])
    assert text_of(group, tokenizer).endswith("<fake_token_around_image>\nwhat? ")


def test_rows_as_the_authors_of_mdpo_write_them(load, tokenizer):
    """Plain texts; the prompt is a dialog with its picture's place."""
    dialog = {"prompt": "A chat. USER: <image>\nWhy? ASSISTANT:", "chosen": " So.", "rejected": " No."}
    (group,), _ = load([{"img_path": "0.png", **dialog}], columns={"images": "img_path"})
    assert len(group.pictures) == 1 and text_of(group, tokenizer, 0) == " So.<|im_end|>"
    assert text_of(group, tokenizer).endswith("<fake_token_around_image>\nWhy? ASSISTANT:")


def test_rows_with_and_without_pictures_mix(load, processor):
    groups, report = load([row(0), row(1, images=None, prompt="1 + 1 = ", chosen="2", rejected="3"), row(2)])
    assert [len(group.pictures) for group in groups] == [1, 0, 1]
    assert processor.token_id not in groups[1].prompt_ids
    assert report.encoding.groups_with_pictures == 2


def test_a_model_of_text_can_train_without_them(load, tokenizer):
    with pytest.raises(InputError, match="row 1") as caught:
        load([row(0)], processor=None)
    assert "model.pictures=true" in str(caught.value) and "{images: null}" in str(caught.value)
    (group,), report = load([row(0)], processor=None, columns={"images": None})
    assert text_of(group, tokenizer) == "<|im_start|>user\nwhat 0<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_reads_parts_writes_texts_too(tokenizer):
    """As SmolVLM's, which would leave out a content that is text without a word."""
    from jaxpref.data.kinds import to_group

    text = {"prompt": [{"role": "user", "content": "hello"}], "chosen": [{"role": "assistant", "content": "a"}]}
    group = to_group({**text, "rejected": [{"role": "assistant", "content": "b"}]}, WHERE, 0)
    assert [part in text for part, text in zip("hello a b".split(), group_texts(group, tokenizer), strict=True)]
    assert "hello" not in tokenizer.apply_chat_template(text["prompt"], tokenize=False)


# ---- what is refused


@pytest.mark.parametrize("url", ["https://example.org/a.png", "HTTP://x/y", "data:image/png;base64,AAAA"])
def test_urls_are_not_fetched(url):
    with pytest.raises(InputError, match="row 3, key .images.") as caught:
        as_picture(url, f'{WHERE}, key "images[0]"', WHERE)
    assert url in str(caught.value) and "download" in str(caught.value)


@pytest.mark.parametrize(
    "value", [3, {"url": "x"}, {"bytes": "aGk="}, np.zeros((3, 4, 5), np.uint8), np.zeros((4, 4), np.float32)]
)
def test_what_is_no_picture(value):
    with pytest.raises(InputError, match="row 3"):
        as_picture(value, WHERE, WHERE)


IN_ANSWER = [{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]
ASKED = {"prompt": [{"role": "user", "content": "<image>?"}]}
REFUSED = {
    "not as many pictures as places": [{"images": []}, {"images": ["0.png", "0.png"]}, {"images": None}, ASKED],
    "picture that cannot be read": [{"images": ["none.png"]}],
    "missing picture": [{"images": [None]}],
    "broken picture": [{"images": ["train.jsonl"]}],
    "tokens of pictures that are none": [{"chosen": [{"role": "assistant", "content": "<image>"}]}],
}


@pytest.mark.parametrize("reason, changes", [(reason, one) for reason, all_ in REFUSED.items() for one in all_])
def test_rows_are_refused_or_dropped_by_their_reason(reason, changes, load):
    if changes is ASKED:
        reason = "not as many pictures as places"
    with pytest.raises(RowError, match="row 2") as caught:
        load([row(0), row(1, **changes)])
    assert reason in (caught.value.reason, "tokens of pictures that are none")
    groups, report = load([row(0), row(1, **changes)], on_bad_row="drop")
    assert len(groups) == 1 and report.dropped() == {caught.value.reason: 1}


def test_answers_hold_no_pictures(load):
    with pytest.raises(InputError, match='row 1, key "chosen"'):
        load([row(0, chosen=IN_ANSWER)])
    with pytest.raises(InputError, match="images.*image"):
        load([row(0, image="0.png")])


# ---- the length limit


def test_pictures_are_never_cut(tokenizer, processor, load):
    (whole,), _ = load([row(1)])
    length = len(whole.prompt_ids)
    for truncation, reason in (
        ("keep_start", "prompt as long as max_length"),
        ("keep_end", "picture beyond max_length"),
        ("drop", "longer than max_length"),
    ):
        (kept, *_), report = load([row(0), row(1)], max_length=length - 1, truncation=truncation)
        assert kept.where.endswith("row 1") and report.dropped() == {reason: 1}
    with pytest.raises(InputError, match="max_length"):
        load([row(1)], max_length=length - 1, truncation="error")


def test_the_end_of_a_prompt_may_hold_a_picture_whose_start_is_cut(tokenizer, processor, load):
    """What `keep_end` cuts off before the picture is gone, the picture is whole."""
    late = [{"type": "text", "text": "x" * 30}, {"type": "image"}]
    rows = [row(0, prompt=[{"role": "user", "content": late}])]
    (whole,), _ = load(rows)
    longest = len(whole.prompt_ids) + max(map(len, whole.completion_ids))
    (cut,), report = load(rows, max_length=longest - 20, truncation="keep_end")
    assert report.encoding.prompt_tokens_cut == 20
    assert (cut.prompt_ids == processor.token_id).sum() == (whole.prompt_ids == processor.token_id).sum()


# ---- kept on disk


def test_bytes_of_pictures_stay_in_the_file_of_kept_groups(load, tmp_path):
    asked = [{"role": "user", "content": "Which?"}]
    images = [[stored(picture(i)), stored(picture(i, 20, 60))] for i in range(2)]
    rows = [row(i, images=images[i], prompt=asked) for i in range(2)]
    text = {"prompt": "a", "chosen": "b", "rejected": "c"}
    groups = load([*rows, text], in_memory=True)[0]
    write_batches(tmp_path / "groups.arrow", [as_batch(groups[:1]), as_batch(groups[1:])])
    kept = KeptGroups(tmp_path / "groups.arrow")
    for one, two in ((list(kept), groups), ([kept[0], kept[1], kept[2]], groups)):
        for a, b in zip(one, two, strict=True):
            assert [replace(p, data=bytes(p.data)) for p in a.pictures] == list(b.pictures)
            assert a.prompt_key == b.prompt_key and a.other_pictures == b.other_pictures
    assert not isinstance(kept[0].pictures[0].data, bytes)  # it looks into the file


def test_workers_are_sent_the_processor(processor):
    again = pickle.loads(pickle.dumps(processor))
    assert np.array_equal(again.tiles(picture()), processor.tiles(picture()))


def test_kept_groups_are_the_same_and_follow_the_pictures(load, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "ALONE", 0)
    monkeypatch.setattr(dataset, "in_workers", lambda function, jobs, count: map(function, jobs))
    rows = [row(0), row(1, images=[{"bytes": None, "path": "1.png"}]), row(2, images=None, prompt="a", chosen="b")]
    rows[2]["rejected"] = "c"
    groups, report = load(rows)
    again, report_again = load(rows)
    monkeypatch.setattr(dataset, "ALONE", 1000)
    alone, _ = load(rows, cache="none")
    for one in (groups, again, list(again), alone):
        assert [g.prompt_ids.tolist() for g in one] == [g.prompt_ids.tolist() for g in alone]
        assert [g.pictures for g in one] == [g.pictures for g in alone]
    assert report == report_again and len([*(tmp_path / "cache").glob("*/groups.arrow")]) == 1
    picture(9, 20, 60).save(tmp_path / "1.png")
    changed, _ = load([], write=False)
    assert changed[1].pictures[0].grid == (3, 1) != alone[1].pictures[0].grid
