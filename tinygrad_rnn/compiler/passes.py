"""What becomes of a program: each pass takes a program, or its values, and leaves its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from .rows import ELEMENTWISE, VIEWS
from .trace import Program, Value

# --- common subexpressions ---------------------------------------------------------------------


def common(program: Program) -> None:
    """Compute once what several values compute alike, in place."""
    seen: dict[Any, Value] = {}
    same: dict[Value, Value] = {}
    kept = []
    for v in program.values:
        v.inputs = tuple([same.get(i, i) for i in v.inputs])
        if v.op is not None:
            key: Any = (v.op, v.inputs, _key(v.attrs))
        elif v.leaf == "constant":
            a = np.ascontiguousarray(v.array)
            key = ("constant", v.shape, v.dtype, a.shape, a.tobytes())
        else:
            key = v
        first = seen.setdefault(key, v)
        if first is v:
            kept.append(v)
        else:
            same[v] = first
    program.values = kept

    def of(v: Any) -> Any:
        return same.get(v, v)

    program.y, program.states = of(program.y), [of(v) for v in program.states]
    program.marks = {k: of(v) for k, v in program.marks.items()}
    program.x_grad, program.state_grads = of(program.x_grad), [of(v) for v in program.state_grads]
    program.parameter_grads = {k: of(v) for k, v in program.parameter_grads.items()}


def _key(attrs: dict[str, Any]) -> str:
    return repr(sorted(attrs.items()))  # slices have no hash


# --- the schedule ------------------------------------------------------------------------------


@dataclass(slots=True)
class Section:
    """Values that are computed together, and what they need from outside."""

    values: list[Value]
    outside: list[Value]  # rows that are no leaves


@dataclass(slots=True)
class Schedule:
    """A program cut into what runs before, inside and after the loop over time, both ways.

    ``pre``, ``post``, ``back_pre`` and ``sink`` run once, on T*N rows; ``loop`` and ``back_loop``
    run at each step on N rows.  ``kept`` is what the forward keeps for the backward.
    """

    program: Program
    pre: Section
    loop: Section
    post: Section
    back_pre: Section
    back_loop: Section
    sink: Section
    kept: list[Value]
    x_grad: bool
    parameters: tuple[str, ...]  # whose gradients are wanted
    backward: bool
    traced: bool


_NOTHING: Any = (Section([], []),) * 3, {}


def schedule(
    program: Program,
    *,
    x_grad: bool,
    parameters: Iterable[str],
    backward: bool,
    traced: bool,
    fuse: bool = False,
) -> Schedule:
    """Return the schedule for what is wanted; nothing else is computed (dead code).

    With `fuse`, elementwise values that could run before a loop run inside it, where that alone
    reads them and they cost less than the memory that they would be written to.
    """
    light = _light(program) if fuse else set()
    names = tuple([p for p in parameters if p in program.parameter_grads])
    carried = _depends(program, lambda v: v.leaf in ("state", "mask"))
    ends = {s for s in program.seeds[1 : 1 + len(program.states)] if s is not None}
    late = _depends(program, lambda v: v in ends)
    back, kept = _back(program, names, x_grad, late, light, set()) if backward else _NOTHING
    again = {v for v in kept if v in light and _is_cheap(v, program, kept)}
    if again:
        back, kept = _back(program, names, x_grad, late, light, again)
    late_ones = [program.y, *(program.marks.values() if traced else []), *kept]
    light -= carried
    moved = _read_by_the_loop(program, carried, late_ones, light) if light else set()
    loop = section(program.states, lambda v: v in carried or v in moved)
    inner = set(loop.values)
    late_ones = [v for v in late_ones if v not in inner]
    post = section(late_ones, lambda v: v in carried and v not in inner)
    early_ones = [v for v in (*loop.outside, *post.outside, *late_ones) if v not in carried]
    pre = section(dict.fromkeys(early_ones), lambda v: v not in carried)
    back_pre, back_loop, sink = back
    return Schedule(program, pre, loop, post, back_pre, back_loop, sink, list(kept),
                    x_grad, names, backward, traced)  # fmt: skip


def _back(
    program: Program, names: Iterable[str], x_grad: bool, late: set[Value], light: set[Value],
    again: set[Value],
) -> tuple[tuple[Section, Section, Section], dict[Value, None]]:  # fmt: skip
    """Return the sections of the way back, which computes `again` anew, and what they need kept."""
    grads = [g for g in program.state_grads if g is not None]
    back_loop = section(grads, lambda v: v in again or (v.backward and (v in late or v in light)))
    inner = set(back_loop.values)
    wanted = [program.parameter_grads[p] for p in names]
    if x_grad and program.x_grad is not None:
        wanted.append(program.x_grad)
    early = [v for v in back_loop.outside if v.backward]
    back_pre = section(early, lambda v: v.backward or v in again)
    before = set(back_pre.values) & set(early)
    sink = section(
        wanted,
        lambda v: (v.backward or v in again) and v not in inner and v not in before,
    )
    parts = back_pre, back_loop, sink
    outside = [v for part in parts for v in part.outside]
    kept = dict.fromkeys([v for v in outside if not v.backward and v not in again])
    return parts, kept


def _is_cheap(v: Value, program: Program, kept: Iterable[Value]) -> bool:
    """Return whether it is cheaper to compute a kept value again than to keep it."""
    if v is program.y or v in program.states:  # these are there anyway
        return False
    stack = list(v.inputs)
    while stack:
        i = stack.pop()
        if i.op in VIEWS and i.role == "rows":
            stack += i.inputs
        elif i.op is not None and i.role != "shared" and i not in kept:
            return False
    return True


def section(targets: Iterable[Value], inside: Callable[[Value], bool]) -> Section:
    """Return the values that make the targets: those inside, and views of what is outside."""
    values: dict[Value, None] = {}
    outside: dict[Value, None] = {}
    stack = list(targets)
    while stack:
        v = stack.pop()
        if v.op is None or v.role == "shared" or v in values:
            continue
        if inside(v) or v.op in VIEWS:
            values[v] = None
            stack += v.inputs
        else:
            outside[v] = None
    key = lambda v: v.number  # noqa: E731
    return Section(sorted(values, key=key), sorted(outside, key=key))


def _read_by_the_loop(
    program: Program, carried: set[Value], late: Iterable[Value], light: set[Value]
) -> set[Value]:
    """Return the light values, and views of them, that only the loop reads."""
    loop = set(section(program.states, lambda v: v in carried).values)
    every = section([*program.states, *late], lambda v: not v.backward).values
    outside = set(late)
    for v in reversed(every):
        if v in carried:
            if v not in loop:
                outside.update(v.inputs)
        elif v in outside or not (v in light or v.op in VIEWS):
            outside.update(v.inputs)
    return {v for v in every if v in light and v not in outside}


def _light(program: Program) -> set[Value]:
    """Return the values that are elementwise and cheap."""
    dear = {ops.exp, ops.log, ops.tanh, ops.sigmoid, ops.pow}
    return {v for v in program.values if v.op in ELEMENTWISE and v.op not in dear}


def _depends(program: Program, root: Callable[[Value], bool]) -> set[Value]:
    """Return the values that depend on a root."""
    found: set[Value] = set()
    for v in program.values:
        if root(v) or any(i in found for i in v.inputs):
            found.add(v)
    return found
