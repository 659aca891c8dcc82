"""The layers of the package: what imports what, and that the data stages run without jax.

`python tests/test_structure.py` prints the figures that docs/design.md states.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxpref"

LAYERS = (
    ("errors",),
    ("types", "files", "config"),
    ("data",),
    ("sharding",),
    ("models",),
    ("objectives",),
    ("settings",),
    ("step",),
    ("runs",),
    ("generation",),
    ("rewards",),
    ("evaluation",),
    ("training",),
    ("conditioning", "demo", "pareto"),
    ("__init__", "cli"),
)
"""From bottom to top: a module imports from its own entry and from layers below."""


def modules() -> dict[str, Path]:
    """Dotted name below `jaxpref` -> file; a package's __init__ is the package."""
    named = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return named


def imports(path: Path) -> Iterator[str]:
    """What a module imports from the package, inside functions too: dotted names below `jaxpref`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxpref":
            module = node.module.partition(".")[2]
            for alias in node.names:
                yield f"{module}.{alias.name}".strip(".")
        elif isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] for a in node.names if a.name.startswith("jaxpref."))


def arrows() -> set[tuple[str, str]]:
    """(importing module, imported module)."""
    named = modules()
    found = set()
    for name, path in named.items():
        for target in imports(path):
            while target and target not in named:  # a name in a module
                target = target.rpartition(".")[0]
            if target:
                found.add((name, target))
    return found


def layer(module: str) -> int:
    entry = module.split(".")[0]
    return next(i for i, entries in enumerate(LAYERS) if entry in entries)


def upward() -> list[str]:
    """Imports of a higher layer, or of another entry in the same one."""
    entry = lambda module: module.split(".")[0]
    return [
        f"{source} imports {target}"
        for source, target in sorted(arrows())
        if entry(source) != entry(target) and layer(source) <= layer(target)
    ]


def test_every_entry_has_a_layer():
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    named = [entry for entries in LAYERS for entry in entries]
    assert sorted(entries) == sorted(named)


def test_no_import_runs_upwards():
    assert ("step.train_step", "step.gradients") in arrows(), "imports are found"
    assert upward() == []


def test_the_data_stages_need_no_jax_before_the_loader():
    stages = sorted(name for name in modules() if name.startswith("data.") and name != "data.loader")
    # inspect shows what the loader planned.
    stages.remove("data.inspect")
    program = "\n".join(
        [
            "import importlib, sys",
            "sys.modules['jax'] = None  # importing it fails",
            f"for name in {stages}: importlib.import_module('jaxpref.' + name)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def figures() -> dict[str, int]:
    texts = [path.read_text().splitlines() for path in PACKAGE.rglob("*.py")]
    return {
        "entries at the top of jaxpref/": sum(len(entries) for entries in LAYERS),
        "import arrows between modules": len(arrows()),
        "upward imports": len(upward()),
        "files above 350 lines": sum(len(lines) > 350 for lines in texts),
        "lines above 100 characters": sum(len(line) > 100 for lines in texts for line in lines),
        "`fmt: skip`": sum(bool(re.search("fmt: skip", line)) for lines in texts for line in lines),
    }


if __name__ == "__main__":
    for name, figure in figures().items():
        print(f"{name}: {figure}")
    print(*upward(), sep="\n")
