"""First values of weights.  Every function returns an array and takes ``rng``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def xavier(shape: tuple[int, int], *, rng: Any = None, dtype: npt.DTypeLike = np.float32) -> Array:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010).

    >>> bool(abs(xavier((100, 50), rng=0)).max() <= 0.2)
    True
    """
    limit = math.sqrt(6 / (sum(shape) or 1))
    return np.random.default_rng(rng).uniform(-limit, limit, shape).astype(dtype)


def kaiming(shape: tuple[int, int], *, rng: Any = None, dtype: npt.DTypeLike = np.float32) -> Array:
    """Normal with variance 2 / fan_in, for ReLU (He, Zhang, Ren, Sun 2015).

    >>> round(float(kaiming((1000, 50), rng=0).var()), 4)
    0.002
    """
    scale = math.sqrt(2 / (shape[0] or 1))
    return (np.random.default_rng(rng).standard_normal(shape) * scale).astype(dtype)


def orthogonal(
    shape: tuple[int, int], *, gain: float = 1.0, rng: Any = None, dtype: npt.DTypeLike = np.float32
) -> Array:
    """Orthonormal rows or columns, whichever are fewer, uniform among them (Saxe et al. 2013).

    >>> W = orthogonal((3, 3), rng=0, dtype=np.float64)
    >>> np.allclose(W @ W.T, np.eye(3))
    True
    """
    tall = (max(shape), min(shape))
    q, r = np.linalg.qr(np.random.default_rng(rng).standard_normal(tall))
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)  # without this, QR prefers some rotations
    return np.ascontiguousarray(gain * (q if shape[0] >= shape[1] else q.T), dtype)


def identity(
    shape: tuple[int, int], *, gain: float = 1.0, rng: Any = None, dtype: npt.DTypeLike = np.float32
) -> Array:
    """Identity matrix times `gain`, for ReLU networks (Le, Jaitly, Hinton 2015); draws nothing.

    >>> identity((2, 2))
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    return gain * np.eye(*shape, dtype=dtype)
