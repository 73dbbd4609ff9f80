"""A cell that is fed its own output: sequences that a network makes by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops
from ..errors import ShapeError
from ..scope import mark
from ..tensor import Tensor
from .cells import Cell
from .states import State, as_tensors, structure


class FeedbackCell(Cell):
    """A cell whose previous output is its next input: vector to sequence, free-running decoders.

    ::

        h(t), s(t) = cell([x(t), y(t-1)], s(t-1))       s: the state of the cell
        y(t) = readout(h(t))

    The input of the cell is what is fed back and, before it, what comes from outside: of its D
    features `input_size` remain for x(t).  Where that is 0 the layer runs by itself,
    ``Recurrent(FeedbackCell(cell, readout))(None, steps=T)``: "the previous step's output is the
    next step's input" (the lecture; Jordan 1986).  The state is (s, y).  ``start(y)`` makes one
    of the vector that a sequence begins with; with the state of an encoder it is
    ``start(y, state)``.

    Train it as it runs, or with the true outputs (teacher forcing): ``Recurrent(cell)`` on the
    targets, moved on by one step, has the same parameters.

    Parameters
    ----------
    cell : Cell
    readout : callable, optional
        What makes y (N, V) of the cell's output (N, H), as a ``Linear(H, V)``; without it y is
        the cell's output.
    feed : callable, optional
        What of y (N, V) is fed back, y itself by default: ``softmax``, or for words
        ``Sequential(lambda y: y.data.argmax(-1), Embedding(V, D))``.

    Raises
    ------
    TypeError
        If `cell` is no Cell, or `readout` or `feed` cannot be called.
    ShapeError
        If what is fed back has more features than the cell takes, or no shape (N, features).

    Examples
    --------
    Twice as much every step, from 1:

    >>> from tinygrad_rnn.nn import Linear, Recurrent, RNNCell
    >>> cell = FeedbackCell(RNNCell(1, 1, activation="identity"), Linear(1, 1))
    >>> one, zero = [[1.0]], [0.0]
    >>> cell.load_state_dict({"cell.W_x": one, "cell.W_h": [[0.0]], "cell.b": zero,
    ...                       "readout.W": [[2.0]], "readout.b": zero})
    >>> y, _ = Recurrent(cell)(None, cell.start([[1.0]]), steps=4)
    >>> y.numpy().ravel()
    array([ 2.,  4.,  8., 16.], dtype=float32)
    """

    def __init__(
        self,
        cell: Cell,
        readout: Callable[[Tensor], Any] | None = None,
        *,
        feed: Callable[[Tensor], Any] | None = None,
    ) -> None:
        if not isinstance(cell, Cell):
            raise TypeError(
                f"FeedbackCell: cell is {type(cell).__name__}, expected a Cell: one step, no layer"
            )
        for name, f in (("readout", readout), ("feed", feed)):
            if f is not None and not callable(f):
                raise TypeError(
                    f"FeedbackCell: {name} is {type(f).__name__}, expected a layer or a function"
                )
        self.cell, self.readout, self.feed = cell, readout, feed
        h = np.zeros((1, cell.hidden_size), cell.dtype)
        y = self._of("readout", readout, as_tensors(h))
        fed = self._of("feed", feed, y)
        self.fed_size = fed.shape[1]
        self.states = (*cell.states, "y" if feed is None else "fed")
        if self.fed_size > cell.input_size:
            raise ShapeError(
                f"FeedbackCell: {self.fed_size} features are fed back, but "
                f"{type(cell).__name__} takes input_size={cell.input_size}"
            )
        super().__init__(cell.input_size - self.fed_size, y.shape[1], dtype=cell.dtype)

    def _of(self, name: str, f: Callable[[Tensor], Any] | None, y: Tensor) -> Tensor:
        """Return f(y), or y without f; raise where it is not one row for each of y."""
        made = y if f is None else as_tensors(f(y), y.dtype)
        if not isinstance(made, Tensor) or made.ndim != 2 or len(made) != len(y):
            raise ShapeError(
                f"FeedbackCell: {name} made {structure(made)} of {y.shape}, "
                f"expected ({len(y)}, features)"
            )
        return made

    def initial_state(self, batch: int) -> tuple[Any, Any]:
        """Return the first state of the cell and y(0) = 0."""
        return self.cell.initial_state(batch), np.zeros((batch, self.fed_size), self.dtype)

    def first_state(self, batch: int) -> Any:
        """Return the same as Tensors, with the rows that this cell or the one inside learns."""
        inner, y = super().first_state(batch)
        return inner if self.learns_state else self.cell.first_state(batch), y

    def start(self, y: Any, state: State = None) -> tuple[State, Tensor]:
        """Return the state that feeds `y` to the next step.

        Parameters
        ----------
        y : array_like or Tensor (N, features)
            As it is fed back: in the place of ``feed(y)``.
        state : optional
            Of the cell; by default its first one.

        Raises
        ------
        ShapeError
            For another shape of `y`.
        """
        fed = as_tensors(y, self.dtype)
        if not isinstance(fed, Tensor) or fed.ndim != 2 or fed.shape[1] != self.fed_size:
            raise ShapeError(
                f"FeedbackCell.start: y has shape {structure(fed)}, expected (N, {self.fed_size})"
            )
        return self.first_state(len(fed))[0] if state is None else state, fed

    def step(self, x: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Return y and (the state of the cell, what is fed back)."""
        inner, fed = state
        h, inner = self.cell.step(fed if x is None else ops.concat(x, fed, axis=1), inner)
        y = self._of("readout", self.readout, h)
        mark(y=y)
        if self.feed is None:
            return y, (inner, y)
        fed = self._of("feed", self.feed, y)
        mark(fed=fed)
        return y, (inner, fed)
