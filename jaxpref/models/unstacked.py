"""Parameters with a subtree for every layer in place of the stack, for decoding on a CPU."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxpref.models.lora import TARGETS
from jaxpref.models.parameters import LORA, one_layer
from jaxpref.models.quantize import is_quantised
from jaxpref.models.spec import Mixer
from jaxpref.models.transposed import transposed


def unstack_layers(mixers: Sequence[Mixer], params: Any) -> dict[str, Any]:
    """`layers_0`, `layers_1`, ... in place of `layers`, in the adapter too; weights transposed.

    Args:
        params: all, or the base or the adapter alone.
    """

    def split(tree, finish):
        if "layers" not in tree:
            return dict(tree)
        unstacked = {name: leaf for name, leaf in tree.items() if name != "layers"}
        for y in range(len(mixers)):
            unstacked[f"layers_{y}"] = finish(one_layer(tree["layers"], y, mixers))
        return unstacked

    unstacked = split(params, _transposed_weights)
    if LORA in params:
        unstacked[LORA] = split(params[LORA], lambda layer: layer)
    return unstacked


def _transposed_weights(layer: Mapping[str, Any]) -> dict[str, Any]:
    groups = {group: dict(leaves) for group, leaves in layer.items()}
    for target, (inputs, _) in TARGETS.items():
        group, _, name = target.rpartition("/")
        w = groups.get(group, {}).get(name)
        if w is not None and not is_quantised(w):
            groups[group][name] = transposed(w, len(inputs))
    return groups
