"""What the syntax tree of a script says without running it."""

import ast
import operator
from collections.abc import Mapping
from typing import Any

from jaxpref.from_trl.source import Unknown

_NUMBERS = {
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_CHANGES_IN_PLACE = ("update", "append", "extend", "insert", "pop", "setdefault")


def assigned(tree: ast.AST) -> dict[str, Any]:
    """Names that are given a value once and keep it, as far as it is known."""
    given: dict[str, list[ast.expr]] = {}
    for node in sorted(_assignments(tree), key=lambda node: node.lineno):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and node.value is not None:
                given.setdefault(target.id, []).append(node.value)
    changed, values = _changed(tree), {}
    for name, nodes in given.items():
        if len(nodes) == 1 and name not in changed:
            value = _evaluated(nodes[0], values)
            if isinstance(value, dict) or not _is_unknown(value):
                values[name] = value
    return values


def called(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def owner_of(call: ast.Call) -> str:
    """The class of a class method that is called."""
    return ast.unparse(call.func).split(".")[-2] if isinstance(call.func, ast.Attribute) else ""


def keywords_of(call: ast.Call, values: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword -> value, those of a dict behind ** too; one that is not known is Unknown whole."""
    keywords: dict[str, Any] = {}
    for item in call.keywords:
        if item.arg is not None:
            keywords[item.arg] = value_of(item.value, values)
            continue
        behind, text = _evaluated(item.value, values), ast.unparse(item.value)
        many = behind if isinstance(behind, dict) else {f"**{text}": Unknown(text)}
        keywords |= {name: _whole(value, Unknown(text)) for name, value in many.items()}
    return keywords


def value_of(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """What an expression comes to where `values` has its names and attributes, or Unknown."""
    return _whole(_evaluated(node, values), Unknown(ast.unparse(node)))


def _whole(value: Any, otherwise: Unknown) -> Any:
    """A value that is known in all its parts."""
    if isinstance(value, Unknown) or not _is_unknown(value):
        return value
    return otherwise


def _is_unknown(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_unknown, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_is_unknown, value))
    return isinstance(value, Unknown)


def _evaluated(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """As `value_of`; of a dict the entries that are known."""
    text = ast.unparse(node)
    if text in values:
        return values[text]
    if isinstance(node, ast.List | ast.Tuple):
        items = [_evaluated(item, values) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        keys = [ast.literal_eval(key) for key in node.keys]
        entries = zip(keys, node.values, strict=True)
        return {key: _evaluated(value, values) for key, value in entries}
    if isinstance(node, ast.Call) and text.startswith("dict(") and not node.args:
        return keywords_of(node, values)
    if isinstance(node, ast.JoinedStr):
        return _joined(node, values)
    if isinstance(node, ast.BinOp):
        return _computed(node, values)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return text if text.startswith("torch.") else Unknown(text)


def _joined(node: ast.JoinedStr, values: Mapping[str, Any]) -> Any:
    """An f-string whose parts are known and need no format."""
    text = ""
    for part in node.values:
        plain: Any = part
        if isinstance(part, ast.FormattedValue):
            if part.format_spec is not None or part.conversion != -1:
                return Unknown(ast.unparse(node))
            plain = part.value
        value = _evaluated(plain, values)
        if not isinstance(value, str | int | float):
            return Unknown(ast.unparse(node))
        text += str(value)
    return text


def _computed(node: ast.BinOp, values: Mapping[str, Any]) -> Any:
    """A sum of numbers or of texts, and other arithmetic of numbers."""
    left, right = _evaluated(node.left, values), _evaluated(node.right, values)
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    texts = isinstance(left, str) and isinstance(right, str)
    if isinstance(node.op, ast.Add) and (numbers or texts):
        return left + right
    try:
        return _NUMBERS[type(node.op)](left, right) if numbers else Unknown(ast.unparse(node))
    except (KeyError, ArithmeticError):
        return Unknown(ast.unparse(node))


def _assignments(tree: ast.AST) -> list[ast.Assign | ast.AnnAssign]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign)]


def _changed(tree: ast.AST) -> set[str]:
    """Names whose values the script changes in place."""
    names = set()
    for node in ast.walk(tree):
        inside: ast.AST | None = None
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            inside = node.value
        elif isinstance(node, ast.AugAssign):
            inside = node.target
        elif isinstance(node, ast.Call) and called(node) in _CHANGES_IN_PLACE:
            inside = node.func.value if isinstance(node.func, ast.Attribute) else None
        if isinstance(inside, ast.Name):
            names.add(inside.id)
    return names
