"""Whether the tests of a run would see a fault in a backward rule: each item again, per mutant."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..op import OPS, Op
from . import report
from .mutation import RuleMutant, applied, rule_mutants
from .tally import is_own

Slots = dict[str, Any]  # rules, rule_all and collectors of an op as they were


class Result:
    """What became of the mutants of one op."""

    def __init__(self, op: str) -> None:
        self.op, self.killed, self.tests, self.note = op, 0, 0, ""
        self.survivors: list[RuleMutant] = []

    def as_dict(self) -> dict[str, Any]:
        """Return what the JSON file holds of it."""
        return {
            "tests": self.tests,
            "mutants": self.killed + len(self.survivors),
            "killed": self.killed,
            "survivors": [_shown(m) for m in self.survivors],
            "note": self.note,
        }

    def table(self) -> Iterator[str]:
        """Yield the lines of the summary."""
        if self.note:
            yield f"mutants of {self.op}: {self.note}"
            return
        every = self.killed + len(self.survivors)
        tests = "1 test" if self.tests == 1 else f"{self.tests} tests"
        yield f"mutants of {self.op}: {self.killed} of {every} killed by {tests}"
        yield from [f"  SURVIVED  {_shown(m)}" for m in self.survivors]


def _shown(mutant: RuleMutant) -> str:
    code = getattr(mutant.rule, "__code__", None)
    file = Path(code.co_filename).name if code else "?"
    return f"{file}:{mutant.mutant.line}  {mutant.mutant.key}"


class Mutation:
    """Notes which test runs which rules, then runs these again with faults in the rules.

    Parameters
    ----------
    config : pytest.Config
    named : str
        The op; "" for every op whose rules are not of this package.
    """

    def __init__(self, config: pytest.Config, named: str) -> None:
        self.config, self.named = config, named
        self.item: pytest.Item | None = None  # the test that is running
        self.running = False
        self.touched: dict[str, dict[str, pytest.Item]] = {}
        self.failed = False
        self.before: dict[str, Slots] = {}
        self.results: list[Result] = []
        self.note = ""

    # --- which test runs which rules

    def watch(self) -> None:
        """Let the rules say that they run; raise a UsageError if the op named is none."""
        if self.named and self.named not in OPS:
            declared = [op.name for op in OPS.values() if op.differentiable and not is_own(op)]
            raise pytest.UsageError(
                f"--grad-mutate={self.named}: no op of this name; "
                f"the tests declare {', '.join(declared) or 'none'}, the package "
                f"{', '.join(name for name in OPS if name not in declared)}"
            )
        for op in OPS.values():
            if op.name == self.named or (not self.named and op.differentiable and not is_own(op)):
                self.before[op.name] = {
                    "rules": op.rules, "rule_all": op.rule_all, "collectors": op.collectors
                }  # fmt: skip
                op.rules = tuple([self._told(op, rule) for rule in op.rules])
                op.rule_all = self._told(op, op.rule_all)
                op.collectors = tuple([self._told(op, rule) for rule in op.collectors])

    def _told(self, op: Op, rule: Any) -> Any:
        if rule is None:
            return None

        @functools.wraps(rule)
        def told(*args: Any, **attrs: Any) -> Any:
            if self.item is not None:
                self.touched.setdefault(op.name, {})[self.item.nodeid] = self.item
            return rule(*args, **attrs)

        return told

    def unwatch(self) -> None:
        """Give the rules back."""
        for name, slots in self.before.items():
            for slot, held in slots.items():
                setattr(OPS[name], slot, held)
        self.before = {}

    # --- the mutants

    def run(self, session: pytest.Session) -> None:
        """Try every mutant on the tests that ran its op."""
        names = list(self.before)
        self.unwatch()
        if session.testsfailed or session.shouldstop or session.shouldfail:
            self.note = "no mutants were tried: the tests must pass first"
        elif self.config.getoption("usepdb", False):
            self.note = "no mutants were tried: not together with --pdb"
        elif not names:
            self.note = (
                "no mutants were tried: the tests declare no op; name one, as --grad-mutate=tanh"
            )
        else:
            self.running = True
            try:
                with _quiet():
                    self.results = [self._tried(OPS[name]) for name in names if name in OPS]
            finally:
                self.running = False

    def _tried(self, op: Op) -> Result:
        result = Result(op.name)
        items = list(self.touched.get(op.name, {}).values())
        if not items:
            result.note = "no test has run its rules"
            return result
        try:
            mutants = rule_mutants(op)
        except ValueError as error:
            result.note = str(error)
            return result
        result.tests = len(items)
        for mutant in mutants:
            with applied(op, mutant):
                killer = next((item for item in items if _fails(item)), None)
            if killer is None:
                result.survivors.append(mutant)
            else:
                result.killed += 1
                items.remove(killer)
                items.insert(0, killer)  # who saw one fault may see the next
        return result

    # --- telling

    def as_dict(self) -> dict[str, Any]:
        """Return what the JSON file holds of it."""
        return {"note": self.note, "ops": {r.op: r.as_dict() for r in self.results}}

    def table(self) -> Iterator[str]:
        """Yield the lines of the summary."""
        if self.note:
            yield self.note
        for result in self.results:
            yield from result.table()


def _fails(item: pytest.Item) -> bool:
    """Run a test once more, unseen, and return whether it fails."""
    from _pytest.runner import runtestprotocol  # no public name; rerunfailures does the same

    return any(r.failed for r in runtestprotocol(item, log=False, nextitem=None))


class _quiet:  # noqa: N801  a context
    """Count nothing and shrink nothing inside."""

    def __enter__(self) -> None:
        self.heard = report.LISTENERS[:]
        report.LISTENERS.clear()
        self.nodes = sys.modules.get(f"{__package__}.nodes")  # loaded only if a test uses it
        if self.nodes is not None:
            self.nodes.shrinking = False  # type: ignore[attr-defined]

    def __exit__(self, *exc: object) -> None:
        report.LISTENERS[:] = self.heard
        if self.nodes is not None:
            self.nodes.shrinking = True  # type: ignore[attr-defined]
