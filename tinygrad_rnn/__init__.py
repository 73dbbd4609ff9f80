"""Recurrent networks on NumPy: a small autograd, cells written as equations, BPTT as the graph."""

from __future__ import annotations

from .inspection import debug
from .scope import mark, no_grad, record
from .tensor import Parameter, Tensor
from .transforms import grad, hvp, jacobian, jvp, value_and_grad, vjp

__all__ = [
    "Parameter",
    "Tensor",
    "debug",
    "grad",
    "hvp",
    "jacobian",
    "jvp",
    "mark",
    "no_grad",
    "record",
    "value_and_grad",
    "vjp",
]
