"""Convolution over time, the time-delay network, and what an output reads of its input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import ops
from ..errors import ShapeError
from ..module import Module, floating
from ..tensor import Parameter, Tensor
from . import init
from .cells import ACTIVATIONS, check_sizes
from .layers import as_input

PADDINGS = ("valid", "same", "causal")


class Conv1d(Module):
    """Convolution over time: y(t) = sum_j x(t s + j d) W_j + b, with j = 0..k-1.

    Each output reads k steps, d apart, with the same weights ``W (k, in, out)`` at every t (a
    correlation, as everywhere in neural networks); with a stride s it moves on by s steps.

    Parameters
    ----------
    in_channels, out_channels : int
        D and the features of an output.
    kernel_size : int
        k.
    stride, dilation : int
        s and d.
    padding : {"valid", "same", "causal"}
        Where the window would leave the sequence, no output ("valid": T' is shorter), or zeros: on
        both sides ("same"; of an odd number one more behind) or in front alone ("causal": y(t)
        reads no step after t).  With them T' is T, and ceil(T / s) with a stride.
    bias : bool
    dtype : dtype
    rng : int or numpy.random.Generator, optional

    Attributes
    ----------
    receptive_field : int
        The steps from the first to the last that an output reads, 1 + (k - 1) d.

    Raises
    ------
    ShapeError
        If x is not (T, N, D) or (T, D), or without padding T is less than the receptive field.

    Notes
    -----
    The k windows are laid side by side, so that all steps are one matrix product.

    Examples
    --------
    >>> conv = Conv1d(1, 1, 3, bias=False, dtype=np.float64)
    >>> conv.load_state_dict({"W": [[[1.0]], [[0.0]], [[-1.0]]]})
    >>> conv([[0.0], [1.0], [4.0], [9.0]]).numpy().ravel()
    array([-4., -8.])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: str = "valid",
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        check_sizes(
            "Conv1d", in_channels=in_channels, out_channels=out_channels,
            kernel_size=kernel_size, stride=stride, dilation=dilation,
        )  # fmt: skip
        if padding not in PADDINGS:
            raise ValueError(f"Conv1d: padding is one of {', '.join(PADDINGS)}; got {padding!r}")
        dtype = floating("Conv1d", dtype)
        self.stride, self.dilation, self.padding = stride, dilation, padding
        fans = (kernel_size * in_channels, kernel_size * out_channels)  # read and fed by one number
        W = init.xavier(fans, rng=rng, dtype=dtype)[:, :out_channels]
        self.W = Parameter(W.reshape((kernel_size, in_channels, out_channels)))
        self.b = Parameter(np.zeros(out_channels, dtype)) if bias else None

    @property
    def receptive_field(self) -> int:
        """The steps from the first to the last that an output reads."""
        return 1 + (self.W.shape[0] - 1) * self.dilation

    def forward(self, x: Any) -> Tensor:
        """Return y (T', N, out) for x (T, N, in), or (T', out) for (T, in)."""
        who = self.path or "Conv1d"
        x = as_input(who, x, self.W.dtype)
        k, D, out = self.W.shape
        _check_sequence(who, x, D)
        span = self.receptive_field
        if self.padding != "valid" and span > 1:
            front = span - 1 if self.padding == "causal" else (span - 1) // 2
            zeros = np.zeros((span - 1, *x.shape[1:]), x.dtype)
            x = ops.concat(zeros[:front], x, zeros[front:], axis=0)
        if x.shape[0] < span:
            raise _too_short(who, x.shape[0], span)
        stop = x.shape[0] - span + 1
        at = range(0, k * self.dilation, self.dilation)
        windows = [x[j : j + stop : self.stride] for j in at]
        wide = windows[0] if k == 1 else ops.concat(*windows, axis=-1)
        rows = wide.reshape((math.prod(wide.shape[:-1]), k * D))
        y: Tensor = (rows @ self.W.reshape((k * D, out))).reshape((*wide.shape[:-1], out))
        return y if self.b is None else y + self.b

    def _letters(self) -> dict[str, str]:
        return {"W": "k * in * out", "b": "out"}


class TDNN(Module):
    """Time-delay neural network: convolutions over time, one above the other (Waibel et al. 1989).

    ::

        h_l = phi(conv_l(h_(l-1))), h_0 = x

    The lecture's question whether a CNN can treat sequences, answered: it can, but each output
    reads ``receptive_field`` steps and no more, 1 + sum_l (k_l - 1) d_l s_1 ... s_(l-1); that of a
    recurrent layer is t.  Read out what it returns with ``Linear``.

    Parameters
    ----------
    sizes : sequence of int
        D, then the features of each layer.
    kernel_sizes, dilations, strides : int or sequence of int
        Of each layer, or one number for all.
    padding : {"valid", "same", "causal"}
        As of ``Conv1d``.
    activation : {"tanh", "relu", "identity"} or callable
        phi.
    bias : bool
    dtype : dtype
    rng : int or numpy.random.Generator, optional

    Attributes
    ----------
    layers : list of Conv1d
    receptive_field : int
        The steps from the first to the last that an output reads.

    Raises
    ------
    ShapeError
        As of ``Conv1d``.

    Examples
    --------
    The network of the paper, for b, d and g: 15 steps of 16 coefficients, evidence summed.

    >>> net = TDNN([16, 8, 3], [3, 5], activation=ops.sigmoid, rng=0)
    >>> y = net(np.ones((15, 1, 16)))
    >>> net.receptive_field, y.shape, y.sum(axis=0).shape
    (7, (9, 1, 3), (1, 3))
    """

    def __init__(
        self,
        sizes: Sequence[int],
        kernel_sizes: int | Sequence[int],
        *,
        dilations: int | Sequence[int] = 1,
        strides: int | Sequence[int] = 1,
        padding: str = "valid",
        activation: str | Callable[[Tensor], Tensor] = "tanh",
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        if np.ndim(sizes) != 1 or len(sizes) < 2:
            raise ValueError(
                f"TDNN: sizes={sizes} must be D and the features of one layer at least"
            )
        if isinstance(activation, str) and activation not in ACTIVATIONS:
            raise ValueError(
                f"TDNN: activation is one of {', '.join(ACTIVATIONS)} or a callable, "
                f"got {activation!r}"
            )
        self.activation = ACTIVATIONS[activation] if isinstance(activation, str) else activation
        count, rng = len(sizes) - 1, np.random.default_rng(rng)
        each = zip(
            sizes[:-1],
            sizes[1:],
            _of_each("kernel_sizes", kernel_sizes, count),
            _of_each("dilations", dilations, count),
            _of_each("strides", strides, count),
            strict=True,
        )
        self.layers = [
            Conv1d(
                D, out, k, dilation=d, stride=s, padding=padding, bias=bias, dtype=dtype, rng=rng
            )
            for D, out, k, d, s in each
        ]

    @property
    def receptive_field(self) -> int:
        """The steps from the first to the last that an output reads."""
        field, apart = 1, 1
        for layer in self.layers:
            field += (layer.receptive_field - 1) * apart
            apart *= layer.stride  # the steps of x between two outputs of this layer
        return field

    def forward(self, x: Any) -> Tensor:
        """Return the output (T', N, out) of the last layer for x (T, N, D), or both without N."""
        who = self.path or "TDNN"
        y = as_input(who, x, self.layers[0].W.dtype)
        _check_sequence(who, y, self.layers[0].W.shape[1])
        if self.layers[0].padding == "valid" and y.shape[0] < self.receptive_field:
            raise _too_short(who, y.shape[0], self.receptive_field)
        for layer in self.layers:
            y = self.activation(layer(y))
        return y


def _check_sequence(who: str, x: Tensor, D: int) -> None:
    if x.ndim not in (2, 3) or x.shape[-1] != D:
        raise ShapeError(f"{who}: x has shape {x.shape}, expected (T, N, {D}) or (T, {D})")
    if not x.size:
        raise ShapeError(f"{who}: x has shape {x.shape}: there is no step or no sequence in it")


def _too_short(who: str, T: int, field: int) -> ShapeError:
    return ShapeError(
        f"{who}: T={T} steps are fewer than the {field} that an output reads; "
        "padding='causal' or 'same' would add zeros"
    )


def _of_each(name: str, given: int | Sequence[int], count: int) -> list[int]:
    """Return one number for each layer."""
    values = list(given) if isinstance(given, Sequence | np.ndarray) else [given] * count
    if len(values) != count:
        raise ValueError(
            f"TDNN: {name} has {len(values)} entries, expected {count}: one for each layer "
            "between two sizes, or one number for all"
        )
    return values
