"""Every loss of TRL 1.16, in value and gradient, through our objectives: the table of docs/trl_losses.yaml.

The two sides differ in construction: TRL's numbers come from torch and its trainers, ours from pure functions of sums.
Here the sums are taken from the logits by plain indexing, in float64; the chunked head has tests of its own.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from jaxpref.models.logprobs import Logps
from jaxpref.objectives import OBJECTIVES, TRANSFORMS, bind

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/trl_objectives.json").read_text())
TABLE = yaml.safe_load((ROOT / "docs/trl_losses.yaml").read_text())
CASES = {name: (entry["ours"], changes) for entry in TABLE for name, changes in entry.get("cases", {}).items()}
VALUE, GRADIENT = 1e-7, 1e-6
FLOAT32 = 5e-6
"""TRL's alpha divergence fails in float64, so its values are of float32."""

IDS = np.array(GOLDEN["input_ids"])
COUNT = np.array([GOLDEN["chosen_len"], GOLDEN["rejected_len"]]).T  # [4, 2]
PROMPT = GOLDEN["prompt_len"]
PROBES = ([0, 1, 4, 6], [3, 4, 3, 3], [1, 2, 0, 5])


def logits():
    b, t, v = np.meshgrid(*(np.arange(n) for n in (*IDS.shape, GOLDEN["V"])), indexing="ij")
    policy = 1.5 * np.sin(0.9 * b + 1.7 * t + 2.3 * v) + 0.2 * np.cos(0.31 * b * v + 0.11 * t)
    ref = 1.5 * np.sin(0.7 * b + 1.7 * t + 2.3 * v + 1.0) + 0.6 * np.cos(0.27 * b * v - 0.19 * t)
    return policy, ref


def pairs(x):
    """[2B, ...], chosen rows first -> [B, 2, ...]."""
    return jnp.stack([x[: len(x) // 2], x[len(x) // 2 :]], axis=1)


def logps_of(logits_BTV, *, gold: bool = False) -> Logps:
    """All fields, by plain indexing: position t predicts the token at t + 1."""
    logq = jax.nn.log_softmax(logits_BTV, axis=-1)[:, :-1]
    token = jnp.take_along_axis(logq, IDS[:, 1:, None], axis=-1)[:, :, 0]
    at = np.arange(1, IDS.shape[1])[None, :]
    end = PROMPT + np.concatenate([COUNT[:, 0], COUNT[:, 1]])[:, None]
    shorter = PROMPT + np.tile(COUNT.min(1), 2)[:, None]
    scored = (at >= PROMPT) & (at < end)
    total = lambda x, mask: pairs(jnp.sum(jnp.where(mask, x, 0.0), axis=1))
    collision = jnp.log(jnp.sum(jnp.exp(2 * logq), axis=-1))
    fields = {
        "sum": total(token, scored),
        "count": jnp.asarray(COUNT, logits_BTV.dtype),
        "common": total(token, scored & (at < shorter)),
        "collision": jax.lax.stop_gradient(total(collision, scored)),
        "entropy": total(-jnp.sum(jnp.exp(logq) * logq, axis=-1), scored),
    }
    if gold:  # TRL's fixture takes the chosen answer for the gold one
        fields = {name: jnp.concatenate([x, x[:, :1]], axis=1) for name, x in fields.items()}
    prompt = total(token, at < PROMPT)[:, 0]
    return Logps(**fields, top1=None, prompt=prompt, prompt_count=jnp.full(len(prompt), PROMPT - 1.0))


def loss_of(name: str, parts, policy_logits, ref_logits):
    gold = name.startswith("tpo")
    policy, ref = logps_of(policy_logits, gold=gold), logps_of(ref_logits, gold=gold)
    columns = {}
    if name.startswith("kto"):  # pairs become single answers with labels; the answers to other prompts have TRL's mean
        one = lambda x: x.T.reshape(-1, 1)
        two = lambda x, other: jnp.concatenate([one(x), jnp.full_like(one(x), other)], axis=1)
        kl = GOLDEN["cases"]["kto/kto"]["kl"]
        policy, ref = (
            Logps(two(side.sum, extra), two(side.count, 1.0), None, None) for side, extra in ((policy, kl), (ref, 0.0))
        )
        columns = {"label": jnp.array([1.0] * 4 + [0.0] * 4)}
    value = 0.0
    for part in parts:
        out = part(policy, ref, {**columns, "running": part.needs.running})
        value += part.weight * sum(jnp.sum(t.loss_B * t.weight_B) / jnp.sum(t.weight_B) for t in out.terms)
    return value


def test_every_case_of_trl_has_a_line():
    assert set(CASES) == set(GOLDEN["cases"]) and len(CASES) == 54


def test_every_line_is_a_valid_objective():
    for entry in TABLE:
        assert bind(entry["ours"], OBJECTIVES, TRANSFORMS), entry["trl"]


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_value_and_gradient(name):
    ours, changes = CASES[name]
    expected = GOLDEN["cases"][name]
    parts = bind([part | change for part, change in zip(ours, changes, strict=True)], OBJECTIVES, TRANSFORMS)
    exact = expected["dtype"] == "float64"
    with jax.enable_x64(True):
        policy, ref = map(jnp.asarray, logits())
        value, gradient = jax.jit(jax.value_and_grad(lambda x: loss_of(name, parts, x, ref)))(policy)
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, expected["loss"], rtol=VALUE if exact else FLOAT32)
        gradient = np.asarray(gradient)
    tolerance = GRADIENT if exact else FLOAT32
    np.testing.assert_allclose(np.linalg.norm(gradient), expected["grad_norm"], rtol=tolerance)
    np.testing.assert_allclose(np.abs(gradient).sum(), expected["grad_sum_abs"], rtol=tolerance)
    np.testing.assert_allclose(gradient[PROBES], expected["grad_probe"], rtol=tolerance, atol=tolerance * 1e-3)
