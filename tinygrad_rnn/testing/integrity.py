"""What holds of every forward and backward before any number is compared."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from .. import graph
from ..arrays import Array
from ..module import Module
from ..tensor import Parameter, Tensor
from . import locate
from .modules import as_subject
from .options import current
from .report import Finding, GradientError, GradReport, Verdict, norm, publish
from .slopes import weights
from .subject import NotATensorError, Pull, Recorded, Subject


def check_vjp(f: Any, *inputs: Any, seed: int | None = None, **call: Any) -> GradReport:
    """Check everything about a backward but its numbers.

    Called twice, forward gives the same bits, and so does backward; neither changes inputs,
    cotangents or parameters; gradients have the shape and dtype of their inputs, are finite and
    share no memory; backward is linear in the cotangents, 0 for 0, and None stands for 0;
    ``.grad`` accumulates; no rule writes to what it is given; the graph is freed without the
    garbage collector.

    Parameters
    ----------
    f : callable, Module or Differentiable
    *inputs : array_like
    seed : int, optional
        Of the cotangents.
    **call
        For a module: state, lengths, and what else its call takes.

    Raises
    ------
    GradientError
        WRONG, or UNRELIABLE where the function itself cannot be checked.

    Examples
    --------
    >>> print(check_vjp(lambda x, y: x * y, [1.0, 2.0], [3.0, 4.0]))
    <lambda>: right, 9 comparisons by integrity
    """
    subject = as_subject(f, inputs, **call)
    report = GradReport(subject.name, method="integrity")
    try:
        with np.errstate(all="ignore"), subject_restored(subject):
            _integrity(subject, report, _seed(seed))
    except GradientError as error:
        error.report = report
        report.notes.append(str(error))
        report.findings.append(_passed("integrity", error.verdict))
        raise
    finally:
        report.ops = tuple(sorted(op.name for op in subject.ops))
        report.evaluations = subject.evaluations
        publish(report)
    return report


def _seed(seed: int | None) -> int:
    return seed if seed is not None else current.seed or 0


def _passed(what: str, verdict: Verdict = Verdict.RIGHT) -> Finding:
    return Finding(what, "", 0.0, 0.0, 0.0, 0.0, "integrity", 0.0, verdict)


@contextmanager
def subject_restored(subject: Subject) -> Iterator[None]:
    """Let a module have its own parameter values again at the end."""
    try:
        yield
    finally:
        subject.restore()


def _integrity(subject: Subject, report: GradReport, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ys = evaluate(subject)
    passed = report.findings
    passed.append(_passed("forward is pure and deterministic"))
    outputs, back = pulled(subject)
    same_outputs(subject, ys, outputs, "with the graph recorded")
    us = [weights(y.shape, rng).astype(y.dtype) for y in ys]
    ws = [weights(y.shape, rng).astype(y.dtype) for y in ys]
    gu = gradients(subject, back, us)
    passed.append(_passed("shape, dtype, finite, no mutation, no shared memory"))
    for k, (g, again) in enumerate(zip(gu, gradients(subject, back, us), strict=True)):
        if g is not None and again is not None and g.tobytes() != again.tobytes():
            fail(f"two backward passes gave different gradients of {subject.inputs[k]}")
    passed.append(_passed("backward is deterministic"))
    _linear(subject, back, us, ws, gu)
    passed.append(_passed("backward is linear in the cotangent"))
    zero = gradients(subject, back, [np.zeros_like(u) for u in us])
    nothing = gradients(subject, back, [None] * len(us))
    for what, found in (("zero", zero), ("absent (None)", nothing)):
        for name, g in zip(subject.inputs, found, strict=True):
            if g is not None and g.any():
                fail(f"a cotangent that is {what} gave a gradient of {name} that is not 0")
    passed.append(_passed("zero and None"))
    _no_state(subject, ys, us, gu)
    passed.append(_passed("nothing is kept between calls"))
    if isinstance(subject, Recorded):
        _accumulates(subject, us, gu)
        passed.append(_passed(".grad accumulates"))
        _is_released(subject)
        passed.append(_passed("the graph is freed"))
        guilty = locate.writing_rule(subject, us)
        if guilty:
            fail(guilty)
        passed.append(_passed("rules write to nothing"))


def fail(message: str, verdict: Verdict = Verdict.WRONG) -> None:
    """Raise the verdict in words."""
    raise GradientError(message, verdict=verdict)


# --- forward ------------------------------------------------------------------------------------


def evaluate(subject: Subject, arrays: Sequence[Array] | None = None) -> tuple[Array, ...]:
    """Return the outputs at the point, after what must hold of them."""
    arrays = subject.arrays if arrays is None else list(arrays)
    if not any(a.dtype.kind in "fc" for a in arrays):
        kinds = ", ".join(sorted({str(a.dtype) for a in arrays})) or "none"
        fail(
            f"{subject.name}: nothing to check: no input requires a gradient (dtypes: {kinds}); "
            f"pass floating arrays",
            Verdict.UNRELIABLE,
        )
    for name, a in zip(subject.inputs, arrays, strict=True):
        if a.dtype.kind == "c":
            fail(
                f"{subject.name}: input {name} is {a.dtype}; only real inputs are checked: pass "
                f"the real and the imaginary part, and put them together in the function",
                Verdict.UNRELIABLE,
            )
        if a.dtype.kind in "fc" and not np.isfinite(a).all():
            fail(f"{subject.name}: input {name} is not finite", Verdict.UNRELIABLE)
    before = [a.tobytes() for a in arrays]
    ys = _forward(subject, arrays)
    _unchanged(subject, arrays, before, "forward")
    again = _forward(subject, arrays)
    same_outputs(subject, ys, again, "again")
    if not any(y.dtype.kind in "fc" for y in ys):
        kinds = ", ".join([str(y.dtype) for y in ys]) or "none"
        fail(
            f"{subject.name}: nothing to check: its outputs are no floating numbers ({kinds})",
            Verdict.UNRELIABLE,
        )
    for j, y in enumerate(ys):
        if y.dtype.kind in "fc" and not np.isfinite(y).all():
            at = [int(i) for i in np.argwhere(~np.isfinite(y))[0]]
            fail(
                f"{subject.name} returned {y[tuple(at)]} in output {j} at {at}: there is no "
                f"derivative to check at this point",
                Verdict.UNRELIABLE,
            )
    _same_precision(subject, arrays, ys)
    return ys


def _forward(subject: Subject, arrays: Sequence[Array]) -> tuple[Array, ...]:
    try:
        with np.errstate(all="ignore"):
            return subject.forward(*arrays)
    except NotATensorError as error:
        raise GradientError(str(error), verdict=Verdict.UNRELIABLE) from None
    except Exception as error:
        shapes = ", ".join(
            [f"{n} {a.shape} {a.dtype}" for n, a in zip(subject.inputs, arrays, strict=True)]
        )
        error.add_note(f"raised by {subject.name} itself, called forward with {shapes}")
        raise


def same_outputs(subject: Subject, ys: Sequence[Array], again: Sequence[Array], how: str) -> None:
    """Raise unless a second call gave the same bits."""
    if len(ys) != len(again):
        fail(f"{subject.name} returned {len(ys)} outputs, and {len(again)} {how}")
    for j, (a, b) in enumerate(zip(ys, again, strict=True)):
        if a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes():
            continue
        if a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"):
            continue
        fail(
            f"{subject.name} is not deterministic: called {how} with the same inputs, output {j} "
            f"is {_shown(b)}, before it was {_shown(a)}{_why(subject)}",
            Verdict.UNRELIABLE,
        )


def _shown(a: Array) -> str:
    return f"{a.ravel()[0]!r}, ..." if a.size else f"of shape {a.shape}"


def _why(subject: Subject) -> str:
    """Return what may make a function random: parameters made inside, dropout."""
    module = getattr(subject, "module", None)
    if isinstance(module, Module):
        names = [
            name or type(m).__name__
            for name, m in module.named_modules()
            if m.training and (getattr(m, "dropout", False) or type(m).__name__ == "Dropout")
        ]
        return f"; dropout is on in {', '.join(names)}: call .eval() first" if names else ""
    made = built_inside(subject)
    if made:
        return (
            f"; it builds its parameters inside ({', '.join(made[:3])}): build the module once, "
            f"outside of the function"
        )
    return "; draw its random numbers outside, and pass them in"


def built_inside(subject: Subject) -> list[str]:
    """Return the Parameters that a function made during its own call."""
    recorded = subject.record(subject.arrays)
    if recorded is None:
        return []
    outs, leaves = recorded
    first = min([t.order for t in leaves], default=0)
    known = {t.order for t in leaves}
    return [
        f"{t.name or 'a Parameter'} {t.shape}"
        for t in graph.nodes(outs)
        if isinstance(t, Parameter) and t.order > first and t.order not in known
    ]


def _unchanged(
    subject: Subject, arrays: Sequence[Array], before: Sequence[bytes], what: str
) -> None:
    for name, a, old in zip(subject.inputs, arrays, before, strict=True):
        if a.tobytes() != old:
            with suppress(ValueError):
                a[...] = np.frombuffer(old, a.dtype).reshape(a.shape)  # it is the caller's
            fail(f"{what} of {subject.name} changed its input {name} in place")


def _same_precision(subject: Subject, arrays: Sequence[Array], ys: Sequence[Array]) -> None:
    own = {a.dtype for a in arrays if a.dtype.kind == "f"}
    if len(own) != 1:
        return
    (dtype,) = own
    for j, y in enumerate(ys):
        if y.dtype.kind == "f" and y.dtype != dtype and not _converts(subject):
            fail(f"{subject.name}: output {j} is {y.dtype}, its inputs are {dtype}")


def _converts(subject: Subject) -> bool:
    """Whether an op on the tape converts on purpose."""
    recorded = subject.record(subject.arrays)
    return recorded is not None and any(
        t.op is not None and t.op.name == "astype" for t in graph.nodes(recorded[0])
    )


# --- backward -----------------------------------------------------------------------------------


def pulled(subject: Subject) -> tuple[tuple[Array, ...], Pull]:
    """Return the outputs and the pullback at the point."""
    try:
        with np.errstate(all="ignore"):
            return subject.pull(subject.arrays)
    except GradientError:
        raise
    except Exception as error:
        if not subject.name.startswith("backward of"):
            raise
        raise GradientError(
            f"{subject.name} cannot be recorded, for a gradient of the gradient: a rule uses more "
            f"than operators and primitives ({type(error).__name__}: {error}"
            f"{locate.raising_rule(error)})"
        ) from error


def gradients(
    subject: Subject, back: Pull, cotangents: Sequence[Array | None]
) -> list[Array | None]:
    """Return the gradients for these cotangents, after what must hold of them."""
    arrays = subject.arrays
    before = [a.tobytes() for a in arrays]
    given = [None if u is None else u.tobytes() for u in cotangents]
    try:
        with np.errstate(all="ignore"):
            found = back(cotangents)
    except GradientError:
        raise
    except Exception as error:
        rule = locate.raising_rule(error)
        if any(u is None for u in cotangents):
            rule += "; a cotangent of None, which stands for zeros, was among those it was given"
        raise GradientError(
            f"backward of {subject.name} raised {type(error).__name__}: {error}{rule}"
        ) from error
    _unchanged(subject, arrays, before, "backward")
    for j, (u, old) in enumerate(zip(cotangents, given, strict=True)):
        if u is not None and u.tobytes() != old:
            fail(f"backward of {subject.name} changed the cotangent of output {j} in place")
    if len(found) != len(arrays):
        fail(f"{subject.name}: backward gave {len(found)} gradients for {len(arrays)} inputs")
    result: list[Array | None] = []
    for name, a, g in zip(subject.inputs, arrays, found, strict=True):
        if g is None or a.dtype.kind not in "fc":
            result.append(None if a.dtype.kind not in "fc" else np.zeros_like(a))
            continue
        g = np.asarray(g)
        if g.shape != a.shape:
            fail(
                f"{subject.name}: the gradient of {name} has shape {g.shape}, {name} has "
                f"{a.shape}" + _about_broadcasting(g, a)
            )
        if g.dtype != a.dtype:
            fail(f"{subject.name}: the gradient of {name} is {g.dtype}, {name} is {a.dtype}")
        if not np.isfinite(g).all():
            at = [int(i) for i in np.argwhere(~np.isfinite(g))[0]]
            why = locate.no_slope(subject, len(result), tuple(at), cotangents)
            if why:
                fail(
                    f"{subject.name} is not differentiable by {name} at {at} at this point: {why}; "
                    f"backward gave {g[tuple(at)]}",
                    Verdict.UNRELIABLE,
                )
            origin = locate.first_non_finite(subject, cotangents)
            fail(f"{subject.name}: backward gave {g[tuple(at)]} for {name} at {at}{origin}")
        result.append(g)
    _share_nothing(subject, result, cotangents)
    return result


def _about_broadcasting(g: Array, a: Array) -> str:
    try:
        fits = np.broadcast_shapes(g.shape, a.shape) == g.shape
    except ValueError:
        fits = False
    return ": it is not summed over the axes that were broadcast" if fits else ""


def _share_nothing(
    subject: Subject, found: Sequence[Array | None], cotangents: Sequence[Array | None]
) -> None:
    named = list(zip(subject.inputs, found, strict=True))
    others = [(f"the input {n}", a) for n, a in zip(subject.inputs, subject.arrays, strict=True)]
    others += [(f"the cotangent of output {j}", u) for j, u in enumerate(cotangents)]  # type: ignore[misc]
    for k, (name, g) in enumerate(named):
        if g is None:
            continue
        rest = [(f"the gradient of {n}", h) for n, h in named[:k]]
        for what, other in [*others, *rest]:
            if other is not None and np.may_share_memory(g, other) and np.shares_memory(g, other):
                fail(f"{subject.name}: the gradient of {name} shares memory with {what}")


def _linear(
    subject: Subject,
    back: Pull,
    us: Sequence[Array],
    ws: Sequence[Array],
    gu: Sequence[Array | None],
) -> None:
    """V(2 u - 3 w) = 2 V(u) - 3 V(w)."""
    gw = gradients(subject, back, ws)
    mixed = gradients(
        subject, back, [(2 * u - 3 * w).astype(u.dtype) for u, w in zip(us, ws, strict=True)]
    )
    for name, m, a, b in zip(subject.inputs, mixed, gu, gw, strict=True):
        if m is None or a is None or b is None:
            continue
        rtol = 1e-9 if a.dtype.itemsize >= 8 else 4096 * float(np.finfo(a.dtype).eps)
        if norm(m - (2 * a - 3 * b)) > rtol * (2 * norm(a) + 3 * norm(b)):
            fail(
                f"backward of {subject.name} is not linear in the cotangent: the gradient of "
                f"{name} for 2 u - 3 w is not 2 (that for u) - 3 (that for w)"
            )


def _no_state(
    subject: Subject, ys: Sequence[Array], us: Sequence[Array], gu: Sequence[Array | None]
) -> None:
    """Run at another point in between: the first point must give what it gave."""
    elsewhere = [a * 0.5 if a.dtype.kind in "fc" else a for a in subject.arrays]
    _, before = pulled(subject)  # its backward runs after a forward elsewhere
    try:
        with np.errstate(all="ignore"):
            subject.pull(elsewhere)[1](us)
    except Exception:  # another point may lie outside of the domain: nothing is learned from it
        return
    _same_gradients(subject, before, us, gu)
    same_outputs(subject, ys, _forward(subject, subject.arrays), "after a call elsewhere")
    _same_gradients(subject, pulled(subject)[1], us, gu)


def _same_gradients(
    subject: Subject, back: Pull, us: Sequence[Array], gu: Sequence[Array | None]
) -> None:
    for name, g, h in zip(subject.inputs, gu, gradients(subject, back, us), strict=True):
        if g is not None and h is not None and g.tobytes() != h.tobytes():
            fail(
                f"{subject.name} keeps something between calls: after a call elsewhere, the "
                f"gradient of {name} is another one"
            )


def _accumulates(subject: Recorded, us: Sequence[Array], gu: Sequence[Array | None]) -> None:
    """Two backward passes leave twice the gradient in ``.grad``."""
    leaves, outs = subject.recorded(subject.arrays)
    kept = [t.grad for t in leaves]
    try:
        for t in leaves:
            t.grad = None
        once: list[Array | None] = []
        for _ in range(2):
            for y, u in zip(outs, us, strict=True):
                if y.requires_grad:
                    y.backward(u)
            once = once or [None if t.grad is None else t.grad.copy() for t in leaves]
        for name, t, first, g in zip(subject.inputs, leaves, once, gu, strict=True):
            if t.grad is None or first is None:
                if g is not None and g.any():
                    fail(f"backward() left no .grad at {name}, but grad() gives one")
                continue
            rtol = 1e-9 if first.dtype.itemsize >= 8 else 4096 * float(np.finfo(first.dtype).eps)
            size = norm(first)
            if norm(t.grad - 2 * first) > rtol * size:
                fail(f"{subject.name}: .grad of {name} is not twice the gradient after two passes")
            if g is not None and norm(first - g) > rtol * size:
                fail(f"{subject.name}: .grad of {name} is not what grad() gives")
    finally:
        for t, g in zip(leaves, kept, strict=True):
            t.grad = g


def _is_released(subject: Recorded) -> None:
    """Drop the outputs: their nodes must be gone without the garbage collector."""
    running = gc.isenabled()
    gc.disable()
    try:
        leaves, outs = subject.recorded(subject.arrays)
        known = {t.order for t in leaves}
        dead = [
            weakref.ref(t) for t in graph.nodes(outs) if t.op is not None and t.order not in known
        ]
        del outs, leaves
        alive = [t for t in [w() for w in dead] if t is not None]
        if alive:
            fail(
                f"{subject.name}: {len(alive)} of {len(dead)} nodes outlive the result: something "
                f"holds {_node(alive[-1])}"
            )
    finally:
        if running:
            gc.enable()


def _node(t: Tensor) -> str:
    return f"the result {t.shape} of {t.op.name if t.op else 'nothing'}"
