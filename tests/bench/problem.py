"""The LSTM that every contestant runs: sizes, data, weights, and the check that gradients agree."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
SIZES = (
    (16, 1, 32, 16),
    (64, 16, 32, 32),
    (128, 32, 64, 64),
    (256, 1, 64, 128),
    (256, 32, 64, 128),
)
SMOKE_SIZES = ((4, 1, 3, 2), (8, 4, 5, 3))


Run = Callable[[], list[Array]]  # one forward and backward: the gradients of W_x, W_h, b
Pick = Callable[[Array, int], int]  # the n-th character from its logits
Sampler = Callable[[int], list[int]]  # a text of so many characters


@dataclass
class Problem:
    """x (T,N,D), W_x (D,4H), W_h (H,4H), b (4H,); gates i, f, g, o; the state starts at zero."""

    x: Array
    W_x: Array
    W_h: Array
    b: Array

    @property
    def weights(self) -> tuple[Array, Array, Array]:
        """The arrays whose gradients are asked for."""
        return self.W_x, self.W_h, self.b

    def astype(self, dtype: npt.DTypeLike) -> "Problem":
        """The same problem in another precision."""
        return Problem(self.x.astype(dtype), *(w.astype(dtype) for w in self.weights))


def make(H: int, N: int, T: int, D: int, seed: int = 0) -> Problem:
    """Draw a problem in float32."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((T, N, D))
    W_x = rng.standard_normal((D, 4 * H)) / D**0.5
    W_h = rng.standard_normal((H, 4 * H)) / H**0.5
    b = 0.1 * rng.standard_normal(4 * H)
    return Problem(x, W_x, W_h, b).astype(np.float32)


def check(
    name: str, got: Sequence[Array], expected: Sequence[Array], tolerance: float = 1e-4
) -> float:
    """Return the largest relative error of the gradients; raise where it is above `tolerance`."""
    worst = 0.0
    for label, a, b in zip(("W_x", "W_h", "b"), got, expected, strict=True):
        if a.shape != b.shape or a.dtype != np.float32:
            raise AssertionError(
                f"{name}: gradient of {label} is {a.dtype} {a.shape}, not float32 {b.shape}"
            )
        error = float(np.abs(a - b).max() / np.abs(b).max())
        if not error <= tolerance:
            raise AssertionError(
                f"{name}: gradient of {label} is off by {error:.1e} of its largest element"
            )
        worst = max(worst, error)
    return worst
