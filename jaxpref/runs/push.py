"""`jaxpref push`: a run's checkpoint, or a directory that was exported, to the Hugging Face Hub."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id
from rich.console import Console

from jaxpref.errors import InputError, RunError
from jaxpref.fields import WRITTEN_DTYPES
from jaxpref.runs.directory import RUN_FILE, is_run
from jaxpref.runs.export import export_run

EPILOG = """examples:
  jaxpref push runs/dpo --to me/model              the best checkpoint, exported
  jaxpref push runs/dpo --to me/adapter --adapter  the adapter alone, for PEFT
  jaxpref push exported --to me/model --private    what was exported before
  jaxpref push runs/dpo --to me/model --dry-run    what would be uploaded

The token is that of `hf auth login`, or HF_TOKEN; it needs leave to write.
"""

_EXPORTED = ("config.json", "adapter_config.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN_OR_EXPORT", help="directory of a run or an export")
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="repository of the model")
    parser.add_argument("--private", action="store_true", help="if the repository is made now")
    parser.add_argument("--revision", help="branch; default: main")
    parser.add_argument("--message", default="Upload by jaxpref", help="of the commit")
    parser.add_argument("--step", help="of a run: best (default), latest or a number")
    parser.add_argument(
        "--dtype",
        choices=WRITTEN_DTYPES,
        help="of a run's weights (default bfloat16; an adapter's are in float32)",
    )
    parser.add_argument("--adapter", action="store_true", help="the adapter alone, for PEFT")
    parser.add_argument("--dry-run", action="store_true", help="upload nothing, list the files")


def run(options: argparse.Namespace, console: Console) -> None:
    if options.dry_run:
        _check_name(options.to)
        with _exported(options) as directory:
            for path, size in _files(directory):
                console.print(f"{size:>15,} bytes  {path}", highlight=False)
        return
    where = push(options)
    console.print(f"uploaded to {where}", highlight=False)


def push(options: argparse.Namespace) -> str:
    """Uploads; returns the commit's address.

    Errors: InputError for a name or a token that is not accepted, before anything is exported;
        RunError where the upload fails.
    """
    _check_name(options.to)
    api = HfApi()
    _check_token(api)
    with _told(options.to):
        api.create_repo(options.to, private=options.private or None, exist_ok=True)
        if options.revision is not None:
            api.create_branch(options.to, branch=options.revision, exist_ok=True)
    with _exported(options) as directory, _told(options.to):
        commit = api.upload_folder(
            repo_id=options.to,
            folder_path=directory,
            revision=options.revision,
            commit_message=options.message,
        )
    return commit.commit_url


@contextmanager
def _exported(options: argparse.Namespace) -> Iterator[Path]:
    """The directory to upload."""
    source = Path(options.source)
    if any((source / name).is_file() for name in _EXPORTED):
        _check_nothing_to_export(options)
        yield source
        return
    if not is_run(options.source):
        raise InputError(
            "the directory of a run, or one that `jaxpref export` wrote",
            f"{options.source}: neither {RUN_FILE} nor {' or '.join(_EXPORTED)}",
            "name the `out` of a run",
        )
    with tempfile.TemporaryDirectory() as scratch:
        to = Path(scratch) / "export"
        export_run(
            options.source,
            to,
            step=options.step or "best",
            dtype=options.dtype or ("float32" if options.adapter else "bfloat16"),
            adapter=options.adapter,
        )
        yield to


def _check_nothing_to_export(options: argparse.Namespace) -> None:
    """Errors: InputError for options of an export beside a directory that is uploaded as it is."""
    given = [name for name in ("step", "dtype", "adapter") if getattr(options, name)]
    if given:
        raise InputError(
            "a run, with " + " and ".join(f"--{name}" for name in given),
            f"{options.source}, which was exported before and is uploaded as it is",
            "name the run in its place, or remove these options",
        )


def _files(directory: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(directory)), path.stat().st_size


def _check_name(name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(
            "a repository's name, OWNER/NAME", f"--to {name}: {error}", "write another name"
        ) from error


def _check_token(api: HfApi) -> None:
    """Errors: InputError without a token, and for one that is not known or may only read."""
    how = "run `hf auth login`, or set HF_TOKEN to a token that may write"
    try:
        token = api.whoami().get("auth", {}).get("accessToken", {})
    except LocalTokenNotFoundError as error:
        raise InputError("a token of the Hugging Face Hub", "none", how) from error
    except OfflineModeIsEnabled as error:
        raise InputError(
            "leave to use the network", "HF_HUB_OFFLINE is set", "unset it, or use --dry-run"
        ) from error
    except HfHubHTTPError as error:
        if _status(error) in (401, 403):
            raise InputError(
                "a token that the Hugging Face Hub knows", f"answer {_status(error)}", how
            ) from error
        raise _failed(error) from error
    except Exception as error:
        if not _is_of_network(error):
            raise
        raise _failed(error) from error
    if token.get("role") == "read":
        raise InputError("a token that may write", "one that may only read", how)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """The hub's refusals in our words."""
    try:
        yield
    except HfHubHTTPError as error:
        if _status(error) in (401, 403):
            raise InputError(
                f"a token that may write to {name}",
                f"answer {_status(error)}: {error.server_message or error}",
                "give the token leave to write, or name a repository of your own in --to",
            ) from error
        raise _failed(error) from error
    except Exception as error:
        if not _is_of_network(error):
            raise
        raise _failed(error) from error


def _is_of_network(error: Exception) -> bool:
    """Whether no answer came; huggingface_hub's versions use clients of other packages."""
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return not packages.isdisjoint({"httpx", "httpx2", "requests"})


def _status(error: HfHubHTTPError) -> int | None:
    return None if error.response is None else error.response.status_code


def _failed(error: Exception) -> RunError:
    return RunError(f"the Hugging Face Hub did not take it: {error}. Nothing here has changed.")
