"""Programs of named primitives: what a state machine grows, runs in any engine, and prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array


class Step(NamedTuple):
    """One line of a program: a leaf with its array, or a primitive on earlier lines."""

    name: str
    operands: tuple[int, ...] = ()
    args: tuple[Any, ...] = ()

    def run(self, F: Any, xs: Sequence[Any]) -> Any:
        """Call the primitive of the namespace `F`."""
        if self.name == "getitem":
            return xs[0][self.args[0]]
        if self.name == "concatenate":
            return F.concatenate(list(xs))
        return getattr(F, self.name)(*xs, *self.args)

    def __str__(self) -> str:
        xs = [f"v{k}" for k in self.operands]
        if self.name == "leaf":
            return f"np.array({self.args[0].tolist()})"
        if self.name == "getitem":
            return f"{xs[0]}[{_index(self.args[0])}]"
        if self.name == "concatenate":
            return f"F.concatenate([{', '.join(xs)}])"
        return f"F.{self.name}({', '.join([*xs, *map(repr, self.args)])})"


def _index(i: Any) -> str:
    if isinstance(i, tuple):
        return ", ".join([_index(j) for j in i])
    if isinstance(i, slice):
        return ":".join(["" if k is None else str(k) for k in (i.start, i.stop)])
    return "..." if i is ... else str(i.tolist() if isinstance(i, np.ndarray) else i)


@dataclass(frozen=True)
class Program:
    """A random function ``program(F, *leaves)``; printed, it is code.

    Attributes
    ----------
    steps : dict of int to Step
        By their numbers, each after its operands.
    outputs : tuple of int
        The numbers of what it returns.
    """

    steps: dict[int, Step]
    outputs: tuple[int, ...]

    def __call__(self, F: Any, *leaves: Any) -> tuple[Any, ...]:
        """Run it in the engine whose primitives the namespace `F` holds."""
        given, values = iter(leaves), {}
        for number, step in self.steps.items():
            if step.name == "leaf":
                values[number] = next(given)
            else:
                values[number] = step.run(F, [values[k] for k in step.operands])
        return tuple([values[k] for k in self.outputs])

    @property
    def leaves(self) -> dict[int, Array]:
        """The arrays it starts from."""
        return {k: step.args[0].copy() for k, step in self.steps.items() if step.name == "leaf"}

    def __str__(self) -> str:
        lines = [f"v{number} = {step}" for number, step in self.steps.items()]
        return "\n".join([*lines, f"return {', '.join([f'v{k}' for k in self.outputs])}"])
