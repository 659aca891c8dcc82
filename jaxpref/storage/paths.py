"""Names of files and directories as paths: local ones, and those in buckets (gs://, s3://).

Local paths are pathlib's.  Those in a bucket are universal_pathlib's, which have the same methods;
what takes a file by its name alone (numpy, libraries in other languages) refuses them, so none is
taken for a local one by mistake.
"""

import logging
import re
from functools import cache
from pathlib import Path

from jaxpref.errors import InputError, optional_package

_LIBRARIES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
"""Scheme -> the package that reads and writes such buckets, and jaxpref's extra that brings it."""
_OTHER_NAMES = "pkg://"
"""Of models in installed packages: they have a reader of their own."""
_WAYS_TO_LOG_IN = {
    "gs": "run `gcloud auth application-default login`, or use a service account that may",
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, of an account that may",
}


def as_path(name: str | Path) -> Path:
    """The path that a name means, `~` expanded; one that is a path already stays one.

    Errors: InputError for a name with a scheme that is not known or misspelt, a package that is
        missing, and a bucket that does not exist or cannot be read.
    """
    if not isinstance(name, str):
        if not hasattr(name, "expanduser"):
            kind = type(name).__name__
            how = "give its directory: .out" if hasattr(name, "out") else "give a text or a Path"
            raise InputError("the path of a file or directory", f"a {kind}: {name!r:.80}", how)
        return name.expanduser()
    scheme = _scheme(name)
    if scheme is None:
        return Path(name).expanduser()
    return _opened(scheme, name)


def is_bucket(path: str | Path) -> bool:
    """Whether a path lies in a bucket."""
    return str(path).startswith(tuple(f"{scheme}://" for scheme in _LIBRARIES))


def is_within(path: Path, directory: Path) -> bool:
    """Whether a path is the directory or lies in it; both resolved."""
    if is_bucket(path) or is_bucket(directory):
        return f"{path}/".startswith(f"{str(directory).rstrip('/')}/")
    return path.is_relative_to(directory)


def key_of(path: Path) -> str:
    """BUCKET/KEY of a path in a bucket, as its file system takes it."""
    return path.path  # type: ignore[attr-defined]


def file_system(path: Path):
    """fsspec's file system of a path in a bucket."""
    return path.fs  # type: ignore[attr-defined]


def read_at_once(path: Path) -> bytes:
    """A file's bytes, also where another process replaces it meanwhile.

    In a bucket that takes one request: s3fs refuses to read on in another version of a file.
    """
    return file_system(path).cat_file(key_of(path)) if is_bucket(path) else path.read_bytes()


def _scheme(name: str) -> str | None:
    """Of a path in a bucket; None: a local path.  Errors: InputError for neither."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):(/+)", name)
    if found is None or name.startswith(_OTHER_NAMES):
        return None
    scheme, slashes = found.groups()
    if scheme in _LIBRARIES and slashes == "//" and re.match(r"[^/]+", name[found.end() :]):
        return scheme
    if scheme not in _LIBRARIES and slashes == "/":  # a directory whose name ends with a colon
        return None
    fix = "correct the path"
    if scheme == "hf":
        fix = "name what is on the Hugging Face Hub without a scheme: org/name"
    elif scheme not in _LIBRARIES:
        fix = "copy it to one of these first"
    raise InputError("a local path, gs://BUCKET/PATH or s3://BUCKET/PATH", name, fix)


@cache
def _opened(scheme: str, name: str) -> Path:
    """A path in a bucket that can be read, asked for once."""
    from fsspec.config import conf  # here: local paths need none of it

    package, extra = _LIBRARIES[scheme]
    optional_package(package, f"paths in {scheme}:// buckets", extra)
    upath = optional_package("upath", f"paths in {scheme}:// buckets", extra)
    logging.getLogger(package).setLevel(logging.CRITICAL)  # its errors are raised besides
    # Listings that are kept would not show what other processes write.  As a default of fsspec it
    # holds for orbax too.
    conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    path = upath.UPath(name.rstrip("/"))
    files, key = path.fs, path.path
    bucket = key.partition("/")[0]
    expected = "a bucket that exists and may be read"
    try:
        try:
            files.ls(key)
        except FileNotFoundError:  # the bucket, or only what is named in it
            _check_exists(files, bucket)
    except FileNotFoundError as error:
        fix = "make the bucket, or correct its name"
        raise InputError(expected, f"{name}: there is no bucket {bucket}", fix) from error
    except Exception as error:  # each library, and each way to log in, has errors of its own
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        fix = f"{_WAYS_TO_LOG_IN[scheme]}; or see whether the network reaches it"
        raise InputError(expected, f"{name}: {said}", fix) from error
    return path


def _check_exists(files, bucket: str) -> None:
    try:
        files.ls(bucket)
    except PermissionError:  # an account that may read a part of the bucket alone
        pass
