"""One recording of a function: its graph, on Tensors that refuse to show their numbers."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import autodiff
from ..arrays import Array
from ..scope import at, making, masked, record
from ..tensor import Parameter, Tensor
from .errors import CompileError
from .surroundings import PLAIN
from .trace import ENGINE

_READERS = ENGINE | {"tinygrad_rnn.functional"}  # what may look at the numbers
slot: Any = Tensor.__dict__["data"]


# --- Tensors that refuse to show their numbers -------------------------------------------------


class _Thread(threading.local):
    lines: dict[int, str] | None = None  # id of a node: where it was made; None: no recording


_thread = _Thread()


class _Hidden:
    """While its thread records: a Tensor of which only the engine may see the numbers."""

    __slots__ = ()

    @property
    def data(self) -> Any:
        """The array."""
        if _thread.lines is None:
            if type(self) is Recorded:
                raise CompileError(
                    "a Tensor was kept aside while a function was recorded, and has no numbers"
                )
        elif sys._getframe(1).f_globals.get("__name__") not in _READERS:
            raise _reads(".data")
        return slot.__get__(self)

    @data.setter
    def data(self, value: Any) -> None:
        if _thread.lines is not None:
            if sys._getframe(1).f_globals.get("__name__") not in _READERS:
                raise CompileError(f"it sets the numbers of a Tensor{_line()}")
            _thread.lines[id(self)] = _line()
        slot.__set__(self, value)

    @property
    def grad(self) -> Any:
        """The gradient."""
        _check(".grad")
        return self._grad  # type: ignore[attr-defined]

    @grad.setter
    def grad(self, value: Any) -> None:
        _check(".grad")
        Tensor.grad.__set__(self, value)  # type: ignore[attr-defined]

    def __bool__(self) -> bool:
        _check("bool()")
        return super().__bool__()  # type: ignore[misc,no-any-return]

    def __array__(self, *args: Any, **words: Any) -> Any:
        _check("numpy")
        return super().__array__(*args, **words)  # type: ignore[misc]

    def __repr__(self) -> str:
        _check("repr()")
        return super().__repr__()

    def item(self) -> Any:
        """Return the number."""
        _check(".item()")
        return super().item()  # type: ignore[misc]

    def numpy(self) -> Any:
        """Return the array."""
        _check(".numpy()")
        return super().numpy()  # type: ignore[misc]

    def backward(self, gradient: Any = None) -> None:
        """Run back."""
        _check("backward()")
        super().backward(gradient)  # type: ignore[misc]


class Recorded(_Hidden, Tensor):
    """A Tensor of a recording."""

    __slots__ = ()

    def detach(self) -> Tensor:
        """Return a leaf that holds its source, which the function may let go."""
        leaf = super().detach()
        leaf.attrs = {"detached": lambda: self}
        leaf.__class__ = Recorded
        return leaf


_kinds: dict[type, type] = {
    kind: type(kind.__name__, (_Hidden, kind), {"__slots__": ()}) for kind in (Tensor, Parameter)
}


@contextmanager
def hiding(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Hide, from this thread, the numbers of Tensors that stand outside of the function."""
    changed = []
    try:
        for t in tensors:
            kind = type(t)
            if kind in _kinds:
                t.__class__ = _kinds[kind]
                changed.append((t, kind))
        yield
    finally:
        for t, kind in changed:
            t.__class__ = kind


def _check(what: str) -> None:
    if _thread.lines is not None:
        raise _reads(what)


def _reads(what: str) -> CompileError:
    return CompileError(f"it reads the value of a Tensor ({what}){_line()}")


def _line() -> str:
    """Return where in the user's code the caller is: `` at model.py:12``."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith(("tinygrad_rnn.", "numpy.")):
            return f" at {frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


# --- nests -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where in what a function returns its k-th Tensor stands."""

    k: int


def spread(value: Any, kinds: Any, f: Callable[[Any], Any]) -> Any:
    """Return a nest of tuples, lists and dicts with `f` applied to what is of `kinds` in it."""
    if isinstance(value, kinds):
        return f(value)
    if isinstance(value, tuple):
        parts = [spread(v, kinds, f) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if type(value) is list:
        return [spread(v, kinds, f) for v in value]
    if type(value) is dict:
        return {k: spread(v, kinds, f) for k, v in value.items()}
    return value


class ComplexError(CompileError):
    """What it computes is for checks, and runs plainly without a warning."""


# --- one recording -----------------------------------------------------------------------------


@dataclass(slots=True)
class Record:
    """What one run of a function made."""

    nodes: list[Tensor]
    first_backward: int
    known: dict[int, tuple[str, int]]  # order of a leaf: an argument or a cotangent, and its number
    outputs: list[Tensor]
    template: Any
    targets: list[Tensor]
    grads: list[Any]
    seeded: list[int]
    since: int
    lines: dict[int, str]  # order of a node: where it was made


def record_once(
    call: Callable[[Sequence[Any]], Any],
    given: Sequence[tuple[Array, bool]],
    k: int,
    backward: bool,
) -> Record:
    """Run a function and its gradients, recorded; the numbers are those given only for k = 0."""
    known: dict[int, tuple[str, int]] = {}
    found: dict[int, Tensor] = {}
    before, _thread.lines = _thread.lines, {}

    def leaf(kind: str, n: int, a: Array, requires_grad: bool = False) -> Tensor:
        t = Recorded(a, requires_grad)
        known[t.order] = kind, n
        return t

    def one(t: Any) -> Place:
        if not isinstance(t, Tensor):
            raise CompileError("it returns an array that is no Tensor")
        found.setdefault(t.order, t)
        return Place(list(found).index(t.order))

    rng = np.random.default_rng(k)
    try:
        with np.errstate(all="ignore"), record(), at(None), masked(None), making(Recorded):
            since = Tensor(0.0).order
            args = [
                leaf("argument", n, _others(x, rng) if k else x.copy(), requires_grad)
                for n, (x, requires_grad) in enumerate(given)
            ]
            template = spread(call(args), (Tensor, np.ndarray, np.generic), one)
            _check_rest(template)
            outputs = list(found.values())
            if not outputs:
                raise CompileError("it returns no Tensor")
            nodes = _nodes(outputs, since)
            if any(t.dtype.kind == "c" for t in nodes):
                raise ComplexError("it computes with complex numbers")
            for t in nodes:
                if t.order < since and t.op is not None and t.requires_grad:
                    raise CompileError(
                        f"it reads the result of {t.op.name} {t.shape} from outside: pass it on as "
                        f"an argument"
                    )
            targets = [t for t in nodes if t.requires_grad and (t.order in known or t.order < since)
                       and t.dtype.kind == "f"] if backward else []  # fmt: skip
            first = Tensor(0.0).order
            seeded = [n for n, t in enumerate(outputs) if targets and t.op is not None
                      and t.order > since and t.requires_grad and t.dtype.kind == "f"]  # fmt: skip
            seeds = [leaf("cotangent", n, np.full(outputs[n].shape, 0.5, outputs[n].dtype))
                     for n in seeded]  # fmt: skip
            outs = [outputs[n] for n in seeded]
            grads = autodiff.gradients(outs, targets, seeds, create_graph=True) if outs else []
            nodes = _nodes([*outputs, *[g for g in grads if g is not None]], since)
            lines = {t.order: _thread.lines.get(id(t), "") for t in nodes}
    finally:
        _thread.lines = before
    return Record(nodes, first, known, outputs, template, targets if outs else [], grads, seeded,
                since, lines)  # fmt: skip


def _check_rest(template: Any) -> None:
    """Raise where a function returns what is neither a Tensor nor plain."""
    if isinstance(template, tuple | list):
        for v in template:
            _check_rest(v)
    elif type(template) is dict:
        for v in template.values():
            _check_rest(v)
    elif type(template) is not Place and type(template) not in PLAIN:
        raise CompileError(f"it returns a {type(template).__name__}, which is no Tensor")


def _others(a: Array, rng: np.random.Generator) -> Array:
    """Return other numbers near those of `a`; of integers, the same in other places."""
    if a.dtype.kind == "f":
        with np.errstate(all="ignore"):
            return np.asarray(a + (np.abs(a) * 0.01 + 1e-4) * rng.uniform(0.5, 1, a.shape), a.dtype)
    return np.roll(a.reshape(-1), 1).reshape(a.shape)


def source_of(t: Tensor) -> Any:
    """Return what a detached Tensor shows, without a gradient."""
    ref = t.attrs.get("detached") if t.op is None else None
    return None if ref is None else ref()


def _nodes(outputs: Sequence[Tensor], since: int) -> list[Tensor]:
    """Return what outputs were made from since then, and what of before that was read."""
    seen: dict[int, Tensor] = {}
    stack = list(outputs)
    while stack:
        t = stack.pop()
        if t.order in seen:
            continue
        seen[t.order] = t
        if t.order > since:
            stack += t.inputs
            source = source_of(t)
            if source is not None:
                stack.append(source)
    return [seen[k] for k in sorted(seen)]
