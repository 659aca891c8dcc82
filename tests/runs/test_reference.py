"""Cached reference log-probs: the same numbers as a copy's, computed again exactly when something matters."""

import dataclasses

import numpy as np
import pytest
import tiny

from jaxpref.runs.build import build
from jaxpref.runs.cached_reference import cached_logps, completion_key, with_reference_logps
from jaxpref.runs.digests import weights_key
from jaxpref.runs.feed import read_data
from jaxpref.step.batch_loss import REFERENCE_COLUMN

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

COPY_TOLERANCE = 1e-5
"""Relative, of losses and log-probs: rows are packed otherwise, so sums run in another order."""


@pytest.fixture
def computed(tiny_files, tmp_path):
    """(groups with log-probs, how many were computed) under a config with these changes; one cache for the test."""

    def groups_of(**changes):
        rows = changes.pop("rows", tiny_files.train)
        reference = {"mode": "cache", "cache_dir": str(tmp_path / "cache")} | changes.pop("reference", {})
        model = changes.pop("model_dir", tiny_files.model)
        config = tiny.config(tmp_path / "run", model, rows, reference=reference, **changes)
        pieces = build(config)
        groups, _ = read_data(pieces, "train")
        return with_reference_logps(pieces, groups)

    return groups_of


def column(groups):
    return np.array([group.columns[REFERENCE_COLUMN] for group in groups])


def test_losses_equal_those_of_a_copy(finished_run, tiny_files, tmp_path):
    config = tiny.long_config(
        tmp_path / "run", tiny_files, reference={"mode": "cache", "cache_dir": str(tmp_path / "cache")}
    )
    assert (config.reference.mode, finished_run.config.reference.mode) == ("cache", "copy")
    cached = tiny.run(config)
    np.testing.assert_allclose(cached.losses, finished_run.losses, rtol=COPY_TOLERANCE)
    for name in ("rewards/chosen", "rewards/rejected", "logps/chosen"):
        ours, theirs = ([run.steps[step][name] for step in range(1, 11)] for run in (cached, finished_run))
        np.testing.assert_allclose(ours, theirs, rtol=COPY_TOLERANCE, atol=COPY_TOLERANCE)
    assert cached.result.last_eval == pytest.approx(
        finished_run.result.last_eval, rel=COPY_TOLERANCE, abs=COPY_TOLERANCE
    )
    # The cache kept it from running the reference: no third program, and the file is there.
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_reused_when_nothing_that_matters_changed(computed, tiny_files, tmp_path):
    first, count = computed()
    assert count == 18
    for changes in (
        {},
        {"optim": {"learning_rate": 1e-4}},
        {"train": {"seed": 7, "batch_size": 3, "epochs": 3}},
        {"data": {"row_length": 96}},
        {"data": {"share_prefix": False, "pack": False}},
        {"objective": [{"name": "ipo", "beta": 0.5}]},
        {"mesh": {"data": 2, "fsdp": 2, "tensor": 2}},
        {"model": {"remat": "none", "logprob_chunk": 8}},
        {"rows": tiny.write_rows(tmp_path / "reversed.jsonl", tiny.rows(18)[::-1])},
    ):
        again, count = computed(**changes)
        assert count == 0, changes
        assert sorted(column(again).ravel()) == sorted(column(first).ravel())
    assert column(again)[::-1].tolist() == column(first).tolist()  # the reversed file: each row its own


def test_new_rows_alone_are_computed(computed, tmp_path):
    computed()
    more = tiny.write_rows(tmp_path / "more.jsonl", tiny.rows(21))
    groups, count = computed(rows=more)
    assert count == 3
    whole, count = computed(rows=more, reference={"cache_dir": str(tmp_path / "another")})
    assert count == 21
    np.testing.assert_allclose(column(groups), column(whole), rtol=COPY_TOLERANCE)


def test_computed_again_when_it_matters(computed, tiny_files, tmp_path):
    first, _ = computed()
    other = tiny.write_model(tmp_path / "other", scale=1.01)
    for changes in ({"model_dir": other}, {"model": {"compute_dtype": "bfloat16"}}):
        again, count = computed(**changes)
        assert count == 18, changes
        assert not np.array_equal(column(again), column(first))
    # Cut after 18 tokens: the rows that are cut meet the cache anew, the others do not.
    groups, count = computed(data={"max_length": 18})
    same = lambda a, b: all(map(np.array_equal, a.completion_ids, b.completion_ids))
    cut = [group for group, whole in zip(groups, first, strict=True) if not same(group, whole)]
    assert 0 < len(cut) < 18 and count == len(cut)


def test_reference_of_another_path(computed, tiny_files, tmp_path):
    first, _ = computed()
    other = tiny.write_model(tmp_path / "other", scale=1.01)
    theirs, count = computed(reference={"path": str(other)})
    assert count == 18 and not np.array_equal(column(theirs), column(first))
    same, count = computed(model_dir=other)  # those weights are known by now, whatever they are used for
    assert count == 0
    np.testing.assert_array_equal(column(same), column(theirs))


def test_weights_key_is_of_content(tiny_files, tmp_path):
    key = weights_key(tiny_files.model, "float32")
    copied = tiny.copy_run(tiny_files.model, tmp_path / "elsewhere")
    assert weights_key(copied, "float32") == key
    assert weights_key(tiny_files.model, "bfloat16") != key
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "model.safetensors").write_bytes(weights)
    assert weights_key(copied, "float32") != key


def test_completion_key_tells_prompt_from_completion(computed):
    group = computed()[0][0]
    moved = dataclasses.replace(
        group,
        prompt_ids=group.prompt_ids[:-1],
        completion_ids=tuple(np.concatenate([group.prompt_ids[-1:], ids]) for ids in group.completion_ids),
    )
    assert np.array_equal(
        np.concatenate([group.prompt_ids, group.completion_ids[0]]),
        np.concatenate([moved.prompt_ids, moved.completion_ids[0]]),
    )
    assert completion_key(group, 0) != completion_key(moved, 0)
    assert completion_key(group, 0) != completion_key(group, 1)


def plain_groups(tiny_files, tmp_path, count=3):
    config = tiny.config(tmp_path / "run", tiny_files.model, tiny_files.train)
    return read_data(build(config), "train")[0][:count]


def test_interrupted_write_leaves_the_old_file(tiny_files, tmp_path, monkeypatch):
    groups = plain_groups(tiny_files, tmp_path)
    compute = lambda missing: {group.row_id: (-1.5, -2.5) for group in missing}
    file = tmp_path / "cache" / "key.npz"
    cached_logps(groups[:2], lambda: file, compute)
    before = file.read_bytes()
    savez = np.savez

    def dies(stream, **arrays):
        savez(stream, **arrays)
        stream.truncate(20)
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", dies)
    with pytest.raises(KeyboardInterrupt):
        cached_logps(groups, lambda: file, compute)
    assert file.read_bytes() == before
    monkeypatch.undo()
    again, count = cached_logps(groups, lambda: file, compute)
    assert count == 1 and [p.name for p in file.parent.iterdir()] == ["key.npz"]
    assert again == [(-1.5, -2.5)] * 3


def test_failed_computation_writes_nothing(tiny_files, tmp_path):
    def fails(missing):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        cached_logps(plain_groups(tiny_files, tmp_path), lambda: tmp_path / "cache" / "key.npz", fails)
    assert not (tmp_path / "cache").exists()


def test_objective_without_reference_caches_nothing(computed, tmp_path):
    groups, count = computed(objective=[{"name": "sft"}])
    assert count == 0 and REFERENCE_COLUMN not in groups[0].columns
    assert not (tmp_path / "cache").exists()
