"""A recorded function as two Python functions of NumPy calls: its forward and its backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .. import functional, ops
from ..arrays import Array
from ..tensor import Tensor
from .errors import CompileError
from .numpy_backend import Writer, _has_out
from .outside import PLAIN, Outside, slot
from .passes import Schedule, Section, common, section
from .recording import Place, Record, Recorded, line, recording, spread
from .rows import ELEMENTWISE, KNOWN, VIEWS
from .trace import Program, Value, merge

_FRESH = (KNOWN - VIEWS) | {ops.take}  # their result shares memory with no input
_MOST = 20_000  # values of a program
COMPUTED, CONSTANT = "computed", "constant"  # what an output is, if it is no input


@dataclass(slots=True)
class Recording:
    """A function for one signature.

    ``forward(*inputs) -> outputs, kept`` and ``backward(*inputs, kept, seeds) -> gradients`` run
    it.  The inputs come from `sources`: an argument by its number, or a Tensor from outside; the
    first `recorded` of them require a gradient.
    """

    forward: Any
    backward: Any
    source: str
    plan: Schedule
    sources: list[Any]
    recorded: int
    outs: list[tuple[Any, str | None]]  # COMPUTED, CONSTANT, or an input; the name
    seeded: list[int]
    template: Any
    token: Array
    outside: list[tuple[Tensor, tuple[int, ...], np.dtype[Any], bool]]

    def outdated(self) -> bool:
        """Return whether a Tensor from outside is of another kind now."""
        for t, shape, dtype, requires_grad in self.outside:
            a = t.data
            if a.shape != shape or a.dtype != dtype or t.requires_grad is not requires_grad:
                return True
        return False


class ComplexError(CompileError):
    """What it computes is for checks, and runs plainly without a warning."""


def recorded(
    call: Callable[[Sequence[Any]], Any],
    given: Sequence[Tensor],
    around: Outside,
    args: Any,
    backward: bool,
) -> Recording:
    """Return the recording of a function; raise where no recording can stand for it."""
    runs: list[Record] = []
    hidden = around.tensors(args)
    numbers = [(t.data, t.requires_grad and backward) for t in given]
    try:
        for k in (0, 1):
            with recording(around, k, hidden, args) as run:
                _run(run, call, numbers, k, backward)
            runs.append(run)
            outside = [t for t in run.nodes if t.order < run.since]
            hidden = list(dict.fromkeys([*hidden, *outside]))
        return _merge(runs[0], runs[1], {id(t.data) for t in hidden})
    except CompileError:
        raise
    except Exception as error:
        part = "failed while it was recorded" if len(runs) < 2 else "failed to compile"
        raise CompileError(f"it {part}{line(error)}: {error!r}") from error


def _run(
    run: Record,
    call: Callable[[Sequence[Any]], Any],
    given: Sequence[tuple[Array, bool]],
    k: int,
    backward: bool,
) -> None:
    """Run a function and its gradients; the numbers are those given only for k = 0."""
    found: dict[int, Tensor] = {}

    def one(t: Any) -> Place:
        if not isinstance(t, Tensor):
            raise CompileError("it returns an array that is no Tensor")
        found.setdefault(t.order, t)
        return Place(list(found).index(t.order))

    args = [
        run.leaf("argument", str(n), _others(x, run.rng) if k else x.copy(), requires_grad)
        for n, (x, requires_grad) in enumerate(given)
    ]
    run.template = spread(call(args), (Tensor, np.ndarray, np.generic), one)
    _check_rest(run.template)
    run.outputs = list(found.values())
    if not run.outputs:
        raise CompileError("it returns no Tensor")
    nodes = run.reach(run.outputs)
    if any(t.dtype.kind == "c" for t in nodes):
        raise ComplexError("it computes with complex numbers")
    for t in nodes:
        if t.order < run.since and t.op is not None and t.requires_grad:
            raise CompileError(
                f"it reads the result of {t.op.name} {t.shape} from outside: pass it on as an "
                f"argument"
            )
    wanted = {t.order: t for t in nodes if backward and t.requires_grad and t.dtype.kind == "f"}
    targets = [t for n, t in wanted.items() if n in run.known or n < run.since]
    seeded = [n for n, t in enumerate(run.outputs)
              if targets and t.order in wanted and t.op and t.order > run.since]  # fmt: skip
    run.differentiate(targets if seeded else [], seeded)


def _check_rest(template: Any) -> None:
    """Raise where a function returns what is neither a Tensor nor plain."""
    if isinstance(template, tuple | list) or type(template) is dict:
        for v in template.values() if isinstance(template, dict) else template:
            _check_rest(v)
    elif type(template) not in (Place, *PLAIN):
        raise CompileError(f"it returns a {type(template).__name__}, which is no Tensor")


def _others(a: Array, rng: np.random.Generator) -> Array:
    """Return other numbers near those of `a`; of integers, the same in other places."""
    if a.dtype.kind == "f":
        return np.asarray(a + (np.abs(a) * 0.01 + 1e-4) * rng.uniform(0.5, 1, a.shape), a.dtype)
    return np.roll(a.reshape(-1), 1).reshape(a.shape)


def _merge(a: Record, b: Record, arrays: set[int]) -> Recording:
    if len(a.nodes) > _MOST:
        raise CompileError(
            f"it makes {len(a.nodes)} values; the loop of a recurrent layer is better compiled by "
            f"itself: compile(layer)"
        )
    arrays |= {id(slot.__get__(t)) for t in a.nodes if t.op or t.order in a.known}
    values, made = merge(a, b, "other numbers", partial(_value, arrays))
    given: dict[int, Any] = {t.order: t for t in a.nodes if t.order < a.since}  # from outside
    given.update({n: int(k) for n, (kind, k) in a.known.items() if kind == "argument"})
    sources = {made[n]: t for n, t in given.items() if n in made}
    outs = [made[t.order] for t in a.outputs]
    program = Program(
        values=values, y=outs[0], states=outs, marks={},
        seeds=[made.get(t.order) for t in a.seeds.values()], x_grad=None, state_grads=[],
        parameter_grads={str(k): made[g.order] for k, g in enumerate(a.grads) if g is not None},
    )  # fmt: skip
    _signs(program)
    common(program)
    plan = _plan(program)
    wanted = [made[t.order] for t in a.targets]
    read = {i for part in (plan.pre, plan.sink) for v in part.values for i in v.inputs}
    read.update([*program.states, *program.parameter_grads.values()])
    inputs = wanted + [v for v in program.values if v in read and v in sources and v not in wanted]
    writer = FunctionWriter(plan, inputs, len(wanted))
    text = writer.source()
    names: dict[str, Any] = {"np": np, **writer.constants}
    exec(compile(text, "<compiled function>", "exec"), names)
    floats = [outs[k].dtype for k in a.seeds]
    described = [
        (given.get(t.order, COMPUTED if k in a.seeds else CONSTANT), t.name)
        for k, t in enumerate(a.outputs)
    ]
    return Recording(
        names["forward"], names["backward"], text, plan, [sources[v] for v in inputs], len(wanted),
        described, list(a.seeds), a.template, np.zeros((), floats[0] if floats else float),
        [(t, t.shape, t.dtype, t.requires_grad) for t in a.nodes if t.order < a.since],
    )  # fmt: skip


def _value(arrays: set[int], s: Tensor, t: Tensor, a: Record, made: dict[int, Value]) -> Value:
    x, y = slot.__get__(s), slot.__get__(t)
    line = a.lines[s.order]
    if s is t:
        return Value(None, (), {}, x.shape, x.dtype, "outside", s.name or "")
    if s.order < a.since:
        raise CompileError("it sets a Tensor that it reads the next time")
    if x.shape != y.shape or x.dtype != y.dtype:
        raise CompileError(f"it takes another path for other numbers{line}")
    if s.op is not None:
        if repr(s.attrs) != repr(t.attrs) or any(
            isinstance(v, np.ndarray) for v in s.attrs.values()
        ):
            raise CompileError(f"{s.op.name} has settings that are arrays, or that change{line}")
        inputs = tuple([made[i.order] for i in s.inputs])
        if s.op not in VIEWS and all(i.leaf == "constant" for i in inputs):
            return Value(None, (), {}, x.shape, x.dtype, "constant", array=x)
        attrs = {"axis": 0, **s.attrs} if s.op is ops.concat else s.attrs
        return _unbroadcast(Value(s.op, inputs, attrs, x.shape, x.dtype))
    kind, number = a.known.get(s.order, ("constant", ""))
    if kind != "constant":
        return Value(None, (), {}, x.shape, x.dtype, kind, number)
    if s.requires_grad:
        raise CompileError(f"it makes a leaf {x.shape} that requires a gradient{line}")
    if type(s) is Recorded:
        raise CompileError(f"it computes under no_grad(){line}: use detach()")
    if id(x) in arrays:
        raise CompileError(f"it makes a Tensor {x.shape} of another's array{line}: use detach()")
    if x is y or np.may_share_memory(x, y):  # the user's array, which may change in place
        return Value(None, (), {}, x.shape, x.dtype, "array", array=x)
    if not np.array_equal(x, y, equal_nan=x.dtype.kind in "fc"):
        raise CompileError(
            f"it computes with numbers that change from call to call and are no Tensors: random "
            f"numbers, a counter, or values read from a Tensor{line}"
        )
    return Value(None, (), {}, x.shape, x.dtype, "constant", array=x)


def _unbroadcast(v: Value) -> Value:
    """Let an elementwise op read what is broadcast, where it broadcasts by itself."""
    if v.op not in ELEMENTWISE or not isinstance(v.op.forward, np.ufunc):
        return v
    inputs = list(v.inputs)
    for k, i in enumerate(inputs):
        if i.op is ops.broadcast:
            others = [i.inputs[0], *inputs[:k], *inputs[k + 1 :]]
            if np.broadcast_shapes(*[o.shape for o in others]) == v.shape:  # type: ignore[arg-type]
                inputs[k] = i.inputs[0]
    v.inputs = tuple(inputs)
    return v


def _signs(program: Program) -> None:
    """Let sums take in the signs of what they add: a + (-b) c = a - b c, to the bit."""
    users: dict[Value, int] = {}
    for v in program.values:
        for i in v.inputs:
            users[i] = users.get(i, 0) + 1
    negated: dict[Value, Value] = {}  # what is negated in a value
    values = []
    for v in program.values:
        if v.dtype.kind == "f" and v.op in (ops.mul, ops.div):
            k = next((k for k, i in enumerate(v.inputs) if i in negated and users[i] == 1
                      and i.shape == v.shape), None)  # fmt: skip
            if k is not None:
                inputs = tuple([negated[i] if n == k else i for n, i in enumerate(v.inputs)])
                inner = replace(v, inputs=inputs)
                values.append(inner)
                v.op, v.inputs = ops.neg, (inner,)
        elif v.dtype.kind == "f" and v.op in (ops.add, ops.sub) and v.inputs[1] in negated:
            v.op, v.inputs = _OTHER[v.op], (v.inputs[0], negated[v.inputs[1]])
        elif v.dtype.kind == "f" and v.op is ops.add and v.inputs[0] in negated:
            v.op, v.inputs = ops.sub, (v.inputs[1], negated[v.inputs[0]])
        if v.op is ops.neg and v.dtype.kind == "f":
            negated[v] = v.inputs[0]
        values.append(v)
    for k, v in enumerate(values):
        v.number = k
    program.values = values


_OTHER = {ops.add: ops.sub, ops.sub: ops.add}


def _plan(program: Program) -> Schedule:
    """Return what runs forward (``pre``) and backward (``sink``): nothing else (dead code)."""
    nothing = Section([], [])
    sink = section(program.parameter_grads.values(), lambda v: v.backward)
    kept = sink.outside
    pre = section([*program.states, *kept], lambda v: True)
    names = tuple(program.parameter_grads)
    return Schedule(program, pre, nothing, nothing, nothing, nothing, sink, kept, False, names,
                    bool(names), False)  # fmt: skip


# --- source ------------------------------------------------------------------------------------


class FunctionWriter(Writer):
    """Writes a function and its gradients; a buffer that nothing reads any more is used again."""

    def __init__(self, schedule: Schedule, inputs: list[Value], recorded: int) -> None:
        super().__init__(schedule)
        self.inputs, self.recorded = inputs, recorded
        self.names: dict[int, str] = {}

    def constant(self, value: Any) -> str:
        """Return the name of an object that the source cannot spell."""
        if id(value) not in self.names:
            self.names[id(value)] = super().constant(value)
        return self.names[id(value)]

    def ref(self, v: Value, mode: str) -> str:
        """Return how a value is called."""
        return self.constant(v.array) if v.leaf in ("constant", "array") else f"v{v.number}"

    def forward(self) -> None:
        """Write the forward function."""
        plan = self.plan
        names = ", ".join([self.ref(v, "") for v in self.inputs])
        self.lines.append(f"def forward({names}):")
        for v in self.inputs:
            self.check(v)
        ends = [*plan.program.states, *plan.kept]
        self.section(plan.pre, ends)
        outs = "".join([self.ref(v, "") + (".copy(), " if v.leaf == "constant" else ", ")
                        for v in plan.program.states])  # fmt: skip
        self.put(f"return ({outs}), ({''.join([f'v{v.number}, ' for v in plan.kept])})")

    def backward(self) -> None:
        """Write the backward function."""
        plan, program = self.plan, self.plan.program
        names = "".join([f"{self.ref(v, '')}, " for v in self.inputs])
        self.lines.append(f"def backward({names}kept, seeds):")
        for several, given in ((plan.kept, "kept"), (program.seeds, "seeds")):
            if several:
                self.put("".join([f"{self.ref(v, '') if v else '_'}, " for v in several])
                         + f"= {given}")  # fmt: skip
        grads = program.parameter_grads
        self.section(plan.sink, grads.values())
        found = [grads.get(str(k)) for k in range(self.recorded)]
        self.put("return " + "".join(["None, " if v is None else f"{self.ref(v, '')}, "
                                      for v in found]))  # fmt: skip

    def section(self, part: Section, ends: Iterable[Value]) -> None:
        """Write the lines of a section, of which `ends` are read afterwards."""
        reuse = self.reuse(part.values, ends)
        for v in part.values:
            out = reuse.get(v)
            if out is None and v.op in (ops.sum, ops.sigmoid, ops.concat, ops.where):
                out = f"np.empty({self.shape(v, 'step')}, {self.constant(v.dtype)})"
            self.compute(v, "step", out)
            self.check(v)

    def check(self, v: Value) -> None:
        """Write the line that checks whether ids are in their range, as the function does."""
        if v.bound and not v.backward:
            size, what = v.bound
            check = self.constant(functional._ids)
            self.put(f"{check}({self.ref(v, 'step')}, {size}, {what!r})")

    def reuse(self, values: list[Value], ends: Iterable[Value]) -> dict[Value, str]:
        """Return which array a value is written into: of one that nothing reads any more."""
        shows: dict[Value, set[Value]] = {}  # whose memory
        last: dict[Value, int] = {}
        for k, v in enumerate(values):
            seen = () if v.op in _FRESH else v.inputs[:1] if v.op in VIEWS else v.inputs
            shows[v] = {s for i in seen for s in shows.get(i, ())}
            if v.op not in VIEWS:
                shows[v].add(v)
            for i in v.inputs:
                last.update(dict.fromkeys(shows.get(i, ()), k))
        for v in ends:
            last.update(dict.fromkeys(shows.get(v, ()), len(values)))
        names: dict[Value, str] = {}
        free: dict[Any, list[str]] = {}
        for k, v in enumerate(values):
            key = v.shape, v.dtype
            dying = {s: names.get(s, f"v{s.number}") for i in v.inputs for s in shows.get(i, ())
                     if last[s] == k and s.op in _FRESH and s.shape}  # fmt: skip
            if _has_out(v) and v.shape:
                own = [s for s in v.inputs if s in dying and (s.shape, s.dtype) == key]
                if own and v.op in ELEMENTWISE and v.op is not ops.where:
                    names[v] = dying.pop(own[0])
                elif free.get(key):
                    names[v] = free[key].pop()
            for s, name in dying.items():
                free.setdefault((s.shape, s.dtype), []).append(name)
        return names

    def compute(self, v: Value, mode: str, out: str | None) -> None:
        """Write the line that computes a value, into `out` where it is given."""
        assert v.op is not None
        if (v.op is ops.getitem and len(v.inputs) > 1) or (  # an index of arrays
            v.op is ops.where and v.inputs[0].dtype != bool
        ):
            args = ", ".join([self.ref(i, mode) for i in v.inputs])
            forward, attrs = self.constant(v.op.forward), self.constant(v.attrs)
            self.put(f"v{v.number} = {forward}({args}, **{attrs})")
        elif v.op is ops.sigmoid and out:
            self.put(
                f"v{v.number} = {self.constant(_sigmoid)}({self.ref(v.inputs[0], mode)}, {out})"
            )
        elif v.op is ops.where and _many(v) and all(i.dtype == v.dtype for i in v.inputs[1:]):
            args = ", ".join([self.ref(i, mode) for i in v.inputs])
            self.put(f"{self.ref(v, mode)} = {self.constant(_choose)}({args}, {out})")
        else:
            super().compute(v, mode, out)


def _sigmoid(x: Array, out: Array) -> Array:
    np.negative(x, out)
    ops._quiet.run(np.exp, out, out)  # of the thread that calls; exp may overflow
    np.add(out, 1, out)
    return np.reciprocal(out, out)


_INTEGERS: dict[Any, Any] = {np.dtype("f4"): np.int32, np.dtype("f8"): np.int64}


def _many(v: Value) -> bool:
    return v.dtype in _INTEGERS and math.prod([n or 0 for n in v.shape]) >= 2048


def _choose(mask: Array, x: Any, y: Any, out: Array) -> Array:
    """Write ``where(mask, x, y)`` to `out` by its bits: a masked copy guesses at each branch."""
    kind = _INTEGERS[out.dtype]
    bits, x, y = out.view(kind), np.asarray(x).view(kind), np.asarray(y).view(kind)
    if y.ndim == 0 and y == 0:
        bits[...] = mask
        np.negative(bits, bits)
    elif x.ndim == 0 and x == 0:
        np.subtract(mask, 1, bits, dtype=kind)
        x = y
    else:
        chosen = np.negative(mask, dtype=kind)
        np.bitwise_xor(x, y, bits)
        np.bitwise_and(bits, chosen, bits)
        np.bitwise_xor(bits, y, bits)
        return out
    np.bitwise_and(bits, x, bits)
    return out
