"""The rooms of the package: what imports what.

`python tests/test_structure.py` prints the figures that docs/design.md states.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxpref"


def rooms() -> dict[str, int]:
    """Entry of jaxpref/ -> its place from bottom to top: the table of rooms in docs/design.md, left to right."""
    table = (ROOT / "docs/design.md").read_text().partition("| room | holds |")[2].partition("\n\n")[0]
    names = [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)/?`", line.split("|")[1])]
    return {name: place for place, name in enumerate([*names, "__init__"])}


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


def upward() -> list[str]:
    """Imports of a room that stands above."""
    place = rooms()
    entry = lambda module: module.split(".")[0]
    return [
        f"{source} imports {target}"
        for source, target in sorted(arrows())
        if place[entry(source)] < place[entry(target)]
    ]


def test_every_entry_is_a_room():
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert entries == set(rooms())


def test_no_import_runs_upwards():
    assert ("step.train_step", "step.gradients") in arrows(), "imports are found"
    assert upward() == []


def figures() -> dict[str, int]:
    texts = [path.read_text().splitlines() for path in PACKAGE.rglob("*.py")]
    room_pairs = [(source.split(".")[0], target.split(".")[0]) for source, target in arrows()]
    return {
        "entries at the top of jaxpref/": len(rooms()),
        "import arrows between rooms": len({pair for pair in room_pairs if len(set(pair)) == 2}),
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


def test_files_of_tests_have_names_of_their_own():
    """pytest finds modules by their names alone, and one file of two with the same name would not run."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert len(set(names)) == len(names), sorted(name for name in set(names) if names.count(name) > 1)
