"""Which rule is guilty: every node of a tape is checked by itself, against its own forward."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import graph
from ..arrays import Array
from ..op import Op
from ..ops import unbroadcast
from .estimate import complex_step, interval, kink, ridders, sides
from .slopes import Slopes, in_double, weights
from .subject import Subject

UNITS = 64  # of rounding, within which two values count as tied


@dataclass(frozen=True)
class Guilty:
    """A rule that disagrees with the forward of its op.

    Attributes
    ----------
    op : str
    rule : str
        ``tanh.rules[0]  tinygrad_rnn/ops.py:80``.
    error : float
        Relative, of this one node.
    place : str
        The layer and the step of the node.
    wrong, nodes : int
        How many nodes of the tape disagree, and how many there are.
    """

    op: str
    rule: str
    error: float
    place: str
    wrong: int
    nodes: int

    def __str__(self) -> str:
        others = self.nodes - self.wrong
        agree = f"the other {others} nodes on the tape agree" if others else "no other node"
        if self.wrong > 1:
            agree = f"{self.wrong} nodes on the tape disagree, {others} agree"
        where = f" in {self.place}" if self.place else ""
        return f"{self.rule}  (this node alone is wrong by {self.error:.1e}{where}; {agree})"


def guilty_rule(subject: Subject, cotangents: Sequence[Array | None]) -> Guilty | None:
    """Return the rule that is furthest from its forward; None if all agree, or for another engine.

    A node that the sweep reaches is given its own arrays and a random cotangent.
    """
    wrong: dict[str, list[tuple[float, Any, str]]] = {}
    nodes = _reached(subject, cotangents)
    for t in nodes:
        error, rule = worst_rule(t.op, [x.data for x in t.inputs], t.attrs, t.data)
        if error > 3e-10:
            wrong.setdefault(t.op.name, []).append((error, t, rule))
    if not wrong:
        return None
    # a rule that is wrong wherever it is used before one that is wrong at one node by more
    name = max(
        wrong, key=lambda n: (len(wrong[n]) == _uses(nodes, n), max(e for e, *_ in wrong[n]))
    )
    error, t, rule = max(wrong[name], key=lambda found: found[0])
    count = sum(len(found) for found in wrong.values())
    return Guilty(name, rule, error, str(t.place or ""), count, len(nodes))


def _uses(nodes: Sequence[Any], name: str) -> int:
    return sum(t.op.name == name for t in nodes)


def _reached(subject: Subject, cotangents: Sequence[Array | None]) -> list[Any]:
    """Return the nodes that an op made and that a gradient passes."""
    recorded = subject.record(subject.arrays)
    if recorded is None:
        return []
    outs, leaves = recorded
    outs = [y for y, u in zip(outs, cotangents, strict=True) if u is not None]
    order = graph.nodes(outs)
    path = graph.reach(order, [t for t in leaves if t.data.dtype.kind in "fc"])
    return [t for t in order if t.op is not None and t.op.differentiable and t.order in path]


def worst_rule(op: Op, inputs: list[Array], attrs: dict[str, Any], y: Array) -> tuple[float, str]:
    """Return the largest relative error of the rules of an op at these inputs, and which it is."""
    rng = np.random.default_rng(0)
    single = np.float32 in (y.dtype, *[x.dtype for x in inputs])
    high = [x.astype(np.float64) if x.dtype.kind == "f" else x for x in inputs]
    u = weights(y.shape, rng)
    worst = (0.0, "")
    if y.dtype.kind != "f":
        return worst
    try:
        with np.errstate(all="ignore"):
            found = _apply_rules(op, high, attrs, u)
    except Exception as raised:
        return np.inf, f"{op.name}: {type(raised).__name__}: {raised}{raising_rule(raised)}"
    for k, gradient, rule in found:
        x = high[k]
        if x.dtype.kind != "f" or not x.size:
            continue
        name = f"{op.name}{source_of(rule)}"
        if gradient is None:
            gradient = np.zeros(x.shape)
        if gradient.shape != x.shape:
            return np.inf, f"{name}: it returned {gradient.shape} for an input {x.shape}"
        v = weights(x.shape, rng)
        if not _touched(op, k):
            continue
        error = _local_error(op, high, attrs, {k: v}, u, {k: gradient})
        if error > worst[0] and not (single and error < 1e-3 and op.name == "astype"):
            worst = error, name
    alike = {k: np.ones(high[k].shape) for k, _, _ in found if high[k].dtype.kind == "f"}
    if worst[0] == 0 and alike:  # tied values moved together, where each by itself has a kink
        error = _local_error(op, high, attrs, alike, u, {k: g for k, g, _ in found if k in alike})
        worst = error, f"{op.name}{source_of(found[0][2])}"
    return worst


def _touched(op: Op, k: int) -> bool:
    """Whether the op claims a gradient for input k."""
    if op.rule_all is not None:
        return k not in range(*op.selects.indices(k + 1)) or op.name == "scatter"
    return k < len(op.rules) and op.rules[k] is not None


def _apply_rules(
    op: Op, inputs: list[Array], attrs: dict[str, Any], u: Array
) -> list[tuple[int, Any, Any]]:
    """Return (input, gradient, rule) as the sweep would get them; a collector from two halves."""
    y = np.asarray(op.forward(*inputs, **attrs))
    if op.rule_all is not None:
        return [
            (k, g, op.rule_all)
            for k, g in enumerate(op.rule_all(u, y, *inputs, **attrs))
            if g is not None
        ]
    found = []
    for k, (rule, collector) in enumerate(zip(op.rules, op.collectors, strict=True)):
        if rule is None:
            continue
        gradients = [(rule, rule(u, y, *inputs, **attrs))]
        if collector is not None:
            half = [(u * part, inputs, attrs) for part in (0.25, 0.75)]
            gradients.append((collector, collector(inputs[k], half)))
            gradients.append((collector, collector(inputs[k], [(u, inputs, attrs)])))
        for function, g in gradients:
            g = np.asarray(g)
            with suppress(ValueError):
                g = unbroadcast(g, inputs[k].shape)
            found.append((k, g, function))
    return found


def _local_error(
    op: Op,
    inputs: list[Array],
    attrs: dict[str, Any],
    vs: dict[int, Array],
    u: Array,
    gradients: dict[int, Array],
) -> float:
    """Return |<g, v> - <u, J v>| relative to the norms; 0 within a subgradient interval."""
    along = _along(op, inputs, attrs, vs, u)
    got = float(sum([np.sum(gradients[k] * v) for k, v in vs.items()]))
    scale = float(
        sum(
            [
                np.linalg.norm(gradients[k].ravel()) * np.linalg.norm(v.ravel())
                for k, v in vs.items()
            ]
        )
    )
    error = np.zeros(1)
    if op.complex_safe:
        want = complex_step(along)
    else:
        want, error = ridders(along)
    size = max(scale, abs(float(want[0])))
    if not np.isfinite(want[0]) or abs(got - want[0]) <= error[0] + 1e-10 * size:
        return 0.0
    ends = interval(_each(op, inputs, attrs, vs, u), h=1e-3)
    if ends is not None:
        least, most, slack = ends
        if least - slack <= got <= most + slack:
            return 0.0
    return abs(got - float(want[0])) / size if size else 0.0


def _along(
    op: Op, inputs: list[Array], attrs: dict[str, Any], vs: dict[int, Array], u: Array
) -> Callable[[Any], Array]:
    """Return t -> <u, op(inputs moved by t vs)>."""
    each = _each(op, inputs, attrs, vs, u)
    return lambda t: np.asarray(each(t).sum()).reshape(1)


def _each(
    op: Op, inputs: list[Array], attrs: dict[str, Any], vs: dict[int, Array], u: Array
) -> Callable[[Any], Array]:
    """Return t -> u op(inputs moved by t vs), element by element."""

    def each(t: Any) -> Array:
        moved = [x + t * vs[j] if j in vs else x for j, x in enumerate(inputs)]
        return np.asarray(u * op.forward(*moved, **attrs)).ravel()

    return each


def at_kink(subject: Subject, cotangents: Sequence[Array | None]) -> bool:
    """Whether a value inside the tape stands at a point where its op has no derivative.

    What the chain rule gives there need be no subgradient, as of relu(relu(x)) and
    relu(x) - relu(-x) at 0.  One op by itself is judged by its interval.
    """
    nodes = _reached(subject, cotangents)
    if len(nodes) < 2:
        return False
    doubled = [in_double(a) for a in subject.arrays]
    if _decisions(subject, subject.arrays) != _decisions(subject, doubled):
        return True
    return any(_ties(t) or _kinks(t) for t in nodes)


def _decisions(subject: Subject, arrays: Sequence[Array]) -> list[bytes]:
    """Return what every comparison on the tape decides: rounding of float32 may turn one."""
    recorded = subject.record(arrays)
    return [_decision(t) for t in graph.nodes(recorded[0])] if recorded else []


def _decision(t: Any) -> bytes:
    x = [x.data for x in t.inputs]
    name = t.op.name if t.op is not None else ""
    if name in ("maximum", "minimum"):
        decided = np.sign(x[0] - x[1])
    elif name == "max":
        decided = x[0] == x[0].max(axis=t.attrs.get("axis"), keepdims=True)
    elif name == "abs":
        decided = np.sign(x[0])
    else:
        decided = t.data if t.data.dtype.kind == "b" else np.zeros(0)
    return np.asarray(decided, np.int8).tobytes()


def _ties(t: Any) -> bool:
    """Whether a mask that decides what t is compares values that rounding alone tells apart."""
    for mask in t.inputs:
        if mask.data.dtype.kind != "b" or mask.op is None:
            continue
        floats = [x.data for x in mask.inputs if x.data.dtype.kind == "f"]
        if len(floats) == 2:
            a, b = (in_double(x) for x in floats)
            eps = max(np.finfo(x.dtype).eps for x in floats)
            if (np.abs(a - b) <= UNITS * eps * max(1.0, np.abs(a).max(initial=0))).any():
                return True
    return False


def _kinks(t: Any) -> bool:
    """Whether the op of a node has a kink at its inputs."""
    if t.op.linear or t.data.dtype.kind != "f":
        return False
    inputs = [in_double(x.data) for x in t.inputs]
    rng = np.random.default_rng(0)
    u = weights(t.shape, rng)
    return any(
        kink(_along(t.op, inputs, t.attrs, {k: weights(x.shape, rng)}, u)) is not None
        for k, x in enumerate(inputs)
        if x.dtype.kind == "f" and _touched(t.op, k)
    )


def writing_rule(subject: Subject, cotangents: Sequence[Array | None]) -> str:
    """Return which rule on the tape writes to what it is given; empty if none does."""
    seen: set[str] = set()
    for t in _reached(subject, cotangents):
        if t.op.name in seen:
            continue
        seen.add(t.op.name)
        inputs = [np.array(x.data) for x in t.inputs]
        u = np.ones(t.shape, t.dtype)
        y = np.array(t.data)
        watched = [*inputs, u, y]
        before = [a.tobytes() for a in watched]
        rules: list[Callable[..., Any]] = [r for r in t.op.rules if r is not None]
        if t.op.rule_all is not None:
            rules.append(t.op.rule_all)
        for rule in rules:
            with np.errstate(all="ignore"):
                rule(u, y, *inputs, **t.attrs)
            if [a.tobytes() for a in watched] != before:
                return (
                    f"a gradient rule writes in place to what it is given: "
                    f"{t.op.name}{source_of(rule)}"
                )
    return ""


def first_non_finite(subject: Subject, cotangents: Sequence[Array | None]) -> str:
    """Return which rule gave the first gradient that is not finite, in words to append."""
    for t in reversed(_reached(subject, cotangents)):
        inputs = [np.array(x.data) for x in t.inputs]
        with np.errstate(all="ignore"), suppress(Exception):
            for k, g, rule in _apply_rules(t.op, inputs, t.attrs, np.ones(t.shape, t.dtype)):
                if g is not None and inputs[k].dtype.kind in "fc" and not np.isfinite(g).all():
                    where = f" in {t.place}" if t.place else ""
                    return f"; rule  {t.op.name}{source_of(rule)}{where}"
    return ""


def no_slope(
    subject: Subject, k: int, at: tuple[int, ...], cotangents: Sequence[Array | None]
) -> str:
    """Return why the function has no slope by one entry of input k, in words; empty if it has."""
    v: list[Array | None] = [None] * len(subject.arrays)
    unit = np.zeros(subject.arrays[k].shape)
    unit[at] = 1
    v[k] = unit
    along = Slopes(subject, (), (), ()).along(v, [list(cotangents)])
    h = 1e-3 * (abs(float(subject.arrays[k][at])) or 1.0)
    try:
        ends = sides(along, h)
    except Exception:  # what the function raises beside the point says nothing of its gradient
        return ""
    if ends is None:
        return "it has no finite values on one side of it"
    size = max(abs(float(ends[0][0])), abs(float(ends[1][0])))
    if ends[2][0] > 0.1 * size + 1e-8 * abs(float(along(0.0)[0])):
        return "its slope is infinite or has no limit there"
    if size > np.finfo(subject.arrays[k].dtype).max:
        return f"its slope, {size:.1e}, is beyond the numbers of {subject.arrays[k].dtype}"
    return ""


def cuts(subject: Subject) -> list[str]:
    """Return where a graph is cut: nodes that were detached from what they were made from."""
    recorded = subject.record(subject.arrays)
    if recorded is None:
        return []
    found = []
    for t in graph.nodes(recorded[0]):
        if "detached" in t.attrs:
            found.append(f"{t.name or 'a node'} {t.shape}" + (f" in {t.place}" if t.place else ""))
    return found


def source_of(rule: Any) -> str:
    """Return ``  tinygrad_rnn/ops.py:80`` for a rule; empty where it has no source."""
    code = getattr(inspect.unwrap(rule), "__code__", None) if callable(rule) else None
    return f"  {_short(code.co_filename)}:{code.co_firstlineno}" if code is not None else ""


def raising_rule(error: BaseException) -> str:
    """Return where an exception was raised, in words: `` at tinygrad_rnn/ops.py:80``."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {_short(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-2:])
