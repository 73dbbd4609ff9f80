"""Gradients clipped by their common norm or by value."""

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

import numpy as np

from ..arrays import Array
from ..tensor import Parameter
from .base import parameters_of


def clip_grad_norm(params: Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients by one factor so that their common 2-norm is at most `max_norm`.

    g = g * min(1, max_norm / norm), norm = sqrt(sum over all elements of all g of g^2), computed
    in float64 and without overflow. Skips what `Optimizer.step` skips. Clipped gradients are new
    arrays in ``.grad``, since several parameters may share one. If the norm is not finite, the
    gradients stay as they are.

    Returns
    -------
    float
        The norm before clipping; infinite or NaN if an element is.

    References
    ----------
    R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural
    networks", 2013, algorithm 1.

    >>> import numpy as np
    >>> from tinygrad_rnn.tensor import Parameter
    >>> w = Parameter(np.zeros(2))
    >>> w.grad = np.array([3.0, -4.0])
    >>> clip_grad_norm([w], max_norm=1.0), w.grad
    (5.0, array([ 0.6, -0.8]))
    """
    limit = _positive("max_norm", max_norm)
    grads = _gradients(params)
    peak = 1.0
    if any(g.dtype.itemsize >= 8 for _, g in grads):  # the squares of others cannot overflow
        peak = float(np.max([np.abs(g).max(initial=0) for _, g in grads]))
    unit = 2.0 ** (math.frexp(peak)[1] - 1)  # a power of two: to divide by it is exact
    scaled = (np.divide(g, unit, dtype=np.float64).reshape(-1) for _, g in grads)
    norm = unit * math.sqrt(sum(float(x @ x) for x in scaled))
    if limit < norm < math.inf:
        for p, g in grads:
            p.grad = np.multiply(g, limit / norm, dtype=np.float64).astype(g.dtype)
    return norm


def clip_grad_value(params: Iterable[Parameter], limit: float) -> None:
    """Clip every element of every gradient to [-limit, limit]; NaN stays NaN.

    Skips what `Optimizer.step` skips; clipped gradients are new arrays in ``.grad``.

    >>> import numpy as np
    >>> from tinygrad_rnn.tensor import Parameter
    >>> w = Parameter(np.zeros(2))
    >>> w.grad = np.array([3.0, -0.5])
    >>> clip_grad_value([w], 1.0)
    >>> w.grad
    array([ 1. , -0.5])
    """
    bound = _positive("limit", limit)
    for p, g in _gradients(params):
        most = min(bound, float(np.finfo(g.dtype).max))
        p.grad = np.clip(g, -most, most)


def _gradients(params: Iterable[Parameter]) -> list[tuple[Parameter, Array]]:
    return [(p, p.grad) for p in parameters_of(params) if p.requires_grad and p.grad is not None]


def _positive(label: str, value: Any) -> float:
    if not isinstance(value, Real) or not float(value) > 0:
        raise ValueError(f"{label}: expected a number above 0, got {value!r}")
    return float(value)
