"""What packing and sharing save, in FLOPs of the compiled program: no time is measured."""

import jax
import numpy as np
import optax

from jaxpref.data.loader import Loader
from jaxpref.data.pack import Layout
from jaxpref.models.decoder import build_model
from jaxpref.models.spec import ModelSpec
from jaxpref.objectives import OBJECTIVES, bind
from jaxpref.step.batch_loss import LossSpec
from jaxpref.step.policy import Frozen
from jaxpref.step.state import init_state
from jaxpref.step.train_step import make_train_step
from jaxpref.types import EncodedGroup

SPEC = ModelSpec("llama", 64, 32, 64, 2, 4, 2, 8, 512, 1e4, 1e-5, True)
PARTS = bind([{"name": "dpo"}], OBJECTIVES)
LONGEST = 96 + 32


def pairs(count=16):
    """Prompts of 64 to 96 tokens, answers of 8 to 32."""
    rng = np.random.default_rng(0)
    ids = lambda low, high: rng.integers(1, SPEC.vocab, rng.integers(low, high + 1)).astype(np.int32)
    return [EncodedGroup(ids(64, 96), (ids(8, 32), ids(8, 32)), i, f"row {i}") for i in range(count)]


def step_flops(layout):
    """FLOPs of a step over the pairs: layers are written out, for a loop's body counts once however often it runs."""
    model = build_model(SPEC, attention_block=16, scan=False, remat="none")
    loader = Loader(pairs(), batch_size=16, micro_rows=16, layout=layout)
    (item,) = list(loader.iterate())
    assert item.micro_batches == 1
    # One micro-batch of the rows that are in use.
    used = int((np.asarray(item.batch.expiry_RL) > 0).any(axis=(0, 2)).sum())
    batch = jax.tree.map(lambda x: x[:, :used] if x.ndim > 1 else x, item.batch)
    params = jax.eval_shape(model.init, jax.random.key(0))
    optimizer = optax.sgd(1.0)
    step = make_train_step(LossSpec(model, PARTS, 32, layout.lengths), optimizer, lambda _: 1.0)
    state = jax.eval_shape(lambda p: init_state(p, optimizer, 0), params)
    compiled = jax.jit(step).lower(state, Frozen({}, params), batch, item.micro_batches).compile()
    return compiled.cost_analysis()["flops"]


def test_shared_and_packed_rows_take_two_thirds_of_the_work_of_padded_ones():
    """Pairs with long prompts: every answer padded, beside a prompt of its own; and as they are packed."""
    padded = step_flops(Layout(2 * LONGEST, share_prefix=False, pack=False))
    shared = step_flops(Layout(2 * LONGEST))
    assert padded / shared >= 1.5
