"""Files and directories that are written whole or not at all, and only where nothing is lost."""

import errno
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxpref.errors import InputError, RunError
from jaxpref.storage.paths import as_path, file_system, is_bucket, is_within, key_of


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

    In a bucket something is written there and deleted, to see whether that is allowed.

    Args:
        expected: what may be written to, for the error message.
        sources: what the command reads, and what that was made from.
        foreign: existing path -> names of what may not be replaced there.
    Errors: InputError where writing would replace a source or something foreign.
    """
    path = as_path(path)
    target = path.resolve()
    for parent in () if is_bucket(path) else target.parents:
        if parent.exists() and not parent.is_dir():
            raise InputError(expected, f"{path}: {parent} is a file", "choose another name")
    for source in sources:
        read = as_path(source).resolve()
        # A source that is no path, as pkg://..., lies nowhere.
        if str(read) == str(target) or (is_within(read, target) and read.exists()):
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
    if is_bucket(path):
        _check_writable(path, expected)
    return path


def _check_writable(path: Path, expected: str) -> None:
    """Errors: InputError for a path in a bucket where nothing can be written."""
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            expected,
            f"{path}: {error.strerror or error}",
            "choose another bucket, or use an account that may write and delete there",
        ) from error


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
            said = getattr(error, "strerror", None) or os.strerror(code)
            return f"{path}: {said}" if path else said
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
def as_disk_problem(path: Path) -> Iterator[None]:
    """Around what writes: where the path lies in a bucket, errors of its library are the disk's."""
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        if not is_bucket(path):
            raise
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise OSError(errno.EIO, said, str(path)) from error


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a path to write to, whose file takes the place of `path` at the end.

    After an error, or a crash, `path` is what it was; of two processes that write it at once the
    last one counts.  Its directory is made if missing.  Where `path` is a symbolic link, what it
    points to is replaced.  For a bucket the file is written on this host, and uploaded.
    """
    path = as_path(path).resolve()
    if is_bucket(path):
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / path.name
            with _naming(local):
                yield local
            upload_file(local, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _naming(path):
            yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def upload_file(file: Path, to: Path) -> None:
    """A local file into a bucket, whole or not at all."""
    with as_disk_problem(to):
        file_system(to).put_file(str(file), key_of(to))


@contextmanager
def whole_directory(path: str | Path, key_file: str = "config.json") -> Iterator[Path]:
    """The same for a directory; what `path` held before is replaced.

    Args:
        key_file: name of the file without which nobody reads the directory.  A bucket has no
            renaming: there this file is removed first and uploaded last.
    """
    path = as_path(path).resolve()
    if is_bucket(path):
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch)
            with _naming(local):
                yield local
            with as_disk_problem(path):
                _upload(local, path, key_file)
        return
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


def _upload(new: Path, path: Path, key_file: str) -> None:
    """Puts the files of a local directory in place of those that a path in a bucket holds."""
    (path / key_file).unlink(missing_ok=True)
    for old in path.iterdir() if path.is_dir() else ():
        if not (new / old.name).exists():
            old.unlink()
    names = sorted((file.name for file in new.iterdir()), key=lambda name: name == key_file)
    for name in names:
        upload_file(new / name, path / name)


def rename_directory(old: Path, new: Path) -> None:
    """In a bucket each file is copied and deleted: a kill leaves some under either name."""
    if is_bucket(old):
        file_system(old).mv(key_of(old), key_of(new), recursive=True)
    else:
        old.rename(new)


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


class GrowingFile:
    """A file of lines, each written as soon as it is added.

    A bucket has no appending: there the whole file is written anew, and a kill meanwhile leaves it
    as it was before.

    Args:
        text: with which it starts, in place of what it holds.
        seconds: in a bucket, how long to wait at least until it is written again; a kill loses
            what was added in that time.
    """

    def __init__(self, path: Path, text: str = "", *, seconds: float = 0.0):
        self._path, self._text, self._seconds = path, text, seconds
        self._written, self._whole = time.monotonic(), True
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
        self._stream = None if is_bucket(path) else path.open("a", encoding="utf-8")

    def write(self, line: str) -> None:
        """Args: line: with its end."""
        if self._stream is not None:
            self._stream.write(line)
            self._stream.flush()
            return
        self._text, self._whole = self._text + line, False
        if time.monotonic() >= self._written + self._seconds:
            self._upload()

    def flush(self) -> None:
        """Does nothing, for a line waits only as long as it was asked for."""

    def close(self) -> None:
        """Writes what is left."""
        if self._stream is not None:
            self._stream.close()
        elif not self._whole:
            self._upload()

    def _upload(self) -> None:
        with as_disk_problem(self._path):
            self._path.write_text(self._text, encoding="utf-8")
        self._written, self._whole = time.monotonic(), True
