"""Files and directories that are written whole or not at all, and only where nothing is lost."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxpref.errors import InputError


def _its_name(path: Path) -> list[str]:
    """Of a path that must be new: whatever exists there is foreign."""
    return [path.name]


def check_destination(
    path: str | Path,
    expected: str,
    *,
    sources: Iterable[str | Path] = (),
    foreign: Callable[[Path], Collection[str]] = _its_name,
) -> Path:
    """A file or directory that is about to be written, `~` expanded.

    Args:
        expected: what may be written to, for the error message.
        sources: what the command reads, and what that was made from.
        foreign: existing path -> names of what may not be replaced there.
    Errors: InputError where writing would replace a source or something foreign.
    """
    path = Path(path).expanduser()
    target = path.resolve()
    for parent in target.parents:
        if parent.exists() and not parent.is_dir():
            raise InputError(expected, f"{path}: {parent} is a file", "choose another name")
    for source in sources:
        read = Path(source).expanduser().resolve()
        # A source that is no path, as pkg://..., lies nowhere.
        if read == target or (read.exists() and read.is_relative_to(target)):
            raise InputError(
                f"{expected}, apart from what is read",
                f"{path}: writing it would replace {source}",
                "choose another name",
            )
    names = list(foreign(target)) if target.exists() else []
    if names:
        holds = f"holds {', '.join(names[:20])}" if target.is_dir() else "exists"
        raise InputError(
            expected, f"{path} {holds}", "choose another name, or move away what is there"
        )
    return path


_UNWRITABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
}


def disk_problem(error: BaseException | None) -> str | None:
    """What an error says of a disk that takes no more, in words; None: it is of another kind."""
    while error is not None:
        code = _disk_code(error)
        if code is not None:
            path = getattr(error, "filename", None)
            if path is None and (found := re.search(r'"(/[^"]+)": Failed to', str(error))):
                path = found[1]
            return f"{path}: {os.strerror(code)}" if path else os.strerror(code)
        error = error.__cause__ or error.__context__
    return None


def _disk_code(error: BaseException) -> int | None:
    """The system's number of an error of the disk.

    Libraries in other languages raise errors of their own for it, which name the system's.
    """
    named = re.search(r"os[ _]error(?:_code=')? ?(\d+)", str(error))
    code = int(named[1]) if named else getattr(error, "errno", None)
    return code if code in _UNWRITABLE else None


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the disk say what could not be written."""
    try:
        yield
    except Exception as error:
        code = _disk_code(error)
        if code is None or getattr(error, "filename", None) is not None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a path to write to, whose file takes the place of `path` at the end.

    After an error, or a crash, `path` is what it was; of two processes that write it at once the
    last one counts.  Its directory is made if missing.  Where `path` is a symbolic link, what it
    points to is replaced.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _naming(path):
            yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: str | Path) -> Iterator[Path]:
    """The same for a directory; what `path` held before is replaced."""
    path = Path(path).resolve()
    old = _kept(path)
    if old.exists() and not path.exists():  # a process was killed between the two renamings
        old.rename(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        with _naming(path):
            yield partial
        _replace_directory(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _kept(path: Path) -> Path:
    """Where a directory is while another takes its name."""
    return path.with_name(f".{path.name}.old")


def _replace_directory(new: Path, path: Path) -> None:
    old = _kept(path)
    shutil.rmtree(old, ignore_errors=True)
    if not path.exists():
        new.rename(path)
        return
    path.rename(old)  # kept until the new one has its name
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
