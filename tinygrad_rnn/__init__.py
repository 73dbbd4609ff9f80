"""Recurrent networks on NumPy: a small autograd, cells written as equations, BPTT as the graph.

Letters used everywhere: T time, N batch, D input size, H hidden size, L layers, V classes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import data, functional, nn, optim
from .inspection import debug
from .memory import keep_freed
from .module import Module
from .scope import mark, no_grad, record
from .tensor import Parameter, Tensor
from .transforms import grad, hvp, jacobian, jvp, value_and_grad, vjp

if TYPE_CHECKING:
    from . import bptt, compiler, testing, train
    from .compiler import compile

__all__ = [
    "Module",
    "Parameter",
    "Tensor",
    "bptt",
    "compile",
    "compiler",
    "data",
    "debug",
    "functional",
    "grad",
    "hvp",
    "jacobian",
    "jvp",
    "mark",
    "nn",
    "no_grad",
    "optim",
    "record",
    "testing",
    "train",
    "value_and_grad",
    "vjp",
]

keep_freed()


def __getattr__(name: str) -> Any:
    if name == "compile":
        return importlib.import_module(".compiler", __name__).compile
    if name in ("bptt", "compiler", "testing", "train"):  # loaded when they are asked for
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
