"""How a defect is planted: a change of one function's source, one rule or one attribute."""

import __future__

import inspect
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Defect:
    """One fault.

    family
        ``lstm`` (a hand-written backward), ``engine`` (a rule or the sweep) or ``layer``.
    plant
        Makes a context manager: inside it the fault is there.
    op
        Of an engine's defect: the primitive whose rule is wrong, None for the sweep.
    composite
        Of a defect in one rule: a function of Tensors among whose many ops the rule is used so
        that it matters, and its inputs.  Used to ask whether the kit names the rule.
    """

    name: str
    family: str
    mechanism: str
    bites: str
    plant: Callable[[], AbstractContextManager[None]]
    op: str | None = None
    composite: Callable | None = None


@contextmanager
def patched(owner, name, value):
    """Let an attribute be another inside."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def edit(owner, name, *changes):
    """Plant by changing the source of a function: pairs of the text that is there, and the new."""

    def plant():
        function = getattr(owner, name)
        source = textwrap.dedent(inspect.getsource(function))
        for old, new in changes:
            if source.count(old) != 1:
                raise LookupError(f"{name} holds {old!r} {source.count(old)} times, expected once")
            source = source.replace(old, new)
        made = {}
        flags = __future__.annotations.compiler_flag
        code = compile(source, f"<defect in {name}>", "exec", flags)
        exec(code, function.__globals__, made)
        return patched(owner, name, made[function.__name__])

    return plant


def rule(op, k, wrong, collector=None):
    """Plant by giving input `k` of an op another rule, and no collector unless one is given."""

    @contextmanager
    def plant():
        rules, collectors = list(op.rules), list(op.collectors)
        rules[k], collectors[k] = wrong or rules[k], collector
        with patched(op, "rules", tuple(rules)), patched(op, "collectors", tuple(collectors)):
            yield

    return plant


def rule_all(op, wrong):
    """Plant by giving an op of any number of inputs another rule."""
    return lambda: patched(op, "rule_all", wrong)
