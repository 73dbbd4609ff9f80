"""Plant a defect into this framework for one test: by another rule, or by edited source."""

import __future__

import inspect
import sys
import textwrap


def edit(monkeypatch, owner, name, old, new):
    """Replace a function, or a method of a class, by its own source with `old` as `new`."""
    f = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(f))
    assert old in source, f"{old!r} is not in {name}: the defect plants nothing"
    module = vars(sys.modules[f.__module__])
    code = compile(
        source.replace(old, new), "planted", "exec", __future__.annotations.compiler_flag
    )
    made = {}
    exec(code, module, made)
    monkeypatch.setattr(owner, name, made[name])


def rule(monkeypatch, op, *rules):
    """Give an op other gradient rules; None keeps the one it has."""
    kept = op.rules[len(rules) :]
    chosen = [new or old for new, old in zip(rules, op.rules, strict=False)]
    monkeypatch.setattr(op, "rules", (*chosen, *kept))
