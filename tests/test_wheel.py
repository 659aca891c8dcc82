"""The wheel, and what README's lines for installing it name."""

import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the sources, as `pip install .` does; from a copy, for a build leaves its files beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    shutil.copytree(ROOT / "jaxpref", sources / "jaxpref", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(sources)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("jaxpref-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "jaxpref"
    kinds = {".py", ".html", ".css", ".js", ".typed"}
    wanted = {str(path.relative_to(ROOT)) for path in package.rglob("*") if path.suffix in kinds}
    assert "jaxpref/py.typed" in wanted
    assert {name for name in names if ".dist-info/" not in name} == wanted


@pytest.mark.slow
def test_readmes_install_lines_name_extras_that_there_are(wheel):
    (name,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("METADATA")]
    metadata = email.message_from_bytes(zipfile.ZipFile(wheel).read(name))
    extras = set(metadata.get_all("Provides-Extra"))
    text = (ROOT / "README.md").read_text() + (ROOT / "docs/use.md").read_text()
    named = set(re.findall(r"\[(\w[\w-]*)\]\"?'?(?:\s|`|$)", " ".join(re.findall(r"pip install [^\n`]*", text))))
    assert len(named) >= 2 and named <= extras
    assert "Typing :: Typed" in metadata.get_all("Classifier") and metadata["License-Expression"] == "Apache-2.0"


@pytest.mark.slow
def test_the_installed_wheel_answers(wheel, tmp_path):
    """Beside the libraries of this environment, and in another folder than the sources."""
    there = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(there), str(wheel)]
    subprocess.run(install, check=True)
    environment = {**os.environ, "PYTHONPATH": str(there)}
    for arguments, said in ((["--version"], "jaxpref "), (["keys", "out"], "out ="), (["objectives", "dpo"], "dpo")):
        command = [sys.executable, "-c", "import jaxpref.cli as c, sys; print(c.__file__); sys.exit(c.main())"]
        done = subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and said in done.stdout, done.stderr
        assert done.stdout.startswith(str(there))
