"""Which steps of its input an output reads: receptive fields, shown by gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import GraphError, ShapeError
from ..module import Module
from ..scope import recording
from ..tensor import Tensor
from ..transforms import grad


def reads(f: Tensor | Callable[[Any], Any], x: Any) -> Array:
    """Return which steps of x each step of y = f(x) reads, by the gradients d y(t) / d x(u).

    Parameters
    ----------
    f : callable or Tensor
        A layer, or a function of a Tensor x (T, N, D) that returns y (T', N, ...) or (y, state);
        or y itself, which was made from the Tensor x.
    x : array_like (T, N, D) or (T, D), or Tensor
        Where.  A unit that is off, as a ReLU can be, passes nothing: take several sequences.
        A layer is given its own dtype; a function is given float32, or a Tensor in its own dtype.

    Returns
    -------
    ndarray of bool (T', T)
        Whether a path leads from x(u) to y(t), however small the slope, in one sequence at least.

    Raises
    ------
    TypeError
        If f returns no Tensor; if y is given, but x is no Tensor.
    GraphError
        If y is given, but x requires no gradient or y was not recorded.
    ShapeError
        If x or y has no steps, or f is a layer with ``batch_first=True``.

    Examples
    --------
    >>> from tinygrad_rnn.nn import RNN, TDNN
    >>> x = np.ones((4, 1, 1))
    >>> reads(TDNN([1, 2], 2, padding="causal", rng=0), x).astype(int)
    array([[1, 0, 0, 0],
           [1, 1, 0, 0],
           [0, 1, 1, 0],
           [0, 0, 1, 1]])
    >>> reads(RNN(1, 2, rng=0), x).astype(int)[-1]
    array([1, 1, 1, 1])
    """
    if isinstance(f, Tensor):
        y, leaf = f, x
        _check_recorded(y, x)
    else:
        leaf = Tensor(np.asarray(x, _dtype_for(f, x)), requires_grad=True)
        _check_time_major(f, leaf)
        with recording():
            y = f(leaf)
        y = y[0] if isinstance(y, tuple) else y
    if not isinstance(y, Tensor):
        raise TypeError(f"reads: f returned {type(y).__name__}, expected a Tensor y or (y, state)")
    if y.ndim == 0:
        raise ShapeError("reads: f returned a scalar, expected y (T', N, ...), step by step")
    found = np.zeros((y.shape[0], leaf.shape[0]), bool)
    for t in range(len(found) if y.requires_grad else 0):
        seed = np.zeros(y.shape, y.dtype)
        seed[t] = np.nan  # runs along every path: no slope is so small that it would be lost
        with np.errstate(invalid="ignore"):
            found[t] = np.isnan(grad(y, leaf, seed)).any(axis=tuple(range(1, leaf.ndim)))
    return found


def _dtype_for(f: Any, x: Any) -> np.dtype[Any]:
    """Return the dtype that f is given x in."""
    if isinstance(f, Module):
        for p in f.parameters():
            return p.dtype
    own = isinstance(x, Tensor) and x.dtype.kind == "f"
    return np.dtype(x.dtype if own else np.float32)


def _check_recorded(y: Tensor, x: Any) -> None:
    """Raise where the graph cannot say what y reads of x."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"reads: x is a {type(x).__name__}: with y, pass the Tensor x that it was made from"
        )
    if not x.requires_grad:
        raise GraphError(
            "reads: x requires no gradient, so what reads it is not on record: make y from "
            "x = Tensor(..., requires_grad=True)"
        )
    if not y.requires_grad:
        raise GraphError("reads: y was not recorded: make it from x outside no_grad()")


def _check_time_major(f: Any, x: Tensor) -> None:
    """Raise where the first axis of x is not time."""
    if x.ndim == 0:
        raise ShapeError("reads: x is a scalar, expected (T, N, D) or (T, D)")
    for name, m in f.named_modules() if isinstance(f, Module) and x.ndim > 2 else ():
        if getattr(m, "batch_first", False):
            raise ShapeError(
                f"reads: {name or type(m).__name__} has batch_first=True, so the first axis of "
                f"x {x.shape} would be N: pass a function of x (T, N, D) that transposes"
            )
