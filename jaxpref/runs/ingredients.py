"""What is merged: its models, found and held against one another, their weights unread."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpref.errors import InputError
from jaxpref.models import peft
from jaxpref.models.lora import LoraSpec
from jaxpref.models.parameters import LORA
from jaxpref.models.peft import is_adapter
from jaxpref.models.quantize import Quantisation
from jaxpref.models.source import Checkpoint, open_checkpoint
from jaxpref.objectives import OBJECTIVES, TRANSFORMS, asked_logps, bind
from jaxpref.runs.adapters import adapter_spec, below_adapter, check_one_policy, quantisation
from jaxpref.runs.digests import weights_key
from jaxpref.runs.directory import RUN_FILE, as_policy, host_params, is_run, models_of
from jaxpref.settings import load_config
from jaxpref.storage.paths import as_path


@dataclass(frozen=True)
class Ingredient:
    """One of the models of a soup, its weights unread."""

    source: str | Path
    weight: float
    base: Checkpoint
    """The model itself, or what its adapter lies on."""
    base_name: str
    lora: LoraSpec | None
    """Of the adapter; None: all weights are its own."""
    kept: Quantisation | None
    """How the base was kept while the adapter was trained."""
    load: Callable[[], dict[str, Any]] | None
    """-> the adapter's tree, or all weights of a run, numpy; None: a model, which `base` reads."""
    made_from: tuple[str, ...] = ()
    """Further models that a run depends on."""


def see_pictures(sources: Sequence[str | Path]) -> bool | None:
    """Whether the models are read whole, as `open_checkpoint` takes it: as a run was trained."""
    run = next(filter(is_run, sources), None)
    return None if run is None else load_config(as_path(run) / RUN_FILE).model.pictures


def find_ingredient(
    source: str | Path, weight: float, step: str | int, pictures: bool | None
) -> Ingredient:
    """Errors: InputError for a source that is no policy."""
    if is_run(source):
        return _run(source, weight, step)
    if is_adapter(source):
        return _adapter(source, weight, pictures)
    base = open_checkpoint(source, pictures=pictures)
    return Ingredient(source, weight, base, str(source), None, None, None)


def _run(run: str | Path, weight: float, step: str | int) -> Ingredient:
    trained = load_config(as_path(run) / RUN_FILE)
    if "reward" in asked_logps(bind(trained.objective, OBJECTIVES, TRANSFORMS)):
        raise InputError(
            "policies", f"{run} trained a reward model", "merge policies only, without it"
        )
    config = as_policy(trained)
    base = open_checkpoint(config.model.path, pictures=config.model.pictures)
    lora = adapter_spec(config.adapter, base.spec)
    check_one_policy(run, lora)

    def load() -> dict[str, Any]:
        params, _ = host_params(config, base, (), lora, run, step)
        return params if lora is None else params[LORA]

    return Ingredient(
        run,
        weight,
        base,
        config.model.path,
        lora,
        quantisation(config.adapter),
        load,
        made_from=tuple(models_of(trained)),
    )


def _adapter(directory: str | Path, weight: float, pictures: bool | None) -> Ingredient:
    name = peft.base_of(directory)
    base = below_adapter(open_checkpoint(name, pictures=pictures), directory)
    lora = peft.read_spec(directory, base.spec, modules=True)

    def load() -> dict[str, Any]:
        return peft.load_adapter(directory, base.spec, modules=True)[1]

    return Ingredient(directory, weight, base, name, lora, None, load)


def read_by(item: Ingredient) -> Iterator[str | Path]:
    """What a soup with this model in it must not replace."""
    yield item.source
    yield item.base.path
    yield from item.made_from


# ---- what fits together


def check_together(soup: Sequence[Ingredient], how: str) -> None:
    """Errors: InputError for models that cannot be merged so, naming each with its reason."""
    first, *others = soup
    problems = [f"{item.source} {odd}" for item in others for odd in _differences(item, first, how)]
    if how != "weights":
        problems += [f"{item.source} {odd}" for item in soup for odd in _no_sum(item)]
    if how == "factors" and not problems:
        for item in others:
            if _factor_shape(item) != _factor_shape(first):
                problems.append(
                    f"{item.source}: rank, scale and weights {_factor_shape(item)}; "
                    f"{first.source}: {_factor_shape(first)}"
                )
    if problems:
        raise InputError(
            "policies trained alike from one model",
            "; ".join(problems),
            "merge without these sources, or with --how weights where it is named",
        )


def _differences(item: Ingredient, first: Ingredient, how: str) -> Iterator[str]:
    """Why a model cannot be merged with the first one; the first reason only."""
    if item.base.spec != first.base.spec:
        yield f"is a model of other sizes than {first.source}"
    elif not _same_start(item, first):
        yield f"was trained from {item.base_name}, {first.source} from {first.base_name}"
    elif how != "weights" and item.kept != first.kept:
        yield f"lies on a base that was quantised otherwise than that of {first.source}"
    elif _tokens(item) != _tokens(first):
        yield f"has another vocabulary than {first.source}"


def _no_sum(item: Ingredient) -> Iterator[str]:
    """Why a model is not its base and a sum beside it."""
    if item.lora is None:
        yield "has no adapter: take --how weights"
    elif item.lora.dora:
        yield "is a DoRA adapter, whose lengths are no sum: take --how weights"
    elif item.base.modules_of is not None:
        yield "brings its own embedding or head: take --how weights"


def _factor_shape(item: Ingredient) -> tuple[Any, ...]:
    spec = item.lora
    return spec.rank, *((target, spec.on(target).scale) for target in spec.targets)


def _tokens(item: Ingredient) -> dict[str, int]:
    return item.base.load_tokenizer().get_vocab()


def _same_start(item: Ingredient, first: Ingredient) -> bool:
    """Whether both were trained from the same bytes, as far as it is known."""
    if item.load is None or first.load is None:  # a model's directory does not say
        return True
    return _same_bytes(item.base.path, first.base.path)


def _same_bytes(one: Path, other: Path) -> bool:
    same = one.resolve() == other.resolve()
    return same or weights_key(one, "float32") == weights_key(other, "float32")
