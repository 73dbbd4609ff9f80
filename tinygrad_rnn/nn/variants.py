"""Variants of the recurrent cells: the LSTM with one gate changed, and two cells with less."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import Array
from ..functional import layer_norm, split
from ..ops import sigmoid, tanh
from ..scope import mark
from ..tensor import Parameter, Tensor
from . import init
from .cells import Cell, RNNCell, is_real
from .states import State


class LSTMVariant(Cell):
    """The LSTM with a method for each gate, so that a variant is written by overriding one.

    As it stands it is ``LSTMCell``, to the bit::

        a = x W_x + b + h' W_h                      preactivations(x, h')
        f = sigmoid(a_f)                            forget_gate(a_f, c')
        i = sigmoid(a_i)                            input_gate(a_i, c', f)
        g = tanh(a_g)                               candidate(a_g)
        c = f * c' + i * g
        o = sigmoid(a_o)                            output_gate(a_o, c)
        h = o * tanh(c)                             h = o * squash(c)

    ``gates`` names the blocks that have weights; the method of a gate without one gets None for
    its a, and must be overridden.  The forget bias starts at 1.  The state is (h, c).  Most
    variants that Greff et al. (2015) compare are one override; a cell that differs in more than
    gates is shorter as a ``step`` of its own.

    Parameters
    ----------
    input_size, hidden_size : int
        D and H.
    bias : bool
    dtype : dtype
    rng : int or numpy.random.Generator, optional

    Raises
    ------
    ValueError
        If ``gates`` has other letters, or leaves out a gate whose method was not overridden.

    Examples
    --------
    No forget gate, as the LSTM began (Hochreiter and Schmidhuber 1997):

    >>> class LSTM1997(LSTMVariant):
    ...     gates = ("i", "g", "o")
    ...     def forget_gate(self, a, c):
    ...         return 1.0
    >>> cell = LSTM1997(2, 3, rng=0)
    >>> y, (h, c) = cell(np.ones((1, 2)))
    >>> cell.W_h.shape, c.shape
    ((3, 9), (1, 3))
    """

    gates: tuple[str, ...] = ("i", "f", "g", "o")
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
        _check_gates(type(self))
        self.add_weights(len(self.gates), bias=bias, rng=rng)
        if bias and "f" in self.gates:  # the forget gate starts by keeping
            self.b.data.reshape(-1, hidden_size)[self.gates.index("f")] = 1

    def initial_state(self, batch: int) -> tuple[Array, Array]:
        """Return h(0) = 0 and c(0) = 0."""
        zero = super().initial_state(batch)
        return zero, zero.copy()

    def step(self, x: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Return h and (h, c)."""
        h, c = state
        a = dict(zip(self.gates, split(self.preactivations(x, h), len(self.gates)), strict=True))
        f = self.forget_gate(a.get("f"), c)
        i = self.input_gate(a.get("i"), c, f)
        g = self.candidate(a.get("g"))
        c = f * c + i * g
        o = self.output_gate(a.get("o"), c)
        h = o * self.squash(c)
        gates = {"i": i, "f": f, "g": g, "o": o}
        mark(**{k: v for k, v in gates.items() if isinstance(v, Tensor)}, c=c, h=h)
        return h, (h, c)

    def preactivations(self, x: Tensor | None, h: Tensor) -> Tensor:
        """Return a (N, gates * H), the blocks of all gates side by side."""
        return self.affine(x, h)

    def forget_gate(self, a: Any, c: Tensor) -> Any:
        """Return f, how much of c(t-1) is kept, from a_f and c(t-1)."""
        return sigmoid(a)

    def input_gate(self, a: Any, c: Tensor, f: Any) -> Any:
        """Return i, how much of the candidate is added, from a_i, c(t-1) and f."""
        return sigmoid(a)

    def candidate(self, a: Any) -> Any:
        """Return g from a_g."""
        return tanh(a)

    def output_gate(self, a: Any, c: Tensor) -> Any:
        """Return o, how much of the cell state is shown, from a_o and c(t)."""
        return sigmoid(a)

    def squash(self, c: Tensor) -> Any:
        """Return what the output gate lets through of c(t)."""
        return tanh(c)


_METHODS = {"i": "input_gate", "f": "forget_gate", "g": "candidate", "o": "output_gate"}


def _check_gates(cls: type[LSTMVariant]) -> None:
    """Raise where the gates of a variant are not those that its step computes."""
    wrong = [k for k in cls.gates if k not in _METHODS or cls.gates.count(k) > 1]
    if wrong:
        raise ValueError(
            f"{cls.__name__}: gates={cls.gates!r} has {wrong[0]!r}; expected some of i, f, g, o, "
            "each once"
        )
    for k, method in _METHODS.items():
        if k not in cls.gates and getattr(cls, method) is getattr(LSTMVariant, method):
            raise ValueError(
                f"{cls.__name__}: gates={cls.gates!r} gives {k} no weights, so that "
                f"{method} must be overridden: it gets a=None"
            )


class PeepholeLSTMCell(LSTMVariant):
    """LSTM whose gates see the cell state (Gers and Schmidhuber 2000; Gers et al. 2002).

    ::

        i = sigmoid(a_i + p_i * c'),  f = sigmoid(a_f + p_f * c')
        c = f * c' + i * tanh(a_g)
        o = sigmoid(a_o + p_o * c)
        h = o * tanh(c)

    The peepholes ``p_i, p_f, p_o`` (H,) connect each unit with itself alone; the output gate sees
    the new c.  They start at 0, where the cell is an LSTM.

    Examples
    --------
    >>> cell = PeepholeLSTMCell(2, 3, rng=0)
    >>> [name for name, _ in cell.named_parameters()]
    ['W_x', 'W_h', 'b', 'p_i', 'p_f', 'p_o']
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias=bias, dtype=dtype, rng=rng)
        self.p_i = Parameter(np.zeros(hidden_size, self.dtype))
        self.p_f = Parameter(np.zeros(hidden_size, self.dtype))
        self.p_o = Parameter(np.zeros(hidden_size, self.dtype))

    def forget_gate(self, a: Any, c: Tensor) -> Any:
        """Return f = sigmoid(a_f + p_f * c(t-1))."""
        return sigmoid(a + self.p_f * c)

    def input_gate(self, a: Any, c: Tensor, f: Any) -> Any:
        """Return i = sigmoid(a_i + p_i * c(t-1))."""
        return sigmoid(a + self.p_i * c)

    def output_gate(self, a: Any, c: Tensor) -> Any:
        """Return o = sigmoid(a_o + p_o * c(t))."""
        return sigmoid(a + self.p_o * c)

    def _letters(self) -> dict[str, str]:
        return {**super()._letters(), "p_i": "H", "p_f": "H", "p_o": "H"}


class CoupledLSTMCell(LSTMVariant):
    """LSTM that adds what it forgets, i = 1 - f (Greff et al. 2015), with the gates f, g, o.

    ::

        c = f * c' + (1 - f) * g

    The cell state is a mean of candidates and stays in [-1, 1] if it starts there; a quarter of
    the LSTM's weights is saved.

    Examples
    --------
    >>> CoupledLSTMCell(2, 3, rng=0).W_x.shape
    (2, 9)
    """

    gates = ("f", "g", "o")

    def input_gate(self, a: Any, c: Tensor, f: Any) -> Any:
        """Return i = 1 - f."""
        return 1 - f


class LayerNormLSTMCell(LSTMVariant):
    """LSTM with layer normalisation (Ba, Kiros and Hinton 2016, equations 20 to 22).

    ::

        a = LN(x W_x) * gain_x + LN(h' W_h) * gain_h + b,  LN(v) = (v - mean) / sqrt(var + eps)
        c = sigmoid(a_f) * c' + sigmoid(a_i) * tanh(a_g)
        h = sigmoid(a_o) * tanh(LN(c) * gain_c + bias_c)

    As in the paper, mean and variance are those of all four gates together, of the two products
    apart, and the state that is carried is c itself.  ``gain_x, gain_h`` (4H,) and ``gain_c`` (H,)
    start at 1.  The paper's biases of the two products and b are always added up, so one, b, is
    trained.

    Parameters
    ----------
    bias : bool
        Whether there are ``b`` and ``bias_c``.
    eps : float
        Added to the variance.

    Examples
    --------
    >>> cell = LayerNormLSTMCell(2, 3, rng=0)
    >>> x = np.array([[1.0, -2.0]])
    >>> bool(np.allclose(cell(x)[0].data, cell(1000 * x)[0].data, atol=1e-4))
    True
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        eps: float = 1e-5,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias=bias, dtype=dtype, rng=rng)
        if not is_real(eps) or not 0 < eps < math.inf:
            raise ValueError(f"LayerNormLSTMCell: eps={eps!r} must be more than 0, and finite")
        self.eps = eps
        wide = len(self.gates) * hidden_size
        if input_size:
            self.gain_x = Parameter(np.ones(wide, self.dtype))
        self.gain_h = Parameter(np.ones(wide, self.dtype))
        self.gain_c = Parameter(np.ones(hidden_size, self.dtype))
        self.bias_c = Parameter(np.zeros(hidden_size, self.dtype)) if bias else None

    def preactivations(self, x: Tensor | None, h: Tensor) -> Tensor:
        """Return a (N, 4H), the sum of the two normalised products and b."""
        a: Tensor = layer_norm(
            self.dropped(h) @ self.W_h, self.gain_h, getattr(self, "b", None), self.eps
        )
        return a if x is None else a + layer_norm(x @ self.W_x, self.gain_x, eps=self.eps)

    def squash(self, c: Tensor) -> Any:
        """Return tanh of the normalised c(t)."""
        return tanh(layer_norm(c, self.gain_c, self.bias_c, self.eps))

    def _letters(self) -> dict[str, str]:
        wide = {"gain_x": "4H", "gain_h": "4H", "gain_c": "H", "bias_c": "H"}
        return {**super()._letters(), **wide}


class IRNNCell(RNNCell):
    """ReLU cell that starts by keeping its state: W_h = I (Le, Jaitly and Hinton 2015).

    ::

        h = max(x W_x + b + h' W_h, 0)

    ``W_h`` starts at ``gain`` times the identity, b at 0 and ``W_x`` normal with a deviation of
    0.001: until it has learned otherwise, the cell adds up its input, and a gradient runs back
    through time neither growing nor shrinking.

    Parameters
    ----------
    gain : float
        Less than 1 forgets from the start; the paper takes 0.01 where no long memory is needed.

    Examples
    --------
    >>> h = [[1.0, 2.0, 0.0]]
    >>> IRNNCell(2, 3, rng=0)(np.zeros((1, 2)), h)[0].numpy()
    array([[1., 2., 0.]], dtype=float32)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        gain: float = 1.0,
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        rng = np.random.default_rng(rng)
        super().__init__(
            input_size, hidden_size, activation="relu", bias=bias, dtype=dtype, rng=rng
        )
        self.W_h.data = init.identity((hidden_size, hidden_size), gain=gain, dtype=self.dtype)
        if input_size:
            small = 0.001 * rng.standard_normal((input_size, hidden_size))
            self.W_x.data = small.astype(self.dtype)


class MGUCell(Cell):
    """Minimal gated unit: one gate that resets and updates (Zhou et al. 2016), with f, n.

    ::

        f = sigmoid(x W_xf + b_f + h' W_hf)
        n = tanh(x W_xn + b_n + (f * h') W_hn)
        h = (1 - f) * h' + f * n

    It is the published GRU with r = f and 1 - z = f.  Its forget gate lets the candidate in: f = 0
    keeps h, so that no bias of 1 helps it to remember.

    Examples
    --------
    >>> MGUCell(2, 3, rng=0).W_h.shape
    (3, 6)
    """

    gates = ("f", "n")

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
        self.add_weights(2, bias=bias, rng=rng)

    def step(self, x: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Return (h, h)."""
        h, H = state, self.hidden_size
        x_f, x_n = split(self.affine(x), 2)
        seen = self.dropped(h)
        f = sigmoid(x_f + seen @ self.W_h[:, :H])
        n = tanh(x_n + (f * seen) @ self.W_h[:, H:])
        h = (1 - f) * h + f * n
        mark(f=f, n=n, h=h)
        return h, h
