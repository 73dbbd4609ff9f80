"""One run of a step or a function: its graph, on Tensors that refuse to show their numbers."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from traceback import walk_stack, walk_tb
from typing import Any

import numpy as np

from .. import autodiff, ops
from ..arrays import Array
from ..scope import at, making, masked, record
from ..tensor import Parameter, Tensor
from .errors import CompileError
from .outside import Outside, slot

_READERS = frozenset(
    [f"tinygrad_rnn.{name}" for name in
     ("tensor", "op", "ops", "autodiff", "graph", "inspection", "functional")]
)  # fmt: skip


# --- Tensors that refuse to show their numbers -------------------------------------------------


class _Thread(threading.local):
    run: Record | None = None  # that records


_thread = _Thread()


def _guarded(name: str, what: str) -> Any:
    """Return a method of Tensors that is refused while its thread records."""

    def method(self: Any, *args: Any, **words: Any) -> Any:
        _check(what)
        return getattr(super(Hidden, self), name)(*args, **words)

    return method


class Hidden:
    """While its thread records: a Tensor of which only the engine may see the numbers."""

    __slots__ = ()

    @property
    def data(self) -> Any:
        """The array."""
        if _thread.run is None:
            if type(self) is Recorded:
                raise CompileError(
                    "a Tensor was kept aside while a function was recorded, and has no numbers"
                )
        else:
            frame = sys._getframe(1)
            name = frame.f_globals.get("__name__")
            if name not in _READERS:
                raise _reads(".data")
            if frame.f_code.co_name == "_ids":  # which checks them
                size, what = frame.f_locals["size"], frame.f_locals["what"]
                _thread.run.bounds[self.order] = size, what  # type: ignore[attr-defined]
        return slot.__get__(self)

    @data.setter
    def data(self, value: Any) -> None:
        run = _thread.run
        if run is not None:
            if sys._getframe(1).f_globals.get("__name__") not in _READERS:
                raise CompileError(f"{run.who} sets the numbers of a Tensor{line()}")
            run.made[id(self)] = line()
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

    __bool__, __repr__ = _guarded("__bool__", "bool()"), _guarded("__repr__", "repr()")
    __array__, numpy = _guarded("__array__", "numpy"), _guarded("numpy", ".numpy()")
    item, backward = _guarded("item", ".item()"), _guarded("backward", "backward()")


class Recorded(Hidden, Tensor):
    """A Tensor of a recording."""

    __slots__ = ()

    def detach(self) -> Tensor:
        """Return a leaf that holds its source, which the code may let go."""
        leaf = super().detach()
        leaf.attrs = {"detached": lambda: self}
        leaf.__class__ = Recorded
        return leaf


_kinds: dict[type, type] = {
    kind: type(kind.__name__, (Hidden, kind), {"__slots__": ()}) for kind in (Tensor, Parameter)
}


@contextmanager
def _hiding(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Hide, from this thread, the numbers of Tensors that stand outside of what runs."""
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
    if _thread.run is not None:
        raise _reads(what)


def _reads(what: str) -> CompileError:
    assert _thread.run is not None
    return CompileError(f"{_thread.run.who} reads the value of a Tensor ({what}){line()}")


def line(error: Exception | None = None) -> str:
    """Return where in the user's code the caller is, or an error was: `` at cell.py:12``.

    Inside a recording that is in what runs or in a helper of it; nothing where neither is running.
    """
    frames: Any = walk_stack(sys._getframe(1))
    if error is not None:
        frames = reversed(list(walk_tb(error.__traceback__)))
    entered, step = False, ""
    for frame, number in frames:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("tinygrad_rnn.compiler"):
            if entered:  # what called the step
                break
            continue
        entered = True
        here = f" at {frame.f_code.co_filename}:{number}"
        if not name.startswith(("tinygrad_rnn.", "numpy.")):
            return here
        if ".nn." in name and frame.f_code.co_name == "step":
            step = here  # of a cell of the library
    return step


# --- one recording -----------------------------------------------------------------------------


@dataclass(slots=True)
class Record:
    """What one run made: outputs, and their gradients for the targets."""

    who: str
    start: str  # the line of what comes from no other
    rng: np.random.Generator
    since: int = 0  # the order of what was there before
    first_backward: int = 0
    known: dict[int, tuple[str, str]] = field(default_factory=dict)  # order of a leaf: what it is
    bounds: dict[int, tuple[int, str]] = field(default_factory=dict)  # of ids: below which, of what
    made: dict[int, str] = field(default_factory=dict)  # id of a node: where it was made
    template: Any = None  # what was returned, in which the outputs are
    outputs: list[Tensor] = field(default_factory=list)
    targets: Sequence[Tensor] = ()
    seeds: dict[int, Tensor] = field(default_factory=dict)  # the cotangents, by output
    grads: list[Any] = field(default_factory=list)
    nodes: list[Tensor] = field(default_factory=list)
    lines: dict[int, str] = field(default_factory=dict)  # order of a node: where it comes from

    def leaf(self, kind: str, name: str, a: Array, requires_grad: bool = False) -> Tensor:
        """Return a Tensor that is given."""
        t = Recorded(a, requires_grad)
        self.known[t.order] = kind, name
        return t

    def differentiate(self, targets: Sequence[Tensor], seeded: Sequence[int]) -> None:
        """Make the gradients of the outputs that are seeded; one that is two has two seeds."""
        self.first_backward, self.targets = Tensor(0.0).order, targets
        outs = [self.outputs[k] for k in seeded]
        numbers = [self.rng.uniform(0.1, 0.9, t.shape).astype(t.dtype) for t in outs]
        for k, a in zip(seeded, numbers, strict=True):
            self.seeds[k] = self.leaf("cotangent", str(k), a)
        seeds = list(self.seeds.values())
        found = autodiff.gradients(outs, targets, seeds, create_graph=True) if outs else []
        self.grads = [
            g if g is None or g.shape == t.shape else ops.unbroadcast(g, t.shape)
            for g, t in zip(found, targets, strict=False)
        ]

    def reach(self, outputs: Iterable[Tensor]) -> list[Tensor]:
        """Return what outputs were made from in this run, and what of before it was read."""
        seen: dict[int, Tensor] = {}
        stack = list(outputs)
        while stack:
            t = stack.pop()
            if t.order in seen:
                continue
            seen[t.order] = t
            if t.order > self.since:
                source = source_of(t)
                stack += [*t.inputs, *([] if source is None else [source])]
        return [seen[k] for k in sorted(seen)]

    def made_at(self, t: Any) -> str:
        """Return the line that made a node, or nothing of a leaf."""
        return self.made.get(id(t), "") if isinstance(t, Hidden) else ""

    def trail(self) -> None:
        """Find the line of each node: a leaf has its first reader's, a gradient its op's."""
        for t in self.nodes:
            before = [self.lines[i.order] for i in t.inputs if i.order in self.lines]
            here = self.made_at(t) or (before[-1] if before else "")
            for node in (t, *t.inputs) if here else ():
                self.lines.setdefault(node.order, here)
        self.lines = {t.order: self.lines.get(t.order, self.start) for t in self.nodes}


@contextmanager
def recording(code: Outside, k: int, hidden: Iterable[Tensor], given: Any) -> Iterator[Record]:
    """Record what runs inside, the k-th time, and undo what it changes; raise where it does."""
    run, before = Record(code.who, code.begin(), np.random.default_rng(k)), _thread.run
    with code.undone(given):
        _thread.run = run
        try:
            with (
                _hiding(hidden), np.errstate(all="ignore"), record(), at(None), masked(None),
                making(Recorded),
            ):  # fmt: skip
                run.since = Tensor(0.0).order
                yield run
                run.nodes = run.reach([*run.outputs, *[g for g in run.grads if g is not None]])
                run.trail()
        finally:
            _thread.run = before


def source_of(t: Tensor) -> Any:
    """Return what a detached Tensor shows, without a gradient."""
    ref = t.attrs.get("detached") if t.op is None else None
    return None if ref is None else ref()


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
