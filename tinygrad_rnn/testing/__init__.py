"""Property-based gradient tests that anyone can point at their own op, cell or model."""

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
    "CellSuite": "suites",
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
    "CellSuite",
    "Differentiable",
    "Estimate",
    "Finding",
    "GradReport",
    "GradientError",
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
