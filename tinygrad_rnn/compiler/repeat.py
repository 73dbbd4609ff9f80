"""A call like one before: what was checked then is not checked again.

Of a small layer the reading of its input, of its state and of its settings takes longer than its
steps.  A `Repeat` holds what a call found; it is used as long as everything that it rested on is
the very same.
"""

from __future__ import annotations

from functools import partial
from operator import is_
from typing import Any

import numpy as np

from .. import tensor
from ..nn.cells import Cell
from ..nn.noise import Noise
from ..nn.reading import DIRECTIONS
from ..nn.recurrent import Recurrent
from ..nn.stacked import _Stacked
from ..nn.states import State, fill, leaves, name_parts
from ..op import Op
from ..scope import ALWAYS, NEEDED, Scope
from ..tensor import Parameter, Tensor
from .outside import PLAIN
from .passes import Schedule
from .tape import Run, loop, output, unroll


class Repeat:
    """What a call of one cell over a whole batch rested on."""

    def __init__(
        self, layer: Recurrent, cell: Cell, state: State, outside: Any, plan: Schedule,
        kernels: Any, named: list[tuple[str, Parameter]],
    ) -> None:  # fmt: skip
        self.layer, self.settings = layer, dict(vars(layer))
        self.cell, self.own = cell, dict(vars(cell))
        self.outside, self.told = outside, outside()
        self.plan, self.kernels, self.state = plan, kernels, state
        self.names = [name for name, _ in named]
        self.parameters = [p for _, p in named]
        self.flags = [(p.requires_grad, p.data.shape, p.data.dtype) for p in self.parameters]
        self.starts = leaves(state)
        self.level = type(state) is tuple and len(state) == len(self.starts)
        self.lead = isinstance(layer, _Stacked)  # its states have an axis of layers

    def holds(self) -> bool:
        """Return whether everything is as it was."""
        try:
            return (
                _are(vars(self.layer), self.settings)
                and self.layer.L0[DIRECTIONS[0]] is self.cell  # type: ignore[attr-defined]
                and _are(vars(self.cell), self.own)
                and self.outside() == self.told
                and [(p.requires_grad, p.data.shape, p.data.dtype) for p in self.parameters]
                == self.flags
            )
        except Exception:  # what is compared there may be anything
            return False

    def begin(self, state: State) -> list[Tensor] | None:
        """Return the parts of a state to start from; None where they need more than a look."""
        if state is None:
            return self.starts
        parts = state if type(state) is tuple else (state,)
        if len(parts) != len(self.starts) or (type(state) is tuple) != self.level:
            return None
        found = []
        for part, like in zip(parts, self.starts, strict=True):
            if type(part) is not Tensor or part.requires_grad:
                return None
            data = part.data
            if self.lead:
                if data.ndim < 1 or len(data) != 1:
                    return None
                data = data[0]
            if data.shape != like.data.shape or data.dtype != like.data.dtype:
                return None
            found.append(Tensor(data))
        return found

    def run(self, x: Tensor, starts: list[Tensor], here: Scope) -> tuple[Tensor, State]:
        """Return the output and the last state."""
        T, N, _ = x.data.shape
        here.place.call.steps = T  # type: ignore[union-attr]
        unrolled = partial(
            self.layer._unroll, self.cell, place=(here.place.call, 0, DIRECTIONS[0]),  # type: ignore[union-attr]
            valid=None, noise=_NONE, traced=None,
        )  # fmt: skip
        run = Run(self.plan, self.kernels, T, N, False, True, self.names, None, None,
                  partial(unroll, unrolled, self.state, T))  # fmt: skip
        inputs = (x, *starts, *self.parameters)
        needs = self.plan.backward
        data = run.forward([t.data for t in inputs])
        made, node = run.outputs, tensor._node
        token = node(loop, inputs, {"run": run}, data, needs)
        y = node(output, (token,), {"run": run, "key": "y"}, made["y"], needs)
        parts = [
            node(output, (token,), {"run": run, "key": k, "lead": self.lead},
                 made[k][None] if self.lead else made[k], needs)
            for k in range(len(starts))
        ]  # fmt: skip
        final = tuple(parts) if self.level else fill(self.state, parts)
        if not self.lead:
            name_parts(final, self.cell.states)
        return y, final


def _are(now: dict[str, Any], before: dict[str, Any]) -> bool:
    """Return whether two dicts hold the very same objects; Tensors would compare their numbers."""
    return now.keys() == before.keys() and all(map(is_, now.values(), before.values()))


_NONE = Noise(None, 0.0, 0.0)


def repeats(layer: Recurrent, kind: type[Recurrent], cell: Cell, starts: list[Tensor]) -> bool:
    """Return whether a call like the one that was just made can be told by its `key_of`."""
    return (
        layer.num_layers == layer.num_directions == 1
        and not (layer.batch_first or layer.recurrent_dropout or layer.zoneout)
        and layer.checkpoint_every is None
        and not cell.learns_state
        and _is_ours(kind)
        and _is_ours(type(cell).initial_state)
        and all(isinstance(v, (*PLAIN, Parameter, Op, np.dtype)) for v in vars(cell).values())
        and not any(s.requires_grad for s in starts)  # neither given nor learned
    )


def _is_ours(what: Any) -> bool:
    return str(what.__module__).startswith("tinygrad_rnn.nn.")


def key_of(x: Tensor, here: Scope, layer: Recurrent) -> tuple[Any, ...] | None:
    """Return what tells such calls apart before anything else; None where it is no such call."""
    place, data = here.place, x.data
    if (
        data.ndim != 3 or not len(data) or here.mode == ALWAYS or here.frozen is not None
        or here.kind is not None or place is None or place.step is not None
    ):  # fmt: skip
        return None
    needs = here.mode == NEEDED and x.requires_grad
    return data.shape[1:], data.dtype, needs, here.mode, layer.training
