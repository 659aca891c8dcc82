"""The notebooks: what is committed has outputs, and each runs from top to bottom."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_with_outputs(path):
    cells = code_cells(path)
    assert "%pip install" in "".join(cells[0]["source"]), "the first cell installs"
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run once, in order"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    text = "\n".join("".join(output.get("text", [])) for output in outputs)
    data = [item for output in outputs for item in output.get("data", {}).items()]
    figures = [kind for kind, value in data if kind == "image/png" or "data:image/png" in "".join(value)]
    assert figures or path.stem.startswith("5")
    text += "".join("".join(value) for kind, value in data if kind != "image/png")
    text = re.sub('data:image/png;base64,[^"]*', "", text)
    assert not re.search(r"(?<![\w.:/<*])/[\w.-]+/[\w.-]+", text), "no path of the machine that ran it"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, tmp_path):
    """From 1 to some minutes each."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    client.NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(tmp_path)}}).execute()
