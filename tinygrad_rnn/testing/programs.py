"""Random programs: graphs of a few primitives, and losses; each prints as code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from .. import ops
from ..arrays import Array
from .cases import Shape
from .configs import grid

_WORDS: dict[str, Any] = {
    "np": np,
    **{
        op.name: op
        for op in (ops.tanh, ops.sigmoid, ops.exp, ops.log, ops.sqrt, ops.log_softmax, ops.where,
                   ops.concat, ops.stack)
    },
}  # fmt: skip
_LARGE = 4.0  # values beyond it are scaled down, so that nothing saturates
_MANY = 64  # an array of more elements is summed
_UNARY = (
    "tanh({a})", "sigmoid({a})", "{a} * {a}", "-{a}", "exp(tanh({a}))", "log(1 + {a} * {a})",
    "sqrt(1 + {a} * {a})", "{a} ** 3", "0.5 * {a}", "1 - {a}", "{a} + {a}", "{a}.T",
    "{a}.reshape((-1,))", "{a}[..., None]", "{a}.sum()", "stack({a}, {a}, axis=0)",
)  # fmt: skip
_AXIS = (  # where there is one
    "{a}[::-1]", "{a}[0]", "{a}[[0, -1, 0]]", "{a}[:, None]", "{a}.sum(axis=0)",
    "{a}.sum(axis=-1, keepdims=True)", "log_softmax({a}, axis=-1)",
    "where(np.arange({n}) % 2 == 0, {a}, 0.5)", "{a} * np.arange({n})",
)  # fmt: skip
_BINARY = ("{a} + {b}", "{a} * {b}", "{a} - {b}", "{a} / (1 + {b} * {b})")


@dataclass(frozen=True)
class Graph:
    """A function of arrays or Tensors, one line for each node; its ``repr`` is code.

    Attributes
    ----------
    shapes : tuple of tuple of int
        Of the inputs v0, v1, ...
    steps : tuple of str
        The next values, each of those before it; the last is the result.
    seed : int
        Of the inputs.

    Examples
    --------
    >>> graph = Graph(((2,), ()), ("v0 * v1", "v2[::-1]", "v3 * v2"))
    >>> print(graph.source)
    def f(v0, v1):
        v2 = v0 * v1
        v3 = v2[::-1]
        v4 = v3 * v2
        return v4
    >>> graph(np.array([1.0, 2.0]), np.array(3.0))
    array([18., 18.])
    """

    shapes: tuple[Shape, ...]
    steps: tuple[str, ...]
    seed: int = 0

    @property
    def __name__(self) -> str:
        return "graph"

    @property
    def inputs(self) -> tuple[Array, ...]:
        """Multiples of 1/8 in [-1, 1], none of them 0, in float64."""
        return tuple([grid(s, self.seed + k) for k, s in enumerate(self.shapes)])

    @property
    def source(self) -> str:
        """The program, as a function."""
        n = len(self.shapes)
        lines = [f"v{n + k} = {step}" for k, step in enumerate(self.steps)]
        names = ", ".join([f"v{k}" for k in range(n)])
        return "\n    ".join([f"def f({names}):", *lines, f"return v{n + len(lines) - 1}"])

    def __call__(self, *xs: Any) -> Any:
        """Return the value of the last line."""
        if len(xs) != len(self.shapes):
            raise TypeError(f"the graph has {len(self.shapes)} inputs, got {len(xs)}")
        space = dict(_WORDS)
        exec(self.source, space)
        return space["f"](*xs)


@st.composite
def graphs(draw: st.DrawFn, max_nodes: int = 12, max_inputs: int = 3) -> Graph:
    """Draw functions as acyclic graphs: values used twice, views, constants, broadcasting.

    Every input reaches the result; all of it is analytic, and no value is large.

    Parameters
    ----------
    max_nodes : int
        Of lines, before those that gather what is left over.
    max_inputs : int

    Examples
    --------
    >>> from hypothesis import find
    >>> g = find(graphs(), lambda g: any("@" in step for step in g.steps))
    >>> "@" in g.source
    True
    """
    sides = [(2, 3), (3,), (), (3, 3), (2, 1), (1,), (3, 2)]
    shapes = draw(st.lists(st.sampled_from(sides), min_size=1, max_size=max_inputs))
    seed = draw(st.integers(0, 99))
    values = list(Graph(tuple(shapes), (), seed).inputs)
    steps: list[str] = []
    unused = list(range(len(values)))

    def add(step: str, *used: int) -> None:
        value = _value(step, values)
        if value.size > _MANY:
            step = f"({step}).sum()"
            value = value.sum()
        if (large := np.max(np.abs(value))) > _LARGE:
            step = f"({step}) / {2 ** math.ceil(math.log2(large / _LARGE))}"
        values.append(_value(step, values))
        steps.append(step)
        unused[:] = [k for k in unused if k not in used] + [len(values) - 1]

    for _ in range(draw(st.integers(1, max_nodes))):
        newest = [*reversed(unused), *reversed(range(len(values)))]
        a, b = draw(st.sampled_from(newest)), draw(st.sampled_from(newest))
        step = draw(st.sampled_from(_steps(values[a], values[b])))
        used = (a, b) if "{b}" in step else (a,)
        add(step.format(a=f"v{a}", b=f"v{b}", n=values[a].shape[-1] if values[a].ndim else 0),
            *used)  # fmt: skip
    while len(unused) > 1:
        a, b = unused[-1], unused[0]
        fit = _fits(values[a], values[b])
        add(f"v{a} + v{b}" if fit else f"v{a} * v{b}.sum()", a, b)
    return Graph(tuple(shapes), tuple(steps), seed)


def _value(step: str, values: list[Array]) -> Array:
    found = {f"v{k}": v for k, v in enumerate(values)}
    return np.asarray(eval(step, _WORDS, found))


def _steps(a: Array, b: Array) -> list[str]:
    """Return the lines that may come next with these two values."""
    found = list(_UNARY)
    if _fits(a, b):
        found = [*_BINARY, *found]
    if a.ndim:
        found += [s for s in _AXIS if "[:, None]" not in s or a.ndim > 1]
    if a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0]:
        found.append("{a} @ {b}")
    if a.ndim and a.ndim == b.ndim and a.shape[1:] == b.shape[1:]:
        found.append("concat({a}, {b}, axis=0)")
    return found


def _fits(a: Array, b: Array) -> bool:
    try:
        return math.prod(np.broadcast_shapes(a.shape, b.shape)) <= _MANY
    except ValueError:
        return False


@dataclass(frozen=True)
class Loss:
    """A scalar of an output, or of the first of several: as training reduces it.

    Attributes
    ----------
    kind : {"sum", "weighted", "squares", "last", "cross_entropy"}
        Of all elements; with random weights; of squared distances to a target; of the last
        step alone; of the last axis as classes.
    seed : int
        Of weights and targets.

    Examples
    --------
    >>> from tinygrad_rnn import Tensor
    >>> Loss("last")(Tensor([[1.0, 2.0], [3.0, 5.0]])).item()
    8.0
    """

    kind: str = "sum"
    seed: int = 0

    @property
    def __name__(self) -> str:
        return f"{self.kind} loss"

    def __call__(self, output: Any) -> Any:
        """Return the scalar."""
        y = output[0] if isinstance(output, tuple | list) else output
        if self.kind == "sum":
            return y.sum()
        if self.kind == "last":
            return (y[-1] if y.ndim else y).sum()
        if self.kind == "cross_entropy":
            rows = y.reshape((-1, y.shape[-1] if y.ndim else 1))
            rng = np.random.default_rng(self.seed)
            classes = rng.integers(0, rows.shape[1], len(rows))
            return -ops.log_softmax(rows)[np.arange(len(rows)), classes].sum()
        values = grid(y.shape, self.seed).astype(y.dtype)
        return (values * y).sum() if self.kind == "weighted" else ((y - values) ** 2).sum()


LOSSES = ("sum", "weighted", "squares", "last", "cross_entropy")


def losses() -> st.SearchStrategy[Loss]:
    """Draw losses."""
    return st.builds(Loss, st.sampled_from(LOSSES), st.integers(0, 99))
