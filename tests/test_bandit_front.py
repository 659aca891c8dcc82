"""A whole front against its closed form: MODPO, decoding of several policies and soups on the toy of bandit.py."""

import numpy as np
import pytest
import tiny
from bandit import BETA, DISTANCE, PROMPT, REWARDS, TEXTS, Front, distance, logps_of, normal

from jaxpref.generation.completions import generate
from jaxpref.generation.opening import open_source

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile", "any_mesh")]

TWO = [(0.1, 0.9), (0.5, 0.5), (0.7, 0.3)]
THREE = [(0.6, 0.3, 0.1), (0.2, 0.2, 0.6), (1 / 3, 1 / 3, 1 / 3)]


@pytest.fixture(scope="module")
def front(tmp_path_factory, compile_cache):
    with pytest.MonkeyPatch.context() as monkeypatch, tiny.quick_compile(compile_cache):
        tiny.allow_any_mesh(monkeypatch)
        return Front(tmp_path_factory.mktemp("toy") / "front", objectives=3)


def base_of(w):
    return int(np.argmax(w))


def test_the_toy_has_something_to_reach(front):
    """Single-objective policies are at their optima, which differ from the model and from each other."""
    for k in range(3):
        one_hot = np.eye(3)[k]
        assert front.off(front.each[k], one_hot) < DISTANCE / 10
        assert front.off(front.before, one_hot) > 5 * DISTANCE
    optima = [front.optimum(w) for w in (*np.eye(3), *THREE)]
    apart = [distance(p, q) for i, p in enumerate(optima) for q in optima[:i]]
    assert min(apart) > 2 * DISTANCE


@pytest.mark.parametrize("w", [*TWO, *THREE[1:]], ids=str)
def test_modpo_with_explicit_rewards(front, w):
    assert front.off(front.explicit(w, base_of(w)), w) < DISTANCE


@pytest.mark.parametrize("base", [0, 1, 2])
def test_any_objective_may_be_the_base(front, base):
    w = (0.5, 0.3, 0.2)
    assert front.off(front.explicit(w, base), w) < DISTANCE


@pytest.mark.parametrize("w", [TWO[0], THREE[1]], ids=str)
def test_modpo_with_implicit_rewards(front, w):
    assert front.off(front.implicit(w, base_of(w)), w) < DISTANCE


@pytest.mark.parametrize("w", [*TWO, *THREE], ids=str)
def test_the_product_of_whole_answers_is_the_optimum(front, w):
    assert front.off(front.product(w), w) < DISTANCE / 5


@pytest.mark.parametrize("w", [TWO[1], THREE[0]], ids=str)
def test_decoding_token_by_token_is_that_product_up_to_the_sums_of_its_prefixes(front, w):
    """log mix(y) = sum_i w_i log pi_i(y) - sum_t log Z(y_<t), Z(y_<t) = sum_v prod_i pi_i(v | y_<t)^w_i.

    Exactly; and as no policy is the product of independent tokens, the Z of different answers differ.
    """
    from test_mixing import next_logps

    tokenizer = open_source(front.model).pieces.tokenizer
    prompt = tokenizer(PROMPT)["input_ids"]
    rows = [[*prompt, *tokenizer(text)["input_ids"]] for text in TEXTS]
    each = [next_logps(run, rows, step="latest") for run in front.singles[: len(w)]]
    mixed = sum(x * logp for x, logp in zip(w, each, strict=True))
    log_z = np.log(np.exp(mixed).sum(-1))
    sums = np.array([log_z[i, len(prompt) - 1 : len(row)].sum() for i, row in enumerate(rows)])
    found = front.token_mix(w)
    np.testing.assert_allclose(found, front.product(w) - sums, atol=1e-3)
    assert (sums < 0).all() and np.ptp(sums) > 0.05


def test_decoding_is_near_the_optimum_and_soups_are_not(front):
    """How far is printed by benchmarks/bandit_front.py."""
    for w in (TWO[1], THREE[2]):
        reference, mod = front.off(front.before, w), front.off(front.token_mix(w), w)
        deltas, factors = (front.off(front.soup(w, how), w) for how in ("deltas", "factors"))
        print(f"{w}: reference {reference:.4f}, MOD {mod:.4f}, deltas {deltas:.4f}, factors {factors:.4f}")
        assert mod < 0.5 * reference
        assert min(deltas, factors) > DISTANCE


def test_drawn_answers_follow_the_mix(front):
    """Frequencies of the nine among answers drawn from the mix, against its own log-probs."""
    w, samples = TWO[1], 2000
    drawn = generate(
        front.mix(w), [PROMPT], temperature=1.0, samples=samples, max_new_tokens=4, batch_size=500, step="latest"
    )
    p = np.exp(logps_of(front.mix(w)))
    seen = np.array([sum(c.text == text and c.finish == "stop_token" for c in drawn) for text in TEXTS])
    error = np.sqrt(samples * p * (1 - p))
    assert (np.abs(seen - samples * p) < 4.5 * error + 1).all(), (seen, samples * p)
    assert distance(normal(front.before), p / p.sum()) > DISTANCE


def test_a_reward_on_another_scale_is_another_optimum(front):
    """As with the wrong beta of the other objective's policy: twice the reward acts as twice the weight."""
    w = (0.5, 0.5)
    found = front.explicit(w, 0, scale=2.0)
    assert front.off(found, w) > 2 * DISTANCE
    assert distance(normal(found), normal(front.before + (0.5 * REWARDS[0] + 1.0 * REWARDS[1]) / BETA)) < DISTANCE
