"""Names as paths: local ones as ever, and which names of buckets are refused; test_buckets.py has real ones."""

import importlib.util
from pathlib import Path

import pytest

from jaxpref.errors import InputError
from jaxpref.storage.entries import cache_directory
from jaxpref.storage.paths import as_path, is_bucket, is_within


def test_local_names_are_pathlibs(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("data/train.jsonl", "/data/a:b", "C:/data", "org/name", "pkg://package/model", "odd:/name"):
        assert as_path(name) == Path(name) and not is_bucket(name)
    assert as_path("~/run") == tmp_path / "run"
    assert as_path(tmp_path) is tmp_path


@pytest.mark.parametrize(
    "name, fix",
    [
        ("s3:/bucket/run", "correct the path"),
        ("gs:///run", "correct the path"),
        ("s3://", "correct the path"),
        ("hf://org/name", "org/name"),
        ("az://bucket/run", "copy it"),
        ("https://example.com/train.jsonl", "copy it"),
    ],
)
def test_names_that_mean_nothing_here(name, fix, call, tmp_path):
    with pytest.raises(InputError, match="gs://BUCKET/PATH or s3://BUCKET/PATH") as refused:
        as_path(name)
    assert refused.value.got == name and fix in refused.value.fix
    config = tmp_path / "config.yaml"
    config.write_text(f"out: {name}\n")
    code, _, error = call("train", config)
    assert code == 2 and name in error
    assert not list(tmp_path.glob(f"{name.partition(':')[0]}:*")), "no local directory of that name"


@pytest.mark.parametrize(
    "name, package, extra", [("s3://bucket/run", "s3fs", "s3"), ("gs://bucket/run", "gcsfs", "gcs")]
)
def test_a_missing_package_is_named(name, package, extra):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(InputError, match=rf"pip install 'jaxpref\[{extra}\]'"):
        as_path(name)


def test_what_lies_in_what():
    assert is_within(Path("/a/b"), Path("/a")) and not is_within(Path("/ab"), Path("/a"))
    # Names suffice: no bucket is asked.
    for path, directory, inside in (
        ("s3://a/run/x", "s3://a/run", True),
        ("s3://a/run", "s3://a/run", True),
        ("s3://a/running", "s3://a/run", False),
        ("gs://a/run", "s3://a/run", False),
        ("/a/run", "s3://a/run", False),
    ):
        assert is_within(path, directory) == inside


def test_caches_are_the_users_unless_they_are_in_the_home_directory_already(monkeypatch, tmp_path):
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    before = home / ".cache/jaxpref/scores"
    assert cache_directory("auto", "scores") == before
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert cache_directory("auto", "scores") == tmp_path / "caches/jaxpref/scores"
    before.mkdir(parents=True)
    assert cache_directory("auto", "scores") == before, "what is kept there is found"
    assert cache_directory("~/own", "scores") == home / "own"
