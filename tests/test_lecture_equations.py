"""One test or more for every equation of the lecture, (1) to (13), u1, (L1) to (L6), by name."""
# ruff: noqa: N802 - the rows are called L1, ...

from pathlib import Path

import numpy as np
import pytest

from tinygrad_rnn import Tensor, grad, graph, jacobian, no_grad, ops
from tinygrad_rnn.functional import cross_entropy, softmax
from tinygrad_rnn.nn import RNN, RNNCell, from_lecture

from .test_cells import randomise, sigma, weighted
from .test_lecture import D, H, K, leaf, lstm, rnn

rng = np.random.default_rng(23)

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


def without_biases(alias):
    """Return the network of (10) and (11), built under either set of names, and its matrices."""
    m = lecture_matrices()
    names = {"W_xh": m["U"], "W_hh": m["W"], "W_hy": m["V"]}
    net = from_lecture(**names) if alias else from_lecture(m["U"], m["W"], m["V"])
    assert sorted(net.state_dict()) == ["layer.L0.fwd.W_h", "layer.L0.fwd.W_x", "linear.W"]
    return net, names


@pytest.mark.parametrize("alias", [False, True])
def test_eq_10_the_hidden_output_without_a_bias(alias):
    (net, m), x = without_biases(alias), leaf(4, D).data
    _, _, trace = net(x, trace=True)
    h = np.zeros(H)
    for t in range(4):
        h = np.tanh(m["W_hh"] @ h + m["W_xh"] @ x[t])
        np.testing.assert_allclose(trace["L0.fwd.h"].data[t], h, rtol=1e-12)
    m = lecture_matrices()  # it is (6) to (8) with b = c = 0
    zero = from_lecture(**(m | {"b": np.zeros(H), "c": np.zeros(K)}))
    np.testing.assert_array_equal(zero(x)[0].data, net(x)[0].data)


@pytest.mark.parametrize("alias", [False, True])
def test_eq_11_the_output_without_a_bias(alias):
    net, m = without_biases(alias)
    o, _, trace = net(leaf(4, D), trace=True)
    want = [softmax(m["W_hy"] @ h) for h in trace["L0.fwd.h"].data]
    np.testing.assert_allclose(softmax(o.data), want, rtol=1e-12)


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
    total = sum(s.item() for s in steps)
    np.testing.assert_allclose(cross_entropy(o, d).data, total, rtol=1e-14)
    written = -(d * np.log(softmax(o.data))).sum()
    np.testing.assert_allclose(total, written, rtol=1e-13)
    assert cross_entropy(o, d).data == cross_entropy(o, d, reduction="sum").data  # the default
    mean = cross_entropy(o, d, reduction="mean")
    np.testing.assert_allclose(mean.data, total / 6, rtol=1e-14)
    assert "equations (12) and (13)" in cross_entropy.__doc__  # and it says so
    readme = Path(__file__).resolve().parent.parent / "README.md"
    assert "the default is the sum, equation (13)" in readme.read_text()


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
