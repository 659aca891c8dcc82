"""How much of its tolerance every comparison used: `pytest --margins FILE`, then `python tests/margins.py FILE...`.

A tolerance that one processor just meets, the next one misses. Every call of `assert_allclose` and `allclose` and
every number held against `pytest.approx` is one line of FILE (JSON), written to its end: where, the largest share of
the tolerance that a difference used, and that difference. Several processes may write into one file.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TESTS = Path(__file__).parent


class Recorder:
    """A pytest plugin; it changes what the comparisons write down, not what they find."""

    def __init__(self, file: Path):
        self.file, self.test = file, ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None):
        self.test = item.nodeid
        with pytest.MonkeyPatch.context() as monkeypatch:
            for owner, name in ((np.testing, "assert_allclose"), (np, "allclose")):
                monkeypatch.setattr(owner, name, self.recording(getattr(owner, name)))
            number = type(pytest.approx(1.0))  # lists, mappings and arrays compare element by element through it
            monkeypatch.setattr(number, "__eq__", self.recording_number(number.__eq__))
            return (yield)

    def recording(self, compare):
        defaults = {"assert_allclose": (1e-7, 0.0), "allclose": (1e-5, 1e-8)}[compare.__name__]

        def recorded(actual, desired, rtol=defaults[0], atol=defaults[1], **rest):
            self.write(actual, desired, atol + rtol * np.abs(float64(desired)), rest.get("err_msg", ""))
            return compare(actual, desired, rtol=rtol, atol=atol, **rest)

        return recorded

    def recording_number(self, equal):
        def recorded(approx, actual):
            if isinstance(approx.expected, (int, float, np.number)) and np.ndim(actual) == 0 and actual is not None:
                self.write(actual, approx.expected, approx.tolerance)
            return equal(approx, actual)

        return recorded

    def write(self, actual: Any, desired: Any, allowed: Any, what: str = "") -> None:
        a, b = np.broadcast_arrays(float64(actual), float64(desired))
        allowed = np.broadcast_to(allowed, a.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
            used = np.where(difference == 0.0, 0.0, difference / allowed).ravel()
        worst = int(used.argmax()) if used.size else None
        line = {
            "used": 0.0 if worst is None else float(used[worst]),
            "difference": 0.0 if worst is None else float(difference.ravel()[worst]),
            "allowed": 0.0 if worst is None else float(allowed.ravel()[worst]),
            "largest": float(np.abs(b).max(initial=0.0)),
            "size": used.size,
            "types": [str(getattr(x, "dtype", type(x).__name__)) for x in (actual, desired)],
            "test": self.test,
            "line": line_of_test(),
            "what": what,
        }
        with self.file.open("a") as out:
            out.write(json.dumps(line) + "\n")


def float64(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def line_of_test() -> str:
    """File and line of the innermost caller that is a test's own."""
    frame = sys._getframe()
    while frame := frame.f_back:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(TESTS) and path != Path(__file__):
            return f"{path.relative_to(TESTS)}:{frame.f_lineno}"
    return "?"


def worst_by_line(files: list[str]) -> list[tuple[dict[str, Any], dict[str, float]]]:
    """For every line of the tests: the comparison that used most of its tolerance, and the share by file."""
    worst, shares = {}, defaultdict(dict)
    for file in files:
        for text in Path(file).read_text().splitlines():
            found = json.loads(text)
            if found["used"] > 1.0:  # `!=` or `not`: they must differ, and here they do; or else the test failed
                found["line"] += " (differs or fails)"
            line, used = found["line"], found["used"]
            shares[line][file] = max(used, shares[line].get(file, 0.0))
            if line not in worst or used > worst[line]["used"]:
                worst[line] = found
    return [(worst[line], shares[line]) for line in sorted(worst, key=lambda line: -worst[line]["used"])]


if __name__ == "__main__":
    files = sys.argv[1:]
    for found, by_file in worst_by_line(files):
        shares = " ".join(f"{by_file.get(file, float('nan')):7.3f}" for file in files)
        print(
            f"{shares}  {found['difference']:.2e} of {found['allowed']:.2e}, values up to {found['largest']:.3g}, "
            f"{found['size']} x {'/'.join(dict.fromkeys(found['types']))}  {found['line']}  {found['test']}"
        )
