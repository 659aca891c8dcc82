"""Which mesh, remat, micro-batch and row length: the best plan that fits, found by compiling few.

Arithmetic rules out what cannot fit and puts the rest in order; the compiler decides among the
first.  The arithmetic is a lower bound of memory, and of time one that assumes peak rates.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxpref.config import Config
from jaxpref.data.pack import Layout, assign_rows, row_tokens
from jaxpref.errors import InputError
from jaxpref.models.parameters import model_shapes
from jaxpref.models.spec import ModelSpec
from jaxpref.objectives import OBJECTIVES, TRANSFORMS, bind
from jaxpref.plan.child import CompilerCrashed
from jaxpref.plan.chips import GIB, Slice
from jaxpref.plan.estimate import estimate, memory_of
from jaxpref.plan.row_sizes import RowSizes
from jaxpref.runs.flops import forward_flops
from jaxpref.sharding import named_axes
from jaxpref.wording import counted

Remat = Literal["none", "dots", "full"]
Mode = Literal["copy", "cache"]


@dataclass(frozen=True)
class Choice:
    """One setting of what a search varies."""

    data: int
    fsdp: int
    tensor: int
    remat: Remat
    micro_rows: int
    row_length: int
    reference: Mode
    """`reference.mode`."""

    def applied(self, config: Config) -> Config:
        """The config with it."""
        mesh = dataclasses.replace(config.mesh, data=self.data, fsdp=self.fsdp, tensor=self.tensor)
        return dataclasses.replace(
            config,
            mesh=mesh,
            model=dataclasses.replace(config.model, remat=self.remat),
            train=dataclasses.replace(config.train, micro_rows=self.micro_rows),
            data=dataclasses.replace(config.data, row_length=self.row_length),
            reference=dataclasses.replace(config.reference, mode=self.reference),
        )

    def __str__(self) -> str:
        mesh = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        return (
            f"{named_axes(mesh) or 'one device'}, remat {self.remat}, "
            f"{counted(self.micro_rows, 'row')} of {self.row_length:,}, reference {self.reference}"
        )


@dataclass(frozen=True)
class Found:
    """A choice that was compiled."""

    choice: Choice
    said: dict[str, Any]
    before: float
    """The model's FLOPs before the first step, shared by the steps: the log-probs of a cached
    reference."""

    def seconds(self, target: Slice) -> float:
        """Predicted, halfway between all and no traffic hidden; infinite where it does not fit.

        What is computed before the first step counts, with the step's utilisation.
        """
        if "does_not_fit" in self.said or not memory_of(self.said, target.chip).fits:
            return math.inf
        time = estimate(self.said, target.chip)
        return (time.fastest + time.slowest) / 2 * (1 + self.before / self.said["model_flops_all"])


def choices(config: Config, spec: ModelSpec, rows: RowSizes, target: Slice) -> list[Choice]:
    """All that a search considers: meshes that divide model and slice, and what goes with each."""
    longest = max(row_tokens(group, config.data.share_prefix) for group in rows.groups)
    shortest = -(-longest // config.row_unit) * config.row_unit
    lengths = [config.data.row_length] if config.data.row_length else []
    lengths += [shortest * factor for factor in (1, 2, 4) if shortest * factor <= 16_384]
    modes = reference_modes(config)
    of_step = config.train.batch_size
    found = []
    for mesh in meshes(spec, target, config.mesh.context):
        ways = mesh[0] * mesh[1]
        micro = [ways * n for n in (1, 2, 4, 8) if ways * n <= max(of_step, ways)]
        for remat, rows_each, length, mode in itertools.product(
            get_args(Remat), micro, sorted(set(lengths)), modes
        ):
            found.append(Choice(*mesh, remat, rows_each, length, mode))
    return found


def reference_modes(config: Config) -> list[Mode]:
    """Both where the reference is a copy of all weights that stays as it is; else the config's."""
    reference = config.reference
    is_copy = reference.path is None and not (reference.sync_every or reference.offload)
    if config.adapter.trained or not is_copy or not _needs_reference(config):
        return [reference.mode]
    return ["copy", "cache"]


def _needs_reference(config: Config) -> bool:
    parts = bind(config.objective, OBJECTIVES, TRANSFORMS)
    return any(part.needs_reference for part in parts)


def meshes(spec: ModelSpec, target: Slice, context: int) -> list[tuple[int, int, int]]:
    """(data, fsdp, tensor) that take the devices with the context; data spans the slices."""
    devices = target.devices // (target.slices * context)
    found = []
    for tensor in (1, 2, 4, 8):
        if devices % tensor or spec.kv_heads % tensor or spec.ffn % tensor:
            continue
        for data in (1, 2, 4):
            fsdp, rest = divmod(devices // tensor, data)
            if rest == 0 and fsdp >= 1 and spec.width % (fsdp * context) == 0:
                found.append((data * target.slices, fsdp, tensor))
    return found


def bound(
    config: Config, spec: ModelSpec, rows: RowSizes, target: Slice, choice: Choice
) -> tuple[float, float]:
    """(bytes of HBM on a device, seconds of a step) that the choice takes at least."""
    parameters = _parameters(spec)
    trained = 0 if config.adapter.trained else parameters
    layout = Layout(choice.row_length, config.data.share_prefix, config.data.pack)
    groups = rows.groups[: config.train.batch_size]
    lengths = [row_tokens(group, layout.share_prefix) for group in groups]
    needed = len(assign_rows(lengths, layout))
    micro_batches = -(-needed // choice.micro_rows)
    tokens = choice.micro_rows * choice.row_length
    spread = choice.fsdp * config.mesh.context  # as parameters are, but for tensor
    own_tokens = tokens / (choice.data * spread)

    memory = held_bytes(config, spec, choice) + spec.layers * own_tokens * _saved(spec, choice)
    if micro_batches > 1:  # the sum of their gradients
        memory += 4 * trained / (spread * choice.tensor)

    passes = (3 if trained else 2) + (choice.remat == "full") + (choice.reference == "copy")
    forward = forward_flops(spec, groups, share_prefix=layout.share_prefix)
    padding = tokens * micro_batches / sum(lengths)
    flops = passes * forward * padding / target.devices
    gathers = 2 + (choice.reference == "copy") + 4 * bool(trained)  # gradients are float32, twice
    sent = 2.0 * parameters / choice.tensor * micro_batches * gathers * (1 - 1 / spread)
    return memory, max(flops / target.chip.flops, sent / target.chip.ici_rate)


def held_bytes(config: Config, spec: ModelSpec, choice: Choice) -> float:
    """Bytes of parameters, optimizer state and reference on a device, without the smallest leaves.

    An adapter is not counted, and its base as bfloat16.
    """
    parameters = _parameters(spec)
    per_parameter = 2 if config.adapter.trained else 12 + 2 * (choice.reference == "copy")
    ways = choice.fsdp * config.mesh.context * choice.tensor
    return parameters * per_parameter / ways


def _parameters(spec: ModelSpec) -> int:
    return sum(math.prod(shape) for shape in model_shapes(spec).values())


def _saved(spec: ModelSpec, choice: Choice) -> float:
    """Bytes that the forward pass keeps for a token in a layer, at least, averaged over layers."""
    if choice.remat == "full":
        return 2.0 * spec.width
    heads: float = (2 * spec.heads + 2 * spec.kv_heads) * spec.head_dim
    if spec.delta is not None:
        attention = spec.mixers.count("attention") / spec.layers
        keys = spec.delta.key_heads * spec.delta.key_size
        values = spec.delta.value_heads * spec.delta.value_size
        heads = attention * heads + (1 - attention) * (2 * keys + 2 * values)  # q, k, v, z
    inside = heads + 2 * spec.ffn * (spec.experts_per_token or 1)
    return 2.0 * (spec.width + inside / choice.tensor)


def search(
    config: Config,
    spec: ModelSpec,
    rows: RowSizes,
    target: Slice,
    compiled: Callable[[Config], dict[str, Any]],
    *,
    tries: int,
    on_try: Callable[[int, int, str], None] = lambda *_: None,
) -> list[Found]:
    """The choices that were compiled, best first.

    Those that training would refuse are passed by, and those on which the compiler crashes.

    Args:
        compiled: config -> what `compiled.compile_and_read` gives.
        tries: programs to compile at most.
        on_try: called with (how many are done, of how many, what comes next).
    Errors: InputError where nothing can fit.
    """
    found: list[Found] = []
    for choice in _in_order(config, spec, rows, target):
        if len(found) == tries:
            break
        on_try(len(found), tries, str(choice))
        try:
            said = compiled(choice.applied(config))
        except InputError:
            continue
        except CompilerCrashed:
            on_try(len(found), tries, f"{choice}: the compiler crashed")
            continue
        found.append(Found(choice, said, flops_before(config, spec, rows, choice)))
    if not found:
        raise InputError(
            "a choice that can be compiled",
            "none of all that a search considers",
            "plan one of them without --search, which says why",
        )
    on_try(len(found), len(found), "done")
    return sorted(found, key=lambda one: one.seconds(target))


def flops_before(config: Config, spec: ModelSpec, rows: RowSizes, choice: Choice) -> float:
    """As of `Found.before`: one pass over the data, which the epochs share."""
    if choice.reference != "cache" or not _needs_reference(config):
        return 0.0
    groups = rows.groups[: config.train.batch_size]
    forward = forward_flops(spec, groups, share_prefix=config.data.share_prefix)
    return forward / config.train.epochs


def _in_order(config: Config, spec: ModelSpec, rows: RowSizes, target: Slice) -> list[Choice]:
    """The choices that may fit, by the least time they can take."""
    bounds = [
        (choice, *bound(config, spec, rows, target, choice))
        for choice in choices(config, spec, rows, target)
    ]
    fitting = [
        (seconds, i, one)
        for i, (one, memory, seconds) in enumerate(bounds)
        if memory < target.chip.hbm
    ]
    if not fitting:
        least = min(memory for _, memory, _ in bounds) if bounds else math.inf
        raise InputError(
            f"a model that {target} can hold",
            f"at least {least / GIB:,.1f} GiB on a device of {target.chip.hbm / GIB:.2f} GiB, "
            f"over {len(bounds)} choices",
            "plan for more chips, or set adapter.rank",
        )
    return [one for _, _, one in sorted(fitting)]


def differences(first: Found, second: Found, target: Slice) -> Iterator[str]:
    """What separates the best from the runner-up."""
    for field in dataclasses.fields(Choice):
        own, other = getattr(first.choice, field.name), getattr(second.choice, field.name)
        if own != other:
            yield f"{field.name} {own} in place of {other}"
    one, two = first.seconds(target), second.seconds(target)
    if math.isfinite(two):
        yield f"the runner-up takes {two / one - 1:.0%} longer" if two > one else "as fast"
    else:
        yield "the runner-up does not fit"
