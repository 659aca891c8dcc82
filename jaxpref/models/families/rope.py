"""RoPE in Hugging Face configs.

It is in `rope_parameters` (transformers 5), or in `rope_theta` and `rope_scaling` (older).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpref.models.families.hf_config import FULL, SLIDING, ConfigReader
from jaxpref.models.spec import (
    DynamicRope,
    LinearRope,
    Llama3Rope,
    LongRope,
    ModelSpec,
    RopeScaling,
    YarnRope,
    yarn_amplitude,
)

_SPELLINGS = {"su": "longrope"}
"""Of early Phi-3 configs."""
TYPES = ("default", "linear", "dynamic", "yarn", "llama3")
"""Of families that rotate whole heads."""
# Of YaRN, which transformers does not read: `attn_factor` of DeepSeek-R1-0528-Qwen3-8B, which vLLM
# multiplies with the attention factor; `finetuned` of the YaRN authors' own checkpoints.
_UNREAD = ("attn_factor", "finetuned")
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def read_rope(
    read: ConfigReader,
    *,
    theta: float = 10000.0,
    types: Sequence[str] = TYPES,
    partial: bool = False,
) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and `partial_rotary` of `ModelSpec`.

    Args:
        theta: what transformers' config class takes where the file has none.
        types: the rope types that transformers computes for this family and `ModelSpec` can say.
        partial: whether the family rotates a part of each head.
    """
    forms = _spelled(read.mapping("rope_parameters")), _spelled(read.mapping("rope_scaling"))
    inside = lambda key: [read.get(key), *(form.pop(key, None) for form in forms)]
    given_theta = read.agreed("rope_theta and that of the rope's parameters", *inside("rope_theta"))
    part = read.agreed(
        "partial_rotary_factor and that of the rope's parameters", *inside("partial_rotary_factor")
    )
    params = read.agreed("rope_parameters and rope_scaling", *(form or None for form in forms))
    if part not in (None, 1) and not (partial and isinstance(part, float) and 0 < part < 1):
        implemented = "1 or less" if partial else "1"
        read.problems.append(f"partial_rotary_factor = {part!r}, only {implemented} is implemented")
        part = None
    return dict(
        rope_theta=check_theta(read, theta if given_theta is None else given_theta),
        rope_scaling=read_scaling(read, params or {}, types),
        partial_rotary=1.0 if part is None else float(part),
    )


def read_ropes(
    read: ConfigReader, thetas: Mapping[str, tuple[str | None, float]], types: Sequence[str]
) -> dict[str, Any]:
    """The RoPE of full and of sliding layers, from nested `rope_parameters` or older attributes.

    Args:
        thetas: kind of layer -> older attribute for its theta (None: there is none), and what
            transformers' config class takes where the file has none.
        types: as of `read_rope`, of full layers; sliding layers are not rescaled.
    """
    new = read.mapping("rope_parameters")
    if not new.keys() <= {FULL, SLIDING}:
        read.problems.append(
            f"rope_parameters with {', '.join(new)}, not with {FULL} and {SLIDING}"
        )
    older = {FULL: _spelled(read.mapping("rope_scaling")), SLIDING: {}}
    found = {}
    for kind, (name, default) in thetas.items():
        params = _spelled(dict(new.get(kind) or {}))
        theta = read.agreed(
            f"{name} and rope_parameters",
            params.pop("rope_theta", None),
            read.get(name) if name else None,
        )
        scaling = read.agreed(
            "rope_scaling and rope_parameters", params or None, older[kind] or None
        )
        theta = check_theta(read, default if theta is None else theta)
        found[kind] = theta, read_scaling(read, scaling or {}, types)
    (theta, scaling), (local_theta, local_scaling) = found[FULL], found[SLIDING]
    if local_scaling is not None:
        read.problems.append(f"{local_scaling} on local layers is not implemented")
    return dict(rope_theta=theta, rope_scaling=scaling, rope_local_theta=local_theta)


def _spelled(params: dict[str, Any]) -> dict[str, Any]:
    """Rope parameters with the one spelling of their type."""
    if "type" in params:  # before transformers 4.43
        params["rope_type"] = params.pop("type")
    if "rope_type" in params:
        params["rope_type"] = _SPELLINGS.get(params["rope_type"], params["rope_type"])
    return params


def check_theta(read: ConfigReader, theta: Any) -> float:
    if not isinstance(theta, (int, float)) or not 1 < theta < math.inf:
        read.problems.append(f"rope_theta = {theta!r} is not a number above 1")
        return 10000.0
    return theta


def read_scaling(
    read: ConfigReader, params: dict[str, Any], types: Sequence[str]
) -> RopeScaling | None:
    """The rescaling that a dict of rope parameters, without theta, asks for."""
    params = dict(params)
    rope_type = params.pop("rope_type", "default")
    if rope_type not in types:
        names = ", ".join(map(repr, types))
        read.problems.append(f"rope_type = {rope_type!r}, only {names} are implemented")
        return None  # what else there is belongs to the refused type
    readers = {
        "linear": _linear,
        "dynamic": _dynamic,
        "yarn": _yarn,
        "llama3": _llama3,
        "longrope": _longrope,
    }
    scaling = None if rope_type == "default" else readers[rope_type](read, params)
    read.problems.extend(
        f"rope parameter {key} = {value!r} is unknown" for key, value in params.items() if value
    )
    return scaling


def _positive(read: ConfigReader, rope_type: str, **values: Any) -> bool:
    """Whether all are positive numbers; notes it where not."""
    missing = [key for key, value in values.items() if value is None]
    if missing:
        read.problems.append(f"rope_type {rope_type} without {', '.join(missing)}")
    elif not all(
        isinstance(value, (int, float)) and 0 < value < math.inf for value in values.values()
    ):
        read.problems.append(f"rope_type {rope_type} with {values} is not a rescaling")
    else:
        return True
    return False


def _linear(read: ConfigReader, params: dict[str, Any]) -> LinearRope | None:
    factor = params.pop("factor", None)
    return LinearRope(float(factor)) if _positive(read, "linear", factor=factor) else None


def _dynamic(read: ConfigReader, params: dict[str, Any]) -> DynamicRope | None:
    factor = params.pop("factor", None)
    return DynamicRope(float(factor)) if _positive(read, "dynamic", factor=factor) else None


def _original_length(read: ConfigReader, params: dict[str, Any]) -> int | None:
    """It may stand among the rope's parameters and beside them; by default nothing was extended."""
    key = "original_max_position_embeddings"
    given = read.agreed(f"{key} and that of the rope's", params.pop(key, None), read.get(key))
    return read.get("max_position_embeddings") if given is None else given


def _yarn(read: ConfigReader, params: dict[str, Any]) -> YarnRope | None:
    for key in _UNREAD:
        params.pop(key, None)
    factor, length = params.pop("factor", None), _original_length(read, params)
    fast, slow = (params.pop(f"beta_{end}", None) for end in ("fast", "slow"))
    amplitude, truncate = params.pop("attention_factor", None), params.pop("truncate", None)
    weights = [params.pop(key, None) for key in ("mscale", "mscale_all_dim")]
    fast, slow = 32.0 if fast is None else fast, 1.0 if slow is None else slow
    optional = {"attention_factor": amplitude, "mscale": weights[0], "mscale_all_dim": weights[1]}
    given = {key: value for key, value in optional.items() if value is not None}
    values = {"factor": factor, "original_max_position_embeddings": length} | given
    if not _positive(read, "yarn", beta_fast=fast, beta_slow=slow, **values):
        return None
    if fast <= slow or truncate not in (None, True, False):
        read.problems.append(
            f"rope_type yarn with beta_fast = {fast}, beta_slow = {slow} and truncate = {truncate}"
        )
        return None
    if amplitude is None and all(weights):  # DeepSeek-V3's way of saying it
        amplitude = yarn_amplitude(factor, weights[0]) / yarn_amplitude(factor, weights[1])
    return YarnRope(
        float(factor), length, float(fast), float(slow), truncate is not False, amplitude
    )


def _llama3(read: ConfigReader, params: dict[str, Any]) -> Llama3Rope | None:
    params["original_max_position_embeddings"] = _original_length(read, params)
    values = {key: params.pop(key, None) for key in _LLAMA3_KEYS}
    if not _positive(read, "llama3", **values):
        return None
    if values["low_freq_factor"] >= values["high_freq_factor"]:
        read.problems.append(f"rope_type llama3 with {values} is not a rescaling")
        return None
    return Llama3Rope(*values.values())


def _longrope(read: ConfigReader, params: dict[str, Any]) -> LongRope | None:
    """Phi-3 keeps the original length beside the rope's parameters, and that one counts."""
    inside = params.pop("original_max_position_embeddings", None)
    length = read.get("original_max_position_embeddings", inside)
    short, long = params.pop("short_factor", None), params.pop("long_factor", None)
    attention_factor, factor = params.pop("attention_factor", None), params.pop("factor", None)
    optional = {"attention_factor": attention_factor, "factor": factor}
    given = {key: value for key, value in optional.items() if value is not None}
    if not _positive(read, "longrope", original_max_position_embeddings=length, **given):
        return None
    if not (_are_divisors(short) and _are_divisors(long)):
        read.problems.append(
            f"rope_type longrope with short_factor {short!r} and long_factor {long!r}"
        )
        return None
    if attention_factor is None and factor is not None:
        # Su et al.'s rule in modeling_rope_utils; without a factor it follows from the lengths
        # (`LongRope`).
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0
    return LongRope(tuple(short), tuple(long), length, attention_factor)


def _are_divisors(values: Any) -> bool:
    if not isinstance(values, list) or not values:
        return False
    return all(isinstance(value, (int, float)) and value > 0 for value in values)


def written_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """`rope_scaling`, or `rope_parameters` without theta; None: no rescaling."""
    if scaling is None:
        return None
    if isinstance(scaling, LinearRope | DynamicRope):
        rope_type = "linear" if isinstance(scaling, LinearRope) else "dynamic"
        return {"rope_type": rope_type, "factor": scaling.factor}
    if isinstance(scaling, YarnRope):
        return _written_yarn(scaling)
    if isinstance(scaling, Llama3Rope):
        values = (
            scaling.factor,
            scaling.low_freq_factor,
            scaling.high_freq_factor,
            scaling.original_length,
        )
        return {"rope_type": "llama3", **dict(zip(_LLAMA3_KEYS, values, strict=True))}
    written: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": list(scaling.short_factor),
        "long_factor": list(scaling.long_factor),
    }
    if scaling.attention_factor is not None:
        written["attention_factor"] = scaling.attention_factor
    return written


def _written_yarn(scaling: YarnRope) -> dict[str, Any]:
    written: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_length,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
    }
    if not scaling.truncate:
        written["truncate"] = False
    if scaling.attention_factor is not None:
        written["attention_factor"] = scaling.attention_factor
    return written


def written_rope(spec: ModelSpec) -> dict[str, Any]:
    """The rope, written twice: as `rope_parameters`, and as `rope_theta` with `rope_scaling`.

    Transformers 5 reads the first form.  Older readers know the second only and would fall back to
    their default theta without a word.
    """
    scaling = written_scaling(spec.rope_scaling)
    return {
        "rope_theta": spec.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {**(scaling or {"rope_type": "default"}), "rope_theta": spec.rope_theta},
    }


def written_ropes(spec: ModelSpec) -> dict[str, Any]:
    """The inverse of `read_ropes`, in both forms as of `written_rope`."""
    scaling = written_scaling(spec.rope_scaling)
    return {
        "rope_theta": spec.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {
            FULL: {**(scaling or {"rope_type": "default"}), "rope_theta": spec.rope_theta},
            SLIDING: {"rope_type": "default", "rope_theta": spec.rope_local_theta},
        },
    }
