"""RNN, LSTM and GRU with PyTorch's arguments and states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from ..errors import StateError
from ..functional import stack
from ..module import floating
from .cells import Cell, GRUCell, LSTMCell, RNNCell, check_sizes
from .noise import Zoneout
from .reading import Input
from .recurrent import Recurrent
from .states import State, as_tensors, map_state, structure


class Options(TypedDict, total=False):
    """What ``Recurrent`` offers beside PyTorch's arguments."""

    merge: str | None
    recurrent_dropout: float
    zoneout: Zoneout
    learn_state: bool
    checkpoint_every: int | str | None


class _Stacked(Recurrent):
    """The common part of RNN, LSTM and GRU: layers of one size, states stacked as in PyTorch."""

    _state_axes = 3

    def __init__(
        self,
        cell: Callable[..., Cell],
        input_size: int,
        hidden_size: int,
        num_layers: int,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        rng: Any,
        options: Options,
        **settings: Any,
    ) -> None:
        _check_options(type(self).__name__, options)
        check_sizes(type(self).__name__, num_layers=num_layers)
        floating(type(self).__name__, settings["dtype"])
        rng = np.random.default_rng(rng)
        directions = 2 if bidirectional else 1
        width = hidden_size * (directions if options.get("merge", "concat") == "concat" else 1)
        sizes = [input_size] + [width] * (num_layers - 1)
        layers = [
            tuple([cell(D, hidden_size, rng=rng, **settings) for _ in range(directions)])
            for D in sizes
        ]
        super().__init__(
            layers,  # type: ignore[arg-type]
            batch_first=batch_first,
            dropout=dropout,
            rng=rng,
            **options,
        )
        self.input_size, self.hidden_size = input_size, hidden_size
        self.bidirectional = bidirectional

    def _split_state(self, state: State, given: Input) -> list[State]:
        if state is None:
            return super()._split_state(None, given)
        cells = list(self.cells())
        template = cells[0][2].initial_state(given.batch)
        N = () if given.unbatched else (given.batch,)
        shape = (len(cells), *N, self.hidden_size)
        expected = (shape, shape) if isinstance(template, tuple) else shape
        if structure(state) != expected:
            raise StateError(
                f"{type(self).__name__}: the state is {structure(state)}, expected {expected}, "
                f"that is (layers * directions{'' if given.unbatched else ', N'}, H)"
            )
        state = as_tensors(state, cells[0][2].dtype)
        parts = [map_state(lambda s, k=k: s[k], state) for k in range(len(cells))]
        return super()._split_state(parts[0] if len(parts) == 1 else tuple(parts), given)

    def _join_state(self, finals: list[State], given: Input) -> State:
        joined = super()._join_state(finals, given)
        parts = [joined] if len(finals) == 1 else joined
        if isinstance(parts[0], tuple):
            return tuple([stack(component) for component in zip(*parts, strict=True)])
        return stack(parts)


class RNN(_Stacked):
    """Plain recurrent layer, h(t) = phi(x(t) W_x + b + h(t-1) W_h): equations (2), (6), (7).

    The arguments and their order are PyTorch's.  ``layer(x, state=None, *, lengths=None,
    steps=None, trace=False)`` as ``Recurrent``; states are (layers * directions, N, H).

    Parameters
    ----------
    input_size, hidden_size : int
        D and H.
    num_layers : int
    bias, batch_first : bool
    dropout : float
        Between layers.
    bidirectional : bool
    activation : {"tanh", "relu", "identity"} or callable
    dtype : dtype
    rng : int or numpy.random.Generator, optional
    merge, recurrent_dropout, zoneout, learn_state, checkpoint_every
        As of ``Recurrent``.

    Examples
    --------
    >>> out, h = RNN(3, 4, rng=0)(np.ones((5, 2, 3)))
    >>> out.shape, h.shape
    ((5, 2, 4), (1, 2, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        activation: Any = "tanh",
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
        **options: Unpack[Options],
    ) -> None:
        if isinstance(bias, str):  # PyTorch's RNN, and no other layer of it, has one here
            raise TypeError(
                f"RNN: bias is a bool; pass the activation by name: activation={bias!r}"
            )
        super().__init__(
            RNNCell, input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, rng,
            options, bias=bias, activation=activation, dtype=dtype,
        )  # fmt: skip


class LSTM(_Stacked):
    """Long short-term memory, equations (L1) to (L6) as in ``LSTMCell``; arguments as of ``RNN``.

    The state is (h, c), each (layers * directions, N, H).

    Examples
    --------
    >>> layer = LSTM(3, 4, num_layers=2, bidirectional=True, rng=0)
    >>> out, (h, c), trace = layer(np.ones((5, 2, 3)), lengths=[5, 3], trace=True)
    >>> out.shape, h.shape, trace["L1.rev.f"].shape
    ((5, 2, 8), (4, 2, 4), (5, 2, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            LSTMCell, input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, rng,
            options, bias=bias, dtype=dtype,
        )  # fmt: skip


class GRU(_Stacked):
    """Gated recurrent unit, equations as in ``GRUCell``; arguments as of ``RNN``.

    Examples
    --------
    >>> out, h = GRU(3, 4, reset_after=False, rng=0)(np.ones((5, 3)))
    >>> out.shape, h.shape
    ((5, 4), (1, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            GRUCell, input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, rng,
            options, bias=bias, reset_after=reset_after, dtype=dtype,
        )  # fmt: skip


def _check_options(who: str, options: Options) -> None:
    for name in options:
        if name not in Options.__annotations__:
            known = ", ".join(Options.__annotations__)
            raise TypeError(f"{who}: there is no argument {name!r}; by keyword: {known}")
