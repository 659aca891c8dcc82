"""How a token is chosen: the distributions that are drawn from, and what decides a draw."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxpref.errors import InputError
from jaxpref.generation.sampling import Sampling, choose, row_keys, warp

pytestmark = pytest.mark.usefixtures("quick_compile")

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/generate_warpers.json").read_text())
LOGITS = np.array(GOLDEN["logits"], np.float32)


def kept(logits_RV, **settings):
    """[R, V] whether a token may be drawn."""
    return np.isfinite(np.asarray(warp(jnp.asarray(logits_RV), Sampling(**{"temperature": 1.0, **settings}))))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["settings"]))
def test_warped_logits_are_those_of_transformers(case):
    expected = np.array([[-np.inf if x is None else x for x in row] for row in case["warped"]], np.float32)
    assert not np.array_equal(expected, LOGITS) or case["settings"] == {"top_k": 1000}
    warped = warp(jnp.asarray(LOGITS), Sampling(**{"temperature": 1.0, **case["settings"]}))
    np.testing.assert_array_equal(np.isfinite(warped), np.isfinite(expected))
    np.testing.assert_allclose(warped, expected, rtol=1e-6)


def test_top_p_by_hand():
    """Of 0.5, 0.3, 0.15, 0.05 the first two make up 0.75; more likely tokens have 0, 0.5, 0.8, 0.95 together."""
    logits = np.log([[0.15, 0.5, 0.05, 0.3]]).astype(np.float32)
    for top_p, expected in ((0.49, [1]), (0.51, [1, 3]), (0.75, [1, 3]), (0.81, [0, 1, 3]), (0.96, [0, 1, 2, 3])):
        assert np.flatnonzero(kept(logits, top_p=top_p)).tolist() == expected, top_p
    assert kept(logits, top_p=1.0).all()


def test_equal_logits_are_kept_or_left_out_together():
    logits = np.array([[1.0, 2.0, 2.0, 2.0, -3.0]], np.float32)
    for settings in ({"top_k": 1}, {"top_k": 2}, {"top_p": 0.1}, {"top_p": 0.5}):
        assert np.flatnonzero(kept(logits, **settings)).tolist() == [1, 2, 3], settings


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_thresholds_are_those_of_a_sort(scale):
    """Against a sort in float64, at a size and at magnitudes where a threshold by halving could go wrong."""
    logits = (np.random.default_rng(0).normal(size=(3, 5001)) * scale).astype(np.float32)
    order = np.argsort(-logits, axis=-1, kind="stable")
    p = np.take_along_axis(np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True)), order, -1)
    above = np.cumsum(p / p.sum(-1, keepdims=True), axis=-1) - p / p.sum(-1, keepdims=True)
    for top_p in (0.3, 0.9):
        count = (above < top_p).sum(-1)
        assert kept(logits, top_p=top_p).sum(-1).tolist() == count.tolist()
    for top_k in (1, 7, 5000):
        rank = np.argsort(order, axis=-1)
        np.testing.assert_array_equal(kept(logits, top_k=top_k), rank < top_k)


def draws(logits_V, sampling, count, position=3, seed=7):
    numbers = [(i // 8, i % 8) for i in range(count)]
    logits_RV = jnp.broadcast_to(jnp.asarray(logits_V), (count, len(logits_V)))
    keys, positions = jnp.asarray(row_keys(seed, numbers)), jnp.full(count, position)
    return np.asarray(jax.jit(choose, static_argnums=3)(logits_RV, keys, positions, sampling))


@pytest.mark.parametrize(
    "settings", [{"temperature": 1.0}, {"temperature": 1.6, "top_k": 6}, {"temperature": 0.8, "top_p": 0.9}]
)
def test_draws_follow_the_warped_distribution(settings):
    logits, sampling, count = LOGITS[1, :12], Sampling(**settings), 20_000
    p = np.asarray(jax.nn.softmax(warp(jnp.asarray(logits)[None], sampling)))[0].astype(np.float64)
    seen = np.bincount(draws(logits, sampling, count), minlength=12)
    assert seen[p == 0].sum() == 0 and (p > 0).sum() > 3
    test = lambda q: stats.chisquare(seen[p > 0], q[p > 0] / q[p > 0].sum() * count).pvalue
    assert test(p) > 0.01
    other = np.exp(np.log(np.maximum(p, 1e-30)) * 1.1)  # what 10% more temperature does would be noticed
    assert test(other) < 1e-6


def test_draws_of_rows_and_positions_are_independent():
    chances = []
    for seed in range(4):
        here, there = (draws(np.zeros(8), Sampling(1.0), 8_000, position, seed) for position in (3, 4))
        for a, b in ((here, there), (here[:-1], here[1:]), (here[:-8], here[8:])):  # positions, samples, prompts
            table = np.zeros((8, 8))
            np.add.at(table, (a, b), 1)
            chances.append(stats.chi2_contingency(table).pvalue)
    assert min(chances) > 1e-3 and stats.kstest(chances, "uniform").pvalue > 0.01  # of 12 tests


def test_a_draw_depends_on_seed_and_numbers_alone():
    numbers = [(0, 0), (0, 1), (1, 0), (70_000, 3)]
    keys = row_keys(5, numbers)
    assert len({key.tobytes() for key in keys}) == 4
    np.testing.assert_array_equal(row_keys(5, numbers[::-1])[::-1], keys)
    assert not (row_keys(6, numbers) == keys).all(-1).any()


def test_a_padded_vocabulary_changes_no_draw():
    """An LM head that is padded for the mesh gives more logits, all -1e30."""
    padded = np.pad(LOGITS[1], (0, 24), constant_values=-1e30)
    for sampling in (Sampling(1.3), Sampling(1.3, top_p=0.9), Sampling(1.0, top_k=5)):
        np.testing.assert_array_equal(draws(LOGITS[1], sampling, 500), draws(padded, sampling, 500))


def test_settings_out_of_range_are_all_named():
    with pytest.raises(InputError) as error:
        Sampling(temperature=-1.0, top_k=0, top_p=1.5, min_p=0.0)
    assert all(part in str(error.value) for part in ("temperature=-1.0", "top_k=0", "top_p=1.5", "min_p=0.0"))
    with pytest.raises(InputError, match="temperature=nan"):
        Sampling(temperature=float("nan"))
    with pytest.raises(InputError, match="top_k has no effect at temperature 0; top_p has"):
        Sampling(top_k=5, top_p=0.9)
