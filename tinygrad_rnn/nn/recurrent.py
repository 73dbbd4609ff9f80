"""Layers that unroll any cell over time: stacked, in both directions, over ragged batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..arrays import Array
from ..errors import DtypeError, ShapeError, StateError
from ..functional import dropout_mask, stack
from ..inspection import where
from ..memory import release
from ..module import Module
from ..scope import NEEDED, Call, Place, at, scope
from ..tensor import Tensor, next_order
from .cells import Cell
from .states import (
    State,
    alike,
    as_tensors,
    choose,
    first_of,
    holds_tensors,
    keep_past_end,
    leaves,
    map_state,
    name_initial,
    nest,
    structure,
)  # fmt: skip

DIRECTIONS = ("fwd", "rev")
Trace = dict[str, Tensor]
_WORTH_RELEASING = 1 << 12  # elements of an output; the walk over a step costs as much as 10 ops


class _Input(NamedTuple):
    """What a call was given, as one step after the other."""

    steps: list[Tensor | None]  # T inputs (N, D)
    batch: int
    valid: Array | None  # (T, N): which steps lie inside their sequence; None: all
    lengths: Array | None  # of the sequences of a list
    unbatched: bool


class Recurrent(Module):
    """A layer that runs cells over time: any cell, any number of layers, one direction or both.

    Parameters
    ----------
    cells : Cell, or list of them
        One for each layer, bottom first; for two directions each entry is a pair
        ``(forward, reverse)``, whose outputs are concatenated.
    batch_first : bool
        Whether input and output are (N, T, D) instead of (T, N, D); states never are.
    dropout : float
        Probability of zeroing an element of the output of each layer but the last, in training.
    rng : int or numpy.random.Generator, optional
        For dropout.

    Attributes
    ----------
    L0, L1, ... : dict of str to Cell
        The cells of each layer by direction, ``{"fwd": cell, "rev": cell}``.

    Examples
    --------
    >>> from tinygrad_rnn.nn import GRUCell, RNNCell
    >>> layer = Recurrent([RNNCell(3, 4, rng=0), GRUCell(4, 2, rng=0)])
    >>> out, (h_rnn, h_gru) = layer(np.ones((5, 1, 3)))
    >>> out.shape, h_rnn.shape, h_gru.shape
    ((5, 1, 2), (1, 4), (1, 2))
    """

    def __init__(
        self,
        cells: Cell | tuple[Cell, Cell] | Sequence[Cell | tuple[Cell, Cell]],
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        rng: Any = None,
    ) -> None:
        entries = list(cells) if isinstance(cells, list) else [cells]
        pairs = [entry if isinstance(entry, tuple) else (entry,) for entry in entries]
        _check_cells(type(self).__name__, pairs)
        if not 0 <= dropout <= 1:
            raise ValueError(f"{type(self).__name__}: dropout={dropout} is not in [0, 1]")
        self.batch_first, self.dropout = batch_first, dropout
        self.num_layers, self.num_directions = len(pairs), len(pairs[0])
        self.rng = np.random.default_rng(rng)
        for k, pair in enumerate(pairs):
            setattr(self, f"L{k}", dict(zip(DIRECTIONS, pair, strict=False)))

    def cells(self) -> Iterator[tuple[int, str, Cell]]:
        """Yield (layer, direction, cell), layer by layer, forward before reverse."""
        for k in range(self.num_layers):
            for direction, cell in getattr(self, f"L{k}").items():
                yield k, direction, cell

    def forward(
        self,
        x: Any = None,
        state: State = None,
        *,
        lengths: Any = None,
        steps: int | None = None,
        trace: bool = False,
    ) -> Any:
        """Run the cells over a sequence.

        Parameters
        ----------
        x : array_like or Tensor (T, N, D) or (T, D), list of arrays (T_n, D), or None
            A batch, one sequence, or ragged sequences; None runs `steps` steps without input.
            Plain numbers are converted to the dtype of the layer.
        state : optional
            As it is returned; zero by default.  Without a batch, without the axis N.
        lengths : array_like of int (N,), optional
            How many steps of each sequence are valid; 0 is allowed.  Beyond them the output is
            zero, the last *valid* state is returned, the reverse direction starts at each
            sequence's own end, and no value of x matters.
        steps : int, optional
            T, with ``x=None``.
        trace : bool
            Whether to return what the cells marked.

        Returns
        -------
        out : Tensor (T, N, H) or (T, H), or a list of Tensors (T_n, H) for a list
            H is that of the last layer, times the directions.
        state
            That of the one cell, or a tuple of the cells' states, forward before reverse.
        trace : dict of str to Tensor
            Only with ``trace=True``: ``trace["L0.fwd.f"]`` of shape (T, N, H), differentiable.
            It holds what was marked: where all lengths are 0 no step ran, and it is empty.
            A mark without a batch (see ``Cell``), as a learned leak (H,), gives (T, H).

        Raises
        ------
        ShapeError
            For wrong ranks, sizes or lengths, T = 0 and N = 0.
        StateError
            For a state of the wrong structure.
        """
        state = nest(state)
        given = self._read(x, state, lengths, steps)
        here = scope()
        call = here.place.call if here.place and here.place.step is None else Call(self.path)
        call.steps = T = len(given.steps)
        states = self._split_state(state, given)
        traced: Trace | None = {} if trace else None
        finals: list[State] = []
        inputs = given.steps
        before = here.place, here.marks
        try:
            for k in range(self.num_layers):
                sides = []
                for direction, cell in getattr(self, f"L{k}").items():
                    place = (call, k, direction)
                    out, final = self._unroll(
                        cell, inputs, states.pop(0), given.valid, place, traced
                    )
                    sides.append(out)
                    finals.append(final)
                here.place, here.marks = Place(call), None
                inputs = list(sides[0])
                if len(sides) > 1:
                    inputs = [ops.concat(*parts, axis=-1) for parts in zip(*sides, strict=True)]
                if k < self.num_layers - 1 and self.dropout and self.training:
                    first = inputs[0]
                    assert first is not None
                    mask = dropout_mask((T, *first.shape), self.dropout, first.dtype, self.rng)
                    inputs = [y * m for y, m in zip(inputs, mask, strict=True)]
            result = self._join(inputs, given), self._join_state(finals, given)
        finally:
            here.place, here.marks = before
        if traced is None:
            return result
        return *result, {
            name: v[:, 0] if given.unbatched and v.ndim > 2 and v.shape[1] == 1 else v
            for name, v in traced.items()
        }

    def _unroll(
        self,
        cell: Cell,
        inputs: list[Tensor | None],
        state: State,
        valid: Array | None,
        place: tuple[Call, int, str],
        traced: Trace | None,
    ) -> tuple[list[Any], State]:
        """Run one cell over all steps; return its outputs in the order of time, and its state."""
        here, T = scope(), len(inputs)
        prefix = f"L{place[1]}.{place[2]}."
        outputs: list[Any] = [None] * T
        marked: list[dict[str, Any]] = [{}] * T
        first = True
        for t in reversed(range(T)) if place[2] == "rev" else range(T):
            here.place = Place(*place, t)
            inside = None if valid is None or valid[t].all() else valid[t]
            if inside is not None and not inside.any():  # every sequence has ended
                continue
            if traced is not None:
                here.marks = marked[t] = {}
            since = next_order()
            result = cell.step(inputs[t], state)
            if (
                first
                or type(result) is not tuple
                or len(result) != 2
                or not alike(result[1], state)
            ):
                _check_step(cell, result, state)
            y, new = result
            if first:
                name_initial(state, new)
                first = False
            if inside is not None:
                y, new = choose(inside, y, 0.0), keep_past_end(inside, new, state)
            outputs[t], state = y, new
            if (
                y.requires_grad
                and y.size >= _WORTH_RELEASING
                and here.mode == NEEDED
                and here.frozen is None
            ):
                release([y, *leaves(new)], since)
        here.place, here.marks = Place(place[0]), None
        blank = next((y for y in outputs if y is not None), None)
        if blank is None:  # all sequences have length 0
            blank = Tensor(np.zeros((len(valid[0]), cell.hidden_size), cell.dtype))  # type: ignore[index]
        outputs = [Tensor(np.zeros_like(blank.data)) if y is None else y for y in outputs]
        if traced is not None:
            for name in dict.fromkeys([name for marks in marked for name in marks]):
                traced[prefix + name] = _stack_marks(name, marked, valid)
        return outputs, state

    # --- reading what was given

    def _read(self, x: Any, state: State, lengths: Any, steps: int | None) -> _Input:
        who = type(self).__name__
        first = next(self.cells())[2]
        D = getattr(first, "input_size", None)
        if x is None:
            if D:
                raise ShapeError(f"{who}: input_size is {D}, so x (T, N, {D}) is needed")
            if lengths is not None:
                raise ShapeError(f"{who}: lengths go with x; without input pass steps=T")
            if not isinstance(steps, int | np.integer) or steps < 1:
                raise ShapeError(f"{who}: without input pass steps=T, 1 or more; got {steps}")
            batch, unbatched = self._batch_of_state(state)
            return _Input([None] * steps, batch, None, None, unbatched)
        if D == 0:
            raise ShapeError(f"{who}: input_size is 0: pass x=None and steps=T")
        ragged = None
        if isinstance(x, list) and x and all([isinstance(s, Tensor | np.ndarray) for s in x]):
            if lengths is not None:
                raise ShapeError(f"{who}: a list of sequences has its own lengths; pass no lengths")
            x, ragged = self._pad(x, D)
            lengths = ragged
        elif isinstance(x, Tensor):
            x = x if x.dtype.kind in "fc" else x.astype(first.dtype)
        else:
            try:
                a = np.asarray(x)
            except ValueError:
                raise ShapeError(
                    f"{who}: x has parts of unequal length; pass sequences as a list of arrays"
                ) from None
            if a.dtype.kind not in "biufc":
                raise DtypeError(f"{who}: x is {a.dtype}, not numbers")
            x = a if a.dtype.kind == "c" else a.astype(first.dtype)
        unbatched = x.ndim == 2
        if x.ndim not in (2, 3):
            raise ShapeError(f"{who}: x has shape {x.shape}; expected (T, N, {D}) or (T, {D})")
        if unbatched:
            x = x.reshape(x.shape[0], 1, x.shape[1])
        elif self.batch_first and ragged is None:
            x = x.transpose(1, 0, 2)
        T, N, last = x.shape
        read = f"x read as (T={T}, N={N}, D={last})"
        if 0 in (T, N):
            raise ShapeError(f"{who}: {read}: T and N must be 1 or more")
        if D is not None and last != D:
            raise ShapeError(f"{who} in {self.path or 'L0.fwd'}: {read}, but input_size is {D}")
        if steps is not None and steps != T:
            raise ShapeError(f"{who}: steps={steps}, but {read}")
        if lengths is not None and unbatched:
            raise ShapeError(f"{who}: lengths go with a batch, but {read} is one sequence")
        valid = None
        if lengths is not None:
            lengths = self._check_lengths(lengths, T, N, read)
            if (lengths < T).any():
                valid = np.arange(T)[:, None] < lengths
                x = ops.where(valid[:, :, None], x, 0.0)  # not even a NaN beyond the end matters
        self._check_batch(state, unbatched, N, T, read)
        x = self._to_steps(x)
        return _Input(_steps(x), N, valid, ragged, unbatched)

    def _to_steps(self, x: Any) -> Tensor:
        """Return x (T, N, D) as a Tensor; ``debug()`` names the step that is not finite."""
        if scope().frozen is not None:
            finite = np.isfinite(x.data if isinstance(x, Tensor) else x)
            if not finite.all():
                t = int(np.argmin(finite.all(axis=(1, 2))))
                with at(Place(Call(self.path, len(x)), 0, DIRECTIONS[0], t)):
                    Tensor(np.asarray(x[t]), name="x")
        return x if isinstance(x, Tensor) else Tensor(x, name="x")

    def _pad(self, sequences: list[Any], D: int | None) -> tuple[Tensor, Array]:
        """Return ragged sequences side by side (T, N, D), and their lengths."""
        who, dtype = type(self).__name__, next(self.cells())[2].dtype
        parts = [as_tensors(s, dtype) for s in sequences]
        for n, s in enumerate(parts):
            if s.ndim != 2 or (D is not None and s.shape[1] != D):
                raise ShapeError(
                    f"{who}: sequence {n} has shape {s.shape}; expected (T, {D or 'D'})"
                )
        T = max(s.shape[0] for s in parts)
        if T == 0:
            raise ShapeError(f"{who}: all {len(parts)} sequences are empty: T must be 1 or more")
        padded = [
            s if s.shape[0] == T else ops.concat(s, np.zeros((T - s.shape[0], s.shape[1]), s.dtype))
            for s in parts
        ]
        return stack(padded, axis=1), np.array([s.shape[0] for s in parts])

    def _check_lengths(self, lengths: Any, T: int, N: int, read: str) -> Array:
        who, a = type(self).__name__, np.asarray(lengths)
        if a.dtype.kind not in "iu":
            raise DtypeError(f"{who}: lengths are integers, got {a.dtype}")
        if a.shape != (N,):
            raise ShapeError(
                f"{who}: lengths have shape {a.shape}, expected ({N},): {read}"
                + self._looks_batch_first(a.shape == (T,))
            )
        if (a < 0).any() or (a > T).any():
            n = int(np.argmax((a < 0) | (a > T)))
            raise ShapeError(f"{who}: length {a[n]} of sequence {n} is not in 0..T={T}")
        return a

    def _check_batch(self, state: State, unbatched: bool, N: int, T: int, read: str) -> None:
        """Raise where the state belongs to a batch of another size, which is that of time."""
        shape, axis = np.shape(first_of(state)), self._state_axes - 2
        if not unbatched and len(shape) > axis + 1 and shape[axis] == T != N:
            raise StateError(
                f"{type(self).__name__}: the state has N={T}, but {read}"
                + self._looks_batch_first(True)
            )

    def _looks_batch_first(self, fits: bool) -> str:
        if not fits:
            return ""
        return (
            "; x looks time-first: leave batch_first=True away"
            if self.batch_first
            else "; x looks batch-first: pass batch_first=True"
        )

    def _batch_of_state(self, state: State) -> tuple[int, bool]:
        """Return N and whether a state is without a batch; N = 1 without a state."""
        array, axes = first_of(state), self._state_axes
        if array is None:
            return 1, False
        shape = np.shape(array)
        return (1, True) if len(shape) < axes else (shape[axes - 2], False)

    _state_axes = 2  # of a state with a batch

    # --- states

    def _split_state(self, state: State, given: _Input) -> list[State]:
        """Return the initial state of every cell."""
        cells = list(self.cells())
        if state is None:
            parts: Sequence[Any] = [None] * len(cells)
        elif len(cells) == 1:
            parts = [state]
        elif isinstance(state, tuple) and len(state) == len(cells):
            parts = state
        else:
            raise StateError(
                f"{type(self).__name__}: the state must be a tuple of {len(cells)} states, "
                f"one for each layer and direction, got {structure(state)}"
            )
        return [
            self._initial(cell, part, f"L{k}.{direction}", given)
            for (k, direction, cell), part in zip(cells, parts, strict=True)
        ]

    def _initial(self, cell: Cell, state: Any, place: str, given: _Input) -> State:
        template = cell.initial_state(given.batch)
        if state is None:
            return as_tensors(template)
        state = as_tensors(state, cell.dtype)
        if given.unbatched:
            state = map_state(lambda s: s.reshape((1, *s.shape)), state)
        if structure(state) != structure(template):
            raise StateError(
                f"{type(self).__name__}: the state of {place} is {structure(state)}, "
                f"expected {structure(template)}" + (" (with N=1)" if given.unbatched else "")
            )
        return state

    def _join_state(self, finals: list[State], given: _Input) -> State:
        if given.unbatched:
            finals = [map_state(lambda s: s.reshape(s.shape[1:]), s) for s in finals]
        return finals[0] if len(finals) == 1 else tuple(finals)

    def _join(self, outputs: list[Any], given: _Input) -> Any:
        """Return the outputs as they are wanted: stacked, or a list of sequences."""
        if given.lengths is not None:
            out = stack(outputs)
            return [out[: int(n), k] for k, n in enumerate(given.lengths)]
        if given.unbatched:
            return stack([y.reshape(y.shape[1:]) for y in outputs])
        return stack(outputs, axis=1 if self.batch_first else 0)


def _steps(x: Tensor) -> list[Tensor | None]:
    """Return the T slices of `x`, each named and placed in the step that reads it first."""
    here = scope()
    before = here.place
    call = before.call if before else Call("")
    plain = not x.requires_grad and here.mode == NEEDED  # a read of it would not be recorded
    steps: list[Tensor | None] = []
    for t in range(x.shape[0]):
        here.place = Place(call, 0, DIRECTIONS[0], t)
        step = Tensor(x.data[t]) if plain else x[t]
        step.name = "x"
        steps.append(step)
    here.place = before
    return steps


def _check_cells(who: str, pairs: list[tuple[Any, ...]]) -> None:
    """Raise where cells do not make a stack."""
    if not pairs:
        raise ValueError(f"{who}: a list of cells, one for each layer, must not be empty")
    for k, pair in enumerate(pairs):
        if len(pair) != len(pairs[0]) or len(pair) not in (1, 2):
            raise ValueError(
                f"{who}: layer {k} has {len(pair)} directions, layer 0 {len(pairs[0])}"
            )
        for cell in pair:
            if not isinstance(cell, Cell):
                raise TypeError(f"{who}: layer {k} holds {type(cell).__name__}, which is no Cell")
    for k, (below, pair) in enumerate(pairwise(pairs)):
        width = sum([cell.hidden_size for cell in below])
        for cell in pair:
            if cell.input_size != width:
                raise ShapeError(
                    f"{who}: layer {k} gives {width} features, "
                    f"but a cell of layer {k + 1} takes input_size={cell.input_size}"
                )


def _check_step(cell: Cell, result: Any, state: State) -> None:
    """Raise where a step does not return an output and a state like the one it was given."""
    if not isinstance(result, tuple) or len(result) != 2 or not holds_tensors(result):
        parts = result if isinstance(result, tuple) else (result,)
        raise StateError(
            f"{type(cell).__name__}.step{where()}: returned "
            f"{', '.join([type(p).__name__ for p in parts])}; expected Tensors (output, state)"
        )
    if structure(result[1]) != structure(state):
        raise StateError(
            f"{type(cell).__name__}.step{where()}: returned a state {structure(result[1])}, "
            f"but was given {structure(state)}"
        )


def _stack_marks(name: str, marked: list[dict[str, Any]], valid: Array | None) -> Tensor:
    """Stack one marked value over time, zero past the end of each sequence."""
    some = next(marks[name] for marks in marked if name in marks)
    blank = Tensor(np.zeros_like(some.data))
    values = [marks.get(name, blank) for marks in marked]
    if valid is not None:
        values = [
            v if inside.all() or v.ndim < 2 or len(v) != len(inside) else choose(inside, v, 0.0)
            for v, inside in zip(values, valid, strict=True)
        ]
    stacked: Tensor = stack(values)
    return stacked
