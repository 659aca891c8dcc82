"""A model directory and preference data small enough to train on in seconds; used by the tests of whole runs."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tolerance
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from jaxpref.config import Config, MeshConfig
from jaxpref.data.loader import Loader
from jaxpref.models.hf import save_pretrained
from jaxpref.models.source import open_checkpoint
from jaxpref.online.train import train
from jaxpref.runs.build import build
from jaxpref.runs.feed import make_loader, read_data
from jaxpref.runs.metrics import read_jsonl
from jaxpref.settings import make_config, save_config
from jaxpref.sharding import make_mesh
from jaxpref.training.result import Result

RANDOM_LLAMA = Path(__file__).parent / "golden" / "llama_tiny"
LOGP_TOLERANCE = tolerance.decoder(open_checkpoint(RANDOM_LLAMA).spec, score=25.0, value=10.0)
"""1.7e-4 nats: its weights are large (0.4 x normal), so are its scores. Moving every weight by sqrt(width) roundings
in float64 moves log-probs of text of 12 to 60 tokens by 5e-6 (median) to 1.2e-4 (the worst of 7680)."""
OPTIMISED = False
"""Whether the session compiles everything as users do (`--optimised`); set before any test."""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, except the two role names; 127 tokens at most fit the model's vocabulary of 128."""
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    merges = [(word[:i], word[i]) for word in ("user", "assistant") for i in range(1, len(word))]
    tokens = special + ["\n", *map(chr, range(32, 127))] + [a + b for a, b in merges]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<pad>")
    tokenizer.chat_template = CHATML
    return tokenizer


def write_model(directory: Path, *, scale: float = 1.0) -> Path:
    """The random Llama of tests/golden with a tokenizer; `scale` multiplies its weights to make another model."""
    source = open_checkpoint(RANDOM_LLAMA)
    params = source.load_params(dtype=np.float32)
    params["layers"]["mlp"]["down"] = params["layers"]["mlp"]["down"] * np.float32(scale)
    save_pretrained(
        directory,
        source.spec,
        params,
        make_tokenizer(),
        dtype=np.float32,
        generation_config=None,
        model_card="# tiny\n",
    )
    return directory


def rows(count: int, *, first: int = 0) -> list[dict]:
    """Pairs with prompts and answers of varied length; no two rows are equal."""
    return [
        {
            "prompt": [{"role": "user", "content": f"n {i}"}],
            "chosen": [{"role": "assistant", "content": "a" + "b" * (i * 5 % 9)}],
            "rejected": [{"role": "assistant", "content": "no" + "z" * (i * 3 % 7)}],
        }
        for i in range(first, first + count)
    ]


def write_rows(path: Path, lines: list) -> Path:
    """A JSONL file; text is written as it is, so that a line may be malformed."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def settings(out: Path, model_dir: Path, rows_file: Path, held_out: Path | None = None, **changes) -> dict:
    """The raw config of a tiny run; `changes` are sections that are merged over it."""
    raw = {
        "out": str(out),
        "model": {"path": str(model_dir), "compute_dtype": "float32", "attention_block": 16, "logprob_chunk": 16},
        "data": {"train": [str(rows_file)], "eval": [str(held_out)] if held_out else []},
        "optim": {"learning_rate": 2e-3, "warmup_steps": 1},
        "train": {"batch_size": 4, "log_every": 1},
        "log": {"progress": False},
    }
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(raw.get(key), dict) else value
    return raw


def config(*args, **changes) -> Config:
    """As `settings`, checked."""
    return make_config(settings(*args, **changes))


@dataclass(frozen=True)
class Files:
    """What a run reads."""

    model: Path
    train: Path
    held_out: Path


def write_files(directory: Path) -> Files:
    return Files(
        write_model(directory / "model"),
        write_rows(directory / "train.jsonl", rows(18)),
        write_rows(directory / "held_out.jsonl", rows(6, first=100)),
    )


def long_config(out: Path, files: Files, **changes) -> Config:
    """Two epochs of 4 + 4 + 4 + 4 + 2 pairs, so that steps differ in how many micro-batches they fill."""
    train = {"epochs": 2, "save_every": 3, "eval_every": 5, **changes.pop("train", {})}
    return config(out, files.model, files.train, files.held_out, train=train, **changes)


@dataclass
class Run:
    """What was seen of a run."""

    config: Config
    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    """The values given to `on_log`, by step."""
    compiled: list[tuple[int, str]] = field(default_factory=list)
    """(steps seen so far, function) of everything that was compiled."""
    result: Result | None = None

    @property
    def out(self) -> Path:
        return Path(self.config.out)

    @property
    def losses(self) -> list[float]:
        return [values["loss"] for _, values in sorted(self.steps.items())]


class Killed(Exception):
    """Raised by `run` in place of a crash."""


def run(config: Config, *, die_at: int | None = None, **given: Any) -> Run:
    """Trains, with what is `given` to `train` besides, and takes notes.

    With `die_at`, raises out of the loop at that step and returns what was seen.
    """
    seen = Run(config)

    def on_log(step: int, _: int, values: dict[str, float]) -> None:
        seen.steps[step] = values
        if step == die_at:
            raise Killed

    def on_compile(event: str, _: float, **about: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.compiled.append((len(seen.steps), about.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(on_compile)
    try:
        seen.result = train(config, on_log=on_log, **given)
    except Killed:
        assert die_at is not None
    finally:
        jax.monitoring.unregister_event_duration_listener(on_compile)
    return seen


def logged(out: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what is measured by the clock, and the memory of this process."""
    clock = ("tokens_per_second", "model_flops_per_second", "mfu", "host_memory_bytes")
    return [{k: v for k, v in line.items() if k not in clock} for line in read_jsonl(Path(out) / "metrics.jsonl")]


def allow_any_mesh(monkeypatch) -> None:
    def first_devices(mesh: MeshConfig, *, devices: list | None = None):
        count = mesh.data * mesh.fsdp * mesh.context * mesh.tensor
        return make_mesh(mesh, devices=devices or jax.devices()[:count])

    monkeypatch.setattr("jaxpref.runs.build.make_mesh", first_devices)


@cache
def quick_options() -> dict[str, bool]:
    """XLA's option for whole runs, which then compile in two thirds of the time; newer jaxlibs have no such choice."""
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        assert "No such compile option" in str(error)
        return {}
    return options


@contextmanager
def quick_compile(cache: Path) -> Iterator[None]:
    """See the fixture of this name; may be entered again inside itself, and does nothing in an optimised session."""
    from jax._src import compiler
    from jax.experimental.compilation_cache import compilation_cache

    if OPTIMISED or jax.config.jax_compilation_cache_dir == str(cache):
        yield
        return
    settings = {  # name: (for these tests, for the others)
        "jax_disable_most_optimizations": (True, False),
        "jax_enable_compilation_cache": (True, False),
        "jax_compilation_cache_dir": (str(cache), None),
        "jax_persistent_cache_min_compile_time_secs": (0.2, 1.0),
    }
    options_of_all = compiler.get_compile_options

    def options(*given, env_options_overrides=None, **named):
        overrides = quick_options() | (env_options_overrides or {})
        return options_of_all(*given, env_options_overrides=overrides, **named)

    for name, (quick, _) in settings.items():
        jax.config.update(name, quick)
    compilation_cache.reset_cache()  # jax decides only once whether it uses one
    quick_options()
    compiler.get_compile_options = options
    try:
        yield
    finally:
        compiler.get_compile_options = options_of_all
        for name, (_, default) in settings.items():
            jax.config.update(name, default)
        compilation_cache.reset_cache()


def numpy(leaf: Any) -> np.ndarray:
    """A leaf of a state, random keys as their data."""
    return np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def stored_steps(out: Path) -> list[int]:
    """Steps whose checkpoint directory is complete, by name."""
    return sorted(int(path.name) for path in (Path(out) / "checkpoints").iterdir() if path.name.isdigit())


def stored_state(out: Path, step: int) -> dict:
    """The state of a checkpoint as it lies on disk."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        return reader.restore(Path(out).absolute() / "checkpoints" / str(step) / "state")


def array_files(out: Path, step: int) -> list[Path]:
    """Files with the numbers of a checkpoint's state, the largest first."""
    files = (Path(out) / "checkpoints" / str(step) / "state").rglob("d/*")
    return sorted(files, key=lambda file: file.stat().st_size, reverse=True)


def flip_bit(file: Path, bit: int = 2) -> None:
    """Of the byte in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1 << bit
    file.write_bytes(data)


def xla_flags(devices: int) -> str:
    """For another process: so many virtual devices, and the flags given from outside, as an instruction set."""
    options = {} if OPTIMISED else quick_options()
    quicker = [f"--{name}={str(value).lower()}" for name, value in options.items()]
    count = f"--xla_force_host_platform_device_count={devices}"  # the last one counts
    return " ".join([os.environ["XLA_FLAGS"], count, *quicker])


def copy_run(source: Path, to: Path) -> Path:
    shutil.copytree(source, to)
    return to


def write_config(config: Config, path: Path) -> Path:
    save_config(config, path)
    return path


def loader_of(config: Config, which: str = "train") -> Loader:
    pieces = build(config)
    groups, _ = read_data(pieces, which)
    return make_loader(pieces, groups, training=which == "train")


def remove(directory: Path) -> None:
    shutil.rmtree(directory)


def groups_of(config: Config, which: str = "train") -> list:
    return read_data(build(config), which)[0]
