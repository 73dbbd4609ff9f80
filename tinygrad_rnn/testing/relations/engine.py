"""Relations 1 to 14: what holds for every function of Tensors, and for single structures.

The general ones take ``(f, *inputs)``: a function of Tensors, which returns one Tensor or a
tuple of them, and its arrays.  Called alone they run over a written set of functions.
"""

from __future__ import annotations

import functools
import gc
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ... import functional as F
from ... import graph, ops
from ...arrays import Array
from ...errors import DtypeError
from ...scope import no_grad
from ...tensor import Tensor
from ...transforms import hvp
from ..configs import grid
from .base import (
    BIT,
    Claim,
    Claims,
    Fact,
    Relation,
    Tape,
    each,
    listed,
    pull,
    relation,
    slope,
    sums_equal,
    tape,
    weights,
)

Function = Callable[..., Any]


def _step(x: Any, h: Any, c: Any, W: Any, U: Any, b: Any) -> Any:
    i, f, g, o = F.split(x @ W + h @ U + b, 4)
    c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
    return ops.sigmoid(o) * ops.tanh(c), c


def _indexed(x: Any, y: Any) -> Any:
    rows = ops.take(x, np.array([0, 2, 2, 1]))
    return ops.concat(x[1:], x[[0, 0, -1]] * y, rows[::-1], axis=0)


def _smooth(x: Any, y: Any) -> Any:
    return ops.exp(x / 2) * ops.sqrt(y) + ops.log(y) / (1 + x * x) - ops.pow(y, 1.5)


def _kinked(x: Any, y: Any) -> Any:
    return (
        ops.maximum(x * y, 0.0) + F.relu(x) + abs(x) * ops.where(y > x, y, 2.0) + ops.minimum(x, y)
    )


def _reduced(x: Any) -> Any:
    return F.softmax(x) + x.sum(axis=0) * x.max(axis=1, keepdims=True), x.mean()


def _unrolled(x: Any, W: Any) -> Any:
    h, out = x[0], []
    for t in range(3):
        h = ops.tanh(h @ W + x[t])
        out.append(h)
    return ops.stack(*out)


def _halves(x: Any) -> Any:
    b, a = ops.part(x, axis=1, start=2, stop=4), ops.part(x, axis=1, start=0, stop=2)
    return a * a * b


FUNCTIONS: dict[str, tuple[Function, tuple[Array, ...]]] = {
    "LSTM step": (_step, tuple([grid(s, k) for k, s in enumerate(
        [(2, 3), (2, 2), (2, 2), (3, 8), (2, 8), (8,)])])),
    "unrolled": (_unrolled, (grid((3, 2, 2), 10), grid((2, 2), 11))),
    "indexed": (_indexed, (grid((3, 2), 20), grid((2,), 21))),
    "smooth": (_smooth, (grid((2, 3), 30), np.abs(grid((3,), 31)) + 0.5)),
    "kinked": (_kinked, (grid((2, 3), 40), grid((3,), 41) + 1 / 16)),
    "reduced": (_reduced, (np.arange(6.0)[::-1].reshape(2, 3) / 4 - 0.5,)),
    "sum": (lambda x, y: x + y, (grid((2, 3), 60), grid((3,), 61))),
    "reshaped": (lambda x: x.T.reshape((3, 1, 2)).transpose(2, 0, 1) * 3 - x.reshape((2, 3, 1)),
                 (grid((2, 3), 50),)),
    "parts read backwards": (_halves, (grid((2, 4), 60),)),
    "a view added": (lambda x, y: x.T + y, (grid((2, 3), 61), grid((3, 2), 62))),
}  # fmt: skip


def _general(number: int) -> Callable[[Callable[..., Claims]], Relation]:
    """Enter a relation of any function; called without one, it runs over ``FUNCTIONS``."""

    def enter(run: Callable[..., Claims]) -> Relation:
        @functools.wraps(run)
        def over(f: Function | None = None, *inputs: Any, **settings: Any) -> Claims:
            if f is not None:
                yield from run(f, *inputs, **settings)
                return
            for name, (function, arrays) in FUNCTIONS.items():
                yield from _called(name, run(function, *arrays, **settings))

        return relation(number, "engine")(over)

    return enter


def _called(name: str, claims: Claims) -> Claims:
    for claim in claims:
        if isinstance(claim, Claim):
            yield claim._replace(what=f"{name}: {claim.what}")
        else:
            yield claim._replace(text=f"{name}: {claim.text}")


# --- the rules -------------------------------------------------------------------------------


@_general(1)
def adjoint(f: Function, *inputs: Any) -> Claims:
    """Claim <u, J v> = <V(u), v> for a random direction v in each input.

    J v is a complex step, or Ridders' extrapolation where an op is not analytic.

    Examples
    --------
    >>> adjoint(lambda x, W: ops.tanh(x @ W), np.ones((2, 3)), np.eye(3)).verdict.value
    'right'
    """
    taped = tape(f, inputs)
    us = weights(taped.ys)
    arrays = [x.data for x in taped.xs]
    rng = np.random.default_rng(3)
    floating = [k for k, x in enumerate(taped.xs) if x.requires_grad]
    for k, g in zip(floating, taped.pull(us), strict=True):
        v = rng.uniform(-1, 1, g.shape)

        def along(t: Any, k: int = k, v: Array = v) -> Any:
            moved = [a + t * v if i == k else a for i, a in enumerate(arrays)]
            ys = listed(f(*[Tensor(a) for a in moved]))
            return sum([np.sum(u * y.data) for u, y in zip(us, ys, strict=True)])

        want, error = slope(along, taped.ys)
        # both sides raised by the scale, so that it is what the difference is relative to
        scale = float(np.linalg.norm(g) * np.linalg.norm(v))
        got = float(np.sum(g * v))
        rtol = 1e-9 + 10 * error / (scale or 1.0)
        yield Fact(
            abs(got - want) <= rtol * max(scale, abs(want)),
            f"<V(u), v> at input {k} is {got!r}, but <u, J v> is {want!r}",
        )


@_general(2)
def linearity(f: Function, *inputs: Any) -> Claims:
    """Claim V(a u + b w) = a V(u) + b V(w), V(0) = 0 to the bit, and V(None) = V(0).

    Examples
    --------
    >>> linearity(ops.tanh, np.ones(3)).verdict.value
    'right'
    """
    taped = tape(f, inputs)
    us, ws = weights(taped.ys, 0), weights(taped.ys, 1)
    both = taped.pull([2.0 * u - 3.0 * w for u, w in zip(us, ws, strict=True)])
    apart = [2.0 * a - 3.0 * b for a, b in zip(taped.pull(us), taped.pull(ws), strict=True)]
    yield from each("V(2u - 3w) against 2V(u) - 3V(w)", both, apart)
    nothing = taped.pull([np.zeros_like(u) for u in us])
    yield from each("V(0)", nothing, [np.zeros_like(g) for g in nothing], BIT)
    for k in range(len(us) if len(us) > 1 else 0):
        zero = [u if i == k else np.zeros_like(u) for i, u in enumerate(us)]
        none = [u if i == k else None for i, u in enumerate(us)]
        yield from each(f"V(u of output {k}, else None)", taped.pull(none), taped.pull(zero), BIT)


def _curve(y: Any) -> Any:
    return ops.tanh(y) * 2 + y * y


@_general(3)
def chain(f: Function, *inputs: Any, g: Function = _curve) -> Claims:
    """Claim V of g(f(x)) = V_f(V_g(u)); and that what undoes itself changes no bit.

    Examples
    --------
    >>> chain(ops.exp, np.ones(3), g=ops.sigmoid).verdict.value
    'right'
    """
    taped = tape(f, inputs)
    through, last = tape(lambda *xs: [g(y) for y in listed(f(*xs))], inputs), []
    us = weights(through.ys)
    for y, u in zip(taped.ys, us, strict=True):
        outer = tape(g, [y.data])
        last += outer.pull([u])
    yield from each("V of g(f(x)) against V_f V_g", through.pull(us), taped.pull(last))
    want = taped.pull(us)
    for name, undone in (
        ("-(-x)", lambda x: ops.neg(ops.neg(x))),
        ("x.T.T", lambda x: x.T.T),
        ("a reshape and back", lambda x: x.reshape((1, x.size)).reshape(x.shape)),
        ("x[None][0]", lambda x: x[None][0]),
    ):
        before = tape(
            lambda *xs, w=undone: f(*[w(x) if x.requires_grad else x for x in xs]), inputs
        )
        after = tape(lambda *xs, w=undone: [w(y) for y in listed(f(*xs))], inputs)
        yield from each(f"V after {name} of the inputs", before.pull(us), want, BIT)
        yield from each(f"V before {name} of the outputs", after.pull(us), want, BIT)


@_general(4)
def fan_out(f: Function, *inputs: Any, g: Function | None = None) -> Claims:
    """Claim that f(x) and g(x) give V_f + V_g, and k uses of x the sum over k copies of it.

    Without `g` it is f of half the inputs.

    Examples
    --------
    >>> fan_out(ops.tanh, np.ones(3), g=ops.exp).verdict.value
    'right'
    """

    def half(*xs: Any) -> Any:
        return f(*[x * 0.5 if x.requires_grad else x for x in xs])

    other = g or half
    one, two = tape(f, inputs), tape(other, inputs)
    us, ws = weights(one.ys, 0), weights(two.ys, 1)
    both = tape(lambda *xs: [*listed(f(*xs)), *listed(other(*xs))], inputs)
    apart = [a + b for a, b in zip(one.pull(us), two.pull(ws), strict=True)]
    yield from each("V of f and g together", both.pull([*us, *ws]), apart)
    shared = tape(lambda *xs: [y for _ in range(3) for y in listed(f(*xs))], inputs)
    seeds = [u * k for k in (1.0, 2.0, -4.0) for u in us]
    copies = [one.pull([u * k for u in us]) for k in (1.0, 2.0, -4.0)]
    sums = [sum(gs) for gs in zip(*copies, strict=True)]
    yield from each("V of three uses of x", shared.pull(seeds), sums)


@_general(6)
def shapes_and_dtypes(f: Function, *inputs: Any) -> Claims:
    """Claim that a gradient has the shape and dtype of its input, and that constants have none.

    Constants are integers, booleans, detached Tensors, and everything under ``no_grad``.

    Examples
    --------
    >>> shapes_and_dtypes(ops.tanh, np.ones((1, 3))).verdict.value
    'right'
    """
    for dtype in (np.float64, np.float32):
        try:
            taped = tape(f, inputs, dtype)
        except DtypeError:
            if dtype is np.float64:
                raise
            continue  # the function holds constants of the other type
        us = weights(taped.ys)
        for k, (x, g) in enumerate(zip(taped.leaves, taped.pull(us), strict=True)):
            yield Fact(
                type(g) is np.ndarray and (g.shape, g.dtype) == (x.shape, x.dtype),
                f"the gradient at input {k} is {g.dtype} {g.shape}, the input {x.dtype} {x.shape}",
            )
        for y, u in zip(taped.ys, us, strict=True):
            if y.requires_grad:
                y.backward(u)
        for k, x in enumerate(taped.xs):
            yield Fact(x.requires_grad or x.grad is None, f"input {k} is {x.dtype} and got a .grad")
    fixed = tape(f, inputs)
    if len(fixed.leaves) > 1:
        first = fixed.leaves[0]
        fixed.ys[:] = listed(f(*[x.detach() if x is first else x for x in fixed.xs]))
        for y in fixed.ys:
            if y.requires_grad:
                y.backward(np.ones(y.shape))
        yield Fact(first.grad is None, "the first input was detached and got a .grad")
    with no_grad():
        quiet = listed(f(*fixed.xs))
    yield Fact(
        not any(
            y.requires_grad or y.op is not None for y in quiet if not any(y is x for x in fixed.xs)
        ),
        "an output that was made under no_grad() requires a gradient",
    )


@_general(10)
def symmetry(f: Function, *inputs: Any) -> Claims:
    """Claim <v, H w> = <w, H v> for the Hessian H of <u, f>, over all inputs jointly.

    And that the gradient of x'Ax / 2 is (A + A')x / 2.

    Examples
    --------
    >>> symmetry(lambda x, y: ops.tanh(x) * y, np.ones(3), np.ones(3)).verdict.value
    'right'
    """
    taped = tape(f, inputs)
    us, rng = weights(taped.ys), np.random.default_rng(10)
    arrays = [x.data for x in taped.leaves]

    def loss(*leaves: Any) -> Any:
        given = iter(leaves)
        ys = listed(f(*[next(given) if x.requires_grad else x for x in taped.xs]))
        return sum([(y * u).sum() for y, u in zip(ys, us, strict=True)], Tensor(0.0))

    v, w = ([rng.standard_normal(a.shape) for a in arrays] for _ in range(2))
    Hv, Hw = hvp(loss, arrays, v), hvp(loss, arrays, w)
    yield from sums_equal("<v, H w> against <w, H v>", [a * b for a, b in zip(v, Hw, strict=True)],
                           [a * b for a, b in zip(w, Hv, strict=True)])  # fmt: skip
    A, x = rng.standard_normal((4, 4)), rng.standard_normal(4)
    quadratic = tape(lambda t: (t @ A @ t) / 2, [x])
    yield Claim("gradient of x'Ax / 2", quadratic.pull([np.array(1.0)])[0], (A + A.T) @ x / 2)


# --- the sweep -----------------------------------------------------------------------------------


@_general(11)
def building_order(f: Function, *inputs: Any) -> Claims:
    """Claim that a ``.grad`` knows no history: order, unused branches, one backward or two.

    Two parts in either order agree to the bit, one summed loss with two losses to 1e-12.

    Examples
    --------
    >>> building_order(ops.tanh, np.ones(3)).verdict.value
    'right'
    """
    us = weights(tape(f, inputs).ys)

    def built(second_first: bool, unused: bool, apart: bool) -> list[Array]:
        taped = tape(lambda *xs: xs, inputs)

        def part(k: int) -> Tensor:
            ys = listed(f(*[x * (1.0, 0.5)[k] if x.requires_grad else x for x in taped.xs]))
            return sum([(y * u).sum() for y, u in zip(ys, us, strict=True)], Tensor(0.0))

        if second_first:
            b, a = part(1), part(0)
        else:
            a, b = part(0), part(1)
        if unused:
            rest = (a * b + part(1)) * 2  # deleted before backward
            del rest
        if apart:
            for loss in (a, b):
                if loss.requires_grad:
                    loss.backward()
        elif a.requires_grad:
            (a + b).backward()
        return [np.zeros(x.shape) if x.grad is None else x.grad for x in taped.leaves]

    want = built(False, False, False)
    yield from each(".grad with the parts built in the other order", built(True, False, False),
                     want, BIT)  # fmt: skip
    yield from each(".grad beside unused branches", built(False, True, False), want, BIT)
    yield from each(".grad of two losses", built(False, False, True), want, 1e-12)


@_general(12)
def accumulation(f: Function, *inputs: Any) -> Claims:
    """Claim that backward twice gives 2g, after zeroing g, and writes into nothing else.

    Inputs and cotangents keep every bit, and gradients share memory with nothing.

    Examples
    --------
    >>> accumulation(ops.tanh, np.ones(3)).verdict.value
    'right'
    """
    taped = tape(f, inputs)
    us = weights(taped.ys)
    given = [*[x.data for x in taped.xs], *us, *[y.data for y in taped.ys]]
    before = [a.tobytes() for a in given]
    want = taped.pull(us)

    def backward() -> list[Array]:
        for y, u in zip(taped.ys, us, strict=True):
            if y.requires_grad:
                y.backward(u)
        return [np.zeros(x.shape) if x.grad is None else x.grad for x in taped.leaves]

    once = [g.copy() for g in backward()]
    yield from each(".grad against V", once, want, 1e-12)
    yield from each(".grad after a second backward", backward(), [2 * g for g in once], 1e-12)
    for x in taped.leaves:
        x.grad = None
    last = backward()
    yield from each(".grad after zeroing", last, once, BIT)
    for k, (a, old) in enumerate(zip(given, before, strict=True)):
        kinds = ["input"] * len(taped.xs) + ["cotangent"] * len(us) + ["output"] * len(us)
        yield Fact(a.tobytes() == old, f"backward changed the {kinds[k]} number {k}")
    for name, gs in (("grad", want), (".grad", last)):
        for k, g in enumerate(gs):
            others = [*given, *gs[:k]]
            yield Fact(
                not any(np.shares_memory(g, a) for a in others),
                f"the gradient at input {k}, by {name}, shares memory with an input, an output, "
                f"a cotangent or another gradient",
            )


def _layouts(a: Array) -> Iterator[tuple[str, Array]]:
    """Yield the same numbers in other layouts."""
    yield "in Fortran's order", np.array(a, order="F")
    wide = np.repeat(a[..., None], 2, axis=-1)
    yield "with strides", wide[..., 0]
    back: Any = (..., *(slice(None, None, -1),) * a.ndim)
    yield "with negative strides", np.array(a[back], order="C")[back]
    fixed = a.copy()
    fixed.flags.writeable = False
    yield "read-only", fixed


@_general(13)
def layout(f: Function, *inputs: Any) -> Claims:
    """Claim that values and gradients do not depend on how the inputs lie in memory.

    C, Fortran, strided, negative, zero strides, and read-only arrays.

    Examples
    --------
    >>> layout(ops.tanh, np.ones((2, 3))).verdict.value
    'right'
    """

    def both(arrays: Sequence[Array]) -> tuple[list[Array], list[Any]]:
        xs = [Tensor(a, requires_grad=a.dtype.kind in "fc") for a in arrays]
        taped = Tape(listed(f(*xs)), xs, [x for x in xs if x.requires_grad])
        return [y.data for y in taped.ys], taped.pull(weights(taped.ys))

    plain = [np.array(a, order="C") for a in inputs]
    ys, gs = both(plain)
    for kind, moved in zip(
        ("in Fortran's order", "with strides", "with negative strides", "read-only"),
        zip(*[_layouts(a) for a in plain], strict=True), strict=True,
    ):  # fmt: skip
        values, gradients = both([a for _, a in moved])
        for k, (got, want) in enumerate(zip(values, ys, strict=True)):
            yield Claim(f"output {k} of inputs {kind}", got, want)
        yield from each(f"V of inputs {kind}", gradients, gs)
    still = [
        np.broadcast_to(a[:1], a.shape) if a.ndim and a.dtype.kind == "f" else a for a in plain
    ]
    ys, gs = both([a.copy() for a in still])
    values, gradients = both(still)
    for k, (got, want) in enumerate(zip(values, ys, strict=True)):
        yield Claim(f"output {k} of inputs with a stride of 0", got, want)
    yield from each("V of inputs with a stride of 0", gradients, gs)


@_general(14)
def release(f: Function, *inputs: Any) -> Claims:
    """Claim that a dropped result frees its tape at once, and that depth costs no recursion.

    Examples
    --------
    >>> release(ops.tanh, np.ones(3)).verdict.value
    'right'
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        taped = tape(f, inputs)
        taped.pull(weights(taped.ys))
        first = min([x.order for x in taped.xs])  # what the function closes over is older
        nodes = [weakref.ref(t) for t in graph.nodes(taped.ys) if t.order > first]
        del taped
        alive = [t for t in [r() for r in nodes] if t is not None and t.op is not None]
        names = sorted({t.op.name for t in alive if t.op is not None})
    finally:
        if enabled:
            gc.enable()
    yield Fact(not alive, f"{len(alive)} nodes outlive the outputs: {', '.join(names)}")
    x = Tensor(np.ones(1), requires_grad=True)
    y, depth = x, sys.getrecursionlimit() + 100
    for _ in range(depth):
        y = -y
    (g,) = pull([y], [x], [np.ones(1)])
    yield Claim(f"the gradient through a chain of {depth} nodes", g, [(-1.0) ** depth], BIT)
    del y
