"""Module: parameters and modules by name, saved and loaded as one file."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from . import archive
from .arrays import Array
from .errors import CheckpointError, DtypeError, StateError
from .scope import Call, Place, scope
from .tensor import Parameter, Tensor

M = TypeVar("M", bound="Module")


class Module:
    """Base of everything that has parameters.

    Attributes that are Parameters or Modules, and lists, tuples or dicts of them, are registered
    in the order of definition.  Calling a module calls its ``forward``.

    What is registered is named by its place.  What is appended to a list after the assignment
    is named at the first call, or when the model is asked for its parameters or modules.  A deep
    copy stands by itself: its names start at the copy, until it is registered somewhere.

    Attributes
    ----------
    training : bool
        Set by ``train()`` and ``eval()``; dropout asks for it.
    path : str
        Where the module stands in the model it was registered in: ``encoder.rnn``.

    Examples
    --------
    >>> class Line(Module):
    ...     def __init__(self):
    ...         self.slope = Parameter([2.0])
    ...     def forward(self, x):
    ...         return x * self.slope
    >>> Line()(3.0).item(), list(Line().state_dict())
    (6.0, ['slope'])
    """

    training: bool = True
    path: str = ""
    _called: bool = False

    def __setattr__(self, name: str, value: Any) -> None:
        before = vars(self).get(name)
        if isinstance(before, Parameter) and type(value) is Tensor:
            raise TypeError(
                f"{name} is a Parameter and would be lost: change its array, as in "
                f"{name}.data -= rate * {name}.grad, or assign a Parameter"
            )
        object.__setattr__(self, name, value)
        for inner, child in _registered(name, value):
            self._name(inner, child)

    def _name(self, name: str, child: Parameter | Module) -> None:
        """Name a child by its place, and all inside it, unless it is named already."""
        if isinstance(child, Parameter):
            child.name = child.name or _join(self.path, name)
        elif not child.path:
            child._rename(_join(self.path, name))

    def _rename(self, prefix: str) -> None:
        """Put `prefix` before the names that registration has given so far."""
        object.__setattr__(self, "path", prefix)
        for name, child in list(self._inside()):
            if isinstance(child, Parameter):
                child.name = _join(prefix, name) if child.name == name else child.name
            elif child.path == name:
                object.__setattr__(child, "path", _join(prefix, name))

    def __deepcopy__(self: M, memo: dict[int, Any]) -> M:
        """Return a copy that is registered nowhere; names that followed registration follow it."""
        twin = memo[id(self)] = object.__new__(type(self))
        for name, value in vars(self).items():
            if name not in ("path", "_called"):
                object.__setattr__(twin, name, copy.deepcopy(value, memo))
        for (name, p), (_, q) in zip(self.named_children(), twin.named_children(), strict=True):
            if isinstance(p, Parameter) and isinstance(q, Parameter):
                q.name = name if p.name == _join(self.path, name) else q.name
        return twin

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call ``forward``; the nodes made inside are placed in this call of this module."""
        here = scope()
        before = here.place
        if before is not None and before.step is not None:  # inside a step, the step is the place
            return self.forward(*args, **kwargs)
        if not self._called and before is None:
            object.__setattr__(self, "_called", True)
            list(self._inside())  # names what was appended to lists since
        here.place = Place(Call(self.path))
        try:
            return self.forward(*args, **kwargs)
        finally:
            here.place = before

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output; every module defines it."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward(...)")

    # --- what is registered

    def named_children(self) -> Iterator[tuple[str, Parameter | Module]]:
        """Yield the registered parameters and modules in the order of definition."""
        for attribute, value in vars(self).items():
            for name, child in _registered(attribute, value):
                self._name(name, child)
                yield name, child

    def _inside(
        self, prefix: str = "", above: tuple[Module, ...] = ()
    ) -> Iterator[tuple[str, Parameter | Module]]:
        """Yield everything registered inside, at any depth, with dotted names."""
        above = (*above, self)
        for name, child in self.named_children():
            full = _join(prefix, name)
            if any(child is module for module in above):
                raise StateError(
                    f"{type(above[0]).__name__}: {full} is a {type(child).__name__} "
                    "that contains itself"
                )
            yield full, child
            if isinstance(child, Module):
                yield from child._inside(full, above)

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Yield this module, named "", and all modules inside it with dotted names."""
        yield "", self
        for name, child in self._inside():
            if isinstance(child, Module):
                yield name, child

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield each parameter once, with the dotted name it is first found under.

        Raises
        ------
        StateError
            If two parameters have one name, as in ``{1: p, "1": q}``.

        Examples
        --------
        >>> from tinygrad_rnn import nn
        >>> [name for name, _ in nn.LSTM(2, 3).named_parameters()]
        ['L0.fwd.W_x', 'L0.fwd.W_h', 'L0.fwd.b']
        """
        seen: set[int] = set()
        for name, p in self._all_parameters():
            if id(p) not in seen:
                seen.add(id(p))
                yield name, p

    def _all_parameters(self) -> Iterator[tuple[str, Parameter]]:
        found: dict[str, Parameter] = {}
        for name, child in self._inside():
            if isinstance(child, Parameter):
                if found.setdefault(name, child) is not child:
                    raise StateError(f"{type(self).__name__}: two parameters are called {name}")
                yield name, child

    def parameters(self) -> list[Parameter]:
        """Return each parameter once, in the order of definition."""
        return [p for _, p in self.named_parameters()]

    # --- modes

    def train(self: M, training: bool = True) -> M:
        """Turn dropout on, here and in all modules inside; returns the module."""
        for _, module in self.named_modules():
            object.__setattr__(module, "training", training)
        return self

    def eval(self: M) -> M:
        """Turn dropout off, here and in all modules inside; returns the module."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Set every ``.grad`` to None."""
        for p in self.parameters():
            p.grad = None

    def astype(self: M, dtype: npt.DTypeLike) -> M:
        """Convert the parameters in place to another floating type; returns the module.

        Raises
        ------
        DtypeError
            If `dtype` is not floating.
        """
        dtype = floating("astype", dtype)
        for p in self.parameters():
            p.data, p.grad = p.data.astype(dtype), None
        for _, module in self.named_modules():
            module._astype(dtype)
        return self

    def _astype(self, dtype: np.dtype[Any]) -> None:
        """Note the new type; for modules that make arrays of their own."""

    # --- state

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of every parameter's array by name."""
        return {name: p.data.copy() for name, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy arrays into the parameters of the same names; nothing changes if one does not fit.

        Parameters
        ----------
        strict : bool
            Whether missing and unknown names are errors; otherwise they are passed over.

        Raises
        ------
        StateError
            With every missing and unknown name and every shape or type that differs.
        """
        own = dict(self._all_parameters())
        unique = dict(self.named_parameters())
        wrong = []
        if strict:
            wrong += [f"missing {name}" for name in unique if name not in state]
            wrong += [f"unknown {name}" for name in state if name not in own]
        fits: dict[str, Array] = {}
        given: dict[int, str] = {}  # tied parameters have several names, but one value
        for name, p in own.items():
            if name in state:
                a = np.asarray(state[name])
                if a.shape != p.shape:
                    wrong.append(f"{name} has shape {a.shape}, not {p.shape}")
                elif a.dtype != p.dtype and not (a.dtype.kind == p.dtype.kind == "f"):
                    wrong.append(f"{name} is {a.dtype}, not {p.dtype}")
                fits[name] = a
                first = given.setdefault(id(p), name)
                if not np.array_equal(fits[first], a, equal_nan=a.dtype.kind in "fc"):
                    wrong.append(f"{first} and {name} are one parameter, but differ")
        if wrong:
            raise StateError(f"{type(self).__name__}.load_state_dict: " + "; ".join(wrong))
        for name, a in fits.items():
            own[name].data = a.astype(own[name].dtype, order="C")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters to one ``.npz`` file; an interrupted save leaves the old file whole.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        archive.write(path, self.state_dict(), {"kind": "module"})

    def load(self: M, path: str | os.PathLike[str]) -> M:
        """Read the parameters from a file into this module; returns the module.

        Raises
        ------
        CheckpointError
            If the file is damaged, foreign, or holds something else.
        StateError
            If it does not fit this module; nothing is changed.
        """
        arrays, meta = archive.read(path)
        if meta.get("kind") != "module":
            raise CheckpointError(f"{os.fspath(path)}: holds {meta.get('kind')!r}, not a module")
        self.load_state_dict(arrays)
        return self

    def summary(self) -> str:
        """Return a table of the parameters: name, shape, count, and the formula of the count.

        >>> from tinygrad_rnn import nn
        >>> print(nn.LSTM(2, 3).summary())
        name        shape    count
        L0.fwd.W_x  (2, 12)     24  D * 4H
        L0.fwd.W_h  (3, 12)     36  H * 4H
        L0.fwd.b    (12,)       12  4H
        total                   72
        """
        letters = {
            f"{name}.{inner}" if name else inner: text
            for name, module in self.named_modules()
            for inner, text in module._letters().items()
        }
        rows = [
            (name, str(p.shape), f"{p.size:,}", _formula(p, letters.get(name)))
            for name, p in self.named_parameters()
        ]
        rows = [("name", "shape", "count", ""), *rows]
        rows.append(("total", "", f"{sum(p.size for p in self.parameters()):,}", ""))
        widths = [max(len(row[k]) for row in rows) for k in range(3)]
        return "\n".join(
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip()
            for a, b, c, d in rows
        )

    def _letters(self) -> dict[str, str]:
        """Return the shapes of the own parameters in letters, for the summary."""
        return {}

    def __repr__(self) -> str:
        inside = [f"{name}={type(c).__name__}" for name, c in self.named_children()]
        return f"{type(self).__name__}({', '.join(inside)})"


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Turn dropout off inside; then each module has its own mode again, also after an error.

    >>> from tinygrad_rnn import nn
    >>> model = nn.Dropout(0.5)
    >>> with evaluating(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    modes = [(module, module.training) for _, module in model.named_modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            object.__setattr__(module, "training", training)


def floating(who: str, dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return `dtype` as one; raise where parameters cannot have it."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "fc":
        raise DtypeError(f"{who}: parameters need a floating type, got {dtype}")
    return dtype


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _formula(p: Parameter, letters: str | None) -> str:
    frozen = "" if p.requires_grad else "frozen"
    count = letters or " * ".join([str(n) for n in p.shape] if p.ndim > 1 else [])
    return "  ".join([t for t in (count, frozen) if t])


def _registered(name: str, value: Any) -> Iterator[tuple[str, Parameter | Module]]:
    """Yield the parameters and modules that an attribute holds, with their names."""
    if isinstance(value, Parameter | Module):
        yield name, value
    elif isinstance(value, list | tuple):
        for k, item in enumerate(value):
            yield from _registered(f"{name}.{k}", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _registered(f"{name}.{key}", item)
