"""Settings as people write them: YAML, overrides and flags, read, checked for contradictions, and
written."""

import dataclasses
import difflib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from jaxpref.config import Config, ReferenceConfig
from jaxpref.errors import InputError


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Config of a YAML file with `section.key=value` overrides.

    Errors: InputError listing every unknown key (with the nearest valid one), wrong type, value out
    of range and contradiction, all at once.
    """
    return make_config(
        merged_settings(path, overrides), where=str(path) if path else "configuration"
    )


def merged_settings(path: str | Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """What stands in a YAML file, with overrides, not yet checked.  Errors: InputError if it cannot
    be read."""
    raw: dict[str, Any] = {}
    if path is not None:
        if not Path(path).is_file():
            raise InputError("a YAML file", f"{path}: no such file", "correct the path")
        raw = _read(path)
    bare = [item for item in overrides if "=" not in item]
    if bare:
        raise InputError("overrides like optim.learning_rate=1e-6", f"{bare}", "write key=value")
    try:
        return OmegaConf.to_container(
            OmegaConf.merge(raw, OmegaConf.from_dotlist(list(overrides))), resolve=True
        )
    except OmegaConfBaseException as error:
        raise InputError(
            "overrides that fit the configuration", f"{overrides}: {error}", "correct them"
        ) from error


def _read(path: str | Path) -> dict[str, Any]:
    try:
        raw = OmegaConf.load(path)
    except Exception as error:  # yaml's own errors carry line and column
        raise InputError("valid YAML", f"{path}: {error}", "correct that line") from error
    if not OmegaConf.is_dict(raw):
        raise InputError(
            "a YAML mapping", f"{path}: a list or nothing", "write section: {key: value}"
        )
    return raw


def make_config(
    raw: Mapping[str, Any], *, where: str = "configuration", own_data: bool = True
) -> Config:
    """Config of a plain nested mapping; errors as in `load_config`.

    Args:
        own_data: whether data.train and data.eval are all the data that its runs will have.
    """
    adapter = TypeAdapter(Config)
    problems: list[str] = []
    raw = _with_todays_names(raw)
    try:
        config = adapter.validate_json(json.dumps(raw))
    except ValidationError as error:
        problems = [_describe(item) for item in error.errors()]
        # What remains without the offending keys still shows contradictions, so that all is said at
        # once.
        try:
            config = adapter.validate_json(
                json.dumps(_without(raw, [item["loc"] for item in error.errors()]))
            )
        except ValidationError:
            config = None
    if config is not None:
        problems += contradictions(config, own_data)
    if problems:
        raise InputError(
            "a valid configuration",
            f"{where}:\n  - " + "\n  - ".join(problems),
            "correct these keys",
        )
    return config


def _with_todays_names(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings with `data.margins`, and modpo's `columns: {margins: ...}`, under the name that
    they have today.

    Errors: InputError where both names are given.
    """
    found: list[str] = []

    def renamed(section: Any, where: str) -> Any:
        if not isinstance(section, Mapping) or "margins" not in section:
            return section
        if "other_rewards" in section:
            raise InputError(
                f"{where}.other_rewards alone",
                f"{where}.margins, its former name, beside it",
                f"remove {where}.margins",
            )
        found.append(f"{where}.margins")
        return {
            ("other_rewards" if key == "margins" else key): value for key, value in section.items()
        }

    raw = dict(raw)
    if "data" in raw:
        raw["data"] = renamed(raw["data"], "data")
    if isinstance(raw.get("objective"), list):
        raw["objective"] = [
            {**part, "columns": renamed(part["columns"], f"objective.{i}.columns")}
            if isinstance(part, Mapping) and "columns" in part
            else part
            for i, part in enumerate(raw["objective"])
        ]
    if found:
        message = (
            f"{', '.join(found)}: `margins` is called `other_rewards` now, and is read as that"
        )
        warnings.warn(message, FutureWarning, stacklevel=3)
    return raw


def contradictions(config: Config, own_data: bool = True) -> list[str]:
    """Settings that are each valid but not together."""
    from jaxpref.data.dimensions import other_reward_contradictions
    from jaxpref.objectives import OBJECTIVES, TRANSFORMS, bind

    found = []
    optim, train, data = config.optim, config.train, config.data
    if optim.warmup_steps is not None and optim.warmup_ratio is not None:
        found.append("optim.warmup_steps and optim.warmup_ratio are both set: give one")
    if optim.momentum and optim.name != "sgd":
        found.append(f"optim.momentum is for sgd; optim.name is {optim.name}")
    if optim.weight_decay and optim.name == "sgd":
        found.append("optim.weight_decay has no effect with sgd")
    if data.row_length is not None and data.row_length % (
        config.model.attention_block * data.length_buckets
    ):
        times = f" * data.length_buckets={data.length_buckets}" if data.length_buckets > 1 else ""
        found.append(
            f"data.row_length={data.row_length} is not a multiple of "
            f"model.attention_block={config.model.attention_block}{times}"
        )
    ways = config.mesh.data * config.mesh.fsdp
    if train.micro_rows is not None and train.micro_rows % ways:
        found.append(
            f"train.micro_rows={train.micro_rows} is not a multiple of mesh.data * mesh.fsdp = {ways}"
        )
    if train.eval_every and not data.eval and own_data:
        found.append("train.eval_every is set but data.eval is empty")
    found += adapter_contradictions(config)
    try:
        parts = bind(config.objective, OBJECTIVES, TRANSFORMS)
        found += [
            *reference_contradictions(config.reference, parts),
            *other_reward_contradictions(config.data.other_rewards, parts),
        ]
    except InputError as error:
        found += error.got.split("; ")
    return found


def adapter_contradictions(config: Config) -> Iterator[str]:
    """What of the adapter's settings does not fit together, or to the reference's."""
    adapter, reference = config.adapter, config.reference
    shape = [key for key in ("rank", "alpha", "targets", "rslora", "dora") if getattr(adapter, key)]
    if adapter.path is not None and shape:
        yield f"adapter.path brings its own {', '.join(shape)}: leave them out, or start a new adapter without the path"
    if not adapter.trained:
        for key in [*shape, *(key for key in ("dropout", "quantize") if getattr(adapter, key))]:
            yield f"adapter.{key} is set but there is no adapter: set adapter.rank or adapter.path"
        if reference.adapter:
            yield "reference.adapter is laid over frozen weights: set adapter.rank or adapter.path"
        return
    if reference.adapter and reference.path:
        yield "reference.adapter is laid over the frozen weights, reference.path names others: give one"
    if reference.sync_every and reference.sync_alpha < 1:
        yield (
            "reference.sync_alpha < 1 mixes weights, and mixed factors of two adapters are not the factors of the "
            "mixture: set reference.sync_alpha=1, or train the weights"
        )
    if reference.sync_every and (reference.adapter or reference.path):
        yield "a reference that moves with an adapter starts as that adapter: leave reference.adapter and .path out"


def reference_contradictions(reference: ReferenceConfig, parts: Sequence[Any]) -> Iterator[str]:
    """What of the reference's settings does not fit the bound objectives."""
    if not any(part.needs_reference for part in parts):
        for key in ("path", "adapter", "sync_every"):
            if getattr(reference, key):
                yield f"reference.{key} is set but no objective uses a reference"
    readers = [part.name for part in parts if "extra_refs" in (*part.required, *part.optional)]
    if reference.extra and not readers:
        yield "reference.extra is set but no objective reads further references"
    if readers and not reference.extra:
        yield f"{readers[0]} reads further references: list them in reference.extra"
    for part in parts:
        if part.name in ("modpo_implicit", "spo") and reference.sync_every:
            yield f"{part.name} takes rewards of frozen policies: their reference must not move (reference.sync_every)"
        for key, more in (
            {"w": 1, "alphas": 1, "lambdas": 0}.items() if part.name in readers else ()
        ):
            given = part.hyperparameters.get(key, ())
            if given and reference.extra and len(given) != len(reference.extra) + more:
                models, needed = len(reference.extra), len(reference.extra) + more
                yield f"{part.name}.{key} has {len(given)} numbers; with {models} models in reference.extra: {needed}"
    if reference.mode == "cache":
        if reference.sync_every:
            yield "reference.sync_every moves the reference, so its log-probs cannot be cached: set reference.mode=copy"
        for part in parts:
            for name in (
                sorted({"common", "sampled", "kl"} & set(part.needs.logps))
                if part.needs_reference
                else ()
            ):
                yield f"{part.name} needs `{name}` of the reference, which is not cached: set reference.mode=copy"


def keys(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted key, default, meaning) of every setting, in order."""
    schema = TypeAdapter(Config).json_schema()["$defs"]
    fields = schema.get(cls.__name__) or TypeAdapter(Config).json_schema()
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            yield from keys(field.type, f"{prefix}{field.name}.")
        else:
            meaning = fields["properties"][field.name].get("description", "")
            yield prefix + field.name, getattr(cls(), field.name), meaning


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dict, as it may be written to YAML."""
    return dataclasses.asdict(config)


def save_config(config: Config, path: str | Path) -> None:
    OmegaConf.save(OmegaConf.create(to_dict(config)), path)


def _describe(item: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = [name for name, _, _ in keys()]
        # The nearest whole key, or a known key whose last word is nearest (a key put into the wrong
        # section).
        close = difflib.get_close_matches(key, known, 1, 0.75)
        last = {name.rsplit(".", 1)[-1]: name for name in known}
        close = close or [
            last[name] for name in difflib.get_close_matches(key.rsplit(".", 1)[-1], last, 1, 0.6)
        ]
        return f"{key}: unknown key" + (f"; did you mean {close[0]}?" if close else "")
    return f"{key}: {item['msg']}, got {item['input']!r}"


def _without(raw: Mapping[str, Any], locations: list[tuple]) -> dict[str, Any]:
    kept = json.loads(json.dumps(raw))
    for location in locations:
        node = kept
        for part in location[:-1]:
            node = node.get(part, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict):
            node.pop(location[-1], None)
    return kept


def named(items: Sequence[str], flag: str) -> dict[str, str]:
    """`NAME=VALUE` items as a mapping.  Errors: InputError for another form, and for a name that is
    given twice."""
    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals and value) or name in found:
            raise InputError(f"{flag} NAME=..., each name once", item, "correct it")
        found[name] = value
    return found


def numbers(named: Mapping[str, str]) -> dict[str, float]:
    """The values as numbers.  Errors: InputError for one that is none."""
    try:
        return {name: float(value) for name, value in named.items()}
    except ValueError as error:
        raise InputError("numbers", f"{dict(named)}: {error}", "correct them") from error


def for_all_models(overrides: Iterable[str]) -> list[str]:
    """Overrides that fit every model which takes part: where and in which dtype it runs.

    Errors: InputError for any other.
    """
    fit = [item for item in overrides if item.startswith(("mesh.", "model.compute_dtype="))]
    if odd := [item for item in overrides if item not in fit]:
        raise InputError(
            "with rewards: overrides of mesh.* or model.compute_dtype",
            ", ".join(odd),
            "leave them out",
        )
    return fit
