"""Cells against their equations in plain NumPy, and their gradients against complex step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn import Tensor, ops
from tinygrad_rnn.nn import Cell, GRUCell, LSTMCell, RNNCell, init
from tinygrad_rnn.testing import check_grad, from_leaves

# --- the equations, written out ----------------------------------------------------------------


def sigma(a):
    return 1 / (1 + np.exp(-a))


def affine(p, x, h):
    """Return x W_x + h W_h + b, without what is absent."""
    a = h @ p["W_h"]
    a = a if x is None else a + x @ p["W_x"]
    return a + p["b"] if "b" in p else a


def rnn_step(phi):
    def step(p, x, h):
        a = affine(p, x, h)
        h = phi(a)
        return h, h, {"a": a, "h": h}

    return step


def lstm_step(p, x, state):
    h, c = state
    i, f, g, o = np.split(affine(p, x, h), 4, axis=-1)
    i, f, g, o = sigma(i), sigma(f), np.tanh(g), sigma(o)
    c = f * c + i * g
    h = o * np.tanh(c)
    return h, (h, c), {"i": i, "f": f, "g": g, "o": o, "c": c, "h": h}


def gru_step(reset_after):
    def step(p, x, h):
        H = h.shape[-1]
        W_x = p.get("W_x", np.zeros((0, 3 * H)))
        x = np.zeros((len(h), 0)) if x is None else x
        b = p.get("b", np.zeros(3 * H))
        r, z = np.split(sigma((x @ W_x + h @ p["W_h"] + b)[:, : 2 * H]), 2, axis=-1)
        a = (x @ W_x + b)[:, 2 * H :]
        W_hn = p["W_h"][:, 2 * H :]
        if reset_after:
            n = np.tanh(a + r * (h @ W_hn + p.get("b_hn", 0.0)))
        else:
            n = np.tanh(a + (r * h) @ W_hn)
        h = (1 - z) * n + z * h
        return h, h, {"r": r, "z": z, "n": n, "h": h}

    return step


def identity(a):
    return a


KINDS = {  # name: (class, its settings, its equations)
    "rnn-tanh": (RNNCell, {"activation": "tanh"}, rnn_step(np.tanh)),
    "rnn-relu": (RNNCell, {"activation": "relu"}, rnn_step(lambda a: np.maximum(a, 0))),
    "rnn-identity": (RNNCell, {"activation": "identity"}, rnn_step(identity)),
    "rnn-callable": (RNNCell, {"activation": ops.sigmoid}, rnn_step(sigma)),
    "lstm": (LSTMCell, {}, lstm_step),
    "gru-after": (GRUCell, {}, gru_step(True)),
    "gru-before": (GRUCell, {"reset_after": False}, gru_step(False)),
}
kinds = pytest.mark.parametrize("kind", KINDS)

# --- what the other tests of layers use too ------------------------------------------------------


def randomise(module, seed=0, scale=1.0):
    """Give every parameter random values, so that no zero hides a term; returns the module."""
    rng = np.random.default_rng(seed)
    for p in module.parameters():
        p.data = (scale * rng.standard_normal(p.shape)).astype(p.dtype)
    return module


def check_gradients(loss, leaves, width=0):
    """Check the gradients of ``loss()`` by every leaf, step by step and gate by gate."""
    widths = dict.fromkeys(leaves, width)
    return check_grad(from_leaves(loss, leaves, widths))


def weighted(parts, seed=7):
    """Return sum of w * part over all Tensors in a nest, with random weights: a scalar loss."""
    rng = np.random.default_rng(seed)
    flat = list(flatten(parts))
    return sum(((y * rng.standard_normal(y.shape)).sum() for y in flat), Tensor(0.0))


def flatten(parts):
    if isinstance(parts, list | tuple):
        for part in parts:
            yield from flatten(part)
    else:
        yield parts


def build(kind, D, H, bias=True, seed=0, dtype=np.float64):
    cls, settings, _ = KINDS[kind]
    return randomise(cls(D, H, bias=bias, dtype=dtype, rng=0, **settings), seed)


def given_to(cell, N, seed):
    """Return an input and a state for a cell, as arrays."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, cell.input_size)) if cell.input_size else None
    zero = cell.initial_state(N)
    if isinstance(zero, tuple):
        return x, tuple([rng.standard_normal(s.shape) for s in zero])
    return x, rng.standard_normal(zero.shape)


sizes = given(
    N=st.integers(1, 3),
    D=st.integers(0, 3),
    H=st.integers(1, 4),
    bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


@kinds
@sizes
def test_a_step_is_its_equation(kind, N, D, H, bias, seed):
    cell = build(kind, D, H, bias, seed)
    x, state = given_to(cell, N, seed + 1)
    y, new = cell(x, state)
    want_y, want_new, _ = KINDS[kind][2](cell.state_dict(), x, state)
    np.testing.assert_allclose(y.data, want_y, rtol=1e-12, atol=1e-14)
    got, want = list(flatten(new)), list(flatten(want_new))
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a.data, b, rtol=1e-12, atol=1e-14)


@kinds
@sizes
def test_gradients_of_a_step_are_those_of_a_complex_step(kind, N, D, H, bias, seed):
    cell = build(kind, D, H, bias, seed)
    x, state = given_to(cell, N, seed + 1)
    x = None if x is None else Tensor(x, requires_grad=True)
    state = (
        tuple([Tensor(s, requires_grad=True) for s in state])
        if isinstance(state, tuple)
        else Tensor(state, requires_grad=True)
    )
    leaves = dict(cell.named_parameters())
    leaves |= {f"state{k}": s for k, s in enumerate(flatten(state))}
    leaves |= {} if x is None else {"x": x}
    check_gradients(lambda: weighted(cell(x, state)), leaves, H)


@kinds
def test_a_cell_in_complex128_computes_the_same(kind):
    cell = build(kind, 2, 3)
    x, state = given_to(cell, 2, 1)
    real, _ = cell(x, state)
    twin = build(kind, 2, 3).astype(np.complex128)
    y, _ = twin(x, state)
    assert y.dtype == np.complex128
    np.testing.assert_allclose(y.data, real.data, rtol=1e-13)


@kinds
def test_float32_stays_float32_in_outputs_states_and_gradients(kind):
    cell = build(kind, 2, 3, dtype=np.float32)
    y, state = cell([[1.0, 2.0]])  # plain numbers are converted
    assert [t.dtype for t in flatten((y, state))] == [np.float32] * (1 + len([*flatten(state)]))
    y.sum().backward()
    assert {p.grad.dtype for p in cell.parameters()} == {np.dtype(np.float32)}


@kinds
def test_without_a_state_a_cell_starts_at_zero(kind):
    cell = build(kind, 2, 3)
    x, state = given_to(cell, 4, 1)
    zero = tuple([s * 0 for s in state]) if isinstance(state, tuple) else state * 0
    np.testing.assert_array_equal(cell(x)[0].data, cell(x, zero)[0].data)


@kinds
def test_an_input_of_size_0_needs_no_input(kind):
    cell = build(kind, 0, 3)
    assert "W_x" not in cell.state_dict()
    y, _ = cell(None)
    assert y.shape == (1, 3)


@kinds
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_have_the_names_and_shapes_of_the_design(kind, bias):
    cls, settings, _ = KINDS[kind]
    gates = {RNNCell: 1, LSTMCell: 4, GRUCell: 3}[cls]
    want = {"W_x": (2, gates * 3), "W_h": (3, gates * 3)} | ({"b": (gates * 3,)} if bias else {})
    if kind == "gru-after" and bias:
        want["b_hn"] = (3,)
    cell = cls(2, 3, bias=bias, rng=0, **settings)
    assert {name: p.shape for name, p in cell.named_parameters()} == want
    assert list(cell.state_dict()) == list(want)  # in this order
    assert {p.dtype for p in cell.parameters()} == {np.dtype(np.float32)}


@kinds
def test_a_step_marks_its_values_by_the_names_of_the_equations(kind):
    cell = build(kind, 2, 3)
    x, state = given_to(cell, 2, 1)
    y, _ = cell(x, state)
    names, stack = set(), [y]
    while stack:
        t = stack.pop()
        names.add(t.name)
        stack += t.inputs
    marked = set(KINDS[kind][2](cell.state_dict(), x, state)[2])
    if kind == "rnn-identity":
        marked -= {"h"}  # h is the node a
    assert marked <= names


# --- first values --------------------------------------------------------------------------------


def test_the_forget_gate_starts_at_1_and_every_other_bias_at_0():
    b = LSTMCell(2, 3, rng=0).b.data
    np.testing.assert_array_equal(b, [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    for cell in (RNNCell(2, 3, rng=0), GRUCell(2, 3, rng=0)):
        assert not cell.b.data.any()
    assert not GRUCell(2, 3, rng=0).b_hn.data.any()


@pytest.mark.parametrize(("cls", "gates"), [(RNNCell, 1), (LSTMCell, 4), (GRUCell, 3)])
def test_every_gate_has_weights_of_its_own_orthogonal_and_bounded(cls, gates):
    cell = cls(5, 16, dtype=np.float64, rng=0)
    squares = np.split(cell.W_h.data, gates, axis=1)
    for W in squares:
        np.testing.assert_allclose(W.T @ W, np.eye(16), atol=1e-13)
    for k in range(1, gates):
        assert np.abs(squares[k] - squares[0]).max() > 0.1
    limit = np.sqrt(6 / (5 + 16))  # by the fans of one gate, not of all of them
    for W in np.split(cell.W_x.data, gates, axis=1):
        assert 0.8 * limit < np.abs(W).max() <= limit


def test_xavier_is_uniform_with_variance_2_over_both_fans():
    W = init.xavier((300, 200), rng=0, dtype=np.float64)
    limit = np.sqrt(6 / 500)
    assert np.abs(W).max() <= limit
    np.testing.assert_allclose(W.var(), 2 / 500, rtol=0.02)
    np.testing.assert_allclose(np.quantile(W, [0.25, 0.75]), [-limit / 2, limit / 2], rtol=0.05)
    assert abs(W.mean()) < 4 * limit / np.sqrt(3 * W.size)


def test_kaiming_is_normal_with_variance_2_over_fan_in():
    W = init.kaiming((300, 200), rng=0, dtype=np.float64)
    np.testing.assert_allclose(W.var(), 2 / 300, rtol=0.02)
    np.testing.assert_allclose((W**4).mean() / W.var() ** 2, 3, rtol=0.05)  # a normal's kurtosis


@given(
    rows=st.integers(1, 8),
    columns=st.integers(1, 8),
    gain=st.floats(0.1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_orthogonal_has_orthonormal_rows_or_columns_times_gain(rows, columns, gain, seed):
    W = init.orthogonal((rows, columns), gain=gain, rng=seed, dtype=np.float64)
    assert W.shape == (rows, columns)
    assert W.flags.c_contiguous
    small = W.T @ W if rows >= columns else W @ W.T
    np.testing.assert_allclose(small, gain**2 * np.eye(len(small)), atol=1e-12 * gain**2)


def test_orthogonal_prefers_no_direction():
    rng = np.random.default_rng(0)
    draws = np.array([init.orthogonal((2, 2), rng=rng, dtype=np.float64) for _ in range(4000)])
    assert np.abs(draws.mean(axis=0)).max() < 5 / np.sqrt(2 * 4000)
    assert 0.45 < (np.linalg.det(draws) > 0).mean() < 0.55  # rotations and reflections


def test_identity_draws_nothing():
    rng = np.random.default_rng(0)
    W = init.identity((2, 3), gain=0.5, rng=rng)
    np.testing.assert_array_equal(W, [[0.5, 0, 0], [0, 0.5, 0]])
    assert W.dtype == np.float32
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("f", [init.xavier, init.kaiming, init.orthogonal])
def test_initialisers_are_reproducible_by_rng_and_use_no_global_state(f):
    np.testing.assert_array_equal(f((3, 4), rng=5), f((3, 4), rng=np.random.default_rng(5)))
    assert (f((3, 4), rng=5) != f((3, 4), rng=6)).any()
    assert (f((3, 4)) != f((3, 4))).any()  # None is fresh entropy
    rng = np.random.default_rng(5)
    assert (f((3, 4), rng=rng) != f((3, 4), rng=rng)).any()  # a generator moves on
    assert f((3, 4), rng=5).dtype == np.float32
    np.testing.assert_array_equal(
        f((3, 4), rng=5), f((3, 4), rng=5, dtype=np.float64).astype(np.float32)
    )


@kinds
def test_cells_are_reproducible_by_rng(kind):
    cls, settings, _ = KINDS[kind]
    one, same, other = [cls(2, 3, rng=seed, **settings).state_dict() for seed in (1, 1, 2)]
    for name in one:
        np.testing.assert_array_equal(one[name], same[name])
    assert (one["W_h"] != other["W_h"]).any()
    assert (one["W_x"] != other["W_x"]).any()


def test_affine_leaves_absent_terms_out():
    cell = build("rnn-tanh", 2, 3)
    x, h = given_to(cell, 4, 1)
    p, t = cell.state_dict(), Tensor(x)
    np.testing.assert_allclose(cell.affine(t).data, x @ p["W_x"] + p["b"], rtol=1e-14)
    np.testing.assert_allclose(cell.affine(None, Tensor(h)).data, p["b"] + h @ p["W_h"], rtol=1e-13)
    bare = Cell(0, 3, dtype=np.float64)
    bare.add_weights(2, bias=False, rng=0)
    np.testing.assert_array_equal(bare.affine(None).data, np.zeros(6))
