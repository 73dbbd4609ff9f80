"""One check: slopes of backward against a reference, and a second look at what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..arrays import Array
from . import integrity, locate
from .conditioning import noise
from .estimate import interval, kink, ridders
from .message import explain
from .report import Finding, GradientError, GradReport, Verdict, norm
from .second import Backward
from .slopes import Part, Slopes, input_parts, output_parts, together, weights
from .subject import Recorded, Subject

RTOL = 1e-10  # of a block, in float64; the worst seen in 1500 LSTMs is 6e-13
UNITS = 64  # of rounding, in float32
REMAINDER = 1e-95  # what a complex step of 1e-100 leaves where the slope is 0, as of x^2 at 0
METHODS = ("auto", "complex", "ridders", "exact")
KINKS = ("interval", "error", "reject")
ENTRIES = 32  # so many entries of a block are looked at one by one


@dataclass(frozen=True)
class Settings:
    """The settings of one check."""

    outputs: str
    blocks: str
    method: str
    order: int
    rtol: float | None
    atol: float
    n_dirs: int
    seed: int
    kinks: str
    max_evals: int | None

    def validate(self) -> None:
        """Raise for a setting that does not exist."""
        for name, known in (("method", METHODS), ("kinks", KINKS), ("order", (1, 2))):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} is one of {', '.join(map(str, known))}, got {value!r}")
        for name, least in (("n_dirs", 1), ("max_evals", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | np.integer) and value >= least):
                raise ValueError(f"{name} is a whole number from {least} on, got {value!r}")
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < np.inf:
                raise ValueError(f"{name} is a number from 0 on, got {value!r}")


class Check:
    """One run over a subject: facts, slopes, comparison, and a second look at what differs."""

    def __init__(
        self, subject: Subject, settings: Settings, wrt: Sequence[int], report: GradReport
    ) -> None:
        self.subject, self.settings, self.wrt, self.report = subject, settings, wrt, report
        self.rng = np.random.default_rng(settings.seed)
        self.open: list[tuple[int, int, int]] = []  # not met: (finding, output, input block)

    def run(self) -> None:
        """Compare; raise a GradientError where something is wrong."""
        subject = self.subject
        self.ys = integrity.evaluate(subject)
        if not self.wrt:
            integrity.fail(f"{subject.name}: nothing to check: wrt is empty", Verdict.UNRELIABLE)
        outputs, self.back = integrity.pulled(subject)
        integrity.same_outputs(subject, self.ys, outputs, "with the graph recorded")
        self.report.ops = tuple(op.name for op in subject.ops)
        self.unsafe = subject.unsafe()
        for _ in range(self.settings.n_dirs):
            self.compare()
        if self.settings.order == 2:
            self.second()

    # --- the comparison

    def compare(self) -> None:
        """Compare all blocks along one direction each."""
        subject, settings = self.subject, self.settings
        self.ins = self._input_parts()
        self.outs = output_parts(subject, self.ys, settings.outputs)
        if not self.ins or not self.outs:
            self.report.notes.append("nothing to compare: inputs or outputs are empty")
            return
        self.vs = [part.fill(subject.arrays, self.rng) for part in self.ins]
        self.us = [part.fill(self.ys, self.rng) for part in self.outs]
        self.gradients = [self._backward(u) for u in self.us]
        self.kinked: dict[int, bool] = {}
        self.slopes = Slopes(subject, self.ins, self.vs, self.us)
        if settings.kinks != "interval":
            self._look_for_kinks()
        want, error, method = self._reference()
        self.report.method = self.report.method or method
        for o, out in enumerate(self.outs):
            for b, part in enumerate(self.ins):
                got, size = self._slope(self.gradients[o], self.vs[b], part)
                self._judge(o, b, out, part, got, size, float(want[o, b]), float(error[o, b]))
        self._settle()

    def _input_parts(self) -> list[Part]:
        settings = self.settings
        parts = input_parts(self.subject, self.wrt, settings.blocks)
        if settings.max_evals is not None and len(parts) > settings.max_evals:
            self.report.notes.append(f"max_evals={settings.max_evals}: one block for each input")
            parts = [Part(self.subject.inputs[k], ((k, ...),)) for k in self.wrt]
        return parts

    def _backward(self, us: Sequence[Array | None]) -> list[Array | None]:
        cotangents = [
            np.zeros_like(y) if u is None else u.astype(y.dtype)
            for u, y in zip(us, self.ys, strict=True)
        ]
        return integrity.gradients(self.subject, self.back, cotangents)

    def _reference(self) -> tuple[Array, Array, str]:
        """Return slopes (outputs, inputs), their errors, and the method that gave them."""
        method, slopes = self.settings.method, self.slopes
        if method == "exact" or (method == "auto" and self._is_linear()):
            return self._sound(*slopes.by_difference(), "exact difference")
        if method == "ridders" or (method == "auto" and self.unsafe):
            return self._sound(*slopes.by_ridders(), "ridders")
        try:
            want, rounding = slopes.by_complex_step()
        except Exception as error:
            if method == "complex":
                raise GradientError(
                    f"reference unreliable: {self.subject.name} does not run on complex numbers "
                    f"({type(error).__name__}: {error}); use method='ridders'",
                    verdict=Verdict.UNRELIABLE,
                ) from None
            self.report.notes.append(f"no complex numbers ({type(error).__name__}): ridders")
            return self._sound(*slopes.by_ridders(), "ridders")
        agrees = np.isfinite(want).all() and slopes.agree_with_ridders(want)
        if agrees or (np.isfinite(want).all() and not self.unsafe and self._any_kink()):
            return want, rounding, "complex step"
        if method == "complex":
            culprits = ", ".join(self.unsafe) or "the function"
            integrity.fail(
                f"reference unreliable: {culprits} is not complex-safe: the complex step and "
                f"Ridders' differences disagree; use method='ridders'",
                Verdict.UNRELIABLE,
            )
        self.report.notes.append("the complex step is not trusted here: ridders")
        return self._sound(*slopes.by_ridders(), "ridders")

    def _sound(self, want: Array, error: Array, method: str) -> tuple[Array, Array, str]:
        """Return a reference; say why there is none where the function raises at every step."""
        raised = self.slopes.raised
        if raised is not None and not np.isfinite(want + error).any():
            if isinstance(raised, GradientError):
                raise raised
            inputs = sorted({str(a.dtype) for a in self.slopes.high if a.dtype.kind == "f"})
            integrity.fail(
                f"reference unreliable: {self.subject.name} runs at this point, but not beside it "
                f"in {', '.join(inputs)} ({type(raised).__name__}: {raised})",
                Verdict.UNRELIABLE,
            )
        return want, error, method

    def _look_for_kinks(self) -> None:
        """Raise where the function has a kink along all blocks at once."""
        direction = together(self.vs)
        for o in range(len(self.outs)):
            found = self._ends(direction, o)
            if found is not None:
                self._refuse_kink(found[0], found[1])

    def _is_linear(self) -> bool:
        """Whether one linear op is all that is on the tape, and complex numbers pass it badly."""
        ops = self.subject.ops
        return len(ops) == 1 and ops[0].linear and not ops[0].complex_safe

    def _any_kink(self) -> bool:
        """Whether the function has a kink along all blocks at once."""
        direction = together(self.vs)
        return any(self._ends(direction, o) is not None for o in range(len(self.outs)))

    def _slope(
        self, gradients: Sequence[Array | None], vs: Sequence[Array | None], part: Part
    ) -> tuple[float, float]:
        """Return <g, v> and |g| |v| of a block."""
        slope = size = length = 0.0
        for k, index in part.at:
            v = vs[k]
            assert v is not None
            w = v[index].astype(np.float64).ravel()
            g = gradients[k]
            h = np.zeros(w.shape) if g is None else g[index].astype(np.float64).ravel()
            with np.errstate(all="ignore"):
                slope += float(h @ w)
                size, length = np.hypot(size, _length(h)), np.hypot(length, _length(w))
        return slope, float(size * length)

    def _rtol(self, part: Part) -> float:
        if self.settings.rtol is not None:
            return self.settings.rtol
        kinds = {self.subject.arrays[k].dtype for k, _ in part.at}
        kinds |= {y.dtype for y in self.ys if y.dtype.kind == "f"}
        eps = max([float(np.finfo(t).eps) for t in kinds if t.kind in "fc"])
        return max(RTOL, UNITS * eps)

    def _least(self, part: Part) -> float:
        """Return the difference that is none: what was asked for, and where numbers underflow."""
        size = sum([float(np.prod(self.subject.arrays[k][i].shape)) for k, i in part.at])
        tiny = max([float(np.finfo(self.subject.arrays[k].dtype).tiny) for k, _ in part.at])
        return self.settings.atol + REMAINDER + 64 * tiny * size

    def _judge(
        self, o: int, b: int, out: Part, part: Part,
        got: float, size: float, want: float, error: float,
    ) -> None:  # fmt: skip
        scale = max(size, abs(want))
        tolerance = error + self._rtol(part) * scale + self._least(part)
        verdict = Verdict.RIGHT
        if not abs(got - want) <= tolerance:
            verdict = Verdict.WRONG
        elif error > 1e-2 * scale and scale > 0:
            verdict = Verdict.UNRELIABLE
        self.report.findings.append(
            Finding(
                out.label, part.label, got, want, tolerance, error, self.report.method, scale,
                verdict,
            )
        )  # fmt: skip
        if verdict is not Verdict.RIGHT:
            self.open.append((len(self.report.findings) - 1, o, b))

    # --- a second look at what differs

    def _settle(self) -> None:
        """Explain every difference, or raise with the first that nothing explains."""
        findings = self.report.findings
        todo = sorted(self.open, key=lambda item: (item[1], -findings[item[0]].ratio))
        self.open.clear()
        rounding: dict[int, list[Array] | None] = {}
        for place, o, b in todo:
            old = findings[place]
            explained = self._at_kink(o, b, old)
            if explained is None:
                if o not in rounding:
                    rounding[o] = noise(self.subject, self.us[o])
                explained = self._by_rounding(rounding[o], b, old)
            if explained is None:
                explained = self._by_reference(o, b, old)
            if explained is None and old.verdict is Verdict.WRONG and self._inner_kink(o):
                note = "a kink inside the tape: the chain rule need not give a subgradient there"
                explained = replace(old, verdict=Verdict.UNRELIABLE, note=note)
            if explained is None and old.verdict is Verdict.WRONG:
                rest = [w for w in todo if w[1] == o and w[0] != place]
                rest = [w for w in rest if findings[w[0]].verdict is Verdict.WRONG]
                self._raise([(place, o, b), *rest])
            findings[place] = explained or old

    def _at_kink(self, o: int, b: int, old: Finding) -> Finding | None:
        """Return the finding at a point without derivative: a subgradient is right.

        The slope must lie between those of the two sides: along the direction of the block, along
        each of its entries, and along all inputs moved alike, where tied values stay tied.
        """
        found = self._ends(self.vs[b], o)
        if found is None:
            return None
        left, right, _ = found
        if self.settings.kinks != "interval":
            self._refuse_kink(left, right)
        alike: list[Array | None] = [None] * len(self.subject.arrays)
        for k in self.wrt:
            alike[k] = np.ones(self.subject.arrays[k].shape)
        outside, doubtful = "outside of the subgradient interval at a kink", False
        for v in (self.vs[b], alike, *self._units(b)):
            within, bent = self._within(v, o, self._rtol(self.ins[b]))
            if not within and bent and not self.subject.tensors:
                doubtful = True  # kinks may meet on its tape, and that cannot be read
            elif not within:
                self.report.notes += [] if outside in self.report.notes else [outside]
                return None
        if doubtful:
            return replace(old, verdict=Verdict.UNRELIABLE, note=f"{outside} of another engine")
        note = f"a kink: {left:.6g} from the left, {right:.6g} from the right"
        return replace(old, verdict=Verdict.RIGHT, note=note, tolerance=abs(right - left))

    def _ends(self, v: Sequence[Array | None], o: int) -> tuple[float, float, float] | None:
        """Return the slopes from both sides and their error; None where they are one."""
        h = 0.02 * self.slopes.step_of(v)
        found = kink(self.slopes.along(v, [self.us[o]]), h=h)
        return None if found is None else tuple([float(a[0]) for a in found])  # type: ignore[return-value]

    def _within(self, v: Sequence[Array | None], o: int, rtol: float) -> tuple[bool, bool]:
        """Whether the slope along v that backward gives is one there, and whether a kink is."""
        got = scale = 0.0
        for g, d in zip(self.gradients[o], v, strict=True):
            if g is not None and d is not None:
                got += float(np.sum(g.astype(np.float64) * d))
                scale += norm(g) * norm(d)
        slack = max(1e-6, rtol) * scale
        each = self.slopes.each_along(v, self.us[o])
        found = interval(each, 0.02 * self.slopes.step_of(v))
        if found is None:
            along = self.slopes.along(v, [self.us[o]])
            value, slacks = ridders(along, 1e-2 * self.slopes.step_of(v))
            return bool(abs(got - value[0]) <= slacks[0] + slack), False
        least, most, error = found
        slack += error
        return bool(least - slack <= got <= most + slack), True

    def _units(self, b: int) -> list[list[Array | None]]:
        """Return a direction along each entry of a block; along some of a large one."""
        units = []
        for k, index in self.ins[b].at:
            a = self.subject.arrays[k]
            chosen = np.zeros(a.shape, bool)
            chosen[index] = True
            entries = np.argwhere(chosen)
            for i in entries[:: 1 + len(entries) // ENTRIES]:
                unit: list[Array | None] = [None] * len(self.subject.arrays)
                here = np.zeros(a.shape)
                here[tuple(i)] = 1
                unit[k] = here
                units.append(unit)
        return units

    def _refuse_kink(self, left: float, right: float) -> None:
        if self.settings.kinks == "reject":
            from hypothesis import reject

            reject()
        integrity.fail(
            f"{self.subject.name} is not differentiable at this point: the slope is {left:.6g} "
            f"from the left and {right:.6g} from the right",
            Verdict.UNRELIABLE,
        )

    def _inner_kink(self, o: int) -> bool:
        """Whether a kink lies inside the tape, as of relu(relu(0)), and every rule is right."""
        if o not in self.kinked:
            us = self.us[o]
            kinked = self.subject.tensors and locate.at_kink(self.subject, us)
            self.kinked[o] = kinked and locate.guilty_rule(self.subject, us) is None
        return self.kinked[o]

    def _by_rounding(self, moved: list[Array] | None, b: int, old: Finding) -> Finding | None:
        """Return the finding where rounding on this tape explains the difference."""
        if moved is None:
            return None
        spread = 0.0
        for k, index in self.ins[b].at:
            v = self.vs[b][k]
            assert v is not None
            spread += norm(moved[k][index]) * norm(v[index])
        tolerance = old.tolerance + 16 * spread
        if abs(old.got - old.want) <= tolerance:
            return replace(old, verdict=Verdict.RIGHT, tolerance=tolerance, note="ill-conditioned")
        return None

    def _by_reference(self, o: int, b: int, old: Finding) -> Finding | None:
        """Ask Ridders' differences with three first steps: they may contradict the reference."""
        along = self.slopes.along(self.vs[b], [self.us[o]])
        h = self.slopes.step_of(self.vs[b])
        found = [ridders(along, h * shrink) for shrink in (1.0, 0.2, 0.04)]
        values = np.array([float(v[0]) for v, _ in found])
        errors = np.array([float(e[0]) for _, e in found])
        best = int(np.argmin(errors))
        value, error = float(values[best]), float(errors[best])
        consistent = bool((np.abs(values - value) <= errors + error + 1e-9 * old.scale).all())
        near = error + 1e-6 * old.scale
        # another engine may have dropped the imaginary part: 0 from a complex step says nothing
        single = old.method == "ridders" or (not old.want and not self.subject.tensors)
        if not single and abs(old.want - value) <= near:
            return None  # two references agree, and backward does not
        if not consistent:
            note = "differences with several steps contradict each other"
            return replace(old, verdict=Verdict.UNRELIABLE, note=note)
        if abs(old.got - value) <= error + self._rtol(self.ins[b]) * old.scale:
            note = f"Ridders gives {value:.6g} and agrees with backward"
            return replace(
                old, verdict=Verdict.RIGHT, want=value, error=error, tolerance=near, note=note
            )
        return self._entry_by_entry(o, b, old) if single else None

    def _entry_by_entry(self, o: int, b: int, old: Finding) -> Finding | None:
        """Return the finding where differences of each entry, in steps relative to it, agree.

        One step for all entries is too long for those that are small, or at a steep place.
        """
        units = self._units(b)
        if len(units) < sum([self.subject.arrays[k][i].size for k, i in self.ins[b].at]):
            return None
        for unit in units:
            k, v = next((k, v) for k, v in enumerate(unit) if v is not None)
            at = np.unravel_index(int(np.argmax(v)), v.shape)
            g, size = self.gradients[o][k], abs(float(self.subject.arrays[k][at]))
            got = 0.0 if g is None else float(g[at])
            along = self.slopes.along(unit, [self.us[o]])
            (value,), (error,) = ridders(along, 1e-2 * size or 1e-8)
            near = error + self._rtol(self.ins[b]) * max(abs(got), abs(value))
            if not abs(got - value) <= near or error > 1e-2 * max(abs(got), old.scale):
                return None
        note = "differences of each entry in steps relative to it agree with backward"
        return replace(old, verdict=Verdict.RIGHT, want=old.got, tolerance=old.scale, note=note)

    def _raise(self, wrong: list[tuple[int, int, int]]) -> None:
        again = sum(self._differs_again(*wrong[0][1:], k) for k in (1, 2))
        message = explain(self, wrong, 1 + again, 3)
        raise GradientError(message, self.report, Verdict.WRONG)

    def _differs_again(self, o: int, b: int, k: int) -> bool:
        """Whether another direction and another cotangent of the same blocks differ as well."""
        rng = np.random.default_rng((self.settings.seed, k))
        vs = self.ins[b].fill(self.subject.arrays, rng)
        us = self.outs[o].fill(self.ys, rng)
        try:
            g = self._backward(us)
        except GradientError:
            return True
        got, size = self._slope(g, vs, self.ins[b])
        slopes = Slopes(self.subject, [self.ins[b]], [vs], [us])
        try:
            if self.report.method == "complex step":
                want, error = slopes.by_complex_step()
            else:
                want, error = slopes.by_ridders()
        except Exception:
            return True
        scale = max(size, abs(float(want[0, 0])))
        limit = float(error[0, 0]) + self._rtol(self.ins[b]) * scale + self._least(self.ins[b])
        return abs(got - float(want[0, 0])) > limit

    # --- second order

    def second(self) -> None:
        """Check the backward pass as a function of the inputs and the cotangents."""
        subject = self.subject
        if not isinstance(subject, Recorded):
            self.report.notes.append("second order: this engine has no graph of its backward")
            return
        us = [weights(y.shape, self.rng).astype(y.dtype) for y in self.ys]
        backward = Backward(subject, us)
        n = len(subject.arrays)
        wrt = [*self.wrt, *range(n, n + len(us))]
        settings = replace(self.settings, order=1, outputs="each")
        check = Check(backward, settings, wrt, self.report)
        check.run()


def _length(a: Array) -> float:
    """Return the 2-norm of a vector: fast, and right where the squares overflow or vanish."""
    square = float(a @ a)
    return float(np.sqrt(square)) if 1e-250 < square < np.inf else norm(a)
