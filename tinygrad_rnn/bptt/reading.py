"""Which steps of its input an output reads: receptive fields, shown by gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import ShapeError
from ..module import Module
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

    Returns
    -------
    ndarray of bool (T', T)
        Whether a path leads from x(u) to y(t), however small the slope, in one sequence at least.

    Raises
    ------
    TypeError
        If f returns no Tensor.
    ShapeError
        If y has no steps.

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
    else:
        first = next(iter(f.parameters()), None) if isinstance(f, Module) else None
        given = np.asarray(x, None if first is None else first.dtype)
        leaf = Tensor(given if given.dtype.kind == "f" else given.astype(np.float64), True)
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
