"""What is taken for an array."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import DtypeError

Array = npt.NDArray[Any]


def array(x: Any) -> Array:
    """Return `x` as an array; a list of Tensors is refused, since it would lose their gradients."""
    if isinstance(x, list | tuple) and any(hasattr(item, "__record__") for item in x):
        raise TypeError("a list of Tensors is no Tensor: functional.stack(list) makes one of it")
    return np.asarray(x)


def numbers(value: Any, dtype: np.dtype[Any]) -> Array:
    """Return what is neither array nor number, such as a list, as an array that meets `dtype`."""
    a = array(value)
    if a.dtype.kind not in "biufc":
        raise DtypeError(f"{value!r} is no number and no array of numbers")
    return a.astype(dtype) if dtype.kind in "fc" and a.dtype.kind != "c" else a


_LARGE = 1 << 11  # elements; below, np.where is as fast


def choose(mask: Any, x: Any, y: Any) -> Any:
    """Return ``np.where(mask, x, y)``, four times as fast where the mask chooses whole rows."""
    array = y if type(x) is float else x
    if type(array) is not np.ndarray or array.size < _LARGE or array.dtype.kind not in "fc":
        return np.where(mask, x, y)
    other = x if array is y else y
    rows = np.asarray(mask)
    alike = type(other) is float or (
        type(other) is np.ndarray
        and other.dtype == array.dtype
        and other.shape in ((), array.shape)
    )
    if not alike or rows.dtype != bool or rows.shape != (*array.shape[:-1], 1):
        return np.where(mask, x, y)
    out = array.copy()
    others = rows[..., 0] if array is y else ~rows[..., 0]
    out[others] = other[others] if np.ndim(other) else other
    return out


def add_at(y: Array, index: Any, part: Any) -> None:
    """Do ``np.add.at(y, index, part)``, five times as fast where integers name whole rows."""
    i = np.asarray(index[0])
    if len(index) > 1 or y.ndim < 2 or i.dtype.kind not in "iu" or part.size < _LARGE:
        np.add.at(y, index, part)
        return
    names = np.where(i < 0, i + len(y), i).reshape(-1)
    order = np.argsort(names, kind="stable")
    names = names[order]
    first = np.flatnonzero(np.diff(names, prepend=-1))
    y[names[first]] += np.add.reduceat(part.reshape(len(names), *y.shape[1:])[order], first, axis=0)
