"""The acceptance rules of torch, jax and HIPS autograd, on the two-method protocol.

Each is written from what the project documents and does by default (torch 2.13, jax 0.10.2,
autograd 1.9.1); all take a subject and its inputs and return whether they accept it.  Only the
reverse mode is looked at, for a subject has no other.
"""

import numpy as np


class Silent(Exception):  # noqa: N818  a rejection, no failure of the program
    """Raised where a rule rejects."""


def _wanted(arrays):
    return [k for k, a in enumerate(arrays) if a.dtype.kind == "f" and a.size]


def _zero(gradient, like):
    """Return a gradient as an array; of another shape it is rejected, as all three do."""
    if gradient is None:
        return np.zeros_like(like)
    if gradient.shape != like.shape:
        raise Silent("shape")
    return gradient


def _pull(subject, arrays, cotangents, back=None):
    found = subject.vjp(arrays, cotangents) if back is None else back(cotangents)
    return {k: _zero(found[k], arrays[k]) for k in _wanted(arrays)}


def _moved(arrays, tangents, step):
    return [
        a + np.asarray(step * tangents[k], a.dtype) if k in tangents else a
        for k, a in enumerate(arrays)
    ]


def _central(subject, arrays, tangents, step):
    plus = subject.forward(*_moved(arrays, tangents, step))
    minus = subject.forward(*_moved(arrays, tangents, -step))
    return [(a - b) / (2 * step) for a, b in zip(plus, minus, strict=True)]


def _close(got, want, rtol, atol):
    return bool(np.all(np.abs(got - want) <= atol + rtol * np.abs(want)))


# --- torch ---------------------------------------------------------------------------------------

EPS, RTOL, ATOL = 1e-6, 1e-3, 1e-5


def _torch_always(subject, arrays, outputs):
    """A zero or an undefined cotangent must give zero, in the inputs' dtype and shape."""
    for cotangents in ([np.zeros_like(y) for y in outputs], [None] * len(outputs)):
        for k, g in _pull(subject, arrays, cotangents).items():
            if g.any() or g.dtype != arrays[k].dtype:
                raise Silent("zero cotangent")


def torch_slow(subject, arrays):
    """Every entry of the Jacobian: central differences, allclose(1e-3, 1e-5)."""
    outputs = subject.forward(*arrays)
    numeric = [{k: np.zeros((y.size, arrays[k].size)) for k in _wanted(arrays)} for y in outputs]
    for k in _wanted(arrays):
        for entry in range(arrays[k].size):
            unit = np.zeros(arrays[k].shape)
            unit.flat[entry] = 1
            for j, column in enumerate(_central(subject, arrays, {k: unit}, EPS)):
                numeric[j][k][:, entry] = column.ravel()
    back = subject.pull(arrays)[1] if hasattr(subject, "pull") else None  # a graph is recorded once
    for j, y in enumerate(outputs):
        rows = []
        for _ in range(2):  # all rows, and all again
            got = {k: np.zeros_like(block) for k, block in numeric[j].items()}
            for entry in range(y.size):
                u = np.zeros_like(y)
                u.flat[entry] = 1
                cotangents = [u if i == j else None for i in range(len(outputs))]
                for k, g in _pull(subject, arrays, cotangents, back).items():
                    got[k][entry] = g.ravel()
            rows.append(got)
        for k in numeric[j]:
            if not np.array_equal(rows[0][k], rows[1][k]):
                raise Silent("not reentrant")
            if not _close(rows[0][k], numeric[j][k], RTOL, ATOL):
                raise Silent("jacobian")
    _torch_always(subject, arrays, outputs)


def torch_fast(subject, arrays):
    """One projection per pair of input and output, on unit vectors without negative entries."""
    rng = np.random.default_rng(0)

    def unit(a):
        v = rng.random(a.shape)
        return np.asarray(v / (np.linalg.norm(v) or 1))

    outputs = subject.forward(*arrays)
    us = {k: unit(arrays[k]) for k in _wanted(arrays)}
    vs = [unit(y) for y in outputs]
    numeric = {k: _central(subject, arrays, {k: u}, EPS) for k, u in us.items()}
    for j, y in enumerate(outputs):
        cotangents = [np.asarray(vs[j], y.dtype) if i == j else None for i in range(len(outputs))]
        once, twice = (
            {
                k: np.array(g)
                for k, g in _pull(subject, arrays, [_copy(c) for c in cotangents]).items()
            }
            for _ in range(2)
        )
        for k, u in us.items():
            if not np.array_equal(once[k], twice[k]):
                raise Silent("not reentrant")
            atol = ATOL * u.sum() * vs[j].sum()
            if not _close(np.sum(once[k] * u), np.sum(numeric[k][j] * vs[j]), RTOL, atol):
                raise Silent("projection")
    _torch_always(subject, arrays, outputs)


def _copy(a):
    return None if a is None else a.copy()


# --- jax, HIPS -----------------------------------------------------------------------------------


def jax(subject, arrays):
    """One random direction of all inputs and all outputs; 1e-5 (float64), 2e-3 (float32)."""
    rng = np.random.RandomState(0)
    outputs = subject.forward(*arrays)
    tangents = {k: np.asarray(rng.randn(*arrays[k].shape)) for k in _wanted(arrays)}
    if not all(
        _close(a, b, 1e-5, 1e-5) for a, b in zip(subject.forward(*arrays), outputs, strict=True)
    ):
        raise Silent("primal")
    moved = _central(subject, arrays, tangents, 1e-4)
    cotangents = [np.asarray(rng.randn(*y.shape), y.dtype) for y in outputs]
    got = _pull(subject, arrays, [c.copy() for c in cotangents])
    single = any(arrays[k].dtype == np.float32 for k in tangents)
    tolerance = 2e-3 if single else 1e-5
    left = sum(np.sum(tangents[k] * g) for k, g in got.items())
    right = sum(np.sum(c * d) for c, d in zip(cotangents, moved, strict=True))
    if not _close(left, right, tolerance, tolerance):
        raise Silent("projection")


def hips(subject, arrays):
    """One random direction; accepts an absolute or a relative difference below 1e-6."""
    rng = np.random.default_rng(0)
    outputs = subject.forward(*arrays)
    tangents = {k: rng.standard_normal(arrays[k].shape) for k in _wanted(arrays)}
    cotangents = [np.asarray(rng.standard_normal(y.shape), y.dtype) for y in outputs]
    got = _pull(subject, arrays, [c.copy() for c in cotangents])
    if any(g.dtype != arrays[k].dtype for k, g in got.items()):
        raise Silent("vector space")
    moved = _central(subject, arrays, tangents, 0.5e-6)
    left = sum(np.sum(tangents[k] * g) for k, g in got.items())
    right = sum(np.sum(c * d) for c, d in zip(cotangents, moved, strict=True))
    difference = abs(left - right)
    if not (difference < 1e-6 or difference < 1e-6 * abs(left + right)):
        raise Silent("projection")


PEERS = {"torch slow": torch_slow, "torch fast": torch_fast, "jax": jax, "HIPS": hips}


def accepts(peer, subject, arrays):
    """Return whether a rule accepts a subject; what stops it with an exception is a rejection."""
    arrays = [np.array(a) for a in arrays]
    try:
        with np.errstate(all="ignore"):
            PEERS[peer](subject, arrays)
    except Exception:  # whatever a faulty subject raises, the user sees it
        return False
    return True
