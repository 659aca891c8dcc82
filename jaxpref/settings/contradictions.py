"""Settings that are each valid but do not fit together, each told in one sentence."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jaxpref.config import Config, OptimConfig, ReferenceConfig
from jaxpref.errors import InputError

if TYPE_CHECKING:
    from jaxpref.objectives import Part


def contradictions(config: Config) -> Iterator[str]:
    """All contradictions of a run's config."""
    # The objectives need jax, which reading `--help` or data should not wait for.
    from jaxpref.objectives import OBJECTIVES, TRANSFORMS, bind

    yield from _optimizer(config)
    yield from _batches(config)
    yield from _adapter(config)
    yield from _online(config)
    try:
        parts = bind(config.objective, OBJECTIVES, TRANSFORMS)
    except InputError as error:
        yield from error.got.splitlines()
    else:
        yield from objective_contradictions(config, parts)


def objective_contradictions(config: Config, parts: Sequence["Part"]) -> Iterator[str]:
    """What in the settings does not fit the bound objectives."""
    reference = config.reference
    yield from _reference(reference, parts)
    yield from _further_references(reference, parts)
    if reference.mode == "cache":
        yield from _cached_reference(reference, parts)
    if config.data.other_rewards:
        yield from _other_rewards(config.data.other_rewards, parts)


def _keeps_first_moment(optim: OptimConfig) -> bool:
    return optim.name in ("adamw", "lion", "muon") or bool(optim.momentum)


_FALLING = ("linear", "polynomial", "cosine", "cosine_restarts", "wsd")
_OF_SCHEDULES = {
    "min_ratio": _FALLING,
    "power": ("polynomial",),
    "cycles": ("cosine_restarts",),
    "decay_ratio": ("wsd",),
    "decay_shape": ("wsd",),
}
"""Key of the optimizer's section -> the schedules that read it."""


def _optimizer(config: Config) -> Iterator[str]:
    optim = config.optim
    if optim.warmup_steps is not None and optim.warmup_ratio is not None:
        yield "optim.warmup_steps and optim.warmup_ratio are both set: give one"
    if optim.momentum and optim.name != "sgd":
        instead = "; set optim.muon_momentum" if optim.name == "muon" else ""
        yield f"optim.momentum is for sgd; optim.name is {optim.name}{instead}"
    for key, schedules in _OF_SCHEDULES.items():
        value, default = getattr(optim, key), getattr(OptimConfig(), key)
        if value != default and optim.schedule not in schedules:
            of = ", ".join(schedules)
            yield f"optim.{key}={value} has no effect: it is for {of}; set optim.schedule to it"
    if optim.moment_dtype != "float32" and not _keeps_first_moment(optim):
        yield f"optim.moment_dtype={optim.moment_dtype}, but {optim.name} keeps no first moment"
    if optim.weight_decay and optim.name == "sgd":
        yield "optim.weight_decay has no effect with sgd"


def _batches(config: Config) -> Iterator[str]:
    data, context = config.data, config.mesh.context
    if data.row_length is not None and data.row_length % config.row_unit:
        factors = [f"model.attention_block={config.model.attention_block}"]
        if context > 1:
            factors.append(f"2 * mesh.context={context}")
        if data.length_buckets > 1:
            factors.append(f"data.length_buckets={data.length_buckets}")
        unit = " * ".join(factors) + (f" = {config.row_unit}" if len(factors) > 1 else "")
        yield f"data.row_length={data.row_length} is not a multiple of {unit}"
    sizes_known = isinstance(config.mesh.fsdp, int)
    if isinstance(config.train.micro_rows, int) and sizes_known:
        from jaxpref.sharding import LOGICAL  # needs jax, which `--help` should not wait for

        axes = LOGICAL["rows"]
        ways = math.prod(getattr(config.mesh, axis) for axis in axes)
        if config.train.micro_rows % ways:
            product = " * ".join(f"mesh.{axis}" for axis in axes)
            given = f"train.micro_rows={config.train.micro_rows}"
            yield f"{given} is not a multiple of {product} = {ways}"


def _conditioned(config: Config) -> Iterator[str]:
    adapter = config.adapter
    kind = f"adapter.kind={adapter.kind}"
    if adapter.kind == "lora":
        if adapter.weight_columns:
            yield (
                "adapter.weight_columns is read by adapter.kind=panacea and pblora: "
                "set one of these, or remove it"
            )
        return
    if adapter.rank is None:
        yield f"{kind} starts a new adapter: set adapter.rank"
    if not adapter.weight_columns:
        yield f"{kind} reads objective weights: name their columns in adapter.weight_columns"
    for key in ("rslora", "dora"):
        if getattr(adapter, key):
            yield f"adapter.{key} and {kind}: it is of adapter.kind=lora: remove one of them"
    if config.online.rewards:
        yield (
            f"{kind} and online.rewards: answers are not drawn at weights of their own: "
            "set adapter.kind=lora, and online.dirichlet for prompts that say the weights"
        )
    if config.train.samples:
        yield f"{kind} and train.samples: a sample needs weights: set train.samples=0"


def _adapter(config: Config) -> Iterator[str]:
    adapter, reference = config.adapter, config.reference
    shape = [key for key in ("rank", "alpha", "targets", "rslora", "dora") if getattr(adapter, key)]
    if adapter.path is not None and shape:
        yield (
            f"adapter.path brings its own {', '.join(shape)}: remove these keys, or remove "
            "adapter.path to start a new adapter"
        )
    yield from _conditioned(config)
    if not adapter.trained:
        for key in [*shape, *(key for key in ("dropout", "quantize") if getattr(adapter, key))]:
            yield f"adapter.{key} is set but there is no adapter: set adapter.rank or adapter.path"
        if reference.adapter:
            yield "reference.adapter is laid over frozen weights: set adapter.rank or adapter.path"
        return
    if reference.offload and reference.path is None:
        yield (
            "reference.offload moves a copy of the weights, and with an adapter there is none: "
            "remove it"
        )
    if reference.adapter and reference.path:
        yield (
            "reference.adapter is laid over the frozen weights, reference.path names others: "
            "give one"
        )
    if reference.sync_every and reference.sync_alpha < 1:
        yield (
            "reference.sync_alpha < 1 mixes weights, and mixed factors of two adapters are not the "
            "factors of the mixture: set reference.sync_alpha=1, or train the weights"
        )
    if reference.sync_every and (reference.adapter or reference.path):
        yield (
            "a reference that moves with an adapter starts as that adapter: remove "
            "reference.adapter and reference.path"
        )


def _online(config: Config) -> Iterator[str]:
    online, data, reference = config.online, config.data, config.reference
    if not online.rewards:
        for key in ("weights", "scales", "dirichlet", "weight_vectors"):
            if getattr(online, key):
                yield f"online.{key} is set but online.rewards is empty"
        return
    names = ", ".join(online.rewards)
    if online.weights and online.weights.keys() != online.rewards.keys():
        given = ", ".join(online.weights)
        yield f"online.weights names {given}: give a weight to each of online.rewards, {names}"
    if online.weights and not any(online.weights.values()):
        yield "online.weights: all are 0"
    if unknown := ", ".join(online.scales.keys() - online.rewards.keys()):
        yield f"online.scales names {unknown}, which is none of online.rewards: {names}"
    for key in ("dirichlet", "weight_vectors"):
        if getattr(online, key) and len(online.rewards) < 2:
            yield f"online.{key} draws the weights of two or more, not of {names}: remove it"
        elif getattr(online, key) and online.weights:
            yield f"online.{key} draws the weights of the rewards: remove online.weights"
    if online.dirichlet and online.weight_vectors:
        yield "online.dirichlet and online.weight_vectors both draw weights: remove one of them"
    if any(len(x) != len(online.rewards) or not any(x) for x in online.weight_vectors):
        yield f"online.weight_vectors: give each a weight for {names}, one of them above 0"
    for name, what in online.rewards.items():
        if not name or not what:
            yield f"online.rewards: {name!r} is {what!r}: give name and reward"
        if what.startswith("column:"):
            yield (
                f"online.rewards: {name} is {what}, a score that is in the data: name a reward "
                "that can score new answers"
            )
    if data.prefer or data.other_rewards:
        yield "data.prefer and data.other_rewards read scores of given answers: remove them"
    if reference.mode == "cache" or reference.extra:
        yield (
            "log-probs of answers that are not drawn yet cannot be cached: set "
            "reference.mode=copy and remove reference.extra"
        )
    if data.max_length is not None and data.max_length <= online.max_new_tokens:
        yield (
            f"data.max_length={data.max_length} leaves no room for a prompt beside "
            f"online.max_new_tokens={online.max_new_tokens}"
        )


def _reference(reference: ReferenceConfig, parts: Sequence["Part"]) -> Iterator[str]:
    if reference.offload and (reference.mode == "cache" or reference.sync_every):
        yield (
            "reference.offload moves a copy that stays as it is: remove it, or set "
            "reference.mode=copy and reference.sync_every=null"
        )
    if not any(part.needs_reference for part in parts):
        for key in ("path", "adapter", "sync_every", "offload"):
            if getattr(reference, key):
                yield f"reference.{key} is set but no objective uses a reference"
    for part in parts:
        if part.name in ("modpo_implicit", "spo") and reference.sync_every:
            yield (
                f"{part.name} takes rewards of frozen policies, whose reference must not move: "
                "remove reference.sync_every"
            )


def _further_references(reference: ReferenceConfig, parts: Sequence["Part"]) -> Iterator[str]:
    readers = [part for part in parts if "extra_refs" in (*part.required, *part.optional)]
    models = len(reference.extra)
    if models and not readers:
        yield "reference.extra is set but no objective reads further references"
    if readers and not models:
        yield f"{readers[0].name} reads further references: list them in reference.extra"
    if not models:
        return
    # Hyperparameters with a number for every further reference, and for the first one or not.
    numbers_beside_models = {"w": 1, "alphas": 1, "lambdas": 0}
    for part in readers:
        for key, beside in numbers_beside_models.items():
            given = len(part.hyperparameters.get(key) or ())
            if given and given != models + beside:
                yield (
                    f"{part.name}.{key} has {given} numbers; with {models} models in "
                    f"reference.extra: {models + beside}"
                )


def _cached_reference(reference: ReferenceConfig, parts: Sequence["Part"]) -> Iterator[str]:
    copied = "set reference.mode=copy"
    if reference.sync_every:
        yield (
            f"reference.sync_every moves the reference, so its log-probs cannot be cached: {copied}"
        )
    for part in parts:
        if not part.needs_reference:
            continue
        for name in sorted({"common", "sampled", "kl"} & set(part.needs.logps)):
            yield f"{part.name} needs `{name}` of the reference, which is not cached: {copied}"


def _other_rewards(names: Sequence[str], parts: Sequence["Part"]) -> Iterator[str]:
    key = f"data.other_rewards=[{', '.join(names)}]"
    readers = [part for part in parts if "other_rewards" in part.all_columns]
    if not readers:
        yield f"{key} is set but no objective reads `other_rewards`"
    if len(set(names)) < len(names):
        yield f"{key} names a score twice"
    for part in readers:
        w = part.hyperparameters.get("w")
        if w is not None and len(w) != len(names) + 1:
            yield f"{part.name}.w has {len(w)} weights; with {key}: {len(names) + 1}, base first"
