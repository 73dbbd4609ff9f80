"""One application of a primitive; where values come from; how a value is written as code."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array
from ..op import Op
from ..tensor import Tensor
from ..transforms import grad

Shape = tuple[int, ...]
Drawer = Callable[[np.random.Generator, Shape], Array]  # of values, for one input
Domain = Drawer | Sequence[Drawer]  # for all inputs alike, or one for each


class Case(NamedTuple):
    """One application of a primitive, ``op(*inputs, **attrs)``; its ``repr`` is code.

    Attributes
    ----------
    op : Op
    inputs : tuple of ndarray
    attrs : dict

    Examples
    --------
    >>> from tinygrad_rnn import ops
    >>> case = Case(ops.sum, (np.array([1.0, 0.5]),), {"axis": 0})
    >>> case
    Case(OPS['sum'], (np.array([1.0, 0.5]),), {'axis': 0})
    >>> case(*case.inputs)
    array(1.5)
    >>> case.gradients(np.array(2.0))
    [array([2., 2.])]
    """

    op: Op
    inputs: tuple[Array, ...]
    attrs: dict[str, Any] = {}  # noqa: RUF012  never written to

    @property
    def wrt(self) -> list[int]:
        """The numbers of the inputs that get a gradient."""
        return [k for k, x in enumerate(self.inputs) if x.dtype.kind in "fc" and flows(self.op, k)]

    def __call__(self, *inputs: Any) -> Any:
        """Apply the op to other inputs, arrays or Tensors."""
        return self.op(*inputs, **self.attrs)

    def replace(self, change: Callable[[Array], Array]) -> Case:
        """Return the case with ``change(x)`` for every differentiable input x."""
        wrt = self.wrt
        inputs = [change(x) if k in wrt else x for k, x in enumerate(self.inputs)]
        return self._replace(inputs=tuple(inputs))

    def gradients(self, u: Array) -> list[Any]:
        """Return the gradients of <u, op(inputs)> at the differentiable inputs."""
        wrt = self.wrt
        xs = [Tensor(a, requires_grad=k in wrt) for k, a in enumerate(self.inputs)]
        found: list[Any] = grad(self(*xs), [xs[k] for k in wrt], u)
        return found

    def __repr__(self) -> str:
        attrs = f", {code(self.attrs)}" if self.attrs else ""
        return f"Case(OPS[{self.op.name!r}], {code(self.inputs)}{attrs})"


def flows(op: Op, k: int) -> bool:
    """Return whether input `k` of the op gets a gradient."""
    if op.rules:
        return k < len(op.rules) and op.rules[k] is not None
    return op.rule_all is not None


# --- values: multiples of 1/8, so that sums and products are exact, in float32 too ---------------


def grid(rng: np.random.Generator, shape: Shape) -> Array:
    """Return multiples of 1/8 in [-2, 2]."""
    return np.asarray(rng.integers(-16, 17, shape) / 8)


def positive(rng: np.random.Generator, shape: Shape) -> Array:
    """Return multiples of 1/8 in [1/4, 3]."""
    return np.asarray(rng.integers(2, 25, shape) / 8)


def nonzero(rng: np.random.Generator, shape: Shape) -> Array:
    """Return multiples of 1/8 with 1/4 <= abs(x) <= 3."""
    return np.asarray(positive(rng, shape) * rng.choice([-1.0, 1.0], shape))


def unit(rng: np.random.Generator, shape: Shape) -> Array:
    """Return multiples of 1/8 strictly inside (-1, 1)."""
    return np.asarray(rng.integers(-7, 8, shape) / 8)


def between(rng: np.random.Generator, shape: Shape) -> Array:
    """Return odd multiples of 1/16 in (-2, 2.1): none of them a value of the grid."""
    return np.asarray(grid(rng, shape) + 1 / 16)


def distinct(rng: np.random.Generator, shape: Shape) -> Array:
    """Return multiples of 1/4 from -1 on, each of them once: no ties."""
    return np.asarray(rng.permutation(math.prod(shape)).reshape(shape) / 4 - 1)


def mask(rng: np.random.Generator, shape: Shape) -> Array:
    """Return booleans."""
    return np.asarray(rng.random(shape) < 0.5)


def drawers(op: Op, count: int, domain: Domain | None) -> list[Drawer]:
    """Return what draws each of `count` inputs: the grid, and masks for what selects."""
    if callable(domain) or domain is None:
        selects = range(*op.selects.indices(count))
        return [mask if k in selects else domain or grid for k in range(count)]
    if len(domain) != count:
        raise ValueError(
            f"{op.name}: {len(domain)} domains for {count} inputs; "
            f"pass one for each, or one for all"
        )
    return list(domain)


# --- layouts: the same values, laid out otherwise in memory --------------------------------------


def packed(x: Array) -> Array:
    """Return a copy in C order."""
    return x.copy(order="C")


def fortran(x: Array) -> Array:
    """Return a copy in Fortran order."""
    return x.copy(order="F")


def strided(x: Array) -> Array:
    """Return a view of every other element of a larger array, the rest of which is NaN."""
    whole = np.full([2 * n + 1 for n in x.shape], np.nan).astype(x.dtype)
    every_other: Any = (..., *[slice(1, None, 2)] * x.ndim)
    view: Array = whole[every_other]
    view[...] = x
    return view


def backwards(x: Array) -> Array:
    """Return a view with negative strides."""
    flip: Any = (..., *[slice(None, None, -1)] * x.ndim)
    return np.asarray(x[flip].copy()[flip])


def repeated(x: Array) -> Array:
    """Return the first element everywhere, by strides of 0: values change, read-only."""
    return np.broadcast_to(x.flat[0] if x.size else np.zeros((), x.dtype), x.shape)


def readonly(x: Array) -> Array:
    """Return a copy that refuses to be written."""
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = (packed, fortran, strided, backwards, repeated, readonly)

# --- code ----------------------------------------------------------------------------------------


def code(value: Any) -> str:
    """Return a value as code that makes it, with ``np`` for NumPy.

    >>> code((np.zeros((0, 2)), np.array([1, 2]), {"dtype": np.float32}))
    "(np.zeros((0, 2)), np.array([1, 2]), {'dtype': np.float32})"
    >>> code(np.array([0.5], np.float32))
    'np.array([0.5], np.float32)'
    """
    if isinstance(value, np.ndarray):
        plain = value.dtype in (np.float64, np.int64, np.bool) and (
            value.size or value.dtype == "d"
        )
        dtype = "" if plain else f", np.{value.dtype}"
        if not value.size:
            return f"np.zeros({value.shape!r}{dtype})"
        numbers = re.sub(r"(nan|inf)", r"np.\1", repr(value.tolist()))
        return f"np.array({numbers}{dtype})"
    if isinstance(value, dict):
        return "{" + ", ".join([f"{k!r}: {code(v)}" for k, v in value.items()]) + "}"
    if type(value) is tuple:
        inner = ", ".join([code(v) for v in value])
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if type(value) is list:
        return f"[{', '.join([code(v) for v in value])}]"
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return f"np.{np.dtype(value).name}"
    if value is Ellipsis:
        return "..."
    return repr(value)
