"""The stages of a sweep: each is done once, and its result is kept."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxpref.files import whole_file
from jaxpref.pareto.cost import Work
from jaxpref.processes.together import first_does


class Stages:
    """Results of finished stages, as JSON files in a directory.

    Of several processes the first reads and writes them; all do the work.

    Args:
        say: told when a stage begins.
    """

    def __init__(self, directory: Path, say: Callable[[str], None] = lambda line: None):
        self._directory, self._say = directory, say

    def __call__(self, name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What the work returns, with its `seconds`; done once and kept.

        Training stages return their own `seconds`, which count all sessions.
        """
        kept = first_does(lambda: self._read(name))
        if kept is not None:
            return kept
        self._say(f"stage {name}")
        began = time.perf_counter()
        result = work()
        result = {"seconds": time.perf_counter() - began, **result}
        return first_does(lambda: self._write(name, result))

    def cost(self, name: str) -> Work:
        """Of a finished stage."""
        result = first_does(lambda: self._read(name))
        return Work(result.get("flops", 0.0), result["seconds"])

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._path(name)
        return json.loads(path.read_text()) if path.is_file() else None

    def _write(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        with whole_file(self._path(name)) as partial:
            partial.write_text(json.dumps(result, indent=1) + "\n")
        return result

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.json"
