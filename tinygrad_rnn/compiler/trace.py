"""One step of a cell as a list of ops, forward and backward, for any batch.

The step runs on Tensors that refuse to show their values; its gradients come from the ops' own
rules.  It runs twice, on copies of the cell with other numbers and another batch size: an axis
whose length changes is the batch, and a constant that changes was computed behind the ops' backs.
"""

from __future__ import annotations

import copy
import dis
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from traceback import walk_stack, walk_tb
from typing import Any

import numpy as np

from .. import autodiff, graph, ops
from ..module import Module
from ..nn.states import leaves
from ..op import OPS, Op
from ..scope import at, making, record, scope
from ..tensor import Parameter, Tensor
from .errors import CompileError
from .outside import Outside, codes

BATCHES = (5, 7)  # of the two traces
ENGINE = frozenset(
    [f"tinygrad_rnn.{name}" for name in ("tensor", "op", "ops", "autodiff", "graph", "inspection")]
)
_slot: Any = Tensor.__dict__["data"]


class Traced(Tensor):
    """A Tensor of which a step may know the shape and the type, but not the numbers."""

    __slots__ = ()

    @property
    def data(self) -> Any:
        """The array, for the engine alone."""
        frame = sys._getframe(1)
        if frame.f_globals.get("__name__") not in ENGINE:
            raise _reads(".data")
        return _slot.__get__(self)

    @data.setter
    def data(self, value: Any) -> None:
        _slot.__set__(self, value)
        if type(self) is Made:
            self.line = line()

    def __bool__(self) -> bool:
        raise _reads("bool()")

    def item(self) -> Any:
        """Refuse."""
        raise _reads(".item()")

    def numpy(self) -> Any:
        """Refuse."""
        raise _reads(".numpy()")

    def detach(self) -> Tensor:
        """Return a leaf that refuses too, and holds its source, which the step may let go."""
        leaf = super().detach()
        leaf.attrs = {"detached": lambda: self}
        leaf.__class__ = Traced
        return leaf

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        raise _reads("numpy")


class Made(Traced):
    """A node that a step makes; it remembers where."""

    __slots__ = ("line",)
    line: str


class TracedParameter(Traced, Parameter):
    """A Parameter while a step is traced."""

    __slots__ = ()


def _reads(what: str) -> CompileError:
    return CompileError(f"the step reads the value of a Tensor ({what}){line()}")


def line(error: Exception | None = None) -> str:
    """Return where in the user's code the caller is, or an error was: `` at cell.py:12``.

    Inside a trace that is in the step or in a helper of it; nothing where neither is running.
    """
    frames: Any = walk_stack(sys._getframe(1))
    if error is not None:
        frames = reversed(list(walk_tb(error.__traceback__)))
    entered, step = False, ""
    for frame, number in frames:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("tinygrad_rnn.compiler"):
            if entered:  # what called the step
                break
            continue
        entered = True
        here = f" at {frame.f_code.co_filename}:{number}"
        if not name.startswith(("tinygrad_rnn.", "numpy.")):
            return here
        if ".nn." in name and frame.f_code.co_name == "step":
            step = here  # of a cell of the library
    return step


def _step_line(cell: Any) -> str:
    """Return where the step of a cell begins."""
    step = getattr(cell, "step", None)
    code = getattr(getattr(step, "__wrapped__", step), "__code__", None)
    return f" at {code.co_filename}:{code.co_firstlineno}" if code else ""


# --- the program of a step ---------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Value:
    """A value of the step: what an op makes of others, or a leaf."""

    op: Op | None
    inputs: tuple[Value, ...]
    attrs: dict[str, Any]
    shape: tuple[int | None, ...]  # None stands for the batch
    dtype: np.dtype[Any]
    leaf: str = ""  # x, state, parameter, constant, inside, mask, cotangent
    name: str = ""
    array: Any = None  # of a constant
    backward: bool = False
    number: int = 0
    role: str = ""  # shared, rows, summed: see `rows.py`
    line: str = ""  # where the step makes it, or first reads it: `` at cell.py:12``

    def __repr__(self) -> str:
        shape = "x".join(["N" if n is None else str(n) for n in self.shape])
        args = ", ".join([f"v{v.number}" for v in self.inputs])
        attrs = ", ".join([f"{k}={v}" for k, v in self.attrs.items()])
        made = f"{self.op.name}({', '.join([p for p in (args, attrs) if p])})" if self.op else ""
        text = made or f"{self.leaf} {self.name}".rstrip()
        return f"v{self.number} ({shape or '1'}) = {text}"


@dataclass(slots=True, eq=False)
class Program:
    """A step and its gradients, as values in the order in which they can be computed."""

    values: list[Value]
    y: Value
    states: list[Value]  # after the step
    marks: dict[str, Value]
    seeds: list[Value | None]  # the cotangents of y, of the states, of the marks
    x_grad: Value | None
    state_grads: list[Value | None]
    parameter_grads: dict[str, Value]
    leaves: dict[str, Value] = field(default_factory=dict)


@dataclass(slots=True)
class Request:
    """What is to be traced: the step with all that a layer adds to it, and its inputs."""

    cell: Any
    body: Callable[..., tuple[Any, Any, dict[str, Any]]]  # (cell, x, state, inside)
    features: int | None  # of x; None: no input
    state: list[tuple[tuple[int, ...], np.dtype[Any]]]  # of one sequence: without the batch
    nest: Callable[[Sequence[Any]], Any]  # leaves to state
    inside: bool  # whether the sequences have lengths
    mask: tuple[int, ...] | None  # of recurrent dropout, without the batch


@dataclass(slots=True)
class _Trace:
    nodes: list[Tensor]
    first_backward: int
    known: dict[int, tuple[str, str]]  # order of a leaf: what it is
    outputs: list[Any]
    marks: dict[str, Tensor]
    seeds: list[Any]
    grads: list[Any]
    wrt: list[str]
    lines: dict[int, str]  # order of a node: where it comes from


def trace(request: Request) -> Program:
    """Return the program of a step; raise where no program can stand for it."""
    runs = []
    outside = Outside(request.cell)
    for k, batch in enumerate(BATCHES):
        cell = _copy(request.cell, k)
        before, around = _snapshot(cell), outside()
        runs.append(_run(request, cell, batch, k))
        _check_effects(cell, before)
        changed = outside.changed(around)
        if changed:
            raise _effect(cell, "sets", changed[0])
    return _merge(*runs)


def _copy(cell: Any, seed: int) -> Any:
    """Return a copy of the cell to be traced, its parameters with other numbers."""
    twin = copy.deepcopy(cell, {id(op): op for op in OPS.values()})
    rng = np.random.default_rng(seed)
    for _, module in twin.named_modules():  # so that the two traces do not draw the same
        for value in vars(module).values():
            if isinstance(value, np.random.Generator):
                value.random(1 + seed)
    for p in twin.parameters():
        p.data = rng.uniform(0.1, 0.9, p.shape).astype(p.dtype)
        p.__class__ = TracedParameter
    return twin


def _run(request: Request, cell: Any, N: int, seed: int) -> _Trace:
    rng = np.random.default_rng(seed)
    known: dict[int, tuple[str, str]] = {}

    def leaf(kind: str, name: str, shape: tuple[int, ...], dtype: Any) -> Traced:
        a = rng.uniform(0.1, 0.9, shape)
        t = Traced(a > 0.5 if np.dtype(dtype) == bool else a.astype(dtype))
        known[t.order] = kind, name
        return t

    dtype = cell.dtype
    parameters = {name: p for name, p in cell.named_parameters() if p.requires_grad}
    for name, p in cell.named_parameters():
        known[p.order] = "parameter", name
    here = scope()
    start = _step_line(cell)
    with record(), at(None), making(Made):
        x = None
        if request.features is not None:
            x = leaf("x", "x", (N, request.features), dtype)
        starts = [
            leaf("state", str(k), (N, *shape), d) for k, (shape, d) in enumerate(request.state)
        ]
        inside = leaf("inside", "inside", (N, 1), bool) if request.inside else None
        mask = None
        if request.mask is not None:
            mask = leaf("mask", "mask", (N, *request.mask), dtype)
        before = here.marks
        try:
            y, state, marks = request.body(cell, x, request.nest(starts), inside, mask)
        except CompileError:
            raise
        except Exception as error:
            where = line(error) or start
            raise CompileError(f"its step failed with example values{where}: {error}") from None
        finally:
            here.marks = before
        ends = leaves(state)
        others = [t for t, s in zip(ends, starts, strict=False) if t.shape != s.shape]
        if others or len(ends) != len(starts):
            where = getattr((others or ends)[0], "line", start)
            raise CompileError(f"the step returns another state than it was given{where}")
        marked = {name: v for name, v in marks.items() if isinstance(v, Tensor)}
        outputs = [y, *ends, *marked.values()]
        for t in outputs:
            if t.dtype != dtype and t.dtype.kind == "f":
                where = getattr(t, "line", start)
                raise CompileError(f"the step makes {t.dtype} of {dtype}{where}")
        first = Tensor(0.0).order
        # a seed for every output: cotangents of outputs that are one node add up
        seeds = [
            leaf("cotangent", str(k), t.shape, dtype) if t.dtype.kind == "f" else None
            for k, t in enumerate(outputs)
        ]
        pairs = [(t, s) for t, s in zip(outputs, seeds, strict=True) if s is not None]
        wrt = {**({"x": x} if x is not None else {}),
               **{f"state {k}": s for k, s in enumerate(starts)},
               **parameters}  # fmt: skip
        grads = autodiff.gradients(
            [t for t, _ in pairs], list(wrt.values()), [s for _, s in pairs], create_graph=True
        )
        targets = list(wrt.values())
        grads = [
            g if g is None or g.shape == t.shape else ops.unbroadcast(g, t.shape)
            for g, t in zip(grads, targets, strict=True)
        ]
    every = [*outputs, *[g for g in grads if g is not None]]
    nodes = _with_detached(every)
    lines = _lines(nodes, start)
    return _Trace(nodes, first, known, outputs, marked, seeds, grads, list(wrt), lines)


def _lines(nodes: list[Tensor], start: str) -> dict[int, str]:
    """Return where each node comes from: a leaf from its first reader, a gradient from its op."""
    found: dict[int, str] = {}
    for t in nodes:
        before = [found[i.order] for i in t.inputs if i.order in found]
        here = getattr(t, "line", "") or (before[-1] if before else "")
        if here:
            for node in (t, *t.inputs):
                found.setdefault(node.order, here)
    return {t.order: found.get(t.order, start) for t in nodes}


def _source(t: Tensor) -> Tensor | None:
    """Return what a detached Tensor shows, without a gradient."""
    ref = t.attrs.get("detached") if t.op is None else None
    return None if ref is None else ref()


def _with_detached(outputs: list[Tensor]) -> list[Tensor]:
    nodes = graph.nodes(outputs)
    while True:
        sources = [s for s in [_source(t) for t in nodes] if s is not None]
        more = graph.nodes([*outputs, *sources])
        if len(more) == len(nodes):
            return nodes
        nodes, outputs = more, [*outputs, *sources]


def _snapshot(cell: Module) -> list[tuple[Any, str, Any, Any]]:
    return [
        (module, name, value, _content(value))
        for _, module in cell.named_modules()
        for name, value in vars(module).items()
        if name != "_called"
    ]


def _content(value: Any) -> Any:
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return len(value) if isinstance(value, list | dict | set) else None


def _check_effects(cell: Module, before: list[tuple[Any, str, Any, Any]]) -> None:
    """Raise where the step changed its cell."""
    for module, name, value, content in before:
        now = vars(module).get(name)
        if now is not value or _content(now) != content:
            what = "draws random numbers from" if isinstance(value, np.random.Generator) else "sets"
            raise _effect(cell, what, name, module)
    names = {(id(module), name) for module, name, _, _ in before}
    for _, module in cell.named_modules():
        for name in vars(module):
            if name != "_called" and (id(module), name) not in names:
                raise _effect(cell, "sets", name, module)


def _effect(cell: Any, what: str, name: str, module: Any = None) -> CompileError:
    """Return the error of a step that changes more than its state, with the line that does."""
    kinds = ("_ATTR", "_METHOD", "_GLOBAL", "_DEREF")  # of what the instruction names
    found = [
        (not i.opname.startswith("STORE"), f" at {code.co_filename}:{i.positions.lineno}")
        for f in Outside(cell).functions
        for code in codes(f.__code__)
        for i in dis.get_instructions(code)
        if i.argval == name and i.opname.endswith(kinds) and i.positions is not None
    ]
    _, where = min(found, default=(True, _step_line(cell)), key=lambda f: f[0])
    full = name if module is None else f"{type(module).__name__}.{name}"
    return CompileError(f"the step {what} {full}{where}")


# --- two traces make one program ---------------------------------------------------------------


def _merge(a: _Trace, b: _Trace) -> Program:
    """Return the program that both traces are runs of."""
    _check_path(a, b)
    made: dict[int, Value] = {}
    values: list[Value] = []
    for s, t in zip(a.nodes, b.nodes, strict=True):
        source = _source(s)
        if source is not None and source.order in made:
            made[s.order] = made[source.order]
            continue
        value = _value(s, t, a, made)
        value.number, value.line = len(values), a.lines[s.order]
        value.backward = s.order > a.first_backward
        made[s.order] = value
        values.append(value)
    n_states = sum(name.startswith("state ") for name in a.wrt)
    outs = [made[t.order] for t in a.outputs]
    seeds = [None if s is None else made.get(s.order) for s in a.seeds]
    grads = {
        name: None if g is None else made[g.order] for name, g in zip(a.wrt, a.grads, strict=True)
    }
    return Program(
        values=values,
        y=outs[0],
        states=outs[1 : 1 + n_states],
        marks=dict(zip(a.marks, outs[1 + n_states :], strict=True)),
        seeds=seeds,
        x_grad=grads.get("x"),
        state_grads=[grads[f"state {k}"] for k in range(n_states)],
        parameter_grads={
            k: v for k, v in grads.items()
            if v is not None and k != "x" and not k.startswith("state ")
        },
    )  # fmt: skip


def _check_path(a: _Trace, b: _Trace) -> None:
    """Raise where the traces part."""
    twins: dict[int, int] = {}  # order of a node in one trace: in the other
    for s, t in zip_longest(a.nodes, b.nodes):
        if (
            s is not None
            and t is not None
            and s.op is t.op
            and a.known.get(s.order) == b.known.get(t.order)
            and [twins[i.order] for i in s.inputs] == [i.order for i in t.inputs]
        ):
            twins[s.order] = t.order
            continue
        first = t is None or (s is not None and s.op is not None)
        where = a.lines[s.order] if first else b.lines[t.order]
        raise CompileError(f"the step takes another path for another batch or other numbers{where}")


def _value(s: Tensor, t: Tensor, a: _Trace, made: dict[int, Value]) -> Value:
    x, y = _slot.__get__(s), _slot.__get__(t)
    where = a.lines[s.order]
    shape = _shape(x.shape, y.shape, where)
    if s.op is not None:
        inputs = tuple([made[i.order] for i in s.inputs])
        return Value(s.op, inputs, _attrs(s.op, s.attrs, t.attrs, where), shape, x.dtype)
    kind, name = a.known.get(s.order, ("constant", ""))
    if kind != "constant":
        return Value(None, (), {}, shape, x.dtype, kind, name)
    if s.requires_grad:
        raise CompileError(
            f"the step reads {s.name or 'a Tensor'} {s.shape}, which is no parameter of the "
            f"cell{where}"
        )
    if None not in shape and np.array_equal(x, y, equal_nan=True):
        return Value(None, (), {}, shape, x.dtype, "constant", array=x)
    if (
        shape[:1] == (None,)
        and None not in shape[1:]
        and np.array_equal(x[:1], y[:1])
        and (x == x[:1]).all()
        and (y == y[:1]).all()
    ):  # the same for every sequence
        return Value(None, (), {}, (None, *shape[1:]), x.dtype, "constant", array=x[:1])
    n, m = BATCHES
    if x.shape == y.shape and x.dtype.kind in "if" and (
        np.allclose(x * n, y * m) or np.allclose(x * m, y * n)
    ):  # fmt: skip
        raise CompileError(
            "the step computes with how many sequences there are: it takes a mean over the batch, "
            f"or mixes its sequences{where}"
        )
    raise CompileError(
        "the step computes with numbers that change from call to call and are no Tensors: random "
        f"numbers, or values read from a Tensor{where}"
    )


def _shape(p: tuple[int, ...], q: tuple[int, ...], where: str) -> tuple[int | None, ...]:
    if len(p) != len(q):
        raise CompileError(f"the step takes another path for another batch{where}")
    made: list[int | None] = []
    for m, n in zip(p, q, strict=True):
        if m != n and (m, n) != BATCHES:
            raise CompileError(f"an axis of length {m} mixes the batch with features{where}")
        made.append(m if m == n else None)
    return tuple(made)


def _attrs(op: Op, p: dict[str, Any], q: dict[str, Any], where: str) -> dict[str, Any]:
    """Return attributes with the batch, where they name it, as None."""
    if p == q:
        return p
    made = {}
    for key, m in p.items():
        n = q[key]
        if m != n:
            if key != "shape" or not isinstance(m, tuple):
                raise CompileError(f"{op.name}({key}={m}) depends on the batch{where}")
            m = _shape(m, n, where)
        made[key] = m
    return made
