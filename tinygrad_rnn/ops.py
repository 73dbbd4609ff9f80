"""Every primitive: its forward, its formula, and one gradient rule per input.

A rule is called as ``rule(g, y, *inputs, **attributes)``: the gradient of the output, the
output, the inputs.  It uses only the words that ``ndarray`` and ``Tensor`` share, so that the
same rule runs on arrays (first order) and on Tensors (``create_graph=True``).  It returns the
gradient before un-broadcasting and never writes in place.
"""

from __future__ import annotations

import contextvars
import copyreg
import math
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from .arrays import Array, add_at, choose
from .errors import DtypeError, ShapeError
from .op import OPS, Op, Use, primitive

Axis = int | tuple[int, ...] | None
Index = Any  # what stands in the brackets of x[...], each array in it replaced by ARRAY

ARRAY = "array"  # in an index: the next positional array stands here

# --- elementwise -----------------------------------------------------------------------------

_BINARY = "(),()->()"
_UNARY = "()->()"

add = primitive(
    _BINARY, "x + y", doc="Sum of two arrays, element by element.", linear=True, reads=""
)(np.add)
add.vjp(lambda g, z, x, y: g, lambda g, z, x, y: g)

sub = primitive(
    _BINARY, "x - y", name="sub", doc="Difference, element by element.", linear=True, reads=""
)(np.subtract)
sub.vjp(lambda g, z, x, y: g, lambda g, z, x, y: -g)

mul = primitive(
    _BINARY, "x * y", name="mul", doc="Product, element by element.", linear=True, reads="inputs"
)(np.multiply)
mul.vjp(lambda g, z, x, y: g * y, lambda g, z, x, y: g * x)

div = primitive(_BINARY, "x / y", name="div", doc="Quotient, element by element.")(np.divide)
div.vjp(lambda g, z, x, y: g / y, lambda g, z, x, y: -g * z / y)

neg = primitive(
    _UNARY, "-x", name="neg", doc="Each element with its sign changed.", linear=True, reads=""
)(np.negative)
neg.vjp(lambda g, y, x: -g)

exp = primitive(_UNARY, "exp(x)", doc="e to the power of each element.", reads="output")(np.exp)
exp.vjp(lambda g, y, x: g * y)

log = primitive(_UNARY, "log(x)", doc="Natural logarithm of each element.", reads="inputs")(np.log)
log.vjp(lambda g, y, x: g / x)

sqrt = primitive(_UNARY, "sqrt(x)", doc="Square root of each element.", reads="output")(np.sqrt)
sqrt.vjp(lambda g, y, x: g * 0.5 / y)

tanh = primitive(_UNARY, "tanh(x)", doc="Hyperbolic tangent of each element.", reads="output")(
    np.tanh
)
tanh.vjp(lambda g, y, x: g - g * (y * y))


class _Quiet(threading.local):
    """A context of each thread in which overflow to infinity is no warning."""

    def __init__(self) -> None:
        context = contextvars.copy_context()
        context.run(np.seterr, over="ignore", under="ignore")
        self.run = context.run


_quiet = _Quiet()
_ONE = {t: np.array(1, t) for t in "efdg"}  # a 0-d array is a constant at half a float's cost


@primitive(_UNARY, "1 / (1 + exp(-x))", reads="output")
def sigmoid(x: Array) -> Array:
    """Logistic function of each element: 0 and 1 to the bit where it saturates."""
    if x.dtype.kind == "c":  # a complex exp overflows to nan + nan j
        return np.asarray(0.5 * np.tanh(0.5 * x) + 0.5)
    if x.dtype.kind != "f":
        x = x.astype(np.float64)
    y = np.asarray(_quiet.run(np.exp, -x))  # infinite for x = -800, and 1 / (1 + inf) is right
    np.add(y, _ONE[x.dtype.char], y)
    return np.asarray(np.reciprocal(y, y))


sigmoid.vjp(lambda g, y, x: g * (y - y * y))

pow = primitive(_BINARY, "x ^ y", name="pow", doc="x to the power of y, element by element.")(
    np.power
)
pow.vjp(
    lambda g, z, x, y: g * y * pow(x, where((x == 0) * (y == 0), 1.0, y - 1)),
    lambda g, z, x, y: g * z * log(where(x == 0, 1.0, x)),
)

abs = primitive(
    _UNARY,
    "|x|",
    name="abs",
    doc="Absolute value of each element.",
    complex_safe=False,
    reads="inputs",
)(np.absolute)
abs.vjp(lambda g, y, x: where(x > 0, g, where(x < 0, -g, 0.0)))

maximum = primitive(
    _BINARY,
    "max(x, y)",
    doc="The larger of two elements; a tie shares its gradient.",
    reads="inputs",
)(np.maximum)
maximum.vjp(
    lambda g, z, x, y: where(x > y, g, where(x == y, g * 0.5, 0.0)),
    lambda g, z, x, y: where(x < y, g, where(x == y, g * 0.5, 0.0)),
)

minimum = primitive(
    _BINARY,
    "min(x, y)",
    doc="The smaller of two elements; a tie shares its gradient.",
    reads="inputs",
)(np.minimum)
minimum.vjp(
    lambda g, z, x, y: where(x < y, g, where(x == y, g * 0.5, 0.0)),
    lambda g, z, x, y: where(x > y, g, where(x == y, g * 0.5, 0.0)),
)

where: Op = primitive(
    "(),(),()->()",
    "x ? y : z",
    name="where",
    doc="Elements of y where the mask x holds, else elements of z.",
    selects=slice(1),
    linear=True,
    reads="inputs",
)(choose)
where.vjp(
    None,
    lambda g, r, mask, x, y: (choose if type(g) is np.ndarray else where)(mask, g, 0.0),
    lambda g, r, mask, x, y: (choose if type(g) is np.ndarray else where)(mask, 0.0, g),
)

# comparisons are recorded, so that a trace does not freeze them, and have no gradient
less = primitive(_BINARY, "x < y", doc="Whether x < y, element by element.")(np.less)
less_equal = primitive(_BINARY, "x <= y", doc="Whether x <= y, element by element.")(np.less_equal)
greater = primitive(_BINARY, "x > y", doc="Whether x > y, element by element.")(np.greater)
greater_equal = primitive(_BINARY, "x >= y", doc="Whether x >= y, element by element.")(
    np.greater_equal
)
equal = primitive(_BINARY, "x == y", doc="Whether x == y, element by element.")(np.equal)
not_equal = primitive(_BINARY, "x != y", doc="Whether x != y, element by element.")(np.not_equal)


@primitive(None, "x", linear=True, complex_safe=False, reads="")
def astype(x: Array, dtype: Any) -> Array:
    """Convert to another number type; the gradient is converted back."""
    return x.astype(dtype)


astype.vjp(lambda g, y, x, dtype: astype(g, dtype=x.dtype))

# --- products --------------------------------------------------------------------------------

matmul = primitive(
    "(m?,n),(n,p?)->(m?,p?)",
    "x y",
    doc="Matrix product, as NumPy's ``@``.",
    linear=True,
    reads="inputs",
)(np.matmul)


def _matmul_x(g: Any, z: Any, x: Any, y: Any) -> Any:
    if y.ndim == 1:
        return g * y if x.ndim == 1 else g[..., None] * y
    if x.ndim == 1:
        return (y @ g[..., None])[..., 0]
    if type(g) is np.ndarray and g.ndim == 2 and y.size >= _LARGE:
        return np.ascontiguousarray((y @ g.T).T)  # the same product, a third faster in OpenBLAS
    if g.ndim > 2 == y.ndim:  # one product of all rows
        return (_rows(g) @ y.mT).reshape((*g.shape[:-1], y.shape[0]))
    return g @ y.mT


_LARGE = 1 << 15  # elements of a matrix that are worth a transposed product


def _matmul_y(g: Any, z: Any, x: Any, y: Any) -> Any:
    if x.ndim == 1:
        return g * x if y.ndim == 1 else x[:, None] * g[..., None, :]
    return (x.mT @ g[..., None])[..., 0] if y.ndim == 1 else x.mT @ g


def _matmul_uses(y: Any, uses: Sequence[Use]) -> Any:
    """All uses of a weight in one product: sum of x_t' g_t = [x_1; x_2; ...]' [g_1; g_2; ...]."""
    if y.ndim != 2:
        return total([unbroadcast(_matmul_y(g, None, *inputs), y.shape) for g, inputs, _ in uses])
    x = [_rows(inputs[0]) for _, inputs, _ in uses]
    g = [_rows(g) for g, _, _ in uses]
    if len(uses) == 1:
        return x[0].T @ g[0]
    width = 1 + _CACHED // (1 + g[0].size)  # as many uses at once as stay in the cache
    cuts = [slice(k, k + width) for k in range(0, len(uses), width)]
    return total([concat(*x[cut]).T @ concat(*g[cut]) for cut in cuts])


_CACHED = 1 << 18  # elements: a megabyte of float32


def _rows(x: Any) -> Any:
    """Return `x` with all its axes but the last as one."""
    if x.ndim == 2:
        return x
    return x.reshape((math.prod(x.shape[:-1]), x.shape[-1]))  # -1 is ambiguous where one is empty


matmul.vjp(_matmul_x, _matmul_y)
matmul.collect(1, _matmul_uses)

# --- reductions ------------------------------------------------------------------------------


@primitive(None, "sum(x)", linear=True, reads="")
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Sum over all elements, over one axis or over several."""
    return np.asarray(np.sum(x, axis=axis, keepdims=keepdims))


def _sum_x(g: Any, y: Any, x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    return broadcast(g.reshape(_kept(x.shape, axis)), shape=x.shape)


sum.vjp(_sum_x)


@primitive(None, "max(x)")
def max(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Largest element, of all or along axes; tied elements share the gradient evenly."""
    return np.asarray(np.max(x, axis=axis, keepdims=keepdims))


def _max_x(g: Any, y: Any, x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    shape = _kept(x.shape, axis)
    hit = astype(x == y.reshape(shape), dtype=g.dtype)
    return g.reshape(shape) * hit / sum(hit, axis=axis, keepdims=True)


max.vjp(_max_x)


@primitive(None, "log softmax(x)", reads="output")
def log_softmax(x: Array, axis: int = -1) -> Array:
    """Logarithm of softmax along one axis: one op because exp(1e4) would overflow between two."""
    x = x - np.max(x, axis=axis, keepdims=True)
    return x - np.log(np.add.reduce(np.exp(x), axis=axis, keepdims=True))


log_softmax.vjp(lambda g, y, x, axis=-1: g - exp(y) * sum(g, axis=axis, keepdims=True))


def _kept(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """Return the shape of a reduction over `axis` that keeps its axes with length 1."""
    if axis is None or not shape:
        return (1,) * len(shape)
    axes = {a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))}
    return tuple([1 if a in axes else n for a, n in enumerate(shape)])


# --- shape -----------------------------------------------------------------------------------


@primitive(None, "broadcast(x)", linear=True, reads="")
def broadcast(x: Array, shape: tuple[int, ...]) -> Array:
    """Repeat along new axes and along axes of length 1, as NumPy broadcasts."""
    return np.broadcast_to(x, shape)


broadcast.vjp(lambda g, y, x, shape: g)  # `grad` un-broadcasts, for this op as for all


@primitive(None, "reshape(x)", linear=True, reads="")
def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    """Give the same elements another shape."""
    return x.reshape(shape)


reshape.vjp(lambda g, y, x, shape: g.reshape(x.shape))


@primitive(None, "x^T", linear=True, reads="")
def transpose(x: Array, axes: tuple[int, ...] | None = None) -> Array:
    """Permute the axes; without `axes` reverse them."""
    return np.transpose(x, axes)


transpose.vjp(
    lambda g, y, x, axes=None: transpose(
        g, axes=axes and tuple(np.argsort(np.mod(axes, x.ndim)).tolist())
    )
)

# --- parts and wholes: each reads what its adjoint adds up -------------------------------------


@primitive(None, "x[index]", selects=slice(1, None), linear=True, reads="inputs")
def getitem(x: Array, *arrays: Array, index: Index) -> Array:
    """Read a part of x by a basic or an advanced index; its arrays are passed one by one."""
    return np.asarray(x[_fill(index, iter(arrays))])


@primitive(None, "0[i] += x", linear=True, reads="inputs")
def scatter(*parts: Array, index: tuple[Index, ...], shape: tuple[int, ...]) -> Array:
    """Add the parts into zeros, each at its index; the arrays of the indices follow the parts."""
    arrays = iter(parts[len(index) :])
    y = np.zeros(shape, np.result_type(*{p.dtype for p in parts[: len(index)]}))
    for i, part_ in zip(index, parts, strict=False):
        if _holds_array(i):
            add_at(y, _fill(i, arrays), part_)
        else:
            y[i] += part_
    return y


def parse(index: Any) -> tuple[Index, list[Any]]:
    """Return what stands in the brackets of x[...] with ARRAY for its arrays, and the arrays."""
    arrays: list[Any] = []
    parts = index if isinstance(index, tuple) else (index,)
    return tuple([_part_of_index(i, arrays) for i in parts]), arrays


def _part_of_index(i: Any, arrays: list[Any]) -> Any:
    if i is None or i is Ellipsis or isinstance(i, slice) or type(i) is int:
        return i
    if isinstance(i, np.integer):
        return int(i)
    a = i if hasattr(i, "__record__") else np.asarray(i, None if np.size(i) else np.intp)
    if a.dtype.kind not in "bui":
        raise DtypeError(f"x[i]: an index is {a.dtype}, not integer or boolean")
    arrays.append(a)
    return ARRAY


def _fill(index: Index, arrays: Iterator[Any]) -> Index:
    """Put the arrays into their places in `index`."""
    if not _holds_array(index):
        return index
    return tuple([next(arrays) if type(i) is str else i for i in index])


def _holds_array(index: Index) -> bool:
    return type(index) is tuple and ARRAY in [i for i in index if type(i) is str]


def _getitem_uses(x: Any, uses: Sequence[Use]) -> Any:
    return scatter(
        *[g for g, _, _ in uses],
        *[a for _, inputs, _ in uses for a in inputs[1:]],
        index=tuple([attrs["index"] for _, _, attrs in uses]),
        shape=x.shape,
    )


def _scatter_all(g: Any, y: Any, *parts: Any, index: Any, shape: Any) -> list[Any]:
    arrays = iter(parts[len(index) :])
    back = [
        getitem(g, *[next(arrays) for j in i if type(j) is str], index=i)
        if _holds_array(i)
        else g[i]
        for i in index
    ]
    return back + [None] * (len(parts) - len(index))


getitem.vjp(lambda g, y, x, *arrays, index: scatter(g, *arrays, index=(index,), shape=x.shape))
getitem.collect(0, _getitem_uses)
scatter.selects = slice(0, None)  # its arrays of integers stay what they are; parts agree anyway
scatter.vjp_all(_scatter_all)


@primitive(None, "x[i]", selects=slice(1, None), linear=True, reads="inputs")
def take(x: Array, i: Array) -> Array:
    """Read the rows of x that the integers in i name: the look-up of an embedding."""
    return np.asarray(x[i])


def _take_uses(x: Any, uses: Sequence[Use]) -> Any:
    """All look-ups in one table add into one array of zeros."""
    return scatter(
        *[g for g, _, _ in uses],
        *[i for _, (_, i), _ in uses],
        index=((ARRAY,),) * len(uses),
        shape=x.shape,
    )


take.vjp(lambda g, y, x, i: scatter(g, i, index=((ARRAY,),), shape=x.shape), None)
take.collect(0, _take_uses)

_ALL = slice(None)


@primitive(None, "x[start:stop]", linear=True, reads="")
def part(x: Array, axis: int, start: int, stop: int) -> Array:
    """Read the slice start:stop along one axis: what ``split`` returns and ``concat`` undoes."""
    return np.asarray(x[_part_index(axis, start, stop)])


@primitive(None, "[x; y; ...]", linear=True, reads="")
def concat(*parts: Array, axis: int = 0) -> Array:
    """Lay arrays side by side along an axis they have."""
    return np.concatenate(parts, axis)


@primitive(None, "[x, y, ...]", linear=True, reads="")
def stack(*parts: Array, axis: int = 0) -> Array:
    """Lay arrays of one shape side by side along a new axis."""
    if len(parts) == 1 and axis == 0:  # a step by itself: np.stack takes many times as long
        return np.array(parts[0][None])
    return np.stack(parts, axis)


@lru_cache(maxsize=1024)
def _part_index(axis: int, start: int, stop: int) -> Index:
    if axis < 0:
        raise ValueError(f"part: axis={axis} must count from 0")
    return (_ALL,) * axis + (slice(start, stop),)


def _part_uses(x: Any, uses: Sequence[Use]) -> Any:
    """Let the parts of one array meet: side by side where they tile it, else added into zeros."""
    axis, at = uses[0][2]["axis"], 0
    uses = uses[::-1]  # the sweep met the newest first
    for _, _, attrs in uses:
        if attrs["start"] != at or attrs["axis"] != axis:
            break
        at = attrs["stop"]
    else:
        if at == x.shape[axis]:
            return concat(*[g for g, _, _ in uses], axis=axis)
    index = tuple([_part_index(**attrs) for _, _, attrs in uses])
    return scatter(*[g for g, _, _ in uses], index=index, shape=x.shape)


def _concat_all(g: Any, y: Any, *parts: Any, axis: int = 0) -> list[Any]:
    axis %= y.ndim
    stops = list(accumulate([p.shape[axis] for p in parts]))
    return [part(g, axis=axis, start=a, stop=b) for a, b in zip([0, *stops], stops, strict=False)]


part.vjp(
    lambda g, y, x, axis, start, stop: scatter(
        g, index=(_part_index(axis, start, stop),), shape=x.shape
    )
)
part.collect(0, _part_uses)
concat.vjp_all(_concat_all)
stack.vjp_all(
    lambda g, y, *parts, axis=0: [g[(_ALL,) * (axis % y.ndim) + (k,)] for k in range(len(parts))]
)

# --- sums of gradients -----------------------------------------------------------------------


def total(gradients: Sequence[Any]) -> Any:
    """Add gradients of one shape."""
    first, *rest = gradients
    for g in rest:
        first = first + g
    return first


def unbroadcast(g: Any, shape: tuple[int, ...]) -> Any:
    """Sum `g` over the axes along which an operand of `shape` was broadcast."""
    lead = g.ndim - len(shape)
    if lead < 0 or any(n not in (1, m) for n, m in zip(shape, g.shape[lead:], strict=True)):
        raise ShapeError(f"a gradient rule returned {g.shape} for an input of shape {shape}")
    axes = tuple(range(lead)) + tuple(
        [i + lead for i, n in enumerate(shape) if n == 1 and g.shape[i + lead] != 1]
    )
    return sum(g, axis=axes).reshape(shape)


def _of(name: str) -> Op:
    return OPS[name]


copyreg.pickle(Op, lambda op: (_of, (op.name,)) if OPS.get(op.name) is op else op.__reduce_ex__(2))
