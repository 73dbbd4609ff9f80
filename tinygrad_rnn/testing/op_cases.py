"""How each primitive of the framework is applied: a strategy of Cases for every one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from .. import ops
from ..arrays import Array
from ..nn import Cell
from ..nn.recompute import Segments, recompute
from ..op import Op
from ..scope import record
from ..tensor import Tensor
from .cases import Case, Domain, Shape, between, distinct, drawers, grid, nonzero, positive
from .strategies import (
    Strategy,
    axes,
    concat_parts,
    corner_shapes,
    indices,
    operand_shapes,
    rngs,
    shapes,
)

DOMAINS: dict[Op, Domain] = {  # what each input is drawn from, where it is not the grid
    ops.log: [positive],
    ops.sqrt: [positive],
    ops.abs: [nonzero],
    ops.div: [grid, nonzero],
    ops.pow: [positive, grid],
    ops.maximum: [grid, between],
    ops.minimum: [grid, between],
}


# --- by signature ----------------------------------------------------------------------------


def draw_inputs(
    op: Op, shapes: tuple[Shape, ...], rng: np.random.Generator, domain: Domain | None = None
) -> tuple[Array, ...]:
    """Return inputs of these shapes from the op's domain."""
    domain = DOMAINS.get(op) if domain is None else domain
    each = drawers(op, len(shapes), domain)
    return tuple([draw(rng, s) for draw, s in zip(each, shapes, strict=True)])


@st.composite
def by_signature(draw: st.DrawFn, op: Op, domain: Domain | None = None) -> Case:
    """Draw applications of an op with a signature."""
    assert op.signature is not None
    return Case(op, draw_inputs(op, draw(operand_shapes(op.signature)), draw(rngs()), domain))


def corner_cases(op: Op, domain: Domain | None = None) -> list[Case]:
    """Return the applications that are always tried: scalars, empty, broadcast, square, ties."""
    rng = np.random.default_rng(0)
    known = corner_shapes(op.signature) if op.signature is not None else []
    return [Case(op, draw_inputs(op, s, rng, domain)) for s in known] + CORNERS.get(op, [])


# --- structural ops: a strategy each ---------------------------------------------------------


@st.composite
def _reductions(draw: st.DrawFn, op: Op) -> Case:
    shape = draw(shapes())
    x = distinct(draw(rngs()), shape)
    if op is ops.sum and draw(st.booleans()):
        x = np.zeros(draw(shapes(min_side=0)))
    return Case(op, (x,), {"axis": draw(axes(x.shape)), "keepdims": draw(st.booleans())})


@st.composite
def _log_softmaxes(draw: st.DrawFn) -> Case:
    x = grid(draw(rngs()), draw(shapes(min_dims=1, max_side=4)))
    return Case(ops.log_softmax, (x,), {"axis": draw(st.integers(-x.ndim, x.ndim - 1))})


@st.composite
def _broadcasts(draw: st.DrawFn) -> Case:
    to = draw(shapes(min_side=0))
    own = tuple([draw(st.sampled_from([1, n])) for n in to[draw(st.integers(0, len(to))) :]])
    return Case(ops.broadcast, (grid(draw(rngs()), own),), {"shape": to})


@st.composite
def _reshapes(draw: st.DrawFn) -> Case:
    shape = draw(shapes(min_side=0))
    size = math.prod(shape)
    to = [shape[::-1], (size,), (1, *shape), (*shape, 1)] + [(-1,), (-1, 1)] * (size > 0)
    return Case(ops.reshape, (grid(draw(rngs()), shape),), {"shape": draw(st.sampled_from(to))})


@st.composite
def _transposes(draw: st.DrawFn) -> Case:
    x = grid(draw(rngs()), draw(shapes(min_side=0)))
    order = draw(st.permutations(range(x.ndim)))
    signed = tuple([draw(st.sampled_from([a, a - x.ndim])) for a in order])
    attrs: list[dict[str, Any]] = [{"axes": signed}, {}, {"axes": None}]
    return Case(ops.transpose, (x,), draw(st.sampled_from(attrs)))


A, B = np.array([0, 2, 2, -1]), np.array([[1], [1]])
INDICES: list[Any] = [  # of an array of shape (3, 4, 2)
    0, -1, slice(None), slice(2, 0, -1), slice(None, None, -2), slice(3, 1), ..., None, (),
    (1, 2, 0), (..., 0), (0, ..., None), (None, slice(1, 3), None, -1), (slice(None), slice(1, 3)),
    A, (A, A), (A, slice(1)), (slice(None), A), (A, ..., 0), (None, A), (A, None, A), (A, 0, 1),
    (A, slice(None), [1, 0, 1, 0]), (B, A), (..., B), [0, 0, 0], [], np.int64(1), np.array(1),
    np.array([True, False, True]), np.eye(3, 4) > 0, (slice(None), np.arange(4) % 2 == 1),
    (np.array([True, False, True]), 0), (np.array([True, False, True]), [1, 3]), np.zeros(3, bool),
    (np.array([True, True, True]), slice(None, None, -1), np.array([1, 1, 0])), True, (False, 0),
]  # fmt: skip


def getitem_case(x: Array, index: Any) -> Case:
    """Return ``x[index]`` as the engine records it."""
    with record():
        y = Tensor(x)[index]
    return Case(ops.getitem, tuple([t.data for t in y.inputs]), y.attrs)


@st.composite
def _getitems(draw: st.DrawFn) -> Case:
    rng = draw(rngs())
    if draw(st.booleans()):
        return getitem_case(grid(rng, (3, 4, 2)), draw(st.sampled_from(INDICES)))
    x = grid(rng, draw(shapes(min_dims=1)))
    return getitem_case(x, draw(indices(x.shape)))


@st.composite
def _scatters(draw: st.DrawFn) -> Case:
    rng = draw(rngs())
    x = grid(rng, (3, 4, 2))
    several = st.lists(st.sampled_from(INDICES), min_size=1, max_size=3)
    reads = [getitem_case(x, i) for i in draw(several)]
    parts = [grid(rng, read(*read.inputs).shape) for read in reads]
    arrays = [a for read in reads for a in read.inputs[1:]]
    index = tuple([read.attrs["index"] for read in reads])
    return Case(ops.scatter, (*parts, *arrays), {"index": index, "shape": x.shape})


@st.composite
def _takes(draw: st.DrawFn) -> Case:
    x = grid(draw(rngs()), draw(shapes(min_dims=1, max_side=4)))
    rows = st.integers(-len(x), len(x) - 1)
    return Case(ops.take, (x, draw(hnp.arrays(np.int64, shapes(min_side=0), elements=rows))))


@st.composite
def _parts(draw: st.DrawFn) -> Case:
    x = grid(draw(rngs()), draw(shapes(min_dims=1, max_side=4)))
    axis = draw(st.integers(0, x.ndim - 1))
    start, stop = sorted(draw(st.tuples(*[st.integers(0, x.shape[axis])] * 2)))
    return Case(ops.part, (x,), {"axis": axis, "start": start, "stop": stop})


@st.composite
def _concats(draw: st.DrawFn) -> Case:
    parts, axis = draw(concat_parts())
    return Case(ops.concat, parts, {"axis": axis})


@st.composite
def _stacks(draw: st.DrawFn) -> Case:
    rng, shape = draw(rngs()), draw(shapes(min_side=0))
    inputs = tuple([grid(rng, shape) for _ in range(draw(st.integers(1, 4)))])
    return Case(ops.stack, inputs, {"axis": draw(st.integers(-len(shape) - 1, len(shape)))})


def _astypes() -> Strategy:
    return rngs().map(lambda rng: Case(ops.astype, (grid(rng, (2, 3)),), {"dtype": np.float64}))


class _Mixing(Cell):
    """A cell without parameters, whose state has two parts."""

    def step(self, x: Any, state: Any) -> Any:
        h, c = state
        c = ops.tanh(c * x + h)
        return h * c, (x - h, c)


def _mixed(inputs: list[Any], state: Any, start: int) -> Any:
    outputs = []
    for x in inputs:
        y, state = _Mixing(2, 2).step(x, state)
        outputs.append(y)
    return outputs, state


@st.composite
def _recomputes(draw: Any) -> Case:
    T, k, rng = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(rngs())
    x, h, c = grid(rng, (T, 1, 2)), grid(rng, (1, 2)), grid(rng, (1, 2))
    x_of, state = Tensor(x, requires_grad=True), (Tensor(h), Tensor(c))
    run = Segments(_Mixing(2, 2), _mixed, x_of, state, T, k, False, T)
    return Case(recompute, (x, h, c), {"run": run})


STRUCTURAL: dict[Op, Strategy] = {
    recompute: _recomputes(),
    ops.sum: _reductions(ops.sum),
    ops.max: _reductions(ops.max),
    ops.log_softmax: _log_softmaxes(),
    ops.broadcast: _broadcasts(),
    ops.reshape: _reshapes(),
    ops.transpose: _transposes(),
    ops.getitem: _getitems(),
    ops.scatter: _scatters(),
    ops.take: _takes(),
    ops.part: _parts(),
    ops.concat: _concats(),
    ops.stack: _stacks(),
    ops.astype: _astypes(),
}

# A rule that takes one axis for another still fits a square; ties and zeros are rarely drawn.
_SQUARE = np.arange(9.0).reshape(3, 3) / 4 - 1
_TIES = np.array([[0.5, 0.5, -1.0], [1.0, 1.0, 1.0]])
_BY_AXIS = [{"axis": axis, "keepdims": kept} for axis in (0, 1) for kept in (False, True)]

CORNERS: dict[Op, list[Case]] = {
    ops.pow: [Case(ops.pow, (np.array([0.0, 0.5]), np.array([3.0, 4.0])))],
    ops.maximum: [Case(ops.maximum, (_TIES[0], _TIES[1] / 2))],
    ops.minimum: [Case(ops.minimum, (_TIES[0], _TIES[1] / 2))],
    ops.sum: [Case(ops.sum, (_SQUARE,), attrs) for attrs in _BY_AXIS],
    ops.max: [Case(ops.max, (x,), attrs) for x in (_SQUARE, _TIES) for attrs in _BY_AXIS],
    ops.log_softmax: [Case(ops.log_softmax, (_SQUARE,), {"axis": axis}) for axis in (0, 1)],
    ops.transpose: [
        Case(ops.transpose, (np.arange(8.0).reshape(2, 2, 2),), {"axes": axes})
        for axes in ((1, 2, 0), (2, 0, 1))
    ],
    ops.concat: [Case(ops.concat, (_SQUARE, _SQUARE[::-1]), {"axis": axis}) for axis in (0, 1)],
    ops.stack: [Case(ops.stack, (_SQUARE,) * 3, {"axis": axis}) for axis in (0, 1, 2)],
}
