"""`jaxpref plan`: what a run costs on a TPU slice, from the real compiler."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from jaxpref.config import Config
from jaxpref.errors import InputError
from jaxpref.files import check_destination, whole_file
from jaxpref.models.source import open_checkpoint
from jaxpref.models.spec import VisionSpec
from jaxpref.objectives import OBJECTIVES, TRANSFORMS, bind
from jaxpref.online.rollouts import kind_of_rollouts
from jaxpref.pareto.run_configs import point_run
from jaxpref.pareto.settings import load_front_config
from jaxpref.plan.child import CACHE, compile_in_child
from jaxpref.plan.chips import CHIPS, Slice, parse_slice
from jaxpref.plan.estimate import estimate, memory_of
from jaxpref.plan.fitting import Compiled, fitting_rows
from jaxpref.plan.report import show, warnings
from jaxpref.plan.row_sizes import RowSizes, made_rows, rows_like
from jaxpref.plan.search import differences, search
from jaxpref.progress import progress
from jaxpref.settings import load_config, merged_settings, save_config

EPILOG = """\
It compiles the very step that `jaxpref train` would run, for devices that need
not exist.  Shapes are enough: of the model a config.json, and no data.
docs/plan.md says how to read the result.

  jaxpref plan CONFIG.yaml --topology v5p:2x2x4 mesh.fsdp=16
  jaxpref plan CONFIG.yaml --topology v5p:2x2x4 --search --write planned.yaml
  jaxpref plan CONFIG.yaml --topology v6e:4x4 --prompt 1024 --answer 512 \\
      --json plan.json
"""


_SIZES = {
    "groups": ("groups to plan for (default: two batches)", None),
    "prompt": ("tokens of a prompt (default 512)", 512),
    "answer": ("tokens of a completion (default 256)", 256),
    "tiles": ("of the picture in a prompt, whose tokens are among the prompt's (default: none)", 0),
}
"""Of the rows that are made: option -> its help and its default."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxpref plan`."""
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as mesh.fsdp=16")
    parser.add_argument(
        "--topology",
        required=True,
        metavar="GENERATION:SHAPE",
        help=f"the slice, as v5p:4x4x4; generations: {', '.join(CHIPS)}",
    )
    parser.add_argument(
        "--slices", type=int, metavar="N", help="how many of them, as mesh.slices (its default)"
    )
    parser.add_argument(
        "--rows-like",
        metavar="FILE",
        help="data whose rows give the lengths; in place of the next four",
    )
    for name, (what, _) in _SIZES.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=what)
    parser.add_argument(
        "--search",
        action="store_true",
        help="try meshes, remat, micro_rows, row_length and reference.mode, and show the best",
    )
    parser.add_argument(
        "--tries",
        type=int,
        default=8,
        metavar="N",
        help="programs that a search compiles (default 8)",
    )
    parser.add_argument("--write", metavar="FILE", help="save the config of the best plan there")
    parser.add_argument("--json", metavar="FILE", help="write all of it there too")
    parser.add_argument(
        "--cache",
        default=CACHE,
        metavar="DIR",
        help="of earlier compilations (default jaxpref/plans among the user's caches)",
    )


def run(options: argparse.Namespace, console: Console) -> None:
    """`jaxpref plan CONFIG --topology SLICE`."""
    configs: Sequence[Config] = _configs(options)
    target = parse_slice(options.topology, configs[0].mesh.slices)
    if options.write:
        check_destination(options.write, "a new file for the config", sources=[options.config])
    rows = rows_of(options, configs[0])

    def compiled(tried: Sequence[Config]) -> dict[str, Any]:
        return compile_in_child(tried, rows, target, options.cache)

    if options.search:
        configs, said = _searched(configs, rows, target, compiled, options.tries, console)
    else:
        configs, said = _planned(configs, target, compiled, console)
    show(said, target, console)
    if options.write and "does_not_fit" not in said:
        with whole_file(options.write) as partial:
            save_config(configs[0], partial)
        console.print(f"written: {options.write}")
    if options.json:
        with whole_file(options.json) as partial:
            partial.write_text(json.dumps(as_json(said, target), indent=1) + "\n")
        console.print(f"written: {options.json}")
    if "does_not_fit" in said:
        raise InputError(
            f"a step that fits {target}",
            "one that does not (above)",
            "more chips, mesh.fsdp over more of them, model.remat=full, train.micro_rows lower, "
            "reference.mode=cache, or an adapter (adapter.rank)",
        )


def _configs(options: argparse.Namespace) -> list[Config]:
    """The run of a config; of a front's the MODPO runs that are trained in one step.

    Of several such stacks, the largest.
    """
    slices = [] if options.slices is None else [f"mesh.slices={options.slices}"]
    overrides = [*options.overrides, *slices]
    if "pareto" not in merged_settings(options.config, overrides):
        return [load_config(options.config, overrides)]
    if options.search:
        raise InputError(
            "the config of one run, for --search", f"{options.config}: a front", "leave it out"
        )
    front = load_front_config(options.config, overrides)
    if not front.pareto.together:
        return [point_run(front, front.points[0], ["none"], [])]
    bases = [front.base(point) for point in front.points]
    most = max(bases, key=bases.count)
    return [
        point_run(front, point, ["none"], []) for point in front.points if front.base(point) == most
    ]


def _planned(
    configs: Sequence[Config], target: Slice, compiled: Compiled, console: Console
) -> tuple[Sequence[Config], dict[str, Any]]:
    """The configs, with `micro_rows: auto` decided, and their plan."""
    with progress(console) as update:

        def shown(tried: Sequence[Config]) -> dict[str, Any]:
            asked = tried[0].train.micro_rows
            of_rows = "" if asked is None else f", micro_rows {asked}"
            text = f"for {target}{of_rows}; billions of parameters take minutes"
            update("compiling", 0, None, text)
            return compiled(tried)

        return fitting_rows(configs, target.chip, shown)


def _searched(
    configs: Sequence[Config],
    rows: RowSizes,
    target: Slice,
    compiled: Compiled,
    tries: int,
    console: Console,
) -> tuple[Sequence[Config], dict[str, Any]]:
    """The best config and its plan, with a line for every program that was compiled."""
    (config,) = configs
    spec = open_checkpoint(config.model.path, pictures=config.model.pictures).spec
    with progress(console) as update:
        found = search(
            config,
            spec,
            rows,
            target,
            lambda one: compiled([one]),
            tries=tries,
            on_try=lambda number, of, what: update("compiling", number, of, what),
        )
    for one in found:
        seconds = one.seconds(target)
        result = f"{seconds:.2g} s a step" if math.isfinite(seconds) else "does not fit"
        console.print(f"{one.choice}: {result}")
    if not found:
        raise InputError("a choice that training would accept", "none", "set --tries higher")
    best, *others = found
    if others:
        console.print(f"the best: {'; '.join(differences(best, others[0], target))}")
    return [best.choice.applied(config)], best.said


def as_json(said: dict[str, Any], target: Slice) -> dict[str, Any]:
    """A plan for other programs: what the compiler said, and what follows from it."""
    out = {"topology": str(target), **said, "memory": vars(memory_of(said, target.chip))}
    if "does_not_fit" not in said:
        time = estimate(said, target.chip)
        out["seconds"] = vars(time) | {"fastest": time.fastest, "slowest": time.slowest}
        out["mfu"], out["binds"] = time.mfu, time.binds
        out["warnings"] = list(warnings(said, target))
    return out


def rows_of(options: argparse.Namespace, config: Config) -> RowSizes:
    """What the options say of the rows to plan for."""
    given = {name: getattr(options, name) for name in _SIZES}
    if options.rows_like:
        if any(given.values()):
            raise InputError(
                "--rows-like, or sizes of rows",
                "both",
                f"leave out {' and '.join(f'--{name}' for name, n in given.items() if n)}",
            )
        return rows_like(config, options.rows_like)
    sizes = {name: value or _SIZES[name][1] for name, value in given.items()}
    _check_sizes(given, sizes, config.data.max_length)
    vision = open_checkpoint(config.model.path, pictures=config.model.pictures).spec.vision
    _check_tiles(vision, given["tiles"], sizes["prompt"])
    parts = bind(config.objective, OBJECTIVES, TRANSFORMS)
    kind, completions = None, None
    if config.online.rewards:
        completions = config.online.samples
        kind = kind_of_rollouts(parts, completions)
    return made_rows(
        parts,
        groups=sizes["groups"] or 2 * config.train.batch_size,
        prompt=sizes["prompt"],
        completion=sizes["answer"],
        completions=completions,
        kind=kind,
        others=len(config.data.other_rewards),
        vision=vision,
        tiles=sizes["tiles"],
    )


def _check_tiles(vision: VisionSpec | None, tiles: int | None, prompt: int) -> None:
    """Errors: InputError for tiles that are not said, are not seen, or have no room."""
    if vision is None:
        if tiles:
            raise InputError(
                "--tiles with a model that sees pictures",
                f"--tiles {tiles} with a model of text",
                "leave it out, or set model.pictures=true",
            )
        return
    each, side = vision.tile_embeddings, vision.image_size
    if tiles is None:
        raise InputError(
            "the size of pictures, for a model that sees them",
            "neither --rows-like nor --tiles",
            f"give your data with --rows-like, or --tiles N: a tile has {side} x {side} pixels and "
            f"takes {each} of the tokens in --prompt; 0: rows of text",
        )
    if tiles * each > prompt:
        raise InputError(
            f"--prompt of {tiles * each} tokens or more, for {tiles} tiles of {each}",
            str(prompt),
            "count the picture's tokens in --prompt",
        )


def _check_sizes(given: Mapping[str, Any], sizes: Mapping[str, Any], longest: int | None) -> None:
    """Refuses sizes that no row of training has."""
    for name, value in given.items():
        least = 0 if name == "tiles" else 1
        if value is not None and value < least:
            raise InputError(
                f"--{name} of {least} or more", str(value), "give a count of tokens or rows"
            )
    tokens = sizes["prompt"] + sizes["answer"]
    if longest is not None and tokens > longest:
        raise InputError(
            f"--prompt and --answer of {longest} tokens together at most (data.max_length)",
            f"{sizes['prompt']} + {sizes['answer']} = {tokens}",
            "give both as they are in your data, or data with --rows-like",
        )
