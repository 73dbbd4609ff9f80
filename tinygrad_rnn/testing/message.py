"""What a person reads when a gradient is wrong: of a Check (compare.py), whose parts it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import Array
from . import locate
from .estimate import complex_step, ridders
from .guess import guess

ENTRIES = 64  # so many entries of a wrong block are looked at one by one


def explain(check: Any, wrong: list[tuple[int, int, int]], seeds: int, of: int) -> str:
    """Return where, both numbers, what it looks like, the rule, and how to run it again.

    Of the wrong comparisons of one cotangent, (finding, output, input), the one that looks most
    like something is shown.
    """
    place, o, b = _plainest(check, wrong)
    finding = check.report.findings[place]
    subject = check.subject
    rows = [("where", finding.what)]
    at_kink = any("subgradient" in note for note in check.report.notes)
    entries = None if at_kink else _entries(check, o, b)
    if entries is not None:
        label, got, want, error = entries
        rows[0] = ("where", f"{finding.what}{label}{_agreeing(check, o)}")
        rows.append(("backward", f"{got.ravel()[_worst(got, want)]:+.10g}"))
        rows.append((
            "reference",
            f"{want.ravel()[_worst(got, want)]:+.10g} +- {error:.0e} ({finding.method})",
        ))  # fmt: skip
        rows.append(("looks like", guess(got, want, _sizes(check))))
    else:
        rows.append(("backward", f"{finding.got:+.10g} along a random direction"))
        rows.append(
            ("reference", f"{finding.want:+.10g} +- {finding.error:.0e} ({finding.method})")
        )
    rows.append(("rule", _rule(check, o)))
    rows += [("note", note) for note in check.report.notes[-1:]]
    rows.append(("rerun", f"{_call(check)}, seed={check.settings.seed})"))
    head = (
        f"{subject.name if subject.name.startswith('backward') else 'backward of ' + subject.name}"
        f" is wrong  [{'not flaky' if seeds == of else 'seen'}: {seeds} of {of} seeds]"
    )
    return "\n".join([head, *[f"  {name:<11}{text}" for name, text in rows]])


def _plainest(check: Any, wrong: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    for place, o, b in wrong[:8]:
        entries = _entries(check, o, b, 16)
        if entries is None:
            continue
        looks = guess(*entries[1:3], _sizes(check))
        if "no constant factor" not in looks and not looks.endswith("a constant factor"):
            return place, o, b
    return wrong[0]


def _agreeing(check: Any, o: int) -> str:
    """Return which other blocks agree, for the same cotangent."""
    n = len(check.ins)
    findings = check.report.findings[-n * len(check.outs) :][o * n : (o + 1) * n]
    right = [f.input for f in findings if f.ratio <= 1]
    if not right:
        return "  (all blocks differ)"
    shown = ", ".join(right[:6]) + (f" and {len(right) - 6} more" if len(right) > 6 else "")
    return f"  ({shown} agree{'s' if len(right) == 1 else ''})"


def _entries(
    check: Any, o: int, b: int, most: int = ENTRIES
) -> tuple[str, Array, Array, float] | None:
    """Return the gradients of the block, entry by entry: a label of the worst, both, the error."""
    part = check.ins[b]
    if len(part.at) != 1:
        return None
    k, index = part.at[0]
    shape = check.subject.arrays[k][index].shape
    if not 0 < np.prod(shape, dtype=int) <= most:
        return None
    g = check.gradients[o][k]
    got = np.zeros(shape) if g is None else np.asarray(g[index], np.float64)
    want, errors = np.zeros(shape), [0.0]
    slopes = check.slopes
    for i in np.ndindex(*shape):
        v: list[Array | None] = [None] * len(check.subject.arrays)
        unit = np.zeros(check.subject.arrays[k].shape)
        unit[index][i if i else ...] = 1
        v[k] = unit
        along = slopes.along(v, [check.us[o]])
        try:
            if check.report.method == "complex step":
                want[i] = complex_step(along)[0]
            else:
                value, error = ridders(along, slopes.step_of(v))
                want[i] = value[0]
                errors.append(float(error[0]))
        except Exception:
            return None
    at = np.unravel_index(_worst(got, want), shape) if shape else ()
    label = f" at [{', '.join(str(int(i)) for i in at)}]" if shape else ""
    return label, got, want, max(*errors, np.finfo(np.float64).eps * float(np.abs(want).max()))


def _worst(got: Array, want: Array) -> int:
    return int(np.argmax(np.abs(got - want)))


def _sizes(check: Any) -> dict[str, int]:
    """Return T, N and the like, to name a ratio by."""
    x = check.subject.arrays[0]
    if x.ndim == 3:
        batch_first = getattr(getattr(check.subject, "module", None), "batch_first", False)
        T, N = (x.shape[1], x.shape[0]) if batch_first else x.shape[:2]
        return {"T": T, "N": N}
    return {"N": x.shape[0]} if x.ndim == 2 else {}


def _rule(check: Any, o: int) -> str:
    """Return the guilty rule, or where else the fault lies."""
    try:
        guilty = locate.guilty_rule(check.subject, check.us[o])
        if guilty is not None:
            return str(guilty)
        if not check.subject.tensors:
            return "unknown: the tape of another engine cannot be read"
        cut = locate.cuts(check.subject)
    except Exception as error:  # the search for a cause must not hide the finding
        return f"unknown ({type(error).__name__}: {error})"
    if cut:
        return f"none: the graph is cut at {', '.join(cut[:3])}"
    return "none: every rule on the tape agrees with its forward; see what joins or cuts the graph"


def _call(check: Any) -> str:
    """Return the call that runs the check again, as code."""
    subject = check.subject
    config: Any = check.report.config
    if config is not None:
        return f"check_module({config!r}.make(), ...)"
    module = getattr(subject, "module", None)
    shown: Sequence[str] = subject.inputs[: getattr(subject, "count", len(subject.inputs))]
    who = "check_module" if module is not None else "check_grad"
    return f"{who}({subject.name}, {', '.join(shown)}"
