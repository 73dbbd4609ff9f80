"""Variants of the cells: their equations in plain NumPy, the gradient kit, and reductions."""

import numpy as np
import pytest

from tinygrad_rnn import Tensor, testing
from tinygrad_rnn.nn import GRUCell, LSTMCell, Recurrent, RNNCell
from tinygrad_rnn.nn.variants import (
    CoupledLSTMCell,
    IRNNCell,
    LayerNormLSTMCell,
    LSTMVariant,
    MGUCell,
    PeepholeLSTMCell,
)
from tinygrad_rnn.testing import strategies as st

from .test_cells import flatten, given_to, randomise, sigma

H = 3


def products(p, x, h, gates):
    """Return for each gate its x W_x + b + h W_h, one matrix after the other."""
    found = []
    for k in range(gates):
        at = slice(k * H, (k + 1) * H)
        a = h @ p["W_h"][:, at]
        a = a if x is None else a + x @ p["W_x"][:, at]
        found.append(a + p["b"][at] if "b" in p else a)
    return found


def lstm(a_i, a_f, a_g, a_o, c):
    return lstm_of(sigma(a_i), sigma(a_f), np.tanh(a_g), sigma(a_o), c)


def lstm_of(i, f, g, o, c):
    c = f * c + i * g
    h = o * np.tanh(c)
    return h, (h, c), {"i": i, "f": f, "g": g, "o": o, "c": c, "h": h}


def variant_step(p, x, state):
    return lstm(*products(p, x, state[0], 4), state[1])


def peephole_step(p, x, state):
    h, c = state
    a_i, a_f, a_g, a_o = products(p, x, h, 4)
    i = sigma(a_i + c @ np.diag(p["p_i"]))
    f = sigma(a_f + c @ np.diag(p["p_f"]))
    new = f * c + i * np.tanh(a_g)
    return lstm_of(i, f, np.tanh(a_g), sigma(a_o + new @ np.diag(p["p_o"])), c)


def coupled_step(p, x, state):
    a_f, a_g, a_o = products(p, x, state[0], 3)
    f = sigma(a_f)
    return lstm_of(1 - f, f, np.tanh(a_g), sigma(a_o), state[1])


def normed(v):
    return (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)


def layer_norm_step(p, x, state):
    h, c = state
    a = normed(h @ p["W_h"]) * p["gain_h"] + p.get("b", 0)
    a = a if x is None else a + normed(x @ p["W_x"]) * p["gain_x"]
    _, (_, c), marks = lstm(*np.split(a, 4, axis=1), c)
    h = marks["o"] * np.tanh(normed(c) * p["gain_c"] + p.get("bias_c", 0))
    return h, (h, c), {**marks, "h": h}


def irnn_step(p, x, h):
    [a] = products(p, x, h, 1)
    h = np.maximum(a, 0)
    return h, h, {"a": a, "h": h}


def mgu_step(p, x, h):
    f = sigma(products(p, x, h, 2)[0])
    n = np.tanh(products(p, x, f * h, 2)[1])
    h = (1 - f) * h + f * n
    return h, h, {"f": f, "n": n, "h": h}


STEPS = {
    LSTMVariant: variant_step,
    PeepholeLSTMCell: peephole_step,
    CoupledLSTMCell: coupled_step,
    LayerNormLSTMCell: layer_norm_step,
    IRNNCell: irnn_step,
    MGUCell: mgu_step,
}
CELLS = list(STEPS)
cells = pytest.mark.parametrize("cls", CELLS)


def build(cls, D=2, bias=True, seed=0):
    return randomise(cls(D, H, bias=bias, dtype=np.float64, rng=0), seed)


# --- every cell ----------------------------------------------------------------------------------


@cells
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("D", [0, 2])
def test_a_step_is_its_equation_and_marks_its_values(cls, D, bias):
    cell = build(cls, D, bias, seed=D)
    x, state = given_to(cell, 4, 1)
    start = tuple(map(Tensor, state)) if isinstance(state, tuple) else Tensor(state)
    inputs = None if x is None else Tensor(x[None])
    out, new, trace = Recurrent(cell)(inputs, start, steps=1 if x is None else None, trace=True)
    want_y, want_new, marks = STEPS[cls](cell.state_dict(), x, state)
    np.testing.assert_allclose(out[0].data, want_y, rtol=1e-12, atol=1e-14)
    for a, b in zip(flatten(new), flatten(want_new), strict=True):
        np.testing.assert_allclose(a.data, b, rtol=1e-12, atol=1e-14)
    assert list(trace) == [f"L0.fwd.{name}" for name in marks]
    for name, value in marks.items():
        np.testing.assert_allclose(trace[f"L0.fwd.{name}"].data[0], value, rtol=1e-12, atol=1e-14)


small = st.rnn_configs(
    CELLS, T=(1, 3), N=(1, 2), D=(2, 3), H=(2, 3), layers=1, bidirectional=False, long_T=0
)


@testing.gradtest(small, properties="numeric")
def test_gradients(module): ...


@cells
def test_gradients_of_gradients(cls):
    cell = build(cls)
    x, state = given_to(cell, 2, 1)
    testing.check_module(cell, x, state=state, order=2, blocks="one")


@cells
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_have_names_shapes_letters_and_first_values(cls, bias):
    cell = cls(2, H, bias=bias, rng=0)
    gates = max(1, len(cell.gates))
    want = {"W_x": (2, gates * H), "W_h": (H, gates * H)} | ({"b": (gates * H,)} if bias else {})
    if cls is PeepholeLSTMCell:
        want |= {"p_i": (H,), "p_f": (H,), "p_o": (H,)}
    if cls is LayerNormLSTMCell:
        want |= {"gain_x": (4 * H,), "gain_h": (4 * H,), "gain_c": (H,)}
        want |= {"bias_c": (H,)} if bias else {}
    assert {name: p.shape for name, p in cell.named_parameters()} == want
    assert {p.dtype for p in cell.parameters()} == {np.dtype(np.float32)}
    for row in cell.summary().splitlines()[1:-1]:  # the formula of the count fits the count
        count, formula = row.split(")")[1].split(maxsplit=1)
        product = formula.replace("4H", "4*H").replace("3H", "3*H").replace("2H", "2*H")
        assert eval(product, {"D": 2, "H": H}) == int(count)
    for name, p in cell.named_parameters():
        if name == "b":
            first = np.zeros((gates, H))
            if "f" in cell.gates and cls is not MGUCell:
                first[cell.gates.index("f")] = 1
            np.testing.assert_array_equal(p.data, first.ravel())
        elif name[:2] in ("p_", "bi", "ga"):
            np.testing.assert_array_equal(p.data, np.full(p.shape, float(name[0] == "g")))


@cells
def test_a_cell_starts_at_zero_and_is_reproducible(cls):
    cell = build(cls)
    x, state = given_to(cell, 4, 1)
    zero = tuple([s * 0 for s in state]) if isinstance(state, tuple) else state * 0
    np.testing.assert_array_equal(cell(x)[0].data, cell(x, zero)[0].data)
    assert len(cell.states) == (2 if isinstance(state, tuple) else 1)
    one, same, other = [cls(2, H, rng=seed).state_dict() for seed in (1, 1, 2)]
    assert all((one[name] == same[name]).all() for name in one)
    assert (one["W_x"] != other["W_x"]).any()


# --- what each reduces to ------------------------------------------------------------------------


def run(cell, T=4, N=2):
    """Return the outputs and the states of a layer of this cell, and its gradient by x."""
    x = Tensor(np.random.default_rng(1).standard_normal((T, N, 2)), requires_grad=True)
    out, state = Recurrent(cell)(x)
    (out * np.random.default_rng(2).standard_normal(out.shape)).sum().backward()
    return [y.data for y in flatten((out, state))] + [x.grad]


def agree(cell, other, rtol):
    for a, b in zip(run(cell), run(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("cls", [LSTMVariant, PeepholeLSTMCell])
def test_without_a_change_a_variant_is_the_lstm_to_the_bit(cls):
    ours, plain = cls(2, H, dtype=np.float64, rng=5), LSTMCell(2, H, dtype=np.float64, rng=5)
    for a, b in zip(run(ours), run(plain), strict=True):
        np.testing.assert_array_equal(a, b)


def test_each_peephole_acts_on_its_own_gate_and_the_output_gate_sees_the_new_state():
    cell = PeepholeLSTMCell(2, H, dtype=np.float64, rng=0)
    x, (h, c) = given_to(cell, 1, 3)
    _, (_, before) = cell(x, (h, c))
    cell.p_o.data[:] = -800 / before.data[0]  # the output gate is shut by c(t)
    y, (_, after) = cell(x, (h, c))
    np.testing.assert_array_equal(y.data, 0)
    np.testing.assert_array_equal(after.data, before.data)
    cell.p_i.data[:], cell.p_f.data[:] = -800 / c[0], 800 / c[0]
    np.testing.assert_array_equal(cell(x, (h, c))[1][1].data, c)  # i = 0, f = 1: the state stays


def test_coupled_gates_are_the_lstm_whose_input_gate_has_the_weights_of_forget_negated():
    cell = build(CoupledLSTMCell)
    twin = LSTMCell(2, H, dtype=np.float64, rng=0)
    for name, p in cell.named_parameters():
        a = p.data
        getattr(twin, name).data = np.concatenate([-a[..., :H], a], axis=-1)
    agree(cell, twin, 1e-13)


def test_coupled_gates_keep_the_state_within_what_was_put_in():
    cell = build(CoupledLSTMCell)
    x = 10 * np.random.default_rng(0).standard_normal((200, 2, 2))
    _, _, trace = Recurrent(cell)(x, trace=True)
    assert np.abs(trace["L0.fwd.c"].data).max() <= 1


def test_layer_norm_sees_neither_the_size_nor_the_mean_of_a_product():
    cell = build(LayerNormLSTMCell)
    x, state = given_to(cell, 2, 1)
    y, _ = cell(x, state)
    shift = np.random.default_rng(0).standard_normal((2, 1))
    for name in ("W_x", "W_h"):
        p = getattr(cell, name)
        p.data = 1e4 * p.data + shift.mean()  # the same number in every column of a row
    near, _ = cell(x, state)
    np.testing.assert_allclose(near.data, y.data, rtol=1e-3)
    cell.bias_c.data += 1e4  # tanh saturates: what is left is the output gate
    _, (_, c) = cell(x, state)
    assert (np.abs(c.data) < 10).all()  # and the state that is carried is not normalised


def test_an_irnn_without_input_holds_its_state_and_with_one_adds_it_up():
    cell = IRNNCell(2, H, dtype=np.float64, rng=0)
    start = np.array([[0.5, 0.0, 3.0]])
    _, h = Recurrent(cell)(np.zeros((1000, 1, 2)), start)
    np.testing.assert_array_equal(h.data, start)
    cell.W_x.data = np.abs(cell.W_x.data)
    x = np.random.default_rng(0).random((20, 1, 2))
    _, h = Recurrent(cell)(x, start)
    np.testing.assert_allclose(h.data, start + x.sum(0) @ cell.W_x.data, rtol=1e-14)
    np.testing.assert_array_equal(
        IRNNCell(2, H, gain=0.01, rng=0).W_h.data, np.eye(H, dtype=np.float32) * np.float32(0.01)
    )


def test_the_input_weights_of_an_irnn_are_small_and_normal():
    W = IRNNCell(100, 200, rng=0).W_x.data
    assert abs(W.std() / 1e-3 - 1) < 0.03
    assert abs((W**4).mean() / W.var() ** 2 - 3) < 0.2


def test_the_minimal_gated_unit_is_the_published_gru_with_one_gate_for_two():
    cell = build(MGUCell)
    twin = GRUCell(2, H, reset_after=False, dtype=np.float64, rng=0)
    for name, p in cell.named_parameters():
        f, n = np.split(p.data, 2, axis=-1)
        getattr(twin, name).data = np.concatenate([f, -f, n], axis=-1)  # r = f, z = 1 - f
    agree(cell, twin, 1e-13)


def test_the_gate_of_the_minimal_gated_unit_at_its_limits():
    cell = build(MGUCell)
    plain = RNNCell(2, H, dtype=np.float64, rng=0)
    for name, p in cell.named_parameters():
        getattr(plain, name).data = p.data[..., H:].copy()
    cell.b.data[:H] = 800.0
    agree(cell, plain, 1e-13)  # f = 1: a plain cell
    cell.b.data[:H] = -800.0
    x, h = given_to(cell, 2, 1)
    np.testing.assert_array_equal(cell(x, h)[0].data, h)  # f = 0: the state is kept


# --- a variant of one's own ----------------------------------------------------------------------


class NoOutputGate(LSTMVariant):
    gates = ("i", "f", "g")

    def output_gate(self, a, c):
        assert a is None
        return 1.0


class SeesItself(LSTMVariant):
    """Every gate keeps what it was handed."""

    def forget_gate(self, a, c):
        self.seen = {"c before": c}
        return super().forget_gate(a, c)

    def input_gate(self, a, c, f):
        self.seen |= {"c before, too": c, "f": f}
        return super().input_gate(a, c, f)

    def output_gate(self, a, c):
        self.seen |= {"c after": c}
        return super().output_gate(a, c)


def test_a_gate_without_weights_is_what_its_method_says():
    cell = build(NoOutputGate)
    x, (h, c) = given_to(cell, 2, 1)
    y, (_, new) = cell(x, (h, c))
    np.testing.assert_array_equal(y.data, np.tanh(new.data))
    a_i, a_f, a_g = products(cell.state_dict(), x, h, 3)
    want = sigma(a_f) * c + sigma(a_i) * np.tanh(a_g)
    np.testing.assert_allclose(new.data, want, rtol=1e-13)
    _, _, trace = Recurrent(cell)(x[None], trace=True)  # a gate that is a number has no trace
    assert list(trace) == [f"L0.fwd.{k}" for k in ("i", "f", "g", "c", "h")]


def test_the_methods_of_a_variant_see_the_states_before_and_after():
    cell = build(SeesItself)
    x, (h, c) = given_to(cell, 2, 1)
    _, (_, new) = cell(x, (h, c))
    a_f = products(cell.state_dict(), x, h, 4)[1]
    want = {"c before": c, "c before, too": c, "f": sigma(a_f), "c after": new.data}
    assert cell.seen.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(cell.seen[name].data, value, rtol=1e-13)


@cells
def test_every_option_of_a_layer_works(cls):
    rows = [(build(cls), build(cls, seed=1)), (build(cls, 6), build(cls, 6))]
    layer = Recurrent(rows, zoneout=0.1, recurrent_dropout=0.1, learn_state=True, rng=0)
    layer.mask_seed = 1
    x = Tensor(np.random.default_rng(0).standard_normal((5, 2, 2)), requires_grad=True)
    found = []
    for every in (None, 2):
        layer.checkpoint_every = every
        layer.zero_grad()
        out, _ = layer(x, lengths=[5, 2])
        (out * out).sum().backward()
        found.append([out.data, *[p.grad for p in layer.parameters()]])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    learned = [name for name, _ in rows[0][0].named_parameters()][-len(rows[0][0].states) :]
    assert learned == [f"{part}0" for part in rows[0][0].states]


@cells
def test_recurrent_dropout_of_everything_leaves_no_product_with_the_state(cls):
    cell = build(cls)
    layer = Recurrent(cell, recurrent_dropout=1.0, rng=0)
    x, _ = given_to(cell, 4, 1)
    out, _ = layer(np.stack([x, x]))
    out.sum().backward()
    np.testing.assert_array_equal(cell.W_h.grad, 0)


# --- bad input -----------------------------------------------------------------------------------


def test_gates_that_do_not_fit_the_step_are_refused():
    odd = type("Odd", (LSTMVariant,), {"gates": ("i", "f", "g", "o", "q")})
    with pytest.raises(ValueError, match=r"Odd: gates=\('i', 'f', 'g', 'o', 'q'\) has 'q'; exp"):
        odd(2, 3)
    twice = type("Twice", (LSTMVariant,), {"gates": ("i", "i", "f", "g", "o")})
    with pytest.raises(ValueError, match="has 'i'; expected some of i, f, g, o, each once"):
        twice(2, 3)
    less = type("Less", (LSTMVariant,), {"gates": ("i", "g", "o")})
    with pytest.raises(ValueError, match="gives f no weights, so that forget_gate must be over"):
        less(2, 3)


@cells
def test_sizes_and_dtypes_that_cannot_be_are_refused(cls):
    with pytest.raises(
        ValueError, match=rf"{cls.__name__}: input_size=-1 must be a whole number, 0"
    ):
        cls(-1, 3)
    with pytest.raises(ValueError, match="hidden_size=0 must be a whole number, 1 or more"):
        cls(2, 0)
    with pytest.raises(ValueError, match=f"{cls.__name__}: hidden_size=3.5 must be a whole"):
        cls(2, 3.5)
    with pytest.raises(ValueError, match=f"{cls.__name__}: input_size=True must be a whole"):
        cls(True, 3)
    with pytest.raises(TypeError, match=f"{cls.__name__}: parameters need a floating type"):
        cls(2, 3, dtype=int)


def test_a_layer_norm_needs_a_positive_eps():
    with pytest.raises(ValueError, match="LayerNormLSTMCell: eps=0 must be more than 0"):
        LayerNormLSTMCell(2, 3, eps=0)
    for eps in (float("nan"), float("inf"), "a"):
        with pytest.raises(ValueError, match=f"eps={eps!r} must be more than 0, and finite"):
            LayerNormLSTMCell(2, 3, eps=eps)
