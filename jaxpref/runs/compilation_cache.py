"""Compiled programs, kept on disk for the next process: where, and how much of it.

jax does the keeping.  Its keys hold the program, the versions of jax and XLA, the devices and the
processor's instruction sets, so that hosts of different kinds may share a directory.
"""

import logging
from pathlib import Path

import jax
from filelock import FileLock, Timeout
from jax.experimental.compilation_cache import compilation_cache

from jaxpref.storage.entries import among_users_caches

_log = logging.getLogger(__name__)

_MAX_BYTES = 4 * 2**30
"""Beyond it jax drops the programs that were not used for longest."""


def use_compilation_cache(asked: str) -> None:
    """Makes jax keep compiled programs where `Config.compilation_cache` says.

    With `auto`, what jax was told itself stands (JAX_COMPILATION_CACHE_DIR, or its option of that
    name); JAX_ENABLE_COMPILATION_CACHE=false holds in any case.
    """
    if not jax.config.values["jax_enable_compilation_cache"]:
        return
    if asked == "none":
        _keep_in(None)
        return
    if asked == "auto" and jax.config.values["jax_compilation_cache_dir"]:
        return
    directory = _default_directory() if asked == "auto" else asked
    if directory is None:
        return
    if "://" in directory:  # a bucket; jax bounds local directories only
        _keep_in(directory)
    elif _prepared(Path(directory)):
        _keep_in(directory)
        if jax.config.values["jax_compilation_cache_max_size"] == -1:
            jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    else:
        level = logging.INFO if asked == "auto" else logging.WARNING
        _log.log(level, "compiled programs are not kept: %s cannot be written", directory)


def _default_directory() -> str | None:
    """In the user's directory of caches; None: there is none to be used.

    Several processes may lie on hosts with a directory each.  Then some find a program that others
    compile, and those that compile on GPUs wait for each other: such a directory has to be named.
    """
    directory = among_users_caches("compiled")
    return None if jax.process_count() > 1 or directory is None else str(directory)


def _keep_in(directory: str | None) -> None:
    if jax.config.values["jax_compilation_cache_dir"] != directory:
        jax.config.update("jax_compilation_cache_dir", directory)
        compilation_cache.reset_cache()  # jax opens the first directory that it is told


def _prepared(directory: Path) -> bool:
    """Whether programs can be kept there.

    What a process did not finish writing, killed or on a full disk, is removed: jax would read it
    in vain every time, and never write it again.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # who writes here runs code
        with FileLock(directory / ".lockfile", timeout=10):  # jax's own
            for program in directory.glob("*-cache"):
                if not program.with_name(f"{program.name.removesuffix('cache')}atime").exists():
                    program.unlink()
    except Timeout:
        pass  # somebody else is at work there
    except OSError:
        return False
    return True
