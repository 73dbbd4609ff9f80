"""A recurrent layer in one line of code: what strategies draw, shrink and print."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import nn
from ..arrays import Array
from ..module import Module
from ..nn.states import map_state

GRID = 8  # values are multiples of 1/8: exact in float32, short to print


@dataclass(frozen=True, repr=False)
class RNNConfig:
    """One recurrent layer with its input: every field shrinks, and ``repr`` is code to paste.

    Attributes
    ----------
    cell : class or callable
        A cell (``nn.LSTMCell``, or one of your own), a layer (``nn.LSTM``), or a function that
        makes a cell of a configuration.
    T, N, D, H : int
        Steps, batch, input size, hidden size.
    layers : int
    bidirectional, bias, batch_first : bool
    state : {"none", "zero", "random"}
        The initial state that is passed: nothing, explicit zeros, random numbers.
    lengths : tuple of int or None
        Valid steps of each sequence.
    dtype : str
    seed : int
        Of all values: multiples of 1/8, none of them 0.

    Examples
    --------
    >>> cfg = RNNConfig(nn.LSTM, T=3, N=2, D=1, H=2, lengths=(3, 0))
    >>> cfg
    RNNConfig(LSTM, T=3, N=2, D=1, H=2, lengths=(3, 0))
    >>> layer = cfg.make()
    >>> out, (h, c) = cfg.run(layer)
    >>> out.shape, h.shape
    ((3, 2, 2), (1, 2, 2))
    """

    cell: Callable[..., Any]
    T: int = 2
    N: int = 1
    D: int = 1
    H: int = 1
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    state: str = "random"
    lengths: tuple[int, ...] | None = None
    dtype: str = "float64"
    seed: int = 0

    def __repr__(self) -> str:
        parts = [getattr(self.cell, "__name__", repr(self.cell))]
        for f in dataclasses.fields(self)[1:]:
            value = getattr(self, f.name)
            if f.name in ("T", "N", "D", "H") or value != f.default:
                parts.append(f"{f.name}={value!r}")
        return f"RNNConfig({', '.join(parts)})"

    def replace(self, **changes: Any) -> RNNConfig:
        """Return a configuration with other values of some fields."""
        return dataclasses.replace(self, **changes)

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 2 if self.bidirectional else 1

    # --- what it stands for

    def make(self) -> Any:
        """Return the layer, its parameters drawn from the seed, in the dtype."""
        return randomise(self.fresh(), self.seed).astype(self.dtype)

    def fresh(self) -> Any:
        """Return the layer as it is made, with its own first values."""
        settings: dict[str, Any] = {"batch_first": self.batch_first}
        if isinstance(self.cell, type) and issubclass(self.cell, nn.Recurrent):
            layer: Any = _build(
                self.cell, self.D, self.H, self.layers, bias=self.bias, rng=self.seed,
                bidirectional=self.bidirectional, dtype=np.dtype(self.dtype), **settings,
            )  # fmt: skip
        else:
            sizes = [self.D] + [self.H * self.directions] * (self.layers - 1)
            rows = [tuple(self.make_cell(D) for _ in range(self.directions)) for D in sizes]
            layer = nn.Recurrent(rows if len(rows) > 1 or self.bidirectional else rows[0][0],
                                 **settings)  # fmt: skip
        return layer

    def make_cell(self, D: int | None = None) -> Any:
        """Return one cell of input size D, as it is made, with its own first values."""
        D = self.D if D is None else D
        if not isinstance(self.cell, type):
            return self.cell(self.replace(D=D))
        return _build(
            self.cell, D, self.H, bias=self.bias, dtype=np.dtype(self.dtype), rng=self.seed
        )

    def x(self) -> Array:
        """Return the input: (T, N, D), or (N, T, D) with ``batch_first``."""
        x = grid((self.T, self.N, self.D), self.seed + 1, bound=2).astype(self.dtype)
        return x.swapaxes(0, 1).copy() if self.batch_first else x

    def initial(self, layer: Module) -> Any:
        """Return the initial state for the layer, nested as it takes it; None for "none"."""
        if self.state == "none":
            return None
        seeds = iter(range(self.seed + 100, self.seed + 200))
        factor = 0 if self.state == "zero" else 1
        return map_state(
            lambda s: (factor * grid(s.shape, next(seeds), bound=1)).astype(self.dtype),
            final_state(self, layer),
        )

    def run(self, layer: Any, x: Any = None, state: Any = None) -> Any:
        """Call the layer with this input, state and lengths, or with others: (out, state)."""
        return layer(
            self.x() if x is None else x,
            self.initial(layer) if state is None else state,
            lengths=None if self.lengths is None else list(self.lengths),
        )

    def smaller(self) -> Iterator[RNNConfig]:
        """Yield neighbours that are simpler in one field, the boldest first: for shrinking."""
        for name in ("T", "N", "H", "D", "layers"):
            value = getattr(self, name)
            for less in dict.fromkeys([1, value // 2, value - 1]):
                if 1 <= less < value:
                    yield self._cut(**{name: less})
        plain = {"bidirectional": False, "lengths": None, "batch_first": False, "bias": True,
                 "state": "random", "dtype": "float64", "seed": 0}  # fmt: skip
        for name, value in plain.items():
            if getattr(self, name) != value:
                yield self.replace(**{name: value})

    def _cut(self, **changes: int) -> RNNConfig:
        """Return a smaller configuration whose lengths fit."""
        small = self.replace(**changes)
        if small.lengths is not None:
            lengths = tuple(min(n, small.T) for n in small.lengths[: small.N])
            small = small.replace(lengths=lengths)
        return small


def _build(cls: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """Call a class with those settings that it knows."""
    known = inspect.signature(cls).parameters
    every = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    return cls(*args, **{k: v for k, v in settings.items() if every or k in known})


def grid(shape: tuple[int, ...], seed: int, bound: int = 1) -> Array:
    """Return multiples of 1/8 in [-bound, bound], none of them 0."""
    rng = np.random.default_rng(seed)
    size = rng.integers(1, bound * GRID + 1, shape)
    return np.asarray(size * rng.choice([-1, 1], shape) / GRID)


def randomise(module: Any, seed: int = 0) -> Any:
    """Give every parameter values from the seed, so that no zero hides a term; returns it."""
    for k, p in enumerate(module.parameters()):
        p.data = grid(p.shape, seed * 1000 + k).astype(p.dtype)
    return module


def final_state(cfg: RNNConfig, layer: Any) -> Any:
    """Return a state of the layer, by running it from its own initial one."""
    return map_state(lambda s: s.data, layer(cfg.x())[1])
