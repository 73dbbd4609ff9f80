"""A second engine to compare with: as plain as can be, slow, float64, element by element.

It shares no code and no formula layout with the package: values by Python loops over elements,
gradients by scanning for a node that nothing unfinished uses any more.
"""

import math

import numpy as np


class Ref:
    """A value, and for each operand the function that pulls a gradient back to it."""

    def __init__(self, value, needs=False, edges=()):
        self.value = np.array(value, np.float64)
        self.edges = [(x, pull) for x, pull in edges if x.needs]
        self.needs = needs or bool(self.edges)
        self.grad = None

    def detached(self):
        return Ref(self.value)


def elementwise(f, partials, *xs):
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

    def pull_to(k):
        def pull(g):
            back = np.zeros(xs[k].value.shape)
            for i, sources in zip(np.ndindex(shape), places, strict=True):
                back[sources[k]] += g[i] * slopes[k][i]
            return back

        return pull

    return Ref(value, edges=[(x, pull_to(k)) for k, x in enumerate(xs)])


def _source(i, shape):
    """Return which element of an operand of `shape` the element i of the result reads."""
    own = i[len(i) - len(shape) :]
    return tuple(0 if n == 1 else j for j, n in zip(own, shape, strict=True))


def moved(x, index):
    """Return the elements of x that the array `index` of flat positions names."""

    def pull(g):
        back = [0.0] * x.value.size
        for position, number in zip(index.ravel(), g.ravel(), strict=True):
            back[position] += number
        return np.reshape(back, x.value.shape)

    return Ref(x.value.ravel()[index.ravel()].reshape(index.shape), edges=[(x, pull)])


def positions(x):
    return np.arange(x.value.size).reshape(x.value.shape)


def added(x, axis):
    """Sum over one axis, by adding its slices."""
    slices = [np.take(x.value, k, axis) for k in range(x.value.shape[axis])]

    def pull(g):
        return np.stack([g] * len(slices), axis)

    return Ref(sum(slices, np.zeros(slices[0].shape)), edges=[(x, pull)])


def product(x, y):
    """Matrix product of two matrices, by three loops."""
    (m, n), p = x.value.shape, y.value.shape[1]
    value, cells = (
        np.zeros((m, p)),
        [(i, j, k) for i in range(m) for j in range(n) for k in range(p)],
    )
    for i, j, k in cells:
        value[i, k] += x.value[i, j] * y.value[j, k]

    def pull_x(g):
        back = np.zeros((m, n))
        for i, j, k in cells:
            back[i, j] += g[i, k] * y.value[j, k]
        return back

    def pull_y(g):
        back = np.zeros((n, p))
        for i, j, k in cells:
            back[j, k] += g[i, k] * x.value[i, j]
        return back

    return Ref(value, edges=[(x, pull_x), (y, pull_y)])


def joined(x, y):
    """Lay two arrays side by side along the first axis."""
    n = len(x.value)
    value = np.array([*x.value, *y.value]).reshape(-1, *x.value.shape[1:])
    return Ref(value, edges=[(x, lambda g: g[:n]), (y, lambda g: g[n:])])


UNARY = {
    "tanh": (math.tanh, [lambda a: 1 - math.tanh(a) ** 2]),
    "sigmoid": (
        lambda a: 1 / (1 + math.exp(-a)),
        [lambda a: math.exp(-a) / (1 + math.exp(-a)) ** 2],
    ),
    "neg": (lambda a: -a, [lambda a: -1.0]),
}
BINARY = {
    "add": (lambda a, b: a + b, [lambda a, b: 1.0, lambda a, b: 1.0]),
    "sub": (lambda a, b: a - b, [lambda a, b: 1.0, lambda a, b: -1.0]),
    "mul": (lambda a, b: a * b, [lambda a, b: b, lambda a, b: a]),
    "maximum": (max, [lambda a, b: (a > b) + (a == b) / 2, lambda a, b: (a < b) + (a == b) / 2]),
}


def gradients(root, seed):
    """Return a dictionary by id() of what arrives at every node that `root` was made from."""
    unique = [root]
    for node in unique:  # grows while it is read
        for x, _ in node.edges:
            if not any(x is y for y in unique):
                unique.append(x)
    arrived = {id(node): np.zeros(node.value.shape) for node in unique}
    arrived[id(root)] = np.array(seed, np.float64)
    while unique:
        node = next(n for n in unique if not any(x is n for m in unique for x, _ in m.edges))
        unique = [m for m in unique if m is not node]
        for x, pull in node.edges:
            arrived[id(x)] = arrived[id(x)] + pull(arrived[id(node)])
    return arrived


def backward(root, leaves):
    """Add to ``.grad`` of the leaves the gradient of the sum of `root`."""
    arrived = gradients(root, np.ones(root.value.shape))
    for leaf in leaves:
        if leaf.needs and id(leaf) in arrived:
            leaf.grad = arrived[id(leaf)] + (0.0 if leaf.grad is None else leaf.grad)
