"""A second engine to compare with: as plain as can be, slow, float64, element by element.

It shares no code and no formula layout with the engine: values by Python loops over elements,
gradients by scanning for a node that nothing unfinished uses any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..arrays import Array

Pull = Callable[[Array], Array]
Number = Callable[..., float]


class Ref:
    """A value, and for each operand the function that pulls a gradient back to it.

    Examples
    --------
    >>> x = Ref([1.0, 2.0], needs=True)
    >>> gradients(elementwise(*BINARY["multiply"], x, x), [1.0, 10.0])[id(x)]
    array([ 2., 40.])
    """

    def __init__(
        self, value: Any, needs: bool = False, edges: Iterable[tuple[Ref, Pull]] = ()
    ) -> None:
        self.value = np.array(value, np.float64)
        self.edges: list[tuple[Ref, Pull]] = [(x, pull) for x, pull in edges if x.needs]
        self.needs: bool = needs or bool(self.edges)
        self.grad: Any = None

    def detached(self) -> Ref:
        """Return the value without its past."""
        return Ref(self.value)


def elementwise(f: Number, partials: Sequence[Number], *xs: Ref) -> Ref:
    """Apply f(x, y, ...) -> number to each element, with a partial derivative per operand."""
    shape = np.broadcast_shapes(*[x.value.shape for x in xs])
    value = np.empty(shape)
    slopes = [np.empty(shape) for _ in xs]
    places = [[_source(i, x.value.shape) for x in xs] for i in np.ndindex(shape)]
    for i, sources in zip(np.ndindex(shape), places, strict=True):
        numbers = [float(x.value[s]) for x, s in zip(xs, sources, strict=True)]
        value[i] = f(*numbers)
        for slope, partial in zip(slopes, partials, strict=True):
            slope[i] = partial(*numbers)

    def pull_to(k: int) -> Pull:
        def pull(g: Array) -> Array:
            back = np.zeros(xs[k].value.shape)
            for i, sources in zip(np.ndindex(shape), places, strict=True):
                back[sources[k]] += g[i] * slopes[k][i]
            return back

        return pull

    return Ref(value, edges=[(x, pull_to(k)) for k, x in enumerate(xs)])


def _source(i: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return which element of an operand of `shape` the element i of the result reads."""
    own = i[len(i) - len(shape) :]
    return tuple([0 if n == 1 else j for j, n in zip(own, shape, strict=True)])


def moved(x: Ref, index: Array) -> Ref:
    """Return the elements of x that the array `index` of flat positions names."""

    def pull(g: Array) -> Array:
        back = [0.0] * x.value.size
        for position, number in zip(index.ravel(), g.ravel(), strict=True):
            back[position] += number
        return np.reshape(back, x.value.shape)

    return Ref(x.value.ravel()[index.ravel()].reshape(index.shape), edges=[(x, pull)])


def positions(x: Ref) -> Array:
    """Return the flat positions of the elements, in the shape of x."""
    return np.arange(x.value.size).reshape(x.value.shape)


def added(x: Ref, axis: int) -> Ref:
    """Sum over one axis, by adding its slices."""
    slices = [np.take(x.value, k, axis) for k in range(x.value.shape[axis])]

    def pull(g: Array) -> Array:
        return np.stack([g] * len(slices), axis)

    return Ref(sum(slices, np.zeros(slices[0].shape)), edges=[(x, pull)])


def product(x: Ref, y: Ref) -> Ref:
    """Matrix product of two matrices, by three loops."""
    (m, n), p = x.value.shape, y.value.shape[1]
    value = np.zeros((m, p))
    cells = [(i, j, k) for i in range(m) for j in range(n) for k in range(p)]
    for i, j, k in cells:
        value[i, k] += x.value[i, j] * y.value[j, k]

    def pull_x(g: Array) -> Array:
        back = np.zeros((m, n))
        for i, j, k in cells:
            back[i, j] += g[i, k] * y.value[j, k]
        return back

    def pull_y(g: Array) -> Array:
        back = np.zeros((n, p))
        for i, j, k in cells:
            back[j, k] += g[i, k] * x.value[i, j]
        return back

    return Ref(value, edges=[(x, pull_x), (y, pull_y)])


def joined(x: Ref, y: Ref) -> Ref:
    """Lay two arrays side by side along the first axis."""
    n = len(x.value)
    value = np.array([*x.value, *y.value]).reshape(-1, *x.value.shape[1:])
    return Ref(value, edges=[(x, lambda g: g[:n]), (y, lambda g: g[n:])])


def chosen(mask: Ref, x: Ref, y: Ref) -> Ref:
    """Return x where the mask is 1, y where it is 0."""
    return elementwise(
        lambda m, a, b: a if m else b, [lambda m, a, b: 0.0, lambda m, a, b: m,
                                        lambda m, a, b: 1.0 - m], mask, x, y,
    )  # fmt: skip


UNARY: dict[str, tuple[Number, list[Number]]] = {
    "tanh": (math.tanh, [lambda a: 1 - math.tanh(a) ** 2]),
    "sigmoid": (
        lambda a: 1 / (1 + math.exp(-a)),
        [lambda a: math.exp(-a) / (1 + math.exp(-a)) ** 2],
    ),
    "negative": (lambda a: -a, [lambda a: -1.0]),
    "square": (lambda a: a * a, [lambda a: 2 * a]),
}
BINARY: dict[str, tuple[Number, list[Number]]] = {
    "add": (lambda a, b: a + b, [lambda a, b: 1.0, lambda a, b: 1.0]),
    "subtract": (lambda a, b: a - b, [lambda a, b: 1.0, lambda a, b: -1.0]),
    "multiply": (lambda a, b: a * b, [lambda a, b: b, lambda a, b: a]),
    "maximum": (max, [lambda a, b: (a > b) + (a == b) / 2, lambda a, b: (a < b) + (a == b) / 2]),
}


def apply(name: str, xs: Sequence[Ref], args: Sequence[Any]) -> Ref:
    """Apply a primitive by the name that NumPy gives it.

    Examples
    --------
    >>> apply("swapaxes", [Ref([[1.0, 2.0]])], (0, 1)).value
    array([[1.],
           [2.]])
    """
    if name in UNARY:
        return elementwise(*UNARY[name], *xs)
    if name in BINARY:
        return elementwise(*BINARY[name], *xs)
    if name in MOVES:
        return moved(xs[0], MOVES[name](positions(xs[0]), *args))
    others: dict[str, Callable[..., Ref]] = {
        "sum": added, "matmul": product, "concatenate": joined, "where": chosen,
    }  # fmt: skip
    return others[name](*xs, *args)


MOVES: dict[str, Callable[..., Array]] = {
    "getitem": lambda at, index: np.asarray(at[index]),
    "reshape": np.reshape,
    "swapaxes": np.swapaxes,
    "broadcast_to": np.broadcast_to,
}


def gradients(root: Ref | Sequence[Ref], seed: Any) -> dict[int, Any]:
    """Return a dictionary by id() of what arrives at every node that `root` was made from.

    `root` is one node or several, with as many seeds.
    """
    several = not isinstance(root, Ref)
    roots: list[Ref] = list(root) if several else [root]  # type: ignore[list-item, arg-type]
    unique: list[Ref] = []
    for node in roots:
        if not any(node is y for y in unique):
            unique.append(node)
    for node in unique:  # grows while it is read
        for x, _ in node.edges:
            if not any(x is y for y in unique):
                unique.append(x)
    arrived = {id(node): np.zeros(node.value.shape) for node in unique}
    for node, u in zip(roots, seed if several else [seed], strict=True):
        arrived[id(node)] = arrived[id(node)] + np.array(u, np.float64)
    while unique:
        node = next(n for n in unique if not any(x is n for m in unique for x, _ in m.edges))
        unique = [m for m in unique if m is not node]
        for x, pull in node.edges:
            arrived[id(x)] = arrived[id(x)] + pull(arrived[id(node)])
    return arrived


def backward(root: Ref, leaves: Sequence[Ref]) -> None:
    """Add to ``.grad`` of the leaves the gradient of the sum of `root`."""
    arrived = gradients(root, np.ones(root.value.shape))
    for leaf in leaves:
        if leaf.needs and id(leaf) in arrived:
            leaf.grad = arrived[id(leaf)] + (0.0 if leaf.grad is None else leaf.grad)
