"""The planned step is the one that training compiles, and the search's bounds are bounds."""

import argparse
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import tiny
import tiny_pictures

from jaxpref.errors import InputError
from jaxpref.models.attention import Mask
from jaxpref.models.decoder import build_model
from jaxpref.models.source import open_checkpoint
from jaxpref.models.tpu_attention import seen_share
from jaxpref.objectives import OBJECTIVES, bind
from jaxpref.plan import search
from jaxpref.plan.array_bytes import bytes_of
from jaxpref.plan.chips import parse_slice
from jaxpref.plan.collectives import Collective
from jaxpref.plan.command import rows_of
from jaxpref.plan.compiled import gathered_activations, step_facts
from jaxpref.plan.flops import program_flops
from jaxpref.plan.largest import largest_arrays
from jaxpref.plan.loops import count_loops
from jaxpref.plan.planned_step import plan_step
from jaxpref.plan.row_sizes import made_rows, rows_like
from jaxpref.runs.build import build, param_shapes
from jaxpref.runs.flops import step_flops
from jaxpref.runs.params import load_params, reference_overlay
from jaxpref.step.policy import split

pytestmark = pytest.mark.usefixtures("any_mesh")


def of_tiny(files, out, **changes):
    return tiny.config(out, files.model, files.train, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"compute_dtype": "bfloat16"}},
        {"adapter": {"rank": 4}},
        {"adapter": {"rank": 4, "quantize": "int8", "quantize_block": None}},
    ],
    ids=["full", "bfloat16", "adapter", "quantised"],
)
def test_shapes_are_those_of_a_run(changes, tiny_files, tmp_path):
    config = of_tiny(tiny_files, tmp_path / "run", mesh={"fsdp": 2}, **changes)
    planned = plan_step([config], rows_like(config, str(tiny_files.train)), jax.devices()[:2])
    pieces = build(config)
    params = load_params(pieces)
    trained, base = split(params)

    def described(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype.name, x.sharding.shard_shape(x.shape)), tree)

    assert described(planned.state.params) == described(trained)
    assert described(planned.frozen.base) == described(base)
    reference = reference_overlay(pieces, params)
    assert described(planned.frozen.reference) == described(reference)


def test_rows_like_a_file_are_planned_as_training_plans_them(finished_run, tiny_files):
    config = finished_run.config
    planned = plan_step([config], rows_like(config, str(tiny_files.train)), jax.devices()[:1])
    loader = tiny.loader_of(config)
    assert dataclasses.asdict(planned.loader.plan) == dataclasses.asdict(loader.plan)


@pytest.mark.parametrize("name", ["dpo", "kto", "modpo", "sft", "odpo", "bradley_terry"])
def test_rows_are_made_for_every_kind_of_objective(name, tiny_files, tmp_path):
    settings = {"name": name}
    if name == "modpo":
        settings |= {"w": [0.5, 0.5], "columns": {"other_rewards": ["brief"]}}
    config = of_tiny(tiny_files, tmp_path / "run", objective=[settings])
    rows = made_rows(bind(config.objective, OBJECTIVES), groups=8, prompt=10, completion=6)
    planned = plan_step([config], rows, jax.devices()[:1])
    with jax.set_mesh(planned.pieces.mesh):
        planned.jitted.trace(*planned.arguments)  # the objective takes what was made


def test_a_bound_of_memory_is_one(tiny_files, tmp_path):
    """What a search rules out could not have fitted."""
    config = of_tiny(tiny_files, tmp_path / "run")
    target = parse_slice("v5e:2x2")
    spec = open_checkpoint(config.model.path).spec
    rows = made_rows(bind(config.objective, OBJECTIVES), groups=8, prompt=10, completion=6)
    seen = set()
    for choice in search.choices(config, spec, rows, target):
        if (choice.fsdp, choice.tensor, choice.reference) in seen:
            continue
        seen.add((choice.fsdp, choice.tensor, choice.reference))
        planned = plan_step([choice.applied(config)], rows, jax.devices()[:4])
        held = sum(step_facts(planned)["hbm"].values())
        # The bound takes the reference in bfloat16, and norm scales are not counted.
        assert 0.75 * held < search.held_bytes(config, spec, choice) < held
    assert len(seen) > 4


@pytest.mark.parametrize(
    "shape, bounds",
    [("v5e:1x1", [1, 1, 1]), ("v5p:2x1x1", [2, 1, 1]), ("v5e:2x4", [2, 2, 1]), ("v5p:4x4x4", [2, 2, 1])],
)
def test_a_slice_smaller_than_a_host_has_smaller_hosts(shape, bounds):
    assert parse_slice(shape).host_bounds == bounds


def test_slices_are_named_by_generation_and_shape():
    assert parse_slice("v5p:2x2x4").devices == 16
    assert parse_slice("v7x:2x2x1", slices=2).devices == 16
    assert parse_slice("v3:4x4").devices == 32
    with pytest.raises(InputError, match="one slice of v3"):
        parse_slice("v3:4x4", slices=2)
    for wrong in ("v5p", "v5p:16", "v9:2x2", "v5e:2by4"):
        with pytest.raises(InputError, match="--topology GENERATION:SHAPE"):
            parse_slice(wrong)
    for wrong, said in {"v5p:4x4": "3 sides", "v6e:2x2x2": "2 sides", "v5e:32x32": "256 chips at most"}.items():
        with pytest.raises(InputError, match=said):
            parse_slice(wrong)


def test_a_search_counts_attention_in_the_layers_that_have_it():
    """Qwen3.5, half of whose layers here are Gated DeltaNet."""
    spec = plain.SPECS["qwen3_5"]
    shapes = jax.tree.leaves(param_shapes(build_model(spec)))
    assert search._parameters(spec) == sum(math.prod(leaf.shape) for leaf in shapes)
    more_heads = dataclasses.replace(spec, heads=2 * spec.heads, kv_heads=2 * spec.kv_heads)
    of_attention = search._parameters(more_heads) - search._parameters(spec)
    heads = (2 + spec.attention_gate) * spec.heads + 2 * spec.kv_heads
    assert of_attention == pytest.approx(spec.mixers.count("attention") * spec.width * spec.head_dim * heads, rel=0.01)


def test_a_search_caches_only_a_reference_that_is_a_copy(tiny_files, tmp_path):
    def modes(**changes):
        return search.reference_modes(of_tiny(tiny_files, tmp_path / "run", **changes))

    assert modes() == ["copy", "cache"]
    assert modes(reference={"mode": "cache"}) == ["copy", "cache"]
    assert modes(objective=[{"name": "orpo"}]) == ["copy"]
    assert modes(adapter={"rank": 4}) == ["copy"]
    assert modes(reference={"sync_every": 5}) == ["copy"]


def test_a_cached_reference_is_no_gain_where_each_row_is_seen_once(tiny_files, tmp_path):
    """Its pass over the data comes before the first step, and its time is counted."""
    config = of_tiny(tiny_files, tmp_path / "run")
    spec = open_checkpoint(config.model.path).spec
    rows = made_rows(bind(config.objective, OBJECTIVES), groups=8, prompt=10, completion=6)

    def seconds(mode, epochs):
        choice = search.Choice(4, 1, 1, "none", 4, 64, mode)
        planned = plan_step([choice.applied(config)], rows, jax.devices()[:4])
        with jax.set_mesh(planned.pieces.mesh):
            jaxpr = planned.jitted.trace(*planned.arguments).jaxpr
        said = step_facts(planned) | {"flops": program_flops(jaxpr, count_loops(planned).at) / 4}
        said |= dict.fromkeys(("bytes_moved", "kernel_flops", "kernel_bytes", "arguments", "temporaries", "saved"), 0)
        said |= {"cycles": {}, "collectives": []}
        trained = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs))
        before = search.flops_before(trained, spec, rows, choice)
        return search.Found(choice, said, before).seconds(parse_slice("v5e:2x2"))

    copied = seconds("copy", 1.0)
    assert seconds("cache", 1.0) > 0.95 * copied and seconds("cache", 8.0) < 0.85 * copied


def test_numbers_of_four_bits_share_a_byte():
    assert [bytes_of(jnp.dtype(name), 10) for name in ("int4", "int8", "bfloat16", "float32")] == [5, 10, 20, 40]
    assert bytes_of(jax.random.key(0).dtype, 1) == 4


def test_the_largest_arrays_are_told_before_a_program_is(tiny_files, tmp_path):
    config = of_tiny(tiny_files, tmp_path / "run", mesh={"fsdp": 2}, model={"remat": "none"})
    planned = plan_step([config], rows_like(config, str(tiny_files.train)), jax.devices()[:2])
    with jax.set_mesh(planned.pieces.mesh):
        jaxpr = planned.jitted.trace(*planned.arguments).jaxpr
    largest = largest_arrays(planned, jaxpr, count=1000)
    sizes = [one["bytes"] for one in largest]
    assert sizes == sorted(sizes, reverse=True)
    spec, batch = planned.pieces.source.spec, planned.item.batch.token_RL.shape[1:]
    told = {(one["what"], one["shape"]): one["bytes"] for one in largest}
    up = spec.layers * spec.width * spec.ffn * 4 // 2
    assert told["parameters: layers/mlp/up", f"float32{[spec.layers, spec.width, spec.ffn]}"] == up
    assert told["gradient", f"float32{[spec.layers, spec.width, spec.ffn]}"] == up
    kept = [spec.layers, *batch, spec.ffn]
    assert told["kept for the backward pass", f"float32{kept}"] == math.prod(kept) * 4 // 2


def test_a_search_passes_by_what_training_would_refuse(tiny_files, tmp_path):
    config = of_tiny(tiny_files, tmp_path / "run")
    spec = open_checkpoint(config.model.path).spec
    rows = made_rows(bind(config.objective, OBJECTIVES), groups=8, prompt=10, completion=6)
    asked = []

    def compiled(one):
        asked.append(one)
        if len(asked) % 2:
            raise InputError("a mesh", "another", "none")
        return {"does_not_fit": "too large", "largest": []}

    found = search.search(config, spec, rows, parse_slice("v5e:2x2"), compiled, tries=3)
    assert len(found) == 3 and len(asked) == 6


@pytest.mark.parametrize(
    "given, said",
    [
        ({"prompt": 0}, "--prompt of 1 or more"),
        ({"prompt": 40, "answer": 30}, "40 \\+ 30 = 70"),
        ({"rows_like": "rows.jsonl", "groups": 3}, "leave out --groups"),
    ],
    ids=str,
)
def test_sizes_that_no_row_has_are_refused(given, said, tiny_files, tmp_path):
    config = of_tiny(tiny_files, tmp_path / "run", data={"max_length": 64})
    options = argparse.Namespace(
        **{"rows_like": None, "groups": None, "prompt": None, "answer": None, "tiles": None} | given
    )
    with pytest.raises(InputError, match=said):
        rows_of(options, config)


def test_attentions_kernels_are_counted_on_the_rows_of_the_plan(tiny_files, tmp_path):
    config = of_tiny(tiny_files, tmp_path / "run", data={"row_length": 1024})
    parts, shares = bind(config.objective, OBJECTIVES), []
    for prompt in (200, 20):
        rows = made_rows(parts, groups=32, prompt=prompt, completion=20)
        planned = plan_step([config], rows, jax.devices()[:1])
        shares.append(count_loops(planned).kernels)
        masks = [Mask(expiry) for expiry in planned.item.batch.expiry_RL]
        assert shares[-1] == pytest.approx(np.mean([seen_share(mask) for mask in masks]))
    assert 0 < shares[1] < shares[0] < 1


def test_gathered_activations_are_told_from_gathered_weights(tiny_files, tmp_path):
    config = of_tiny(tiny_files, tmp_path / "run", adapter={"rank": 4})
    planned = plan_step([config], rows_like(config, str(tiny_files.train)), jax.devices()[:1])
    spec = planned.pieces.source.spec

    def gathered(*sizes, axes=("fsdp",), where="while/body/layers/mlp/RLD,DF->RLF"):
        one = Collective("all-gather", axes, 2, 10.0, 1, "", (sizes,), False, where)
        return gathered_activations([one], planned)

    assert gathered(1, spec.width, spec.ffn) == gathered(spec.ffn, spec.width) == gathered(4, spec.ffn) == 0
    assert gathered(8, 512, spec.width) == 10
    assert gathered(8, 512, spec.kv_heads, spec.head_dim, axes=("context",)) == 0
    assert gathered(8, 512, spec.width, where="lm_head/while/body") == 0


def test_an_on_policy_run_is_planned_for_as_many_answers_as_it_draws(tiny_files, tmp_path):
    online = {"rewards": {"long": "rule:words"}, "samples": 3}
    config = of_tiny(tiny_files, tmp_path / "run", objective=[{"name": "rloo"}], online=online)
    options = argparse.Namespace(rows_like=None, groups=8, prompt=10, answer=6, tiles=None)
    rows = rows_of(options, config)
    assert rows.kind == "ranked" and {len(group.completion_ids) for group in rows.groups} == {3}
    assert step_facts(plan_step([config], rows, jax.devices()[:1]))["on_policy"]


@pytest.mark.parametrize("kind", ["idefics3", "qwen2_5_vl"])
def test_pictures_are_planned_as_training_packs_them(kind, tmp_path):
    """Arrays and FLOPs of rows like a file, whose pictures nobody decodes."""
    model = tiny_pictures.write_model(tmp_path / "model", kind=kind)
    rows = tiny_pictures.write_rows(tmp_path / "rows.jsonl", [*map(tiny_pictures.row, range(4))])
    config = tiny_pictures.config(tmp_path / "run", model, rows, objective=[{"name": "mdpo"}])
    planned = plan_step([config], rows_like(config, str(rows)), jax.devices()[:1])
    loader = tiny.loader_of(config)
    assert dataclasses.asdict(planned.loader.plan) == dataclasses.asdict(loader.plan)
    trained = max(loader.iterate(), key=lambda step: step.micro_batches)
    shapes = lambda batch: jax.tree.map(lambda x: (x.shape, x.dtype.name), batch)
    assert shapes(planned.item.batch) == shapes(trained.batch) and planned.item.batch.pictures is not None
    text = dataclasses.replace(planned, item=dataclasses.replace(planned.item, tiles=0))
    assert planned.model_flops == step_flops(planned.pieces.source.spec, trained, reference=True) > text.model_flops


def test_sizes_of_pictures_are_asked_for(tmp_path):
    model = tiny_pictures.write_model(tmp_path / "model")
    rows = tiny_pictures.write_rows(tmp_path / "rows.jsonl", [tiny_pictures.row(0)])
    config = tiny_pictures.config(tmp_path / "run", model, rows)
    options = lambda tiles: argparse.Namespace(rows_like=None, groups=None, prompt=20, answer=4, tiles=tiles)
    with pytest.raises(InputError, match="16 x 16 pixels and takes 4 of the tokens"):
        rows_of(options(None), config)
    with pytest.raises(InputError, match="24 tokens or more, for 6 tiles of 4"):
        rows_of(options(6), config)
    (group, *_) = rows_of(options(5), config).groups
    assert [picture.tiles for picture in group.pictures] == [5] and len(group.prompt_ids) == 20
    assert rows_of(options(0), config).groups[0].pictures == ()
    planned = plan_step([config], rows_of(options(5), config), jax.devices()[:1])
    assert planned.item.tiles == 5 * planned.item.groups
