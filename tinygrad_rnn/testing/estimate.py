"""Numerical derivatives along a direction, each with an estimate of its own error.

Complex step: Squire and Trapp, SIAM Review 40 (1998).  Extrapolated differences: Ridders,
Advances in Engineering Software 4 (1982).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array

STEP = 1e-100  # nothing is subtracted in a complex step: no rounding error, however small
Along = Callable[[Any], Array]  # t -> values of shape (K,), at the point moved by t


@dataclass(frozen=True)
class Estimate:
    """A derivative along a direction.

    Attributes
    ----------
    value, error : float
    method : str
        ``"complex step"`` or ``"ridders"``.
    evaluations : int
        Calls of the function.
    kink : (float, float) or None
        The derivatives from the left and from the right, where they differ.
    """

    value: float
    error: float
    method: str
    evaluations: int
    kink: tuple[float, float] | None = None


def derivative(f: Callable[[Array], Any], x: Any, v: Any, method: str = "auto") -> Estimate:
    """Return the derivative of the scalar f at x along v: d f(x + t v) / dt at t = 0.

    Parameters
    ----------
    f : callable
        Array to number.
    x, v : array_like
        The point and the direction, of one shape.
    method : {"auto", "complex", "ridders"}
        ``"auto"`` takes the complex step where Ridders' differences, which know no complex
        numbers, agree with it.

    Raises
    ------
    ValueError
        For another method, or shapes that differ.

    Examples
    --------
    >>> d = derivative(lambda x: np.exp(x).sum(), [0.0, 1.0], [1.0, 0.0])
    >>> round(d.value, 12), d.method
    (1.0, 'complex step')
    >>> derivative(lambda x: abs(x).sum(), [0.0], [1.0]).kink
    (-1.0, 1.0)
    """
    if method not in ("auto", "complex", "ridders"):
        raise ValueError(f"derivative: method is auto, complex or ridders, got {method!r}")
    x, v = np.asarray(x, np.float64), np.asarray(v, np.float64)
    if x.shape != v.shape:
        raise ValueError(f"derivative: x is {x.shape}, the direction {v.shape}")
    count = [0]

    def along(t: Any) -> Array:
        count[0] += 1
        with np.errstate(all="ignore"):  # a step may leave the domain
            y = np.asarray(f(x + t * v))
        if y.size != 1:
            raise ValueError(f"derivative: f returns an array of shape {y.shape}, not a number")
        return y.reshape(1)

    if not np.isfinite(along(0.0)).all():
        return Estimate(np.nan, np.inf, "ridders", count[0])  # no value, no derivative
    if method == "complex":
        return Estimate(float(complex_step(along)[0]), 0.0, "complex step", count[0])
    h = 0.05 * max(1.0, float(np.abs(x).max(initial=0)))
    ends = kink(along, 0.02 * h)
    if ends is not None:
        left, right = float(ends[0][0]), float(ends[1][0])
        middle, gap = (left + right) / 2, abs(right - left)
        return Estimate(middle, gap, "ridders", count[0], (left, right))
    value, error = ridders(along, h)
    if method == "auto":
        try:
            exact = complex_step(along)
        except Exception:  # whatever f does with complex numbers: it was not made for them
            exact = np.array([np.nan])
        if abs(exact - value) <= error + 1e-6 * np.abs(value):
            return Estimate(float(exact[0]), 0.0, "complex step", count[0])
    return Estimate(float(value[0]), float(error[0]), "ridders", count[0])


def complex_step(along: Along) -> Array:
    """Return the derivatives of the analytic ``along`` at 0; NaN where it returns no complex."""
    with np.errstate(all="ignore"):
        y = along(1j * STEP)
    if y.dtype.kind != "c":
        return np.full(y.shape, np.nan)
    return np.asarray(y.imag / STEP)


def ridders(
    along: Along,
    h: float = 0.05,
    levels: int = 5,
    eps: float = np.finfo(np.float64).eps,
    settled: float = 1e-6,
) -> tuple[Array, Array]:
    """Return the derivatives of ``along`` at 0 and the errors that they may have.

    Central differences with steps h, h/2, h/4, ..., extrapolated to step 0.  The error is ten
    times the least change between neighbours of the table, plus what rounding of f leaves.
    A step at which the function is not finite is left out; infinite errors if all are.  Where
    the error is more than `settled`, relative, the table begins again with smaller steps, and
    with ever smaller ones beside the border of the domain.
    """

    def difference(step: float) -> tuple[Array, Array]:
        plus, minus = along(step), along(-step)
        size = np.maximum(np.abs(plus), np.abs(minus))
        return (plus - minus) / (2 * step), 4 * eps * size / step

    best, error = _extrapolate(difference, h, levels, order=2)
    for shrink in (1 / 16, 1 / 256):
        if (error <= settled * np.abs(best)).all():
            break
        value, other = _extrapolate(difference, h * shrink, levels, order=2)
        best, error = np.where(other < error, value, best), np.minimum(error, other)
    shrink = 1 / 256
    while np.isinf(error).any() and shrink > 1e-280:
        shrink /= 2.0**16
        value, other = _extrapolate(difference, h * shrink, levels, order=2)
        best, error = np.where(other < error, value, best), np.minimum(error, other)
    return best, error


def sides(
    along: Along, h: float = 0.02, levels: int = 5, eps: float = np.finfo(np.float64).eps
) -> tuple[Array, Array, Array] | None:
    """Return the derivatives from the left and from the right, and the error of both.

    None where the function is not finite on one side.
    """
    here = along(0.0)

    def toward(sign: int) -> tuple[Array, Array]:
        def difference(step: float) -> tuple[Array, Array]:
            there = along(sign * step)
            size = np.maximum(np.abs(there), np.abs(here))
            return sign * (there - here) / step, 4 * eps * size / step

        return _extrapolate(difference, h, levels, order=1)

    (left, error), (right, other) = toward(-1), toward(1)
    both = error + other
    return (left, right, both) if np.isfinite(both).all() else None


def _split(left: Array, right: Array, error: Array) -> Array:
    """Return by how much the two sides differ beyond their errors; 0 where they do not."""
    gap = np.abs(right - left)
    # one-sided differences of a smooth function agree to a few digits; those at a kink do not
    smooth = gap <= np.maximum(error, 1e-5 * np.maximum(np.abs(left), np.abs(right)))
    return np.where(smooth, 0.0, gap)


def kink(along: Along, h: float = 1e-3) -> tuple[Array, Array, Array] | None:
    """Return (left, right, error) where a function has a kink at 0, None where it is smooth.

    One that is seen with large steps must be seen with small ones too: it may lie beside 0.
    """
    ends = sides(along, h=h)
    if ends is None or not _split(*ends).any():
        return None
    ends = sides(along, h=h * 1e-3)
    return ends if ends is not None and _split(*ends).any() else None


def interval(each: Along, h: float = 1e-3) -> tuple[float, float, float] | None:
    """Return (least, most, error) of the slopes that the sum of terms may have at a kink.

    The slope of each term lies between those of its two sides; a sum of kinks of either sign has
    more slopes than lie between its own two sides.  None where every term is smooth.
    """
    ends = sides(each, h=h * 1e-3)  # with larger steps a term may meet the kinks beside it
    if ends is None:
        return None
    bent = _split(*ends) > 0
    if not bent.any():
        return None
    left, right, error = (a[bent] for a in ends)
    value, slack = ridders(lambda t: each(t)[~bent].sum(keepdims=True), h / 2)
    least, most = np.minimum(left, right).sum(), np.maximum(left, right).sum()
    middle = float(value[0]) if not bent.all() else 0.0
    return least + middle, most + middle, float(error.sum() + slack[0])


def _extrapolate(
    difference: Callable[[float], tuple[Array, Array]], h: float, levels: int, order: int
) -> tuple[Array, Array]:
    """Extrapolate differences with steps h, h/2, ... whose error is a series in step^order."""
    best = error = None
    rows: list[list[Array]] = []
    for level in range(levels):
        with np.errstate(all="ignore"):  # a step may leave the domain
            value, floor = difference(h / 2**level)
        if best is None or error is None:
            best, error = np.zeros_like(value), np.full(value.shape, np.inf)
        if not np.isfinite(value).all():
            rows = []  # a new table, from the next step on
            continue
        row = [value]
        for j in range(1, len(rows) + 1):
            row.append(row[j - 1] + (row[j - 1] - rows[-1][j - 1]) / (2.0 ** (order * j) - 1))
            change = np.maximum(np.abs(row[j] - row[j - 1]), np.abs(row[j] - rows[-1][j - 1]))
            total = 10 * change + floor
            better = total < error
            best, error = np.where(better, row[j], best), np.where(better, total, error)
        rows.append(row)
    assert best is not None
    assert error is not None
    return best, error
