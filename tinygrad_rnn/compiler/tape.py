"""A compiled loop as a node of the tape: ``loop`` ran it, ``output`` reads what it made.

The node of the loop has no array of its own but a token; the cotangents of its outputs meet in
it, and its rule runs the steps back.  On Tensors the rule differentiates the unrolled steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from .. import autodiff
from ..arrays import Array
from ..functional import stack
from ..nn.reading import cut
from ..nn.states import State, fill, leaves
from ..op import OPS, Use, primitive
from ..scope import at, masked, recording
from ..tensor import Tensor
from .passes import Schedule


class Cotangents:
    """The gradients of the outputs of a loop, by their keys; zero where one is missing."""

    shape = ()
    __slots__ = ("parts",)

    def __init__(self, parts: dict[Any, Any]) -> None:
        self.parts = parts

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.concatenate([np.ravel(g) for g in self.parts.values()])  # for ``debug()``


class Run:
    """One call of a compiled loop.

    Its inputs are x, if there is one, the parts of the state, and the parameters; its outputs are
    called "y", 0, 1, ... for the parts of the last state, and "mark.f" for a mark f.
    """

    __slots__ = ("N", "S", "T", "inside", "kept", "kernels", "mask", "names", "outputs", "plan",
                 "reads", "reverse", "unrolled", "x")  # fmt: skip

    def __init__(
        self, plan: Schedule, kernels: Any, T: int, N: int, reverse: bool, reads: bool,
        names: Sequence[str], inside: Array | None, mask: Array | None,
        unrolled: Callable[..., tuple[Any, Any, dict[str, Any]]],
    ) -> None:  # fmt: skip
        self.plan, self.kernels, self.T, self.N = plan, kernels, T, N
        self.reverse, self.reads, self.names = reverse, reads, names
        self.inside, self.mask, self.unrolled = inside, mask, unrolled
        self.outputs: dict[Any, Array] = {}

    def _cut(self, arrays: Sequence[Any]) -> tuple[Any, Sequence[Any], Sequence[Any]]:
        n, first = len(self.plan.program.states), int(self.reads)
        return (arrays[0] if self.reads else None), arrays[first : first + n], arrays[first + n :]

    def forward(self, arrays: Sequence[Array]) -> Array:
        """Run all steps; keep what the way back reads."""
        T, N = self.T, self.N
        x, states, parameters = self._cut(arrays)
        self.x = None if x is None else np.ascontiguousarray(x).reshape(T * N, x.shape[2])
        first, last = (T, 0) if self.reverse else (0, T)
        self.S = []
        for s in states:
            whole = np.empty((T + 1, *s.shape), s.dtype)
            whole[first] = s
            self.S.append(whole)
        y, marks, self.kept = self.kernels.forward(
            T, N, self.reverse, self.x, self.S, parameters, self.inside, self.mask
        )
        outputs = self.outputs
        outputs["y"] = y.reshape((T, N, *y.shape[1:]))
        for k, whole in enumerate(self.S):
            outputs[k] = whole[last].copy()  # the output may lie there too
        if marks:
            for name, v in zip(self.plan.program.marks, marks, strict=True):
                outputs[f"mark.{name}"] = v.reshape((T, N, *v.shape[1:]))
        return np.zeros((), y.dtype)

    def backward(self, g: Cotangents, arrays: Sequence[Array]) -> list[Any]:
        """Return the gradients of all inputs."""
        plan, T, N = self.plan, self.T, self.N
        parts = g.parts
        _, _, parameters = self._cut(arrays)
        gy = self._whole(parts.get("y"), "y")
        gmarks = [self._whole(parts.get(f"mark.{m}"), f"mark.{m}")
                  for m in (plan.program.marks if plan.traced else ())]  # fmt: skip
        gends = [
            np.array(parts[k], order="C") if k in parts else np.zeros(whole.shape[1:], whole.dtype)
            for k, whole in enumerate(self.S)
        ]
        gx, gstates, found = self.kernels.backward(
            T, N, self.reverse, self.x, self.S, parameters, self.inside, self.mask, self.kept,
            gy, gends, gmarks,
        )  # fmt: skip
        by_name = dict(zip(plan.parameters, found, strict=True))
        head = [None if gx is None else gx.reshape(T, N, -1)] if self.reads else []
        return [*head, *gstates, *map(by_name.get, self.names)]

    def _whole(self, g: Any, key: str) -> Array:
        """Return the gradient of an output for all steps, as rows."""
        shape = self.outputs[key].shape
        if g is None:
            g = np.zeros(shape, self.outputs[key].dtype)
        return np.ascontiguousarray(g).reshape((self.T * self.N, *shape[2:]))

    def again(self, g: Cotangents, inputs: Sequence[Tensor]) -> list[Any]:
        """Return the gradients of all inputs as Tensors, through the unrolled steps."""
        x, states, parameters = self._cut(inputs)
        with recording(), at(None), masked(None):
            own_x = None if x is None else x * 1
            own = [s * 1 for s in states]
            heads = [*([] if own_x is None else [own_x]), *own]
            with ending_at(heads):
                y, state, marks = self.unrolled(own_x, own)
                outputs: dict[Any, Any] = {"y": stack(y), **dict(enumerate(leaves(state)))}
                outputs.update({f"mark.{k}": v for k, v in marks.items()})
                keys = list(g.parts)
                return autodiff.gradients(
                    [outputs[k] for k in keys], [*heads, *parameters],
                    [g.parts[k] for k in keys], create_graph=True,
                )  # fmt: skip


@contextmanager
def ending_at(heads: Sequence[Tensor]) -> Iterator[None]:
    """Let the graph end at `heads` for a while: what leads to them would get its part twice."""
    before = [(t, t.op, t.inputs) for t in heads]
    for t in heads:
        t.op, t.inputs = None, ()
    try:
        yield
    finally:
        for t, op, inputs in before:
            t.op, t.inputs = op, inputs


def unroll(
    unrolled: Callable[..., Any], template: State, T: int, x: Any, parts: Sequence[Any]
) -> tuple[list[Any], State, dict[str, Any]]:
    """Run the steps of a call again, recorded; return what they put out, last state and marks."""
    words = dict(unrolled.keywords)  # type: ignore[attr-defined]
    marks: dict[str, Any] | None = None if words["traced"] is None else {}
    steps = [None] * T if x is None else cut(x)
    again = partial(unrolled.func, *unrolled.args, **{**words, "traced": marks})  # type: ignore[attr-defined]
    outputs, final = again(steps, fill(template, parts))
    prefix = "L{}.{}.".format(*words["place"][1:])
    return outputs, final, {k.removeprefix(prefix): v for k, v in (marks or {}).items()}


def _part(g: Any, y: Any, token: Any, run: Run, key: Any, lead: bool = False) -> Cotangents:
    return Cotangents({key: g[0] if lead else g})


def _meet(token: Any, uses: Sequence[Use]) -> Cotangents:
    """Return the gradients of all outputs that were read, summed by key."""
    parts: dict[Any, Any] = {}
    for g, _, attrs in uses:
        key = attrs["key"]
        g = g[0] if attrs.get("lead") else g
        parts[key] = parts[key] + g if key in parts else g
    return Cotangents(parts)


def _back(g: Cotangents, y: Any, *inputs: Any, run: Run) -> list[Any]:
    return run.again(g, inputs) if isinstance(y, Tensor) else run.backward(g, inputs)


@primitive(None, "f(x, ...)")
def loop(*arrays: Array, run: Run) -> Array:
    """All steps of a compiled cell; what they made is read by ``output``."""
    return run.forward(arrays)


@primitive(None, "output of the loop", reads="")
def output(token: Array, run: Run, key: Any, lead: bool = False) -> Array:
    """One of the things that a compiled loop made, with an axis of layers where it has a `lead`."""
    return run.outputs[key][None] if lead else run.outputs[key]


loop.vjp_all(_back, fresh=True)
output.vjp(_part)
output.collect(0, _meet)
for _op in (loop, output):  # no primitives for models: they stand for the steps of one call
    del OPS[_op.name]
