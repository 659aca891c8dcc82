"""Where numbers go (JSONL and TensorBoard always, trackers when asked), and what a step costs."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxpref.config import Config, to_dict
from jaxpref.data.loader import Step, visible_pairs
from jaxpref.data.pack import columns_of, scored_of
from jaxpref.models.spec import ModelSpec
from jaxpref.types import EncodedGroup

# Dense bfloat16 peak of one device, FLOP/s, by jax's device_kind (vendors' data sheets).
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def step_flops(spec: ModelSpec, step: Step, *, reference: bool, frozen: bool = False, policies: int = 1) -> float:
    """Model FLOPs of a step, counted on real tokens only: padding and recomputation (remat) are no model work.

    2 per multiply-add; the backward pass is twice the forward, once where weights are frozen (an adapter's own products
    are not counted).  A shared prompt counts once, it runs once; the vocabulary is multiplied at scored tokens only;
    attention counts visible (query, key) pairs; a mixture's token runs through the experts chosen for it.

    Args:
        policies: trained at once on the same reference.
    """
    weights, pairs = _multiply_adds(spec, step.tokens, step.scored, step.visible)
    trained = 2.0 * weights * (2 if frozen else 3) + 2.0 * pairs * 3
    return policies * trained + (2.0 * (weights + pairs) if reference else 0)


def forward_flops(spec: ModelSpec, groups: Sequence[EncodedGroup], *, share_prefix: bool) -> float:
    """Model FLOPs of one forward pass over groups, counted as `step_flops` counts."""
    tokens = sum(columns_of(group, share_prefix) for group in groups)
    scored, visible = sum(sum(scored_of(g)) for g in groups), sum(visible_pairs(g, share_prefix) for g in groups)
    return 2.0 * sum(_multiply_adds(spec, tokens, scored, visible))


def _multiply_adds(spec: ModelSpec, tokens: int, scored: int, visible: int) -> tuple[int, int]:
    """Of a forward pass: with weights, and of queries with keys and values."""
    attention = 2 * spec.width * spec.head_dim * (spec.heads + spec.kv_heads)
    mlp = (3 if spec.gated else 2) * spec.width * spec.ffn * (spec.experts_per_token or 1)
    weights = spec.layers * (attention + mlp) * tokens + spec.vocab * spec.width * scored
    return weights, spec.layers * 2 * spec.heads * spec.head_dim * visible


def peak_flops() -> float | None:
    """Peak of all devices together; None where it is not known (CPU)."""
    one = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return None if one is None else one * jax.device_count()


class Writers:
    """Writes metrics by step; only process 0 writes.

    Args:
        out: directory of the run.
        resumed_at: on a restart, lines of later steps in metrics.jsonl are dropped: they will be written again.
    """

    def __init__(self, out: Path, config: Config, resumed_at: int = 0):
        self._closers, self._sinks = [], []
        if jax.process_index() != 0:
            return
        self._jsonl(out / "metrics.jsonl", resumed_at)
        self._tensorboard(out / "tensorboard", resumed_at)
        if config.log.wandb:
            import wandb

            run = wandb.init(
                project=config.log.project, name=out.name, config=to_dict(config), resume="allow", id=out.name
            )
            self._sinks.append(lambda step, values: run.log(dict(values), step=step))
            self._closers.append(run.finish)
        if config.log.trackio:
            import trackio

            trackio.init(project=config.log.project, name=out.name, config=to_dict(config), resume="allow")
            self._sinks.append(lambda step, values: trackio.log(dict(values), step=step))
            self._closers.append(trackio.finish)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink(step, values)

    def close(self) -> None:
        for close in self._closers:
            close()

    def _jsonl(self, path: Path, resumed_at: int) -> None:
        kept = []
        if resumed_at and path.is_file():
            whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            kept = [line for line in whole if json.loads(line)["step"] <= resumed_at]  # a crash may cut the last line
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(kept))
        partial.replace(path)
        stream = path.open("a")

        def sink(step: int, values: Mapping[str, float]) -> None:
            stream.write(json.dumps({"step": step, **values}) + "\n")
            stream.flush()

        self._sinks.append(sink)
        self._closers.append(stream.close)

    def _tensorboard(self, directory: Path, resumed_at: int) -> None:
        from tensorboardX import SummaryWriter

        writer = SummaryWriter(str(directory), purge_step=resumed_at + 1 if resumed_at else None)

        def sink(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        self._sinks.append(sink)
        self._closers.append(writer.close)


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


class Window:
    """Means since the last log line; speed without compile and evaluation time."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = self._tokens = self._flops = self._columns = 0
        self.restart()

    def restart(self) -> None:
        self._began, self._paused = time.perf_counter(), 0.0

    def pause(self) -> None:
        self._pause_began = time.perf_counter()

    def resume(self) -> None:
        self._paused += time.perf_counter() - self._pause_began

    def add(self, values: dict[str, float], item: Step, flops: float) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1
        self._tokens += item.tokens
        self._flops += flops
        self._columns += item.columns

    def _seconds(self) -> float:
        return max(time.perf_counter() - self._began - self._paused, 1e-9)

    def tokens_per_second(self) -> float:
        return self._tokens / self._seconds()

    def means(self) -> dict[str, float]:
        """Closes the window."""
        seconds = self._seconds()
        means = {name: value / self._steps for name, value in self._sums.items()}
        means["tokens_per_second"] = self._tokens / seconds
        means["model_flops_per_second"] = self._flops / seconds
        if (peak := peak_flops()) is not None:
            means["mfu"] = self._flops / seconds / peak
        means["padding_fraction"] = 1.0 - self._tokens / self._columns
        self._clear()
        return means
