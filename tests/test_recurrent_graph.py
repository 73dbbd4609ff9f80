"""The graph that a layer records is the lecture's: places, names, reads of weights, long runs."""

import gc
import time

import numpy as np
import pytest

from tinygrad_rnn import Module, Tensor, functional, grad, graph, mark, no_grad, ops, record
from tinygrad_rnn.nn import GRU, LSTM, RNN, Cell, Linear, LSTMCell, Recurrent, RNNCell
from tinygrad_rnn.scope import identify, scope

from .test_cells import check_gradients, weighted
from .test_recurrent import D, H, build, inputs, kinds, leaves_of


def ids(*outputs):
    nodes = graph.nodes(outputs)
    names = identify(nodes)
    return {names[t.order]: t for t in nodes}


class Translator(Module):
    def __init__(self):
        self.encoder = LSTM(D, H, 2, rng=0)
        self.heads = [Linear(H, 2, rng=0), GRU(H, 2, bidirectional=True, rng=0)]

    def forward(self, x):
        out, _ = self.encoder(x)
        again, _ = self.encoder(x)
        return self.heads[1](out + again)[0]


# --- places and names ----


def test_nodes_are_called_by_layer_direction_step_and_name():
    out, _ = LSTM(D, H, 2, bidirectional=True, rng=0)(np.ones((5, 1, D)))
    found = ids(out)
    for k in range(2):
        for side in ("fwd", "rev"):
            for t in range(5):
                for name in "ifgoch":
                    assert f"L{k}.{side}.T{t}.{name}" in found
    assert found["L0.fwd.T3.f"].op is ops.sigmoid
    assert found["L0.fwd.T3.f"].place.step == 3
    assert str(found["L0.fwd.T3.f"].place) == "L0.fwd, step t=4 of 5"  # a person counts from 1
    assert not any("T5" in name for name in found)


def test_the_modules_path_stands_before_and_a_second_call_is_numbered():
    model = Translator()
    found = ids(model(np.ones((4, 1, D))))
    assert {"encoder.L0.fwd.T3.f", "encoder#2.L0.fwd.T3.f", "encoder.L1.fwd.T0.c"} <= set(found)
    assert "heads.1.L0.rev.T2.z" in found
    assert not any("#3" in name or "heads.1#2" in name for name in found)
    assert str(found["encoder#2.L0.fwd.T3.f"].place) == "encoder.L0.fwd, step t=4 of 4"
    assert [p.name for p in model.parameters()] == list(model.state_dict())
    assert model.encoder.L1["fwd"].path == "encoder.L1.fwd"


def test_two_runs_give_the_same_ids_and_ids_are_unique():
    def run():
        y = Translator()(np.ones((3, 1, D)))
        nodes = graph.nodes((y,))
        names = identify(nodes)
        return [names[t.order] for t in nodes]

    one = run()
    assert one == run()
    assert len(set(one)) == len(one)


def test_initial_states_are_called_after_what_follows_them():
    out, _ = LSTM(D, H, rng=0)(np.ones((2, 1, D)))
    assert {"h0", "c0"} <= set(ids(out))
    h0 = Tensor(np.zeros((1, 1, H), np.float32), requires_grad=True, name="start")
    out, _ = RNN(D, H, rng=0)(np.ones((2, 1, D)), h0)
    assert "start" in ids(out)


def test_parameters_are_named_as_in_the_design():
    layer = LSTM(D, H, 2, bidirectional=True, rng=0)
    places = ["L0.fwd", "L0.rev", "L1.fwd", "L1.rev"]
    want = [f"{place}.{p}" for place in places for p in ("W_x", "W_h", "b")]
    assert list(layer.state_dict()) == want
    assert [p.name for p in layer.parameters()] == want
    assert layer.state_dict()["L1.rev.W_x"].shape == (2 * H, 4 * H)


def test_nodes_outside_the_steps_have_no_step():
    out, _, trace = LSTM(D, H, bidirectional=True, rng=0)(np.ones((3, 1, D)), trace=True)
    for t in (out, trace["L0.fwd.c"], *[c for c in graph.nodes((out,)) if c.op is ops.concat]):
        assert t.place is None or t.place.step is None


def test_after_a_call_the_scope_is_as_before_also_after_an_error():
    layer = RNN(D, H, rng=0)
    layer(np.ones((2, 1, D)), trace=True)
    layer.forward(np.ones((2, 1, D)))
    assert (scope().place, scope().marks) == (None, None)
    layer.L0["fwd"].W_h.data = np.ones((2, 2), np.float32)
    for run in (layer, layer.forward):
        with pytest.raises(ValueError, match="step t=1"):
            run(np.ones((2, 1, D)), trace=True)
        assert (scope().place, scope().marks) == (None, None)


# --- the lecture's graph ----


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("T", [1, 4])
def test_a_step_reads_each_weight_once_and_nothing_is_hoisted(kind, T):
    layer = build(kind)
    out, _ = layer(inputs(T, 2, D))
    products = [t for t in graph.nodes((out,)) if t.op is ops.matmul]
    cell = layer.L0["fwd"]
    assert sum(t.inputs[1] is cell.W_x for t in products) == T
    assert sum(t.inputs[1] is cell.W_h for t in products) == T
    assert len(products) == 2 * T
    assert sorted(t.place.step for t in products) == sorted([*range(T)] * 2)
    assert all(t.shape[0] == 2 for t in products)  # of one step each


@kinds
def test_the_number_of_nodes_is_affine_in_the_number_of_steps(kind):
    layer = build(kind, 2, True)
    counts = [len(graph.nodes((layer(inputs(T, 1, D))[0],))) for T in (3, 4, 5)]
    assert counts[2] - counts[1] == counts[1] - counts[0]


def test_the_hidden_state_goes_up_and_on_so_its_gradients_add():
    layer, x = build("rnn"), inputs(3, 1, D)
    out, _ = layer(x)
    nodes = graph.nodes((out,))
    found = ids(out)
    h = found["L0.fwd.T1.h"]
    users = [t for t in nodes if any(i is h for i in t.inputs)]
    assert {t.op.name for t in users} == {"matmul", "stack"}  # the next step, and the output
    w = np.random.default_rng(0).standard_normal(out.shape)
    both = grad((out * w).sum(), h)
    h2 = found["L0.fwd.T2.h"]
    on = grad(h2, h, w[2])
    np.testing.assert_allclose(both, w[1] + on, rtol=1e-14)


def test_a_trace_can_be_differentiated():
    layer, x = build("lstm", 2), inputs(4, 2, D)

    def loss():
        trace = layer(x, trace=True)[2]
        return weighted([trace["L0.fwd.f"], trace["L1.fwd.g"] * trace["L1.fwd.c"]])

    leaves = leaves_of(layer, x=x)
    check_gradients(loss, leaves, H)
    assert grad(loss(), layer.L0["fwd"].W_h).any()


def test_a_trace_is_taken_without_recording_too():
    layer, x = build("gru"), inputs(3, 2, D)
    want = layer(x, trace=True)[2]
    with no_grad():
        out, _, trace = layer(x, trace=True)
    assert not out.requires_grad
    assert all((trace[name].data == want[name].data).all() for name in want)
    assert len(layer(x)) == 2  # only where it is asked for


def test_a_cell_may_mark_what_it_likes_and_some_steps_may_not():
    class Odd(Cell):
        def step(self, x, h):
            h = h + x
            mark(h=h)
            if h.data.max() >= 2:
                mark(big=h * 10, total=h.sum())
            return h, h

    _, _, trace = Recurrent(Odd(1, 1))(np.ones((3, 1, 1)), trace=True)
    assert trace["L0.fwd.big"].data.ravel().tolist() == [0, 20, 30]
    assert trace["L0.fwd.total"].data.tolist() == [0, 2, 3]


def test_a_cell_may_hold_modules_whose_nodes_lie_in_its_step():
    class Deep(Cell):
        def __init__(self):
            super().__init__(D, H)
            self.inner = Linear(D + H, H, rng=0)

        def step(self, x, h):
            h = ops.tanh(self.inner(ops.concat(x, h, axis=1)))
            mark(h=h)
            return h, h

    layer = Recurrent(Deep())
    out, _ = layer(np.ones((3, 2, D)))
    assert list(layer.state_dict()) == ["L0.fwd.inner.W", "L0.fwd.inner.b"]
    assert {"L0.fwd.T2.h", "L0.fwd.T1.matmul", "L0.fwd.T1.concat"} <= set(ids(out))


def test_under_record_a_frozen_layer_is_drawn_too_and_without_it_costs_no_graph():
    layer = build("rnn")
    for p in layer.parameters():
        p.requires_grad = False
    x = np.ones((3, 1, D))
    assert len(graph.nodes((layer(x)[0],))) == 1
    with record():
        out, _ = layer(x)
    assert "L0.fwd.T2.h" in ids(out)
    assert not out.requires_grad


def test_one_cell_in_two_layers_shares_its_weights():
    cell = RNNCell(H, H, dtype=np.float64, rng=0)
    tied, x = Recurrent([cell, cell]), inputs(3, 1, H)
    assert list(tied.state_dict()) == ["L0.fwd.W_x", "L0.fwd.W_h", "L0.fwd.b"]
    check_gradients(lambda: weighted(tied(x)), leaves_of(tied, x=x))


def test_a_learned_initial_state_gets_its_gradient():
    class Started(RNNCell):
        def __init__(self):
            super().__init__(D, H, dtype=np.float64, rng=0)
            self.start = Tensor(np.full((1, H), 0.3), requires_grad=True)

        def initial_state(self, batch):
            return ops.broadcast(self.start, shape=(batch, H))

    layer, x = Recurrent(Started()), inputs(2, 3, D)
    start = layer.L0["fwd"].start
    check_gradients(lambda: weighted(layer(x, lengths=[2, 0, 1])), {"start": start, "x": x})


class Explodes(Cell):
    """Finite on its sequences, infinite on the zeros behind their ends."""

    def step(self, x, state):
        with np.errstate(divide="ignore", invalid="ignore"):
            return x / (x * x).sum(axis=1, keepdims=True), state + x


@pytest.mark.parametrize("every", [None, 2])
def test_what_is_infinite_past_an_end_reaches_no_gradient(every):
    x = Tensor(np.abs(inputs(4, 2, D).data) + 0.5, requires_grad=True)
    cell = Explodes(D, D, dtype=np.float64)
    stacked = Recurrent([cell, RNNCell(D, H, dtype=np.float64, rng=0)], checkpoint_every=every)
    both = Recurrent((cell, RNNCell(D, D, dtype=np.float64, rng=0)), merge="mul")
    for layer in (stacked, both):
        with np.errstate(invalid="ignore"):
            g = grad(layer(x, lengths=[4, 2])[0].sum(), [x, *layer.parameters()])
        for n, T in enumerate([4, 2]):  # each sequence alone has nothing past its end
            alone = grad(layer(x[:T, n : n + 1])[0].sum(), [x, *layer.parameters()])
            g = [a - b for a, b in zip(g, alone, strict=True)]
        for rest in g:
            np.testing.assert_allclose(rest, 0, atol=1e-12)


# --- long runs ----


def test_ten_thousand_steps_run_forward_and_backward():
    layer = LSTM(1, 4, rng=0)
    x = np.random.default_rng(0).standard_normal((10_000, 1, 1))
    out, _ = layer(x)
    out[-1].sum().backward()
    assert all(np.isfinite(p.grad).all() and p.grad.any() for p in layer.parameters())


def test_a_dropped_graph_is_freed_at_once_without_the_garbage_collector():
    layer = RNN(1, 2, rng=0)
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        out, _ = layer(np.ones((500, 1, 1)), lengths=[400])
        del out, _
        assert len(gc.get_objects()) - before < 100
    finally:
        gc.enable()


def test_time_grows_linearly_with_the_steps():
    layer = RNN(1, 2, rng=0)

    def seconds(T):
        x, best = np.ones((T, 1, 1)), np.inf
        for _ in range(3):
            start = time.process_time()
            functional.mean(layer(x)[0]).backward()
            best = min(best, time.process_time() - start)
        return best

    assert seconds(4000) < 3 * 8 * seconds(500)  # quadratic would be 64 times


def test_a_cell_outside_a_layer_keeps_its_names():
    cell = LSTMCell(D, H, rng=0)
    assert [p.name for p in cell.parameters()] == ["W_x", "W_h", "b"]
    y, _ = cell(np.ones((1, D)))
    assert {"W_x", "f", "c", "h"} <= set(ids(y))
