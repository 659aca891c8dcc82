"""What does not fit together in a `ModelSpec`."""

from collections.abc import Iterator

from jaxpref.models.layers import rotary_dim
from jaxpref.models.spec import ClampedSwiglu, LongRope, ModelSpec


def misfits(spec: ModelSpec) -> Iterator[str]:
    """What does not fit together in a spec."""
    if spec.heads % spec.kv_heads:
        yield f"{spec.heads} query heads are no multiple of {spec.kv_heads} key/value heads"
    if spec.kinds and len(spec.kinds) != spec.layers:
        yield f"{len(spec.kinds)} kinds of layers for {spec.layers} layers"
    if "delta" in spec.mixers and spec.delta is None:
        yield "a layer of Gated DeltaNet, and no sizes of it"
    if spec.delta is not None and spec.delta.value_heads % spec.delta.key_heads:
        heads = spec.delta
        yield f"{heads.value_heads} value heads are no multiple of {heads.key_heads} key heads"
    if spec.attention_gate and spec.qkv_bias:
        yield "gates of attention, and biases of queries"
    if rotary_dim(spec) % 2:
        yield f"{rotary_dim(spec)} rotated numbers of a head are odd"
    if spec.rope_local_theta is None and any(kind.rope == "local" for kind in spec.kinds):
        yield "a layer with the local rope, and no rope_local_theta"
    if spec.rope_sections is not None and sum(spec.rope_sections) != rotary_dim(spec) // 2:
        yield f"rope_sections {spec.rope_sections} of {rotary_dim(spec) // 2} rotated pairs"
    rope = spec.rope_scaling
    if isinstance(rope, LongRope) and len(rope.short_factor) != rotary_dim(spec) // 2:
        pairs = rotary_dim(spec) // 2
        yield f"{len(rope.short_factor)} short factors for {pairs} rotated pairs"
    if spec.experts and not 0 < spec.experts_per_token <= spec.experts:
        yield f"{spec.experts_per_token} of {spec.experts} experts per token"
    if spec.experts and (spec.mlp_bias or not spec.gated):
        yield "experts that are not gated or have biases of a dense MLP"
    if spec.expert_bias and not spec.experts:
        yield "biases of experts, and no experts"
    if isinstance(spec.activation, ClampedSwiglu) and not spec.gated:
        yield "a clamped SwiGLU without a gate"
