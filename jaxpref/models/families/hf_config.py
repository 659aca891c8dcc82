"""Hugging Face configs, read and written by all families with an account of every attribute."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpref.errors import InputError
from jaxpref.models.families.attributes import NO_EFFECT, OTHER_NAMES
from jaxpref.models.spec import LayerKind, ModelSpec

FULL, SLIDING = "full_attention", "sliding_attention"
"""Names of `layer_types`."""


class ConfigReader:
    """Reads a config attribute by attribute and keeps the account of what is wrong with it.

    A getter gives a value of its type even where the config has none, so that `finish` can name all
    problems in one error.  What is set, and neither read nor ignored, is a problem too.

    Args:
        config: the parsed config.json.
        family: its name in messages.
        where: the file, for messages.
        defaults: what transformers' config class takes for attributes that the file leaves out.
        ignored: attributes of this family, beside `attributes.NO_EFFECT`, that have no effect here.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        family: str,
        where: str,
        *,
        defaults: Mapping[str, Any] | None = None,
        ignored: Sequence[str] = (),
    ):
        self.config = {**(defaults or {}), **config}
        self.family, self.where = family, where
        self.problems: list[str] = []
        self._known = {*NO_EFFECT, *ignored}
        self._in_force: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is; `default` where it is missing or null."""
        self._known.add(key)
        value = self.config.get(key)
        self._in_force[key] = default if value is None else value
        return self._in_force[key]

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer; without a default it must be there."""
        value = self.get(key, default)
        if value is None:
            self.problems.append(f"{key} is missing")
        elif type(value) is not int or value < 1:
            self.problems.append(f"{key} = {value!r} is not a positive integer")
        else:
            return value
        return 1

    def optional_size(self, key: str) -> int | None:
        """A positive integer, or None where it is missing or null."""
        return None if self.get(key) is None else self.size(key)

    def number(self, key: str, *, below: float = math.inf) -> float:
        """A number between 0 and `below`, which must be there."""
        value = self.get(key)
        if value is None:
            self.problems.append(f"{key} is missing")
        elif (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < below
        ):
            self.problems.append(f"{key} = {value!r} is not a number between 0 and {below}")
        else:
            return float(value)
        return 0.5

    def optional_number(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: str) -> bool:
        """True or False; False where it is missing or null."""
        value = self.get(key, False)
        if not isinstance(value, bool):
            self.problems.append(f"{key} = {value!r} is neither true nor false")
        return bool(value)

    def agreed(self, names: str, *values: Any) -> Any:
        """What several attributes say alike; None where none of them says anything."""
        given = [value for value in values if value is not None]
        if any(value != given[0] for value in given):
            self.problems.append(f"{names} disagree")
        return given[0] if given else None

    def mapping(self, key: str) -> dict[str, Any]:
        """A copy of a JSON object; empty where it is missing or null."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            self.problems.append(f"{key} = {value!r} is not an object")
            return {}
        return dict(value)

    def only(self, key: str, *implemented: Any) -> None:
        """Notes that the decoder implements these values alone; missing or null is one of them."""
        value = self.get(key)
        if value is not None and value not in implemented:
            self.problems.append(f"{key} = {value!r}, only {implemented[0]!r} is implemented")

    def layer_types(
        self, layers: int, default: Sequence[str], known: tuple[str, ...] = (FULL, SLIDING)
    ) -> list[str]:
        """`layer_types`, one per layer, each of the known ones."""
        value = self.get("layer_types", default)
        unknown = sorted({str(kind) for kind in value} - {*known})
        if unknown:
            self.problems.append(
                f"layer_types with {', '.join(unknown)}, only {' and '.join(known)} are implemented"
            )
        elif len(value) != layers:
            self.problems.append(f"{len(value)} layer_types for num_hidden_layers = {layers}")
        else:
            return value
        return [known[0]] * layers

    def finish(self) -> None:
        """Refuses the config if there are problems.

        Errors: one InputError naming every attribute that is missing, out of range, not implemented
            or unknown.

        An unknown attribute that is None, False, 0 or empty is off, and passes; so does one that
        says under another name what is in force.
        """
        self.only("is_causal", True)
        for key, value in self.config.items():
            if key not in self._known and value:
                self._check_repeated(key, value)
        if self.problems:
            raise InputError(
                f"a {self.family} config whose every attribute is understood",
                f"in {self.where}: " + "; ".join(self.problems),
                f"use a model of the plain {self.family} architecture, or remove an attribute that "
                "has no effect",
            )

    def _check_repeated(self, key: str, value: Any) -> None:
        """Refuses what is not read, unless it says what is read under another name."""
        for name in OTHER_NAMES.get(key, ()):
            if name in self._in_force:
                if value != self._in_force[name]:
                    self.problems.append(
                        f"{key} = {value!r}, but {name} = {self._in_force[name]!r} is what is read"
                    )
                return
        self.problems.append(f"{key} = {value!r} is unknown for this family")


def read_text_part(read: ConfigReader, model_type: str) -> dict[str, Any]:
    """The config of the text part of a multimodal model, from its attribute `text_config`.

    Args:
        model_type: of the text part.
    Errors: InputError as of `finish`.
    """
    text = read.mapping("text_config")
    if not text:
        read.problems.append("text_config is missing")
    text = {"model_type": model_type, **text}
    if text["model_type"] != model_type:
        read.problems.append(f"text_config of model_type {text['model_type']!r}")
    # transformers ties the whole model's head by the outer attribute.
    key = "tie_word_embeddings"
    tied = read.agreed(f"{key} and that of text_config", read.get(key), text.get(key))
    read.finish()
    return text | ({} if tied is None else {key: tied})


def read_sizes(read: ConfigReader, ffn: str = "intermediate_size") -> dict[str, Any]:
    """The sizes of `ModelSpec`, under the names that all families but GPT-2 share.

    Args:
        ffn: the attribute that holds the size of the (or of one expert's) MLP.
    """
    heads = read.size("num_attention_heads")
    width = read.size("hidden_size")
    kv_heads = read.size("num_key_value_heads", heads)
    given_head_dim = read.optional_size("head_dim")
    head_dim = given_head_dim or width // heads
    sizes = dict(
        vocab=read.size("vocab_size"),
        width=width,
        ffn=read.size(ffn),
        layers=read.size("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=read.size("max_position_embeddings"),
        norm_eps=read.number("rms_norm_eps", below=1),
        tied=read.flag("tie_word_embeddings"),
    )
    if not read.problems:  # of sizes that are wrong by themselves nothing more is said
        if given_head_dim is None and width % heads:
            read.problems.append(
                f"hidden_size = {width} is not a multiple of num_attention_heads = {heads}"
            )
        if head_dim % 2:
            read.problems.append(f"head_dim = {head_dim} is odd, rope rotates pairs")
        if heads % kv_heads:
            read.problems.append(
                f"num_attention_heads = {heads} is not a multiple of "
                f"num_key_value_heads = {kv_heads}"
            )
    return sizes


def layer_kinds(
    read: ConfigReader,
    layer_types: Sequence[str],
    window: int | None,
    ropes: Sequence[Any] | None = None,
) -> tuple[LayerKind, ...]:
    """`ModelSpec.kinds`: empty when all layers are plain.

    Args:
        window: of the sliding layers.
        ropes: `LayerKind.rope` of every layer; None: all global.
    """
    if SLIDING in layer_types and window is None:
        read.problems.append(f"layer_types has {SLIDING} but no sliding_window is in force")
    ropes = ropes or ["global"] * len(layer_types)
    kinds = tuple(
        LayerKind(window if kind == SLIDING else None, rope)
        for kind, rope in zip(layer_types, ropes, strict=True)
    )
    return () if all(kind == LayerKind() for kind in kinds) else kinds


def window_everywhere(layers: int, window: int | None) -> tuple[LayerKind, ...]:
    """`ModelSpec.kinds` of a model whose layers all have the same window, or none."""
    return () if window is None else (LayerKind(window),) * layers


def shared_window(spec: ModelSpec) -> int | None:
    """The one window of the layers that have one."""
    windows = {kind.window for kind in spec.kinds} - {None}
    assert len(windows) <= 1, "a Hugging Face config has one window"
    return next(iter(windows), None)


def written_layer_types(spec: ModelSpec) -> list[str]:
    windows = [kind.window for kind in spec.kinds] or [None] * spec.layers
    return [FULL if window is None else SLIDING for window in windows]


def written_sizes(
    spec: ModelSpec, architecture: str, ffn: str = "intermediate_size"
) -> dict[str, Any]:
    """The inverse of `read_sizes`, with the names of model and architecture."""
    return {
        "architectures": [architecture],
        "model_type": spec.family,
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        ffn: spec.ffn,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tied,
        "attention_dropout": 0.0,
    }


def read_mixture(read: ConfigReader, *names: str) -> dict[str, Any]:
    """`experts` and `experts_per_token` of `ModelSpec`.

    Args:
        names: what the number of experts may be called.
    """
    read.agreed(" and ".join(names), *(read.get(name) for name in names))
    given = [name for name in names if read.get(name) is not None]
    experts, per_token = read.size((given or names)[0]), read.size("num_experts_per_tok")
    if not read.problems and per_token > experts:
        read.problems.append(f"num_experts_per_tok = {per_token} of {experts} experts")
    return dict(experts=experts, experts_per_token=per_token)
