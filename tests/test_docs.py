"""docs/objectives.md is what the docstrings say, and README names what there is."""

import importlib.util
from pathlib import Path

from jaxpref.objectives import OBJECTIVES, TRANSFORMS

ROOT = Path(__file__).parents[1]


def made():
    path = ROOT / "docs/make_objectives.py"
    spec = importlib.util.spec_from_file_location("make_objectives", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date():
    module = made()
    assert list(module.missing()) == []
    assert (ROOT / "docs/objectives.md").read_text() == module.page(), "run `python docs/make_objectives.py`"


def test_every_objective_and_transform_is_on_it():
    text = (ROOT / "docs/objectives.md").read_text()
    for name in OBJECTIVES:
        assert text.count(f"\n### {name}\n") == 1
    assert all(f"- `{name}`" in text for name in TRANSFORMS)


def test_the_tree_in_the_readme_has_every_source_file():
    tree = (ROOT / "README.md").read_text()
    for path in (ROOT / "jaxpref").rglob("*.py"):
        if path.name != "__init__.py" and path.parent.name != "families":
            assert f" {path.name} " in tree, f"{path.name} is not in README's tree"
