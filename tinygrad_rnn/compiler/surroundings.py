"""What a function reads by name: closures, globals and the modules among them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np

from ..module import Module
from ..tensor import Tensor

PLAIN = (int, float, complex, str, bytes, bool, type(None))
_LONG = 64  # what is longer is told by its identity

Change = tuple[str, Callable[[], bool], Callable[[], None]]  # what; whether it is as it was; undo


class Surroundings:
    """The values that a function can name, other than its arguments."""

    def __init__(self, f: Any) -> None:
        self.objects: list[Any] = []  # such as the module whose method it is
        while isinstance(f, functools.partial):
            self.objects += [*f.args, *f.keywords.values()]
            f = f.func
        if not isinstance(f, FunctionType | MethodType):
            self.objects.append(f)
            f = type(f).__call__
        if isinstance(f, MethodType):
            self.objects.append(f.__self__)
            f = f.__func__
        f = f if isinstance(f, FunctionType) else None
        self.globals: dict[str, Any] = f.__globals__ if f else {}
        self.names = tuple(dict.fromkeys(_names(f.__code__))) if f else ()
        self.cells = (
            dict(zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)) if f else {}
        )
        if f and f.__defaults__:
            self.objects += f.__defaults__

    def named(self) -> Iterator[tuple[str, Any]]:
        """Yield the present values with their names."""
        for value in self.objects:
            yield type(value).__name__, value
        for name, cell in self.cells.items():
            yield name, _content(cell)
        for name in self.names:
            if name in self.globals:
                yield name, self.globals[name]

    def told(self, held: list[Any]) -> tuple[Any, ...]:
        """Return a key that changes when a name stands for something else, or a setting changes."""
        return tuple([told(value, held) for _, value in self.named()])

    def tensors(self, args: Any) -> list[Tensor]:
        """Return the Tensors among the values, and in the modules among the arguments."""
        found: list[Tensor] = []
        for value in [*[value for _, value in self.named()], *_modules(args)]:
            _gather(value, found)
        return found

    def snapshot(self, args: Any) -> list[Change]:
        """Return what tells whether something has changed, and undoes it."""
        changes: list[Change] = []
        for name, cell in self.cells.items():
            changes.append(_held(cell, name))
        for name in self.names:
            if name in self.globals:
                changes.append(_entry(self.globals, name, name))
        for name, value in self.named():
            _inside(name, value, changes)
        for module in _modules(args):
            _inside(type(module).__name__, module, changes)
        return changes

    @staticmethod
    def restore(changes: list[Change]) -> tuple[str, bool]:
        """Undo what has changed; return what it was, or nothing, and whether a name is set."""
        found = ""
        for what, same, undo in changes:
            if not same():
                undo()
                found = found or f"it {what}"
        return found, not found.startswith("it draws")


def told(value: Any, held: list[Any], depth: int = 8) -> Any:
    """Return what tells a value from another: itself if it is plain, else its identity."""
    kind = type(value)
    if kind in PLAIN:
        return kind, value
    held.append(value)
    if isinstance(value, Module):
        return id(value), tuple(
            [(name, told(v, held)) for name, v in vars(value).items() if name != "_called"]
        )
    if kind in (tuple, list) and len(value) <= _LONG and depth:
        return kind, tuple([told(v, held, depth - 1) for v in value])
    if kind is dict and len(value) <= _LONG and depth:
        return kind, tuple([(k, told(v, held, depth - 1)) for k, v in value.items()])
    return id(value)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet set
        return None


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _modules(args: Any) -> list[Module]:
    if isinstance(args, Module):
        return [args]
    if isinstance(args, tuple | list):
        return [m for a in args for m in _modules(a)]
    return [m for a in args.values() for m in _modules(a)] if isinstance(args, dict) else []


def _gather(value: Any, found: list[Tensor], depth: int = 8) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, Module):
        for v in vars(value).values():
            _gather(v, found)
    elif type(value) in (tuple, list, dict) and len(value) <= _LONG and depth:
        for v in value.values() if type(value) is dict else value:
            _gather(v, found, depth - 1)


def _entry(table: dict[str, Any], key: str, what: str) -> Change:
    value = table[key]
    return (
        f"sets {what}", lambda: table.get(key) is value, lambda: table.__setitem__(key, value)
    )  # fmt: skip


def _held(cell: Any, name: str) -> Change:
    value = _content(cell)
    return (
        f"sets {name}", lambda: _content(cell) is value,
        lambda: setattr(cell, "cell_contents", value),
    )  # fmt: skip


def _inside(what: str, value: Any, changes: list[Change]) -> None:
    """Add what can change inside of a value."""
    if isinstance(value, Module):
        table = vars(value)
        before = set(table)

        def drop() -> None:
            for key in set(table) - before:
                del table[key]

        name = type(value).__name__
        changes.append((f"sets new attributes of {name}",
                        lambda: set(table) - before <= {"_called"}, drop))  # fmt: skip
        for key, v in list(table.items()):
            if key != "_called":
                changes.append(_entry(table, key, f"{name}.{key}"))
                _inside(f"{name}.{key}", v, changes)
    elif type(value) in (list, dict) and len(value) <= _LONG:
        copy = value.copy()
        parts = list(copy.values() if type(value) is dict else copy)

        def same() -> bool:
            now = value.values() if type(value) is dict else value
            return len(value) == len(copy) and all(a is b for a, b in zip(now, parts, strict=True))

        def undo() -> None:
            value.clear()
            value.update(copy) if type(value) is dict else value.extend(copy)

        changes.append((f"changes {what}", same, undo))
        for v in parts:
            if isinstance(v, Module | np.random.Generator):
                _inside(what, v, changes)
    elif isinstance(value, np.random.Generator):
        state = value.bit_generator.state
        changes.append((f"draws random numbers from {what}",
                        lambda: str(value.bit_generator.state) == str(state),
                        lambda: setattr(value.bit_generator, "state", state)))  # fmt: skip
    elif type(value) is np.ndarray and "." in what and not value.dtype.hasobject:
        array = value.copy()
        changes.append((f"changes {what}", lambda: value.tobytes() == array.tobytes(),
                        lambda: value.__setitem__(..., array)))  # fmt: skip
