"""What code reads that is not given to it: globals, closures, classes, the objects they name.

A program has their values built in, so whoever runs it must notice when they change; and what
changes while the code is recorded is put back.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from ..module import Module
from ..op import Op
from ..tensor import Tensor
from .errors import CompileError

LIBRARIES = frozenset(["tinygrad_rnn", "numpy", "scipy", "numba", *sys.stdlib_module_names]) - {
    "__main__"
}
PLAIN = (int, float, complex, str, bytes, bool, type(None))
slot: Any = Tensor.__dict__["data"]  # also of a Tensor that refuses to show its numbers
_SMALL, _LONG = 1 << 12, 64  # elements of what is told by its content: of a step, of a function
_AS_IS = frozenset(
    [type, FunctionType, BuiltinFunctionType, ModuleType, Op, staticmethod, classmethod, property]
)
_ARRAYS = (Tensor, np.ndarray, np.generic)
_CONTAINERS = (tuple, list, dict, set, frozenset)

Change = tuple[Callable[[], str], Callable[[], None]]  # what has changed, or nothing; undo it


class LastingError(CompileError):
    """Why code cannot be recorded, whatever its names stand for."""


class Outside:
    """The places where the step of a cell, or a function, finds values; called, what is there now.

    Its functions are followed by name, and so are the attributes of modules, classes and objects
    that they name; libraries are not.  What changes is a plain value, a container of few elements,
    the attributes of a module, or which other object a name stands for.  A step has the numbers
    of small arrays and Tensors built in as well, a function reads them at each call.

    Examples
    --------
    >>> from tinygrad_rnn.nn import LSTMCell
    >>> Outside(LSTMCell(2, 3))()
    ()
    """

    def __init__(self, code: Any) -> None:
        self.code = code  # so that its id stays its own
        self.numbers = isinstance(code, Module)  # whether those of arrays are built in
        self.who = "the step" if self.numbers else "it"
        self.functions: list[FunctionType] = []  # that may run
        self._slots: dict[tuple[int, str], tuple[Callable[[Any], Any], Any, Any]] = {}
        self._kinds: list[type] = []
        if self.numbers:
            modules = [module for _, module in code.named_modules()]
            self._kinds = list(dict.fromkeys([type(module) for module in modules]))
            for name in ("step", "forward") if modules[1:] else ("step",):
                self._attribute(name, ())
            for module in modules:
                for value in list(vars(module).values()):
                    self._see(value, ())
        else:
            self._function(code)
        for f in self.functions:  # which grow meanwhile
            self._read(f)
        self._places = tuple(self._slots.values())

    def __call__(self) -> tuple[Any, ...]:
        """Return the present values, as a key."""
        values = [read(place) for read, place, _ in self._places]
        return tuple([v if type(v) in _AS_IS else told(v, self.numbers) for v in values])

    def tensors(self, given: Any = ()) -> list[Tensor]:
        """Return the Tensors among the values, and in the modules among the arguments."""
        return [v for _, v in self._all(given) if isinstance(v, Tensor)]

    def snapshot(self, given: Any = ()) -> list[Change]:
        """Return what tells whether something has changed, also in modules that are given."""
        entries = [_entry(read, place, *owner) for read, place, owner in self._places if owner]
        inner = [_inside(n, v, self.numbers) for n, v in self._all(given)]
        return entries + [change for change in inner if change]

    @contextmanager
    def undone(self, given: Any = ()) -> Iterator[None]:
        """Undo what is changed inside; raise where something was."""
        changes, found = self.snapshot(given), []
        try:
            yield
        finally:
            for what, undo in changes:
                if said := what():
                    found.append(said)
                    undo()
        if found:
            kind = CompileError if found[0].startswith("draws") else LastingError
            raise kind(f"{self.who} {found[0]}{self._line(found[0].split()[-1])}")

    def begin(self) -> str:
        """Return where the step of a cell begins."""
        step = getattr(self.code, "step", None) if self.numbers else None
        code = getattr(getattr(step, "__wrapped__", step), "__code__", None)
        return f" at {code.co_filename}:{code.co_firstlineno}" if code else ""

    def _line(self, name: str) -> str:
        """Return the line that changes what is called so."""
        kinds = ("_ATTR", "_METHOD", "_GLOBAL", "_DEREF")  # of what the instruction names
        found = [
            (not i.opname.startswith("STORE"), f" at {code.co_filename}:{i.positions.lineno}")
            for f in self.functions
            for code in _codes(f.__code__)
            for i in dis.get_instructions(code)
            if i.argval == name.split(".")[-1] and i.opname.endswith(kinds) and i.positions
        ]
        return min(found, default=(True, self.begin()), key=lambda f: f[0])[1]

    def _all(self, given: Any) -> Iterator[tuple[str, Any]]:
        """Yield the present values and what is in them, with their names."""
        for (_, name), (read, place, _) in self._slots.items():
            yield from _within(name, read(place))
        for name, value in _within("", given):
            if "." in name or isinstance(value, Module):
                yield name, value

    def _function(self, f: Any) -> None:
        """Begin with a function, or what can be called like one, and the values it holds."""
        held: list[Any] = []
        while isinstance(f, partial):
            held += [*f.args, *f.keywords.values()]
            f = f.func
        if not isinstance(f, FunctionType | MethodType):
            held.append(f)
            f = type(f).__call__
        if isinstance(f, MethodType):
            held.append(f.__self__)
            f = f.__func__
        if isinstance(f, FunctionType):
            self.functions.append(f)
            held += [*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
        self._kinds = list(dict.fromkeys([type(value) for value in held]))
        self._slots.update({(id(v), type(v).__name__): (_itself, v, ()) for v in held})

    def _read(self, f: FunctionType) -> None:
        """Find what a function names."""
        names = list(dict.fromkeys([name for code in _codes(f.__code__) for name in code.co_names]))
        held = [place for read, place, _ in self._slots.values() if read is _itself]
        for value in held:  # such as the object whose method it is
            self._see(value, names)
        for name in names:
            if name in f.__globals__:
                self._slot(f.__globals__, f.__globals__, name, names)
            self._attribute(name, names)
        for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            self._slots[id(cell), name] = _content, cell, (cell, name)
            self._see(_content(cell), names)

    def _attribute(self, name: str, names: Iterable[str]) -> None:
        """Look for a name in the classes of the cell, and where one of theirs could hide it."""
        for kind in self._kinds:
            order = kind.__mro__
            last = max([k for k, c in enumerate(order) if name in vars(c)], default=-1)
            for c in order[: last + 1]:
                if _own(c.__module__):
                    self._slot(c, vars(c), name, names)

    def _slot(self, owner: Any, space: Any, name: str, names: Iterable[str]) -> None:
        if (id(owner), name) not in self._slots:
            place = () if isinstance(owner, Module) else (owner, name)  # told as a whole
            self._slots[id(owner), name] = space.get, name, place
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
                self._named(value, names)
        elif hasattr(value, "__dict__"):
            self._named(value, names)

    def _named(self, space: Any, names: Iterable[str]) -> None:
        """Find what is named of a module, a class or an object."""
        for name in names:
            if name in vars(space):
                self._slot(space, vars(space), name, names)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function and of the functions defined inside it."""
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _codes(value)


def _own(module: object) -> bool:
    """Return whether a module, by its name, is the user's."""
    return str(module).partition(".")[0] not in LIBRARIES


def _itself(value: Any) -> Any:
    return value


def _content(held: CellType) -> Any:
    try:
        return held.cell_contents
    except ValueError:  # empty: not yet assigned, or deleted
        return None


# --- values told from others -------------------------------------------------------------------


def same(value: Any) -> Any:
    """Return what is equal to itself alone, and keeps the value so that its id stays its own."""
    return MethodType(id, value)  # compares what it is bound to by identity


def content(value: Any) -> Any:
    """Return the numbers of an array or a Tensor, if they are few, to compare and hash."""
    if isinstance(value, Tensor):
        return content(slot.__get__(value)), value.requires_grad
    if isinstance(value, np.generic):
        return value
    if value.size <= _SMALL and not value.dtype.hasobject:
        return value.shape, value.dtype, value.tobytes()
    return same(value)


def told(value: Any, numbers: bool = False, depth: int = 8) -> Any:
    """Return what can be compared and hashed, and tells a value from another or its own later one.

    Plain values, short containers and modules are told by their content, with `numbers` small
    arrays and Tensors too; all else by identity.
    """
    kind = type(value)
    if kind in PLAIN:
        return kind, value
    if isinstance(value, _ARRAYS):
        return content(value) if numbers else same(value)
    if isinstance(value, Module):
        return same(value), tuple(
            [(name, told(v, numbers)) for name, v in vars(value).items() if name != "_called"]
        )
    if kind in _CONTAINERS and len(value) <= (_SMALL if numbers else _LONG) and depth:
        if kind is dict:
            return kind, tuple([(k, told(v, numbers, depth - 1)) for k, v in value.items()])
        if kind in (tuple, list):
            return kind, tuple([told(v, numbers, depth - 1) for v in value])
        return kind, frozenset(value)
    return same(value)


def _within(name: str, value: Any, depth: int = 8) -> Iterator[tuple[str, Any]]:
    """Yield a value and what containers and modules in it hold, with their names."""
    yield name, value
    if isinstance(value, Module):
        for key, v in list(vars(value).items()):
            if key != "_called":
                yield from _within(f"{type(value).__name__}.{key}", v)
    elif type(value) in (tuple, list, dict) and len(value) <= _SMALL and depth:
        for v in list(value.values() if type(value) is dict else value):
            yield from _within(name, v, depth - 1)


# --- changes -----------------------------------------------------------------------------------

_NOTHING = object()


def _entry(read: Callable[[Any], Any], place: Any, owner: Any, name: str) -> Change:
    """Return what tells whether a name stands for something else, and lets it stand as before."""
    value = read(place)
    absent = value is None and not isinstance(owner, CellType | dict) and name not in vars(owner)

    def undo() -> None:
        if isinstance(owner, CellType):
            owner.cell_contents = value
        elif isinstance(owner, dict):
            owner[name] = value
        elif absent:
            delattr(owner, name)
        else:
            setattr(owner, name, value)

    return lambda: "" if read(place) is value else f"sets {name}", undo


def _inside(name: str, value: Any, numbers: bool) -> Change | None:
    """Return what tells whether the inside of a value has changed; `numbers`: also of arrays."""
    if isinstance(value, Module):
        return _table(f"sets {type(value).__name__}.", vars(value))
    if type(value) is dict:
        return _table(f"changes {name}", value)
    if type(value) in (list, set):
        copy = value.copy()

        def undo() -> None:
            value.clear()
            value.extend(copy) if type(value) is list else value.update(copy)

        ids = list(map(id, value))
        return lambda: f"changes {name}" * (list(map(id, value)) != ids), undo
    if isinstance(value, np.random.Generator):
        source, state = value.bit_generator, value.bit_generator.state
        return (
            lambda: f"draws random numbers from {name}" * (str(source.state) != str(state)),
            lambda: setattr(source, "state", state),
        )
    if isinstance(value, Tensor | np.ndarray):
        return _numbers(name, value, numbers)
    return None


def _numbers(name: str, value: Any, small: bool) -> Change | None:
    """Return what tells whether an array of a module, or a small one, holds other numbers."""
    read = slot.__get__ if isinstance(value, Tensor) else _itself
    array = read(value)
    wanted = (small and array.size <= _SMALL) or ("." in name and array is value)
    if array.dtype.hasobject or not wanted:
        return None
    copy = array.copy()

    def undo() -> None:
        array[...] = copy
        if array is not value:
            slot.__set__(value, array)

    def changed() -> str:
        kept = read(value) is array and array.tobytes() == copy.tobytes()
        return "" if kept else f"changes {name}"

    return changed, undo


def _table(what: str, table: dict[str, Any]) -> Change:
    """Return what tells whether a dict, or the attributes of a module, are others."""
    before = dict(table)

    def changed() -> str:
        keys = [k for k in {**before, **table} if k != "_called"]
        keys = [k for k in keys if table.get(k, _NOTHING) is not before.get(k, _NOTHING)]
        return what + (keys[0] if what.endswith(".") else "") if keys else ""

    def undo() -> None:
        if list(table) != list(before):
            table.clear()
        table.update(before)

    return changed, undo
