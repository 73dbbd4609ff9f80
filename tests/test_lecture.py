"""One test or more for every system of the lecture, D1 to D14; its name carries the row's name.

The equations are in test_lecture_equations.py, the claims in test_claims.py.
"""
# ruff: noqa: N802 - the rows are called D1, D2, ...

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import viz
from tinygrad_rnn import Module, Parameter, Tensor, bptt, grad, graph, nn, ops
from tinygrad_rnn.functional import cross_entropy, softmax
from tinygrad_rnn.nn import (
    LSTM,
    RNN,
    EncoderDecoder,
    FeedbackCell,
    Linear,
    LSTMCell,
    Readout,
    Recurrent,
    RNNCell,
)  # fmt: skip

from .test_cells import check_gradients, randomise
from .test_examples import load

D, H, K = 3, 4, 5
rng = np.random.default_rng(23)
ROOT = Path(__file__).resolve().parent.parent


def rnn(D=D, H=H, layers=1, scale=0.6, **settings):
    return randomise(RNN(D, H, layers, dtype=np.float64, rng=0, **settings), seed=1, scale=scale)


def lstm(D=D, H=H, layers=1):
    return randomise(LSTM(D, H, layers, dtype=np.float64, rng=0), seed=2, scale=0.6)


def leaf(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


# --- every row has its test ---

ROWS = [
    *[f"D{k}" for k in range(1, 15) if k != 13],  # D13 says that the exam is by hand
    *["D12b", "D12c", "u1"],
    *[f"eq_{k:02}" for k in range(1, 14)],
    *[f"L{k}" for k in range(1, 7)],
    *[f"C{k}" for k in range(1, 8)],
]


def test_every_row_of_the_lecture_has_a_test():
    files = [
        ROOT / "tests" / f"test_{name}.py" for name in ("lecture", "lecture_equations", "claims")
    ]
    text = "\n".join([f.read_text() for f in files])
    rows = re.findall(r"^def test_(D\d+[a-z]?|eq_\d+|u\d|L\d|C\d)_\w+\(", text, re.MULTILINE)
    assert sorted({*rows}) == sorted(ROWS)


# --- systems and definitions ---


def test_D1_one_model_runs_any_length_and_order_matters():
    layer = rnn()
    for N in (1, 2, 7):
        out, h = layer(leaf(N, 1, D))
        assert (out.shape, h.shape) == ((N, 1, H), (1, 1, H))
    x = leaf(7, 1, D)
    _, h = layer(x)
    _, turned = layer(x[::-1])
    assert np.abs(h.data - turned.data).max() > 0.01
    assert np.abs(h.data - layer(x.data[[0, 1, 3, 2, 4, 5, 6]])[1].data).max() > 1e-4


def test_D2_parameters_are_shared_by_all_steps():
    layer, cell = rnn(), rnn().L0["fwd"]
    before = [(id(p), p.shape) for p in layer.parameters()]
    for N in (2, 5):
        out, _ = layer(leaf(N, 1, D))
        nodes = graph.nodes((out,))
        for W in layer.parameters():
            assert sum(t is W for t in nodes) == 1  # one node of W
            assert sum(any(i is W for i in t.inputs) for t in nodes) == N  # with N readers
    assert [(id(p), p.shape) for p in layer.parameters()] == before
    x, w = leaf(5, 1, D), rng.standard_normal((5, 1, H))
    shared = grad((layer(x)[0] * w).sum(), layer.parameters())
    copies = [[Tensor(p.data, requires_grad=True) for p in cell.parameters()] for _ in range(5)]
    h, loss = Tensor(np.zeros((1, H))), Tensor(0.0)
    for t, (W_x, W_h, b) in enumerate(copies):
        h = ops.tanh(x[t] @ W_x + b + h @ W_h)
        loss = loss + (h * w[t]).sum()
    untied = grad(loss, [p for copy in copies for p in copy])
    for k in range(3):
        np.testing.assert_allclose(shared[k], sum(untied[k::3]), rtol=1e-12)


def test_D3_a_convolution_in_time_is_shallow_a_recurrent_network_deep():
    T, k, x = 9, 3, leaf(9, D)
    conv = nn.Conv1d(D, 1, k, dtype=np.float64, rng=0)
    band = np.tri(T - k + 1, T, k - 1, bool) & ~np.tri(T - k + 1, T, -1, bool)
    np.testing.assert_array_equal(bptt.reads(conv, x.data), band)  # a field of width k
    assert conv.receptive_field == k
    deep = nn.TDNN([D, 4, 4, 1], k, dtype=np.float64, rng=0)
    assert bptt.reads(deep, x.data)[0].sum() == deep.receptive_field == 3 * (k - 1) + 1
    back_to_the_first = np.tri(T, dtype=bool)
    np.testing.assert_array_equal(bptt.reads(rnn(), x.data), back_to_the_first)
    out, _ = rnn()(x)
    slopes = np.abs([grad(out[t].sum(), x).sum(1) for t in range(T)])
    np.testing.assert_array_equal(slopes > 0, back_to_the_first)  # and not only structurally


def test_D4_a_recurrent_neuron_feeds_its_output_back_in_order():
    neuron, x = rnn(H=1), leaf(6, D)
    assert type(neuron.L0["fwd"]) is type(rnn(H=7).L0["fwd"])  # a layer of one
    p = {name[7:]: a for name, a in neuron.state_dict().items()}
    out, _ = neuron(x)
    y = 0.0
    for t in range(6):  # unrolled along time only: one unit
        y = np.tanh(x.data[t] @ p["W_x"][:, 0] + y * p["W_h"][0, 0] + p["b"][0])
        np.testing.assert_allclose(out.data[t, 0], y, rtol=1e-13)
    outputs = [t for t in graph.nodes((out,)) if t.name == "h"]
    assert [(t.place.layer, t.place.step) for t in outputs] == [(0, k) for k in range(6)]
    W_h = neuron.L0["fwd"].W_h
    for before, after in pairwise(outputs):  # the output of a step is the input of the next
        reads = [t for t in graph.nodes((after,)) if any(i is before for i in t.inputs)]
        assert [(t.place.step, t.inputs[1] is W_h) for t in reads] == [(after.place.step, True)]


def test_D5_a_layer_is_neurons_that_share_their_input():
    layer, x = rnn(), leaf(4, D)
    p = {name[7:]: a for name, a in layer.state_dict().items()}
    out, _ = layer(x)
    y = np.zeros(H)
    for t in range(4):
        columns = zip(p["W_x"].T, p["W_h"].T, p["b"], strict=True)  # one for each neuron
        y = np.array([np.tanh(x.data[t] @ w_x + y @ w_y + b) for w_x, w_y, b in columns])
        np.testing.assert_allclose(out.data[t], y, rtol=1e-12)


def test_D6_unrolling_makes_an_acyclic_graph_of_repeated_steps():
    layer, x = rnn(), leaf(6, 1, D)
    counts = []
    for T in (3, 4, 5, 6):
        nodes = graph.nodes((layer(x[:T])[0],))
        order = {id(t): k for k, t in enumerate(nodes)}
        assert all(order[id(i)] < k for k, t in enumerate(nodes) for i in t.inputs)  # no circle
        counts.append(len(nodes))
        drawing = viz.draw(nodes[-1]).source
        assert drawing.startswith(f"// nodes={len(nodes)}, ")
        frames = re.findall(r'label="t = (\d+)"', drawing)
        assert frames == [str(t + 1) for t in range(T)]  # the same step, T times
    assert len(set(np.diff(counts))) == 1  # affine in T
    out, _ = layer(x)
    state, cell = None, layer.L0["fwd"]
    for t in range(6):  # the loop over the recurrent form
        y, state = cell(x[t], state)
        np.testing.assert_array_equal(out.data[t], y.data)


def test_D7_the_hidden_state_may_differ_from_the_output():
    x = leaf(1, D)
    y, h = RNNCell(D, H, dtype=np.float64, rng=0)(x)
    assert y is h  # for the plain cell y = h
    y, (h, c) = LSTMCell(D, H, dtype=np.float64, rng=0)(x)
    assert y is h
    assert (c.data != y.data).any()  # the memory is more than the output
    o, h = Readout(rnn(), K, rng=0)(leaf(2, 1, D))
    assert (o.shape, h.shape) == ((2, 1, K), (1, 1, H))


@pytest.mark.parametrize("T_in", [1, 3, 4])
@pytest.mark.parametrize("T_out", [1, 3, 6])
def test_D8_input_and_output_may_have_different_lengths(T_in, T_out):
    reader, writer, head = rnn(), rnn(D=0), Linear(H, K, dtype=np.float64, rng=0)
    x = leaf(T_in, 2, D)
    _, h = reader(x, leaf(1, 2, H))
    out, _ = writer(None, h, steps=T_out)  # vector to sequence
    loss = cross_entropy(head(out), np.ones((T_out, 2), int))
    assert head(out).shape == (T_out, 2, K)
    gradients = grad(loss, [x, *reader.parameters(), *writer.parameters(), *head.parameters()])
    assert (np.abs(gradients[0]).sum((1, 2)) > 0).all()
    assert all(np.abs(g).max() > 0 for g in gradients)


def test_D8_the_four_modes_run_and_back_propagate():
    layer, x, head = rnn(), leaf(4, 1, D), Linear(H, 2, dtype=np.float64, rng=0)
    own = FeedbackCell(RNNCell(2, H, dtype=np.float64, rng=0), head)
    out, _ = layer(x)
    held = np.concatenate([np.ones((1, 1, D)), np.zeros((3, 1, D))])
    fed_back, _ = Recurrent(own)(None, own.start(np.zeros((1, 2)), x[0] @ np.ones((D, H))), steps=4)
    modes = {
        "sequence to sequence": cross_entropy(head(out), [[0], [1], [0], [1]]),
        "sequence to vector": cross_entropy(head(out[-1]), [1]),
        "vector to sequence": cross_entropy(head(layer(x * held)[0]), [[0], [1], [0], [1]]),
        "vector to sequence, fed back": cross_entropy(fed_back, [[0], [1], [0], [1]]),
        "delayed": cross_entropy(head(out), np.ones((4, 1), int), mask=[[0], [0], [1], [1]]),
    }
    for mode, loss in modes.items():
        reached = np.abs(grad(loss, x)).sum((1, 2)) > 0
        assert reached.tolist() == [True, *[not mode.startswith("vector")] * 3], mode
        learned = [t for t in graph.nodes([loss]) if isinstance(t, Parameter)]
        assert len(learned) == 5
        assert all(g.any() for g in grad(loss, learned)), mode


def test_D8_the_four_panels_have_their_arrows():
    example, T_in, T_out = load("architectures"), 5, 4
    want = {
        "sequence_to_sequence": np.tri(T_in),  # its past and itself, no future
        "sequence_to_vector": np.ones((1, T_in)),
        "vector_to_sequence": np.ones((T_out, 1)),
        "vector_to_sequence_fed_back": np.ones((T_out, 1)),
        "delayed_sequence_to_sequence": np.ones((T_out, T_in)),
    }
    assert [build.__name__ for build in example.FIGURE_14_4] == list(want)
    sizes = example.Sizes(3, 4, 2, T_out, np.random.default_rng(0))
    for build in example.FIGURE_14_4:
        y, x = example.run_one(build, T_in, sizes)
        np.testing.assert_array_equal(bptt.reads(y, x), want[build.__name__])


class Translator(Module):
    """The translation model of figure 14-15, from two layers."""

    def __init__(self, words=7, size=H):
        self.source, self.target = [nn.Embedding(words, D, dtype="f8", rng=k) for k in (0, 1)]
        self.encoder, self.decoder = lstm(), lstm()
        self.head = Linear(size, words, dtype="f8", rng=2)

    def forward(self, source, target, lengths):
        _, state = self.encoder(self.source(source), lengths=lengths)
        shifted = np.concatenate([np.zeros_like(target[:1]), target[:-1]])  # 0 says: go
        out, _ = self.decoder(self.target(shifted), state)
        return cross_entropy(self.head(out), target), state


def test_D9_the_encoders_last_state_is_the_decoders_first():
    model, source = Translator(), np.array([[1, 2], [3, 4], [5, 0]])
    target = np.array([[1, 6], [2, 5]])
    loss, state = model(source, target, [3, 2])
    assert all(g.any() for g in grad(loss, state))
    first = [t for t in graph.nodes((loss,)) if t.place and str(t.place).startswith("decoder")]
    assert {i.order for t in first for i in t.inputs} & {s.order for s in state}  # read as it is
    reached = grad(loss, model.source.W).any(axis=1)
    assert reached.tolist() == [False, *[True] * 5, False]  # x(1) is, the padding 0 is not
    leaves = {"source": model.source.W, "decoder": model.decoder.L0["fwd"].W_h}
    check_gradients(lambda: model(source, target, [3, 2])[0], leaves)


def test_D9_the_encoder_decoder_of_the_package_is_this_network():
    model = EncoderDecoder(7, 8, H, dtype="f8", rng=0)
    source, target = np.array([[3], [4], [5]]), np.array([[6], [2]])
    reached = grad(model.loss(source, target), model.source_embedding.W).any(axis=1)
    assert np.flatnonzero(reached).tolist() == [3, 4, 5]
    _, state = model.encoder(model.source_embedding(source[::-1]))  # it reads backwards
    out, _ = model.decoder(model.target_embedding([[0], [6], [2]]), state)  # 0 says: go
    np.testing.assert_array_equal(model(source, target).data, model.linear(out).data)


def test_D10_the_error_is_the_cross_entropy_of_softmax_and_target():
    o, d = leaf(4, K), rng.random((4, K))
    y = softmax(o.data)
    loss = cross_entropy(o, d)
    np.testing.assert_allclose(loss.data, -(d * np.log(y)).sum(), rtol=1e-13)
    np.testing.assert_allclose(grad(loss, o), y * d.sum(1, keepdims=True) - d, rtol=1e-11)
    d /= d.sum(1, keepdims=True)
    np.testing.assert_allclose(grad(cross_entropy(o, d), o), y - d, rtol=1e-10, atol=1e-15)


def test_D11_a_gate_of_minus_40_still_lets_a_remainder_through():
    shut = ops.sigmoid(np.array(-40.0))
    np.testing.assert_allclose(shut, np.exp(-40.0), rtol=1e-14)
    assert 0 < shut < 1e-17
    assert ops.sigmoid(np.array(-800.0)) == 0 < 1 == ops.sigmoid(np.array(800.0))


@pytest.mark.parametrize(("bias", "degree"), [(-800, 0.0), (0, 0.5), (800, 1.0)])
def test_D11_a_gate_stops_halves_or_passes_to_the_bit(bias, degree):
    x = np.array([[0.3, -7.0, 1e10]])
    gate = ops.sigmoid(Tensor(np.full(3, float(bias))))
    np.testing.assert_array_equal((gate * x).data, degree * x)
    cell = LSTMCell(0, 3, dtype=np.float64, rng=0)
    cell.W_h.data[:] = 0
    cell.b.data[:] = 0
    cell.b.data[3:6] = bias  # the forget gate on the way of the cell state
    cell.b.data[:3] = -800
    _, (_, c) = cell(None, (np.zeros((1, 3)), x))
    np.testing.assert_array_equal(c.data, degree * x)


def forced(**bias):
    """Return an LSTM layer without input whose gates are set by their biases alone."""
    layer = LSTM(0, 2, dtype=np.float64, rng=0)
    cell = layer.L0["fwd"]
    cell.W_h.data[:] = 0
    for k, gate in enumerate("ifgo"):
        cell.b.data[2 * k : 2 * k + 2] = bias.get(gate, 0.0)
    return layer


def test_D12_the_conveyor_passes_the_cell_state_unchanged():
    layer = forced(f=800, i=-800)
    c0 = Tensor([[[0.1, -123.456]]], requires_grad=True)
    _, (_, c) = layer(None, (np.zeros((1, 1, 2)), c0), steps=1000)
    np.testing.assert_array_equal(c.data, c0.data)
    w = np.array([[[1.0, 1.0]]])
    np.testing.assert_array_equal(grad(c, c0, w), w)  # dC_T / dC_0 = 1


def test_D12b_the_cell_state_can_be_erased_and_added_to():
    c0 = np.array([[[5.0, -3.0]]])
    start = np.zeros((1, 1, 2)), c0
    _, (_, c) = forced(f=-800, i=-800)(None, start, steps=1)
    np.testing.assert_array_equal(c.data, 0 * c0)  # erased in one step
    _, (_, c), trace = forced(f=800, i=800, g=0.7)(None, start, steps=1, trace=True)
    candidate = trace["L0.fwd.g"].data
    np.testing.assert_array_equal(candidate, np.full((1, 1, 2), np.tanh(0.7)))
    np.testing.assert_array_equal(c.data, c0 + candidate)


def test_D12c_a_deep_network_has_layers_times_steps():
    x = leaf(5, 2, D)
    deep, y = rnn(layers=3), x
    for _, _, cell in deep.cells():
        y, _ = Recurrent(cell)(y)
    np.testing.assert_array_equal(deep(x)[0].data, y.data)
    steps = {(t.place.layer, t.place.step) for t in graph.nodes((deep(x)[0],)) if t.name == "h"}
    assert steps == {(k, t) for k in range(3) for t in range(5)}
    plain, one = Recurrent(RNNCell(D, H, dtype="f8", rng=7)), RNN(D, H, 1, dtype="f8", rng=7)
    np.testing.assert_array_equal(plain(x)[0].data, one(x)[0].data)
    sizes = [sum(p.size for p in rnn(layers=L).parameters()) for L in (1, 2, 3)]
    assert sizes[0] == D * H + H * H + H
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == H * H + H * H + H
    for T in (1, 5):  # over layers, not over time
        read = [t for t in graph.nodes((deep(x[:T])[0],)) if isinstance(t, Parameter)]
        assert sum(p.size for p in read) == sizes[2]


SOURCES = {
    "Rumelhart": r"Rumelhart.*Learning Internal Representations by Error Propagation.*1986",
    "Geron": r"Géron\W+Hands-On Machine Learning.*chapter 14",
    "Kim": r"Kim\W+Machine Learning.*lecture 11",
    "Olah": r"Olah\W+Understanding LSTM Networks",
}


@pytest.mark.parametrize("name", SOURCES)
def test_D14_the_sources_of_the_lecture_are_named(name):
    text = " ".join((ROOT / "examples" / "README.md").read_text().split())
    assert re.search(SOURCES[name], text)


def test_D14_the_first_example_of_bptt_is_called_so():
    example = load("bptt_by_hand")
    assert example.__doc__.startswith("Back-propagation through time by hand")
