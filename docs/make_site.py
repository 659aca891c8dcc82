"""Lays README and docs/ out for mkdocs: `python docs/make_site.py FOLDER`, as `make docs` does.

Pages keep their places, so links between them hold.  Files of the sources are no pages: a link to
one is copied along with the file, and one to a folder becomes plain text.
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[([^]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def lay_out(folder: Path) -> None:
    """Writes the pages, the files that they show or name, and the style."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        place = _place(page, folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        text = page.read_text(encoding="utf-8")
        linked = LINK.sub(lambda match, page=page: _linked(match, page, pages, folder), text)
        place.write_text(linked, encoding="utf-8")
    shutil.copyfile(ROOT / "docs/site.css", folder / "site.css")


def _place(path: Path, folder: Path) -> Path:
    """README is the first page."""
    return folder / ("index.md" if path == ROOT / "README.md" else path.relative_to(ROOT))


def _linked(match: re.Match, page: Path, pages: list[Path], folder: Path) -> str:
    shown, name, target, anchor = match.groups()
    if "://" in target:
        return match[0]
    path = (page.parent / target).resolve()
    if path in pages:
        to = _place(path, folder)
    elif path.is_file():
        to = _place(path, folder)
        to = to.with_name(to.name + ".txt") if path.suffix in (".md", ".py") else to
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
        anchor = ""
    elif path.is_dir():
        return name
    else:
        return match[0]  # left as it is, for mkdocs to refuse
    relative = Path("/".join([".."] * len(_place(page, folder).parent.relative_to(folder).parts)))
    return f"{shown}[{name}]({(relative / to.relative_to(folder)).as_posix()}{anchor or ''})"


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]))
