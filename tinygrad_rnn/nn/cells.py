"""Recurrent cells: one step, written as the lecture writes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import ops
from ..arrays import Array
from ..errors import ShapeError, StateError
from ..functional import relu, split
from ..module import Module, floating
from ..ops import sigmoid, tanh
from ..scope import mark, scope
from ..tensor import Parameter, Tensor
from . import init
from .states import State, as_tensors, leaves, map_state, structure


class Cell(Module):
    """Base of recurrent cells: ``step(x, state) -> (output, state)``.

    A state is one array or any tuple of arrays; it is passed and returned, never kept.
    By default it is one array (N, H) that starts at zero.  ``mark(...)`` names the values of a
    step that shall be found later: after a step, a layer releases large unnamed ones that no
    gradient rule reads and that nobody else holds.  A mark that belongs to the sequences of the
    batch has the axes (N, ...), two at least; one of shape (H,) is the same for all of them.

    Parameters
    ----------
    input_size : int
        D; with 0 the cell runs without input: ``x`` is None and there is no ``W_x``.
    hidden_size : int
        H.
    dtype : dtype
        Of the parameters and the initial state.

    Examples
    --------
    >>> class Sum(Cell):
    ...     def step(self, x, h):
    ...         return h + x, h + x
    >>> from tinygrad_rnn.nn import Recurrent
    >>> out, h = Recurrent(Sum(1, 1))([[[1.0]], [[2.0]], [[3.0]]])
    >>> out.numpy().ravel(), h.item()
    (array([1., 3., 6.], dtype=float32), 6.0)
    """

    gates: tuple[str, ...] = ()  # the letters of the blocks in the weights, side by side
    states: tuple[str, ...] = ("h",)  # the letters of the parts of the state
    learns_state: bool = False

    def __init__(
        self, input_size: int, hidden_size: int, *, dtype: npt.DTypeLike = np.float32
    ) -> None:
        check_sizes(type(self).__name__, 0, input_size=input_size)
        check_sizes(type(self).__name__, hidden_size=hidden_size)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.dtype = floating(type(self).__name__, dtype)

    def step(self, x: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Return the output and the next state for the input ``x`` (N, D) and the state before."""
        raise NotImplementedError(f"{type(self).__name__} defines no step(x, state)")

    def initial_state(self, batch: int) -> Any:
        """Return the state before the first step for a batch of N: h(0) = 0."""
        return np.zeros((batch, self.hidden_size), self.dtype)

    def forward(self, x: Any, state: State = None) -> tuple[Tensor, State]:
        """Run one step by itself; without a state from the initial one."""
        if x is not None:
            x = as_tensors(x, self.dtype)
            if x.ndim != 2 or x.shape[1] != self.input_size:
                raise ShapeError(
                    f"{self.path or type(self).__name__}: x has shape {x.shape}, "
                    f"expected (N, {self.input_size})"
                )
        elif self.input_size:
            raise ShapeError(
                f"{self.path or type(self).__name__}: x (N, {self.input_size}) is missing"
            )
        batch = 1 if x is None else x.shape[0]
        template = self.initial_state(batch)
        state = self.first_state(batch) if state is None else as_tensors(state, self.dtype)
        if x is not None and structure(state) != structure(template):
            raise StateError(
                f"{self.path or type(self).__name__}: the state is {structure(state)}, "
                f"expected {structure(template)}"
            )
        return self.step(x, state)

    def first_state(self, batch: int) -> Any:
        """Return the state before the first step as Tensors, with the rows that are learned."""
        state = as_tensors(self.initial_state(batch))
        if not self.learns_state:
            return state
        rows = iter([getattr(self, name) for name in self._initial_names(state)])
        return map_state(lambda s: ops.broadcast(next(rows), shape=s.shape), state)

    def learn_state(self) -> None:
        """Make the state before the first step a parameter: a row ``h0`` (H,) for all sequences.

        It starts where ``initial_state`` does; a cell with a longer state has ``c0`` too.
        """
        zero = as_tensors(self.initial_state(1))
        for name, row in zip(self._initial_names(zero), leaves(zero), strict=True):
            setattr(self, name, Parameter(row.data[0]))
        self.learns_state = True

    def _initial_names(self, state: State) -> list[str]:
        count, names = len(leaves(state)), self.states
        if not count == len(names) == len(set(names)):  # letters that would name two rows alike
            names = tuple([f"s{k}_" for k in range(count)])
        return [f"{name}0" for name in names]

    def dropped(self, h: Tensor) -> Tensor:
        """Return h as the products with ``W_h`` see it: under the mask of recurrent dropout.

        The identity unless the layer has ``recurrent_dropout``.  ``affine`` calls it; a cell that
        multiplies by itself writes ``self.dropped(h) @ self.W_h``.
        """
        mask = scope().mask
        return h if mask is None else h * mask.read()

    def add_weights(self, gates: int = 1, *, bias: bool = True, rng: Any = None) -> None:
        """Define ``W_x (D, gates * H)``, ``W_h (H, gates * H)`` and ``b (gates * H,)``.

        Each gate has its own block, side by side: Xavier in ``W_x``, orthogonal in ``W_h``.
        """
        rng = np.random.default_rng(rng)
        D, H = self.input_size, self.hidden_size
        if D:
            blocks = [init.xavier((D, H), rng=rng, dtype=self.dtype) for _ in range(gates)]
            self.W_x = Parameter(np.concatenate(blocks, 1))
        blocks = [init.orthogonal((H, H), rng=rng, dtype=self.dtype) for _ in range(gates)]
        self.W_h = Parameter(np.concatenate(blocks, 1))
        if bias:
            self.b = Parameter(np.zeros(gates * H, self.dtype))

    def affine(self, x: Tensor | None, h: Tensor | None = None) -> Tensor:
        """Return a = x W_x + b + h W_h, equation (6), without the terms that are absent."""
        a = None if x is None else x @ self.W_x
        b = getattr(self, "b", None)
        if b is not None:
            a = b if a is None else a + b
        if h is not None:
            h = self.dropped(h)
            a = h @ self.W_h if a is None else a + h @ self.W_h
        return Tensor(np.zeros(self.W_h.shape[1], self.dtype)) if a is None else a

    def _astype(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def _letters(self) -> dict[str, str]:
        gates = self.W_h.shape[1] // self.hidden_size if hasattr(self, "W_h") else 1
        width = f"{gates}H" if gates > 1 else "H"
        return {"W_x": f"D * {width}", "W_h": f"H * {width}", "b": width, "h0": "H", "c0": "H"}


def check_sizes(who: str, least: int = 1, **sizes: Any) -> None:
    """Raise where a size is no whole number, or less than the least that makes sense."""
    for name, size in sizes.items():
        if not is_whole(size) or size < least:
            raise ValueError(f"{who}: {name}={size!r} must be a whole number, {least} or more")


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Return whether a value is a real number."""
    return is_whole(value) or isinstance(value, float | np.floating)


def _same(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": tanh, "relu": relu, "identity": _same}


class RNNCell(Cell):
    """The plain recurrent cell: h = phi(x W_x + b + h' W_h), equations (2), (6) and (7).

    Its output is its state (Elman 1990).

    Parameters
    ----------
    input_size, hidden_size : int
        D and H.
    activation : {"tanh", "relu", "identity"} or callable
        phi.
    bias : bool
    dtype : dtype
    rng : int or numpy.random.Generator, optional

    Examples
    --------
    >>> cell = RNNCell(1, 1, dtype=np.float64)
    >>> cell.load_state_dict({"W_x": [[0.5]], "W_h": [[0.1]], "b": [0.0]})
    >>> y, h = cell([[2.0]])
    >>> y.numpy().round(4)
    array([[0.7616]])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        activation: str | Callable[[Tensor], Tensor] = "tanh",
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, dtype=dtype)
        if isinstance(activation, str) and activation not in ACTIVATIONS:
            raise ValueError(
                f"RNNCell: activation is one of {', '.join(ACTIVATIONS)} or a callable, "
                f"got {activation!r}"
            )
        self.activation = ACTIVATIONS[activation] if isinstance(activation, str) else activation
        self.add_weights(bias=bias, rng=rng)

    def step(self, x: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Return (h, h)."""
        a = self.affine(x, state)
        h = self.activation(a)
        mark(a=a, h=h)
        return h, h


class LSTMCell(Cell):
    """Long short-term memory with a forget gate (Hochreiter and Schmidhuber 1997; Gers 1999).

    Equations (L1) to (L6) with the gates i, f, g, o side by side in the weights::

        i, f, g, o = x W_x + b + h' W_h,  i, f, o through sigmoid, g through tanh
        c = f * c' + i * g
        h = o * tanh(c)

    The forget gate *keeps*: f = 1 keeps the cell state, f = 0 drops it.  Its bias starts at 1
    (Jozefowicz et al. 2015).  The state is (h, c).

    Examples
    --------
    >>> y, (h, c) = LSTMCell(2, 3, rng=0)(np.ones((1, 2)))
    >>> y.shape, c.shape
    ((1, 3), (1, 3))
    """

    gates = ("i", "f", "g", "o")
    states = ("h", "c")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, dtype=dtype)
        self.add_weights(4, bias=bias, rng=rng)
        if bias:
            self.b.data[hidden_size : 2 * hidden_size] = 1  # the forget gate starts by keeping

    def initial_state(self, batch: int) -> tuple[Array, Array]:
        """Return h(0) = 0 and c(0) = 0."""
        zero = super().initial_state(batch)
        return zero, zero.copy()

    def step(self, x: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Return h and (h, c)."""
        h, c = state
        i, f, g, o = split(self.affine(x, h), 4)
        i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)  # input, forget, candidate, output
        c = f * c + i * g
        h = o * tanh(c)
        mark(i=i, f=f, g=g, o=o, c=c, h=h)
        return h, (h, c)


class GRUCell(Cell):
    """Gated recurrent unit (Cho et al. 2014), with the gates r, z, n side by side.

    ::

        r, z = sigmoid(x W_x + b + h' W_h)
        n = tanh(x W_xn + b_n + r * (h' W_hn + b_hn))      reset_after=True, as PyTorch and Keras
        n = tanh(x W_xn + b_n + (r * h') W_hn)             reset_after=False, as published
        h = (1 - z) * n + z * h'

    Parameters
    ----------
    reset_after : bool
        Whether the reset gate acts after the product with ``W_h``; then ``b_hn`` belongs to it.

    Examples
    --------
    >>> [name for name, _ in GRUCell(2, 3).named_parameters()]
    ['W_x', 'W_h', 'b', 'b_hn']
    """

    gates = ("r", "z", "n")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        reset_after: bool = True,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, dtype=dtype)
        self.reset_after = reset_after
        self.add_weights(3, bias=bias, rng=rng)
        if bias and reset_after:
            self.b_hn = Parameter(np.zeros(hidden_size, self.dtype))

    def step(self, x: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Return (h, h)."""
        h, H = state, self.hidden_size
        x_r, x_z, x_n = split(self.affine(x), 3)
        seen = self.dropped(h)
        if self.reset_after:
            h_r, h_z, h_n = split(seen @ self.W_h, 3)
            r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
            n = tanh(x_n + r * (h_n + self.b_hn if hasattr(self, "b_hn") else h_n))
        else:
            h_r, h_z = split(seen @ self.W_h[:, : 2 * H], 2)
            r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
            n = tanh(x_n + (r * seen) @ self.W_h[:, 2 * H :])
        h = (1 - z) * n + z * h
        mark(r=r, z=z, n=n, h=h)
        return h, h

    def _letters(self) -> dict[str, str]:
        return {**super()._letters(), "b_hn": "H"}
