"""How often a message names the rule that is wrong, where it is one of many in a composite."""

import re

import numpy as np

from tinygrad_rnn import Tensor, graph
from tinygrad_rnn.testing.checks import check_grad
from tinygrad_rnn.testing.report import GradientError, unheard

from .engine import CELL, MIXED, POWERS, RAGGED
from .planting import Defect, rule, rule_all

COMPOSITES = (CELL, MIXED, RAGGED, POWERS)
FACTORS = (2.0, -1.0, 1.001)


def _scaled(function, factor):
    if function is None:
        return None

    def wrong(*args, **attrs):
        g = function(*args, **attrs)
        return [None if part is None else part * factor for part in g] if isinstance(g, list) \
            else g * factor  # fmt: skip

    return wrong


def scaled_rules(factors=FACTORS):
    """Return defects that multiply one rule of one op of a composite by a factor."""
    found = []
    for composite in COMPOSITES:
        f, arrays = composite
        y = f(*[Tensor(a, requires_grad=True) for a in arrays])
        ops = {t.op.name: t.op for t in graph.nodes([y], requiring=True) if t.op is not None}
        for name, op in sorted(ops.items()):
            for factor in factors:
                about = f"{name} times {factor} in {f.__name__}"
                if op.rule_all is not None:
                    plants = [rule_all(op, _scaled(op.rule_all, factor))]
                else:
                    plants = [
                        rule(op, k, _scaled(r, factor), _scaled(op.collectors[k], factor))
                        for k, r in enumerate(op.rules)
                        if r is not None
                    ]
                found += [Defect(about, "engine", "", "", p, name, composite) for p in plants]
    return found


def named(defect):
    """Return whether the message names the op; None where the composite does not show the fault."""
    f, arrays = defect.composite
    with defect.plant(), unheard(), np.errstate(all="ignore"):
        try:
            check_grad(f, *arrays)
        except GradientError as error:
            line = re.search(r"^\s*rule\s+(\w+)", str(error), re.MULTILINE)
            return line is not None and line.group(1) == defect.op
    return None


def measure(defects, factors=FACTORS):
    """Return (named right, of how many, names of the others) over these and the scaled rules."""
    verdicts = [(d, named(d)) for d in [*defects, *scaled_rules(factors)]]
    shown = [(d, right) for d, right in verdicts if right is not None]
    return sum(right for _, right in shown), len(shown), [d.name for d, r in shown if not r]
