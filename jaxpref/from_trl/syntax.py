"""What the syntax tree of a script says without running it."""

import ast
from collections.abc import Iterator
from typing import Any

from jaxpref.from_trl.source import Unknown


def assigned(tree: ast.AST) -> Iterator[tuple[str, Any]]:
    """Names that are given a constant once."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(node.value)
    for name, given in found.items():
        if len(given) == 1:
            try:
                yield name, ast.literal_eval(given[0])
            except ValueError:
                continue


def called(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def owner_of(call: ast.Call) -> str:
    """The class of a class method that is called."""
    return ast.unparse(call.func).split(".")[-2] if isinstance(call.func, ast.Attribute) else ""


def keywords_of(call: ast.Call, values: dict[str, Any]) -> dict[str, Any]:
    return {item.arg: value_of(item.value, values) for item in call.keywords if item.arg}


def value_of(node: ast.expr, values: dict[str, Any]) -> Any:
    """A constant, what `values` has for a name or for an attribute (`args.data`), or Unknown."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        text = ast.unparse(node)
        return values.get(text, text if text.startswith("torch.") else Unknown(text))
