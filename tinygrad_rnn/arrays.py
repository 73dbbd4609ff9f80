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
