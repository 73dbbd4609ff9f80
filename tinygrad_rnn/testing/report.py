"""What a check found: one comparison after the other, a verdict, and the error that says it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from ..arrays import Array


class Verdict(StrEnum):
    """What a check can say: the third is about the reference, never about the gradient."""

    RIGHT = "right"
    WRONG = "wrong"
    UNRELIABLE = "reference unreliable"


@dataclass(frozen=True)
class Finding:
    """One comparison: the slope that backward gives against the reference.

    Attributes
    ----------
    output, input : str
        The blocks: ``h_n``, ``L0.fwd.W_h, gate f``.
    got, want : float
        The slope along one random direction, by backward and by the reference.
    tolerance : float
        The largest difference that rounding and the error of the reference explain.
    error : float
        What the reference says of its own error.
    method : str
        Of the reference.
    scale : float
        |gradient| |direction|: what the difference is relative to.
    verdict : Verdict
    note : str
        Why, where it is not plain: a kink, an ill-conditioned gradient.
    """

    output: str
    input: str
    got: float
    want: float
    tolerance: float
    error: float
    method: str
    scale: float
    verdict: Verdict = Verdict.RIGHT
    note: str = ""

    @property
    def what(self) -> str:
        """``d h_n / d L0.fwd.b, gate f``."""
        return f"d {self.output} / d {self.input}"

    @property
    def ratio(self) -> float:
        """|got - want| / tolerance; 1 is the limit."""
        difference = abs(self.got - self.want)
        if not difference:
            return 0.0
        return difference / self.tolerance if self.tolerance else np.inf


@dataclass
class GradReport:
    """What one check looked at and found; ``print(report)`` for a person, ``as_dict`` for JSON.

    Attributes
    ----------
    what : str
        The function or module.
    findings : list of Finding
    method : str
        The reference used: complex step, ridders, exact difference, a relation, an oracle.
    ops : tuple of str
        The primitives on the tape whose rules ran.
    evaluations : int
        Calls of the function.
    notes : list of str
    config : object or None
        The configuration that was drawn, if one was; its ``repr`` is code.
    """

    what: str
    findings: list[Finding] = field(default_factory=list)
    method: str = ""
    ops: tuple[str, ...] = ()
    evaluations: int = 0
    notes: list[str] = field(default_factory=list)
    config: Any = None

    @property
    def verdict(self) -> Verdict:
        """WRONG if one comparison is; else UNRELIABLE if one is; else RIGHT."""
        found = {f.verdict for f in self.findings}
        for verdict in (Verdict.WRONG, Verdict.UNRELIABLE):
            if verdict in found:
                return verdict
        return Verdict.RIGHT

    @property
    def worst(self) -> Finding | None:
        """The comparison nearest to its limit, or furthest beyond it."""
        return max(self.findings, key=lambda f: f.ratio, default=None)

    @property
    def inconclusive(self) -> int:
        """How many comparisons the reference was not good enough for."""
        return sum(f.verdict is Verdict.UNRELIABLE for f in self.findings)

    def __str__(self) -> str:
        worst = self.worst
        text = f"{self.what}: {self.verdict}, {len(self.findings)} comparisons by {self.method}"
        if worst is not None and worst.tolerance:
            what = worst.input if worst.method == "relation" else worst.what
            text += f"; nearest to its limit: {what}, {worst.ratio:.2g} of the tolerance"
        if self.inconclusive:
            text += f"; {self.inconclusive} inconclusive"
        return "\n  ".join([text, *self.notes])

    def as_dict(self) -> dict[str, Any]:
        """Return what a JSON file holds of it."""
        worst = self.worst
        return {
            "what": self.what,
            "verdict": str(self.verdict),
            "method": self.method,
            "comparisons": len(self.findings),
            "inconclusive": self.inconclusive,
            "worst": None if worst is None else worst.ratio,
            "evaluations": self.evaluations,
            "ops": list(self.ops),
            "notes": list(self.notes),
            "config": None if self.config is None else repr(self.config),
        }


class GradientError(AssertionError):
    """A check says no: the gradient is wrong, or the reference cannot tell.

    Attributes
    ----------
    report : GradReport
    verdict : Verdict
        WRONG or UNRELIABLE.
    """

    def __init__(
        self, message: str, report: GradReport | None = None, verdict: Verdict = Verdict.WRONG
    ) -> None:
        super().__init__(message)
        self.report = report if report is not None else GradReport("")
        self.verdict = verdict


LISTENERS: list[Callable[[GradReport], None]] = []  # the pytest plugin counts here


def publish(report: GradReport) -> GradReport:
    """Show a finished report to whoever listens, and return it."""
    for listener in LISTENERS:
        listener(report)
    return report


@contextmanager
def unheard() -> Iterator[None]:
    """Let nobody listen inside: what is tried, or is at fault on purpose, does not count."""
    before = LISTENERS[:]
    LISTENERS.clear()
    try:
        yield
    finally:
        LISTENERS[:] = before


def require_close(relation: str, what: str, got: Any, want: Any, rtol: float = 1e-9) -> None:
    """Raise a GradientError unless two arrays agree, relative to the norm of the one wanted.

    With ``rtol=0`` they must agree to the bit (-0.0 equals 0.0).
    """
    a, b = np.asarray(got), np.asarray(want)
    if a.shape != b.shape:
        raise GradientError(f"{relation}: {what} has shape {a.shape}, expected {b.shape}")
    if np.array_equal(a, b, equal_nan=True):
        return
    difference = norm(a - b)
    scale = max(norm(a), norm(b))
    if difference <= rtol * scale < np.inf:
        return
    where = np.unravel_index(int(np.argmax(np.abs(np.nan_to_num(a - b, nan=np.inf)))), a.shape)
    at = [int(i) for i in where]
    limit = f"more than {rtol:.0e}" if rtol else "not equal to the bit"
    raise GradientError(
        f"{relation}: {what} differs by {difference / scale:.1e} relative, {limit}; "
        f"most at {at}: {a[where]!r}, expected {b[where]!r}"
    )


def norm(a: Array) -> float:
    """Return the 2-norm: infinite where there is NaN, and right for 1e-200, whose square is 0."""
    size = np.nan_to_num(np.abs(a), nan=np.inf, posinf=np.inf)
    peak = float(size.max(initial=0.0))
    return peak * float(np.linalg.norm(size / peak)) if 0 < peak < np.inf else peak
