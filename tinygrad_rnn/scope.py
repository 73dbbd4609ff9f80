"""Where a node is made and under which rules: places, marks, ``no_grad``, ``record``."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from .arrays import Array

NEVER, NEEDED, ALWAYS = 0, 1, 2  # what is recorded


class Call:
    """One call of a module: what tells its nodes from those of its next call."""

    __slots__ = ("path", "steps")

    def __init__(self, path: str, steps: int | None = None) -> None:
        self.path = path
        self.steps = steps


class Place:
    """Where a node was made: in which call, and in a recurrent layer which layer and step.

    `step` counts from 0 in ids; what a person reads counts t from 1, as the lecture does.
    """

    __slots__ = ("call", "direction", "layer", "step")

    def __init__(
        self,
        call: Call,
        layer: int | None = None,
        direction: str | None = None,
        step: int | None = None,
    ) -> None:
        self.call, self.layer, self.direction, self.step = call, layer, direction, step

    def id(self, number: int, name: str) -> str:
        """Return ``encoder#2.L0.fwd.T3.f`` for the node `name` in the call of that number."""
        parts = [self.call.path + (f"#{number}" if number > 1 else "")]
        if self.layer is not None:
            parts += [f"L{self.layer}", str(self.direction)]
        if self.step is not None:
            parts.append(f"T{self.step}")
        return ".".join([p for p in parts if p] + [name])

    def __str__(self) -> str:
        text = self.call.path
        if self.layer is not None:
            text += f"{'.' if text else ''}L{self.layer}.{self.direction}"
        if self.step is not None:
            text += f", step t={self.step + 1} of {self.call.steps}"
        return text


class Mask:
    """What a recurrent layer drops of h(t-1), and whether its cell has asked."""

    __slots__ = ("asked", "value")

    def __init__(self, value: Any) -> None:
        self.value, self.asked = value, False

    def read(self) -> Any:
        """Return the mask."""
        self.asked = True
        return self.value


class Scope:
    """What holds while nodes are made: recorded or not, inspected or not, and the place."""

    __slots__ = ("frozen", "kind", "marks", "mask", "mode", "place")

    def __init__(self) -> None:
        self.mode = NEEDED
        self.place: Place | None = None
        self.marks: dict[str, Any] | None = None  # what mark() fills while a trace is taken
        self.mask: Mask | None = None  # of recurrent dropout, while a cell runs
        self.frozen: list[Array] | None = None  # the arrays debug() protects; None outside it
        self.kind: Any = None  # the class of the nodes that are made; None: Tensor


class Thread(threading.local):
    """Holds the scope of each thread."""

    def __init__(self) -> None:
        self.scope = Scope()


thread = Thread()
adding = threading.Lock()  # held while a gradient is added: threads may share parameters
if hasattr(os, "register_at_fork"):  # a child must not find it held by a thread that it lacks
    os.register_at_fork(
        before=adding.acquire, after_in_parent=adding.release, after_in_child=adding.release
    )


def scope() -> Scope:
    """Return the scope of this thread."""
    return thread.scope


@contextmanager
def _set(name: str, value: Any) -> Iterator[None]:
    """Let one thing of the scope be otherwise inside."""
    here = thread.scope
    before = getattr(here, name)
    setattr(here, name, value)
    try:
        yield
    finally:
        setattr(here, name, before)


@contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing inside: for evaluation and sampling.

    >>> from tinygrad_rnn import Tensor
    >>> w = Tensor([2.0], requires_grad=True)
    >>> with no_grad():
    ...     y = w * 3
    >>> y.requires_grad
    False
    """
    with _set("mode", NEVER):
        yield


@contextmanager
def record() -> Iterator[None]:
    """Record every op inside, also where no input requires a gradient: for drawings and traces.

    >>> from tinygrad_rnn import Tensor
    >>> with record():
    ...     y = Tensor(2.0, name="x") * 3
    >>> y.op
    <op mul: x * y>
    """
    with _set("mode", ALWAYS):
        yield


@contextmanager
def recording() -> Iterator[None]:
    """Record what requires a gradient, also inside ``no_grad()``: a transform needs its graph."""
    with _set("mode", max(thread.scope.mode, NEEDED)):
        yield


@contextmanager
def at(place: Place | None) -> Iterator[None]:
    """Make the nodes inside at `place`."""
    with _set("place", place):
        yield


@contextmanager
def making(kind: Any) -> Iterator[None]:
    """Let the nodes made inside be of the class `kind`, which a trace can tell from others."""
    with _set("kind", kind):
        yield


@contextmanager
def masked(mask: Mask | None) -> Iterator[None]:
    """Let the cells inside drop of h(t-1) what `mask` says; None drops nothing."""
    with _set("mask", mask):
        yield


def mark(**values: Any) -> None:
    """Name the values of a step: what drawings, traces, errors and worked solutions call them.

    >>> from tinygrad_rnn import Tensor
    >>> h = Tensor([1.0]) * 2
    >>> mark(h=h)
    >>> h.name
    'h'
    """
    for name, value in values.items():
        if getattr(value, "name", name) is None:
            value.name = name
    marks = thread.scope.marks
    if marks is not None:
        marks.update(values)


# --- what a node is called ---------------------------------------------------------------------


def identify(order: Iterable[Any]) -> dict[int, str]:
    """Return a text id for each node, by its ``order``: ``encoder#2.L0.fwd.T3.f``.

    A node is called by its place and its name, or its op where it has none; what would be
    called alike is numbered.  Two runs of one program give the same ids.
    """
    calls: dict[str, dict[int, int]] = {}
    used: dict[str, int] = {}
    ids = {}
    for t in order:
        name = t.name or (t.op.name if t.op else "constant")
        if t.place is not None:
            numbers = calls.setdefault(t.place.call.path, {})
            number = numbers.setdefault(id(t.place.call), len(numbers) + 1)
            name = t.place.id(number, name)
        ids[t.order] = _unused(name, used)
    return ids


def _unused(name: str, used: dict[str, int]) -> str:
    """Return `name`, with a number where it was given before, and note that it is given."""
    new = name
    while new in used:
        used[name] += 1
        new = f"{name}_{used[name]}"
    used[new] = 1
    return new
