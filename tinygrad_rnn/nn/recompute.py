"""Exact memory saving: the steps of a layer are run again for their gradients.

The method is that of Chen et al. 2016 (Training deep nets with sublinear memory cost): between the
segments of k steps the states are kept, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import DtypeError, GraphError
from ..functional import stack
from ..graph import nodes
from ..op import primitive
from ..ops import concat
from ..scope import at, masked, no_grad, recording
from ..tensor import Tensor, next_order
from ..transforms import grad
from .cells import Cell, is_whole
from .reading import DIRECTIONS, Input
from .states import State, fill, leaves

Loop = Callable[[list[Any], State, int], tuple[list[Any], State]]
"""``loop(inputs, state, start)``: run the steps from `start` on; (outputs in time, last state)."""
Runner = Callable[..., tuple[Any, State]]
"""``run(cell, loop, x, state, direction, given)``: all steps; (outputs (T, N, H), last state)."""


def check_every(who: str, every: Any) -> None:
    """Raise where `every` is no number of steps."""
    if not (every is None or every == "sqrt" or (is_whole(every) and every >= 1)):
        raise ValueError(
            f'{who}: checkpoint_every={every!r} must be a number of steps, 1 or more, or "sqrt"'
        )


@primitive(None, "f(x, ...)")
def recompute(*arrays: Array, run: Segments) -> Array:
    """What a function gives, without what it went through: that is run again for the gradient."""
    return run.forward(arrays)


recompute.vjp_all(lambda g, y, *inputs, run: run.backward(g, y, inputs))


def segmented(
    cell: Cell, loop: Loop, x: Tensor | None, state: State, direction: str, given: Input, every: int
) -> tuple[Tensor, State]:  # fmt: skip
    """Run a cell over all steps, `every` of them at a time."""
    reverse = direction == DIRECTIONS[1]
    return Segments(cell, loop, x, state, given.steps, every, reverse, given.used)()


class Segments:
    """One cell over T steps, `k` of them at a time; those behind all ends, `used` on, are zero.

    ``run()`` returns the outputs (T, N, H) and the last state, as one node of the graph.  That
    node's array holds, flat, the outputs, the states between the segments, the last state.
    """

    def __init__(
        self, cell: Cell, loop: Loop, x: Tensor | None, state: State, T: int, k: int,
        reverse: bool, used: int,
    ) -> None:  # fmt: skip
        self.cell, self.loop, self.template, self.reads = cell, loop, state, x is not None
        self.steps, self.used = T, used
        spans = [(t, min(t + k, used)) for t in range(0, used, k)]
        self.spans = spans[::-1] if reverse else spans  # in the order in which they run
        self.parameters = [p for p in cell.parameters() if p.requires_grad]
        self.inputs: list[Tensor] = [*([] if x is None else [x]), *leaves(state), *self.parameters]
        self._check_types(leaves(state))
        self.shape: tuple[int, ...] = ()  # of the outputs

    def __call__(self) -> tuple[Tensor, State]:
        """Run the cell."""
        flat = recompute(*self.inputs, run=self)
        out, ends = self._shares(flat)
        return out, self._nested(ends[-1])

    # --- states as parts of the flat array

    def _cut(self, flat: Any) -> list[Any]:
        """Return the arrays of a state that lie one after the other."""
        parts, begin = [], 0
        for s in leaves(self.template):
            parts.append(flat[begin : begin + s.size].reshape(s.shape))
            begin += s.size
        return parts

    def _nested(self, parts: Sequence[Any]) -> State:
        return fill(self.template, parts)

    def _inputs(self, given: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Return x, or None, and the arrays of the initial state."""
        n = len(leaves(self.template))
        return (given[0] if self.reads else None), list(given[self.reads : self.reads + n])

    # --- forward

    def forward(self, arrays: Sequence[Array]) -> Array:
        """Return the flat array; of the graph inside nothing is left."""
        x, parts = self._inputs(arrays)
        before = self._drawn()
        state = self._nested([Tensor(a) for a in parts])
        flat: Array | None = None
        with no_grad():
            for number, (begin, end) in enumerate(self.spans):
                outputs, state = self.loop(self._steps(x, begin, end), state, begin)
                last = [s.data for s in leaves(state)]
                if flat is None:
                    one = outputs[0].data
                    self.shape = (self.steps, *one.shape)
                    size = sum([s.size for s in last]) * len(self.spans) + math.prod(self.shape)
                    self._check_types([one, *last])
                    flat = np.zeros(size, np.result_type(one, *last))
                    out, ends = self._shares(flat)
                for t, y in enumerate(outputs, begin):
                    out[t] = y.data
                for place, s in zip(ends[number], last, strict=True):
                    place[...] = s
        if self._drawn() != before:
            raise GraphError(
                f"checkpoint_every: {type(self.cell).__name__} draws random numbers in its steps, "
                f"which would be others when they are run again; use recurrent_dropout or zoneout"
            )
        assert flat is not None
        return flat

    def _check_types(self, given: Sequence[Any]) -> None:
        """Raise where what shall lie in one array is of several types, complex parts apart."""
        types = [a.dtype for a in given]
        kinds = dict.fromkeys([np.finfo(d).dtype if d.kind == "c" else d for d in types])
        if len(kinds) > 1:
            raise DtypeError(
                f"checkpoint_every: output and state of {type(self.cell).__name__} must have one "
                f"floating type, got {', '.join([str(d) for d in kinds])}"
            )

    @staticmethod
    def _steps(x: Any, begin: int, end: int) -> list[Any]:
        if x is None:
            return [None] * (end - begin)
        return [Tensor(x[t]) for t in range(begin, end)]

    def _drawn(self) -> list[Any]:
        """Return the state of every generator of the cell."""
        return [
            value.bit_generator.state
            for _, module in self.cell.named_modules()
            for value in vars(module).values()
            if isinstance(value, np.random.Generator)
        ]

    # --- backward

    def backward(self, g: Any, y: Any, given: Sequence[Any]) -> list[Any]:
        """Return the gradients of x, the initial state and the parameters of the cell.

        On arrays each segment's graph is freed before the next one's is made; on Tensors all of it
        is recorded, and the states between the segments are read from `y`, as by any rule.  Either
        way a segment begins at leaves: what its input depends on is not its own.
        """
        again = isinstance(g, Tensor)
        x, parts = self._inputs(given)
        g_out, g_ends = self._shares(g)
        starts = [parts, *self._shares(y)[1][:-1]]
        reads = self.reads and self.inputs[0].requires_grad
        g_x: list[Any] = []
        g_state: list[Any] = []
        g_parameters: list[Any] = []
        for (begin, end), start, g_end in zip(
            self.spans[::-1], starts[::-1], g_ends[::-1], strict=True
        ):
            first = next_order()
            with recording(), at(None), masked(None):
                own = [*([x[begin:end]] if reads else []), *start]
                own = [a * 1 if again else Tensor(a, requires_grad=True) for a in own]
                if g_state:
                    g_end = [a + b for a, b in zip(g_end, g_state, strict=True)]
                with _cut_off(own):
                    start = own[reads:]
                    steps = list(own[0]) if reads else self._steps(x, begin, end)
                    outputs, final = self.loop(steps, self._nested(start), begin)
                    ends = [stack(outputs), *leaves(final)]
                    self._check_leaves(ends, first)
                    found = grad(
                        ends,
                        [*own, *self.parameters],
                        [g_out[begin:end], *g_end],
                        create_graph=again,
                    )
                g_x += [found.pop(0)] if reads else []
                g_state, more = found[: len(start)], found[len(start) :]
                if g_parameters:
                    more = [a + b for a, b in zip(g_parameters, more, strict=True)]
                g_parameters = more
        if not self.reads:
            return [*g_state, *g_parameters]
        if not reads:
            return [None, *g_state, *g_parameters]
        g_x = g_x if self.spans[0][0] else g_x[::-1]  # in the order of time
        rest = np.zeros((self.steps - self.used, *x.shape[1:]), x.dtype)
        return [concat(*g_x, rest), *g_state, *g_parameters]

    def _shares(self, flat: Any) -> tuple[Any, list[list[Any]]]:
        """Return what a flat array holds: the outputs, and the state after each segment."""
        begin = math.prod(self.shape)
        width = sum([s.size for s in leaves(self.template)])
        ends = [
            self._cut(flat[k : k + width])
            for k in range(begin, begin + width * len(self.spans), width)
        ]
        return flat[:begin].reshape(self.shape), ends

    def _check_leaves(self, ends: list[Any], first: int) -> None:
        """Raise where the steps read a Tensor whose gradient would be lost."""
        known = {p.order for p in self.parameters}
        for t in nodes(ends, requiring=True):
            if t.requires_grad and t.order < first and t.order not in known:
                raise GraphError(
                    f"checkpoint_every: {type(self.cell).__name__} reads {t.name or 'a Tensor'} "
                    f"{t.shape}, which is no parameter of it: its gradient would be lost; pass it "
                    f"as a part of the state, or leave checkpoint_every away"
                )


@contextmanager
def _cut_off(nodes: list[Tensor]) -> Iterator[None]:
    """Let nodes be leaves inside: the graph that they were made by is not entered."""
    before = [(t.op, t.inputs) for t in nodes]
    for t in nodes:
        t.op, t.inputs = None, ()
    try:
        yield
    finally:
        for t, (op, inputs) in zip(nodes, before, strict=True):
            t.op, t.inputs = op, inputs
