"""What a whole run has checked: counted from its reports, for the table and the JSON file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..op import OPS, Op
from .configs import RNNConfig
from .report import GradReport, Verdict

SHOWN = 12  # names in a line of the table; the file holds all


@dataclass
class Line:
    """One function, op or cell: how often it was checked, and the worst that was found."""

    examples: int = 0
    comparisons: int = 0
    evaluations: int = 0
    inconclusive: int = 0
    wrong: int = 0
    worst: float = 0.0
    worst_at: str = ""
    methods: list[str] = field(default_factory=list)

    def add(self, report: GradReport) -> None:
        """Count one report."""
        self.examples += 1
        self.comparisons += len(report.findings)
        self.evaluations += report.evaluations
        self.inconclusive += report.inconclusive
        self.wrong += report.verdict is Verdict.WRONG
        if report.method and report.method not in self.methods:
            self.methods.append(report.method)
        worst = report.worst
        if worst is not None and worst.ratio > self.worst:
            self.worst, self.worst_at = worst.ratio, f"d {worst.output} / d {worst.input}"


FEATURES: dict[str, Callable[[RNNConfig], bool]] = {
    "T==1": lambda c: c.T == 1,
    "N==1": lambda c: c.N == 1,
    "H==1": lambda c: c.H == 1,
    "D==H": lambda c: c.D == c.H,
    "T>=24": lambda c: c.T >= 24,
    "ragged": lambda c: c.lengths is not None and len(set(c.lengths)) > 1,
    "length 0": lambda c: c.lengths is not None and 0 in c.lengths,
    "no state": lambda c: c.state == "none",
    "zero state": lambda c: c.state == "zero",
    "layers>1": lambda c: c.layers > 1,
    "bidirectional": lambda c: c.bidirectional,
    "no bias": lambda c: not c.bias,
    "batch_first": lambda c: c.batch_first,
    "float32": lambda c: c.dtype == "float32",
}


class Tally:
    """Counts reports: a listener of ``report.LISTENERS``.

    >>> tally = Tally()
    >>> tally(GradReport("f", ops=("mul",)))
    >>> tally.lines["f"].examples, dict(tally.ops)
    (1, {'mul': 1})
    """

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        self.ops: Counter[str] = Counter()
        self.configurations: Counter[str] = Counter()
        self.drawn = 0

    def __call__(self, report: GradReport) -> None:
        """Count one report."""
        cfg = report.config
        what = getattr(getattr(cfg, "cell", None), "__name__", report.what)
        what = what.removesuffix("().make")  # of a CellSuite
        self.lines.setdefault(what, Line()).add(report)
        self.ops.update(set(report.ops))
        if isinstance(cfg, RNNConfig):
            self.drawn += 1
            self.configurations.update([name for name, has in FEATURES.items() if has(cfg)])

    @property
    def inconclusive(self) -> int:
        """Comparisons that the reference was not good enough for."""
        return sum(line.inconclusive for line in self.lines.values())

    def never_run(self) -> list[str]:
        """Return the ops of this package whose rules no check has run."""
        return [op.name for op in OPS.values() if is_own(op) and op.name not in self.ops]

    def as_dict(self) -> dict[str, Any]:
        """Return what the JSON file holds of it."""
        return {
            "checked": {what: vars(line) for what, line in self.lines.items()},
            "inconclusive": self.inconclusive,
            "ops": {name: self.ops[name] for name in sorted(self.ops)},
            "never_run": self.never_run(),
            "configurations": {name: self.configurations[name] for name in FEATURES},
        }

    def table(self) -> Iterator[str]:
        """Yield the lines of the table at the end of a run."""
        width = max(len("checked"), *(len(what) for what in self.lines))
        yield f"{'checked':<{width}}  examples  comparisons  error/tolerance  inconclusive"
        for what, n in self.lines.items():
            worst = f"{n.worst:.1e}" if n.comparisons else "-"
            yield (
                f"{what:<{width}}  {n.examples:>8}  {n.comparisons:>11}  {worst:>15}  "
                f"{n.inconclusive:>12}"
            )
        if self.inconclusive:
            yield f"INCONCLUSIVE: {self.inconclusive} comparisons, the reference was not reliable"
        if self.ops:
            yield f"rules run in backward: {listed(sorted(self.ops))}"
            never = self.never_run()
            yield f"rules of the package never run in backward: {listed(never) or 'none'}"
        if self.drawn:
            seen = [f"{name} {self.configurations[name]}" for name in self.configurations]
            missed = [name for name in FEATURES if name not in self.configurations]
            yield f"configurations: {self.drawn}, of them {', '.join(seen) or 'none special'}"
            if missed:
                yield f"configurations never seen: {', '.join(missed)}"


def is_own(op: Op) -> bool:
    """Whether an op with a gradient belongs to this package: its rules are written here."""
    rules = [rule for rule in (*op.rules, op.rule_all) if rule is not None]
    home = __name__.split(".")[0]
    return any((getattr(rule, "__module__", None) or "").split(".")[0] == home for rule in rules)


def listed(names: Iterable[str]) -> str:
    """Return names in one line, the rest as a number.

    >>> listed("abc")
    'a, b, c'
    """
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more


def write(path: str | Path, content: dict[str, Any]) -> None:
    """Write JSON that a person can read too; NaN and infinity become text."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, float) and (value != value or abs(value) == float("inf")):
            return str(value)
        return value if isinstance(value, str | int | float | bool | None) else str(value)

    text = json.dumps(plain(content), indent=1)
    Path(path).write_text(text + "\n", encoding="utf-8")
