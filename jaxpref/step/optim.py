"""Optimizers and schedules (optax)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpref.config import OptimConfig
from jaxpref.models.parameters import VOCAB_LEAVES, leaf_path


def warmup_steps(config: OptimConfig, total_steps: int) -> int:
    """Steps of warm-up, whichever way they are given."""
    if config.warmup_ratio is not None:
        return int(-(-config.warmup_ratio * total_steps // 1))  # rounded up, as Hugging Face does
    return config.warmup_steps or 0


def make_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Learning rate of step t = 0, 1, ...: t/W of the peak during W warm-up steps (so the first one
    is 0), then

    constant; linear to 0 at `total_steps`; cosine, (1 + cos(pi x)) / 2 over the rest; or
    inverse_sqrt, peak * sqrt(s / (t - W + s)) with s = max(W, 1), which is 1 at the end of the
    warm-up.
    """
    peak, warmup = config.learning_rate, warmup_steps(config, total_steps)
    rest = max(total_steps - warmup, 1)
    shift = max(warmup, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        # Both branches of the join are evaluated: during the warm-up t is negative here.
        "inverse_sqrt": lambda t: peak * (shift / (jnp.maximum(t, 0) + shift)) ** 0.5,
    }[config.schedule]
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def decay_mask(config: OptimConfig, params: Any) -> Any:
    """True where weight decay applies."""
    everything = config.decay_mask == "all"
    return jax.tree_util.tree_map_with_path(
        lambda path, _: everything or not leaf_path(path).endswith("/scale"), params
    )


def make_optimizer(
    config: OptimConfig, schedule: optax.Schedule, vocab: int | None = None
) -> optax.GradientTransformation:
    """Global-norm clipping, then the optimizer of `config.name`; moments are float32.

    Args:
        vocab: true rows of the leaves in `VOCAB_LEAVES`, which may be padded with zeros; None: they
            are not.
    """
    mask = lambda params: decay_mask(config, params)
    if config.name == "adamw":
        rule = optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=mask,
        )
    elif config.name == "lion":
        rule = optax.lion(
            schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=mask
        )
    elif config.name == "adafactor":
        # optax's own decay for adafactor ignores the learning rate, and so the warm-up: it is added
        # here instead.
        decay = optax.add_decayed_weights(lambda t: -config.weight_decay * schedule(t), mask)
        rule = optax.chain(_adafactor(schedule, vocab), decay)
    else:
        rule = optax.sgd(schedule, momentum=config.momentum or None)
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
    return optax.chain(clip, rule)


def _adafactor(schedule: optax.Schedule, vocab: int | None) -> optax.GradientTransformation:
    """optax.adafactor with its defaults, but a leaf's root mean squares do not count the rows that
    pad it."""
    scaled = optax.chain(
        optax.clip_by_block_rms(1.0),
        optax.scale_by_learning_rate(schedule, flip_sign=False),
        optax.scale_by_param_block_rms(),
    )

    def grow(tree: Any, sign: int) -> Any:
        """Makes the mean square over all rows that over the true ones (sign 1), and undoes it
        (-1)."""

        def leaf(path, x):
            padded = vocab is not None and leaf_path(path).endswith(VOCAB_LEAVES)
            return x * (x.shape[0] / vocab) ** (sign / 2) if padded else x

        return jax.tree_util.tree_map_with_path(leaf, tree)

    def update(updates, state, params):
        updates, state = scaled.update(grow(updates, 1), state, grow(params, 1))
        return grow(updates, -1), state

    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.GradientTransformation(scaled.init, update),
        optax.scale(-1.0),
    )
