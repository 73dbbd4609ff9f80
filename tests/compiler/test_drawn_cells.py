"""Cells that nobody wrote: compiled equals unrolled, and they do compile."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_rnn
from tinygrad_rnn import Tensor, grad, nn
from tinygrad_rnn.compiler import CompileWarning
from tinygrad_rnn.testing import profiles

from .drawn_cells import BINARY, UNARY, WEIGHTED, DrawnCell, drawn_cells
from .test_compile import BACKENDS, _own_cache, weight  # noqa: F401

EXAMPLES = {
    "numpy": {"dev": 25, "ci": 50, "thorough": 500},
    "numba": {"dev": 3, "ci": 5, "thorough": 50},
}
CALLS = [(4, 3, None), (1, 1, None), (3, 5, [3, 0, 1, 2, 3])]  # T, N, lengths


def numbers(layer, x, lengths):
    """Return what a call gives and all gradients, every output counted."""
    out, state = layer(x, lengths=lengths)
    made = [out, *(state if isinstance(state, tuple) else [state])]
    leaves = [x, *layer.parameters()]
    loss = sum((y * weight(y, k)).sum() for k, y in enumerate([*made, *leaves]))
    return [y.data for y in made] + grad(loss, leaves)


def errors(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    return np.array([np.abs(a - b).max(initial=0) for a, b in zip(ours, theirs, strict=True)])


def nudged(layer, x, lengths, rng):
    """Return the numbers for inputs and parameters that are one unit in the last place off."""

    def near(a):
        return np.nextafter(a, a + rng.choice([-1, 1], a.shape).astype(a.dtype))

    before = {p: p.data for p in layer.parameters()}
    try:
        for p, a in before.items():
            p.data = near(a)
        return numbers(layer, Tensor(near(x.data), requires_grad=True), lengths)
    finally:
        for p, a in before.items():
            p.data = a


def check(cell, backend, seed, T, N, lengths, limit):
    layer = nn.Recurrent(cell)
    quick = tinygrad_rnn.compiler.compile(layer, backend=backend)
    rng = np.random.default_rng(seed)
    x = Tensor(rng.uniform(-1, 1, (T, N, cell.input_size)).astype(cell.dtype), requires_grad=True)
    want = numbers(layer, x, lengths)
    found = errors(numbers(quick, x, lengths), want)
    allowed = limit * np.array([np.abs(b).max(initial=0) for b in want])
    if (found > allowed).any():
        for _ in range(5):
            allowed = np.maximum(allowed, 16 * errors(nudged(layer, x, lengths, rng), want))
    assert (found <= allowed).all(), (found, allowed)
    return quick


def compiles(cell, backend, *call):
    """Compare, and return whether it was compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CompileWarning)
        quick = check(cell, backend, *call)
    return "unrolled" not in quick.report()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_drawn_cell_is_the_same_compiled(backend, dtype):
    limit = 1e-12 if dtype is np.float64 else 64 * np.finfo(dtype).eps
    count = EXAMPLES[backend].get(profiles.name(), 5)
    done = []

    @settings(max_examples=count, deadline=None)
    @given(drawn_cells(dtype), st.integers(0, 99), st.sampled_from(CALLS))
    def run(cell, seed, call):
        done.append(compiles(cell, backend, seed, *call, limit))

    run()
    assert np.mean(done) >= 0.95


@pytest.mark.parametrize("name", [*UNARY, *BINARY, *WEIGHTED])
def test_each_line_compiles_by_itself(name):
    cell = DrawnCell(2, 4, 2, [("bias", 0, 0), (name, 3, 1), ("product", 4, 0)], [0, 1, 0])
    assert compiles(cell, "numpy", 0, 4, 3, None, 1e-12)
