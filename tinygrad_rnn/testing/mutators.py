"""Texts with one small fault: where a syntax tree may be changed, and what may stand there.

Stands alone: a runner may load this file without the package that it mutates.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from types import CodeType
from typing import Any, NamedTuple

KINDS = (
    "sign", "factor", "dropped term", "transpose", "axis", "index", "comparison", "constant",
    "swapped arguments", "missing un-broadcast", "missing copy", "negated condition",
    "dropped statement",
)  # fmt: skip
_SHORT = 16  # letters: what is shorter is shown with the expression around it


class _Step(NamedTuple):
    """Where a node hangs: ``parent.name``, or ``parent.name[k]``."""

    parent: ast.AST
    name: str
    k: int | None

    def get(self) -> Any:
        held = getattr(self.parent, self.name)
        return held if self.k is None else held[self.k]

    def put(self, node: Any) -> None:
        if self.k is None:
            setattr(self.parent, self.name, node)
        else:
            getattr(self.parent, self.name)[self.k] = node


@dataclass(frozen=True)
class Mutant:
    """One small fault in a text.

    Attributes
    ----------
    kind : str
        One of ``KINDS``.
    function : str
        Where: ``sweep.arrive``, ``Tensor.backward``; for a call at module level what is called,
        as ``mul.vjp``; for an assignment its target.
    line : int
    before, after : str
        The expression or statement, as it was and as it is.
    number : int
        Counts, from 1, those of one function that look the same.
    """

    kind: str
    function: str
    line: int
    before: str
    after: str
    number: int = 1
    _root: Any = field(default=None, repr=False, compare=False)
    _site: Any = field(default=None, repr=False, compare=False)
    _new: Any = field(default=None, repr=False, compare=False)

    @property
    def key(self) -> str:
        """What names the mutant as long as its function stays as it is: no line number."""
        again = f" ({self.number})" if self.number > 1 else ""
        return f"{self.function}: {self.kind}: {self.before} -> {self.after}{again}"

    def __str__(self) -> str:
        return f"line {self.line}, {self.key}"

    @contextmanager
    def inside(self) -> Iterator[Any]:
        """Hold the fault in the syntax tree, which all mutants of a text share."""
        old = self._site.get()
        self._site.put(self._new)
        try:
            yield self._root
        finally:
            self._site.put(old)

    def compile(self, filename: str) -> CodeType:
        """Return the code of the whole module with the fault in it."""
        with self.inside() as tree:
            code: CodeType = compile(tree, filename, "exec")
            return code

    @property
    def source(self) -> str:
        """The text with the fault in it, without comments."""
        with self.inside() as tree:
            return ast.unparse(tree)


def mutants(source: str, where: Iterable[str] | None = None) -> list[Mutant]:
    r"""Return every mutant of a module's text, in the order of the text, none of them twice.

    Left out are docstrings, annotations, decorators, imports, assertions (``zip(strict=True)``
    is one), and what raises: the statement and the condition that guards nothing else.

    Parameters
    ----------
    source : str
    where : iterable of str, optional
        Which functions, by patterns for ``Mutant.function`` (``*`` stands for anything).

    Raises
    ------
    SyntaxError
        If the text is no Python.

    Examples
    --------
    >>> for mutant in mutants("def area(a, b):\n    return a * b"):
    ...     print(mutant)
    line 2, area: factor: a * b -> 2 * (a * b)
    line 2, area: factor: a * b -> 0.5 * (a * b)
    line 2, area: dropped term: a * b -> a
    line 2, area: dropped term: a * b -> b
    line 2, area: sign: a * b -> -(a * b)
    """
    tree = ast.parse(source)
    patterns = None if where is None else tuple(where)
    return _collect(tree, _module_sites(tree), patterns)


def _module_sites(tree: ast.Module) -> Iterator[_Site]:
    for k, statement in enumerate(tree.body):
        label = ""
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            label = ast.unparse(statement.value.func)
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            label = statement.targets[0].id
        yield from _statement(_Step(tree, "body", k), label, set())


class _Site(NamedTuple):
    path: tuple[_Step, ...]  # from the whole expression down to the node
    label: str
    droppable: bool = False  # a statement


def _statement(at: _Step, label: str, known: set[str]) -> Iterator[_Site]:
    """Yield the places of a statement; `known` are the names that have a value before it."""
    node = at.get()
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        label = f"{label}.{node.name}" if label else node.name
        inner = set(known)
        if not isinstance(node, ast.ClassDef):
            yield from _expressions(node.args, label)
            inner |= {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)}
        yield from _body(node, "body", label, inner)
        return
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    if text or isinstance(node, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom | ast.Pass):
        return
    if isinstance(node, ast.If) and _raises(node.body):
        yield from _body(node, "orelse", label, known)
        return
    if _droppable(node, known):
        yield _Site((at,), label, droppable=True)
    yield from _expressions(node, label)
    for block in ("body", "orelse", "finalbody"):
        yield from _body(node, block, label, known)
    for handler in getattr(node, "handlers", ()):
        if not _raises(handler.body):
            yield from _body(handler, "body", label, known)


def _body(node: ast.AST, name: str, label: str, known: set[str]) -> Iterator[_Site]:
    for k, statement in enumerate(getattr(node, name, ())):
        yield from _statement(_Step(node, name, k), label, known)
        known |= {
            n.id
            for n in ast.walk(statement)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }


def _raises(body: list[ast.stmt]) -> bool:
    """Whether a block does nothing but raise, and prepare what it raises."""
    return isinstance(body[-1], ast.Raise) and all(
        isinstance(s, ast.Assign | ast.Raise) for s in body
    )


def _droppable(node: ast.AST, known: set[str]) -> bool:
    """Whether the program has a meaning without the statement."""
    if isinstance(node, ast.Assign):
        return all(not isinstance(t, ast.Name) or t.id in known for t in _targets(node.targets))
    if isinstance(node, ast.Return):
        return node.value is None
    return isinstance(node, ast.AugAssign | ast.Continue | ast.Break) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    )


def _targets(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in nodes:
        if isinstance(node, ast.Tuple | ast.List):
            yield from _targets(node.elts)
        else:
            yield node


def _expressions(node: ast.AST, label: str, path: tuple[_Step, ...] = ()) -> Iterator[_Site]:
    """Yield every expression under a node, each before its parts; statements are left out."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for k, part in enumerate(value) if isinstance(value, list) else ((None, value),):
            other = ast.stmt | ast.JoinedStr | ast.excepthandler
            strict = isinstance(part, ast.keyword) and part.arg == "strict"  # zip's: an assertion
            if not isinstance(part, ast.AST) or isinstance(part, other) or strict:
                continue
            here = (*path, _Step(node, name, k))
            if isinstance(part, ast.expr):
                yield _Site(here, label)
            yield from _expressions(part, label, here)


def _collect(
    root: ast.AST, sites: Iterable[_Site], patterns: tuple[str, ...] | None
) -> list[Mutant]:
    found: list[Mutant] = []
    seen: set[tuple[int, str, int | None, str]] = set()
    numbers: dict[str, int] = {}
    for path, label, droppable in sites:
        if patterns is not None and not any(fnmatchcase(label, p) for p in patterns):
            continue
        top, site = path[0], path[-1]
        node = site.get()
        original = ast.unparse(top.get())
        before = [ast.unparse(step.get()) for step in path]
        shown = _context(path, before)
        for kind, new in _DROPPED if droppable else _changes(node, path):
            ast.fix_missing_locations(ast.copy_location(new, node))
            site.put(new)
            text, after = ast.unparse(top.get()), ast.unparse(path[shown].get())
            site.put(node)
            place = (id(top.parent), top.name, top.k, text)
            if text == original or place in seen:
                continue
            seen.add(place)
            mutant = Mutant(kind, label, node.lineno, before[shown], after, 1, root, site, new)
            number = numbers[mutant.key] = numbers.get(mutant.key, 0) + 1
            found.append(replace(mutant, number=number))
    return found


def _context(path: tuple[_Step, ...], texts: list[str]) -> int:
    """Return how far down the path the expression is that shows a mutant well."""
    k = len(path) - 1
    while k and (len(texts[k]) < _SHORT or not isinstance(path[k].get(), ast.expr)):
        if isinstance(path[k].parent, ast.Lambda) or not isinstance(path[k - 1].get(), ast.AST):
            break
        k -= 1
    return k


# --- what may be wrong ---------------------------------------------------------------------------

Changes = Iterator[tuple[str, ast.AST]]
_DROPPED: tuple[tuple[str, ast.AST], ...] = (("dropped statement", ast.Pass()),)

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_SUMS = {"unbroadcast", "sum", "reshape", "broadcast"}  # as a function or as a method
_COPIES = {"copy", "array", "ascontiguousarray", "asarray"}


def _changes(node: Any, path: tuple[_Step, ...]) -> Changes:
    """Yield what could stand in the place of an expression."""
    if not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
        if isinstance(node, ast.Subscript):
            yield from _indices(node)
        return
    at = path[-1]
    match node:
        case ast.BinOp() if not _sequence(node):
            yield from _products_and_sums(node, at)
        case ast.UnaryOp(op=ast.USub()):
            yield "sign", node.operand
        case ast.UnaryOp(op=ast.Not()):
            yield "negated condition", node.operand
        case ast.BoolOp():
            for k in range(len(node.values)):
                rest = node.values[:k] + node.values[k + 1 :]
                term = rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
                yield "dropped term", term
        case ast.Compare():
            for k, op in enumerate(node.ops):
                for other in _COMPARISONS[type(op)]:
                    ops = [*node.ops[:k], other(), *node.ops[k + 1 :]]
                    yield "comparison", ast.Compare(node.left, ops, node.comparators)
        case ast.Constant():
            yield from _constants(node)
        case ast.Attribute(attr="T" | "mT"):
            yield "transpose", node.value
            if node.attr == "mT":
                yield "transpose", ast.Attribute(node.value, "T", ast.Load())
        case ast.Subscript():
            yield from _indices(node)
        case ast.Call():
            yield from _calls(node)
        case ast.IfExp():
            yield (
                "negated condition",
                ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse),
            )
    if isinstance(at.parent, ast.If | ast.While) or at.name == "ifs":
        yield "negated condition", ast.UnaryOp(ast.Not(), node)
    if isinstance(at.parent, ast.Lambda | ast.Return) and at.name in ("body", "value"):
        yield from _results(node, isinstance(at.parent, ast.Lambda))


def _times(factor: float, node: ast.expr) -> ast.expr:
    return ast.BinOp(ast.Constant(factor), ast.Mult(), node)


def _sequence(node: ast.AST) -> bool:
    """Whether a term is surely a list, tuple or text, where + and * do not calculate."""
    if isinstance(node, ast.BinOp):
        return _sequence(node.left) or _sequence(node.right)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in ("tuple", "list")
    return isinstance(node, ast.List | ast.Tuple | ast.ListComp | ast.JoinedStr | ast.GeneratorExp)


def _products_and_sums(node: ast.BinOp, at: _Step) -> Changes:
    left, op, right = node.left, node.op, node.right
    if isinstance(op, ast.Mult | ast.Div | ast.MatMult):
        above = at.parent
        if not (isinstance(above, ast.BinOp) and isinstance(above.op, ast.Mult | ast.Div)):
            yield "factor", _times(2, node)
            yield "factor", _times(0.5, node)
    if isinstance(op, ast.Add | ast.Sub):
        other = ast.Sub() if isinstance(op, ast.Add) else ast.Add()
        yield "sign", ast.BinOp(left, other, right)
    if isinstance(op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.MatMult):
        yield "dropped term", left
    if isinstance(op, ast.Add | ast.Mult | ast.MatMult):
        yield "dropped term", right
    elif isinstance(op, ast.Sub):
        yield "dropped term", ast.UnaryOp(ast.USub(), right)
    if isinstance(op, ast.MatMult):
        yield "transpose", ast.BinOp(right, op, left)
        for a, b in ((_transposed(left), right), (left, _transposed(right))):
            yield "transpose", ast.BinOp(a, op, b)
    elif isinstance(op, ast.Sub | ast.Div | ast.Pow | ast.Mod | ast.FloorDiv):
        yield "swapped arguments", ast.BinOp(right, op, left)


def _transposed(node: ast.expr) -> ast.expr:
    if isinstance(node, ast.Attribute) and node.attr in ("T", "mT"):
        return node  # without its transpose it is a mutant of its own
    return ast.Attribute(node, "mT", ast.Load())


def _constants(node: ast.Constant) -> Changes:
    value = node.value
    if isinstance(value, bool):
        yield "constant", ast.Constant(not value)
    elif isinstance(value, int):
        yield "constant", ast.Constant(value + 1)
        if value > 0:
            yield "constant", ast.Constant(value - 1)
    elif isinstance(value, float):
        yield "constant", ast.Constant(2 * value if value else 1.0)


def _moved(index: ast.expr, by: int) -> ast.expr:
    if _countable(index) and isinstance(index, ast.Constant | ast.UnaryOp):
        return _number(ast.literal_eval(index) + by)
    return ast.BinOp(index, ast.Add() if by > 0 else ast.Sub(), ast.Constant(1))


def _number(value: int) -> ast.expr:
    return ast.Constant(value) if value >= 0 else ast.UnaryOp(ast.USub(), ast.Constant(-value))


def _countable(index: ast.AST) -> bool:
    """Whether an index may be a number that has neighbours."""
    if isinstance(index, ast.Constant):
        return type(index.value) is int
    if isinstance(index, ast.UnaryOp):
        return isinstance(index.op, ast.USub) and _countable(index.operand)
    return isinstance(index, ast.Name | ast.Attribute | ast.BinOp) and not _sequence(index)


def _indices(node: ast.Subscript) -> Changes:
    """Yield the subscript with one number in its brackets moved by one."""
    whole = node.slice
    parts = whole.elts if isinstance(whole, ast.Tuple) else [whole]
    for k, part in enumerate(parts):
        for new in _neighbours(part):
            index: ast.expr = new
            if isinstance(whole, ast.Tuple):
                index = ast.Tuple([*parts[:k], new, *parts[k + 1 :]], ast.Load())
            yield "index", ast.Subscript(node.value, index, node.ctx)


def _neighbours(index: ast.expr) -> Iterator[ast.expr]:
    if isinstance(index, ast.Slice):
        low, high, step = index.lower, index.upper, index.step
        if step is not None:
            yield ast.Slice(low, high, None)
            return
        for new in [ast.Constant(1)] if low is None else [_moved(low, 1), _moved(low, -1)]:
            yield ast.Slice(new, high, None)
        for new in [_number(-1)] if high is None else [_moved(high, 1), _moved(high, -1)]:
            yield ast.Slice(low, new, None)
    elif _countable(index):
        yield _moved(index, 1)
        yield _moved(index, -1)


def _calls(node: ast.Call) -> Changes:
    args, keywords = node.args, node.keywords
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    method = isinstance(node.func, ast.Attribute) and _name(node.func.value) not in ("np", "ops")
    if name in _SUMS and (args or method):
        inner = node.func.value if method else args[0]  # type: ignore[attr-defined]
        yield "missing un-broadcast", inner
    if name in _COPIES and not (method and args) and (args or method):
        yield "missing copy", node.func.value if method else args[0]  # type: ignore[attr-defined]
    if name in ("transpose", "reversed") and (args or method):
        yield "transpose", node.func.value if method else args[0]  # type: ignore[attr-defined]
    if name == "range":
        for k, arg in enumerate(args):
            for by in (1, -1):
                yield "index", ast.Call(node.func, [*args[:k], _moved(arg, by), *args[k + 1 :]], [])
    for k, (a, b) in enumerate(pairwise(args)):
        if not isinstance(a, ast.Starred) and not isinstance(b, ast.Starred) and name != "range":
            swapped = [*args[:k], b, a, *args[k + 2 :]]
            yield "swapped arguments", ast.Call(node.func, swapped, keywords)
    for k, word in enumerate(keywords):
        if word.arg in ("axis", "axes", "keepdims"):
            rest = keywords[:k] + keywords[k + 1 :]
            yield "axis", ast.Call(node.func, args, rest)
            for value in _other_axes(word.value):
                changed = [*keywords[:k], ast.keyword(word.arg, value), *keywords[k + 1 :]]
                yield "axis", ast.Call(node.func, args, changed)


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _other_axes(axis: ast.expr) -> Iterator[ast.expr]:
    if isinstance(axis, ast.Constant) and isinstance(axis.value, bool):
        yield ast.Constant(not axis.value)
    elif isinstance(axis, ast.Constant | ast.UnaryOp) and _countable(axis):
        yield _moved(axis, 1)
        yield _moved(axis, -1)


def _results(node: ast.expr, of_lambda: bool) -> Changes:
    """Yield what is returned with another sign or size, where it is a number or an array."""
    if isinstance(node, ast.BinOp | ast.UnaryOp | ast.Name | ast.Call | ast.Attribute):
        if _sequence(node) or not (of_lambda or isinstance(node, ast.BinOp)):
            return
        if not isinstance(node, ast.UnaryOp):
            yield "sign", ast.UnaryOp(ast.USub(), node)
        yield "factor", _times(2, node)
        yield "factor", _times(0.5, node)


def of_function(root: Any, label: str) -> list[Mutant]:
    """Return the mutants of one function or lambda, given as a syntax tree."""
    return _collect(root, _function_sites(root, label), None)


def _function_sites(root: Any, label: str) -> Iterator[_Site]:
    yield from _expressions(root if isinstance(root, ast.Lambda) else root.args, label)
    if not isinstance(root, ast.Lambda):
        known = {a.arg for a in ast.walk(root.args) if isinstance(a, ast.arg)}
        yield from _body(root, "body", label, known)
