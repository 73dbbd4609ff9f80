"""Layers whose loop over time is compiled: ``compile(layer)``."""

from __future__ import annotations

from typing import TypeVar

from ..module import Module
from ..nn.recurrent import Recurrent
from .errors import CompileError
from .layer import Compiled, CompileWarning, compiled

__all__ = ["CompileError", "CompileWarning", "Compiled", "compile"]

M = TypeVar("M", bound=Module)


def compile(model: M, *, threads: int | None = None, backend: str | None = None) -> M:
    """Return a layer that runs its cells' steps compiled; a model has its layers replaced."""
    if isinstance(model, Recurrent):
        return compiled(model, backend, threads)  # type: ignore[return-value]
    for _, module in list(model.named_modules()):
        for name, value in list(vars(module).items()):
            if isinstance(value, Recurrent):
                object.__setattr__(module, name, compiled(value, backend, threads))
    return model
