"""Planning, packing and iterating: nothing lost, order fixed by the seed, position restorable."""

import dataclasses

import numpy as np
import pytest

from jaxpref.data.loader import Loader
from jaxpref.data.pack import Layout, assign_rows
from jaxpref.errors import InputError
from jaxpref.types import EncodedGroup


def make_groups(count, seed=0, completions=2):
    rng = np.random.default_rng(seed)
    ids = lambda: rng.integers(1, 50, rng.integers(1, 12)).astype(np.int32)
    return [
        EncodedGroup(ids(), tuple(ids() for _ in range(completions)), i, f"data.jsonl, row {i + 1}", {"margin": i / 2})
        for i in range(count)
    ]


def ids_of(step):
    return sorted(int(i) for i in step.batch.row_id_RG.ravel() if i >= 0)


def test_every_row_of_an_epoch_comes_once_also_in_the_last_smaller_batch():
    loader = Loader(make_groups(10), batch_size=4, micro_rows=1, layout=Layout(40), seed=3, epochs=2)
    steps = list(loader.iterate())
    assert [step.groups for step in steps] == [4, 4, 2] * 2 and loader.plan.steps == 6
    first, second = steps[:3], steps[3:]
    assert (
        sorted(i for s in first for i in ids_of(s)) == sorted(i for s in second for i in ids_of(s)) == list(range(10))
    )
    assert [ids_of(s) for s in first] != [ids_of(s) for s in second], "epochs are shuffled anew"


def test_the_order_depends_on_the_seed_only():
    run = lambda seed, **options: [
        ids_of(s) for s in Loader(make_groups(20), batch_size=4, seed=seed, **options).iterate()
    ]
    here = run(1, micro_rows=1, layout=Layout(40))
    assert here == run(1, micro_rows=4, layout=Layout(64, share_prefix=False))
    assert here != run(2, micro_rows=1, layout=Layout(40))
    assert run(None, micro_rows=1, layout=Layout(40))[0] == [0, 1, 2, 3]


def test_max_steps_replaces_epochs():
    loader = Loader(make_groups(10), batch_size=4, micro_rows=1, layout=Layout(40), seed=0, max_steps=7)
    assert len(list(loader.iterate())) == loader.plan.steps == 7


@pytest.mark.parametrize("epochs, steps", [(0.1, 3), (0.01, 1), (0.5, 15), (1.5, 45), (0.51, 16), (2.0, 60)])
def test_a_part_of_an_epoch(epochs, steps):
    """Rounded up, as transformers does, but 0.1 of 30 steps are 3: 0.1 * 30 is 3.0000000000000004."""
    options = dict(batch_size=2, micro_rows=1, layout=Layout(40), seed=0)
    loader = Loader(make_groups(60), **options, epochs=epochs)
    assert loader.plan.steps == steps and loader.plan.steps_per_epoch == 30
    whole = Loader(make_groups(60), **options, epochs=3)
    for s in range(steps):
        assert [group.row_id for group in loader.groups_of(s)] == [group.row_id for group in whole.groups_of(s)]


@pytest.mark.parametrize("asked", [{"epochs": 10**8}, {"max_steps": 10**6 + 1}, {"epochs": 10**30}])
def test_more_steps_than_can_be_planned(asked):
    with pytest.raises(InputError, match=r"at most 1,000,000 steps(.|\n)*an epoch has 3(.|\n)*train.epochs"):
        Loader(make_groups(10), batch_size=4, micro_rows=1, layout=Layout(40), **asked)


def test_the_position_is_restored_exactly():
    loader = Loader(make_groups(12), batch_size=3, micro_rows=2, layout=Layout(40), seed=0, epochs=3)
    whole = list(loader.iterate())
    iterator = loader.iterate()
    for _ in range(5):
        next(iterator)
    state = iterator.get_state()
    again = loader.iterate()
    again.set_state(state)
    rest = list(again)
    assert len(rest) == len(whole) - 5
    for a, b in zip(rest, whole[5:], strict=True):
        assert a.micro_batches == b.micro_batches
        for x, y in zip(a.batch[:-1], b.batch[:-1], strict=True):
            np.testing.assert_array_equal(x, y)


def test_counts_by_hand():
    group = EncodedGroup(np.arange(3), (np.arange(2), np.arange(4)), 0, "row")
    (shared,) = list(Loader([group], batch_size=1, micro_rows=1, layout=Layout(16)).iterate())
    assert (shared.tokens, shared.tokens_unshared, shared.loss_tokens) == (9, 12, 6)
    # Prompt 3 sees 1+2+3; completions see the prompt and themselves: 2*3 + 1+2 and 4*3 + 1+2+3+4.
    assert shared.visible == 6 + 9 + 22
    (apart,) = list(Loader([group], batch_size=1, micro_rows=1, layout=Layout(16, share_prefix=False)).iterate())
    assert (apart.tokens, apart.visible) == (12, 15 + 28)


def test_columns_reach_their_group():
    loader = Loader(make_groups(6), batch_size=6, micro_rows=1, layout=Layout(40), columns=["margin"])
    (step,) = list(loader.iterate())
    ids, margins = step.batch.row_id_RG.ravel(), step.batch.columns["margin"].ravel()
    assert {int(i): float(m) for i, m in zip(ids, margins, strict=True) if i >= 0} == {i: i / 2 for i in range(6)}


def test_rows_of_other_processes_stay_padding():
    loader = Loader(make_groups(8), batch_size=8, micro_rows=2, layout=Layout(40))
    (all_rows,), (first,) = list(loader.iterate()), list(loader.iterate([True, False]))
    np.testing.assert_array_equal(first.batch.token_RL[:, 0], all_rows.batch.token_RL[:, 0])
    assert np.all(first.batch.row_id_RG[:, 1] == -1) and first.micro_batches == all_rows.micro_batches


def test_first_fit_decreasing():
    rows = assign_rows([3, 8, 5, 2, 7], Layout(10))
    assert rows == [[1, 3], [0, 4], [2]]
    assert assign_rows([3, 8], Layout(10, pack=False)) == [[0], [1]]


def test_micro_batches_run_at_the_length_of_their_fullest_row():
    """Lengths 12, 24, 36, 48; the columns counted must hold every token, and no shorter length would."""
    layout = Layout(48, buckets=4)
    assert layout.lengths == (12, 24, 36, 48) and Layout(48).lengths == (48,)
    loader = Loader(make_groups(40), batch_size=5, micro_rows=2, layout=layout, seed=0)
    total = 0
    for step in loader.iterate():
        used_T = (step.batch.segment_RL > 0).sum(-1).max(-1)[: step.micro_batches]
        assert np.array_equal(used_T, step.batch.expiry_RL.max((1, 2))[: step.micro_batches]), "what the step looks at"
        assert sorted(used_T, reverse=True) == list(used_T), "fullest first"
        assert step.run_tokens == 2 * sum(-(-int(used) // 12) * 12 for used in used_T)
        total += step.run_tokens
    tokens = sum(step.tokens for step in loader.iterate())
    assert loader.plan.padding_fraction == pytest.approx(1 - tokens / total)
    whole = Loader(make_groups(40), batch_size=5, micro_rows=2, layout=Layout(48), seed=0)
    assert loader.plan.padding_fraction < whole.plan.padding_fraction
    assert [ids_of(s) for s in loader.iterate()] == [ids_of(s) for s in whole.iterate()]


@pytest.mark.parametrize("pack", [True, False])
def test_columns_are_those_of_the_length_that_the_step_picks(pack):
    loader = Loader(make_groups(20), batch_size=5, micro_rows=2, layout=Layout(48, pack=pack, buckets=4), seed=0)
    for step in loader.iterate():
        used_T = step.batch.expiry_RL.max((1, 2))[: step.micro_batches]
        assert step.run_tokens == 2 * sum(-(-int(used) // 12) * 12 for used in used_T)


def test_a_group_longer_than_the_row_is_named():
    with pytest.raises(InputError, match=r"data.jsonl, row \d+: \d+ tokens"):
        Loader(make_groups(10), batch_size=2, micro_rows=1, layout=Layout(16))


def test_groups_with_fewer_completions_leave_slots_empty():
    """Ranked lists of two and three answers in one run; numbers of the answers are padded with zeros."""
    ragged = make_groups(2) + make_groups(1, completions=3)
    groups = [
        dataclasses.replace(g, row_id=i, columns={"score": tuple(range(1, len(g.completion_ids) + 1))})
        for i, g in enumerate(ragged)
    ]
    loader = Loader(groups, batch_size=3, micro_rows=1, layout=Layout(64), columns=["score"])
    (step,) = list(loader.iterate())
    batch, seen = step.batch, {}
    for at in zip(*np.nonzero(batch.row_id_RG >= 0), strict=True):
        seen[int(batch.row_id_RG[at])] = batch.slot_count_RGK[at].tolist(), batch.columns["score"][at].tolist()
    for i, group in enumerate(groups):
        lengths = [*map(len, group.completion_ids)]
        assert seen[i] == (lengths + [0] * (3 - len(lengths)), [1, 2, 3 if len(lengths) == 3 else 0])
