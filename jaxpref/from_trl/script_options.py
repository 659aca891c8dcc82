"""Options of a script's own, which it reads with `argparse`."""

import ast
from collections.abc import Iterator
from typing import Any

from jaxpref.from_trl.source import Unknown
from jaxpref.from_trl.syntax import called, keywords_of


def own_options(tree: ast.AST) -> dict[str, Any]:
    """Name -> default, of the options that the script adds to its parser."""
    return dict(_own_options(tree))


def _own_options(tree: ast.AST) -> Iterator[tuple[str, Any]]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and called(node) == "add_argument"):
            continue
        words = [word.value for word in node.args if isinstance(word, ast.Constant)]
        long = [str(word)[2:] for word in words if str(word).startswith("--")]
        if long:
            keywords = keywords_of(node, {})
            absent = False if keywords.get("action") == "store_true" else Unknown(long[0])
            name = keywords.get("dest", long[0].replace("-", "_"))
            yield name, keywords.get("default", absent)


def values_of_own(tree: ast.AST, own: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Text in the script (`args.data`) -> value, of the options whose values are known.

    Args:
        given: of the command line; those of the script's own are taken out.
    """
    values = {name: given.pop(name, default) for name, default in own.items()}
    return {
        f"{holder}.{name}": value
        for holder in _holders(tree)
        for name, value in values.items()
        if not isinstance(value, Unknown)
    }


def _holders(tree: ast.AST) -> set[str]:
    """Names that hold what was parsed, `args = parser.parse_args()`; where none does, `args`."""
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    return {
        target.id
        for node in assigned
        if isinstance(node.value, ast.Call) and called(node.value) == "parse_args"
        for target in node.targets
        if isinstance(target, ast.Name)
    } or {"args"}
