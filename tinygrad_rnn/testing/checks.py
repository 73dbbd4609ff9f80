"""Checks of gradients against references that know their own error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import Array
from ..module import Module
from . import integrity
from .compare import Check, Settings
from .estimate import kink
from .modules import as_array, as_subject
from .options import current
from .report import Finding, GradientError, GradReport, Verdict, publish
from .slopes import weights
from .subject import Subject


def check_grad(
    f: Any,
    *inputs: Any,
    wrt: int | Sequence[int] | None = None,
    outputs: str = "each+all",
    blocks: str = "auto",
    method: str | None = None,
    order: int = 1,
    dtype: npt.DTypeLike | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    n_dirs: int = 1,
    seed: int | None = None,
    kinks: str = "interval",
    max_evals: int | None = None,
    **call: Any,
) -> GradReport:
    """Check the gradients of a function, block by block, relative to each block.

    For a random cotangent u of each block of the outputs and a random direction v of each block
    of the inputs, <V(u), v> = <u, J v>, where V(u) is what backward gives and J v a complex step
    (Squire and Trapp 1998), trusted where Ridders' differences (1982) agree.  A difference is an
    error where neither a kink (the subgradient interval), nor the rounding of this very tape,
    nor the error of the reference explains it.

    Parameters
    ----------
    f : callable, Op, Module or Differentiable
        Of Tensors; or an object with ``forward(*arrays)`` and ``vjp(arrays, cotangents)``.
    *inputs : array_like
    wrt : int or sequence of int, optional
        The inputs to differentiate by: all that are floating.
    outputs : {"each+all", "each", "all"}
        Which cotangents: of each block of the outputs, of all together, or both.
    blocks : {"auto", "one", "full"}
        Blocks of the inputs: one input, or one step of it, or one gate of a parameter; all as
        one; every entry.
    method : {"auto", "complex", "ridders", "exact"}, optional
        The reference; ``"exact"`` is a difference of step 1, for what is linear.
    order : {1, 2}
        2 checks the gradient of the gradient too, by the inputs and by the cotangents.
    dtype : dtype, optional
        Convert floating inputs first.  A float32 function is compared with a reference in double
        precision at the same point.
    rtol : float, optional
        Relative to |V(u)| |v| of a block: 1e-10 in float64, 64 units of rounding in float32.
    atol : float
    n_dirs : int
        Directions for each block.
    seed : int, optional
    kinks : {"interval", "error", "reject"}
        At a point without derivative: the slope must lie between those of the two sides; the
        verdict is UNRELIABLE; hypothesis draws another point.
    max_evals : int, optional
        Merge the blocks of each input where more evaluations were needed.

    Returns
    -------
    GradReport

    Raises
    ------
    GradientError
        WRONG, with the block, the numbers, a guess and the guilty rule; or UNRELIABLE, where the
        function (not deterministic, NaN, nothing to differentiate) or the reference is at fault.
    ValueError
        For a setting that does not exist.

    Examples
    --------
    >>> from tinygrad_rnn import ops
    >>> report = check_grad(lambda x, W: ops.tanh(x @ W), np.eye(2), np.ones((2, 3)), order=2)
    >>> str(report.verdict), len(report.findings), report.method
    ('right', 8, 'complex step')
    """
    settings = Settings(
        outputs=outputs, blocks=blocks, method=method or current.method or "auto", order=order,
        rtol=rtol, atol=atol, n_dirs=n_dirs, kinks=kinks, max_evals=max_evals,
        seed=seed if seed is not None else current.seed or 0,
    )  # fmt: skip
    settings.validate()
    if dtype is not None:
        if isinstance(f, Module):
            raise ValueError("check_grad: a module has its own dtype: module.astype(dtype)")
        inputs = tuple(_converted(x, np.dtype(dtype)) for x in inputs)
    subject = as_subject(f, inputs, **call)
    report = GradReport(subject.name)
    try:
        with np.errstate(all="ignore"), integrity.subject_restored(subject):
            Check(subject, settings, _wrt(wrt, subject), report).run()
    except GradientError as error:
        error.report = report
        if report.verdict is Verdict.RIGHT:  # it failed before any number was compared
            report.findings.append(
                Finding("", "", 0.0, 0.0, 0.0, 0.0, report.method, 0.0, error.verdict, str(error))
            )
        raise
    finally:
        report.evaluations = subject.evaluations
        report.ops = tuple(sorted({*report.ops, *[op.name for op in subject.ops]}))
        publish(report)
    return report


def check_module(
    module: Module, *inputs: Any, state: Any = None, lengths: Any = None, **settings: Any
) -> GradReport:
    """Check the gradients of a module by every parameter, input step and initial state.

    Outputs are every step of y and every final state; blocks are the gates of a parameter, the
    steps of x, the layers of a state.  Without `state`, a recurrent layer or a cell is
    passed the one that it starts from, and the gradient by it is checked; one that it learns is
    checked as the parameter it is.

    Parameters
    ----------
    module : Module
    *inputs : array_like
    state, lengths : optional
        As the module takes them.
    **settings
        As of ``check_grad``; what it does not know goes to the call of the module.

    Raises
    ------
    GradientError
        As of ``check_grad``.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> layer = nn.LSTM(3, 4, dtype="float64", rng=0)
    >>> report = check_module(layer, np.ones((5, 3, 3)), lengths=[5, 2, 0])
    >>> str(report.verdict), report.inconclusive
    ('right', 0)
    """
    return check_grad(module, *inputs, state=state, lengths=lengths, **settings)


def check_taylor(f: Any, x: Any, g: Any = None, *, seed: int | None = None) -> GradReport:
    """Check a gradient without a step size: the Taylor remainder must fall with its square.

    R(h) = f(x + h v) - f(x) - h <g, v>; the rate log2(R(h) / R(h/2)) must be 1.9 or more.

    Parameters
    ----------
    f : callable
        Of one Tensor, to a scalar.
    x : array_like
    g : array_like, optional
        The gradient to check: by default the one that backward gives.

    Raises
    ------
    GradientError
        WRONG where the remainder falls too slowly.

    Examples
    --------
    >>> from tinygrad_rnn import ops
    >>> str(check_taylor(lambda x: ops.exp(x).sum(), [0.0, 1.0]).verdict)
    'right'
    """
    if isinstance(f, Module):
        raise TypeError("check_taylor: f is a function of one Tensor: lambda x: module(x).sum()")
    subject = as_subject(f, (x,))
    report = GradReport(subject.name, method="Taylor remainder")
    try:
        with np.errstate(all="ignore"):
            _taylor(subject, report, g, seed if seed is not None else current.seed or 0)
    except GradientError as error:
        error.report = report
        raise
    finally:
        publish(report)
    return report


def _taylor(subject: Subject, report: GradReport, g: Any, seed: int) -> None:
    a, (y, *more) = subject.arrays[0], integrity.evaluate(subject)
    unreliable = Verdict.UNRELIABLE
    if more or y.size != 1:
        what = f"{1 + len(more)} outputs" if more else f"an array of shape {y.shape}"
        integrity.fail(f"check_taylor: {subject.name} returns {what}, not a scalar", unreliable)
    if g is None:
        _, back = integrity.pulled(subject)
        g = integrity.gradients(subject, back, [np.ones(y.shape, y.dtype)])[0]
    v = weights(a.shape, np.random.default_rng(seed))
    slope = float(np.sum(np.asarray(g) * v))
    steps = 0.1 / 2 ** np.arange(8)

    def along(t: float) -> Array:
        return subject.forward(a + t * v)[0].reshape(1)

    moves = np.concatenate([along(h) for h in steps]) - float(y.ravel()[0])
    rest = np.abs(moves - steps * slope)
    floor = 64 * np.finfo(np.float64).eps * max(1.0, float(np.abs(y).max()), abs(slope))
    seen = rest > np.maximum(floor, 1e-8 * np.abs(moves))  # a linear function leaves rounding
    rates = [float(np.log2(rest[k] / rest[k + 1])) for k in range(7) if seen[k] and seen[k + 1]]
    rate = float(np.median(rates[-3:])) if rates else np.inf
    report.notes.append(f"rate {rate:.2f}")
    verdict, message = Verdict.RIGHT, ""
    if rate < 1.9:
        verdict, message = Verdict.WRONG, (
            f"gradient of {subject.name} is wrong: the Taylor remainder falls with rate "
            f"{rate:.2f}, at least 1.9 where it is right"
        )  # fmt: skip
        ends = kink(along)
        if ends is not None:
            verdict, message = unreliable, (
                f"{subject.name} is not differentiable at this point: the slope is "
                f"{ends[0][0]:.6g} from the left and {ends[1][0]:.6g} from the right"
            )  # fmt: skip
    elif not rates and not rest[-1] <= 1e-2 * abs(steps[-1] * slope):  # NaN is not, either
        verdict, message = unreliable, (
            f"check_taylor: the values of {subject.name} change too little beside rounding, or are "
            f"not finite, so that no remainder is seen; scale it, or use check_grad"
        )  # fmt: skip
    report.findings.append(
        Finding("output", subject.inputs[0], slope, slope, 1.0, 0.0, "Taylor", 1.0, verdict)
    )
    if message:
        raise GradientError(message, report, verdict)


def _converted(x: Any, dtype: np.dtype[Any]) -> Array:
    a = as_array(x)
    return a.astype(dtype) if a.dtype.kind == "f" else a


def _wrt(wrt: int | Sequence[int] | None, subject: Subject) -> list[int]:
    floating = [k for k, a in enumerate(subject.arrays) if a.dtype.kind in "fc"]
    if wrt is None:
        return floating
    chosen = [int(wrt)] if isinstance(wrt, int | np.integer) else list(wrt)
    for k in chosen:
        if k not in floating:
            known = isinstance(k, int | np.integer) and 0 <= k < len(subject.arrays)
            what = f"is {subject.arrays[k].dtype}" if known else "does not exist"
            raise ValueError(f"wrt: input {k} {what}; floating inputs are {floating}")
    return chosen
