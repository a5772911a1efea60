"""The small faults that a source can be given: comparisons, operators, constants, conditions, statements, arguments."""

import ast
import copy
from collections.abc import Callable, Iterator

COMPARISONS = [(ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)]
OPERATORS = [(ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.FloorDiv, ast.Mod), (ast.And, ast.Or), *COMPARISONS]
OTHER = {**dict(OPERATORS), **{there: here for here, there in OPERATORS}}
REMOVED = ast.Expr, ast.AugAssign, ast.Raise, ast.Return, ast.Delete
PASSED_OVER = ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom
UNTOUCHED = "annotation", "returns", "decorator_list"

Fault = tuple[int, str, str, Callable[[], None]]  # line, function, what is changed, the change


def faults(source: str) -> list[tuple[int, str, str]]:
    """Every fault there can be: its line, the function it is in ("f()", or "" outside), and what it changes."""
    return [fault[:3] for fault in _walk(ast.parse(source), "")]


def with_fault(source: str, number: int) -> str:
    """The source with one of them."""
    tree = ast.parse(source)
    list(_walk(tree, ""))[number][3]()
    return ast.unparse(tree)


def _walk(node: ast.AST, scope: str) -> Iterator[Fault]:
    for shown, change in _changes(node):
        yield node.lineno, scope, shown, change  # type: ignore[attr-defined]
    for field, value in ast.iter_fields(node):
        for place, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or isinstance(child, PASSED_OVER) or field in UNTOUCHED:
                continue
            if isinstance(value, list) and _is_removable(child):
                removed = lambda value=value, place=place: value.__setitem__(place, ast.Pass())  # noqa: E731
                yield child.lineno, scope, f"removed: {ast.unparse(child)}", removed  # type: ignore[attr-defined]
            yield from _walk(child, _inner(scope, child))


def _inner(scope: str, child: ast.AST) -> str:
    """As `co_qualname` names it."""
    if not isinstance(child, ast.ClassDef | ast.FunctionDef):
        return scope
    return scope.replace("()", ".<locals>.") + child.name + ("." if isinstance(child, ast.ClassDef) else "()")


def _is_removable(child: ast.AST) -> bool:
    if isinstance(child, ast.Expr):
        return not isinstance(child.value, ast.Constant | ast.Yield)
    is_attribute = isinstance(child, ast.Assign) and not isinstance(child.targets[0], ast.Name | ast.Tuple)
    return is_attribute or isinstance(child, REMOVED)


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[], None]]]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in OTHER:
        yield _changed(node, "ops", [OTHER[type(node.ops[0])]()])
    elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in OTHER:
        yield _changed(node, "op", OTHER[type(node.op)]())
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield _changed(node, "value", not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield _changed(node, "value", node.value + 1)
        yield _changed(node, "value", node.value - 1)
    elif isinstance(node, ast.IfExp | ast.If | ast.While):
        shown = f"not: {ast.unparse(node.test)}"
        yield shown, lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Call) and _has_two_places(node):
        yield _changed(node, "args", [node.args[1], node.args[0], *node.args[2:]])


def _has_two_places(call: ast.Call) -> bool:
    """Whether its first two arguments can be swapped, and that means something."""
    is_plain = len(call.args) > 1 and not any(isinstance(argument, ast.Starred) for argument in call.args[:2])
    return is_plain and ast.unparse(call.func) not in ("max", "min")


def _changed(node: ast.AST, field: str, value: object) -> tuple[str, Callable[[], None]]:
    faulty = copy.copy(node)
    setattr(faulty, field, value)
    return f"{ast.unparse(node)} -> {ast.unparse(faulty)}", lambda: setattr(node, field, value)
