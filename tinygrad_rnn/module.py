"""Module: parameters and modules by name, saved and loaded as one file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from . import archive
from .arrays import Array
from .errors import CheckpointError, DtypeError, StateError
from .scope import Call, Place, at, scope
from .tensor import Parameter, Tensor

M = TypeVar("M", bound="Module")


class Module:
    """Base of everything that has parameters.

    Attributes that are Parameters or Modules, and lists, tuples or dicts of them, are registered
    in the order of definition.  Calling a module calls its ``forward``.

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

    def __setattr__(self, name: str, value: Any) -> None:
        before = vars(self).get(name)
        if isinstance(before, Parameter) and type(value) is Tensor:
            raise TypeError(
                f"{name} is a Parameter and would be lost: change its array, as in "
                f"{name}.data -= rate * {name}.grad, or assign a Parameter"
            )
        object.__setattr__(self, name, value)
        for full, child in _registered(name, value):
            if isinstance(child, Parameter):
                child.name = child.name or full
            else:
                child._rename(full)

    def _rename(self, prefix: str) -> None:
        """Put `prefix` before the names that registration has given so far."""
        for name, module in list(self.named_modules()):
            if module.path == name:
                object.__setattr__(module, "path", f"{prefix}.{name}" if name else prefix)
        for name, p in self.named_parameters():
            if p.name == name:
                p.name = f"{prefix}.{name}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call ``forward``; the nodes made inside are placed in this call of this module."""
        here = scope().place
        if here is not None and here.step is not None:  # inside a step, the step is the place
            return self.forward(*args, **kwargs)
        with at(Place(Call(self.path))):
            return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output; every module defines it."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward(...)")

    # --- what is registered

    def named_children(self) -> Iterator[tuple[str, Parameter | Module]]:
        """Yield the registered parameters and modules in the order of definition."""
        for name, value in vars(self).items():
            yield from _registered(name, value)

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Yield this module, named "", and all modules inside it with dotted names."""
        yield "", self
        for name, child in self.named_children():
            if isinstance(child, Module):
                for inner, module in child.named_modules():
                    yield f"{name}.{inner}" if inner else name, module

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield each parameter once, with the dotted name it is first found under.

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
        for name, child in self.named_children():
            if isinstance(child, Parameter):
                yield name, child
            else:
                for inner, p in child._all_parameters():
                    yield f"{name}.{inner}", p

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
        dtype = np.dtype(dtype)
        if dtype.kind not in "fc":
            raise DtypeError(f"astype: parameters need a floating type, got {dtype}")
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
