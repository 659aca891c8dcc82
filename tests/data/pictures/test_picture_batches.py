"""Groups with pictures in packed rows: their tiles, the tokens that point at them, other pictures."""

import numpy as np
import pytest
import tiny_pictures
from PIL import Image
from tiny_pictures import picture, row

from jaxpref.config import DataConfig
from jaxpref.data.dataset import load_groups
from jaxpref.data.loader import Loader, visible_pairs
from jaxpref.data.pack import Layout, row_tokens
from jaxpref.data.pictures.other import cropped
from jaxpref.data.pictures.tiles import TileReader
from jaxpref.data.regroup import draw_others
from jaxpref.errors import InputError, RowError

LAYOUTS = [Layout(384), Layout(384, share_prefix=False), Layout(384, pack=False), Layout(384, False, False)]


@pytest.fixture
def load(tmp_path, tokenizer, processor):
    def run(rows, kind="pair"):
        path = tiny_pictures.write_rows(tmp_path / "train.jsonl", rows)
        config = DataConfig(cache="none")
        return load_groups(config, tokenizer, [str(path)], "train", (kind,), processor=processor)[0]

    return run


def two_shapes_and_a_text(load, kind="pair"):
    two = row(2, images=["0.png", "1.png"], prompt=[{"role": "user", "content": "two?"}])
    return load([row(0), row(1), row(3, images=None, prompt="1 + 1 = ", chosen="2", rejected="3"), two], kind)


def sequences(batch, groups, processor):
    """(group, completion, pixels of its prompt's pictures token by token) of every copy of every prompt."""
    by_id = {group.row_id: group for group in groups}
    for t, r in np.ndindex(batch.token_RL.shape[:2]):
        for g in np.flatnonzero(batch.row_id_RG[t, r] >= 0):
            group = by_id[int(batch.row_id_RG[t, r, g])]
            of_group = np.flatnonzero(batch.segment_RL[t, r] == g + 1)
            token, position = batch.token_RL[t, r, of_group], batch.position_RL[t, r, of_group]
            index = batch.pictures.index_RL[t, r, of_group]
            expiry = batch.expiry_RL[t, r, of_group]
            for k in range(len(group.completion_ids)):
                last = batch.last_RGK[t, r, g, k]
                seen = (of_group <= last) & (expiry > last)
                assert position[seen].tolist() == list(range(seen.sum()))
                assert token[seen].tolist() == [*group.prompt_ids, *group.completion_ids[k]]
                yield group, k, token[seen], index[seen], batch.pictures.pixels_Rpijc[t, r]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_tokens_point_at_the_tiles_of_their_pictures(layout, load, processor):
    groups = two_shapes_and_a_text(load)
    loader = Loader(groups, batch_size=4, micro_rows=2, layout=layout, processor=processor)
    [step] = loader.iterate()
    assert step.batch.pictures.pixels_Rpijc.shape[2:] == (loader.plan.shape.tiles, 16, 16, 3)
    count = 0
    for group, _, token, index, tiles in sequences(step.batch, groups, processor):
        assert np.array_equal(index >= 0, token == processor.token_id)
        names = {0: [0], 1: [1], 2: [], 3: [0, 1]}[group.row_id]
        shapes = [(40, 30) if i % 2 else (20, 60) for i in names]
        expected = [processor.tiles(picture(i, *size)) for i, size in zip(names, shapes, strict=True)]
        expected = np.concatenate([np.zeros((0, 16, 16, 3), np.uint8), *expected])
        at = index[index >= 0]
        assert np.array_equal(tiles[at // 4], expected.repeat(4, 0))
        assert np.array_equal(at % 4, np.tile(range(4), len(expected)))
        count += 1
    assert count == 8 and step.tokens == sum(row_tokens(group, layout.share_prefix) for group in groups)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", ["pair_cropped", "pair_masked"])
def test_the_chosen_answer_once_more_after_other_pictures(kind, layout, load, processor):
    groups = two_shapes_and_a_text(load, kind)
    assert [len(group.completion_ids) for group in groups] == [3, 3, 2, 3]
    loader = Loader(groups, batch_size=4, micro_rows=2, layout=layout, processor=processor)
    [step] = loader.iterate()
    others = 0
    for group, k, token, index, tiles in sequences(step.batch, groups, processor):
        is_picture = token == processor.token_id
        if k == 0:
            own, own_index = tiles[index[is_picture] // 4], index[is_picture]
        elif k == 1:
            assert np.array_equal(index[is_picture], own_index)
        elif kind == "pair_masked":
            assert (index == -1).all()
            others += 1
        else:
            assert group.completion_ids[2].tolist() == group.completion_ids[0].tolist()
            other = tiles[index[is_picture] // 4]
            assert not set(index[is_picture]) & set(own_index) and other.std() > 5
            assert np.abs(other.astype(int) - own).mean() > 20
            others += 1
    assert others == 3
    [again] = Loader(groups, batch_size=4, micro_rows=1, layout=Layout(512), processor=processor).iterate()
    one, two = (np.sort(s.batch.pictures.pixels_Rpijc.reshape(-1, 768), 0) for s in (step, again))
    assert np.array_equal(one[one.any(1)], two[two.any(1)])  # the same crops in every layout


def test_work_is_counted_with_the_other_prompt(load, processor):
    pair, (group,) = load([row(0)])[0], load([row(0)], "pair_cropped")
    prompt, chosen = len(pair.prompt_ids), len(pair.completion_ids[0])
    assert row_tokens(group, True) == row_tokens(pair, True) + prompt + chosen
    triangle = (prompt + chosen) * (prompt + chosen + 1) // 2
    assert visible_pairs(group, True) == visible_pairs(pair, True) + triangle


def test_a_part_of_a_picture():
    image, areas = picture(0, 300, 200), []
    ramp = np.dstack([*np.meshgrid(np.arange(250), np.arange(250)), np.zeros((250, 250))]).astype(np.uint8)
    for seed in range(200):
        part = np.asarray(cropped(Image.fromarray(ramp), np.random.default_rng(seed)))
        width, height = np.ptp(part[..., 0].astype(int)) + 1, np.ptp(part[..., 1].astype(int)) + 1
        areas.append(width * height / 250**2)
        assert 0.65 < width / height < 1.5
    assert 0.008 < min(areas) < 0.03 and 0.18 < max(areas) < 0.21
    first, same, other = (np.asarray(cropped(image, np.random.default_rng(s))) for s in (0, 0, 1))
    assert first.shape == (200, 300, 3) and np.array_equal(first, same) and not np.array_equal(first, other)
    for size in ((1, 500), (500, 1), (3, 3)):
        assert cropped(picture(0, *size), np.random.default_rng(0)).size == size


def test_no_pictures_to_compare_after(load):
    with pytest.raises(InputError, match="no row has any"):
        load([row(0, images=None, prompt="1 + 1 = ", chosen="2", rejected="3")], "pair_cropped")


def test_tiles_are_decoded_once_and_kept_up_to_a_bound(load, processor, monkeypatch):
    decoded = []
    monkeypatch.setattr(type(processor), "tiles", lambda self, image: decoded.append(1) or np.ones((4, 16, 16, 3)))
    (group,), to = load([row(0)]), np.zeros((9, 16, 16, 3), np.uint8)
    same = load([row(0), row(2, images=["0.png"])])
    reader = TileReader(processor, most_bytes=2**20)
    for one in (group, *same):
        reader.fill([(to, one)])
    assert len(decoded) == 1 and (to[:4] == 1).all() and not to[4:].any()
    small = TileReader(processor, most_bytes=10)
    for _ in range(2):
        small.fill([(to, group)])
    assert len(decoded) == 3


def test_a_picture_that_changes_under_a_run(load, processor, tmp_path):
    groups = load([row(0), row(1)])
    picture(7, 20, 60).save(tmp_path / "0.png")
    with pytest.raises(RowError, match="row 1, picture 1") as caught:
        list(Loader(groups, batch_size=2, micro_rows=1, layout=Layout(384), processor=processor).iterate())
    assert caught.value.reason == "picture that changed"


def test_other_pictures_make_other_prompts(load):
    same = [{"role": "user", "content": "what?"}]
    one, two, again = load([row(0, prompt=same), row(2, prompt=same), row(4, prompt=same, images=["0.png"])])
    assert one.prompt_ids.tolist() == two.prompt_ids.tolist()
    assert one.prompt_key == again.prompt_key != two.prompt_key
    lenders = draw_others([group.prompt_key for group in (one, two, again)], seed=0)
    assert lenders[0] == lenders[2] == 1 and lenders[1] in (0, 2)
