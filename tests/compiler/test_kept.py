"""What a compiled layer keeps from call to call: no inputs; its settings, wherever it is copied."""

import copy
import gc
import pickle
import warnings
import weakref

import numpy as np
import pytest

import tinygrad_rnn
from tinygrad_rnn import Module, Tensor, functional, nn
from tinygrad_rnn.compiler import Compiled, CompileWarning

from .test_compile import BACKENDS, Mixes, agree, numbers


def alive(run, calls, match):
    """Return which of the inputs and outputs of calls are still there after them."""
    given = []

    def call():
        for k in range(calls):
            x = inputs(k)
            given.extend([weakref.ref(x), weakref.ref(run(x))])

    if match:
        with pytest.warns(CompileWarning, match=match):
            call()
    else:
        call()
    gc.collect()
    assert len(given) == 2 * calls
    return [k for k, ref in enumerate(given) if ref() is not None]


def inputs(seed=0):
    return Tensor(np.random.default_rng(seed).uniform(-1, 1, (4, 3, 3)), requires_grad=True)


# --- nothing of earlier calls


class Asks(Mixes):
    """Its step raises in the middle of a trace, with the Tensors of it in the frames."""

    def step(self, x, h):
        h = functional.relu(self.affine(x, h))
        return h, h if h.sum() > 0 else -h


class Fails(Mixes):
    def step(self, x, h):
        if x.shape[0] != 3:  # the traces have other batches
            raise ValueError("three sequences, please")
        h = functional.relu(self.affine(x, h))
        return h, h


@pytest.mark.parametrize("kind", [Mixes, Asks, Fails])
@pytest.mark.parametrize("calls", [1, 5])
def test_a_layer_that_runs_unrolled_keeps_no_input_alive(kind, calls):
    layer = tinygrad_rnn.compile(nn.Recurrent(kind()))
    assert alive(lambda x: layer(x)[0], calls, "runs unrolled") == []
    assert "runs unrolled" in layer.report()


def test_the_reason_that_is_kept_has_no_frames():
    layer = tinygrad_rnn.compile(nn.Recurrent(Asks()))
    with pytest.warns(CompileWarning, match="reads the value"):
        layer(inputs())
    for _ in range(3):
        layer(inputs())
    ((why, *_),) = layer._compiler.programs.values()
    assert isinstance(why, Exception)
    assert (why.__traceback__, why.__context__, why.__cause__) == (None, None, None)


def test_a_compiled_layer_keeps_no_input_alive():
    layer = tinygrad_rnn.compile(nn.LSTM(3, 4, dtype=np.float64, rng=0), backend="numpy")

    def run(x):
        out = layer(x)[0]
        out.sum().backward()
        return out

    assert alive(run, 3, None) == []


def test_a_function_that_runs_plainly_keeps_no_input_alive():
    fast = tinygrad_rnn.compile(lambda x: x * x.sum().item())
    assert alive(fast, 3, "runs plainly") == []


# --- copies


class Holder(Module):
    """A model with layers that are compiled, by themselves and in containers."""

    def __init__(self):
        self.first = nn.LSTM(3, 3, dtype=np.float64, rng=0)
        self.more = [nn.GRU(3, 2, dtype=np.float64, rng=1)]
        self.named = {"last": nn.RNN(2, 2, dtype=np.float64, rng=2)}

    def forward(self, x):
        out, _ = self.first(x)
        for layer in [*self.more, *self.named.values()]:
            out, _ = layer(out)
        return out

    def layers(self):
        return [self.first, *self.more, *self.named.values()]


def pickled(value):
    return pickle.loads(pickle.dumps(value))


COPIES = {"pickle": pickled, "copy": copy.copy, "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_copy_of_a_compiled_layer_computes_the_same(backend, way, called):
    layer = tinygrad_rnn.compile(
        nn.LSTM(3, 4, num_layers=2, dtype=np.float64, rng=0), backend=backend, threads=2
    )
    x = inputs()
    if called:
        numbers(layer, x)
    twin = COPIES[way](layer)
    assert type(twin) is type(layer)
    assert isinstance(twin, Compiled)
    assert twin is not layer
    assert twin.report() == "not called yet"
    assert (twin._compiler.backend, twin._compiler.threads) == (backend, 2)
    assert list(twin.state_dict()) == list(layer.state_dict())
    agree(numbers(twin, x), numbers(layer, x))
    assert "runs unrolled" not in twin.report()
    assert f"back end: {'NumPy' if backend == 'numpy' else backend}" in twin.report()
    assert twin.report() == layer.report()
    shared = [p is q for p, q in zip(twin.parameters(), layer.parameters(), strict=True)]
    assert set(shared) == {way == "copy"}


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_a_copy_of_a_model_computes_the_same(way, called):
    model = tinygrad_rnn.compile(Holder(), backend="numpy", threads=2)
    x = inputs()
    if called:
        model(x).sum().backward()
    twin = COPIES[way](model)
    for layer, own in zip(twin.layers(), model.layers(), strict=True):
        assert type(layer) is type(own)
        assert layer is not own
        assert (layer._compiler.backend, layer._compiler.threads) == ("numpy", 2)
    agree([twin(x).data], [model(x).data], 0.0)
    for layer in twin.layers():
        assert layer.report().startswith("back end: NumPy")
    before = model(x).data.copy()
    for p in twin.parameters():
        p.data *= 2
    agree([model(x).data], [before], 0.0)
    assert np.abs(twin(x).data - before).max() > 1e-3


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_a_layer_that_runs_unrolled_says_so_again(way):
    layer = tinygrad_rnn.compile(nn.Recurrent(Mixes()))
    x = inputs()
    with pytest.warns(CompileWarning, match="mixes the sequences"):
        want = layer(x)[0].data
    twin = COPIES[way](layer)
    with pytest.warns(CompileWarning, match="mixes the sequences"):
        got = twin(x)[0].data
    agree([got], [want], 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)  # told once


@pytest.mark.parametrize("way", COPIES)
def test_settings_of_modes_survive(way):
    layer = nn.LSTM(3, 4, checkpoint_every=2, dtype=np.float64, rng=0)
    layer = tinygrad_rnn.compile(layer, backend="numpy").eval()
    x = inputs()
    want = layer(x)[0].data
    twin = COPIES[way](layer)
    assert twin.training is False
    assert twin.checkpoint_every == layer.checkpoint_every == 2
    agree([twin(x)[0].data], [want], 0.0)
