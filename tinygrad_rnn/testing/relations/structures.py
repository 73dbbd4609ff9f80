"""Relations 5 and 7 to 9: what holds for broadcasting, indexing and functions with a structure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import functional as F
from ... import ops
from ...arrays import Array
from ...op import OPS
from ..configs import grid
from .base import BIT, Claim, Claims, each, relation, sums_equal, tape, weights

Function = Callable[..., Any]

_SHAPES = [
    ((), (2, 3)), ((1,), (3,)), ((3,), (2, 3)), ((2, 1, 3), (4, 1)), ((1, 1, 1), (2, 3, 2)),
    ((0,), (1,)), ((0,), ()), ((2, 0), (1, 1)), ((1,), ()), ((2, 1, 1, 2), (3, 1)),
    ((2, 2), (2, 2)),
]  # fmt: skip


@relation(5, "engine")
def broadcasting(
    f: Function | None = None, shapes: Sequence[tuple[tuple[int, ...], ...]] = tuple(_SHAPES)
) -> Claims:
    """Claim that V of f(x, y) sums over the axes along which x, or y, was broadcast.

    Parameters
    ----------
    f : callable, optional
        Elementwise, of two Tensors, defined for positive numbers; else every such primitive,
        ``where``, and ``matmul`` with its leading axes.
    shapes : sequence of pairs of shapes

    Examples
    --------
    >>> broadcasting(lambda x, y: x * y + 1).verdict.value
    'right'
    """
    if f is not None:
        yield from _broadcast("f", f, shapes, 0)
        return
    for name, op in list(OPS.items()):
        if op.signature == "(),()->()" and op.differentiable:
            yield from _broadcast(name, op, shapes, 0)
    mask = np.array([[True], [False]])
    wide = [((), (2, 3)), ((3,), (1, 1)), ((2, 3), (2, 1)), ((1, 1, 3), (3,))]
    yield from _broadcast("where", lambda x, y: ops.where(mask, x, y), wide, 0)
    products = [((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)), ((4, 1, 2, 3), (5, 3, 2))]
    yield from _broadcast("matmul", ops.matmul, products, 2)


def _broadcast(name: str, f: Function, shapes: Any, core: int) -> Claims:
    rng = np.random.default_rng(5)
    for pair in shapes:
        small = [rng.permutation(math.prod(s)).reshape(s) / 8 + 0.25 + k / 16
                 for k, s in enumerate(pair)]  # fmt: skip
        lead = np.broadcast_shapes(*[s[: len(s) - core] for s in pair])
        full = [np.broadcast_to(a, lead + a.shape[a.ndim - core :]) for a in small]
        one, all_ = tape(f, small), tape(f, full)
        us = weights(one.ys)
        found = zip(one.pull(us), all_.pull(us), small, strict=True)
        for k, (g, whole, a) in enumerate(found):
            axes = tuple(range(whole.ndim - a.ndim))
            kept = whole.sum(axis=axes)
            stretched = tuple([i for i, n in enumerate(a.shape) if n != kept.shape[i]])
            want = kept.sum(axis=stretched, keepdims=True)
            yield Claim(f"{name}: V at input {k} of shapes {pair[0]}, {pair[1]}", g, want)


_READS: list[Any] = [
    [0, 2, 2, -1], ([0, 0, 1], [1, 1, 0]), (slice(None), [0, 0]), (..., [1, 1, 1]), 1,
    slice(None, None, -1), (None, [2, 2]), ([[1], [1]], [0, 1, 0]),
    np.array([True, False, True]), ([], 0),
]  # fmt: skip


@relation(7, "engine")
def scatter(x: Any = None, indices: Sequence[Any] = tuple(_READS)) -> Claims:
    """Claim that V of x[i] adds u at i, also where i repeats, and what joins, parts again.

    V of concat splits u, V of stack unstacks it, V of where parts it into two that sum to u.

    Parameters
    ----------
    x : array_like, optional
        What is read from.
    indices : sequence
        Each is put in the brackets of x[...].

    Examples
    --------
    >>> scatter(np.zeros((3, 2)), [[0, 0, 1], (slice(1, None), 0)]).verdict.value
    'right'
    """
    a = grid((3, 2), 7) if x is None else np.asarray(x, np.float64)
    for i in indices:
        taped = tape(lambda t, i=i: t[i], [a])
        (u,) = weights(taped.ys)
        want = np.zeros_like(a)
        np.add.at(want, i, u)
        yield Claim(f"V of x[{i!r}]", taped.pull([u])[0], want)
        twice = tape(lambda t, i=i: (t[i], t[i]), [a])
        yield Claim(f"V of two reads x[{i!r}]", twice.pull([u, 2 * u])[0], 3 * want)
    rows = np.array([[0, 1], [1, 1]]) % len(a)
    taped = tape(lambda t: ops.take(t, rows), [a])
    (u,) = weights(taped.ys)
    want = np.zeros_like(a)
    np.add.at(want, rows, u)
    yield Claim("V of take", taped.pull([u])[0], want)
    for axis in range(a.ndim):
        parts = [a, a[(slice(None),) * axis + (slice(0, 1),)], 2 * a]
        taped = tape(lambda *p, axis=axis: ops.concat(*p, axis=axis), parts)
        (u,) = weights(taped.ys)
        cuts = np.cumsum([p.shape[axis] for p in parts])[:-1]
        yield from each(f"V of concat, axis {axis},", taped.pull([u]), np.split(u, cuts, axis), BIT)
    for axis in range(a.ndim + 1):
        taped = tape(lambda *p, axis=axis: ops.stack(*p, axis=axis), [a, 2 * a, -a])
        (u,) = weights(taped.ys)
        yield from each(
            f"V of stack, axis {axis},", taped.pull([u]), list(np.moveaxis(u, axis, 0)), BIT
        )
    mask = a > 0
    taped = tape(lambda p, q: ops.where(mask, p, q), [a, -a])
    (u,) = weights(taped.ys)
    first, second = taped.pull([u])
    yield Claim("V of where at the mask", first, np.where(mask, u, 0), BIT)
    yield Claim("the sum of both V of where", first + second, u, BIT)


def _relu_net(x: Any, V: Any, W: Any) -> Any:
    return F.relu(F.relu(x @ V) @ W)


_HOMOGENEOUS: list[tuple[Function, tuple[Array, ...], float]] = [
    (lambda x, y, z: x @ y @ z, (grid((2, 3), 1), grid((3, 2), 2), grid((2, 4), 3)), 3),
    (_relu_net, (grid((4, 3), 4), grid((3, 4), 5), grid((4, 2), 6)), 3),
    (lambda x, y: x / y, (grid((2, 3), 7), grid((3,), 8)), 0),
    (lambda x: ops.sqrt(abs(x)), (grid((2, 3), 9),), 0.5),
    (lambda x: ops.maximum(x, 2 * x[::-1]) + x.max(axis=0), (grid((3, 3), 10),), 1),
    (lambda x: x**3 + ops.minimum(x, -x) * x * x, (grid((5,), 11),), 3),
]


@relation(8, "engine")
def euler(f: Function | None = None, *inputs: Any, degree: float = 1) -> Claims:
    """Claim Euler's theorem <df/dx, x> = k f for f homogeneous of degree k in all inputs.

    Examples
    --------
    >>> euler(lambda x, y: x @ y, np.ones((2, 3)), np.ones((3, 2)), degree=2).verdict.value
    'right'
    """
    for function, arrays, k in [(f, inputs, degree)] if f is not None else _HOMOGENEOUS:
        taped = tape(function, arrays)
        us = weights(taped.ys)
        terms = [g * x.data for g, x in zip(taped.pull(us), taped.leaves, strict=True)]
        values = [k * u * y.data for u, y in zip(us, taped.ys, strict=True)]
        yield from sums_equal(f"<V(u), x> against {k} <u, f>", terms, values)


def _ce(x: Any) -> Any:
    return F.cross_entropy(x, np.arange(x.shape[0]) % x.shape[1], reduction="none")


_INVARIANT: list[tuple[Function, str]] = [
    (F.softmax, "shift"),
    (ops.log_softmax, "shift"),
    (_ce, "shift"),
    (F.layer_norm, "shift"),
    (lambda x: x - x.max(axis=-1, keepdims=True), "shift"),
    (lambda x: F.softmax(x).sum(axis=-1), "constant"),
    (lambda x: F.layer_norm(x, eps=0.0), "scale"),
    (lambda x: x / ops.sqrt((x * x).sum(axis=-1, keepdims=True)), "scale"),
]


@relation(9, "engine")
def invariance(f: Function | None = None, x: Any = None, under: str = "shift") -> Claims:
    """Claim what the invariance of the rows of f implies for its gradient.

    f(x + c) = f(x) gives sum V = 0, f(c x) = f(x) gives <V, x> = 0, f constant gives V = 0.

    Parameters
    ----------
    f : callable, optional
        Of one Tensor (N, K), row by row.
    x : array_like, optional
    under : {"shift", "scale", "constant"}

    Examples
    --------
    >>> invariance(F.softmax, [[0.0, 1.0, 2.0]]).verdict.value
    'right'
    """
    a = grid((3, 4), 9, bound=2) if x is None else np.asarray(x, np.float64)
    for function, kind in [(f, under)] if f is not None else _INVARIANT:
        taped = tape(function, [a])
        (g,) = taped.pull(weights(taped.ys))
        name = getattr(function, "__name__", "f")
        if kind == "constant":  # what cancels is of the size of one
            yield Claim(f"V of the constant {name}, + 1", g + 1, np.ones_like(g))
            continue
        terms = g * a if kind == "scale" else g
        what = f"the positive against the negative terms of V of {name}, under {kind},"
        size = np.abs(terms).sum(axis=-1)
        yield Claim(what, np.maximum(terms, 0).sum(axis=-1) + size,
                    np.maximum(-terms, 0).sum(axis=-1) + size)  # fmt: skip
