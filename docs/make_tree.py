"""Writes docs/tree.md from the first line of every source file; run it after adding a file.

A test compares the file with what this makes, so that it cannot drift.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = (
    "jaxpref",
    "jaxpref/data",
    "jaxpref/models",
    "jaxpref/models/families",
    "jaxpref/models/gguf",
    "jaxpref/objectives",
    "jaxpref/step",
    "jaxpref/runs",
    "jaxpref/generation",
    "jaxpref/rewards",
    "jaxpref/evaluation",
    "jaxpref/training",
    "jaxpref/pareto",
    "jaxpref/pareto/report",
    "jaxpref/conditioning",
    "jaxpref/demo",
    "jaxpref/plan",
    "configs",
    "configs/recipes",
    "tpu_scripts",
    "benchmarks",
    "docs",
)
"""Folders in the order of the page, from the bottom layer to the top; others follow."""
LISTED = {".py", ".js", ".yaml", ".sh", ".example"}
"""Kinds of files that say in their first line what they are for."""


def page() -> str:
    """The whole of docs/tree.md."""
    return "\n".join([INTRO, *map(_folder, folders())]).rstrip() + "\n"


INTRO = """# The tree

Made by `docs/make_tree.py` from the first line of every file; change those.
[design.md](design.md) says why the folders are what they are.  `tests/` mirrors `jaxpref/`;
`tests/golden/` holds values of torch, transformers and TRL, and the scripts that made them.
"""


def folders() -> list[str]:
    """All folders with listed files: those of `ROOMS`, then any that it does not name."""
    inside = {path.parent for path in _all_files()}
    found = {str(folder.relative_to(ROOT)) for folder in inside}
    return [room for room in ROOMS if room in found] + sorted(found - set(ROOMS))


def files(folder: str) -> list[Path]:
    """The listed files of a folder, in alphabetical order."""
    return sorted(path for path in _all_files() if path.parent == ROOT / folder)


def _all_files() -> Iterator[Path]:
    for top in ("jaxpref", "configs", "tpu_scripts", "benchmarks", "docs"):
        for path in (ROOT / top).rglob("*"):
            if (path.suffix in LISTED or path.name == "Dockerfile") and path.name != "__init__.py":
                yield path


def _folder(folder: str) -> str:
    package = ROOT / folder / "__init__.py"
    title = [f"## {folder}\n"]
    if package.exists() and summary(package):
        title.append(summary(package) + "\n")
    lines = [f"- [{path.name}](../{folder}/{path.name}): {summary(path)}" for path in files(folder)]
    return "\n".join([*title, *lines, ""])


def summary(path: Path) -> str:
    """The first line of a file's docstring or of its first comment; empty where it has none."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    marker = "//" if path.suffix == ".js" else "#"
    lines = (line for line in text.splitlines() if not line.startswith("#!"))
    comments = (line.removeprefix(marker) for line in lines if line.startswith(marker))
    return next(comments, "").strip()


def problems() -> Iterator[str]:
    """Files that do not say in one line what they are for."""
    for folder in folders():
        package = ROOT / folder / "__init__.py"
        for path in (*files(folder), *([package] if package.exists() else [])):
            if not summary(path).endswith((".", "?")):
                yield f"{path.relative_to(ROOT)}: begin it with one line that ends in a full stop"


if __name__ == "__main__":
    if found := list(problems()):
        sys.exit("\n".join(found))
    (ROOT / "docs/tree.md").write_text(page(), encoding="utf-8")
