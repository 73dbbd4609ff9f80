"""Functions composed of primitives; called with arrays only, they compute on arrays."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import normalize_axis_index

from . import ops
from .errors import ShapeError
from .ops import exp, log, log_softmax, sqrt
from .tensor import Tensor

__all__ = [
    "cross_entropy", "dropout", "embedding", "layer_norm", "log_softmax", "logsumexp", "mean",
    "mse_loss", "one_hot", "relu", "softmax", "split", "stack", "unbind", "var",
]  # fmt: skip


def mean(x: Any, axis: ops.Axis = None, keepdims: bool = False) -> Any:
    """Mean over all elements, over one axis or over several.

    >>> mean(np.array([[1.0, 2.0], [3.0, 6.0]]), axis=0)
    array([2., 4.])
    """
    y = ops.sum(x, axis=axis, keepdims=keepdims)
    return y / (np.size(x) / np.size(y) if np.size(y) else 1)


def var(x: Any, axis: ops.Axis = None, keepdims: bool = False) -> Any:
    """Variance, sum((x - mean)^2) / n: divided by n as NumPy does, not by n - 1.

    >>> var(np.array([1.0, 3.0]))
    np.float64(1.0)
    """
    d = x - mean(x, axis, keepdims=True)
    return mean(d * d, axis, keepdims)


def softmax(x: Any, axis: int = -1) -> Any:
    """Softmax along one axis, y_i = exp(x_i) / sum_j exp(x_j): equation (9) of the lecture.

    Stable for logits of any size.

    >>> softmax(np.array([0.0, np.log(3.0)]))
    array([0.25, 0.75])
    """
    return exp(log_softmax(x, axis=axis))


def logsumexp(x: Any, axis: int = -1, keepdims: bool = False) -> Any:
    """log(sum(exp(x))) along one axis, without overflow.

    >>> float(logsumexp(np.array([1e4, 1e4])).round(4))
    10000.6931
    """
    top = ops.max(x, axis=axis, keepdims=True)
    top = ops.where(ops.abs(top) < np.inf, top, 0.0)  # of infinities alone, the sum says it
    y = log(ops.sum(exp(x - top), axis=axis, keepdims=True)) + top
    return y if keepdims else ops.sum(y, axis=axis)  # of one element: drops the axis


def relu(x: Any) -> Any:
    """max(x, 0), element by element; its gradient at 0 is 0.

    >>> relu(np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 2.])
    """
    return ops.where(x > 0, x, 0.0)


def split(x: Any, sections: int, axis: int = -1) -> list[Any]:
    """`sections` equal parts of `x` along `axis`.

    Raises
    ------
    ShapeError
        If the axis cannot be cut into that many equal parts.

    Examples
    --------
    >>> split(np.array([1.0, 2.0, 3.0, 4.0]), 2)
    [array([1., 2.]), array([3., 4.])]
    """
    axis = normalize_axis_index(axis, x.ndim)
    width, rest = divmod(x.shape[axis], sections) if sections > 0 else (0, 1)
    if rest:
        raise ShapeError(
            f"split: axis {axis} of {x.shape} cannot be cut into {sections} equal parts"
        )
    cuts = [
        {"axis": axis, "start": k, "stop": k + width} for k in range(0, width * sections, width)
    ]
    if isinstance(x, Tensor):  # four times a step of an LSTM: without asking who records
        return [x.__record__(ops.part, x, (), cut) for cut in cuts]
    return [ops.part(x, **cut) for cut in cuts]


def stack(parts: Sequence[Any], axis: int = 0) -> Any:
    """Arrays of one shape, side by side along a new axis.

    >>> stack([np.array([1, 2]), np.array([3, 4])])
    array([[1, 2],
           [3, 4]])
    """
    if not parts:
        raise ShapeError("stack: there is nothing to stack")
    return ops.stack(*parts, axis=axis)


def unbind(x: Any, axis: int = 0) -> list[Any]:
    """Every slice of `x` along `axis`, which they no longer have: what ``stack`` undoes.

    >>> unbind(np.array([[1, 2], [3, 4]]), axis=1)
    [array([1, 3]), array([2, 4])]
    """
    axis = normalize_axis_index(axis, x.ndim)
    at = (slice(None),) * axis
    return [x[(*at, k)] if at else x[k] for k in range(x.shape[axis])]


def dropout(x: Any, p: float = 0.5, *, training: bool = True, rng: Any = None) -> Any:
    """Zero each element with probability `p` and divide the others by 1 - p.

    With p = 0, or not training, `x` itself is returned.

    Parameters
    ----------
    rng : int or numpy.random.Generator, optional
        None means fresh entropy.

    Raises
    ------
    ValueError
        If `p` is not in [0, 1].

    Examples
    --------
    >>> dropout(np.ones(6), 0.5, rng=0)
    array([2., 0., 0., 0., 2., 2.])
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p={p} is not in [0, 1]")
    if not training or p == 0:
        return x
    dtype = x.dtype if x.dtype.kind in "fc" else np.float64
    return x * dropout_mask(x.shape, p, dtype, np.random.default_rng(rng))


def dropout_mask(
    shape: tuple[int, ...], p: float, dtype: npt.DTypeLike, rng: np.random.Generator
) -> npt.NDArray[Any]:
    """Return what ``dropout`` multiplies with: 0 with probability `p`, else 1 / (1 - p)."""
    kept = rng.random(shape) >= p
    return np.asarray(kept * np.asarray(1 / (1 - p) if p < 1 else 0, dtype))


def layer_norm(x: Any, gain: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """(x - mean) / sqrt(var + eps) * gain + bias over the last axis (Ba, Kiros, Hinton 2016).

    >>> layer_norm(np.array([1.0, 3.0]), eps=0.0)
    array([-1.,  1.])
    """
    d = x - mean(x, -1, keepdims=True)
    y = d / sqrt(mean(d * d, -1, keepdims=True) + eps)
    y = y if gain is None else y * gain
    return y if bias is None else y + bias


def _ids(ids: Any, size: int, what: str) -> Any:
    """Return `ids`, a Tensor as it is, as integers, each in [0, size)."""
    a = ids.data if isinstance(ids, Tensor) else np.asarray(ids)
    if a.dtype.kind not in "iu" and a.size:
        raise TypeError(f"{what}: ids are integers, got {a.dtype}")
    if a.size and (a.min() < 0 or a.max() >= size):
        at = [int(i) for i in np.argwhere((a < 0) | (a >= size))[0]]
        raise IndexError(f"{what}: id {a[tuple(at)]} at {at} is not in 0..{size - 1}")
    return ids if isinstance(ids, Tensor) else a.astype(np.intp, copy=False)


def one_hot(ids: Any, size: int, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    r"""Rows of the identity matrix: an array (\*ids.shape, size) of zeros with a 1 at each id.

    Raises
    ------
    IndexError
        If an id is not in 0..size - 1.

    Examples
    --------
    >>> one_hot([2, 0], 3)
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """
    a = np.asarray(_ids(ids, size, "one_hot"))
    y = np.zeros((*a.shape, size), dtype)
    np.put_along_axis(y, a[..., None], 1, axis=-1)
    return y


def embedding(ids: Any, table: Any) -> Any:
    r"""The rows of `table` (V, D) that the integers `ids` name: (\*ids.shape, D).

    Raises
    ------
    IndexError
        If an id is not in 0..V - 1.

    Examples
    --------
    >>> embedding([1, 1, 0], np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([[3., 4.],
           [3., 4.],
           [1., 2.]])
    """
    return ops.take(table, _ids(ids, table.shape[0], "embedding"))


def mse_loss(prediction: Any, target: Any, *, reduction: str = "mean", mask: Any = None) -> Any:
    """Squared error, (prediction - target)^2: its mean over the elements that count, or their sum.

    Parameters
    ----------
    prediction : Tensor or array of any shape
    target : array of the same shape
    reduction : {"mean", "sum", "none"}
        The mean over the elements that count, 0 if none does; their sum; or each by itself.
    mask : array of bool, optional
        What counts: of the shape of the leading axes, as (T, N) for (T, N, D).  Whatever is
        masked, a NaN too, changes neither the loss nor a gradient.

    Raises
    ------
    ShapeError
        If the two have different shapes: broadcasting would compare everything with everything.
        If the shape of the mask is not that of leading axes.

    Examples
    --------
    >>> float(mse_loss(np.array([1.0, 3.0]), np.array([1.0, 1.0])))
    2.0
    >>> float(mse_loss(np.array([1.0, 3.0]), np.array([1.0, 1.0]), mask=[True, False]))
    0.0
    """
    if np.shape(prediction) != np.shape(target):
        raise ShapeError(
            f"mse_loss: prediction {np.shape(prediction)} and target {np.shape(target)} "
            f"differ in shape"
        )
    target = _target(target, prediction.dtype)
    count = np.size(prediction)
    if mask is not None:
        counts = np.asarray(mask, bool)
        shape = np.shape(prediction)
        if counts.shape != shape[: counts.ndim]:
            raise ShapeError(
                f"mse_loss: mask {counts.shape} does not fit prediction {shape}: expected the "
                f"shape of its leading axes"
            )
        counts = np.broadcast_to(
            counts.reshape(counts.shape + (1,) * (len(shape) - counts.ndim)), shape
        )
        count = int(counts.sum())
        prediction = ops.where(counts, prediction, 0.0)  # before it meets the other: NaN * 0 is NaN
        target = ops.where(counts, target, 0.0)
    d = prediction - target
    return _reduced(d * d, count, reduction, "mse_loss")


def cross_entropy(
    logits: Any,
    targets: Any,
    *,
    reduction: str = "sum",
    mask: Any = None,
    ignore_index: int | None = None,
) -> Any:
    """E = -sum_t sum_i d_i log y_i with y = softmax(logits): equations (12) and (13).

    Parameters
    ----------
    logits : Tensor (..., V)
        Before the softmax; the last axis counts the classes.
    targets : array (...) of int, or array (..., V)
        Class numbers, or a distribution d for each step.
    reduction : {"sum", "mean", "none"}
        Sum over all steps and samples, as the lecture does; the mean over the steps that count,
        0 if none does; or each step by itself, of shape (...).
    mask : array (...) of bool, optional
        Which steps count.
    ignore_index : int, optional
        A class number that marks steps that do not count.

    Returns
    -------
    Tensor
        A scalar; in nats.  Stable for logits of 1e4; 0 log 0 counts as 0.

    Raises
    ------
    ShapeError
        If targets or mask do not fit the logits.
    IndexError
        If a target is no class.

    Warns
    -----
    UserWarning
        If the logits look like probabilities already.

    Examples
    --------
    >>> float(cross_entropy(np.log([[0.25, 0.75]]), [1]).round(6))
    0.287682
    """
    logits = logits if isinstance(logits, Tensor) else np.asarray(logits)
    if logits.ndim == 0:
        raise ShapeError("cross_entropy: logits need an axis of classes")
    V = logits.shape[-1]
    _warn_of_probabilities(logits.data if isinstance(logits, Tensor) else logits)
    targets = _target(targets, logits.dtype)
    counts = np.ones(logits.shape[:-1], bool) if mask is None else np.asarray(mask, bool)
    if counts.shape != logits.shape[:-1]:
        raise ShapeError(f"cross_entropy: mask {counts.shape} does not fit logits {logits.shape}")
    if ignore_index is not None and targets.shape == counts.shape:
        counts = counts & (np.asarray(targets) != ignore_index)
    if not counts.all():
        logits = ops.where(counts[..., None], logits, 0.0)  # whatever it is, it does not count
    log_y = log_softmax(logits, axis=-1)
    if targets.shape == logits.shape:
        if ignore_index is not None:
            raise ShapeError(
                "cross_entropy: ignore_index goes with class numbers, not distributions"
            )
        losses = -ops.sum(targets * ops.where(targets != 0, log_y, 0.0), axis=-1)
    elif targets.shape == logits.shape[:-1]:
        ids = targets if isinstance(targets, Tensor) else np.asarray(targets)
        if ids.dtype.kind in "iu" and not counts.all():
            ids = np.where(counts, ids, 0)
        ids = _ids(ids, V, "cross_entropy")
        rows = np.arange(ids.size)
        losses = -ops.reshape(
            ops.reshape(log_y, shape=(ids.size, V))[rows, ids.reshape(-1)], shape=ids.shape
        )
    else:
        raise ShapeError(
            f"cross_entropy: targets {targets.shape} do not fit logits {logits.shape}: expected "
            f"class numbers {logits.shape[:-1]}, or distributions {logits.shape}"
        )
    if not counts.all():
        losses = ops.where(counts, losses, 0.0)
    return _reduced(losses, int(counts.sum()), reduction, "cross_entropy")


def _target(target: Any, dtype: np.dtype[Any]) -> Any:
    """Return a plain real target in the floating type of what it is compared with."""
    if isinstance(target, Tensor):
        return target
    a = np.asarray(target)
    return a.astype(dtype) if a.dtype.kind == dtype.kind == "f" else a


def _reduced(losses: Any, count: int, reduction: str, what: str) -> Any:
    if reduction == "none":
        return losses
    if reduction not in ("sum", "mean"):
        raise ValueError(f'{what}: reduction is "sum", "mean" or "none", got {reduction!r}')
    y = ops.sum(losses)
    return y if reduction == "sum" else y / max(count, 1)


def _warn_of_probabilities(logits: npt.NDArray[Any]) -> None:
    if logits.shape[-1] < 2 or not logits.size or logits.dtype.kind != "f":
        return
    first = logits.reshape(-1, logits.shape[-1])[0]
    if (first < 0).any() or np.abs(first.sum() - 1) > 1e-3:  # nearly always: one row is enough
        return
    if (logits >= 0).all() and (np.abs(logits.sum(-1) - 1) < 1e-3).all():
        warnings.warn(
            "cross_entropy: the logits look like probabilities; it takes the values before softmax",
            UserWarning,
            stacklevel=3,
        )
