"""A tower that policy and reference have in common runs once."""

import jax
import pytest
from test_vision_parity import golden, make_batch

from jaxpref.models import lora, tower
from jaxpref.models.decoder import build_model
from jaxpref.models.families import spec_from_hf
from jaxpref.models.lora import LoraSpec
from jaxpref.models.parameters import LORA
from jaxpref.objectives import OBJECTIVES, bind
from jaxpref.runs.build import param_shapes
from jaxpref.step.batch_loss import LossSpec, both_logps
from jaxpref.step.policy import Frozen

DPO = bind([{"name": "dpo"}], OBJECTIVES)


@pytest.mark.parametrize(
    "targets, runs",
    [
        (("attention/q",), 1),
        (("attention/q", "connector/project"), 1),
        (("vision/layers/mlp/up",), 2),
        (None, 2),  # all weights are trained, and the reference is a copy
    ],
)
def test_a_tower_in_common_runs_once(targets, runs, monkeypatch):
    spec = spec_from_hf(golden("idefics3")["config"], "config.json", pictures=True)
    adapter = None if targets is None else LoraSpec(2, 2.0, targets)
    model = build_model(spec, attention_block=16, lora=adapter)
    base, overlay = param_shapes(model), {}
    if adapter is None:
        trained, frozen = base, Frozen({}, jax.tree.map(lambda x: x, base))
    else:
        trained = {LORA: jax.eval_shape(lambda base: lora.init(jax.random.key(0), base, adapter), base)}
        frozen = Frozen(base, overlay)
    seen, real = [], tower.patch_features
    monkeypatch.setattr(tower, "patch_features", lambda *args, **kw: seen.append(1) or real(*args, **kw))

    def logps(trained, frozen, batch):
        policy, reference = frozen.policy(trained), frozen.reference_params()
        return both_logps(LossSpec(model, DPO, 8), policy, reference, batch)

    jax.eval_shape(logps, trained, frozen, make_batch("idefics3", share=True))
    assert len(seen) == runs
