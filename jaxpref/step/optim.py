"""Optimizers and schedules (optax)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpref.config import OptimConfig
from jaxpref.errors import InputError
from jaxpref.models.parameters import OWN, UNDECAYED, VOCAB_LEAVES, leaf_path


class OptimNumbers(NamedTuple):
    """Numbers of a config that may be traced, so that a step with others is the same program.

    The others are constants: 1 - b1, say, is rounded otherwise where b1 is an argument.
    """

    learning_rate: Any
    weight_decay: Any
    """None: there is none, and its work is left out."""


def optim_numbers(config: OptimConfig) -> OptimNumbers:
    """The numbers of a config."""
    return OptimNumbers(config.learning_rate, config.weight_decay or None)


class GivenRule(NamedTuple):
    """An optimizer and a schedule of the user's own, in place of the config's."""

    optimizer: Any = None
    """An `optax.GradientTransformation`, or a function of a schedule that makes one, as
    `optax.adamw` is; None: the config's.  It replaces clipping and decay too."""
    schedule: optax.Schedule | None = None
    """Step t = 0, 1, ... -> learning rate; None: the config's."""


AS_CONFIGURED = GivenRule()


def make_rule(
    config: OptimConfig,
    total_steps: int,
    vocab: int | None = None,
    numbers: OptimNumbers | None = None,
    rule: GivenRule = AS_CONFIGURED,
) -> tuple[optax.GradientTransformation, optax.Schedule | None]:
    """Optimizer and schedule of a run; None: the optimizer has its own.

    Args: as of `make_optimizer` and `make_schedule`.
    Errors: InputError for something else in place of optimizer or schedule.
    """
    schedule = rule.schedule
    if schedule is None:
        schedule = make_schedule(config, total_steps, numbers)
    if rule.optimizer is None:
        optimizer = make_optimizer(config, schedule, vocab, numbers)
    elif isinstance(rule.optimizer, optax.GradientTransformation):
        if rule.schedule is not None:
            raise InputError(
                "an optimizer that takes the schedule",
                "schedule= beside an optimizer= that has its own learning rate",
                "give the function, as optimizer=optax.adamw or optimizer=lambda schedule: ...",
            )
        return rule.optimizer, None
    else:
        optimizer = rule.optimizer(schedule) if callable(rule.optimizer) else None
    if not isinstance(optimizer, optax.GradientTransformation) or not callable(schedule):
        raise InputError(
            "an optax.GradientTransformation or a function of a schedule that makes one, and as "
            "schedule a function of the step",
            f"optimizer={rule.optimizer!r:.200}, schedule={rule.schedule!r:.200}",
            "as in optimizer=optax.adamw, schedule=optax.cosine_decay_schedule(1e-5, 1000)",
        )
    return optimizer, schedule


def warmup_steps(config: OptimConfig, total_steps: int) -> int:
    """Steps of warm-up, whichever way they are given."""
    if config.warmup_ratio is not None:
        return math.ceil(config.warmup_ratio * total_steps)  # rounded up, as Hugging Face does
    return config.warmup_steps or 0


def depends_on_total(config: OptimConfig) -> bool:
    """Whether the learning rate of a step depends on how many steps the run has."""
    return config.schedule in ("linear", "cosine") or bool(config.warmup_ratio)


def make_schedule(
    config: OptimConfig, total_steps: int, numbers: OptimNumbers | None = None
) -> optax.Schedule:
    """Learning rate of step t = 0, 1, ...: linear warm-up, then the schedule of the config.

    During W warm-up steps it is t/W of the peak, so the first step's is 0.  After them:

    - `constant`: the peak.
    - `linear`: falls to 0 at `total_steps`.
    - `cosine`: peak * (1 + cos(pi x)) / 2, x from 0 to 1 over the remaining steps.
    - `inverse_sqrt`: peak * sqrt(s / (t - W + s)); the peak at t = W.  s is W, and 10,000 without
      warm-up, as in transformers: a shorter run then keeps to about the peak.

    Args:
        numbers: in place of those of the config.
    """
    peak = (numbers or optim_numbers(config)).learning_rate
    warmup = warmup_steps(config, total_steps)
    rest = max(total_steps - warmup, 1)
    shift = warmup or 10_000

    def inverse_sqrt(t):
        # `join_schedules` evaluates both sides: during the warm-up t is negative here.
        return peak * (shift / (jnp.maximum(t, 0) + shift)) ** 0.5

    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "inverse_sqrt": inverse_sqrt,
    }[config.schedule]
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def decay_mask(config: OptimConfig, params: Any) -> Any:
    """True where weight decay applies."""

    def decays(path, leaf):
        name = leaf_path(path)
        if config.decay_mask == "all":
            return True
        # Of a model of the user's own nothing is known but the shapes.
        return leaf.ndim > 1 if name.startswith(f"{OWN}/") else name not in UNDECAYED

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
    config: OptimConfig,
    schedule: optax.Schedule,
    vocab: int | None = None,
    numbers: OptimNumbers | None = None,
) -> optax.GradientTransformation:
    """Global-norm clipping, then the optimizer of `config.name`.

    Moments are float32, but for the first one where `config.moment_dtype` says so.

    Args:
        vocab: true rows of the leaves in `VOCAB_LEAVES`, which may be padded with zeros; None: they
            are not.
        numbers: in place of those of the config.
    """
    weight_decay = (numbers or optim_numbers(config)).weight_decay
    if weight_decay is None:
        weight_decay = 0.0

    def mask(params):
        return decay_mask(config, params)

    if config.name == "adamw":
        rule = optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            mu_dtype=config.moment_dtype,
            weight_decay=weight_decay,
            mask=mask,
        )
    elif config.name == "lion":
        rule = optax.lion(
            schedule,
            b1=config.b1,
            b2=config.b2,
            mu_dtype=config.moment_dtype,
            weight_decay=weight_decay,
            mask=mask,
        )
    elif config.name == "adafactor":
        # optax's own decay for adafactor ignores the learning rate, and so the warm-up: it is added
        # here instead.
        def rate(t):
            return -weight_decay * schedule(t)

        rule = optax.chain(_adafactor(schedule, vocab), optax.add_decayed_weights(rate, mask))
    else:
        rule = optax.sgd(
            schedule, momentum=config.momentum or None, accumulator_dtype=config.moment_dtype
        )
    clip = optax.identity()
    if config.clip_norm is not None:
        clip = optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, rule)


def _adafactor(schedule: optax.Schedule, vocab: int | None) -> optax.GradientTransformation:
    """optax.adafactor with its defaults; rows of padding do not count in root mean squares."""
    scaled = optax.chain(
        optax.clip_by_block_rms(1.0),
        optax.scale_by_learning_rate(schedule, flip_sign=False),
        optax.scale_by_param_block_rms(),
    )

    def times_root_of_rows(tree: Any, sign: int) -> Any:
        """Padded leaves times sqrt(all rows / true rows) (sign 1), or divided by it (-1).

        Multiplied, their mean square over all rows is what it was over the true rows.
        """

        def leaf(path, x):
            padded = vocab is not None and leaf_path(path) in VOCAB_LEAVES
            return x * (x.shape[0] / vocab) ** (sign / 2) if padded else x

        return jax.tree_util.tree_map_with_path(leaf, tree)

    def update(updates, state, params):
        grown, grown_params = times_root_of_rows(updates, 1), times_root_of_rows(params, 1)
        updates, state = scaled.update(grown, state, grown_params)
        return times_root_of_rows(updates, -1), state

    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.GradientTransformation(scaled.init, update),
        optax.scale(-1.0),
    )
