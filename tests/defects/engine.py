"""Faults in the rules of primitives, in the sweep and in what is recorded."""

from contextlib import contextmanager

import numpy as np

from tinygrad_rnn import autodiff, functional, graph, ops, tensor
from tinygrad_rnn.tensor import Tensor

from .planting import Defect, edit, patched, rule, rule_all


def grid(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return np.asarray(rng.integers(1, 17, shape) * rng.choice([-1, 1], shape) / 8)


# --- composites: many ops, one of which is at fault ----------------------------------------------


def cell(x, h, W, b):
    """Two steps of a gated cell that calls on most rules."""
    for x_t in (x[0], x[1]):
        i, f, g = functional.split(ops.concat(x_t, h, axis=1) @ W + b, 3)
        h = ops.sigmoid(f) * h + ops.sigmoid(i) * ops.tanh(g)
    return ops.log_softmax(h / ops.sqrt(1 + (h * h).sum(axis=1, keepdims=True)), axis=1)


CELL = (cell, (grid(2, 2, 4), grid(2, 4, seed=1), grid(8, 12, seed=2), grid(12, seed=3)))


def mixed(x, y):
    """Shapes, reductions and ties."""
    z = functional.stack([x.T, ops.exp(y * 0.5)], axis=1)  # (3, 2, 3)
    z = z.transpose(1, 2, 0) * ops.maximum(x, y)
    z = ops.where(z > 0, z, ops.tanh(z)) - z.sum(axis=1, keepdims=True) * 0.25
    return (z[np.array([0, 1, 1])] @ x[0]).max(axis=1) + z.sum(axis=2).reshape((3, 2)).sum(axis=1)


MIXED = (mixed, (grid(3, 3), np.where(np.eye(3) > 0, grid(3, 3), grid(3, 3, seed=1))))


def ragged(x, w):
    """A table of rows, a vector on the left, a slice read against its order."""
    rows = ops.take(x, np.array([2, 0, 2])) * ops.tanh(x[np.array([0, 1, 0])])
    return (w @ rows - x.sum(axis=1)) / (2 + x[2:] * x[:1]) + ops.log_softmax(rows, axis=0).sum(
        axis=0
    )


RAGGED = (ragged, (grid(3, 3), grid(3, seed=4)))


def powers(x, y):
    """x^y where x may be 0."""
    return (ops.tanh(x) + ops.pow(x * x, y)).sum(axis=0) * ops.exp(y)


POWERS = (powers, (np.array([[0.0, 0.5], [1.5, -1.0]]), np.array([2.0, 1.5])))


def _row(name, mechanism, bites, plant, op=None, composite=None):
    return Defect(name, "engine", mechanism, bites, plant, op, composite)


# --- what is planted -----------------------------------------------------------------------------


def _no_unbroadcast(g, shape):
    return g


def _unbroadcast_mean(g, shape):
    """Right along new axes; takes the mean along axes of length 1."""
    lead = g.ndim - len(shape)
    g = ops.sum(g, axis=tuple(range(lead)))
    axes = tuple(k for k, n in enumerate(shape) if n == 1 and g.shape[k] != 1)
    count = np.prod([g.shape[k] for k in axes]) if axes else 1
    return ops.sum(g, axis=axes, keepdims=True) * (1 / count) if axes else g


def _sum_first_axis(g, y, x, axis=None, keepdims=False):
    """Puts the summed axis back at the front, wherever it was."""
    if axis is None or keepdims:
        return ops.broadcast(g.reshape(ops._kept(x.shape, axis)), shape=x.shape)
    return ops.broadcast(g, shape=x.shape) if g.shape == x.shape[1:] else _sum_any(g, x, axis)


def _sum_any(g, x, axis):
    return ops.broadcast(g.reshape(ops._kept(x.shape, axis)), shape=x.shape)


def _getitem_assigns(x, uses):
    """Of entries that one index names twice, one addition is kept."""
    if any(isinstance(g, Tensor) for g, _, _ in uses):
        return ops._getitem_uses(x, uses)
    y = np.zeros(x.shape, np.result_type(*[g.dtype for g, _, _ in uses]))
    for g, inputs, attrs in uses:
        y[ops._fill(attrs["index"], iter(inputs[1:]))] += g
    return y


def _parts_as_read(x, uses):
    """Lay slices side by side without a look at where they start."""
    axis = uses[0][2]["axis"]
    grads = [g for g, _, _ in uses[::-1]]
    whole = sum(g.shape[axis] for g in grads if g.ndim > axis) == x.shape[axis]
    return ops.concat(*grads, axis=axis) if whole else ops._part_uses(x, uses)


def _vector_on_the_left(g, z, x, y):
    if x.ndim == 1 and y.ndim == 2:
        return g[:, None] * x[None, :] if y.shape[0] == y.shape[1] else ops._matmul_y(g, z, x, y)
    return ops._matmul_y(g, z, x, y)


def _matrix_of_a_stack(y, uses):
    """Of a stack of matrices only the first reaches the gradient of a shared weight."""
    first = [
        (g[0], (inputs[0][0], inputs[1]), attrs) if inputs[0].ndim == 3 else (g, inputs, attrs)
        for g, inputs, attrs in uses
    ]
    return _matmul_uses(y, first)


def _drops_last_use(y, uses):
    return _matmul_uses(y, uses[:-1] if len(uses) > 1 else uses)


_matmul_uses = ops._matmul_uses


def _max_gives_all(g, y, x, axis=None, keepdims=False):
    shape = ops._kept(x.shape, axis)
    return g.reshape(shape) * ops.astype(x == y.reshape(shape), dtype=g.dtype)


def _concat_reversed(g, y, *parts, axis=0):
    grads = ops._concat_all(g, y, *parts, axis=axis)
    same = len({p.shape for p in parts}) == 1
    return grads[::-1] if same else grads


def _constant(a):
    """Take the value of an array or a Tensor: what a rule does that writes NumPy inside."""
    return a.data if isinstance(a, Tensor) else a


def _div_on_tensors(g, z, x, y):
    return -g * z * y if isinstance(g, Tensor) else -g * z / y


def _fortran(g, y, x, shape):
    return g.T.reshape(x.shape[::-1]).T


_order = graph.nodes


def _nodes_as_found(outputs, requiring=False):
    """Order by a walk in depth, which is no topological order where ways join."""
    found, stack = {}, list(outputs)
    while stack:
        t = stack.pop()
        if t.order not in found:
            found[t.order] = t
            stack += [x for x in t.inputs if x.requires_grad or not requiring]
    return list(found.values())[::-1]


@contextmanager
def _nodes_kept():
    """Let every node be held by a list that nobody empties."""
    held, make = [], tensor._node

    def kept(*args):
        held.append(make(*args))
        return held[-1]

    with patched(tensor, "_node", kept):
        yield


@contextmanager
def _recursive():
    """Walk the graph by recursion: a deep one is more than Python's stack holds."""

    def nodes(outputs, requiring=False):
        found = {}

        def visit(t):
            if t.order not in found:
                found[t.order] = t
                for x in t.inputs:
                    if x.requires_grad or not requiring:
                        visit(x)

        for t in outputs:
            visit(t)
        return [found[k] for k in sorted(found)]

    with patched(graph, "nodes", nodes):
        yield


def _sweep(*changes):
    return edit(autodiff, "sweep", *changes)


DEFECTS = [
    _row(
        "no un-broadcast",
        "the gradient keeps the shape of the result",
        "broadcast operands",
        lambda: patched(autodiff, "unbroadcast", _no_unbroadcast),
    ),
    _row(
        "un-broadcast by the mean",
        "an axis of length 1 gets the mean of its copies",
        "axes of length 1",
        lambda: patched(autodiff, "unbroadcast", _unbroadcast_mean),
    ),
    _row(
        "sum: axis put back in front",
        "the gradient is repeated along axis 0, where it fits",
        "axis != 0 of a square",
        rule(ops.sum, 0, _sum_first_axis),
        "sum",
        MIXED,
    ),
    _row(
        "duplicate indices",
        "reading backwards assigns where it must add",
        "an index given twice",
        rule(ops.getitem, 0, None, _getitem_assigns),
        "getitem",
        MIXED,
    ),
    _row(
        "matmul: vector on the left",
        "the outer product is transposed where the shape permits it",
        "1-D times square 2-D",
        rule(ops.matmul, 1, _vector_on_the_left),
        "matmul",
        RAGGED,
    ),
    _row(
        "matmul: stack of matrices",
        "a shared weight gets the first matrix' gradient",
        "3-D times 2-D",
        rule(ops.matmul, 1, None, _matrix_of_a_stack),
        "matmul",
    ),
    _row(
        "collector drops a use",
        "the last of a weight's uses is forgotten",
        "two uses",
        rule(ops.matmul, 1, None, _drops_last_use),
        "matmul",
        CELL,
    ),
    _row(
        "max: ties",
        "every tied entry gets the whole gradient",
        "ties",
        rule(ops.max, 0, _max_gives_all),
        "max",
    ),
    _row(
        "where: both branches",
        "the branch not taken gets the gradient too",
        "anywhere",
        rule(ops.where, 2, lambda g, r, mask, x, y: g),
        "where",
        MIXED,
    ),
    _row(
        "concat: order",
        "parts of one shape get their gradients in reverse",
        "equal parts",
        rule_all(ops.concat, _concat_reversed),
        "concat",
        CELL,
    ),
    _row(
        "stack: axis",
        "the gradients are read along axis 0, where they fit",
        "axis != 0",
        rule_all(
            ops.stack,
            lambda g, y, *parts, axis=0: [
                g[k]
                if g.shape[1:] == parts[0].shape and len(g) == len(parts)
                else g[(slice(None),) * (axis % y.ndim) + (k,)]
                for k in range(len(parts))
            ],
        ),
        "stack",
    ),
    _row(
        "transpose: not inverted",
        "the axes are permuted once more, not back",
        "a cycle of three axes",
        rule(
            ops.transpose,
            0,
            lambda g, y, x, axes=None: ops.transpose(g, axes=axes).reshape(x.shape),
        ),
        "transpose",
        MIXED,
    ),
    _row(
        "reshape: Fortran order",
        "the gradient is read column by column",
        "two axes or more",
        rule(ops.reshape, 0, _fortran),
        "reshape",
        MIXED,
    ),
    _row(
        "log_softmax: axis",
        "the rule sums along the last axis, whichever was meant",
        "axis != -1",
        rule(
            ops.log_softmax,
            0,
            lambda g, y, x, axis=-1: g - ops.exp(y) * ops.sum(g, axis=-1, keepdims=True),
        ),
        "log_softmax",
        RAGGED,
    ),
    _row(
        "second order: tanh",
        "the rule reads the output as a constant",
        "second order alone",
        rule(ops.tanh, 0, lambda g, y, x: g - g * (_constant(y) * _constant(y))),
        "tanh",
    ),
    _row(
        "rule differs on Tensors",
        "the rule is right on arrays, wrong on Tensors",
        "create_graph",
        rule(ops.div, 1, _div_on_tensors),
        "div",
    ),
    _row(
        "pow: log of 0",
        "0 log 0 is not guarded",
        "x = 0",
        rule(ops.pow, 1, lambda g, z, x, y: g * z * ops.log(x)),
        "pow",
        POWERS,
    ),
    _row(
        "fan-out overwrites",
        "the gradient of the second use replaces the first",
        "two uses",
        _sweep(("sums[k] = after = before + gx", "sums[k] = after = gx")),
    ),
    _row(
        "added into what is shared",
        "gradients are added in place into arrays of others",
        "two uses after a sum",
        _sweep(("elif k in own and before.dtype is gx.dtype:", "elif type(before) is np.ndarray:")),
    ),
    _row(
        "gradients are views",
        "two inputs of a sum get one array",
        "a sum",
        _sweep(("g if create_graph or k in own else np.array(g)", "g")),
    ),
    _row(
        "order of discovery",
        "a node passes on before all has arrived",
        "ways that join",
        lambda: patched(graph, "nodes", _nodes_as_found),
    ),
    _row(
        "parts out of order",
        "slices read against their order are laid as they were read",
        "parts that tile",
        rule(ops.part, 0, None, _parts_as_read),
        "part",
    ),
    _row(
        "backward overwrites .grad",
        "a second backward forgets the first",
        "two losses",
        edit(
            tensor.Tensor,
            "backward",
            ("t._grad = g if t._grad is None else np.asarray(t._grad + g)", "t._grad = g"),
        ),
    ),
    _row("nodes never freed", "a list holds every node", "memory", _nodes_kept),
    _row("recursive walk", "the graph is walked by recursion", "10 000 steps", _recursive),
]
