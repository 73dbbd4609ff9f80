"""Property-based gradient tests that anyone can point at their own op, cell or model.

**Your function, in one call.**  ``check_grad`` compares the slope that backward gives with a
complex step, block by block, each relative to itself: a gradient of 1e-38 that is lost is seen
beside one of 1.  It raises a ``GradientError`` or returns a ``GradReport``.

>>> import numpy as np
>>> from tinygrad_rnn import nn, ops, testing
>>> report = testing.check_grad(lambda x, W: ops.tanh(x @ W), np.eye(2), np.ones((2, 3)), order=2)
>>> str(report.verdict), report.method
('right', 'complex step')

**Your op, in three lines.**  Shapes, broadcasting, dtypes, first and second order and integrity
follow from its record; ``register_op`` says what the record does not.

>>> from tinygrad_rnn.op import primitive
>>> @primitive("()->()", "x^3")
... def cube(x):
...     return x * x * x
>>> cube.vjp(lambda g, y, x: g * 3 * x * x)
>>> testing.check_op(cube)

**Your cell, in one decorator.**  Each numeric check and each relation that must hold between
runs (``testing.relations.RELATIONS``) is a pytest node; corners (T = 1, N = 1, H = 1, D = H,
T = 64, a length of 0) run in every profile, and what fails is shrunk to the smallest layer::

    from tinygrad_rnn.testing import strategies as st

    @testing.gradtest(st.rnn_configs(cells=[MyCell]))
    def test_my_cell(module): ...

    class TestMyCell(testing.CellSuite):         # the same as a class
        skip = {"causality": "attends ahead"}
        def make(self, cfg): return MyCell(cfg.D, cfg.H)

**Read a failure.**  The block and the entry, both numbers with the error of the reference, what
they look like, the rule with its line, and the code that runs it again:

>>> cube.vjp(lambda g, y, x: g * 2 * x * x)
>>> testing.check_grad(cube, [1.0, 2.0])  # doctest: +ELLIPSIS
Traceback (most recent call last):
tinygrad_rnn.testing.report.GradientError: backward of cube is wrong  [not flaky: 3 of 3 seeds]
  where      d output 0 / d x at [1]  (all blocks differ)
  backward   +10.50616191
  reference  +15.75924287 +- 3e-15 (complex step)
  looks like ratio 0.666667 in all 2 entries: a constant factor
  rule       cube  ...  (this node alone is wrong by 3.3e-01; no other node)
  rerun      check_grad(cube, x, seed=0)
>>> from tinygrad_rnn.op import OPS
>>> del OPS["cube"]

A verdict is one of three.  WRONG: nothing explains the difference, neither a kink (then the
slope may be any subgradient), nor the rounding of this very tape, nor the reference.
UNRELIABLE: the function (not deterministic, NaN, nothing to differentiate) or the reference is at
fault, never the gradient.  RIGHT: everything else.

**Choose a profile.**  ``pytest --grad-profile=dev|ci|thorough`` draws 20, 200 (always the same)
or 2000 examples; beside it ``--grad-seed``, ``--grad-method``, ``--grad-oracle=torch``,
``--grad-report=report.json`` and ``--grad-mutate``, which damages the backward rules that the
tests ran and names the damage that no test saw.

**Use it on other engines.**  Whatever has ``forward(*arrays)`` and ``vjp(arrays, cotangents)``
is checked; ``from_torch``, ``from_jax`` and ``from_autograd`` make that of a function::

    testing.check_grad(testing.from_torch(torch.special.erf), np.array([0.5]))

Its own files: ``checks`` and ``integrity`` are the calls, ``compare`` one check, ``estimate`` the
references, ``conditioning`` what rounding may do, ``locate`` the guilty rule, ``strategies`` what
is drawn, ``relations`` what must hold between runs, ``suites`` and ``plugin`` what pytest sees.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import relations
from .checks import check_grad, check_module, check_taylor
from .configs import RNNConfig
from .estimate import Estimate, derivative
from .integrity import check_vjp
from .modules import from_module
from .report import Finding, GradientError, GradReport, Verdict
from .subject import Differentiable, from_function, from_leaves

_LATER = {  # what needs hypothesis, pytest or another engine is loaded when it is asked for
    "Case": "cases",
    "CellSuite": "suites",
    "OpSpec": "registry",
    "TapeMachine": "machine",
    "all_ops": "registry",
    "check_against": "oracles",
    "check_op": "registry",
    "from_autograd": "foreign",
    "from_jax": "foreign",
    "from_torch": "foreign",
    "ghostwrite": "ghostwriter",
    "gradtest": "suites",
    "register_op": "registry",
    "spec_of": "registry",
    "uncovered": "registry",
}
_MODULES = ("mutation", "strategies")

__all__ = [
    "Case",
    "CellSuite",
    "Differentiable",
    "Estimate",
    "Finding",
    "GradReport",
    "GradientError",
    "OpSpec",
    "RNNConfig",
    "TapeMachine",
    "Verdict",
    "all_ops",
    "check_against",
    "check_grad",
    "check_module",
    "check_op",
    "check_taylor",
    "check_vjp",
    "derivative",
    "from_autograd",
    "from_function",
    "from_jax",
    "from_leaves",
    "from_module",
    "from_torch",
    "ghostwrite",
    "gradtest",
    "mutation",
    "register_op",
    "relations",
    "spec_of",
    "strategies",
    "uncovered",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _LATER:
        return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
