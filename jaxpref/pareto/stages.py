"""The parts of a sweep: each is done once, and what it found is kept."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxpref.files import whole_file
from jaxpref.pareto.cost import Work


class Stages:
    """What was done, as JSON files in a directory."""

    def __init__(self, directory: Path):
        self._directory = directory

    def __call__(self, name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What the work returns with its `seconds`, done once and kept; runs say their own
        seconds."""
        path = self._path(name)
        if path.is_file():
            return json.loads(path.read_text())
        began = time.perf_counter()
        found = work()
        found = {"seconds": time.perf_counter() - began, **found}
        with whole_file(path) as partial:
            partial.write_text(json.dumps(found, indent=1) + "\n")
        return found

    def cost(self, name: str) -> Work:
        """Of a finished stage."""
        found = json.loads(self._path(name).read_text())
        return Work(found.get("flops", 0.0), found["seconds"])

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.json"
