"""Reverse mode: the chain rule over recorded nodes, newest first.

Knows no Tensor: of a node it needs data, op, inputs, attrs, order and requires_grad.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from . import graph
from .arrays import Array
from .errors import GraphError, ShapeError
from .inspection import describe
from .op import Rule, Use
from .ops import unbroadcast

Watch = Callable[[Any, Any], None]  # called with a node and the gradient that arrived at it


def sweep(
    order: Sequence[Any],
    path: set[int],
    seeds: Iterable[tuple[Any, Any]],
    keep: set[int],
    create_graph: bool = False,
    watch: Watch | None = None,
) -> dict[int, Any]:
    """Carry gradients back over nodes and return what arrives at the ones to keep.

    Parameters
    ----------
    order : sequence of nodes
        In topological order; those outside `path` receive nothing.
    path : set of int
        The ``order`` of the nodes that lie on a way from an output to a wanted node.
    seeds : iterable of (node, gradient)
        Where the sweep starts.
    keep : set of int
        The ``order`` of the wanted nodes.
    create_graph : bool
        Run the rules on nodes instead of arrays, so that they are recorded.
    watch : callable, optional
        Sees every node with its summed gradient: ``debug()`` stops here.

    Returns
    -------
    dict of int to gradient
        By ``order``; arrays that share memory with nothing else.

    Notes
    -----
    A gradient may be written in place only where this function made the buffer: `own` says so.
    What arrives is un-broadcast once, when all of it is there.  Where an op collects, its
    gradients wait until the array's turn comes: every use of an array is newer than the array.
    """
    sums: dict[int, Any] = {}
    own: set[int] = set()
    waiting: dict[int, dict[Rule, list[Use]]] = defaultdict(lambda: defaultdict(list))
    found: dict[int, Any] = {}

    def arrive(x: Any, gx: Any) -> None:
        """Add to what node `x` has received."""
        k = x.order
        before = sums.get(k)
        if before is None:
            sums[k] = gx
            return
        if before.shape != gx.shape:
            before, gx = unbroadcast(before, x.data.shape), unbroadcast(gx, x.data.shape)
        elif k in own and before.dtype is gx.dtype:
            before += gx
            return
        sums[k] = after = before + gx
        # neither a node nor the scalar that NumPy makes of 0-d sums can be added to in place
        (own.add if type(after) is np.ndarray else own.discard)(k)

    for t, g in seeds:
        if t.order in path:
            arrive(t, g)
    for t in reversed(order):
        k, data = t.order, t.data
        if k in waiting:
            for collector, uses in waiting.pop(k).items():
                if k not in sums and not create_graph:  # a collector returns an array of its own
                    own.add(k)
                arrive(t, collector(t if create_graph else data, uses))
        g = sums.pop(k, None)
        if g is None:
            continue
        if g.shape != data.shape:
            g = unbroadcast(g, data.shape)
            own.add(k)
        if watch is not None:
            watch(t, g)
        if k in keep:
            found[k] = g if create_graph or k in own else np.array(g)
        op = t.op
        if op is None:
            continue
        xs, attrs = t.inputs, t.attrs
        y, values = (t, xs) if create_graph else (data, [x.data for x in xs])
        if op.rule_all is not None:
            for x, gx in zip(xs, op.rule_all(g, y, *values, **attrs), strict=True):
                if x.order in path and gx is not None:
                    if op.fresh and not create_graph and x.order not in sums:
                        own.add(x.order)
                    arrive(x, gx)
            continue
        for x, rule, collector in zip(xs, op.rules, op.collectors):  # noqa: B905  strict is slow
            k = x.order
            if k not in path:
                continue
            if collector is not None:
                waiting[k][collector].append((g, values, attrs))
            elif rule is not None:
                gx = rule(g, y, *values, **attrs) if attrs else rule(g, y, *values)
                if k in sums:
                    arrive(x, gx)
                else:
                    sums[k] = gx
    return found


def gradients(
    outputs: Sequence[Any],
    wrt: Sequence[Any],
    seeds: Sequence[Any],
    create_graph: bool = False,
    watch: Watch | None = None,
) -> list[Any]:
    """Return the gradient of the seeded outputs at each node of `wrt`, None where none arrives."""
    order = graph.nodes(outputs)
    path = graph.reach(order, [t for t in wrt if t.data.dtype.kind in "fc"])
    keep = {t.order for t in wrt}
    found = sweep(order, path, zip(outputs, seeds, strict=True), keep, create_graph, watch)
    return [found.get(t.order) for t in wrt]


def seed(y: Any, gradient: Any) -> Array:
    """Return the array that a sweep starts with at node `y`: `gradient`, or 1 for a scalar."""
    if gradient is None:
        if y.data.size != 1:
            raise GraphError(
                f"{describe(y)} is no scalar: pass the gradient of the final quantity with respect "
                f"to it, or reduce it first, as in y.sum()"
            )
        return np.ones(y.shape, y.dtype)
    g = np.asarray(gradient)
    if g.shape != y.shape:
        raise ShapeError(f"the gradient of {describe(y)} cannot have the shape {g.shape}")
    return np.array(g, g.dtype if g.dtype.kind == "c" else y.dtype)


def of_dtype(g: Array, dtype: np.dtype[Any]) -> Array:
    """Return `g` in the floating type of what it is the gradient of; complex parts are kept."""
    return g if g.dtype == dtype or g.dtype.kind == "c" else g.astype(dtype)
