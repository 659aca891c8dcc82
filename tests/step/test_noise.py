"""NEFTune's noise: of its size, the same however a batch is laid out, and only on the policy in training."""

import jax
import numpy as np
import pytest
import tiny
from test_step import assert_same, make_groups, one_step, params  # noqa: F401 (a fixture)

from jaxpref.data.loader import Loader
from jaxpref.data.pack import Layout
from jaxpref.models.embedding import noise_on_embeddings
from jaxpref.training.run import train

ALPHA = 5.0
WIDTH = 64


def batches(groups, *, seed=0, layout=None, epochs=1):
    layout = layout or Layout(64)
    options = dict(batch_size=4, micro_rows=1, seed=seed, epochs=epochs, noise_alpha=ALPHA)
    return [item.batch for item in Loader(groups, layout=layout, **options).iterate()]


def by_token(batch, groups):
    """(row id, place in the group) -> noise, from rows as packed and shared as they are."""
    found = {}
    drawn = np.asarray(jax.vmap(lambda noise: noise_on_embeddings(noise, WIDTH))(batch.noise))
    for t, r, i in np.argwhere(batch.segment_RL > 0):
        row = int(batch.row_id_RG[t, r, batch.segment_RL[t, r, i] - 1])
        place = int(batch.noise.key_RL2[t, r, i, 1])
        value = found.setdefault((row, place), drawn[t, r, i])
        np.testing.assert_array_equal(value, drawn[t, r, i])  # a prompt's copies have the same
    assert not drawn[batch.segment_RL == 0].any()
    return found


def test_noise_is_of_its_size_and_every_token_has_its_own():
    groups = make_groups(8)
    noise = by_token(batches(groups)[0], groups) | by_token(batches(groups)[1], groups)
    for group in groups:
        tokens = len(group.prompt_ids) + max(map(len, group.completion_ids))
        bound = ALPHA / np.sqrt(tokens * WIDTH)
        own = np.array([x for (row, _), x in noise.items() if row == group.row_id])
        assert len(own) == len(group.prompt_ids) + sum(map(len, group.completion_ids))
        assert np.abs(own).max() < bound and np.abs(own).max() > 0.98 * bound
        # Uniform: mean 0 and variance bound^2 / 3, within 5 of their standard errors.
        assert abs(own.mean()) < 5 * bound / np.sqrt(3 * own.size)
        assert abs(own.var() / (bound**2 / 3) - 1) < 5 * np.sqrt(0.8 / own.size)
        assert len(np.unique(own, axis=0)) == len(own)


@pytest.mark.parametrize("layout", [Layout(64, share_prefix=False), Layout(64, pack=False), Layout(32)])
def test_noise_depends_on_seed_step_and_row_and_not_on_the_layout(layout):
    groups = make_groups(8)
    here, there = batches(groups), batches(groups, layout=layout)
    for batch, other in zip(here, there, strict=True):
        same, also = by_token(batch, groups), by_token(other, groups)
        assert same.keys() == also.keys()
        for token in same:
            np.testing.assert_array_equal(same[token], also[token])
    epochs = [by_token(batch, groups) for batch in batches(groups, epochs=2)]
    first, second = epochs[0] | epochs[1], epochs[2] | epochs[3]
    seed = [by_token(batch, groups) for batch in batches(groups, seed=1)]
    for token, value in first.items():
        assert not np.array_equal(value, second[token])  # anew in every step
        assert not np.array_equal(value, (seed[0] | seed[1])[token])


@pytest.mark.slow
def test_the_step_with_noise_does_not_depend_on_layout_or_mesh(params):  # noqa: F811
    whole = one_step(*params, micro_rows=8, noise_alpha=ALPHA)
    quiet = one_step(*params, micro_rows=8)
    assert whole[0]["logps/chosen"] != quiet[0]["logps/chosen"]
    assert abs(whole[0]["loss"] - quiet[0]["loss"]) > 1e-3
    layout = Layout(32, share_prefix=False)
    assert_same(whole, one_step(*params, micro_rows=4, layout=layout, mesh_shape=(2, 2, 2), noise_alpha=ALPHA))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile", "any_mesh")
def test_evaluations_and_the_reference_have_no_noise(tmp_path, tiny_files):
    """Before the first step nothing differs; the first loss does, for the policy has noise and the reference none."""
    runs = {}
    for alpha in (None, ALPHA):
        config = tiny.long_config(
            tmp_path / str(alpha), tiny_files, train={"neftune_alpha": alpha, "max_steps": 2, "log_every": 1}
        )
        runs[alpha] = train(config), tiny.logged(config.out)
    quiet, noisy = (runs[alpha][1] for alpha in (None, ALPHA))
    assert quiet[0] == noisy[0] and "eval/loss" in quiet[0]
    assert quiet[1]["loss"] == pytest.approx(np.log(2), abs=1e-5) and abs(noisy[1]["loss"] - np.log(2)) > 1e-3
