"""Layers whose loop over time is compiled, and functions: ``compile(layer)``, ``compile(f)``."""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinFunctionType
from typing import Any, TypeVar, overload

from ..module import Module
from ..nn.cells import check_sizes
from ..nn.recurrent import Recurrent
from . import numba_backend
from .errors import CompileError
from .function import CompiledFunction
from .layer import Compiled, CompileWarning, compiled

__all__ = ["CompileError", "CompileWarning", "Compiled", "CompiledFunction", "compile"]

M = TypeVar("M", bound=Module)


@overload
def compile(  # type: ignore[overload-overlap]
    model: M, *, threads: int | None = None, backend: str | None = None
) -> M: ...
@overload
def compile(
    model: Callable[..., Any], *, threads: int | None = None, backend: str | None = None
) -> CompiledFunction: ...


def compile(model: Any, *, threads: int | None = None, backend: str | None = None) -> Any:
    """Return a layer that runs its cells' steps compiled; a model has its layers replaced.

    The parameters are the same objects under the same names, the results those of the unrolled
    graph to rounding.  A step that cannot be compiled runs unrolled, with a ``CompileWarning``.

    A function on Tensors becomes one that records itself, and its gradients, once for each
    signature: the shapes and types of its Tensors and arrays, which of them require gradients,
    and the values of all other arguments.  Tensors that it finds elsewhere, such as Parameters,
    are inputs too; their numbers are read at each call.  What cannot be recorded runs as it is,
    with a ``CompileWarning``: branches on values, random numbers, what it sets by name.

    Parameters
    ----------
    model : Recurrent, or Module that holds some, or function
        A layer is left as it is; in a model the layers are replaced, in lists and dicts too.
        A function returns Tensors, also in tuples, lists and dicts.
    threads : int, optional
        How many run tiles of the batch beside each other; by default the CPUs of the process.
        The results are the same to the bit.
    backend : {"numba", "numpy"}, optional
        By default numba where it is installed and knows the step, else NumPy.

    Raises
    ------
    TypeError
        If `model` is neither a Module nor a function in Python.
    ValueError
        If a model holds no recurrent layer, or for an unknown back end or number of threads.
        For a function, whose back end is NumPy in the thread of its caller, if another is asked
        for.
    ImportError
        If numba is asked for, but is not installed.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> fast = compile(nn.LSTM(3, 4, rng=0))
    >>> out, (h, c) = fast([[[1.0, 2.0, 3.0]]])
    >>> out.shape, list(fast.state_dict())
    ((1, 1, 4), ['L0.fwd.W_x', 'L0.fwd.W_h', 'L0.fwd.b'])
    >>> from tinygrad_rnn import Parameter, Tensor
    >>> w = Parameter([1.0, 2.0])
    >>> loss = compile(lambda x: ((w * x) * (w * x)).sum())
    >>> loss(Tensor([3.0, 1.0])).backward()
    >>> w.grad, len(loss.plan.pre.values)
    (array([18.,  4.]), 3)

    Notes
    -----
    A function finds what has changed by the names in its own text and in that of its helpers: of
    closures, globals, and attributes of objects and classes; and in the modules among these and
    its arguments.  What it does besides returning Tensors, such as printing or appending to a
    list of its own, happens when it is recorded, not when it is called.
    """
    builtin = isinstance(model, type | BuiltinFunctionType)
    if builtin or not (isinstance(model, Module) or callable(model)):
        raise TypeError(
            f"compile: expected a layer or a model, or a function in Python, got "
            f"{type(model).__name__}"
        )
    if threads is not None:
        check_sizes("compile", threads=threads)
    if backend not in (None, "numba", "numpy"):
        raise ValueError(f'compile: backend={backend!r} is none of "numba", "numpy"')
    if not isinstance(model, Module):
        return _function(model, threads, backend)
    if backend == "numba" and not numba_backend.available():
        raise ImportError("compile: numba is not installed: pip install numba")
    done: dict[int, Any] = {}  # a layer that stands in two places stays one
    found = _replaced(model, done, backend, threads)
    if not done:
        raise ValueError(f"compile: {type(model).__name__} holds no recurrent layer")
    return found


def _function(f: Callable[..., Any], threads: Any, backend: Any) -> CompiledFunction:
    if threads is not None or backend == "numba":
        asked = 'backend="numba"' if threads is None else f"threads={threads}"
        raise ValueError(
            f"compile: {asked} is for layers; a function runs on NumPy, in the thread that calls it"
        )
    return f if isinstance(f, CompiledFunction) else CompiledFunction(f)


def _replaced(value: Any, done: dict[int, Any], *settings: Any) -> Any:
    """Return a value with the recurrent layers in it compiled; what holds them stays."""
    if isinstance(value, Recurrent):
        if id(value) not in done:
            done[id(value)] = compiled(value, *settings)
        return done[id(value)]
    if isinstance(value, Module):
        for name, inner in list(vars(value).items()):
            object.__setattr__(value, name, _replaced(inner, done, *settings))
    elif isinstance(value, list):
        value[:] = [_replaced(v, done, *settings) for v in value]
    elif type(value) is tuple:
        return tuple([_replaced(v, done, *settings) for v in value])
    elif isinstance(value, dict):
        value.update({k: _replaced(v, done, *settings) for k, v in value.items()})
    return value
