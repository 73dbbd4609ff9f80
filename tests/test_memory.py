"""What a step of a layer gives back, and that nobody misses it."""

import gc
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.op_cases import ALL, CASES, DIFFERENTIABLE
from tinygrad_rnn import Tensor, debug, graph, mark, nn, record
from tinygrad_rnn.memory import _blank, keep_freed
from tinygrad_rnn.nn import recurrent


def backward_parts(op, g, y, inputs, attrs):
    """Return every gradient that the rules and collectors of an op give, as bytes."""
    if op.rule_all is not None:
        return [None if b is None else b.tobytes() for b in op.rule_all(g, y, *inputs, **attrs)]
    found = [None if r is None else r(g, y, *inputs, **attrs).tobytes() for r in op.rules]
    use = [(g, inputs, attrs)]
    for x, c in zip(inputs, op.collectors, strict=False):
        found.append(None if c is None else np.asarray(c(x, use)).tobytes())
    return found


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@given(data=st.data())
def test_rules_read_only_what_the_op_says(name, data):
    """With NaN in the place of what an op does not read, its gradients are the same bits."""
    op = ALL[name]
    case = data.draw(CASES[name])
    y = np.asarray(op.forward(*case.inputs, **case.attrs))
    g = np.ones(y.shape, y.dtype)
    expected = backward_parts(op, g, y, case.inputs, case.attrs)
    chosen = range(*op.selects.indices(len(case.inputs)))
    inputs = [
        x if op.reads_inputs or k in chosen else _blank(x.shape, x.dtype)
        for k, x in enumerate(case.inputs)
    ]
    y = y if op.reads_output else _blank(y.shape, y.dtype)
    assert backward_parts(op, g, y, inputs, case.attrs) == expected


def is_blank(t):
    return t.size > 1 and t.data.strides == (0,) * t.ndim


@pytest.fixture
def releasing(monkeypatch):
    """Steps of any size are worth releasing."""
    monkeypatch.setattr(recurrent, "_WORTH_RELEASING", 0)


def gradients(layer, x, **settings):
    layer.zero_grad()
    out, _ = layer(x, **settings)
    (out * out).sum().backward()
    return [out.numpy().tobytes(), *[p.grad.tobytes() for p in layer.parameters()]]


@pytest.mark.parametrize("make", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("settings", [{}, {"lengths": [4, 0, 2]}])
def test_gradients_are_the_same_bits(make, settings, monkeypatch):
    layer = make(3, 5, num_layers=2, bidirectional=True, dtype=np.float64, rng=0)
    x = np.random.default_rng(0).standard_normal((4, 3, 3))
    kept = gradients(layer, x, **settings)
    monkeypatch.setattr(recurrent, "_WORTH_RELEASING", 0)
    assert gradients(layer, x, **settings) == kept
    out, _ = layer(x, **settings)
    assert sum(is_blank(t) for t in graph.nodes((out,))) > 20


def test_second_order_through_released_nodes(monkeypatch):
    from tinygrad_rnn import grad

    layer = nn.LSTM(2, 3, dtype=np.float64, rng=0)
    x = Tensor(np.random.default_rng(0).standard_normal((3, 2, 2)), requires_grad=True)

    def second():
        first = grad((layer(x)[0] ** 2).sum(), x, create_graph=True)
        return grad((first * first).sum(), [x, *layer.parameters()])

    kept = second()
    monkeypatch.setattr(recurrent, "_WORTH_RELEASING", 0)
    for a, b in zip(second(), kept, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_marked_returned_or_held_keeps_its_values(releasing):
    class Keeping(nn.Cell):
        def __init__(self):
            super().__init__(2, 2)
            self.add_weights()
            self.seen = []

        def step(self, x, h):
            held = x @ self.W_x + self.b
            lost = held + h @ self.W_h
            named = lost + 1
            mark(named=named)
            self.seen.append(held)
            return named + 0, named + 0

    cell = Keeping()
    out, h = nn.Recurrent(cell)(np.ones((2, 3, 2)))
    nodes = [t for t in graph.nodes((out, h)) if t.op is not None]
    assert np.isfinite(out.numpy()).all()
    assert np.isfinite(h.numpy()).all()
    assert all(np.isfinite(t.numpy()).all() for t in cell.seen)
    assert all(np.isfinite(t.numpy()).all() for t in nodes if t.name == "named")
    lost = [t for t in nodes if is_blank(t)]
    assert {t.op.name for t in lost} == {"matmul", "add"}
    assert all(np.isnan(t.numpy()).all() for t in lost)


@pytest.mark.parametrize("context", [record, debug])
def test_readings_find_every_value(context, releasing):
    layer = nn.LSTM(2, 3, rng=0)
    with context():
        out, _ = layer(np.ones((2, 2, 2)))
        assert not any(is_blank(t) for t in graph.nodes((out,)) if t.op is not None)


def test_a_graph_takes_less_than_half_the_memory(monkeypatch):
    layer = nn.LSTM(32, 64, rng=0)
    x = np.ones((20, 64, 32), np.float32)

    def kept():
        gc.collect()
        tracemalloc.start()
        out = layer(x)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        del out
        return size

    monkeypatch.setattr(recurrent, "_WORTH_RELEASING", 1 << 60)
    whole = kept()
    monkeypatch.setattr(recurrent, "_WORTH_RELEASING", 0)
    assert kept() < whole / 2


def test_the_c_library_is_asked_once_more_without_harm():
    assert keep_freed() is keep_freed()
