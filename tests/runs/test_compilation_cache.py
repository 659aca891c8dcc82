"""Compiled programs on disk: found again, bounded, and never the reason that a run fails."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.experimental.compilation_cache import compilation_cache

from jaxpref.runs.build import build
from jaxpref.runs.compilation_cache import use_compilation_cache

SETTINGS = {
    "jax_enable_compilation_cache": True,
    "jax_compilation_cache_dir": None,
    "jax_compilation_cache_max_size": -1,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
}


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """A user's directory of caches, and jax as it starts, but that it keeps the smallest programs too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    for name, value in SETTINGS.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield tmp_path / "caches"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compile_anew(number: float) -> dict[str, int]:
    """Compiles a program as a new process would, and runs it; how often its directory was asked and what it had."""
    events: dict[str, int] = {"cache_hits": 0, "cache_misses": 0}

    def count(name: str, **_) -> None:
        name = name.rpartition("/")[2]
        if name in events:
            events[name] += 1

    jax.monitoring.register_event_listener(count)
    try:
        values = jax.jit(lambda x: jnp.cumsum(x * number))(np.arange(4, dtype=np.float32))
    finally:
        jax.monitoring.unregister_event_listener(count)
    assert values.tolist() == [0.0, number, 3 * number, 6 * number]
    return events


def programs(directory):
    return sorted(file.name for file in directory.glob("*-cache"))


def test_by_default_programs_are_found_among_the_users_caches(caches):
    use_compilation_cache("auto")
    assert compile_anew(2.0) == {"cache_hits": 0, "cache_misses": 1}
    compilation_cache.reset_cache()  # as in another process
    use_compilation_cache("auto")
    assert compile_anew(2.0) == {"cache_hits": 1, "cache_misses": 0}
    assert len(programs(caches / "jaxpref" / "compiled")) == 1
    assert (caches / "jaxpref" / "compiled").stat().st_mode & 0o077 == 0, "nobody else may put programs there"
    assert 0 < jax.config.jax_compilation_cache_max_size < 2**40


def test_a_run_names_its_directory_and_the_next_one_none(caches, tmp_path, tiny_files, any_mesh):
    build(tiny.config(tmp_path / "run", tiny_files.model, tiny_files.train, compilation_cache=str(tmp_path / "own")))
    before = programs(tmp_path / "own")
    assert compile_anew(3.0)["cache_misses"] == 1 and len(programs(tmp_path / "own")) == len(before) + 1
    build(tiny.config(tmp_path / "run", tiny_files.model, tiny_files.train, compilation_cache="none"))
    assert compile_anew(3.0) == {"cache_hits": 0, "cache_misses": 0}
    assert not caches.exists()


def test_what_jax_was_told_stands(caches, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "told"))
    use_compilation_cache("auto")
    assert compile_anew(4.0)["cache_misses"] == 1 and len(programs(tmp_path / "told")) == 1
    jax.config.update("jax_enable_compilation_cache", False)
    use_compilation_cache(str(tmp_path / "own"))
    assert not (tmp_path / "own").exists() and not caches.exists()


def test_programs_that_a_killed_process_did_not_finish_are_removed(caches):
    use_compilation_cache("auto")
    compile_anew(5.0)
    directory = caches / "jaxpref" / "compiled"
    (program,) = directory.glob("*-cache")
    program.write_bytes(program.read_bytes()[:100])
    program.with_name(program.name.removesuffix("cache") + "atime").unlink()  # jax writes it last
    use_compilation_cache(str(directory))
    assert programs(directory) == []
    assert compile_anew(5.0)["cache_misses"] == 1 and programs(directory) == [program.name]


@pytest.mark.parametrize("asked, level", [("auto", logging.INFO), ("{file}/below", logging.WARNING)])
def test_a_directory_that_cannot_be_written_is_told_and_done_without(asked, level, caches, tmp_path, caplog):
    caches.write_text("a file\n")
    with caplog.at_level(logging.INFO, "jaxpref"):
        use_compilation_cache(asked.format(file=caches))
    assert [record.levelno for record in caplog.records] == [level]
    assert "cannot be written" in caplog.records[0].getMessage()
    assert compile_anew(6.0) == {"cache_hits": 0, "cache_misses": 0}
