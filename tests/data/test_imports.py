"""What the data stages and the help of the commands load: no jax, and no transformers."""

import subprocess
import sys

import pytest

WITHOUT = "import sys\nfor name in ('jax', 'transformers'):\n    sys.modules[name] = None  # importing it fails\n"
EVERY_DATA_MODULE = """
import importlib, pkgutil
import jaxpref.data
names = [module.name for module in pkgutil.iter_modules(jaxpref.data.__path__)]
assert {"encode", "dataset", "pack", "loader"} <= set(names)
for name in names:
    if name != "loader":
        importlib.import_module(f"jaxpref.data.{name}")
"""


def run(code):
    return subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True)


def test_the_data_stages_before_the_loader():
    done = run(EVERY_DATA_MODULE)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [[], ["train"], ["data"], ["demo"], ["condition"], ["export"], ["merge"]])
def test_help_of_commands(command):
    done = run(f"from jaxpref import cli\ncli.main([*{command}, '--help'])")
    assert done.returncode == 0 and done.stdout.startswith("usage: jaxpref"), done.stderr


def test_this_would_fail_where_jax_is_needed():
    done = run("import jaxpref\njaxpref.train")
    assert done.returncode == 1 and ("import of jax halted" in done.stderr or "'jax' is not a package" in done.stderr)


def test_public_names_are_those_listed_and_are_there_before_they_are_used():
    code = """
import ast, pathlib
import jaxpref
assert set(jaxpref.__all__) <= set(dir(jaxpref))
tree = ast.parse(pathlib.Path(jaxpref.__file__).read_text())
imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module.startswith("jaxpref")]
for_checkers = {alias.name: node.module for node in imports for alias in node.names}
packages = {name: "jaxpref" for name in jaxpref._PACKAGES}
assert for_checkers == jaxpref._MODULES | packages
assert sorted(for_checkers) == jaxpref.__all__
try:
    jaxpref.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
else:
    raise AssertionError
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_public_names_can_be_used():
    import jaxpref

    for name in jaxpref.__all__:
        assert getattr(jaxpref, name).__name__.rsplit(".", 1)[-1] == name
