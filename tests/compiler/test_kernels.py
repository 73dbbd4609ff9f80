"""Kernels cut up in all ways give the same to the bit, and gradients that share no memory."""

from itertools import combinations

import numpy as np
import pytest

pytest.importorskip("numba", reason="the kernels are compiled by numba")

from tinygrad_rnn import Parameter, nn
from tinygrad_rnn.compiler import numba_backend
from tinygrad_rnn.ops import tanh

from .test_compile import WORDS, _own_cache, agree, fast, inputs, numbers, weight  # noqa: F401


class TwoBiases(nn.Cell):
    """Two parameters whose gradients are the same sum, and two weights of the same product."""

    def __init__(self):
        super().__init__(3, 4, dtype=np.float64)
        self.add_weights(rng=0)
        self.b2, self.b3 = Parameter(np.ones(4)), Parameter(np.ones((1, 4)))
        self.W2 = Parameter(np.ones((3, 4)) / 3)

    def step(self, x, h):
        h = tanh(self.affine(x, h) + self.b2 + self.b3 + x @ self.W2)
        return h, h


LAYERS = {
    "lstm": lambda: nn.LSTM(3, 4, **WORDS),
    "gru, as published": lambda: nn.GRU(3, 4, reset_after=False, **WORDS),
    "layer norm": lambda: nn.Recurrent(nn.LayerNormLSTMCell(3, 4, **WORDS)),
    "peephole": lambda: nn.Recurrent(nn.PeepholeLSTMCell(3, 4, **WORDS)),
    "two biases": lambda: nn.Recurrent(TwoBiases()),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def parts(made):
    out, state = made
    return [out, *(state if isinstance(state, tuple) else [state])]


@every_layer
def test_gradients_share_no_memory(name):
    layer = LAYERS[name]()
    quick = fast(layer, "numba")
    agree(numbers(quick, inputs()), numbers(layer, inputs()))
    for _ in range(2):
        x = inputs()
        made = parts(quick(x))
        given = weight(made[0], 0)
        before = given.copy()
        quick.zero_grad()
        made[0].backward(given)
        arrays = [x.data, x.grad, given, *[t.data for t in made[:1]]]
        arrays += [a for p in layer.parameters() for a in (p.data, p.grad)]
        for a, b in combinations(arrays, 2):
            assert not np.shares_memory(a, b)
        assert np.array_equal(given, before)
        assert all(p.grad.flags.writeable for p in layer.parameters())


@every_layer
@pytest.mark.parametrize("N", [1, 7, 8, 9, 17])
@pytest.mark.parametrize("near", [1, 1000])
def test_segments_and_threads_are_the_same_to_the_bit(name, N, near, monkeypatch):
    """Sums over rows may round otherwise where other steps are taken together; not by these."""
    layer = LAYERS[name]()
    x = inputs(7, N)
    monkeypatch.setattr(numba_backend, "_NEAR", near)
    want = numbers(fast(layer, "numba"), x)
    agree(want, numbers(layer, x))
    for cut in ({"_SOON": 1.0}, {"_WORTH": 0}, {"_SOON": 1.0, "_WORTH": 0}):
        with monkeypatch.context() as patch:
            for key, value in cut.items():
                patch.setattr(numba_backend, key, value)
            quick = fast(layer, "numba")
            quick._compiler.threads = 3
            made = numbers(quick, x)
            for a, b in zip(made, want, strict=True):
                assert np.array_equal(a, b)
            (rows, steps, threads, once), *_ = quick._compiler.used._known.values()
            assert rows == 8
            assert steps == 1 or near > 1
            assert threads == (3 if "_WORTH" in cut else 1)
            assert (once == steps) == ("_SOON" in cut)


@pytest.mark.parametrize("N", [1, 7, 8, 9, 17, 33])
def test_tiles_of_large_weights(N, monkeypatch):
    """Of more than 8 rows, or of all: what runs row by row is the same."""
    layer = nn.LSTM(3, 4, **WORDS)
    want = numbers(fast(layer, "numba"), inputs(7, N))
    monkeypatch.setattr(numba_backend, "_SMALL", 0)
    for near in (1, 1 << 16):
        monkeypatch.setattr(numba_backend, "_NEAR", near)
        quick = fast(layer, "numba")
        agree(numbers(quick, inputs(7, N)), want)
        (rows, *_), *_ = quick._compiler.used._known.values()
        assert rows == {1: 8, 7: 8, 8: 8, 9: 16, 17: 24, 33: 24}[N]
