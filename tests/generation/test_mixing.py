"""Policies that decide together: the formula in float64, decoding and scoring against models run one by one."""

import itertools
import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tolerance
from scipy.optimize import brentq
from scipy.special import logsumexp

from jaxpref import Mix, cli, generate
from jaxpref.errors import InputError
from jaxpref.generation.answer_logps import answer_logps
from jaxpref.generation.completions import Settings, complete
from jaxpref.generation.mixed_distribution import DIVERGENCES, Rule, mixed_logits
from jaxpref.generation.opening import open_source, reweighted
from jaxpref.generation.prompts import given_prompts
from jaxpref.generation.sampling import Sampling
from jaxpref.models import lora
from jaxpref.models.parameters import LORA
from jaxpref.models.peft import save_adapter
from jaxpref.models.source import open_checkpoint
from jaxpref.runs.sequence_logps import compute_logps
from jaxpref.settings import parse_policies
from jaxpref.types import EncodedGroup

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

PROMPTS = ["a cat", "b", "rather long, is it"]
NEW = 7
TOLERANCE = 2e-5
"""Of a float32 log-prob that went through a search."""


# ---- the distribution


def derivative(name, u, alpha):
    """f' of the divergence."""
    if name == "reverse_kl":
        return np.log(u) + 1
    if name == "forward_kl":
        return -1 / u
    if name == "jsd":
        return np.log(2 * u / (1 + u))
    return (1 - u**-alpha) / alpha


def inverse(name, gap, alpha):
    """(f')^-1 of what lies by `gap` below the end of its domain: 0, log 2, 1 / alpha."""
    if name == "forward_kl":
        return 1 / gap
    if name == "jsd":
        return 1 / np.expm1(gap)
    return (alpha * gap) ** (-1 / alpha)


END = {"forward_kl": 0.0, "jsd": np.log(2), "alpha": 2.0}


def by_root(name, p_OV, ref_V, weights, alpha=0.5):
    """The formula as it stands, Z by Brent's method in float64: [V] probabilities."""
    score_V = sum(w * derivative(name, p / ref_V, alpha) for w, p in zip(weights, p_OV, strict=True))
    if name == "reverse_kl":
        return ref_V * np.exp(score_V) / (ref_V * np.exp(score_V)).sum()
    below_V = score_V.max() - score_V
    made = lambda log_gap: ref_V * inverse(name, np.exp(log_gap) + below_V, alpha)
    return made(brentq(lambda log_gap: made(log_gap).sum() - 1, -150, 3, xtol=1e-14, rtol=1e-14, maxiter=1000))


def rounding(name, p_OV, ref_V, weights, expected_V, alpha=0.5):
    """[V] How far float32 log-probs of the mix may be off: where Z nearly cancels a token's score, by more.

    The mix is ref * g^-1(Z + sum_i w_i g(p_i / ref)) with g = -f' up to a constant. Log-probs go through some ten
    operations into each g, whose relative error is then theirs, and the least sum is subtracted from all. Z makes up
    for the errors of the likely tokens, so these reach every token.
    """
    if name == "reverse_kl":
        return np.full_like(ref_V, TOLERANCE)  # a sum of logits: nothing is divided
    g = {"forward_kl": lambda u: 1 / u, "jsd": lambda u: np.log1p(1 / u), "alpha": lambda u: u**-alpha}[name]
    score_V = sum(w * g(p / ref_V) for w, p in zip(weights, p_OV, strict=True))
    times_V = (score_V + score_V.min()) / g(expected_V / ref_V)
    times_V += expected_V @ times_V
    return TOLERANCE + times_V * tolerance.float32_sum(10, np.abs(np.log([*p_OV, ref_V])).max())


def policies(count, tokens=40, scale=2.0, seed=0):
    """[count + 1, 3, tokens] logits with constants of the rows, the last the reference, and their probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count + 1, 3, tokens)) * scale + rng.normal(size=(count + 1, 3, 1)) * 5
    logits = logits.astype(np.float32)
    return logits, np.exp(logits - logsumexp(logits.astype(np.float64), axis=-1, keepdims=True))


def log_softmax(x):
    return np.asarray(jax.nn.log_softmax(x, axis=-1))


WEIGHTS = [(0.3, 0.7), (0.5, 0.2, 0.3), (0.3, 0.3), (0.9, 0.6), (1.0, 0.0)]


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_distribution_is_the_formula(name, weights):
    logits, p = policies(len(weights))
    mixed = jax.jit(mixed_logits, static_argnums=2)(logits, np.float32(weights), Rule(name, 0.5, True))
    for row in range(3):
        expected = by_root(name, p[:-1, row], p[-1, row], weights)
        off_V = log_softmax(mixed)[row] - np.log(expected)
        np.testing.assert_allclose(off_V / rounding(name, p[:-1, row], p[-1, row], weights, expected), 0.0, atol=1.0)
    if name != "reverse_kl":  # no help from a softmax
        np.testing.assert_allclose(jax.nn.logsumexp(mixed, axis=-1), 0.0, atol=TOLERANCE)


def test_the_reference_is_not_read_under_the_reverse_kl_when_weights_sum_to_one():
    logits, p = policies(2)
    mixed = mixed_logits(logits[:2], np.float32([0.3, 0.7]), Rule("reverse_kl", 0.5, False))
    expected = [by_root("reverse_kl", p[:2, row], p[2, row], (0.3, 0.7)) for row in range(3)]
    np.testing.assert_allclose(log_softmax(mixed), np.log(expected), atol=TOLERANCE)


def test_leaving_z_out_would_be_another_distribution():
    """As the authors' code does; only under the reverse KL is it the same."""
    _, p = policies(2)
    for name in DIVERGENCES:
        exact = by_root(name, p[:2, 0], p[2, 0], (0.3, 0.7))
        score = sum(w * derivative(name, q / p[2, 0], 0.5) for w, q in zip((0.3, 0.7), p[:2, 0], strict=True))
        if name == "reverse_kl":
            without = p[2, 0] * np.exp(score - 1)
        else:
            without = p[2, 0] * inverse(name, END[name] - score, 0.5)
        off = np.abs(np.log(without / without.sum()) - np.log(exact)).max()
        assert off < 1e-9 if name == "reverse_kl" else off > 0.05, (name, off)


@pytest.mark.parametrize("name", END)
def test_the_inverse_is_that_of_the_derivative(name):
    gap = np.logspace(-3, 1, 9)
    np.testing.assert_allclose(derivative(name, inverse(name, gap, 0.5), 0.5), END[name] - gap, atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_distribution_is_the_best_one(name):
    """E[w . R] - I_f(pi || ref) with R_i = f'(pi_i / ref) falls whichever way probability is moved."""
    logits, p = policies(2, tokens=6)
    found = np.exp(log_softmax(mixed_logits(logits, np.float32([0.4, 0.6]), Rule(name, 0.5, True))))[0].astype(float)
    ref, each = p[2, 0], zip((0.4, 0.6), p[:2, 0], strict=True)
    reward = sum(w * derivative(name, q / ref, 0.5) for w, q in each)
    generator = {
        "reverse_kl": lambda u: u * np.log(u),
        "forward_kl": lambda u: -np.log(u),
        "jsd": lambda u: u * np.log(u) - (u + 1) * np.log((u + 1) / 2),
        "alpha": lambda u: (u - 2 * u**0.5) / 0.5,
    }[name]
    value = lambda q: (q * reward).sum() - (ref * generator(q / ref)).sum()
    for i, j in itertools.permutations(range(6), 2):
        moved = found.copy()
        step = 0.05 * found[i]
        moved[i], moved[j] = moved[i] - step, moved[j] + step
        assert value(moved) < value(found)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("scale", [0.0, 1e-3, 8.0, 40.0])
def test_policies_that_agree_or_differ_as_much_as_float32_allows(name, scale):
    logits, p = policies(2, scale=scale, tokens=300)
    mixed = np.asarray(mixed_logits(logits, np.float32([0.3, 0.7]), Rule(name, 0.5, True)))
    assert np.isfinite(mixed).all()
    if name != "reverse_kl":
        np.testing.assert_allclose(logsumexp(mixed, axis=-1), 0.0, atol=1e-4)
    if scale < 40:
        expected = [by_root(name, p[:2, row], p[2, row], (0.3, 0.7)) for row in range(3)]
        for row, expected_V in enumerate(expected):
            off_V = log_softmax(mixed)[row] - np.log(expected_V)
            off_V /= rounding(name, p[:2, row], p[2, row], (0.3, 0.7), expected_V)
            np.testing.assert_allclose(off_V[expected_V > 1e-6], 0.0, atol=1.0)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_padding_of_the_lm_head_changes_nothing(name):
    logits, p = policies(2)
    rule = Rule(name, 0.5, True)
    padded = np.pad(logits, ((0, 0), (0, 0), (0, 8)), constant_values=-1e30)
    for weights in np.float32([[0.3, 0.7], [0.9, 0.6]]):
        own, wider = (log_softmax(mixed_logits(x, weights, rule)) for x in (logits, padded))
        for row in range(3):
            off_V = wider[row, :40] - own[row]
            off_V /= rounding(name, p[:2, row], p[2, row], weights, np.exp(own[row]))
            np.testing.assert_allclose(off_V, 0.0, atol=1.0)
        assert (wider[:, 40:] < -1e29).all()


def test_alpha_goes_over_into_the_kls():
    logits, _ = policies(2)
    mixed = lambda name, alpha: log_softmax(mixed_logits(logits, np.float32([0.3, 0.7]), Rule(name, alpha, True)))
    np.testing.assert_allclose(mixed("alpha", 1.0), mixed("forward_kl", 0.5), atol=1e-6)
    np.testing.assert_allclose(mixed("alpha", 1e-3), mixed("reverse_kl", 0.5), atol=0.05)
    assert np.abs(mixed("forward_kl", 0.5) - mixed("reverse_kl", 0.5)).max() > 0.3


def test_pad_is_the_sum_of_logits_on_the_first_policys_most_likely_tokens():
    """logit of the model + lam * (log guide - log base), the model being the base; k tokens."""
    logits, p = policies(1)
    rule = Mix({"model": 0.2, "guide": 0.8}, first_top_k=10).rule
    mixed = np.asarray(mixed_logits(logits, np.float32([0.2, 0.8]), rule))
    base, guide = np.log(p)
    for row in range(3):
        kept = np.argsort(-base[row])[:10]
        assert set(np.flatnonzero(np.isfinite(mixed[row]))) == set(kept)
        score = logits[0, row] + 0.8 * (guide[row] - base[row])
        assert mixed[row].argmax() == kept[score[kept].argmax()]
        expected = score[kept] - logsumexp(score[kept])
        np.testing.assert_allclose(log_softmax(mixed)[row][kept], expected, atol=TOLERANCE)


@pytest.mark.parametrize("beta", [1.0, 0.25])
def test_parm_is_a_mix_drawn_from_at_a_lower_temperature(beta):
    """log pi = log base + (1 / beta) log reward model + constant."""
    logits, p = policies(1)
    mix = Mix({"base": beta / (1 + beta), "reward model": 1 / (1 + beta)})
    weights = np.float32([weight for _, weight in mix.policies])
    drawn = log_softmax(mixed_logits(logits, weights, mix.rule) * (1 + beta) / beta)
    base, reward = np.log(p)
    expected = base + reward / beta
    expected = expected - logsumexp(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(drawn, expected, atol=1e-4)


# ---- what is exactly true of mixing token by token


def tabular(ref_S, beta_reward_S, letters=3):
    """ref * exp(reward / beta) over sequences of two letters, as (log first [L], log second given first [L, L])."""
    logp = ref_S + beta_reward_S
    logp = (logp - logsumexp(logp)).reshape(letters, letters)
    first = logsumexp(logp, axis=1)
    return first, logp - first[:, None]


def token_mix(tables, weights):
    """The mix of both letters by `mixed_logits`, as log-probs of the sequences."""
    rule = Rule("reverse_kl", 0.5, False)
    first, second = (np.stack(x).astype(np.float32) for x in zip(*tables, strict=True))
    weights = np.float32(weights)
    first_L = log_softmax(mixed_logits(first[:, None], weights, rule))[0]
    second_LL = log_softmax(mixed_logits(second, weights, rule))
    return (first_L[:, None] + second_LL).ravel()


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.8)])
def test_token_by_token_is_the_optimum_where_rewards_add_up_and_not_else(weights):
    """The best policies for two rewards, mixed letter by letter, against the best one for the weighted reward.

    It is the optimum where the tokens' rewards add up and what comes later does not depend on what came before; else
    the mix ignores that prod_i E[exp(r_i)]^w_i exceeds E[exp(sum_i w_i r_i)] by a factor that depends on the prefix.
    """
    rng = np.random.default_rng(2)

    def off(ref, rewards):
        """Total variation between the mix and the optimum."""
        optimum = ref + np.array(weights) @ rewards
        mix = token_mix([tabular(ref, reward) for reward in rewards], weights)
        return 0.5 * np.abs(np.exp(mix) - np.exp(optimum - logsumexp(optimum))).sum()

    independent = np.add.outer(rng.normal(size=3), rng.normal(size=3)).ravel()
    adding = np.stack([np.add.outer(rng.normal(size=3), rng.normal(size=3)).ravel() * 2 for _ in range(2)])
    assert off(independent, adding) < 1e-6
    assert off(independent, rng.normal(size=(2, 9)) * 2) > 0.01  # rewards of whole sequences
    assert off(rng.normal(size=9), adding) > 0.003  # a second letter that depends on the first


# ---- decoded


@pytest.fixture(scope="module")
def sources(tmp_path_factory, tiny_files):
    """Three models and three adapters on the first of them, which differ."""
    folder = tmp_path_factory.mktemp("policies")
    models = [tiny_files.model, *(tiny.write_model(folder / f"m{scale}", scale=scale) for scale in (0.3, 2.0))]
    return models, [random_adapter(tiny_files.model, folder / f"a{seed}", seed) for seed in range(3)]


GREEDY, DRAWN = Sampling(), Sampling(1.0, top_p=0.95)


def random_adapter(model, directory, seed, rank=3, targets=("attention/q", "attention/v", "mlp/up"), size=0.4):
    """A PEFT directory; its rank depends on the seed."""
    source = open_checkpoint(model)
    spec = lora.LoraSpec(rank + seed, 2.0 + seed, targets)
    tree = lora.init(jax.random.key(seed), source.load_params(), spec)
    keys = iter(jax.random.split(jax.random.key(seed + 100), 100))
    tree = jax.tree.map(lambda x: size * jax.random.normal(next(keys), x.shape), tree)
    save_adapter(directory, tree, spec, source.spec, base=str(model), model_card="")
    return directory


@cache  # opened anew, a model would be compiled anew
def opened(source, *overrides):
    return open_source(source, overrides=overrides)


def texts(source, *overrides, **settings):
    found = decoded(opened(source, *overrides), **settings)
    return [c.token_ids.tolist() for c in found], found


def decoded(policy, sampling=GREEDY, **settings):
    settings = Settings(sampling, max_new_tokens=NEW, stop_tokens=(), **settings)
    done = complete(policy.pieces, policy.params, given_prompts(PROMPTS), settings, policy.mixed)
    return sorted(done, key=lambda c: (c.prompt_index, c.sample))


def next_logps(source, rows, length=128, **opening):
    """[row][position, V] log-probs of what follows each token, by the model as training runs it, float64."""
    pieces, params, _ = open_source(source, **opening) if opening else opened(source)
    token_RL = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        token_RL[i, : len(row)] = row
    logits = np.asarray(_logits(pieces.model, params, token_RL), np.float64)
    return logits - logsumexp(logits, axis=-1, keepdims=True)


@partial(jax.jit, static_argnums=0)
def _logits(model, params, token_RL):
    position_RL = jnp.broadcast_to(jnp.arange(token_RL.shape[1]), token_RL.shape)
    x_RLD = model.hidden(params, token_RL, position_RL, jnp.full_like(token_RL, token_RL.shape[1]))
    return jnp.einsum("RLD,VD->RLV", x_RLD, model.head(params))


def test_a_weight_of_one_is_that_policy_token_for_token(sources):
    (first, second, _), (adapter, other, _) = sources
    drawn = {"sampling": DRAWN, "samples": 2, "seed": 3}
    for one, two, settings in ((first, second, {}), (adapter, other, drawn)):
        alone, completions = texts(one, **settings)
        mixed, found = texts(Mix([(one, 1.0), (two, 0.0)]), **settings)
        assert mixed == alone
        assert [c.text for c in found] == [c.text for c in completions]
        for a, c in zip(found, completions, strict=True):
            np.testing.assert_allclose(a.token_logps, c.token_logps, atol=1e-6)


def test_generate_takes_a_mix(sources):
    mix = Mix(dict(zip(sources[0][:2], (0.4, 0.6), strict=True)))
    made = generate(mix, PROMPTS, max_new_tokens=NEW, stop_tokens=())
    assert [c.token_ids.tolist() for c in made] == texts(mix)[0]


def test_a_weight_of_zero_that_is_run_changes_no_bit(sources):
    """The same in the compiled mix, where the weight is a number like any other."""
    mix = reweighted(opened(Mix(dict(zip(sources[0][:2], (0.4, 0.6), strict=True)))), (1.0, 0.0))
    ids = lambda policy, sampling: [c.token_ids.tolist() for c in decoded(policy, sampling)]
    for sampling in (GREEDY, DRAWN):
        assert ids(mix, sampling) == ids(opened(sources[0][0]), sampling)
    assert ids(mix, GREEDY) != ids(opened(sources[0][1]), GREEDY)


CASES = {
    "two models": (lambda m, a: Mix({m[0]: 0.4, m[1]: 0.6}), (0, 1)),
    "three adapters": (lambda m, a: Mix({a[0]: 0.2, a[1]: 0.5, a[2]: 0.3}), (3, 4, 5)),
    "the rest is the reference's": (lambda m, a: Mix({a[0]: 0.9, a[1]: 0.8}, reference=m[0]), (3, 4, 0)),
    "forward_kl": (lambda m, a: Mix({a[0]: 0.4, a[1]: 0.6}, "forward_kl", reference=m[0]), (3, 4, 0)),
    "jsd": (lambda m, a: Mix({a[0]: 0.4, m[1]: 0.6}, "jsd", reference=m[0]), (3, 1, 0)),
    "alpha": (lambda m, a: Mix({a[0]: 0.4, a[1]: 0.6}, "alpha", 0.3, reference=m[0]), (3, 4, 0)),
}


def some_slow(cases, fast):
    return [pytest.param(case, marks=[] if case in fast else pytest.mark.slow) for case in cases]


@pytest.mark.parametrize("case", some_slow(CASES, ("two models", "the rest is the reference's")))
def test_every_token_is_the_most_likely_one_of_the_mix(case, sources):
    """And its log-prob is the mix's, and the answer's is their sum: models run one by one, the formula in float64."""
    make, members = CASES[case]
    mix, every = make(*sources), [*sources[0], *sources[1]]
    weights = [weight for _, weight in mix.policies]
    tokens, found = texts(mix)
    tokenizer = opened(every[0]).pieces.tokenizer
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    rows = [[*prompt, *new] for prompt, new in zip(prompts, tokens, strict=True)]
    each = [next_logps(every[i], rows) for i in members]
    ref = each[-1] if mix.reference is not None else np.full_like(each[0], -np.log(128))
    for i, (prompt, c) in enumerate(zip(prompts, found, strict=True)):
        for t, token in enumerate(c.token_ids):
            at = i, len(prompt) - 1 + t
            p = [np.exp(x[at]) for x in each[: len(weights)]]
            expected = np.log(by_root(mix.divergence, p, np.exp(ref[at]), weights, mix.alpha))
            assert token == expected.argmax()
            assert c.token_logps[t] == pytest.approx(expected.max(), abs=5e-5)
    groups = [
        EncodedGroup(np.array(prompt), (np.array(new), np.array(new[:4])), i, "")
        for i, (prompt, new) in enumerate(zip(prompts, tokens, strict=True))
    ]
    summed = answer_logps(opened(mix), groups)
    for i, c in enumerate(found):
        np.testing.assert_allclose(summed[i], [c.logp, c.token_logps[:4].sum()], atol=2e-4)
    assert tokens != texts(every[members[0]])[0]


def test_first_top_k_decodes_among_these(sources):
    first, second = sources[0][:2]
    tokens, _ = texts(Mix({first: 0.1, second: 0.9}, first_top_k=1))
    assert tokens == texts(first)[0] != texts(Mix({first: 0.1, second: 0.9}))[0]


def test_adapters_hold_their_base_once(sources, tiny_files):
    models, adapters = sources
    mix = Mix({adapters[0]: 0.5, adapters[1]: 0.2, models[1]: 0.3}, "alpha", reference=tiny_files.model)
    _, params, mixed = open_source(mix)
    assert [base for _, base in mixed.models] == [0, 0, 1, 0]  # the reference is the adapters' base
    assert len(params["bases"]) == 2
    assert [tuple(overlay) for overlay in params["overlays"]] == [(LORA,), (LORA,), (), ()]


@pytest.mark.slow
def test_runs_with_adapters_hold_their_base_once(tmp_path, tiny_files):
    outs = []
    for name in "ab":
        config = tiny.config(
            tmp_path / name,
            tiny_files.model,
            tiny_files.train,
            adapter={"rank": 2},
            train={"max_steps": 2, "seed": ord(name)},
            optim={"learning_rate": 0.05},
        )
        outs.append(tiny.run(config).out)
    mix = Mix(dict(zip(outs, (0.5, 0.5), strict=True)))
    pieces, params, mixed = open_source(mix, step="latest")
    assert len(params["bases"]) == 1 and [base for _, base in mixed.models] == [0, 0]
    for out, overlay in zip(outs, params["overlays"], strict=True):
        own = tiny.stored_state(out, 2)["params"][LORA]
        for x, y in zip(jax.tree.leaves(own), jax.tree.leaves(overlay[LORA]), strict=True):
            np.testing.assert_array_equal(x, y)
    [first, second] = [jax.tree.leaves(overlay) for overlay in params["overlays"]]
    assert any(not np.array_equal(x, y) for x, y in zip(first, second, strict=True))


def test_other_weights_compile_nothing(sources):
    mix = opened(Mix(dict(zip(sources[0][:2], (0.4, 0.6), strict=True))))
    first, compiled = decoded(mix), []
    listen = lambda event, _, **about: (
        compiled.append(about.get("fun_name")) if event == "/jax/core/compile/backend_compile_duration" else None
    )
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        other = decoded(reweighted(mix, (0.1, 0.9)))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled
    assert [c.token_ids.tolist() for c in other] != [c.token_ids.tolist() for c in first]
    for weights in ((0.5, 0.4), (1.5, -0.5), (1.0,), (0.0, 0.0)):
        with pytest.raises(InputError, match="2 weights of 0 or more, in all 1"):
            reweighted(mix, weights)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["mesh.data=8", "mesh.data=2 mesh.fsdp=2 mesh.tensor=2"])
def test_mesh_changes_no_row(sources, mesh):
    models, adapters = sources
    mix = Mix({adapters[0]: 0.4, models[1]: 0.6}, "jsd", reference=models[0])
    settings = {"sampling": DRAWN, "samples": 2}
    tokens, found = texts(mix, **settings)
    assert texts(mix, *mesh.split(), **settings)[0] == tokens
    groups = [EncodedGroup(np.arange(5, 9), (c.token_ids,), i, "") for i, c in enumerate(found)]
    whole, parts = answer_logps(opened(mix), groups), answer_logps(opened(mix, *mesh.split()), groups)
    for i in whole:
        np.testing.assert_allclose(parts[i], whole[i], atol=2e-4)


@pytest.mark.slow
def test_position_in_the_batch_and_its_size_change_no_row(sources):
    mix, settings = CASES["two models"][0](*sources), {"sampling": DRAWN, "samples": 2}
    alone = texts(mix, batch_size=1, **settings)[0]
    assert texts(mix, batch_size=4, **settings)[0] == alone and len({tuple(row) for row in alone}) > 3


def test_answers_under_one_model_are_those_of_the_reference_cache(sources):
    policy = opened(sources[0][1])
    groups = [EncodedGroup(np.arange(5, 9), (np.arange(10, 14), np.arange(40, 42)), i, "") for i in range(3)]
    expected = compute_logps(policy.pieces, policy.params, groups)
    for i, values in answer_logps(policy, groups).items():
        np.testing.assert_array_equal(values, expected[i])


# ---- from the command line


def call(capsys, *words):
    code = cli.main(["generate", *map(str, words)])
    printed = capsys.readouterr()
    return code, [json.loads(line) for line in printed.out.splitlines()], printed.err


def test_command(sources, capsys, tmp_path):
    first, second = sources[0][:2]
    prompts = tiny.write_rows(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    words = ("--mix", f"{first}:0.4,{second}:0.6", "--max-new-tokens", NEW, "--prompts", prompts, "--stop-token", 127)
    code, lines, _ = call(capsys, *words, "model.compute_dtype=float32")  # the first word that is no option
    assert code == 0
    lines.sort(key=lambda line: line["prompt_index"])
    assert [line["completion"] for line in lines] == [c.text for c in texts(Mix({first: 0.4, second: 0.6}))[1]]


@pytest.mark.parametrize(
    "words, said",
    [
        ((), "neither"),
        (("a", "--divergence", "jsd"), "--divergence without --mix"),
        (("a", "--mix", "b:1"), "a and --mix"),
        (("--mix", "a:0.5,b:0.5", "--alpha", "0.3"), "--alpha with --divergence alpha"),
        (("--mix", "a:0.5,b:0.5", "--divergence", "jsd"), "name it"),
        (("--mix", "a,b:1"), "SOURCE:WEIGHT"),
    ],
)
def test_options_that_do_not_fit(words, said, capsys, tmp_path):
    code, lines, err = call(capsys, *words, "--prompts", tmp_path / "prompts.jsonl")
    assert code == 2 and said in err and not lines


# ---- refused


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"policies": {"a": 0.5, "b": 0.4}}, "sum to 0.9 without a reference"),
        ({"policies": {"a": 1.2, "b": -0.2}}, "b:-0.2"),
        ({"policies": {}}, "no policy with a weight above 0"),
        ({"policies": {"a": 1.0}, "divergence": "jsd"}, "name it"),
        ({"policies": {"a": 1.0}, "divergence": "kl"}, "one of reverse_kl"),
        ({"policies": {"a": 1.0}, "divergence": "alpha", "alpha": 0.0, "reference": "r"}, "alpha=0.0"),
        ({"policies": {"a": 1.0}, "divergence": "jsd", "reference": "r", "first_top_k": 3}, "under the reverse KL"),
        ({"policies": {"a": 0.0, "b": 1.0}, "first_top_k": 3}, "is not run"),
        ({"policies": {"a": float("nan")}}, "a:nan"),
        ({"policies": {"a": "much"}}, "'much'"),
        ({"policies": ["a", "b"]}, "{run_a: 0.3, run_b: 0.7}"),
        ({"policies": {"a": 1.0}, "alpha": 0.3}, "alpha=0.3 has no effect with reverse_kl"),
        ({"policies": {"a": 1.0}, "divergence": "alpha", "alpha": "0.3", "reference": "r"}, "alpha='0.3'"),
        ({"policies": {"a": 1.0}, "first_top_k": 2.5}, "first_top_k=2.5: a whole number"),
    ],
)
def test_mixes_that_cannot_be_decoded(settings, said):
    with pytest.raises(InputError) as error:
        Mix(**settings)
    assert said in str(error.value)


def test_policies_of_other_vocabularies(sources, tmp_path, tiny_files):
    (tmp_path / "m").mkdir()
    other = tiny.copy_run(tiny_files.model, tmp_path / "m" / "model")
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"~"', '"\\u00e9"'))
    with pytest.raises(InputError, match="which are other ones"):
        open_source(Mix({tiny_files.model: 0.5, other: 0.5}))


def test_a_run_with_other_rewards_is_opened(tmp_path, tiny_files):
    """Its objective is not read, so its other rewards must not be either."""
    other = {"data": {"other_rewards": ["a"]}, "objective": [{"name": "modpo", "w": [0.5, 0.5]}]}
    config = tiny.config(tmp_path / "run", tiny_files.model, tiny_files.train, **other)
    (tmp_path / "run").mkdir()
    tiny.write_config(config, tmp_path / "run" / "config.yaml")
    with pytest.raises(InputError, match="train the run first"):
        open_source(tmp_path / "run")


def test_step_needs_a_run(sources):
    with pytest.raises(InputError, match="not a run"):
        generate(Mix(dict.fromkeys(sources[0][:2], 0.5)), ["a"], step="3")


def test_policies_in_words():
    assert parse_policies("a/b:0.3,pkg://c/d.gguf:0.7") == (("a/b", 0.3), ("pkg://c/d.gguf", 0.7))
    assert Mix("a/b:0.3,c:0.7").policies == (("a/b", 0.3), ("c", 0.7))
    for text in ("a", "a:b", ":0.3", "a:0.5,"):
        with pytest.raises(InputError, match="SOURCE:WEIGHT"):
            parse_policies(text)
