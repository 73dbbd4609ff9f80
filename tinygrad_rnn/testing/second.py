"""The backward pass as a function of its own: what a check of second order looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import Array
from ..op import Op
from ..scope import record, recording
from ..tensor import Tensor
from .report import GradientError
from .subject import Block, Pull, Recorded, Subject, pull_back


class Backward(Subject):
    """(x, u) -> the gradients of <u, f(x)>: forward by the rules on arrays, backward on Tensors.

    Its reference is a step through the rules on arrays, its gradient the graph that
    ``create_graph`` records: both readings of every rule meet here.
    """

    tensors = True

    def __init__(self, inner: Recorded, cotangents: Sequence[Array]) -> None:
        self.inner = inner
        self.n = len(inner.arrays)
        self.wanted = [k for k, a in enumerate(inner.arrays) if a.dtype.kind in "fc"]
        super().__init__(self, [*inner.arrays, *cotangents], f"backward of {inner.name}")
        names = ["cotangent"] if len(cotangents) == 1 else []
        names = names or [f"cotangent {j}" for j in range(len(cotangents))]
        self.inputs = [*inner.inputs, *names]

    def forward(self, *arrays: Array) -> tuple[Array, ...]:
        """Return the gradients, by the rules on arrays."""
        self.evaluations += 1
        _, back = self.inner.pull(arrays[: self.n])
        found = back(arrays[self.n :])
        return tuple([np.asarray(found[k]) for k in self.wanted])

    def pull(self, arrays: Sequence[Array]) -> tuple[tuple[Array, ...], Pull]:
        """Return the gradients and their pullback, from one recorded backward pass."""
        self.evaluations += 1
        leaves, gradients = self._recorded(arrays)
        self.ops: tuple[Op, ...] = self.inner.ops

        def back(cotangents: Sequence[Any]) -> tuple[Any, ...]:
            return pull_back(gradients, leaves, cotangents, False)

        return tuple([g.data for g in gradients]), back

    def record(self, arrays: Sequence[Array]) -> tuple[list[Tensor], list[Tensor]] | None:
        """Return the gradients and the leaves as nodes."""
        with record():
            leaves, gradients = self._recorded(arrays)
        return gradients, leaves

    def _recorded(self, arrays: Sequence[Array]) -> tuple[list[Tensor], list[Tensor]]:
        leaves, outs = self.inner.recorded(arrays[: self.n])
        self.inner.note(outs)
        cotangents = [Tensor(u, requires_grad=True) for u in arrays[self.n :]]
        with recording():
            found = pull_back(outs, leaves, cotangents, True)
        for name, g in zip(self.inner.inputs, found, strict=True):
            if g is not None and not isinstance(g, Tensor):
                raise GradientError(
                    f"{self.name}: the gradient of {name} cannot be differentiated again: a rule "
                    f"returned {type(g).__name__} where Tensors went in; use operators and "
                    f"primitives instead of functions of NumPy"
                )
        return [*leaves, *cotangents], [found[k] for k in self.wanted]

    def blocks(self, k: int) -> list[Block]:
        """Return the blocks of the inputs; a cotangent is whole."""
        return self.inner.blocks(k) if k < self.n else [(self.inputs[k], ...)]

    def output_blocks(self, k: int, y: Array) -> list[Block]:
        """Return the gradient of one input, whole."""
        return [(f"gradient of {self.inner.inputs[self.wanted[k]]}", ...)]

    def restore(self) -> None:
        """Give back what evaluations have changed."""
        self.inner.restore()
