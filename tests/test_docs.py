"""The pages in docs/ that are made are what their sources say, and what README and docs claim is so."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path

import pytest

from jaxpref import cli
from jaxpref.models.families import FAMILIES
from jaxpref.models.gguf.families import ARCHITECTURES
from jaxpref.objectives import OBJECTIVES, TRANSFORMS
from jaxpref.pareto.config import ParetoConfig
from jaxpref.settings import keys

ROOT = Path(__file__).parents[1]
WRITTEN = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md"])
ELSEWHERE = {"tree.md", "objectives.md", "from_trl.md"}
"""Pages that are made."""


def made(name: str):
    """The module docs/make_NAME.py."""
    spec = importlib.util.spec_from_file_location(f"make_{name}", ROOT / f"docs/make_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# ---- pages that are made


def test_objectives_are_what_their_docstrings_say():
    module = made("objectives")
    assert list(module.missing()) == []
    assert text("docs/objectives.md") == module.page(), "run `python docs/make_objectives.py`"


def test_the_page_on_trl_is_what_is_known_of_its_options():
    module = made("from_trl")
    assert text("docs/from_trl.md") == module.page(), "run `python docs/make_from_trl.py`"
    page = text("docs/from_trl.md")
    for option, classes in module.options().items():
        assert len(re.findall(rf"^\| `{option}`", page, re.MULTILINE)) >= 1, (option, classes)
    assert {option for option, theirs, _, ours in module.comparable() if theirs != ours} == set(module.DIFFERENT)


def test_every_objective_and_transform_has_its_entry():
    page = text("docs/objectives.md")
    for name in OBJECTIVES:
        assert page.count(f"\n### {name}\n") == 1
    assert all(f"- `{name}`" in page for name in TRANSFORMS)


def test_the_tree_is_what_the_files_say():
    module = made("tree")
    assert list(module.problems()) == []
    assert text("docs/tree.md") == module.page(), "run `python docs/make_tree.py`"


def test_the_tree_has_every_source_file_once_and_no_other():
    """Found without make_tree.py, so that a kind of file that it overlooks is missed here."""
    listed = re.findall(r"^- \[[^]]+\]\(\.\./([^)]+)\): \S", text("docs/tree.md"), re.MULTILINE)
    sources = {
        str(path.relative_to(ROOT))
        for folder in ("jaxpref", "configs", "tpu_scripts", "benchmarks", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".md", ".png", ".html", ".css", ".pyc", ".jsonl", ".typed"}
    }
    assert sorted(listed) == sorted(path for path in sources if not path.endswith("__init__.py"))


# ---- numbers


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        (r"(\d+) of them, any weighted sum", len(OBJECTIVES)),
        (r"\| preference objectives \| (\d+), ", len(OBJECTIVES)),
        (r"\| model families \| (\d+) \|", len(FAMILIES)),
        (r"(\d+) GGUF architectures", len({architecture.name for architecture in ARCHITECTURES})),
    ],
)
def test_counts_in_the_readme(pattern, count):
    assert [int(number) for number in re.findall(pattern, text("README.md"))] == [count]


def test_no_other_page_counts_objectives():
    for path in WRITTEN:
        if path.name not in {"README.md", *ELSEWHERE}:
            assert not re.search(r"\d+ (objectives|model families)\b", path.read_text()), path.name


def test_the_figures_of_the_readme_are_among_the_results():
    """Whatever README says in seconds, minutes, tokens/s or GiB stands in one of the two pages, beside its command."""
    readme, results = text("README.md"), text("docs/results.md") + text("benchmarks/report.md")
    figures = re.findall(r"(\d+(?: min \d+)? s\b|\d+ tokens/s|[\d.]+ GiB)", readme)
    assert len(figures) >= 6
    for figure in figures:
        number = figure.removesuffix(" tokens/s").removesuffix(" GiB")
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.]\d)", results), figure


# ---- names


def links(path: Path) -> list[str]:
    return [x for x in re.findall(r"\]\(([^)\s]+)\)", path.read_text()) if "://" not in x]


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for link in links(path):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_commands_exist(path):
    """Lines of code blocks and code in prose that begin with `jaxpref` or `make`."""
    code = re.findall(r"(?:^    |`)((?:jaxpref|make) [a-z][\w-]*)", path.read_text(), re.MULTILINE)
    commands = cli._parser([])._subparsers._group_actions[0].choices
    targets = re.findall(r"^([\w-]+):", text("Makefile"), re.MULTILINE)
    for line in code:
        program, word = line.split()
        assert word in (commands if program == "jaxpref" else targets), line


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_config_keys_exist(path):
    """`train.batch_size` and its like, in code blocks and in prose."""
    known = {key for key, _, _ in keys()} | {f"pareto.{field.name}" for field in fields(ParetoConfig)}
    sections = {key.partition(".")[0] for key in known if "." in key}
    pattern = rf"[ `]((?:{'|'.join(sorted(sections))})\.[a-z_]+)(?=[`=:\s])"
    for key in re.findall(pattern, path.read_text()):
        if path.name != "extend.md" and not key.endswith((".py", ".md", ".yaml", ".jsonl")):
            assert key in known, key


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/design.md", "docs/fronts.md", "docs/use.md"])
def test_files_named_in_prose_exist(name):
    for file in re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|yaml))[`:]", text(name)):
        places = [ROOT / file, ROOT / "jaxpref" / file, *(ROOT / "jaxpref").rglob(file)]
        assert any(place.exists() for place in places), file


def test_a_broken_link_fails_the_site():
    """mkdocs counts warnings for `strict` only where it would print them."""
    built = re.findall(r"mkdocs build(.*)", text("Makefile"))
    assert built and not any("-q" in options for options in built) and "strict: true" in text("mkdocs.yml")
