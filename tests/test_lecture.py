"""One test for every system and equation of the lecture; its name carries the row's name."""
# ruff: noqa: N802 - the rows are called D1, L1, ...

import numpy as np
import pytest

from tinygrad_rnn import Module, Tensor, grad, graph, jacobian, nn, no_grad, ops
from tinygrad_rnn.functional import cross_entropy, softmax, unbind
from tinygrad_rnn.nn import LSTM, RNN, Linear, LSTMCell, Readout, Recurrent, RNNCell, from_lecture

from .test_cells import check_gradients, randomise, sigma, weighted

D, H, K = 3, 4, 5
rng = np.random.default_rng(23)


def rnn(D=D, H=H, layers=1, scale=0.6, **settings):
    return randomise(RNN(D, H, layers, dtype=np.float64, rng=0, **settings), seed=1, scale=scale)


def lstm(D=D, H=H, layers=1):
    return randomise(LSTM(D, H, layers, dtype=np.float64, rng=0), seed=2, scale=0.6)


def leaf(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


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
        W = layer.L0["fwd"].W_h
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
    T, k = 9, 3
    conv, layer, x = Linear(k * D, 1, dtype=np.float64, rng=0), rnn(), leaf(T, D)
    windows = [ops.concat(*unbind(x[t - k + 1 : t + 1])) for t in range(k - 1, T)]
    for t, window in enumerate(windows, k - 1):
        seen = np.abs(grad(conv(window).sum(), x)).sum(1) > 0
        assert [int(s) for s in np.flatnonzero(seen)] == [t - 2, t - 1, t]  # a field of width k
    out, _ = layer(x)
    for t in range(T):
        seen = np.abs(grad(out[t].sum(), x)).sum(1) > 0
        assert seen[: t + 1].all()  # back to x(1), however far
        assert not seen[t + 1 :].any()


def test_D4_a_recurrent_neuron_feeds_its_output_back_in_order():
    neuron, x = rnn(H=1), leaf(6, D)
    p = {name[7:]: a for name, a in neuron.state_dict().items()}
    out, _ = neuron(x)
    y = 0.0
    for t in range(6):  # unrolled along time only: one unit
        y = np.tanh(x.data[t] @ p["W_x"][:, 0] + y * p["W_h"][0, 0] + p["b"][0])
        np.testing.assert_allclose(out.data[t, 0], y, rtol=1e-13)


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


@pytest.mark.parametrize("T_in", [1, 4])
@pytest.mark.parametrize("T_out", [1, 3])
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
    out, _ = layer(x)
    held = np.concatenate([np.ones((1, 1, D)), np.zeros((3, 1, D))])
    modes = {
        "sequence to sequence": cross_entropy(head(out), [[0], [1], [0], [1]]),
        "sequence to vector": cross_entropy(head(out[-1]), [1]),
        "vector to sequence": cross_entropy(head(layer(x * held)[0]), [[0], [1], [0], [1]]),
        "delayed": cross_entropy(head(out), np.ones((4, 1), int), mask=[[0], [0], [1], [1]]),
    }
    for mode, loss in modes.items():
        reached = np.abs(grad(loss, x)).sum((1, 2)) > 0
        want = [True, False, False, False] if mode == "vector to sequence" else [True] * 4
        assert reached.tolist() == want, mode


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
    reached = grad(loss, model.source.W).any(axis=1)
    assert reached.tolist() == [False, *[True] * 5, False]  # x(1) is, the padding 0 is not
    leaves = {"source": model.source.W, "decoder": model.decoder.L0["fwd"].W_h}
    check_gradients(lambda: model(source, target, [3, 2])[0], leaves)


def test_D10_the_error_is_the_cross_entropy_of_softmax_and_target():
    o, d = leaf(4, K), rng.random((4, K))
    y = softmax(o.data)
    loss = cross_entropy(o, d)
    np.testing.assert_allclose(loss.data, -(d * np.log(y)).sum(), rtol=1e-13)
    np.testing.assert_allclose(grad(loss, o), y * d.sum(1, keepdims=True) - d, rtol=1e-11)
    d /= d.sum(1, keepdims=True)
    np.testing.assert_allclose(grad(cross_entropy(o, d), o), y - d, rtol=1e-10, atol=1e-15)


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


# --- equations (1) to (13) ---


def test_eq_01_one_neuron_one_instance_is_a_scalar():
    neuron, x = rnn(H=1), leaf(1, 1, D)
    out, _ = neuron(x)
    assert out[0].shape == (1, 1)
    w_x, w_y, b = neuron.state_dict().values()
    y0 = np.array([0.3])
    y, _ = neuron(x, y0.reshape(1, 1, 1))
    want = np.tanh(x.data[0, 0] @ w_x[:, 0] + y0 @ w_y[:, 0] + b[0])
    np.testing.assert_allclose(y.item(), want, rtol=1e-14)
    matrix = np.tanh(x.data[0] @ w_x + y0[None] @ w_y + b)  # equation (2) with H = N = 1
    np.testing.assert_allclose(y.data[0], matrix, rtol=1e-14)


def test_eq_02_a_minibatch_is_its_instances():
    layer, x = rnn(), leaf(4, 3, D)
    out, _ = layer(x)
    for n in range(3):
        np.testing.assert_allclose(out.data[:, n], layer(x.data[:, n])[0].data, rtol=1e-12)
    cell = layer.L0["fwd"]
    (a,) = [t for t in graph.nodes((cell(x[0])[0],)) if t.name == "a"]
    g_a, g_b = grad(weighted(ops.tanh(a)), [a, cell.b])
    np.testing.assert_allclose(g_b, g_a.sum(axis=0), rtol=1e-14)  # the column sum


@pytest.mark.parametrize("N", [1, 3])
def test_eq_03_the_block_form_is_the_same(N):
    cell = randomise(RNNCell(D, H, dtype=np.float64, rng=0), seed=1)
    x, h, w = leaf(N, D), leaf(N, H, seed=1), rng.standard_normal((N, H))
    W = Tensor(np.concatenate([cell.W_x.data, cell.W_h.data]), requires_grad=True)
    block = ops.tanh(ops.concat(x, h, axis=1) @ W + cell.b)
    y, _ = cell(x, h)
    np.testing.assert_allclose(y.data, block.data, rtol=1e-13)
    parts = grad((y * w).sum(), [cell.W_x, cell.W_h])
    np.testing.assert_allclose(grad((block * w).sum(), W), np.concatenate(parts), rtol=1e-12)


def test_eq_04_a_system_without_input_applies_f_again_and_again():
    layer, s0 = rnn(D=0, bias=False), leaf(1, 1, H)
    W = layer.L0["fwd"].W_h

    def f(s, theta):
        return ops.tanh(s @ theta)

    out, _ = layer(None, s0, steps=3)
    np.testing.assert_array_equal(out.data[2], f(f(f(s0[0], W), W), W).data)
    terms = [Tensor(W.data, requires_grad=True) for _ in range(3)]
    w = rng.standard_normal((1, H))
    parts = grad((f(f(f(s0[0], terms[0]), terms[1]), terms[2]) * w).sum(), terms)
    assert all(np.abs(p).max() > 0 for p in parts)
    np.testing.assert_allclose(grad((out[2] * w).sum(), W), sum(parts), rtol=1e-13)


@pytest.mark.parametrize("make", [rnn, lstm])
def test_eq_05_the_state_is_a_function_of_the_whole_past_and_of_nothing_else(make):
    x = leaf(6, 1, D)
    out, _ = make()(x)
    for t in range(6):
        g = np.abs(grad(weighted(out[t]), x)).sum((1, 2))
        assert (g[: t + 1] > 0).all()
        assert not g[t + 1 :].any()


def lecture_matrices():
    r = np.random.default_rng(5)
    shapes = {"U": (H, D), "W": (H, H), "V": (K, H), "b": (H,), "c": (K,)}
    return {name: r.standard_normal(shape) for name, shape in shapes.items()}


def test_eq_06_the_column_form_is_the_row_form_transposed():
    m, x = lecture_matrices(), leaf(4, D).data
    net = from_lecture(**m)
    cell = net.layer.L0["fwd"]
    np.testing.assert_array_equal(cell.W_x.data, m["U"].T)
    np.testing.assert_array_equal(cell.W_h.data, m["W"].T)
    _, _, trace = net(x, trace=True)
    h = np.zeros(H)  # h(0) = 0
    for t in range(4):
        a = m["W"] @ h + m["U"] @ x[t] + m["b"]
        np.testing.assert_allclose(trace["L0.fwd.a"].data[t], a, rtol=1e-12)
        h = np.tanh(a)


def test_eq_07_the_hidden_output_is_tanh_of_a():
    _, _, trace = from_lecture(**lecture_matrices())(leaf(4, D), trace=True)
    a, h = trace["L0.fwd.a"], trace["L0.fwd.h"]
    np.testing.assert_array_equal(h.data, np.tanh(a.data))
    np.testing.assert_allclose(
        jacobian(ops.tanh)(a.data[0]), np.diag(1 - h.data[0] ** 2), rtol=1e-14
    )
    assert np.abs(h.data).max() < 1 == ops.tanh(np.array([1e4])).item()  # in floats <= 1


def test_eq_08_the_output_is_affine_in_the_hidden_output():
    m = lecture_matrices()
    o, _, trace = from_lecture(**m)(leaf(4, D), trace=True)
    want = [m["V"] @ h + m["c"] for h in trace["L0.fwd.h"].data]
    np.testing.assert_allclose(o.data, want, rtol=1e-12)


def test_eq_09_softmax_sums_to_1_and_does_not_overflow():
    o = rng.standard_normal((4, K))
    y = softmax(o)
    np.testing.assert_allclose(y.sum(1), 1, rtol=1e-15)
    np.testing.assert_allclose(softmax(o + 1000), y, rtol=1e-11)
    np.testing.assert_array_equal(softmax(np.array([1e4, 0.0, -1e4])), [1, 0, 0])


@pytest.mark.parametrize("alias", [False, True])
def test_eq_10_and_11_the_form_without_biases(alias):
    m, x = lecture_matrices(), leaf(4, D).data
    names = {"W_xh": m["U"], "W_hh": m["W"], "W_hy": m["V"]}
    net = from_lecture(**names) if alias else from_lecture(m["U"], m["W"], m["V"])
    assert sorted(net.state_dict()) == ["layer.L0.fwd.W_h", "layer.L0.fwd.W_x", "linear.W"]
    o, _ = net(x)
    h = np.zeros(H)
    for t in range(4):
        h = np.tanh(names["W_hh"] @ h + names["W_xh"] @ x[t])
        np.testing.assert_allclose(softmax(o.data[t]), softmax(m["V"] @ h), rtol=1e-12)
    zero = from_lecture(**(m | {"b": np.zeros(H), "c": np.zeros(K)}))
    np.testing.assert_array_equal(zero(x)[0].data, o.data)


def test_eq_12_the_error_of_one_step():
    o = rng.standard_normal(K)
    for k in range(K):
        for d in (np.eye(K)[k], k):  # one-hot, or by number
            want = -np.log(softmax(o)[k])
            np.testing.assert_allclose(cross_entropy(o, d), want, rtol=1e-13)
    assert cross_entropy(np.array([0.0, -np.inf]), np.array([1.0, 0.0])) == 0  # 0 log 0


def test_eq_13_the_error_of_a_sequence_is_the_sum_over_time():
    net, x = from_lecture(**lecture_matrices()), leaf(6, 1, D)
    d = np.eye(K)[[[0], [3], [1], [4], [4], [2]]]
    o, _ = net(x)
    steps = [cross_entropy(o[t], d[t]) for t in range(6)]
    np.testing.assert_allclose(cross_entropy(o, d).data, sum(s.item() for s in steps), rtol=1e-14)


def test_u1_a_gradient_through_100_steps_meets_W_100_times():
    W = np.random.default_rng(0).standard_normal((H, H)) * 0.5

    def last(activation):
        layer = RNN(0, H, bias=False, activation=activation, dtype="f8", rng=0)
        layer.L0["fwd"].W_h.data = W.T.copy()
        return lambda h0: layer(None, h0.reshape(1, 1, H), steps=100, trace=True)

    h0 = rng.standard_normal(H)
    J = jacobian(lambda h: last("identity")(h)[1].reshape(H))(h0)
    want = np.linalg.matrix_power(W, 100)
    assert np.linalg.norm(J - want) <= 1e-12 * np.linalg.norm(want)
    J = jacobian(lambda h: last("tanh")(h)[1].reshape(H))(h0)
    with no_grad():
        h = last("tanh")(Tensor(h0))[2]["L0.fwd.h"].data.reshape(100, H)
    bound = np.prod(np.linalg.norm(W, 2) * (1 - h**2).max(axis=1))
    assert 0 < np.linalg.norm(J, 2) <= bound
    for w, figure in ((0.9, 2.656e-5), (1.1, 13780.6), (0.5, 7.9e-31)):
        layer = RNN(0, 1, bias=False, activation="identity", dtype="f8", rng=0)
        layer.L0["fwd"].W_h.data[:] = w
        h0 = leaf(1, 1)
        slope = grad(layer(None, h0, steps=100)[1], h0, [[1.0]])
        np.testing.assert_allclose(slope, figure, rtol=2e-3)  # of the slide's rounding


# --- long short-term memory, (L1) to (L6) ---


class Slides:
    """A layer of ours, and the slides' W_f .. b_o in column form over [h, x]."""

    def __init__(self):
        self.layer, self.x = lstm(), leaf(5, D)
        cell = self.layer.L0["fwd"]
        W = np.concatenate([cell.W_h.data, cell.W_x.data]).T  # (4H, H + D)
        self.W = dict(zip("ifCo", np.split(W, 4), strict=True))
        self.b = dict(zip("ifCo", np.split(cell.b.data, 4), strict=True))
        self.trace = {name[-1]: t.data for name, t in self.layer(self.x, trace=True)[2].items()}

    def before(self, name, t):
        """Return the value of the step before, 0 at the start."""
        return self.trace[name][t - 1] if t else np.zeros(H)

    def affine(self, gate, t):
        return self.W[gate] @ np.concatenate([self.before("h", t), self.x.data[t]]) + self.b[gate]


@pytest.fixture(scope="module")
def slides():
    return Slides()


def check_each_step(got, want, low=-np.inf, high=np.inf):
    np.testing.assert_allclose(got, [want(t) for t in range(5)], rtol=1e-11)
    assert ((got > low) & (got < high)).all()


def test_L1_the_forget_gate(slides):
    check_each_step(slides.trace["f"], lambda t: sigma(slides.affine("f", t)), 0, 1)


def test_L2_the_input_gate(slides):
    check_each_step(slides.trace["i"], lambda t: sigma(slides.affine("i", t)), 0, 1)


def test_L3_the_candidate(slides):
    check_each_step(slides.trace["g"], lambda t: np.tanh(slides.affine("C", t)), -1, 1)


def test_L4_the_cell_state_is_updated(slides):
    s = slides.trace
    check_each_step(s["c"], lambda t: s["f"][t] * slides.before("c", t) + s["i"][t] * s["g"][t])


def test_L5_the_output_gate(slides):
    check_each_step(slides.trace["o"], lambda t: sigma(slides.affine("o", t)), 0, 1)


def test_L6_the_hidden_state_goes_out_and_on(slides):
    s = slides.trace
    check_each_step(s["h"], lambda t: s["o"][t] * np.tanh(s["c"][t]))
    out, (h, _) = slides.layer(slides.x)
    np.testing.assert_array_equal(out.data, s["h"])
    np.testing.assert_array_equal(h.data[0], s["h"][-1])


def test_L1_to_L6_one_product_of_4H_is_four_products_with_their_gradients():
    cell = lstm().L0["fwd"]
    x, h, c = leaf(2, D), leaf(2, H, seed=1), leaf(2, H, seed=2)
    names = ("W_x", "W_h", "b")
    quarters = {
        name: [Tensor(q, requires_grad=True) for q in np.split(getattr(cell, name).data, 4, -1)]
        for name in names
    }
    a = [x @ W_x + h @ W_h + b for W_x, W_h, b in zip(*quarters.values(), strict=True)]
    i, f, g, o = ops.sigmoid(a[0]), ops.sigmoid(a[1]), ops.tanh(a[2]), ops.sigmoid(a[3])
    c_new = f * c + i * g
    h_new = o * ops.tanh(c_new)
    y, (_, c_fused) = cell(x, (h, c))
    np.testing.assert_allclose(y.data, h_new.data, rtol=1e-12)
    fused = grad(weighted([y, c_fused]), [getattr(cell, name) for name in names])
    four = weighted([h_new, c_new])
    for name, whole in zip(names, fused, strict=True):
        parts = np.concatenate(grad(four, quarters[name]), axis=-1)
        np.testing.assert_allclose(whole, parts, rtol=1e-11, atol=1e-14)
