"""Cases for every primitive: values, shapes and attributes, by strategy and by written table."""

import math
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests import gradcheck
from tinygrad_rnn import Tensor, ops, record
from tinygrad_rnn.op import OPS, Op

ALL = dict(OPS)  # what importing the package declares
BY_SIGNATURE = sorted(name for name, op in ALL.items() if op.signature is not None)
COMPARISONS = {
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "equal": np.equal,
    "not_equal": np.not_equal,
}
DIFFERENTIABLE = sorted(set(ALL) - set(COMPARISONS))
UNARY = sorted(name for name in BY_SIGNATURE if ALL[name].signature == "()->()")
BINARY = sorted(name for name in BY_SIGNATURE if ALL[name].signature == "(),()->()")
BROADCASTS = [
    ((), (2, 3)), ((1,), (3,)), ((0,), (1,)), ((0,), ()), ((3,), (2, 3)), ((2, 1, 3), (4, 1)),
    ((1, 1, 1), (2, 3, 2)), ((2, 0), (1, 1)), ((1,), ()), ((2, 1, 1, 2), (3, 1)),
]  # fmt: skip
MATMULS = [
    ((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((2, 3), (3, 4)), ((3,), (5, 3, 2)),
    ((5, 2, 3), (3,)), ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)), ((5, 1, 3), (5, 3, 2)),
    ((1, 2, 3), (5, 3, 2)), ((4, 1, 2, 3), (5, 3, 2)), ((4, 1, 2, 3), (1, 5, 3, 2)),
    ((3,), (2, 5, 3, 2)), ((2, 5, 1, 3), (3,)), ((0, 3), (3, 2)), ((2, 3), (3, 0)),
    ((2, 0), (0, 3)), ((0,), (0,)), ((0, 2, 3), (3, 2)), ((2, 3), (0, 3, 2)), ((0, 0), (0, 0)),
]  # fmt: skip


def flows(op, k):
    """Return whether input k of the op gets a gradient."""
    return op.rules[k] is not None if op.rules else op.rule_all is not None


class Case(NamedTuple):
    """One application of an op."""

    op: Op
    inputs: tuple[np.ndarray, ...]
    attrs: dict[str, Any] = {}  # noqa: RUF012  never written to

    @property
    def wrt(self):
        return [k for k, x in enumerate(self.inputs) if x.dtype.kind in "fc" and flows(self.op, k)]

    def __call__(self, *inputs):
        return self.op(*inputs, **self.attrs)

    def replace(self, change):
        """Return the case with `change(x)` for every differentiable input x."""
        wrt = self.wrt
        inputs = [change(x) if k in wrt else x for k, x in enumerate(self.inputs)]
        return self._replace(inputs=tuple(inputs))

    def gradients(self, u):
        return gradcheck.backward(self, self.inputs, self.wrt, u)[0]


# --- values: multiples of 1/8, so that sums and products are exact -----------------------------


def grid(rng, shape):
    return np.asarray(rng.integers(-16, 17, shape) / 8)


def positive(rng, shape):
    return np.asarray(rng.integers(2, 25, shape) / 8)


def nonzero(rng, shape):
    return np.asarray(positive(rng, shape) * rng.choice([-1.0, 1.0], shape))


def between(rng, shape):
    return np.asarray(grid(rng, shape) + 1 / 16)  # never equal to a point of the grid


def distinct(rng, shape):
    return np.asarray(rng.permutation(math.prod(shape)).reshape(shape) / 4 - 1)


DOMAINS = {  # by op: what each input is drawn from, where it is not the grid
    "log": [positive],
    "sqrt": [positive],
    "abs": [nonzero],
    "div": [grid, nonzero],
    "pow": [positive, grid],
    "maximum": [grid, between],
    "minimum": [grid, between],
}


def draw_inputs(op, shapes, rng):
    domains = DOMAINS.get(op.name, [grid] * len(shapes))
    selects = range(*op.selects.indices(len(shapes)))
    return tuple(
        np.asarray(rng.random(s) < 0.5) if k in selects else domains[k](rng, s)
        for k, s in enumerate(shapes)
    )


RNGS = st.integers(0, 2**32 - 1).map(np.random.default_rng)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=3)
SHAPES_0 = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)


@st.composite
def by_signature(draw, op):
    extra = BROADCASTS if op.name in BINARY else MATMULS if op.name == "matmul" else []
    shapes = hnp.mutually_broadcastable_shapes(
        signature=op.signature, max_dims=2, min_side=0, max_side=3
    ).map(lambda found: found.input_shapes)
    if extra:
        shapes |= st.sampled_from(extra)
    return Case(op, draw_inputs(op, draw(shapes), draw(RNGS)))


# --- structural ops: a strategy each -------------------------------------------------------------


def axes_of(ndim):
    one = [st.integers(-ndim, ndim - 1)] if ndim else []
    several = st.sets(st.integers(0, ndim - 1)) if ndim else st.just(set())
    signed = several.flatmap(
        lambda s: st.tuples(*[st.sampled_from([a, a - ndim]) for a in sorted(s)])
    )
    return st.one_of(st.none(), *one, signed)


@st.composite
def reductions(draw, op):
    x = draw(RNGS.flatmap(lambda rng: SHAPES.map(lambda s: distinct(rng, s))))
    if op is ops.sum and draw(st.booleans()):
        x = np.zeros(draw(SHAPES_0))
    return Case(op, (x,), {"axis": draw(axes_of(x.ndim)), "keepdims": draw(st.booleans())})


@st.composite
def log_softmaxes(draw):
    x = grid(draw(RNGS), draw(hnp.array_shapes(max_dims=3, max_side=4)))
    return Case(ops.log_softmax, (x,), {"axis": draw(st.integers(-x.ndim, x.ndim - 1))})


@st.composite
def broadcasts(draw):
    to = draw(SHAPES_0)
    own = [draw(st.sampled_from([1, n])) for n in to[draw(st.integers(0, len(to))) :]]
    return Case(ops.broadcast, (grid(draw(RNGS), own),), {"shape": to})


@st.composite
def reshapes(draw):
    shape = draw(SHAPES_0)
    size = math.prod(shape)
    to = [shape[::-1], (size,), (1, *shape), (*shape, 1)] + [(-1,), (-1, 1)] * (size > 0)
    return Case(ops.reshape, (grid(draw(RNGS), shape),), {"shape": draw(st.sampled_from(to))})


@st.composite
def transposes(draw):
    x = grid(draw(RNGS), draw(SHAPES_0))
    axes = tuple(
        [draw(st.sampled_from([a, a - x.ndim])) for a in draw(st.permutations(range(x.ndim)))]
    )
    return Case(ops.transpose, (x,), draw(st.sampled_from([{"axes": axes}, {}, {"axes": None}])))


A, B = np.array([0, 2, 2, -1]), np.array([[1], [1]])
INDICES = [  # of an array of shape (3, 4, 2)
    0, -1, slice(None), slice(2, 0, -1), slice(None, None, -2), slice(3, 1), ..., None, (),
    (1, 2, 0), (..., 0), (0, ..., None), (None, slice(1, 3), None, -1), (slice(None), slice(1, 3)),
    A, (A, A), (A, slice(1)), (slice(None), A), (A, ..., 0), (None, A), (A, None, A), (A, 0, 1),
    (A, slice(None), [1, 0, 1, 0]), (B, A), (..., B), [0, 0, 0], [], np.int64(1), np.array(1),
    np.array([True, False, True]), np.eye(3, 4) > 0, (slice(None), np.arange(4) % 2 == 1),
    (np.array([True, False, True]), 0), (np.array([True, False, True]), [1, 3]), np.zeros(3, bool),
    (np.array([True, True, True]), slice(None, None, -1), np.array([1, 1, 0])), True, (False, 0),
]  # fmt: skip


def getitem_case(x, index):
    with record():
        y = Tensor(x)[index]
    return Case(ops.getitem, tuple(t.data for t in y.inputs), y.attrs)


@st.composite
def getitems(draw):
    rng = draw(RNGS)
    if draw(st.booleans()):
        return getitem_case(grid(rng, (3, 4, 2)), draw(st.sampled_from(INDICES)))
    x = grid(rng, draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=3)))
    index = st.one_of(
        hnp.basic_indices(x.shape, allow_newaxis=True, allow_ellipsis=True),
        hnp.integer_array_indices(x.shape),
        hnp.arrays(bool, x.shape[: draw(st.integers(1, x.ndim))]),
    )
    return getitem_case(x, draw(index))


@st.composite
def scatters(draw):
    rng = draw(RNGS)
    x = grid(rng, (3, 4, 2))
    reads = [
        getitem_case(x, i) for i in draw(st.lists(st.sampled_from(INDICES), min_size=1, max_size=3))
    ]
    parts = [grid(rng, read(*read.inputs).shape) for read in reads]
    arrays = [a for read in reads for a in read.inputs[1:]]
    index = tuple(read.attrs["index"] for read in reads)
    return Case(ops.scatter, (*parts, *arrays), {"index": index, "shape": x.shape})


@st.composite
def takes(draw):
    x = grid(draw(RNGS), draw(hnp.array_shapes(max_dims=3, max_side=4)))
    rows = hnp.arrays(np.int64, SHAPES_0, elements=st.integers(-len(x), len(x) - 1))
    return Case(ops.take, (x, draw(rows)))


@st.composite
def parts(draw):
    x = grid(draw(RNGS), draw(hnp.array_shapes(max_dims=3, max_side=4)))
    axis = draw(st.integers(0, x.ndim - 1))
    ends = sorted(draw(st.tuples(*[st.integers(0, x.shape[axis])] * 2)))
    return Case(ops.part, (x,), {"axis": axis, "start": ends[0], "stop": ends[1]})


@st.composite
def concats(draw):
    rng, shape = draw(RNGS), list(draw(hnp.array_shapes(max_dims=3, max_side=3)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    inputs = []
    for n in draw(st.lists(st.integers(0, 3), min_size=1, max_size=4)):
        shape[axis] = n
        inputs.append(grid(rng, shape))
    return Case(ops.concat, tuple(inputs), {"axis": axis})


@st.composite
def stacks(draw):
    rng, shape = draw(RNGS), draw(SHAPES_0)
    inputs = [grid(rng, shape) for _ in range(draw(st.integers(1, 4)))]
    return Case(ops.stack, tuple(inputs), {"axis": draw(st.integers(-len(shape) - 1, len(shape)))})


CASES = {
    **{name: by_signature(ALL[name]) for name in BY_SIGNATURE},
    "sum": reductions(ops.sum),
    "max": reductions(ops.max),
    "log_softmax": log_softmaxes(),
    "broadcast": broadcasts(),
    "reshape": reshapes(),
    "transpose": transposes(),
    "getitem": getitems(),
    "scatter": scatters(),
    "take": takes(),
    "part": parts(),
    "concat": concats(),
    "stack": stacks(),
    "astype": RNGS.map(lambda rng: Case(ops.astype, (grid(rng, (2, 3)),), {"dtype": np.float64})),
}
