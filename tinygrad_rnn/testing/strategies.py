"""What hypothesis draws: arrays on an exact grid, shapes, indices, recurrent layers, graphs.

The functions that draw from a generator, ``positive(rng, shape)`` and its like, are the domains
that ``register_op`` and ``tensors(values=)`` take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from .. import nn
from ..arrays import Array
from .cases import (
    LAYOUTS,
    Domain,
    Drawer,
    Shape,
    between,
    distinct,
    grid,
    mask,
    nonzero,
    positive,
    unit,
)  # fmt: skip
from .configs import GRID, RNNConfig
from .programs import Graph, Loss, graphs, losses

__all__ = [
    "ALL", "BROADCASTS", "MATMULS", "SPECIAL", "Graph", "Loss", "RNNConfig", "axes", "between",
    "broadcastable", "concat_parts", "corner_shapes", "corners", "cotangents", "distinct",
    "graphs", "grid", "gru_reset_before", "indices", "layouts", "losses", "mask",
    "matmul_operands", "nonzero", "operand_shapes", "operands", "positive", "rngs",
    "rnn_configs", "rnn_identity", "rnn_relu", "shapes", "special", "tensors", "unit",
    "where_args",
]  # fmt: skip

Strategy = st.SearchStrategy[Any]
BY_ELEMENT = 64  # entries that are drawn one by one, so that each shrinks; beyond, from a seed

BROADCASTS: list[tuple[Shape, ...]] = [
    ((), (2, 3)), ((1,), (3,)), ((0,), (1,)), ((0,), ()), ((3,), (2, 3)), ((2, 1, 3), (4, 1)),
    ((1, 1, 1), (2, 3, 2)), ((2, 0), (1, 1)), ((1,), ()), ((2, 1, 1, 2), (3, 1)),
]  # fmt: skip
_SHAPES: list[Shape] = [(), (0,), (1,), (2, 3), (2, 1, 3)]
_TRIPLES: list[tuple[Shape, ...]] = [
    ((3, 1), (1, 2), ()), ((), (2, 3), (3,)), ((2,), (2, 2), (1,)), ((0, 1), (), (3,)),
]  # fmt: skip
MATMULS: list[tuple[Shape, ...]] = [
    ((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((2, 3), (3, 4)), ((3,), (5, 3, 2)),
    ((5, 2, 3), (3,)), ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)), ((5, 1, 3), (5, 3, 2)),
    ((1, 2, 3), (5, 3, 2)), ((4, 1, 2, 3), (5, 3, 2)), ((4, 1, 2, 3), (1, 5, 3, 2)),
    ((3,), (2, 5, 3, 2)), ((2, 5, 1, 3), (3,)), ((0, 3), (3, 2)), ((2, 3), (3, 0)),
    ((2, 0), (0, 3)), ((0,), (0,)), ((0, 2, 3), (3, 2)), ((2, 3), (0, 3, 2)), ((0, 0), (0, 0)),
    ((3,), (3, 3)), ((3, 3), (3,)), ((3, 3), (3, 3)),
]  # fmt: skip
MATMUL = "(m?,n),(n,p?)->(m?,p?)"
SPECIAL = (0.0, -0.0, 20.0, -20.0, 800.0, -800.0, 5e-324, -5e-324, 1e-310, 1.0)


def shapes(min_side: int = 1, max_side: int = 3, min_dims: int = 0, max_dims: int = 3) -> Strategy:
    """Draw shapes, scalars and empty ones (``min_side=0``) included."""
    return hnp.array_shapes(
        min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side
    )


def rngs() -> Strategy:
    """Draw generators of random numbers, from a seed that is printed and shrinks."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


# --- arrays --------------------------------------------------------------------------------------


@st.composite
def tensors(
    draw: st.DrawFn,
    shape: Any = None,
    dtype: Any = "float64",
    *,
    bound: int = 2,
    distinct: bool = False,
    values: Drawer | None = None,
) -> Array:
    """Draw arrays of multiples of 1/8 in [-bound, bound]: exact in float32, and short to print.

    Up to 64 entries are drawn one by one and shrink one by one; more come from a drawn seed.
    No entry is repeated to fill an array.

    Parameters
    ----------
    shape : tuple of int, or a strategy of them, optional
    dtype : dtype or a strategy of them
    bound : int
    distinct : bool
        Each value once, so that nothing ties; the bound grows with the size.
    values : callable, optional
        ``values(rng, shape)``, as ``strategies.positive``, in the place of the grid.

    Raises
    ------
    ValueError
        For a dtype that is neither floating nor integer.
    """
    shape = _drawn(draw, shapes() if shape is None else shape)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    dtype = np.dtype(_drawn(draw, dtype))
    if dtype.kind not in "fi":
        raise ValueError(f"tensors: dtype {dtype} is neither floating nor integer")
    size = math.prod(shape)
    if values is not None:
        return values(draw(rngs()), shape).astype(dtype)
    if distinct:
        order = range(-(size // 2), size - size // 2)
        small = draw(st.permutations(order)) if size <= BY_ELEMENT else None
        eighths = np.array(small) if small is not None else draw(rngs()).permutation(order)
        eighths = eighths.reshape(shape)
    elif size <= BY_ELEMENT:
        whole = st.integers(-bound * GRID, bound * GRID)
        eighths = draw(hnp.arrays(np.int64, shape, elements=whole, fill=st.nothing()))
    else:
        eighths = draw(rngs()).integers(-bound * GRID, bound * GRID + 1, shape)
    return np.asarray(eighths if dtype.kind == "i" else eighths / GRID).astype(dtype)


@st.composite
def special(
    draw: st.DrawFn, shape: Any = None, dtype: Any = "float64", *, values: Any = SPECIAL
) -> Array:
    """Draw arrays of 0, -0.0, +-20, +-800, subnormal numbers, and ties between them."""
    shape, dtype = _drawn(draw, shapes() if shape is None else shape), _drawn(draw, dtype)
    tiny = float(np.finfo(dtype).smallest_subnormal)
    chosen = [math.copysign(max(abs(v), tiny), v) if v else v for v in values]
    elements = st.sampled_from(chosen) | st.integers(-16, 16).map(lambda k: k / GRID)
    found = draw(st.lists(elements, min_size=math.prod(shape), max_size=math.prod(shape)))
    return np.array(found, dtype).reshape(shape)


def layouts() -> Strategy:
    """Draw functions that lay an array out otherwise: Fortran, strides, read-only, 0 strides."""
    return st.sampled_from(LAYOUTS)


def _drawn(draw: st.DrawFn, value: Any) -> Any:
    return draw(value) if isinstance(value, st.SearchStrategy) else value


# --- operands ------------------------------------------------------------------------------------


def operand_shapes(signature: str) -> Strategy:
    """Draw the input shapes of a generalised-ufunc signature: batch axes broadcast, sizes 0 too.

    >>> from hypothesis import find
    >>> x, y = find(operand_shapes("(n),(n)->()"), lambda s: s[0][-1] == 2)
    >>> x[-1], y[-1]
    (2, 2)
    """
    inputs = signature.split("->")[0]
    core = bool(inputs.strip("(),"))
    least = 1 if core and signature != MATMUL else 0  # an empty core may have no value
    drawn = hnp.mutually_broadcastable_shapes(
        signature=f"{inputs}->()", max_dims=2 if core else 3, min_side=least, max_side=3
    ).map(lambda found: found.input_shapes)
    known = corner_shapes(signature)
    return drawn | st.sampled_from(known) if known else drawn


def corner_shapes(signature: str) -> list[tuple[Shape, ...]]:
    """Return the input shapes that are always tried: scalars, empty ones, every broadcast."""
    inputs = signature.split("->")[0]
    if signature == MATMUL:
        return list(MATMULS)
    if inputs.strip("(),"):
        return []
    count = inputs.count("(")
    if count == 2:
        return BROADCASTS + [(b, a) for a, b in BROADCASTS]
    some = [(shape,) * count for shape in _SHAPES]
    return some + (_TRIPLES if count == 3 else [])


@st.composite
def operands(
    draw: st.DrawFn, signature: str, domain: Domain | None = None, dtype: Any = "float64"
) -> tuple[Array, ...]:
    """Draw the inputs of a generalised-ufunc signature, each from its domain or from the grid."""
    found = draw(operand_shapes(signature))
    dtype = _drawn(draw, dtype)
    each = [domain] * len(found) if callable(domain) or domain is None else list(domain)
    return tuple(
        [draw(tensors(s, dtype, values=d)) for s, d in zip(found, each, strict=True)]
    )  # fmt: skip


def broadcastable(n: int, domain: Domain | None = None, dtype: Any = "float64") -> Strategy:
    """Draw n arrays whose shapes broadcast against each other."""
    return operands(",".join(["()"] * n) + "->()", domain, dtype)


def matmul_operands(dtype: Any = "float64") -> Strategy:
    """Draw two arrays that ``@`` takes: vectors, matrices, stacks of them, empty ones."""
    return operands(MATMUL, dtype=dtype)


def axes(shape: Shape | int) -> Strategy:
    """Draw what reductions take as ``axis``: None, one axis, several, counted from either end."""
    ndim = shape if isinstance(shape, int) else len(shape)
    if not ndim:
        return st.sampled_from([None, ()])
    several = st.sets(st.integers(0, ndim - 1)).flatmap(
        lambda s: st.tuples(*[st.sampled_from([a, a - ndim]) for a in sorted(s)])
    )
    return st.none() | st.integers(-ndim, ndim - 1) | several


def indices(shape: Shape) -> Strategy:
    """Draw what stands in ``x[...]``: slices, numbers, new axes, integers that repeat, masks."""
    basic = hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True)
    if not shape or 0 in shape:
        return basic
    masks = st.integers(1, len(shape)).flatmap(lambda n: hnp.arrays(bool, shape[:n]))
    return basic | hnp.integer_array_indices(shape) | masks | _mixed_index(shape)


@st.composite
def _mixed_index(draw: st.DrawFn, shape: Shape) -> tuple[Any, ...]:
    """Draw one entry for each axis; the arrays among them have one length, and repeat."""
    count = draw(st.integers(1, 4))
    index: list[Any] = []
    for n in shape:
        numbers = st.integers(-n, n - 1)
        several = st.lists(numbers, min_size=count, max_size=count).map(np.array)
        index.append(draw(st.one_of(st.slices(n), numbers, several)))
    return tuple(index)


@st.composite
def concat_parts(draw: st.DrawFn, dtype: Any = "float64") -> tuple[tuple[Array, ...], int]:
    """Draw arrays that differ in length along one axis, empty ones among them, and the axis."""
    shape = list(draw(shapes(min_dims=1)))
    axis, dtype = draw(st.integers(-len(shape), len(shape) - 1)), _drawn(draw, dtype)
    parts = []
    for n in draw(st.lists(st.integers(0, 3), min_size=1, max_size=4)):
        shape[axis] = n
        parts.append(draw(tensors(tuple(shape), dtype)))
    return tuple(parts), axis


@st.composite
def where_args(draw: st.DrawFn, dtype: Any = "float64") -> tuple[Array, Array, Array]:
    """Draw a mask and two arrays that broadcast against it and each other."""
    a, x, y = draw(broadcastable(3, dtype=_drawn(draw, dtype)))
    return a > 0, x, y


@st.composite
def cotangents(draw: st.DrawFn, outputs: Any, kind: str | None = None) -> tuple[Array | None, ...]:
    """Draw one cotangent for each output: dense, in one block alone, zeros, or None for zeros.

    Parameters
    ----------
    outputs : array or Tensor, or a list of them
    kind : {"dense", "one block", "zero", "None"}, optional
        Drawn too, where it is not given.
    """
    several = outputs if isinstance(outputs, list | tuple) else [outputs]
    kinds = ("dense", "one block", "zero", "None")
    kind = draw(st.sampled_from(kinds)) if kind is None else kind
    if kind not in kinds:
        raise ValueError(f"cotangents: kind={kind!r} is none of {', '.join(kinds)}")
    found: list[Array | None] = [draw(tensors(y.shape, y.dtype)) for y in several]
    chosen = draw(st.integers(0, len(found) - 1))
    for k, u in enumerate(found):
        if u is not None and (kind == "zero" or (kind == "one block" and k != chosen)):
            found[k] = np.zeros_like(u)
        if kind == "None" and k == chosen:
            found[k] = None
    return tuple(found)


# --- recurrent layers ----------------------------------------------------------------------------


def rnn_relu(cfg: RNNConfig) -> nn.RNNCell:
    """Return a plain cell with relu, of a configuration."""
    return nn.RNNCell(cfg.D, cfg.H, activation="relu", bias=cfg.bias, rng=cfg.seed)


def rnn_identity(cfg: RNNConfig) -> nn.RNNCell:
    """Return a linear cell of a configuration."""
    return nn.RNNCell(cfg.D, cfg.H, activation="identity", bias=cfg.bias, rng=cfg.seed)


def gru_reset_before(cfg: RNNConfig) -> nn.GRUCell:
    """Return a GRU cell as published, of a configuration."""
    return nn.GRUCell(cfg.D, cfg.H, reset_after=False, bias=cfg.bias, rng=cfg.seed)


Cells = Iterable[Callable[..., Any]]
ALL: tuple[Callable[..., Any], ...] = (
    nn.RNN, nn.LSTM, nn.GRU, rnn_relu, rnn_identity, gru_reset_before,
)  # fmt: skip


@st.composite
def rnn_configs(
    draw: st.DrawFn,
    cells: Cells = ALL,
    *,
    T: Any = (1, 8),
    N: Any = (1, 3),
    D: Any = (1, 4),
    H: Any = (1, 4),
    layers: Any = (1, 3),
    bidirectional: Any = (False, True),
    bias: Any = (True, False),
    batch_first: Any = (False, True),
    state: Any = ("random", "zero", "none"),
    lengths: Any = (False, True),
    dtype: Any = ("float64", "float32"),
    long_T: float = 0.05,
) -> RNNConfig:
    """Draw recurrent layers with their inputs: what `RNNConfig` holds.

    T == 1, N == 1, H == 1 and D == H come often, since they are where layers go wrong; a share
    `long_T` runs for 24 to 64 steps, where gradients vanish.  Shrinks to one step of one unit.

    Parameters
    ----------
    cells : sequence of classes or functions
        Layers, cells, or functions that make a cell of an RNNConfig.
    T, N, D, H, layers : int or (lowest, highest)
    bidirectional, bias, batch_first, state, dtype : a value or a tuple of choices
    lengths : bool or a tuple of choices
        Whether the batch is ragged; a length may be 0, but not all of them.
    long_T : float
        Share of long sequences; 0 for none.

    Raises
    ------
    ValueError
        For no cells, or a range that is empty or begins below 1.

    Examples
    --------
    >>> from hypothesis import find
    >>> cfg = find(rnn_configs(), lambda cfg: cfg.T > 2 and cfg.D == cfg.H)
    >>> cfg.x().shape == (cfg.T, cfg.N, cfg.H)
    True
    """
    cells = tuple(cells)
    if not cells:
        raise ValueError("rnn_configs: cells is empty; pass the cells to draw from")
    cell = draw(st.sampled_from(cells))
    depth = draw(_size("layers", layers))
    long = draw(st.integers(0, 999)) >= round(1000 * (1 - long_T))
    steps = draw(st.integers(24, 64) if long else _size("T", T))
    batch = draw(_size("N", N))
    if long:  # one long chain is enough: two layers of three sequences would only be slow
        depth, batch = min(depth, _range("layers", layers)[0]), min(batch, 2)
    units, inputs = draw(_size("H", H)), draw(_size("D", D))
    lowest, highest = _range("D", D)
    square = draw(st.sampled_from([False, False, False, True])) and lowest <= units <= highest
    inputs = units if square else inputs
    ragged = None
    if draw(_choice(lengths)):
        each = st.just(0) | st.integers(0, steps)
        found = draw(st.lists(each, min_size=batch, max_size=batch))
        ragged = tuple(found) if any(found) else (steps, *found[1:])
    return RNNConfig(
        cell, T=steps, N=batch, D=inputs, H=units, layers=depth,
        bidirectional=draw(_choice(bidirectional)), bias=draw(_choice(bias)),
        batch_first=draw(_choice(batch_first)), state=draw(_choice(state)), lengths=ragged,
        dtype=str(np.dtype(draw(_choice(dtype)))), seed=draw(st.integers(0, 99)),
    )  # fmt: skip


def corners(cells: Cells = ALL) -> list[RNNConfig]:
    """Return the configurations that every profile tries, for each cell.

    T == 1, N == 1, H == 1, D == H, 64 steps, a length of 0, a state of zeros, ragged sequences
    in two layers and both directions, float32.

    >>> corners([nn.LSTM])[4]
    RNNConfig(LSTM, T=64, N=1, D=1, H=2)
    """
    found = []
    for cell in cells:
        plain = RNNConfig(cell, T=3, N=2, D=2, H=3)
        found += [
            plain.replace(T=1),
            plain.replace(N=1),
            plain.replace(H=1),
            plain.replace(H=2),
            plain.replace(T=64, N=1, D=1, H=2),
            plain.replace(lengths=(3, 0)),
            plain.replace(state="zero"),
            plain.replace(lengths=(1, 3), bidirectional=True, layers=2),
            plain.replace(dtype="float32"),
        ]
    return found


def _range(name: str, given: Any) -> tuple[int, int]:
    low, high = (given, given) if isinstance(given, int) else given
    if not 1 <= low <= high:
        raise ValueError(f"rnn_configs: {name}={given!r} is no range (lowest, highest) from 1 on")
    return low, high


def _size(name: str, given: Any) -> Strategy:
    low, high = _range(name, given)
    return st.integers(low, high)


def _choice(given: Any) -> Strategy:
    if isinstance(given, st.SearchStrategy):
        return given
    several = isinstance(given, Sequence) and not isinstance(given, str)
    return st.sampled_from(given) if several else st.just(given)
