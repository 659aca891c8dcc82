"""The front as one HTML page that a browser opens from disk, without a network."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from jaxpref.pareto.front import Front
from jaxpref.pareto.report.style import labelled_with, measure_label, styles, weight_label

_SCRIPTS = ("charts.js", "choices.js", "tables.js", "curves.js", "report.js")


def report_html(front: Front, record: Mapping[str, Any]) -> str:
    """report.html of this package with style, scripts and data in it.

    The page's policy forbids it to load anything and to run any script but this one, whatever an
    answer holds.

    Args:
        record: what front.json holds.
    """
    data = {
        **record,
        "styles": {method: asdict(look) for method, look in styles(front).items()},
        "labels": {point.name: weight_label(front, point.weights) for point in front.points},
        "labelled_with": labelled_with(front),
        "axes": {name: measure_label(front, name) for name in front.objectives},
    }
    script = "".join(map(_file, _SCRIPTS))
    parts = {
        "title": html.escape(front.title),
        "css": _file("report.css"),
        "data": _inside_script(data),
        "script": script,
        "hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    # In one pass, so that no part is searched for the names of others.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _file("report.html"))


def _file(name: str) -> str:
    return files("jaxpref.pareto.report").joinpath(name).read_text(encoding="utf-8")


def _inside_script(data: Any) -> str:
    """JSON that cannot end the element it is in.

    What UTF-8 has no bytes for (half of a surrogate pair) becomes `?`.
    """
    text = json.dumps(data, allow_nan=False, ensure_ascii=False).encode(errors="replace").decode()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
