"""What a step reads that is neither given to it nor held by its cell: globals, closures, classes.

A program has their values built in, so a layer must notice when they change.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from ..module import Module
from ..op import Op
from ..tensor import Tensor

LIBRARIES = frozenset(["tinygrad_rnn", "numpy", "scipy", "numba", *sys.stdlib_module_names]) - {
    "__main__"
}
_data: Any = Tensor.__dict__["data"]  # also of one whose step is traced
_SMALL = 1 << 12  # elements of what is told by its content
_AS_IS = frozenset(
    [int, float, complex, str, bytes, bool, type(None), type, FunctionType, BuiltinFunctionType,
     ModuleType, Op, staticmethod, classmethod, property]
)  # fmt: skip


class Outside:
    """The places outside of a cell where its step finds values; called, what stands there now.

    The functions of the step are followed by name, and so are the attributes of modules, classes
    and objects that they name; libraries are not.  What changes is a plain value, a container or
    an array of at most 4096 elements, or which function or other object a name stands for.

    Examples
    --------
    >>> from tinygrad_rnn.nn import LSTMCell
    >>> Outside(LSTMCell(2, 3))()
    ()
    """

    def __init__(self, cell: Module) -> None:
        self.cell = cell  # so that its id stays its own
        self.functions: list[FunctionType] = []  # that the step may run
        self._slots: dict[tuple[int, str], tuple[Callable[[Any], Any], Any]] = {}
        modules = [module for _, module in cell.named_modules()]
        self._kinds = list(dict.fromkeys([type(module) for module in modules]))
        for name in ("step", "forward") if modules[1:] else ("step",):
            self._attribute(name, ())
        for module in modules:
            for value in list(vars(module).values()):
                self._see(value, ())
        for f in self.functions:  # which grow meanwhile
            self._read(f)
        self._places = tuple(self._slots.values())

    def __call__(self) -> tuple[Any, ...]:
        """Return the present values, as a key."""
        if not self._places:
            return ()
        values = [read(place) for read, place in self._places]
        return tuple([v if type(v) in _AS_IS else _told(v) for v in values])

    def changed(self, before: tuple[Any, ...]) -> list[str]:
        """Return the names of what is not as it was."""
        now = self()
        return [
            n
            for (_, n), a, b in zip(self._slots, before, now, strict=True)
            if a is not b and a != b
        ]

    def _read(self, f: FunctionType) -> None:
        """Find what a function names."""
        names = list(dict.fromkeys([name for code in codes(f.__code__) for name in code.co_names]))
        for name in names:
            if name in f.__globals__:
                self._slot(f.__globals__, f.__globals__, name, names)
            self._attribute(name, names)
        for name, held in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            self._slots[id(held), name] = _content, held
            self._see(_content(held), names)

    def _attribute(self, name: str, names: Iterable[str]) -> None:
        """Look for a name in the classes of the cell, and where one of theirs could hide it."""
        for kind in self._kinds:
            order = kind.__mro__
            last = max([k for k, c in enumerate(order) if name in vars(c)], default=-1)
            for c in order[: last + 1]:
                if _own(c.__module__):
                    self._slot(c, vars(c), name, names)

    def _slot(
        self, owner: object, space: Mapping[str, Any], name: str, names: Iterable[str]
    ) -> None:
        if (id(owner), name) not in self._slots:
            self._slots[id(owner), name] = space.get, name
            self._see(space.get(name), names)

    def _see(self, value: Any, names: Iterable[str]) -> None:
        """Follow a value: a function to what it names, a namespace to those of its names."""
        if isinstance(value, staticmethod | classmethod | MethodType):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, partial):
            value = [value.func, *value.args, *value.keywords.values()]
        if isinstance(value, FunctionType):
            if _own(value.__module__) and value not in self.functions:
                self.functions.append(value)
        elif isinstance(value, list | tuple | dict):
            for v in list(value.values()) if isinstance(value, dict) else value:
                if not isinstance(v, list | tuple | dict):
                    self._see(v, names)
        elif isinstance(value, ModuleType | type):
            if _own(value.__name__ if isinstance(value, ModuleType) else value.__module__):
                self._names(value, names)
        elif hasattr(value, "__dict__"):
            self._names(value, names)

    def _names(self, space: Any, names: Iterable[str]) -> None:
        """Find what is named of a module, a class or an object."""
        for name in names:
            if name in vars(space):
                self._slot(space, vars(space), name, names)


def codes(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function and of the functions defined inside it."""
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from codes(value)


def _own(module: object) -> bool:
    """Return whether a module, by its name, is the user's."""
    return str(module).partition(".")[0] not in LIBRARIES


def _content(held: CellType) -> Any:
    try:
        return held.cell_contents
    except ValueError:  # empty: not yet assigned, or deleted
        return None


class _Same:
    """An object that is equal to itself alone, and stays as long as this."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _told(value: Any) -> Any:
    """Return what can be compared and hashed, and changes when the value does."""
    if type(value) in _AS_IS or isinstance(value, np.generic):
        return value
    if isinstance(value, Tensor):
        return _told(_data.__get__(value)), value.requires_grad
    if isinstance(value, np.ndarray) and value.size <= _SMALL and not value.dtype.hasobject:
        return value.shape, value.dtype, value.tobytes()
    if isinstance(value, tuple | list) and len(value) <= _SMALL:
        return type(value), tuple([_told(v) for v in value])
    if isinstance(value, dict) and len(value) <= _SMALL:
        return tuple([(k, _told(v)) for k, v in value.items()])
    if isinstance(value, set | frozenset) and len(value) <= _SMALL:
        return frozenset(value)
    return _Same(value)
