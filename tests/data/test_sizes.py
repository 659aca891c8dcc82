"""Sizes of all groups at once are those of each."""

import dataclasses

import numpy as np
import pytest

from jaxpref.data.kept_groups import KeptGroups, as_batch, with_row_ids_from, write_batches
from jaxpref.data.loader import all_loss_tokens
from jaxpref.data.pack import row_tokens
from jaxpref.data.pictures.layout import tiles_of
from jaxpref.data.pictures.other import CROPPED
from jaxpref.data.sizes import sizes_of
from jaxpref.types import EncodedGroup, Picture


def group_of(row_id, prompt, *completions, **more):
    ids = np.random.default_rng(row_id).integers(0, 90 + row_id, 500, dtype=np.int32)
    return EncodedGroup(ids[:prompt], tuple(ids[:n] for n in completions), row_id, f"row {row_id}", **more)


TEXT = [group_of(0, 5, 3, 4), group_of(1, 0, 2, 1), group_of(2, 1, 7), group_of(3, 9, 2, 30, 4), group_of(4, 2, 2, 2)]
PICTURE = Picture("a.png", b"", "0", (2, 3))
PICTURES = [
    group_of(5, 20, 3, 4, pictures=(PICTURE,), other_pictures=CROPPED),
    group_of(6, 20, 3, pictures=(PICTURE, PICTURE), other_pictures="none"),
    group_of(7, 20, 3, 9, pictures=(PICTURE,)),
]


def kept(groups, folder):
    pieces = [as_batch(groups[:3]), with_row_ids_from(as_batch(groups[3:]), 0)]
    write_batches(folder / "groups.arrow", pieces)
    return KeptGroups(folder / "groups.arrow")


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("groups", [TEXT, TEXT + PICTURES], ids=["text", "pictures"])
def test_as_of_each_group(groups, share_prefix, tmp_path):
    for given in (groups, kept(groups, tmp_path)):
        sizes = sizes_of(given)
        assert sizes.row_tokens_B(share_prefix).tolist() == [row_tokens(group, share_prefix) for group in groups]
        assert sizes.completions_B.tolist() == [len(group.completion_ids) for group in groups]
        assert sizes.tiles_B.tolist() == [tiles_of(group) for group in groups]
        longest = [len(group.prompt_ids) + max(map(len, group.completion_ids)) for group in groups]
        assert sizes.longest_sequence_B().tolist() == longest
        for on_prompt in (True, False):
            expected = [all_loss_tokens(group, on_prompt) for group in groups]
            assert sizes.loss_tokens_B(on_prompt).tolist() == expected


def test_what_kept_groups_know_of_all(tmp_path):
    tokens = [ids.max() for group in TEXT for ids in (group.prompt_ids, *group.completion_ids) if len(ids)]
    known = kept(TEXT, tmp_path)
    assert known.largest_token == max(tokens)
    assert not known.have_pictures and not known.have_columns
    last = dataclasses.replace(TEXT[-1], columns={"margin": 1.0}, pictures=(PICTURE,))
    other = kept([*TEXT[:-1], last], tmp_path)
    assert other.have_pictures and other.have_columns
