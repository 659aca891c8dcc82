"""A plan as text: memory, work, traffic, the predicted time, and what to look at."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxpref.plan.chips import GIB, Slice
from jaxpref.plan.estimate import Estimate, Memory, estimate, memory_of
from jaxpref.sharding import named_axes
from jaxpref.text_tables import whole
from jaxpref.wording import counted

_SHOWN = 8
"""Collectives that the table names."""
_WIDTH = 48
"""Characters of a collective's shapes, at most."""


def show(said: dict[str, Any], target: Slice, console: Console) -> None:
    """Prints a plan.

    Args:
        said: as `compiled.compile_and_read` gives it.
    """
    console.print(
        f"[bold]{target}[/], {counted(said['devices'], 'device')}, mesh "
        f"{named_axes(said['mesh']) or 'of one device'}; rows of {said['row_length']:,} tokens, "
        f"{counted(said['micro_batches'], 'micro-batch')} of {counted(said['micro_rows'], 'row')}; "
        f"{counted(said['groups_all'], 'group')} a step"
    )
    memory = memory_of(said, target.chip)
    console.print(whole(_memory_table(memory)))
    if said["on_host"]:
        console.print(f"in the host's memory, for a device: {_size(said['on_host'])}")
    if "does_not_fit" in said:
        console.print("[bold red]It does not fit.[/]  The compiler says:")
        console.print(said["does_not_fit"], highlight=False, markup=False)
        console.print(whole(_largest_table(said["largest"])))
        return
    time = estimate(said, target.chip)
    console.print(whole(_time_table(said, time, target)))
    if said["collectives"]:
        console.print(whole(_traffic_table(said["collectives"], target)))
    console.print(_prediction(said, time))
    for warning in warnings(said, target):
        console.print(f"[yellow]look at:[/] {warning}")


def _memory_table(memory: Memory) -> Table:
    table = Table(title="HBM of a device", title_justify="left")
    table.add_column("part")
    table.add_column("size", justify="right")
    for name, size in memory.parts.items():
        table.add_row(name, _size(size))
    if memory.total < float("inf"):
        state = "fits" if memory.fits else f"{_size(memory.total - memory.capacity)} too much"
        table.add_row(
            f"all, of {_size(memory.capacity)} ({memory.share:.0%}; {state})",
            _size(memory.total),
            style="bold",
        )
    return table


def _largest_table(largest: list[dict[str, Any]]) -> Table:
    table = Table(title="the largest arrays, of those known beforehand", title_justify="left")
    for name in ("what", "of all devices"):
        table.add_column(name)
    table.add_column("on a device", justify="right")
    for one in largest:
        table.add_row(one["what"], escape(one["shape"]), _size(one["bytes"]))
    return table


def _time_table(said: dict[str, Any], time: Estimate, target: Slice) -> Table:
    table = Table(title="a step on a device", title_justify="left")
    table.add_column("what")
    table.add_column("amount", justify="right")
    table.add_column("seconds at the chip's rate", justify="right")
    chip, sent = target.chip, said["collectives"]
    model = said["model_flops_all"] / said["devices"]
    ici = sum(one["bytes"] for one in sent if not one["dcn"])
    dcn = sum(one["bytes"] for one in sent if one["dcn"])
    table.add_row("model FLOPs", _amount(model), f"{time.model_seconds:.2g}")
    table.add_row("FLOPs of the program", _amount(said["flops"]), f"{time.compute:.2g}")
    table.add_row("HBM traffic", _amount(said["bytes_moved"], "B"), f"{time.hbm:.2g}")
    if time.by_cycles:
        cycles, seconds = said["cycles"], {k: v / chip.clock for k, v in said["cycles"].items()}
        for name, count in cycles.items():
            table.add_row(f"compiler's cycles, {name}", _amount(count), f"{seconds[name]:.2g}")
    if said["kernel_flops"]:
        table.add_row("kernels' own FLOPs", _amount(said["kernel_flops"]), "")
    table.add_row("sent in the slice (ICI)", _amount(ici, "B"), f"{time.ici:.2g}")
    if dcn or target.slices > 1:
        table.add_row("sent between slices (DCN)", _amount(dcn, "B"), f"{time.dcn:.2g}")
    return table


def _traffic_table(sent: list[dict[str, Any]], target: Slice) -> Table:
    table = Table(title="collectives, most bytes first", title_justify="left")
    for name in ("kind", "mesh axis", "over"):
        table.add_column(name)
    for name in ("sent", "times"):
        table.add_column(name, justify="right")
    table.add_column("of")
    for one in sent[:_SHOWN]:
        table.add_row(
            one["kind"],
            "+".join(one["axes"]) or "-",
            "DCN" if one["dcn"] else "ICI",
            _amount(one["bytes"], "B"),
            f"{one['times']:,.0f}",
            _cut(one["shape"]),
        )
    rest = sent[_SHOWN:]
    if rest:
        more = sum(one["bytes"] for one in rest)
        table.add_row(f"{len(rest)} more", "", "", _amount(more, "B"), "", "")
    return table


def _cut(shapes: str) -> str:
    return shapes if len(shapes) <= _WIDTH else f"{shapes[: _WIDTH - 3]}..."


def _prediction(said: dict[str, Any], time: Estimate) -> str:
    fast, slow = time.fastest, time.slowest
    low, high = time.mfu
    tokens = said["tokens_all"] / said["devices"]
    return (
        f"[bold]predicted:[/] {fast:.2g} to {slow:.2g} s a step (traffic all behind computation, "
        f"or none of it), {_rounded(tokens / slow)} to {_rounded(tokens / fast)} tokens/s a "
        f"device, "
        f"MFU {low:.0%} to {high:.0%}; {time.binds} binds.  Compiled in "
        f"{said['compile_seconds']:.0f} s."
    )


def _rounded(x: float) -> str:
    """Two digits, and no more: the rest is not known."""
    return f"{float(f'{x:.2g}'):,.0f}"


def _amount(x: float, unit: str = "") -> str:
    """Three digits with an SI prefix: `1.18 TB`, `23 M`, `0`."""
    prefix, factor = next((p, f) for p, f in _PREFIXES if x >= f or f == 1.0)
    return f"{float(f'{x / factor:.3g}'):g} {prefix}{unit}".rstrip()


_PREFIXES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))


def _size(size: float) -> str:
    """Of memory."""
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.2f} MiB"


def warnings(said: dict[str, Any], target: Slice) -> Iterator[str]:
    """What deserves a look, in words."""
    large = 0.01 * target.chip.hbm
    if "crashed_at" in said:
        yield (
            f"with {said['crashed_at']} rows the compiler crashes, at which a run with "
            f"train.micro_rows=auto ends: set train.micro_rows={said['micro_rows']}"
        )
    for name, size in said["replicated"].items():
        if size > large:
            yield f"{name} lies whole on every device: {_size(size)}"
    for one in said["collectives"]:
        if one["kind"] == "all-gather" and one["times"] <= said["micro_batches"]:
            if one["bytes"] > large:
                yield f"an all-gather outside the layers: {one['shape']} ({one['where'][-60:]})"
    everything = sum(one["bytes"] for one in said["collectives"])
    if said["gathered_activations"] > 0.05 * everything:
        yield (
            "activations are gathered in the layers, where weights alone should be: "
            f"{_amount(said['gathered_activations'], 'B')} of {_amount(everything, 'B')} sent"
        )
    memory = memory_of(said, target.chip)
    if memory.fits and memory.share > 0.9:
        yield f"{memory.share:.0%} of HBM is in use: more than 90 % leaves little for the runtime"
    padding = 1 - said["tokens_all"] / said["run_tokens_all"]
    if padding > 0.15:
        yield f"{padding:.0%} of the tokens that are computed are padding"
    for what in said["rematerialised"]:
        yield f"made whole on every device between two shardings: {what.strip()[:160]}"
    if said["head_dim"] % 128:
        yield (
            f"heads of {said['head_dim']}: the matrix unit is 128 wide, and attention fills "
            f"{said['head_dim'] / (128 * -(-said['head_dim'] // 128)):.0%} of it"
        )
    if said["on_policy"]:
        yield "an on-policy run: answers are drawn before every step, which is not counted here"
    if said["vocabulary_padding"]:
        yield f"{said['vocabulary_padding']} rows of zeros behind the vocabulary, for the mesh"
