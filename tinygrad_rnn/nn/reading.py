"""What a recurrent layer was given: read, checked, and cut into steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..arrays import Array
from ..errors import DtypeError, ShapeError, StateError
from ..functional import stack
from ..module import Module
from ..scope import NEEDED, Call, Place, at, scope
from ..tensor import Tensor
from .cells import Cell
from .states import State, as_tensors, first_of

DIRECTIONS = ("fwd", "rev")


class Input(NamedTuple):
    """What a call was given."""

    x: Tensor | None  # (T, N, D)
    steps: int  # T
    batch: int  # N
    valid: Array | None  # (T, N): which steps lie inside their sequence; None: all
    lengths: Array | None  # of the sequences of a list
    unbatched: bool

    @property
    def used(self) -> int:
        """How many steps lie inside any sequence; 1 at least."""
        return self.steps if self.valid is None else max(1, int(self.valid.any(axis=1).sum()))


class Reading(Module):
    """The part of a recurrent layer that reads its input."""

    batch_first: bool
    _state_axes = 2  # of a state with a batch

    def cells(self) -> Iterator[tuple[int, str, Cell]]:
        """Yield (layer, direction, cell), layer by layer, forward before reverse."""
        raise NotImplementedError

    def _read(self, x: Any, state: State, lengths: Any, steps: int | None) -> Input:
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
            return Input(None, int(steps), batch, None, None, unbatched)
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
        return Input(self._whole(x), T, N, valid, ragged, unbatched)

    def _whole(self, x: Any) -> Tensor:
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


def cut(x: Tensor) -> list[Tensor | None]:
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
