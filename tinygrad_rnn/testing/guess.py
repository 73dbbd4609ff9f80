"""What a wrong gradient looks like beside the right one, in words."""

from __future__ import annotations

import numpy as np

from ..arrays import Array


def guess(got: Array, want: Array, sizes: dict[str, int]) -> str:
    """Return what a wrong block of gradients looks like beside the right one, in words."""
    scale = float(np.abs(want).max(initial=0))
    wrong = np.abs(got - want) > 1e-7 * max(scale, float(np.abs(got).max(initial=0)))
    if not got.any():
        return (
            "backward gives 0 everywhere: the graph is cut (detach, .data, no_grad), or a rule "
            "is missing"
        )
    if not want.any():
        return "backward gives a gradient where the function does not depend on the input"
    same = np.abs(want) > 1e-12 * scale
    ratios = got[same] / want[same]
    if same.any() and np.ptp(ratios) <= 1e-6 * np.abs(ratios).max() and not got[~same].any():
        looks = _of_ratio(float(ratios[0]), sizes)
        return f"ratio {ratios[0]:.6g} in all {ratios.size} entries: {looks}"
    turned = got.mT if got.ndim >= 2 and got.shape[-1] == got.shape[-2] else None
    if turned is not None and np.allclose(turned, want, rtol=1e-7, atol=1e-10 * scale):
        return "it is the transposed of the right one"
    for axis in range(got.ndim):
        if got.shape[axis] > 1 and np.allclose(
            np.flip(got, axis), want, rtol=1e-7, atol=1e-10 * scale
        ):
            return f"it is the right one in reverse order along axis {axis}"
        for k in range(1, got.shape[axis]):
            if np.allclose(np.roll(got, -k, axis), want, rtol=1e-7, atol=1e-10 * scale):
                return f"it is the right one shifted by {k} along axis {axis}"
    zero = wrong & (got == 0)
    if zero.any() and (zero == wrong).all():
        return f"{int(zero.sum())} of {got.size} entries are 0 that should not be"
    return (
        f"{int(wrong.sum())} of {got.size} entries are wrong, by no constant factor: a term is "
        f"missing or wrong"
    )


def _of_ratio(ratio: float, sizes: dict[str, int]) -> str:
    if abs(ratio + 1) < 1e-6:
        return "the sign is wrong"
    for letter, n in sizes.items():
        if n > 1:
            for value, text in (
                (1 / n, f"1/{letter}: a mean where the sum is right"),
                (n, f"{letter}: a sum where the mean is right"),
            ):
                if abs(ratio - value) < 1e-6 * value:
                    return f"it is {text}"
    if abs(ratio - 2) < 1e-6 or abs(ratio - 0.5) < 1e-6:
        return "a factor 2, or a term that is counted twice or dropped"
    if abs(ratio - 1) < 1e-3:
        return "a small relative error: a constant, or a lower precision inside"
    return "a constant factor"
