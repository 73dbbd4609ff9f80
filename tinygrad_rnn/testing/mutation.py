"""Mutants: programs with one small fault, to ask whether a check would see it.

``mutants`` works on the text of a module, ``rule_mutants`` on the backward rules of an ``Op`` in
this process; what no check notices (``survivors``) is a hole in the checks, or no fault at all.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from ..op import Op
from .mutators import KINDS, Mutant, mutants, of_function

__all__ = ["KINDS", "Mutant", "RuleMutant", "applied", "mutants", "rule_mutants", "survivors"]


@dataclass(frozen=True)
class RuleMutant:
    """A backward rule with one small fault.

    Attributes
    ----------
    mutant : Mutant
        ``mutant.function`` says which rule: ``cube.rules[0]``.
    rule : callable
        What to put in its place.
    slots : tuple of (str, int or None)
        The attributes of the op that hold the rule, and where in them.
    """

    mutant: Mutant
    rule: Callable[..., Any]
    slots: tuple[tuple[str, int | None], ...]

    def __str__(self) -> str:
        return str(self.mutant)


def rule_mutants(op: Op) -> list[RuleMutant]:
    """Return every mutant of an op's rules and collectors: functions and lambdas, by their text.

    Raises
    ------
    ValueError
        If the text of a rule cannot be found, as of one typed in at a prompt.

    Examples
    --------
    >>> from tinygrad_rnn import ops
    >>> print(rule_mutants(ops.neg)[0].mutant.key)
    neg.rules[0]: sign: -g -> g
    """
    found = []
    for rule, slots in _rules(op).items():
        name = f"{op.name}.{slots[0][0]}" + ("" if slots[0][1] is None else f"[{slots[0][1]}]")
        root = _text_of(rule, name)
        for mutant in of_function(root, name):
            with mutant.inside() as node:
                found.append(RuleMutant(mutant, _rebuilt(rule, node), slots))
    return found


def _rules(op: Op) -> dict[Callable[..., Any], tuple[tuple[str, int | None], ...]]:
    """Return each rule with the slots that hold it."""
    slots: list[tuple[str, int | None]] = [("rules", k) for k in range(len(op.rules))]
    slots += [("rule_all", None), *(("collectors", k) for k in range(len(op.collectors)))]
    found: dict[Callable[..., Any], tuple[tuple[str, int | None], ...]] = {}
    for name, k in slots:
        held = getattr(op, name)
        rule = held if k is None else held[k]
        if rule is not None:
            found[rule] = (*found.get(rule, ()), (name, k))
    return found


def _text_of(rule: Callable[..., Any], name: str) -> Any:
    """Return the syntax tree of a function, found by the positions of its code in the file."""
    code: CodeType | None = getattr(rule, "__code__", None)
    lines = linecache.getlines(code.co_filename, getattr(rule, "__globals__", None)) if code else []
    if code is None or not lines:
        raise ValueError(
            f"{name} cannot be mutated: there is no text of {rule!r}; "
            f"write it as a function or a lambda in a file"
        )
    tree = _parsed("".join(lines))
    spans: list[Any] = [p for p in code.co_positions() if p[0] and p[3]]  # head and end have none
    fitting: list[tuple[tuple[int, int], Any]] = []
    node: Any
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda) and code.co_name == "<lambda>":
            body: Any = node.body
            start, end = (body.lineno, body.col_offset), (body.end_lineno, body.end_col_offset)
            inside = all(start <= (p[0], p[2]) and (p[1], p[3]) <= end for p in spans)
            if inside and node.lineno == code.co_firstlineno:
                fitting.append(((end[0] - start[0], end[1] - start[1]), node))
        elif isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *[d.lineno for d in node.decorator_list]])
            if first == code.co_firstlineno:
                return node
    if not fitting:
        raise ValueError(f"{name} cannot be mutated: its file has changed since it was imported")
    return min(fitting, key=lambda pair: pair[0])[1]


@lru_cache(maxsize=8)
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def _rebuilt(rule: Any, node: Any) -> Callable[..., Any]:
    """Return the function that a changed syntax tree says, among the names of the old one."""
    free = rule.__code__.co_freevars
    if isinstance(node, ast.Lambda):
        last: list[ast.stmt] = [ast.Return(node)]
    else:
        plain = ast.FunctionDef(node.name, node.args, node.body, [], None, None)
        last = [ast.copy_location(plain, node), ast.Return(ast.Name(node.name, ast.Load()))]
    args = ast.arguments([], [ast.arg(n) for n in free], None, [], [], None, [])
    make = ast.FunctionDef("make", args, last, [], None, None)
    module = ast.fix_missing_locations(ast.Module([make], []))
    local: dict[str, Any] = {}
    exec(compile(module, rule.__code__.co_filename, "exec"), rule.__globals__, local)
    cells = dict(zip(free, rule.__closure__ or (), strict=True))
    new = local["make"](*[_held(c) for c in cells.values()])
    closure = tuple([cells[n] for n in new.__code__.co_freevars])
    twin = FunctionType(new.__code__, rule.__globals__, rule.__name__, new.__defaults__, closure)
    twin.__kwdefaults__ = new.__kwdefaults__
    return twin


def _held(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing yet
        return None


@contextmanager
def applied(op: Op, mutant: RuleMutant) -> Iterator[None]:
    """Let `op` have the mutated rule inside.

    >>> from tinygrad_rnn import Tensor, grad, ops
    >>> x = Tensor(2.0, requires_grad=True)
    >>> with applied(ops.neg, rule_mutants(ops.neg)[0]):
    ...     grad(-x, x)
    array(1.)
    >>> grad(-x, x)
    array(-1.)
    """
    before = {name: getattr(op, name) for name, _ in mutant.slots}
    for name, k in mutant.slots:
        held = getattr(op, name)
        new = mutant.rule if k is None else (*held[:k], mutant.rule, *held[k + 1 :])
        setattr(op, name, new)
    try:
        yield
    finally:
        for name, held in before.items():
            setattr(op, name, held)


def survivors(op: Op, kills: Callable[[], bool]) -> list[Mutant]:
    """Return the mutants of an op's rules that a check does not see.

    Parameters
    ----------
    op : Op
    kills : callable
        Runs the checks on `op` as it is and returns whether one failed; an exception counts as
        a failure.

    Raises
    ------
    ValueError
        If the checks fail on the op without a fault, or the text of a rule cannot be found.

    Examples
    --------
    >>> from tinygrad_rnn import Tensor, grad, ops
    >>> x = Tensor(2.0, requires_grad=True)
    >>> [str(m) for m in survivors(ops.neg, lambda: grad(-x, x) != -1)]
    []
    """
    if _fails(kills):
        raise ValueError(f"the checks of {op.name} fail without a fault: mend these first")
    found = []
    for mutant in rule_mutants(op):
        with applied(op, mutant):
            if not _fails(kills):
                found.append(mutant.mutant)
    return found


def _fails(kills: Callable[[], bool]) -> bool:
    try:
        return bool(kills())
    except Exception:
        return True
