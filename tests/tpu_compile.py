"""Compiles a training step for a TPU slice, shapes only, and prints what it takes; run by test_tpu_compiler.py.

python tests/tpu_compile.py CASE, or attention-CHIP: attention's kernels alone, with all that they can be asked for.
"""

import dataclasses
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.config import AdapterConfig, MeshConfig, OptimConfig
from jaxpref.data.pack import RowShape, empty_batch
from jaxpref.models import lora
from jaxpref.models.attention import Mask
from jaxpref.models.decoder import build_model
from jaxpref.models.fused_attention import choose_attention
from jaxpref.models.parameters import LORA
from jaxpref.models.placement import param_shardings
from jaxpref.models.spec import LayerKind, Llama3Rope, ModelSpec, VisionSpec
from jaxpref.objectives import OBJECTIVES, bind
from jaxpref.plan.chips import CHIPS, parse_slice
from jaxpref.plan.compiled import slice_devices
from jaxpref.plan.estimate import kernel_seconds
from jaxpref.plan.program import Program
from jaxpref.runs.adapters import adapter_spec
from jaxpref.runs.build import param_shapes
from jaxpref.sharding import batch_sharding, make_mesh
from jaxpref.step.batch_loss import LossSpec
from jaxpref.step.optim import make_optimizer, make_schedule
from jaxpref.step.policy import Frozen
from jaxpref.step.state import init_state, state_shardings
from jaxpref.step.train_step import make_train_step

SMOLLM2 = ModelSpec("llama", 49152, 576, 1536, 30, 9, 3, 64, 8192, 1e5, 1e-5, True)
EVEN = dataclasses.replace(SMOLLM2, heads=8, kv_heads=4)
SIGLIP = VisionSpec(
    image_size=512, patch_size=16, width=768, ffn=3072, layers=12, heads=12, norm_eps=1e-6, activation="gelu_tanh",
    connector="shuffle", tile_embeddings=64, token_id=49190, mean=(0.5,) * 3, std=(0.5,) * 3,
)  # fmt: skip
SMOLVLM = ModelSpec("idefics3", 49280, 576, 1536, 30, 9, 3, 64, 8192, 1e5, 1e-5, False, vision=SIGLIP)
CLIP = VisionSpec(
    image_size=336, patch_size=14, width=1024, ffn=4096, layers=24, heads=16, norm_eps=1e-5, activation="quick_gelu",
    connector="mlp", tile_embeddings=576, token_id=32000, mean=(0.5,) * 3, std=(0.5,) * 3, layers_run=23,
    class_token=True,
)  # fmt: skip
LLAVA = ModelSpec("llava", 32064, 4096, 11008, 32, 32, 32, 128, 4096, 1e4, 1e-5, False, vision=CLIP)
LLAMA = ModelSpec(
    "llama", 128256, 4096, 14336, 32, 32, 8, 128, 131072, 5e5, 1e-5, False, Llama3Rope(8.0, 1.0, 4.0, 8192)
)
MIXTURE = ModelSpec(
    "mixtral", 32768, 1024, 2048, 6, 16, 8, 64, 8192, 1e5, 1e-5, False, qk_norm="head", attention_softcap=50.0,
    kinds=(LayerKind(512), LayerKind(rope=None)) * 3, experts=8, experts_per_token=2,
)  # fmt: skip
XLA = {"remat": "dots", "attention": "xla"}
LONG = RowShape(4096, 3072, 16, 2)
# One conversation with two answers in a row: of 131,072 tokens, and of half as many.
CONVERSATION, HALF = RowShape(131072, 8192, 1, 2), RowShape(65536, 1024, 1, 2)
FOUR_LAYERS = dataclasses.replace(LLAMA, layers=4)
SPREAD = {"context": 64, "attention_block": 512, "chunks": 64, "key_blocks": 128}
FROZEN = {"attention_block": 512, "rank": 16}
# Of attention: dtype, head size, key heads of 8, row length, window, and whether policies are stacked.
ATTENTION = [
    *(("bfloat16", size, 2, 2048, 512, False) for size in (64, 72, 80, 96, 112, 128, 192, 256)),
    ("bfloat16", 128, 8, 1152, None, False),
    ("bfloat16", 64, 1, 128, None, True),
    ("float32", 64, 2, 1152, 512, False),
    ("float32", 256, 1, 4096, 512, False),
]
# name: model, slice, mesh (data, fsdp, tensor), micro-batches, rows, row shape, objectives, and what differs from the
# defaults: sizes of further axes, options of the model, and how often the loops run whose count the data decide:
# `chunks` of loss tokens, and `key_blocks` that a block of queries sees
CASES = {
    "demo": (SMOLLM2, "v5e:2x2", (1, 4, 1), 3, 4, RowShape(512, 320, 7, 2), ["dpo"]),
    # Two phases, a sort over the batch, and the KL to the reference in the head.
    "coupled": (SMOLLM2, "v5e:2x2", (1, 4, 1), 3, 4, RowShape(512, 320, 7, 2), ["aot", "tdpo2"]),
    # Experts, windows, soft caps and layers that are not rotated.
    "mixture": (MIXTURE, "v5e:2x2", (1, 2, 2), 2, 4, RowShape(1024, 512, 7, 2), ["dpo", "router_balance"]),
    "llama-3.1-8b": (LLAMA, "v5p:2x2x4", (1, 4, 4), 1, 32, RowShape(2048, 1536, 8, 2), ["dpo"]),
    "llama-3.1-8b-4096": (LLAMA, "v5p:2x2x4", (1, 16, 1), 1, 32, LONG, ["dpo"], {"remat": "dots"}),
    "llama-3.1-8b-4096-xla": (LLAMA, "v5p:2x2x4", (1, 16, 1), 1, 32, LONG, ["dpo"], XLA),
    "llama-3.1-8b-4096-full": (LLAMA, "v5p:2x2x4", (1, 16, 1), 1, 32, LONG, ["dpo"]),
    "llama-3.1-8b-4096-v6e": (LLAMA, "v6e:4x4", (1, 16, 1), 1, 32, LONG, ["dpo"]),
    "llama-3.1-8b-4096-lora": (LLAMA, "v5p:2x2x4", (1, 16, 1), 1, 32, LONG, ["dpo"], {"rank": 16}),
    # Pairs about pictures: SmolVLM-256M cuts each into 4 tiles and one, LLaVA 1.5 takes it in one.
    "smolvlm-256m": (SMOLVLM, "v5e:2x2", (1, 4, 1), 2, 4, RowShape(1024, 256, 2, 3, 10), ["mdpo"]),
    "llava-1.5-7b": (LLAVA, "v5p:2x2x1", (1, 4, 1), 1, 4, RowShape(2048, 512, 2, 3, 4), ["mdpo"]),
    "llava-1.5-7b-lora": (LLAVA, "v5p:2x2x1", (1, 4, 1), 1, 4, RowShape(2048, 512, 2, 3, 4), ["mdpo"], {"rank": 16}),
    "two-slices": (EVEN, "v5e:2x2", (2, 2, 2), 3, 4, RowShape(512, 320, 7, 2), ["dpo"], {"slices": 2}),
    "llama-3.1-8b-131072": (LLAMA, "v5p:4x4x4", (1, 1, 1), 1, 1, CONVERSATION, ["dpo"], SPREAD),
    **{
        f"context-{ways}": (FOUR_LAYERS, slice_, (1, 1, 1), 1, 1, HALF, ["dpo"], FROZEN | {"context": ways})
        for ways, slice_ in ((1, "v5p:1x1x1"), (2, "v5p:2x1x1"), (4, "v5p:2x2x1"), (8, "v5p:2x2x2"))
    },
}


def main(case: str) -> None:
    spec, topology, mesh_shape, micro_batches, rows, shape, names, *options = CASES[case]
    options = options[0] if options else {}
    slices = options.get("slices", 1)
    devices = slice_devices(parse_slice(topology, slices))
    axes = MeshConfig(*mesh_shape, context=options.get("context", 1), slices=slices)
    mesh = make_mesh(axes, devices=devices)
    adapter = adapter_spec(AdapterConfig(rank=options.get("rank")), spec)
    attend = choose_attention(options.get("attention", "auto"), devices[0], spec, jnp.bfloat16, axes.context).attend
    model = build_model(
        spec,
        dtype=jnp.bfloat16,
        remat=options.get("remat", "full"),
        attention_block=options.get("attention_block", 128),
        attend=attend,
        lora=adapter,
    )
    config = OptimConfig()
    schedule = make_schedule(config, 100)
    optimizer = make_optimizer(config, schedule)
    step = make_train_step(
        LossSpec(model, bind([{"name": name} for name in names], OBJECTIVES), 128), optimizer, schedule
    )

    place = lambda x, s, dtype=None: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=s)
    params = param_shapes(model)
    frozen = jax.tree.map(lambda x, s: place(x, s, jnp.bfloat16), params, param_shardings(params, mesh))
    if adapter is None:
        trained, frozen = params, Frozen({}, frozen)
    else:
        trained = {LORA: jax.eval_shape(lambda base: lora.init(jax.random.key(0), base, adapter), params)}
        frozen = Frozen(frozen, {})
    shapes = jax.eval_shape(lambda p: init_state(p, optimizer, 0), trained)
    shardings = state_shardings(shapes, mesh)
    state = jax.tree.map(place, shapes, shardings)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((micro_batches, *x.shape), x.dtype, sharding=batch_sharding(mesh, leading=1)),
        empty_batch(rows, shape, [], processor=_processor(spec)),
    )
    replicated = NamedSharding(mesh, P())
    began = time.time()
    with jax.set_mesh(mesh):
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated))
        in_use = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
        compiled = jitted.lower(state, frozen, batch, in_use).compile()
    memory = compiled.memory_analysis()
    program = Path(tempfile.mkdtemp()) / "program.hlo"
    program.write_text(compiled.as_text())
    leaves = jax.tree.leaves(params)
    print(json.dumps({
        "seconds": round(time.time() - began),
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "parameters": [leaf.shape for leaf in leaves],
        "count": sum(math.prod(leaf.shape) for leaf in leaves),
        "layers": spec.layers,
        "tensor": mesh_shape[2],
        "cycles": cycles(
            program.read_text(), topology.split(":")[0], options.get("chunks", 5), options.get("key_blocks", 5)
        ),
        "program": str(program),
    }))  # fmt: skip


def _processor(spec: ModelSpec) -> SimpleNamespace | None:
    """What is read of a `PictureProcessor`."""
    vision = spec.vision
    if vision is None:
        return None
    return SimpleNamespace(image_size=vision.image_size, window=vision.windows.side if vision.windows else 0)


def cycles(text: str, generation: str, trips: int, key_blocks: int) -> dict[str, float]:
    """Of one run of the program: of attention's loops, of Pallas kernels by the chip's rates, and of all else.

    Args:
        trips: of loops whose count is decided by data, as chunks of loss tokens.
        key_blocks: the same inside attention: blocks of keys that a block of queries sees.
    """
    program, chip = Program.parse(text), CHIPS[generation]
    by_data = lambda line: key_blocks if "layers/attention/" in line.op_name else trips
    kernels = chip.clock * kernel_seconds(*program.kernels(by_data), chip)
    return program.cycles(by_data) | {"kernels": kernels}


def attention(chip: str) -> None:
    """Attention and its gradient for one chip: head sizes, dtypes and options."""
    topology = {"v5e": "v5e:1x1", "v5p": "v5p:1x1x1", "v6e": "v6e:1x1"}[chip]
    device = slice_devices(parse_slice(topology))[0]
    mesh = make_mesh(MeshConfig(1, 1, 1), devices=[device])
    kernels = {}
    for dtype, head_size, kv_heads, length, window, stacked in ATTENTION:
        spec = dataclasses.replace(SMOLLM2, head_dim=head_size)
        choice = choose_attention("auto", device, spec, dtype)
        assert choice.name == "pallas", choice

        def loss(q, k, v, sink, expiry, position, window, attend=choice.attend):
            mask = Mask(expiry, position, window)
            out = attend(q, k, v, mask, scale=0.1, softcap=None if window is None else 50.0, sink_N=sink)
            return out.astype(jnp.float32).sum()

        gradient = jax.grad(loss, argnums=(0, 1, 2, 3))
        stack = (3,) if stacked else ()
        if stacked:
            gradient = jax.vmap(gradient, in_axes=(0, 0, 0, None, None, None, None))
        place = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P()))
        q = place(dtype, *stack, 2, length, 8, head_size)
        k = place(dtype, *stack, 2, length, kv_heads, head_size)
        numbers = place(jnp.int32, 2, length)
        window = None if window is None else place(jnp.int32)
        with jax.set_mesh(mesh):
            program = jax.jit(gradient).lower(q, k, k, place(jnp.float32, 8), numbers, numbers, window).compile()
        name = f"{dtype} {head_size} {kv_heads} {length} {stacked}"
        kernels[name] = program.as_text().count('custom_call_target="tpu_custom_call"')
    print(json.dumps(kernels))


if __name__ == "__main__":
    case = sys.argv[1]
    attention(case.removeprefix("attention-")) if case.startswith("attention-") else main(case)
