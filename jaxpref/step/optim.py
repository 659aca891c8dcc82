"""Optimizers and schedules (optax)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxpref.config import OptimConfig
from jaxpref.errors import InputError
from jaxpref.models.parameters import OWN, UNDECAYED, VOCAB_LEAVES, find_leaf, leaf_path
from jaxpref.step.given_rule import AS_CONFIGURED, GivenRule, given_optimizer, takes
from jaxpref.step.offloaded import brought_by_layer, brought_whole

_MUON_RMS = 0.2
"""Root mean square of Muon's updates, AdamW's usual one (Liu et al., arXiv 2502.16982)."""


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


def make_rule(
    config: OptimConfig,
    total_steps: int,
    vocab: int | None = None,
    numbers: OptimNumbers | None = None,
    rule: GivenRule = AS_CONFIGURED,
    tower_layers: int | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule | None]:
    """Optimizer and schedule of a run; None: the optimizer has its own.

    Args: as of `make_optimizer` and `make_schedule`.
    Errors: InputError for something else in place of optimizer or schedule.
    """
    schedule = rule.schedule
    if schedule is None:
        schedule = make_schedule(config, total_steps, numbers)
    if rule.optimizer is None:
        optimizer = make_optimizer(config, schedule, vocab, numbers, tower_layers)
    elif isinstance(rule.optimizer, optax.GradientTransformation):
        if rule.schedule is not None:
            raise InputError(
                "an optimizer that takes the schedule",
                "schedule= beside an optimizer= that has its own learning rate",
                "give the function, as optimizer=optax.adamw or optimizer=lambda schedule: ...",
            )
        return given_optimizer(config, rule.optimizer), None
    else:
        optimizer = rule.optimizer(schedule) if takes(rule.optimizer, schedule) else None
    if not isinstance(optimizer, optax.GradientTransformation) or not callable(schedule):
        raise InputError(
            "an optax.GradientTransformation or a function of a schedule that makes one, and as "
            "schedule a function of the step",
            f"optimizer={rule.optimizer!r:.200}, schedule={rule.schedule!r:.200}",
            "as in optimizer=optax.adamw, schedule=optax.cosine_decay_schedule(1e-5, 1000)",
        )
    return optimizer if rule.optimizer is None else given_optimizer(config, optimizer), schedule


def warmup_steps(config: OptimConfig, total_steps: int) -> int:
    """Steps of warm-up, whichever way they are given."""
    if config.warmup_ratio is not None:
        return math.ceil(config.warmup_ratio * total_steps)  # rounded up, as Hugging Face does
    return config.warmup_steps or 0


def depends_on_total(config: OptimConfig) -> bool:
    """Whether the learning rate of a step depends on how many steps the run has."""
    return config.schedule not in ("constant", "inverse_sqrt") or bool(config.warmup_ratio)


def make_schedule(
    config: OptimConfig, total_steps: int, numbers: OptimNumbers | None = None
) -> optax.Schedule:
    """Learning rate of step t = 0, 1, ...: linear warm-up, then the schedule of the config.

    During W warm-up steps it is t/W of the peak, so the first step's is 0.  After them, with x from
    0 to 1 over the remaining steps, it falls from the peak to r = `min_ratio` of it, or stays:

    - `constant`: the peak.
    - `linear`, `polynomial`: peak * (r + (1 - r) (1 - x)^power), power 1 for `linear`.
    - `cosine`: peak * (r + (1 - r) (1 + cos(pi x)) / 2).
    - `cosine_restarts`: the same with x from 0 to 1 in each of `cycles` parts of the steps.
    - `wsd`: the peak, but over the last `decay_ratio` of all steps a fall of `decay_shape`.
    - `inverse_sqrt`: peak * sqrt(s / (t - W + s)); the peak at t = W.  s is W, and 10,000 without
      warm-up, as in transformers: a shorter run then keeps to about the peak.

    Args:
        numbers: in place of those of the config.
    """
    peak = (numbers or optim_numbers(config)).learning_rate
    warmup = warmup_steps(config, total_steps)
    rest = max(total_steps - warmup, 1)
    least = peak * config.min_ratio if config.min_ratio else 0.0
    shift = warmup or 10_000

    def inverse_sqrt(t):
        # `join_schedules` evaluates both sides: during the warm-up t is negative here.
        return peak * (shift / (jnp.maximum(t, 0) + shift)) ** 0.5

    def cosine_restarts(t):
        within = (jnp.clip(t, 0, rest) * config.cycles) % rest / rest  # whole numbers: exact
        within = jnp.where(t >= rest, 1.0, within)
        return least + (peak - least) * 0.5 * (1.0 + jnp.cos(jnp.pi * within))

    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, least, rest),
        "polynomial": optax.polynomial_schedule(peak, least, config.power, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, config.min_ratio),
        "cosine_restarts": cosine_restarts,
        "wsd": _wsd(config, peak, least, total_steps, warmup),
        "inverse_sqrt": inverse_sqrt,
    }[config.schedule]
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def _wsd(config: OptimConfig, peak: Any, least: Any, total: int, warmup: int) -> optax.Schedule:
    """The peak, and behind it the decay; t counts from the end of the warm-up."""
    decay = min(math.ceil(config.decay_ratio * total), max(total - warmup, 1))
    stable = max(total - warmup, 1) - decay

    def falls(x):
        if config.decay_shape == "linear":
            return 1.0 - x
        if config.decay_shape == "cosine":
            return 0.5 * (1.0 + jnp.cos(jnp.pi * x))
        return 1.0 - jnp.sqrt(x)

    def schedule(t):
        x = jnp.clip((t - stable) / max(decay, 1), 0.0, 1.0)
        return least + (peak - least) * falls(x)

    return schedule


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
    tower_layers: int | None = None,
) -> optax.GradientTransformation:
    """Global-norm clipping, then the optimizer of `config.name`.

    Moments are float32, but for the first one where `config.moment_dtype` says so.

    Args:
        vocab: true rows of the leaves in `VOCAB_LEAVES`, which may be padded with zeros; None: they
            are not.
        numbers: in place of those of the config.
        tower_layers: of the tower's layers how many are run, where others and the last norm are
            not (LLaVA); None: all are.
    """
    weight_decay = (numbers or optim_numbers(config)).weight_decay
    if weight_decay is None:
        weight_decay = 0.0

    def mask(params):
        return decay_mask(config, params)

    if config.name == "adamw":
        rule = _adamw(config, schedule, weight_decay, mask)
    elif config.name == "lion":
        rule = optax.lion(
            schedule,
            b1=config.b1,
            b2=config.b2,
            mu_dtype=config.moment_dtype,
            weight_decay=weight_decay,
            mask=mask,
        )
    elif config.name in ("adafactor", "muon"):
        # optax's own decay for adafactor ignores the learning rate, and so the warm-up; here it is
        # one for all parameters, whichever rule they take.
        def rate(t):
            return -weight_decay * schedule(t)

        own = _adafactor(schedule, vocab) if config.name == "adafactor" else _muon(config, schedule)
        rule = optax.chain(own, optax.add_decayed_weights(rate, mask))
    else:
        rule = optax.sgd(
            schedule, momentum=config.momentum or None, accumulator_dtype=config.moment_dtype
        )
    if config.offload:
        by_element = config.name in ("adamw", "lion", "sgd")
        rule = brought_by_layer(rule) if by_element else brought_whole(rule)
    clip = optax.identity()
    if config.clip_norm is not None:
        clip = optax.clip_by_global_norm(config.clip_norm)
    if tower_layers is not None:
        return optax.chain(clip, rule, _unrun_stay(tower_layers))
    return optax.chain(clip, rule)


def _unrun_stay(tower_layers: int) -> optax.GradientTransformation:
    """What of a tower is not run stays as it is; it has no gradient, but would decay."""

    def update(updates: Any, params: Any) -> Any:
        def leaf(path, x):
            name = leaf_path(path)
            if name.startswith("vision/layers/"):
                return x.at[tower_layers:].set(0)
            return jnp.zeros_like(x) if name.startswith("vision/final_norm/") else x

        return jax.tree_util.tree_map_with_path(leaf, updates)

    return optax.stateless(update)


def _adamw(
    config: OptimConfig, schedule: optax.Schedule, weight_decay: Any, mask: Any = None
) -> optax.GradientTransformation:
    """As the config has it, but for the decay."""
    return optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        mu_dtype=config.moment_dtype,
        weight_decay=weight_decay,
        mask=mask,
    )


def _muon(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon on the matrices of the layers, each layer and expert by itself; AdamW on the rest.

    The rest is given to `optax.adamw`, because in `contrib.muon` it would take Nesterov's momentum.
    """

    def leaf_of(path, x):
        return find_leaf(leaf_path(path), x.ndim)

    def labels(params: Any) -> Any:
        def label(path, x):
            leaf = leaf_of(path, x)
            return "muon" if leaf is not None and leaf.is_matrix else "adamw"

        return jax.tree_util.tree_map_with_path(label, params)

    def axes_of(matrices: Any) -> Any:
        """Which axes of a leaf are a matrix's rows and columns."""

        def axes(path, x):
            leaf = leaf_of(path, x)
            return contrib.MuonDimensionNumbers(leaf.summed_axes, leaf.output_axes)

        return jax.tree_util.tree_map_with_path(axes, matrices)

    muon = contrib.muon(
        schedule,
        beta=config.muon_momentum,
        mu_dtype=config.moment_dtype,
        muon_weight_dimension_numbers=axes_of,
        consistent_rms=_MUON_RMS,
    )
    # What decays is added to both.
    return optax.partition({"muon": muon, "adamw": _adamw(config, schedule, 0.0)}, labels)


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
