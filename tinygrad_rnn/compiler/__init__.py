"""Layers whose loop over time is compiled: ``compile(layer)``."""

from __future__ import annotations

from typing import Any, TypeVar

from ..module import Module
from ..nn.cells import check_sizes
from ..nn.recurrent import Recurrent
from . import numba_backend
from .errors import CompileError
from .layer import Compiled, CompileWarning, compiled

__all__ = ["CompileError", "CompileWarning", "Compiled", "compile"]

M = TypeVar("M", bound=Module)


def compile(model: M, *, threads: int | None = None, backend: str | None = None) -> M:
    """Return a layer that runs its cells' steps compiled; a model has its layers replaced.

    The parameters are the same objects under the same names, the results those of the unrolled
    graph to rounding.  A step that cannot be compiled runs unrolled, with a ``CompileWarning``.

    Parameters
    ----------
    model : Recurrent, or Module that holds some
        A layer is left as it is; in a model the layers are replaced, in lists and dicts too.
    threads : int, optional
        How many run tiles of the batch beside each other; by default the CPUs of the process.
        The results are the same to the bit.
    backend : {"numba", "numpy"}, optional
        By default numba where it is installed and knows the step, else NumPy.

    Raises
    ------
    TypeError
        If `model` is no Module.
    ValueError
        If a model holds no recurrent layer, or for an unknown back end or number of threads.
    ImportError
        If numba is asked for, but it or SciPy is not installed.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> fast = compile(nn.LSTM(3, 4, rng=0))
    >>> out, (h, c) = fast([[[1.0, 2.0, 3.0]]])
    >>> out.shape, list(fast.state_dict())
    ((1, 1, 4), ['L0.fwd.W_x', 'L0.fwd.W_h', 'L0.fwd.b'])
    """
    if not isinstance(model, Module):
        raise TypeError(f"compile: expected a layer or a model, got {type(model).__name__}")
    if threads is not None:
        check_sizes("compile", threads=threads)
    if backend not in (None, "numba", "numpy"):
        raise ValueError(f'compile: backend={backend!r} is none of "numba", "numpy"')
    if backend == "numba" and not numba_backend.available():
        raise ImportError("compile: numba and SciPy are not installed: pip install numba scipy")
    done: dict[int, Any] = {}  # a layer that stands in two places stays one
    found = _replaced(model, done, backend, threads)
    if not done:
        raise ValueError(f"compile: {type(model).__name__} holds no recurrent layer")
    return found  # type: ignore[no-any-return]


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
