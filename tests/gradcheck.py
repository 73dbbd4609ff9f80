"""Check gradients of first and second order against complex step or Ridders' extrapolation.

A reference derivative is taken along one random direction per input block; the tolerance is
relative to that block, so that a small gradient beside a large one is still looked at.
"""

import numpy as np

from tinygrad_rnn import Tensor, grad

STEP = 1e-100  # nothing is subtracted in a complex step: no rounding error, however small
EPS = np.finfo(np.float64).eps


def complex_step(along):
    """Return the derivative of the analytic ``along(t)`` at 0."""
    return complex(along(1j * STEP)).imag / STEP


def ridders(along, h=0.05, levels=6):
    """Return the derivative of ``along(t)`` at 0 and an estimate of its error.

    Central differences with steps h, h/2, h/4, ..., extrapolated to step 0 (Ridders 1982).  The
    error is the least change between neighbours of the table, plus what rounding of f leaves.
    """
    best, error = 0.0, np.inf
    rows: list[list[float]] = []
    for level in range(levels):
        step = h / 2**level
        plus, minus = float(along(step)), float(along(-step))
        row = [(plus - minus) / (2 * step)]
        floor = 4 * EPS * max(abs(plus), abs(minus)) / step
        for j in range(1, level + 1):
            row.append(row[j - 1] + (row[j - 1] - rows[-1][j - 1]) / (4**j - 1))
            change = max(abs(row[j] - row[j - 1]), abs(row[j] - rows[-1][j - 1]))
            if 10 * change + floor < error:
                best, error = row[j], 10 * change + floor
        rows.append(row)
    return best, error


def backward(f, arrays, wrt, u, create_graph=False):
    """Return the gradients of <u, f> at the inputs `wrt`, and these inputs."""
    xs = [Tensor(a, requires_grad=k in wrt) for k, a in enumerate(arrays)]
    leaves = [xs[k] for k in wrt]
    return grad(f(*xs), leaves, u, create_graph), leaves


def check(f, *arrays, order=2, complex_safe=True, wrt=None, seed=0):
    """Assert that the engine's gradients of f, a function of Tensors, are right.

    Parameters
    ----------
    f : callable
        Takes Tensors, returns one Tensor.
    *arrays : ndarray
        float64 where differentiated.
    order : int
        1, or 2 for the gradient of the gradient too, by its inputs and by its cotangent.
    complex_safe : bool
        Whether f is analytic; otherwise Ridders' method is the reference.
    wrt : sequence of int, optional
        Which inputs to differentiate by: all.
    """
    rng = np.random.default_rng(seed)
    wrt = tuple(range(len(arrays)) if wrt is None else wrt)
    u = rng.standard_normal(f(*[Tensor(a) for a in arrays]).shape)
    first, _ = backward(f, arrays, wrt, u)
    traced, leaves = backward(f, arrays, wrt, Tensor(u, requires_grad=True), create_graph=True)
    for k, g, t in zip(wrt, first, traced, strict=True):
        assert type(g) is np.ndarray
        assert (g.shape, g.dtype) == (arrays[k].shape, arrays[k].dtype), f"gradient of input {k}"
        assert (t.shape, t.dtype) == (g.shape, g.dtype), f"create_graph: gradient of input {k}"
        np.testing.assert_array_equal(t.data, g, f"rule of input {k}: arrays against Tensors")

    def value(*xs):
        return np.sum(u * f(*[Tensor(x) for x in xs]).data)

    compare(value, arrays, wrt, first, complex_safe, rng, "first order")
    if order < 2:
        return
    weights = [rng.standard_normal(g.shape) for g in first]
    cotangent = Tensor(u, requires_grad=True)
    traced, leaves = backward(f, arrays, wrt, cotangent, create_graph=True)
    scalar = sum(((t * w).sum() for t, w in zip(traced, weights, strict=True)), Tensor(0.0))
    second = grad(scalar, [*leaves, cotangent])

    def slope(*xs):
        """The weighted first-order gradient, by the rules on arrays (complex ones too)."""
        gradients, _ = backward(f, xs[:-1], wrt, xs[-1])
        return sum(np.sum(w * g) for w, g in zip(weights, gradients, strict=True))

    blocks = (*wrt, len(arrays))
    compare(slope, (*arrays, u), blocks, second, complex_safe, rng, "second order")


def compare(value, arrays, wrt, gradients, complex_safe, rng, what):
    """Assert <gradient, v> = the derivative of `value` along v, block by block."""
    for k, g in zip(wrt, gradients, strict=True):
        v = rng.standard_normal(g.shape)
        v /= np.abs(v).max(initial=1e-3)

        def along(t, k=k, v=v):
            return value(*[a + t * v if i == k else a for i, a in enumerate(arrays)])

        got = float(np.sum(g * v))
        scale = float(np.linalg.norm(g) * np.linalg.norm(v))
        if complex_safe:
            want, error = complex_step(along), 0.0
        else:
            want, error = ridders(along)
        tolerance = error + 1e-10 * max(scale, abs(want))
        assert abs(got - want) <= tolerance, (
            f"{what}, input {k}: backward {got!r}, reference {want!r}, tolerance {tolerance:.1e}"
        )
