"""One step of a cell as a list of ops, forward and backward, for any batch.

The step runs on Tensors that refuse to show their values; its gradients come from the ops' own
rules.  It runs twice, on copies of the cell with other numbers and another batch size: an axis
whose length changes is the batch, and a constant that changes was computed behind the ops' backs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np

from ..nn.states import leaves
from ..op import OPS, Op
from ..scope import scope
from ..tensor import Tensor
from .errors import CompileError
from .outside import Outside, slot
from .recording import Record, Recorded, line, recording, source_of

BATCHES = (5, 7)  # of the two traces


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
    bound: Any = None  # of ids: below which, and in what

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


# --- a step becomes a program -------------------------------------------------------------------


def trace(request: Request) -> Program:
    """Return the program of a step; raise where no program can stand for it."""
    runs = []
    outside = Outside(request.cell)
    for k, batch in enumerate(BATCHES):
        cell = _copy(request.cell, k)
        with recording(outside, k, list(cell.parameters()), cell) as run:
            _run(run, request, cell, batch)
        runs.append(run)
    a, b = runs
    n_states, marks, names = a.template
    values, made = merge(a, b, "another batch or other numbers", _value)
    outs = [made[t.order] for t in a.outputs]
    grads = {
        name: None if g is None else made[g.order] for name, g in zip(names, a.grads, strict=True)
    }
    seeds = [a.seeds.get(k) for k in range(len(outs))]
    states = [grads.pop(f"state {k}") for k in range(n_states)]
    return Program(
        values=values,
        y=outs[0],
        states=outs[1 : 1 + n_states],
        marks=dict(zip(marks, outs[1 + n_states :], strict=True)),
        seeds=[None if s is None else made.get(s.order) for s in seeds],
        x_grad=grads.pop("x", None),
        state_grads=states,
        parameter_grads={k: v for k, v in grads.items() if v is not None},
    )


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
    return twin


def _run(run: Record, request: Request, cell: Any, N: int) -> None:
    """Run the step and its gradients."""

    def leaf(kind: str, name: str, shape: tuple[int, ...], dtype: Any) -> Tensor:
        a = run.rng.uniform(0.1, 0.9, shape)
        return run.leaf(kind, name, a > 0.5 if np.dtype(dtype) == bool else a.astype(dtype))

    dtype, here = cell.dtype, scope()
    run.known.update({p.order: ("parameter", name) for name, p in cell.named_parameters()})
    x = None if request.features is None else leaf("x", "x", (N, request.features), dtype)
    starts = [leaf("state", str(k), (N, *shape), d) for k, (shape, d) in enumerate(request.state)]
    inside = leaf("inside", "inside", (N, 1), bool) if request.inside else None
    mask = None if request.mask is None else leaf("mask", "mask", (N, *request.mask), dtype)
    before = here.marks
    try:
        y, state, marks = request.body(cell, x, request.nest(starts), inside, mask)
    except CompileError:
        raise
    except Exception as error:
        said = f"its step failed with example values{line(error) or run.start}: {error}"
        raise CompileError(said) from None
    finally:
        here.marks = before
    ends = leaves(state)
    others = [t for t, s in zip(ends, starts, strict=False) if t.shape != s.shape]
    if others or len(ends) != len(starts):
        where = run.made_at((others or ends)[0]) or run.start
        raise CompileError(f"the step returns another state than it was given{where}")
    marked = {name: v for name, v in marks.items() if isinstance(v, Tensor)}
    run.outputs = [y, *ends, *marked.values()]
    for t in run.outputs:
        if t.dtype != dtype and t.dtype.kind == "f":
            where = run.made_at(t) or run.start
            raise CompileError(f"the step makes {t.dtype} of {dtype}{where}")
    wrt = {} if x is None else {"x": x}
    wrt.update({f"state {k}": s for k, s in enumerate(starts)})
    wrt.update({name: p for name, p in cell.named_parameters() if p.requires_grad})
    floats = [k for k, t in enumerate(run.outputs) if t.dtype.kind == "f"]
    run.differentiate(list(wrt.values()), floats)
    run.template = len(starts), list(marked), list(wrt)


# --- two runs make one program -----------------------------------------------------------------


def merge(
    a: Record, b: Record, others: str,
    read: Callable[[Tensor, Tensor, Record, dict[int, Value]], Value],
) -> tuple[list[Value], dict[int, Value]]:  # fmt: skip
    """Return the values that both runs compute, and which of them the nodes of `a` are.

    `read` makes a value of two nodes; raise where the runs part.
    """
    twins: dict[int, int] = {}  # order of a node in one run: in the other
    for s, t in zip_longest(a.nodes, b.nodes):
        if (
            s is None or t is None or s.op is not t.op
            or a.known.get(s.order) != b.known.get(t.order)
            or (s is not t and [twins.get(i.order) for i in s.inputs] !=
                [i.order for i in t.inputs])
        ):  # fmt: skip
            first = t is None or (s is not None and s.op is not None)
            where = a.lines[s.order] if first else b.lines[t.order]
            raise CompileError(f"{a.who} takes another path for {others}{where}")
        twins[s.order] = t.order
    if a.template != b.template:
        raise CompileError(f"{a.who} takes another path for {others}")
    made: dict[int, Value] = {}
    values: list[Value] = []
    for s, t in zip(a.nodes, b.nodes, strict=True):
        source = source_of(s) if s.order > a.since else None
        if source is not None and source.order in made:
            made[s.order] = made[source.order]
            continue
        made[s.order] = value = read(s, t, a, made)
        value.number, value.line = len(values), a.lines[s.order]
        value.backward, value.bound = s.order > a.first_backward, a.bounds.get(s.order)
        values.append(value)
    return values, made


def _value(s: Tensor, t: Tensor, a: Record, made: dict[int, Value]) -> Value:
    x, y = slot.__get__(s), slot.__get__(t)
    where = a.lines[s.order]
    shape = _shape(x.shape, y.shape, where)
    if s.op is not None and s.order > a.since:
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
    if type(s) is Recorded:
        raise CompileError(f"the step computes under no_grad(){where}: use detach()")
    if None not in shape and np.array_equal(x, y, equal_nan=True):
        return Value(None, (), {}, shape, x.dtype, "constant", array=x)
    alike = shape[:1] == (None,) and None not in shape[1:] and np.array_equal(x[:1], y[:1])
    if alike and (x == x[:1]).all() and (y == y[:1]).all():  # the same for every sequence
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
