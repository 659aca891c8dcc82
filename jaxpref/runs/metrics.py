"""Where the numbers of a run go: JSONL and TensorBoard always, trackers when asked."""

import contextvars
import json
import resource
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpref.config import Config
from jaxpref.data.loader import Step
from jaxpref.errors import optional_package
from jaxpref.files import GrowingFile, upload_file, whole_file
from jaxpref.runs.flops import peak_flops
from jaxpref.settings import to_dict
from jaxpref.storage.paths import as_path, is_bucket, read_at_once

TRACKER_ID_FILE = "tracker_id.txt"
SAMPLES_FILE = "samples.jsonl"
_FLUSH_SECONDS = 30.0
"""Between two times that TensorBoard's file is on disk for sure, which takes a while."""


class Sample(NamedTuple):
    """An answer of the policy while it is trained."""

    prompt: str
    """As its tokens read."""
    answer: str


class Writers:
    """Writes metrics and samples by step; only process 0 writes.

    Args:
        out: directory of the run.
        resumed_at: on a restart, lines of later steps in metrics.jsonl are dropped: they will be
            written again.
    """

    def __init__(self, out: Path, config: Config, resumed_at: int = 0):
        self._opened, self._sinks = ExitStack(), []
        self._sample_sinks: list[Callable[[int, Sequence[Sample]], None]] = []
        if jax.process_index() != 0:
            return
        self._sinks.append(self._jsonl(out / "metrics.jsonl", resumed_at))
        self._tensorboard(out / "tensorboard", resumed_at)
        if config.train.samples:
            add_line = self._jsonl(out / SAMPLES_FILE, resumed_at)
            self._sample_sinks.append(partial(_write_lines, add_line))
        if config.log.wandb:
            run = _wandb_run(out, config)
            self._tracker(run)
            self._sample_sinks.append(partial(_write_table, run))
        if config.log.trackio:
            self._tracker(_trackio_run(out, config))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink(step, values)

    def write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        for sink in self._sample_sinks:
            sink(step, samples)

    def close(self) -> None:
        self._opened.close()

    def _tracker(self, run: Any) -> None:
        self._sinks.append(lambda step, values: run.log(dict(values), step=step))
        self._opened.callback(run.finish)

    def _jsonl(self, path: Path, resumed_at: int) -> Callable[[int, Mapping[str, Any]], None]:
        """What adds a line to a file, from which later ones than `resumed_at` are taken out."""
        kept = []
        if resumed_at and path.is_file():
            lines = path.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # a crash may cut the last one
            kept = [line for line in whole if json.loads(line)["step"] <= resumed_at]
        file = GrowingFile(path, "".join(kept))

        def add_line(step: int, values: Mapping[str, Any]) -> None:
            file.write(json.dumps({"step": step, **values}, ensure_ascii=False) + "\n")

        self._opened.callback(file.close)
        return add_line

    def _tensorboard(self, directory: Path, resumed_at: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar, text

        # Its `SummaryWriter` writes in a thread, which a full disk ends; training would then wait
        # for it for ever.
        local = directory
        if is_bucket(directory):  # written here, and uploaded whole
            scratch = self._opened.enter_context(tempfile.TemporaryDirectory())
            local = Path(scratch)
        local.mkdir(parents=True, exist_ok=True)
        events = EventsWriter(str(local / "events"))

        def save() -> None:
            events.flush()
            for file in () if local == directory else local.iterdir():
                upload_file(file, directory / file.name)

        if resumed_at:
            later = SessionLog(status=SessionLog.START)
            events.write_event(Event(wall_time=time.time(), step=resumed_at + 1, session_log=later))
        flushed = 0.0

        def sink(step: int, values: Mapping[str, float]) -> None:
            nonlocal flushed
            for name, value in values.items():
                summary = scalar(name, value)
                events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            if time.monotonic() > flushed + _FLUSH_SECONDS:
                save()
                flushed = time.monotonic()

        def sample_sink(step: int, samples: Sequence[Sample]) -> None:
            for number, sample in enumerate(samples):
                shown = f"{_as_code(sample.prompt)}\n\n{_as_code(sample.answer)}"
                summary = text(f"samples/{number}", shown)
                events.write_event(Event(wall_time=time.time(), step=step, summary=summary))

        self._sinks.append(sink)
        self._sample_sinks.append(sample_sink)
        self._opened.callback(events.close)
        self._opened.callback(save)


def _write_lines(
    add_line: Callable[[int, Mapping[str, Any]], None], step: int, samples: Sequence[Sample]
) -> None:
    for sample in samples:
        add_line(step, sample._asdict())


def _write_table(run: Any, step: int, samples: Sequence[Sample]) -> None:
    """As a table of Weights & Biases."""
    rows = [[step, *sample] for sample in samples]
    table = _tracker_package("wandb").Table(columns=["step", *Sample._fields], data=rows)
    run.log({"samples": table}, step=step)


def _as_code(text: str) -> str:
    """Markdown that shows a text as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def check_trackers(config: Config) -> None:
    """Errors: InputError where the package of a tracker is missing that the config asks for."""
    for name in ("wandb", "trackio"):
        if getattr(config.log, name):
            _tracker_package(name)


def _tracker_package(name: str) -> Any:
    return optional_package(name, f"log.{name}", name)


def _wandb_run(out: Path, config: Config) -> Any:
    return _tracker_package("wandb").init(
        project=config.log.project,
        entity=config.log.entity,
        name=config.log.name or out.name,
        group=config.log.group,
        tags=config.log.tags,
        config=to_dict(config),
        id=tracker_id(out),
        resume="allow",
        reinit="create_new",  # beside the runs of other points that are trained in this process
    )


def _trackio_run(out: Path, config: Config) -> Any:
    # trackio knows a run by its name, and a new one ends the last one of its context.
    return contextvars.Context().run(
        _tracker_package("trackio").init,
        project=config.log.project,
        name=f"{config.log.name or out.name}-{tracker_id(out)[:8]}",
        group=config.log.group,
        config=to_dict(config),
        resume="allow",
    )


def tracker_id(out: Path) -> str:
    """The name by which trackers know the run in this directory, whatever the directory is called.

    It is made once and kept there, so that a run that is continued goes on under it.
    """
    file = out / TRACKER_ID_FILE
    if not file.is_file():
        with whole_file(file) as partial:
            partial.write_text(uuid.uuid4().hex + "\n")
    return file.read_text().strip()


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in read_at_once(as_path(path)).splitlines()]


def read_history(run: str | Path) -> list[dict[str, Any]]:
    """The same of a run's directory, what was written of a step by training and evaluation as one.

    Empty before anything was written.
    """
    file = as_path(run) / "metrics.jsonl"
    by_step: dict[int, dict[str, Any]] = {}
    for line in read_jsonl(file) if file.is_file() else []:
        by_step.setdefault(line["step"], {}).update(line)
    return [by_step[step] for step in sorted(by_step)]


@dataclass
class Window:
    """Means since the last log line; speed without compile and evaluation time."""

    sums: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    tokens: int = 0
    run_tokens: int = 0
    flops: float = 0.0
    elapsed: float = 0.0
    """Seconds, up to the last start of the clock."""
    _began: float | None = field(default=None, init=False)
    """When the clock was started; None: it stands still, until `resume`."""

    def stored(self) -> dict[str, Any]:
        """As JSON, from which `Window(**stored)` goes on."""
        return {
            "sums": {name: np.asarray(value).tolist() for name, value in self.sums.items()},
            "steps": self.steps,
            "tokens": self.tokens,
            "run_tokens": self.run_tokens,
            "flops": self.flops,
            "elapsed": self._seconds(),
        }

    def pause(self) -> None:
        """Stops the clock."""
        self.elapsed, self._began = self._seconds(), None

    def resume(self) -> None:
        """Starts the clock, or lets it run on."""
        self._began = time.perf_counter()

    def add(self, values: Mapping[str, Any], item: Step, flops: float) -> None:
        for name, value in values.items():
            self.sums[name] = np.asarray(self.sums.get(name, 0.0)) + value
        self.steps += 1
        self.tokens += item.tokens
        self.flops += flops
        self.run_tokens += item.run_tokens

    def _seconds(self) -> float:
        running = 0.0 if self._began is None else time.perf_counter() - self._began
        return self.elapsed + running

    def tokens_per_second(self) -> float:
        return self.tokens / max(self._seconds(), 1e-9)

    def means(self) -> dict[str, Any]:
        """Means of the steps, speed and padding; a new window is to follow."""
        seconds = max(self._seconds(), 1e-9)
        means = {name: value / self.steps for name, value in self.sums.items()}
        means["tokens_per_second"] = self.tokens / seconds
        means["model_flops_per_second"] = self.flops / seconds
        peak = peak_flops()
        if peak is not None:
            means["mfu"] = self.flops / seconds / peak
        memory = _peak_memory()
        if memory is not None:
            means["peak_memory_bytes"] = float(memory)
        means["host_memory_bytes"] = float(_peak_host_memory())
        means["padding_fraction"] = 1.0 - self.tokens / self.run_tokens
        return means


def _peak_host_memory() -> int:
    """The most bytes that this process has had in the host's memory at once."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _peak_memory() -> int | None:
    """The most bytes that a device of this process has held at once; None where none are counted.

    On CPUs they are not.
    """
    counted = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in counted if "peak_bytes_in_use" in stats]
    return max(peaks, default=None)
