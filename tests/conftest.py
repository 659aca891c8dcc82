"""The harness: 8 virtual CPU devices, rank promotion raises, warnings are errors (pyproject.toml)."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # but for what `quick_compile` keeps: no test finds another's

from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import margins  # noqa: E402
import pytest  # noqa: E402
import tiny  # noqa: E402

from jaxpref import cli

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption("--margins", metavar="FILE", help="write how much of its tolerance every comparison used")
    parser.addoption("--optimised", action="store_true", help="compile everything as users do, `quick_compile` too")


def pytest_configure(config):
    tiny.OPTIMISED = config.getoption("optimised")
    if file := config.getoption("margins"):
        config.pluginmanager.register(margins.Recorder(Path(file).absolute()))


@pytest.fixture(scope="session", autouse=True)
def float32_on_every_processor():
    """`model.compute_dtype: auto` is float32, whatever processor the tests run on."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("jaxpref.runs.compute_dtype._instructions", lambda: set())
        yield


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Optional folder with larger reference material beside the project; tests that want it skip without it."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip(f"no reference material at {path}")
    return path


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory) -> Path:
    """Folder in which `quick_compile` keeps compiled programs for the length of the session, of all its workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    (folder / "compiled").mkdir(exist_ok=True)
    return folder / "compiled"


@pytest.fixture(scope="module")
def quick_compile(compile_cache):
    """Where compiling is most of a test: XLA optimises little, and programs compiled before are taken from disk.

    Not with `--optimised`; so `make test-isa` runs the numeric tests.
    """
    with tiny.quick_compile(compile_cache):
        yield


@pytest.fixture
def call(capsys, monkeypatch):
    """Runs a command and returns (exit code, stdout, stderr); the terminal is wide, so that lines stay whole."""
    monkeypatch.setattr(cli.console, "width", 400)

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def any_mesh(monkeypatch):
    """A mesh of n devices takes the first n of the 8 virtual ones (a run takes all devices there are)."""
    tiny.allow_any_mesh(monkeypatch)


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory) -> tiny.Files:
    """A model with a tokenizer, 18 training pairs and 6 held-out ones."""
    return tiny.write_files(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_files, compile_cache) -> tiny.Run:
    """One uninterrupted run of 10 steps with evaluations and checkpoints; tests must not write into it."""
    with pytest.MonkeyPatch.context() as monkeypatch, tiny.quick_compile(compile_cache):
        tiny.allow_any_mesh(monkeypatch)
        return tiny.run(tiny.long_config(tmp_path_factory.mktemp("finished") / "run", tiny_files))
