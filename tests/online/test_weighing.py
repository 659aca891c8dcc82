"""Several rewards as one: the weighted sum, and GDPO's normalised sum as TRL computes it."""

import json
from pathlib import Path

import numpy as np

from jaxpref.online.weighing import weighed

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/gdpo.json").read_text())
REWARD_BKO = np.array(GOLDEN["rewards"])
WEIGHT_BO = np.tile(GOLDEN["weights"], (len(REWARD_BKO), 1))


def test_the_normalised_sum_is_trls():
    ours = weighed(REWARD_BKO, WEIGHT_BO, "normalize_then_sum")
    np.testing.assert_allclose(ours, GOLDEN["advantages"], atol=1e-6, rtol=0)
    assert np.abs(ours - weighed(REWARD_BKO, WEIGHT_BO, "sum")).max() > 0.1, "the two sides could differ"


def test_the_scale_of_a_reward_does_not_matter_to_the_normalised_sum():
    """A reward in other units counts the same; in the plain sum it drowns the others."""
    units = np.array([1.0, 100.0, 1.0])
    here, there = (weighed(x, WEIGHT_BO, "normalize_then_sum") for x in (REWARD_BKO, REWARD_BKO * units))
    np.testing.assert_allclose(here, there, atol=2e-3)
    plain, scaled = (weighed(x, WEIGHT_BO, "sum") for x in (REWARD_BKO, REWARD_BKO * units))
    assert np.abs(plain - scaled).max() > 10


def test_every_prompt_has_weights_of_its_own():
    only_first, only_last = np.eye(3)[[0]], np.eye(3)[[2]]
    mixed = weighed(REWARD_BKO[:2], np.concatenate([only_first, only_last]), "sum")
    np.testing.assert_allclose(mixed, [REWARD_BKO[0, :, 0], REWARD_BKO[1, :, 2]])
