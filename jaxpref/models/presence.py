"""Which models have a leaf of the parameter tree: the conditions of the table in parameters.py."""

from collections.abc import Callable

from jaxpref.models.spec import ModelSpec

Present = Callable[[ModelSpec], bool]


def always(spec: ModelSpec) -> bool:
    return True


def norm_before(spec: ModelSpec) -> bool:
    return spec.norm_at in ("pre", "both")


def norm_after(spec: ModelSpec) -> bool:
    return spec.norm_at in ("post", "both")


def head_norm(spec: ModelSpec) -> bool:
    return spec.qk_norm == "head"


def whole_norm(spec: ModelSpec) -> bool:
    return spec.qk_norm == "whole"


def qkv_bias(spec: ModelSpec) -> bool:
    return spec.qkv_bias


def o_bias(spec: ModelSpec) -> bool:
    return spec.o_bias


def mlp(spec: ModelSpec) -> bool:
    return not spec.experts


def gated_mlp(spec: ModelSpec) -> bool:
    return spec.gated and not spec.experts


def mlp_bias(spec: ModelSpec) -> bool:
    return spec.mlp_bias and not spec.experts


def sinks(spec: ModelSpec) -> bool:
    return spec.attention_sinks


def expert_bias(spec: ModelSpec) -> bool:
    return spec.expert_bias


def mixture(spec: ModelSpec) -> bool:
    return spec.experts > 0


def plain_queries(spec: ModelSpec) -> bool:
    return not spec.attention_gate


def gated_queries(spec: ModelSpec) -> bool:
    return spec.attention_gate


def delta(spec: ModelSpec) -> bool:
    return spec.delta is not None


def learned_positions(spec: ModelSpec) -> bool:
    return spec.learned_positions


def vision(spec: ModelSpec) -> bool:
    return spec.vision is not None


def learned_patch_positions(spec: ModelSpec) -> bool:
    return spec.vision is not None and spec.vision.windows is None


def layer_normed_tower(spec: ModelSpec) -> bool:
    return spec.vision is not None and spec.vision.norm == "layer"


def gated_tower(spec: ModelSpec) -> bool:
    return spec.vision is not None and spec.vision.gated


def frames(spec: ModelSpec) -> bool:
    return spec.vision is not None and spec.vision.frames is not None


def no_frames(spec: ModelSpec) -> bool:
    return spec.vision is not None and spec.vision.frames is None


def class_token(spec: ModelSpec) -> bool:
    return spec.vision is not None and spec.vision.class_token


def patch_bias(spec: ModelSpec) -> bool:
    return learned_patch_positions(spec) and not class_token(spec)


def mlp_connector(spec: ModelSpec) -> bool:
    return spec.vision is not None and spec.vision.connector == "mlp"


def merge_connector(spec: ModelSpec) -> bool:
    return spec.vision is not None and spec.vision.connector == "merge"


def two_map_connector(spec: ModelSpec) -> bool:
    return mlp_connector(spec) or merge_connector(spec)


def normed_connector(spec: ModelSpec) -> bool:
    return spec.vision is not None and spec.vision.connector in ("pool", "merge")


def linear_connector(spec: ModelSpec) -> bool:
    return spec.vision is not None and spec.vision.connector in ("shuffle", "pool")


def own_head(spec: ModelSpec) -> bool:
    return not spec.tied
