"""Layers that do not recur, and the read-out that turns a recurrent layer into a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import array
from ..errors import DtypeError, ShapeError
from ..functional import dropout, embedding, layer_norm
from ..module import Module, floating
from ..tensor import Parameter, Tensor
from . import init
from .cells import check_sizes
from .recurrent import Recurrent
from .stacked import RNN
from .states import as_tensors


def as_input(who: str, x: Any, dtype: np.dtype[Any], name: str = "x") -> Tensor:
    """Return x as a Tensor; plain real numbers in `dtype`."""
    if isinstance(x, tuple) and x and isinstance(x[0], Tensor):
        raise TypeError(
            f"{who}: {name} is a tuple: a recurrent layer returns (out, state); pass on out"
        )
    if not isinstance(x, Tensor):
        try:
            x = array(x)
        except ValueError:
            raise ShapeError(f"{who}: {name} has parts of unequal length") from None
        if x.dtype.kind not in "biufc":
            raise DtypeError(f"{who}: {name} is {x.dtype}, not numbers")
    given: Tensor = as_tensors(x, dtype)
    return given if given.dtype.kind in "fc" else given.astype(dtype)


class Linear(Module):
    """y = x W + b, with ``W (in, out)`` and ``b (out,)``.

    Raises
    ------
    ShapeError
        If the last axis of x is not ``in``.

    Examples
    --------
    >>> Linear(3, 2, rng=0)(np.ones((5, 3))).shape
    (5, 2)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        check_sizes("Linear", in_features=in_features, out_features=out_features)
        dtype = floating("Linear", dtype)
        self.W = Parameter(init.xavier((in_features, out_features), rng=rng, dtype=dtype))
        self.b = Parameter(np.zeros(out_features, dtype)) if bias else None

    def forward(self, x: Any) -> Tensor:
        """Return y (..., out) for x (..., in)."""
        who = self.path or "Linear"
        given = as_input(who, x, self.W.dtype)
        if given.ndim == 0 or given.shape[-1] != self.W.shape[0]:
            raise ShapeError(f"{who}: x {given.shape} does not end in {self.W.shape[0]}")
        y = given @ self.W
        return y if self.b is None else y + self.b

    def _letters(self) -> dict[str, str]:
        return {"W": "in * out", "b": "out"}


class Embedding(Module):
    """Rows of ``W (V, D)`` by number: ids (...) -> (..., D).

    Raises
    ------
    IndexError
        If an id is not in 0..V - 1.

    Examples
    --------
    >>> Embedding(10, 4, rng=0)([[1, 2, 3]]).shape
    (1, 3, 4)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        check_sizes("Embedding", num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        dtype = floating("Embedding", dtype)
        rng = np.random.default_rng(rng)
        self.W = Parameter(rng.standard_normal((num_embeddings, embedding_dim)).astype(dtype))

    def forward(self, ids: Any) -> Tensor:
        """Return the rows that the integers `ids` name."""
        y: Tensor = embedding(ids, self.W)
        return y

    def _letters(self) -> dict[str, str]:
        return {"W": "V * D"}


class Dropout(Module):
    """Zero elements with probability `p` in training and divide the others by 1 - p.

    Arrays keep their floating type; integers and lists of numbers become float32.

    >>> Dropout(0.5, rng=0).eval()([1, 2]).numpy()
    array([1., 2.], dtype=float32)
    """

    def __init__(self, p: float = 0.5, *, rng: Any = None) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: p={p} is not in [0, 1]")
        self.p = p
        self.rng = np.random.default_rng(rng)

    def forward(self, x: Any) -> Tensor:
        """Return x with a fresh mask, or x itself in evaluation."""
        floats = isinstance(x, np.ndarray | np.generic) and x.dtype.kind == "f"
        dtype = x.dtype if floats else np.dtype(np.float32)
        x = as_input(self.path or "Dropout", x, dtype)
        y: Tensor = dropout(x, self.p, training=self.training, rng=self.rng)
        return y


class LayerNorm(Module):
    """(x - mean) / sqrt(var + eps) * gain + bias over the last axis (Ba, Kiros, Hinton 2016).

    >>> LayerNorm(2)([[1.0, 3.0]]).numpy().round(3)
    array([[-1.,  1.]], dtype=float32)
    """

    def __init__(self, size: int, eps: float = 1e-5, *, dtype: npt.DTypeLike = np.float32) -> None:
        check_sizes("LayerNorm", size=size)
        dtype = floating("LayerNorm", dtype)
        self.eps = eps
        self.gain = Parameter(np.ones(size, dtype))
        self.bias = Parameter(np.zeros(size, dtype))

    def forward(self, x: Any) -> Tensor:
        """Return the normalised x (..., size)."""
        who = self.path or "LayerNorm"
        x = as_input(who, x, self.gain.dtype)
        if x.ndim == 0 or x.shape[-1] != self.gain.shape[0]:
            raise ShapeError(f"{who}: x {x.shape} does not end in {self.gain.shape[0]}")
        y: Tensor = layer_norm(x, self.gain, self.bias, self.eps)
        return y


class Sequential(Module):
    """Modules and functions one after the other.

    >>> Sequential(Linear(3, 2, rng=0), np.tanh).layers[0].W.name
    'layers.0.W'
    """

    def __init__(self, *layers: Any) -> None:
        self.layers = list(layers)

    def forward(self, x: Any) -> Any:
        """Return what the last one makes of what the others made of x."""
        for layer in self.layers:
            x = layer(x)
        return x


class Readout(Module):
    """A recurrent layer with the lecture's read-out: o(t) = h(t) V + c, equation (8).

    Called as the layer is; returns o in the place of the layer's output.

    Examples
    --------
    >>> o, h = Readout(RNN(3, 4, rng=0), 2, rng=0)(np.ones((5, 1, 3)))
    >>> o.shape, h.shape
    ((5, 1, 2), (1, 1, 4))
    """

    def __init__(self, layer: Recurrent, size: int, bias: bool = True, *, rng: Any = None) -> None:
        if not isinstance(layer, Recurrent):
            raise TypeError(
                f"Readout: layer is {type(layer).__name__}, expected a recurrent layer: "
                "RNN, LSTM, GRU or Recurrent"
            )
        self.layer = layer
        dtype = next(layer.cells())[2].dtype
        self.linear = Linear(layer.output_size, size, bias, dtype=dtype, rng=rng)

    def forward(self, x: Any, state: Any = None, **settings: Any) -> Any:
        """Return (o, state), and the trace where it was asked for."""
        out, *rest = self.layer(x, state, **settings)
        o = [self.linear(y) for y in out] if isinstance(out, list) else self.linear(out)
        return o, *rest


def from_lecture(
    U: npt.ArrayLike | None = None,
    W: npt.ArrayLike | None = None,
    V: npt.ArrayLike | None = None,
    b: npt.ArrayLike | None = None,
    c: npt.ArrayLike | None = None,
    *,
    W_xh: npt.ArrayLike | None = None,
    W_hh: npt.ArrayLike | None = None,
    W_hy: npt.ArrayLike | None = None,
    activation: Any = "tanh",
    dtype: npt.DTypeLike = np.float64,
) -> Readout:
    """Build the lecture's network from its column-form matrices, equations (6) to (11).

    ::

        a(t) = W h(t-1) + U x(t) + b,  h(t) = tanh(a(t)),  o(t) = V h(t) + c

    Parameters
    ----------
    U, W, V : array_like (H, D), (H, H), (K, H)
        Also under their other names, W_xh, W_hh and W_hy.
    b, c : array_like (H,), (K,), optional
        Without them the layer has no such bias, as in equations (10) and (11).
    activation
        As of ``RNN``.

    Raises
    ------
    ShapeError
        If the matrices do not fit together.

    Examples
    --------
    >>> net = from_lecture(U=[[1.0]], W=[[0.5]], V=[[2.0]])
    >>> o, h = net([[[1.0]], [[0.0]]])
    >>> o.numpy().ravel().round(4)
    array([1.5232, 0.7268])
    """
    given = {}
    for name, alias, one, other in [
        ("U", "W_xh", U, W_xh),
        ("W", "W_hh", W, W_hh),
        ("V", "W_hy", V, W_hy),
    ]:
        if (one is None) == (other is None):
            raise ValueError(f"from_lecture: pass {name} or {alias}, one of them")
        given[name] = np.atleast_2d(np.asarray(other if one is None else one, dtype))
    H, D = given["U"].shape
    if given["W"].shape != (H, H) or given["V"].shape[1] != H:
        shapes = ", ".join([f"{name} {a.shape}" for name, a in given.items()])
        raise ShapeError(
            f"from_lecture: {shapes} do not fit: expected U (H, D), W (H, H), V (K, H)"
        )
    layer = RNN(D, H, bias=b is not None, activation=activation, dtype=dtype, rng=0)
    net = Readout(layer, given["V"].shape[0], bias=c is not None, rng=0)
    state = {
        "layer.L0.fwd.W_x": given["U"].T,
        "layer.L0.fwd.W_h": given["W"].T,
        "linear.W": given["V"].T,
    }
    state |= {} if b is None else {"layer.L0.fwd.b": np.asarray(b, dtype).reshape(-1)}
    state |= {} if c is None else {"linear.b": np.asarray(c, dtype).reshape(-1)}
    net.load_state_dict(state)
    return net
