"""Every layer relation holds in every corner, and fails for one planted defect at least."""

import inspect

import numpy as np
import pytest

from tests.kit.planting import edit, rule
from tinygrad_rnn import Parameter, archive, nn, ops, optim
from tinygrad_rnn.nn import noise, recurrent
from tinygrad_rnn.testing import relations
from tinygrad_rnn.testing.configs import RNNConfig
from tinygrad_rnn.testing.relations import training
from tinygrad_rnn.testing.report import GradientError, Verdict

LAYER = [name for name, r in relations.RELATIONS.items() if r.kind == "layer"]


class Leaky(nn.Cell):
    """A user's cell: a leak of its own per unit, and a state of two unlike arrays."""

    def __init__(self, input_size, hidden_size, *, dtype=np.float32):
        super().__init__(input_size, hidden_size, dtype=dtype)
        self.add_weights(rng=0)

    def initial_state(self, batch):
        return np.zeros((batch, self.hidden_size), self.dtype), np.ones((batch, 2, 2), self.dtype)

    def step(self, x, state):
        m, scale = state
        m = 0.5 * m + ops.tanh(self.affine(x, m * scale[:, :1, 0]))
        return m * 2, (m, scale * 0.5)


def relu_cell(cfg):
    return nn.RNNCell(cfg.D, cfg.H, activation="relu", bias=cfg.bias, dtype=cfg.dtype)


def abs_cell(cfg):
    return nn.RNNCell(cfg.D, cfg.H, activation=abs, bias=cfg.bias, dtype=cfg.dtype)


def published_gru(cfg):
    return nn.GRUCell(cfg.D, cfg.H, reset_after=False, bias=cfg.bias, dtype=cfg.dtype)


CELLS = [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, Leaky, relu_cell, abs_cell, published_gru]
CORNERS = [
    {"T": 1}, {"T": 2, "N": 1, "D": 2, "H": 1}, {"T": 3, "N": 2, "D": 3, "H": 3},
    {"T": 3, "N": 2, "D": 2, "H": 3, "layers": 2, "bidirectional": True, "lengths": (3, 1)},
    {"T": 4, "N": 3, "D": 1, "H": 2, "lengths": (0, 4, 2), "dtype": "float32", "seed": 1},
    {"T": 2, "N": 2, "H": 2, "lengths": (0, 0), "state": "none", "bias": False},
    {"T": 3, "N": 2, "D": 4, "H": 2, "state": "zero", "batch_first": True, "bias": False},
]  # fmt: skip
LONG = {"T": 64, "D": 2, "H": 2}


@pytest.mark.parametrize("name", LAYER)
def test_it_holds_in_the_corners(name):
    relation, ran = relations.RELATIONS[name], 0
    configs = [RNNConfig(cell, **corner) for cell in CELLS for corner in CORNERS]
    for cfg in [*configs, *[RNNConfig(cell, **LONG) for cell in (nn.LSTM, abs_cell)]]:
        if relation.needs(cfg) is None:
            report = relation(cfg)
            assert report.verdict is Verdict.RIGHT
            assert report.findings
            assert report.config is cfg
            ran += 1
    assert ran >= 4 * len(CORNERS)  # it applies to the half of what there is


def test_what_does_not_apply_says_why():
    user, short = RNNConfig(Leaky, T=3), RNNConfig(nn.LSTM, T=1)
    why = {name: r.needs(user) for name, r in relations.RELATIONS.items() if r.needs(user)}
    gates = ["unit_permutation", "reparametrisation", "gate_limits", "closed_form", "sign_symmetry"]
    assert why == dict.fromkeys(gates, "knows the gates of RNN, LSTM and GRU only")
    why = {name: r.needs(short) for name, r in relations.RELATIONS.items() if r.needs(short)}
    assert why == dict.fromkeys(["carry", "causality"], "needs two steps: T is 1")
    assert relations.sign_symmetry.needs(RNNConfig(relu_cell)) == "the activation is not odd"
    assert relations.sign_symmetry.needs(RNNConfig(nn.RNN)) is None

    class Peephole(nn.LSTMCell):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            self.peep = nn.Linear(1, 1)

    assert "b_hn only, not L0.fwd.peep.W" in relations.gate_limits.needs(RNNConfig(Peephole))


# --- defects ---------------------------------------------------------------------------------

Layer = nn.Recurrent
STORE, STEP = "outputs[t], state = y, new", "cell.step(inputs[t], state)"  # lines of its loop
CUT = "map_state(lambda s: s.detach(), new)"


def last_state_detached(m):
    edit(m, Layer, "_unroll", "return outputs, state",
         "return outputs, map_state(lambda s: s.detach(), state)")  # fmt: skip


def a_relative_error_in_the_output(m):
    edit(m, Layer, "_unroll", STORE,
         "outputs[t], state = y * (1 + 1e-8), new")  # fmt: skip


def the_last_input_seen_by_all(m):
    edit(m, Layer, "_unroll", STEP,
         "cell.step(inputs[t] + 0.0 * inputs[-1], state)")  # fmt: skip


def the_last_input_seen_in_reverse(m):
    edit(m, Layer, "_unroll", STEP,
         "cell.step(inputs[t] + 1e-9 * (place[2] == 'rev') * inputs[0], state)")  # fmt: skip


def a_gradient_across_time_only(m):
    def leaking(g, y, *parts, axis=0):
        gs = [g[(slice(None),) * axis + (k,)] for k in range(len(parts))]
        return [gk + 1e-12 * gs[0] for gk in gs]

    m.setattr(ops.stack, "rule_all", leaking)


def cut_after_60_steps(m):
    edit(m, Layer, "_unroll", STORE,
         f"outputs[t], state = y, new if t != T - 61 else {CUT}")  # fmt: skip


def far_gradients_flushed(m):
    rule(m, ops.tanh, lambda g, y, x: ops.where(abs(g) < 1e-6, 0.0, g) * (1 - y * y))


def normalised_over_the_batch(m):
    edit(m, Layer, "_unroll", "y, new = result",
         "y, new = result[0] - 1e-8 * result[0].mean(0), result[1]")  # fmt: skip


def one_is_special(m):
    edit(m, Layer, "_unroll", "y, new = result",
         "y, new = result[0] * (1 + 1e-8 * (len(result[0]) == 1)), result[1]")  # fmt: skip


def one_use_lost(m):
    edit(
        m, ops, "_matmul_uses", "if len(uses) == 1:", "x, g = x[:2], g[:2]\n    if len(uses) == 1:"
    )
    m.setattr(ops.matmul, "collectors", (None, ops._matmul_uses))


def padding_read(m):
    edit(m, Layer, "_read", "x = ops.where(valid[:, :, None], x, 0.0)", "pass")


def state_goes_on_past_the_end(m):
    edit(m, Layer, "_unroll", "keep_past_end(Tensor(valid[t, :, None]), new, state)", "new")


def reverse_runs_forward(m):
    edit(m, Layer, "_unroll", 'reversed(range(T)) if place[2] == "rev" else range(T)', "range(T)")


def halves_swapped(m):
    edit(m, Layer, "_merge", "merge(*parts)", "merge(*parts[::-1])")


def upper_layer_cut_off(m):
    edit(m, Layer, "forward", "self._merge(sides)",
         "[y.detach() if k < self.num_layers - 1 else y for y in self._merge(sides)]")  # fmt: skip


def batch_first_turned_back_wrongly(m):
    edit(m, Layer, "_join", "axis = 1 if", "axis = 0 if")


def cell_edit(cell, old, new):
    def plant(m):
        edit(m, cell, "step", old, new)

    plant.__name__ = f"{cell.__name__}: {new}"
    return plant


def first_column_heavier(m):
    edit(m, nn.Cell, "affine", "x @ self.W_x", "x @ self.W_x + 1e-8 * x[:, :1]")


def bias_gradient_lost(m):
    edit(m, nn.Cell, "affine", "a + b", "a + b.detach()")


def square_weights_transposed(m):
    rule(m, ops.matmul, lambda g, z, x, y: g @ (y if y.shape[0] == y.shape[1] else y.mT))


def initial_state_detached(m):
    edit(m, Layer, "_initial", "state = as_tensors(state, cell.dtype)",
         "state = map_state(lambda s: s.detach(), as_tensors(state, cell.dtype))")  # fmt: skip


def half_precision_in_float32(m):
    def half(g, y, x):
        square = y * y
        if y.dtype == np.float32:
            square = square.astype(np.float16).astype(np.float32)
        return g - g * square

    rule(m, ops.tanh, half)


def double_out_of_single(m):
    edit(m, nn.LSTMCell, "step", "return h, ", "return h.astype(np.float64), ")


def dropout_of_zero_scales(m):
    edit(m, Layer, "forward", "self.dropout and self.training", "self.training")
    m.setattr(noise.Noise, "stream", lambda self, *place: None)
    m.setattr(recurrent, "dropout_mask", lambda shape, p, dtype, rng: np.full(shape, 1.001, dtype))


def naive_sigmoid(m):
    def forward(x):
        e = np.exp(x)
        return e / (1 + e)

    m.setattr(ops.sigmoid, "forward", forward)


def steps_uphill(m):
    edit(m, optim.SGD, "_direction", "return", "return -1 *")


def clipped_by_value(m):
    m.setattr(training, "clip_grad_norm", optim.clip_grad_value)


def count_not_restored(m):
    edit(m, optim.Adam, "load_state_dict", "state.count = int(_pop(left, f\"{n}.count\"))",
         "_pop(left, f\"{n}.count\")")  # fmt: skip


def saved_in_float32(m):
    def write(path, arrays, meta, real=archive.write):
        real(path, {n: a.astype(np.float32) for n, a in arrays.items()}, meta)

    m.setattr(archive, "write", write)


LSTM3 = RNNConfig(nn.LSTM, T=3, N=2, D=2, H=3)
BOTH = LSTM3.replace(bidirectional=True)
RAGGED = LSTM3.replace(lengths=(3, 1))
DEFECTS = [
    ("carry", last_state_detached, LSTM3),
    ("unroll", a_relative_error_in_the_output, LSTM3),
    ("unroll", state_goes_on_past_the_end, RAGGED),
    ("causality", the_last_input_seen_by_all, LSTM3),
    ("causality", the_last_input_seen_in_reverse, BOTH),
    ("causality", a_gradient_across_time_only, LSTM3),
    ("anti_truncation", cut_after_60_steps, LSTM3.replace(T=64)),
    ("anti_truncation", cut_after_60_steps, RNNConfig(abs_cell, T=62, N=2)),
    ("anti_truncation", far_gradients_flushed, RNNConfig(nn.RNN, T=40, N=2, H=2)),
    ("batch", normalised_over_the_batch, LSTM3),
    ("batch", one_is_special, LSTM3),
    ("sharing", one_use_lost, LSTM3),
    ("padding", padding_read, RAGGED),
    ("padding", state_goes_on_past_the_end, LSTM3),
    ("direction", reverse_runs_forward, LSTM3),
    ("direction", halves_swapped, LSTM3),
    ("stacking", upper_layer_cut_off, LSTM3),
    ("stacking", batch_first_turned_back_wrongly, LSTM3),
    ("unit_permutation", cell_edit(nn.LSTMCell, "tanh(c)", "tanh(c) + 1e-8 * c[:, :1]"), LSTM3),
    ("reparametrisation", first_column_heavier, LSTM3),
    ("reparametrisation", bias_gradient_lost, LSTM3),
    ("gate_limits", cell_edit(nn.LSTMCell, "f * c +", "(1 - f) * c +"), LSTM3),
    ("gate_limits", cell_edit(nn.GRUCell, "z * h", "z * h.detach()"), LSTM3.replace(cell=nn.GRU)),
    ("gate_limits", cell_edit(nn.RNNCell, "activation(a)", "activation(a) + 1e-8 * state"),
     LSTM3.replace(cell=nn.RNN)),
    ("closed_form", square_weights_transposed, LSTM3.replace(cell=nn.RNN)),
    ("closed_form", cell_edit(nn.LSTMCell, "o * tanh(c)", "o * c"), LSTM3),
    ("closed_form", cell_edit(nn.GRUCell, "(1 - z) * n + z * h", "z * n + (1 - z) * h"),
     LSTM3.replace(cell=nn.GRU)),
    ("sign_symmetry", cell_edit(nn.LSTMCell, "tanh(g)", "sigmoid(g)"), LSTM3),
    ("sign_symmetry", cell_edit(nn.RNNCell, "self.activation(a)", "self.activation(a) + 1e-8"),
     LSTM3.replace(cell=nn.RNN)),
    ("initial_state", initial_state_detached, LSTM3),
    ("dtype", half_precision_in_float32, LSTM3),
    ("dtype", double_out_of_single, LSTM3),
    ("dtype", dropout_of_zero_scales, LSTM3),
    ("dtype", naive_sigmoid, LSTM3),
    ("optimiser_step", steps_uphill, LSTM3),
    ("optimiser_step", clipped_by_value, LSTM3),
    ("optimiser_step", count_not_restored, LSTM3),
    ("optimiser_step", saved_in_float32, LSTM3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "defect", "cfg"), DEFECTS)
def test_a_planted_defect_is_caught(name, defect, cfg, monkeypatch):
    defect(monkeypatch)
    assert relations.RELATIONS[name].needs(cfg) is None
    with pytest.raises(GradientError) as caught:
        relations.check(name, cfg)
    assert str(caught.value).startswith(f"{name}: ")
    assert "stopped by" not in str(caught.value)
    assert f"with {cfg!r}" in str(caught.value)
    assert caught.value.report.config is cfg


def test_every_relation_has_a_defect():
    assert {name for name, *_ in DEFECTS} == set(LAYER)


@pytest.mark.parametrize("t", range(5))
def test_a_cut_at_any_step_is_seen(t, monkeypatch):
    edit(monkeypatch, Layer, "_unroll", STORE,
         f"outputs[t], state = y, new if t != {t} else {CUT}")  # fmt: skip
    with pytest.raises(GradientError, match="slope of the final state along"):
        relations.anti_truncation(RNNConfig(nn.LSTM, T=6))


# --- what is said ------------------------------------------------------------------------------


def test_the_message_says_relation_block_place_and_both_numbers(monkeypatch):
    edit(monkeypatch, nn.LSTMCell, "step", "f * c +", "f * c.detach() +")
    with pytest.raises(GradientError) as caught:
        relations.closed_form(LSTM3)
    text = str(caught.value)
    assert text.startswith("closed_form: gradient of ")
    for part in ("against 50 digits differs by", ", expected ", f"\n  with {LSTM3!r}"):
        assert part in text


def test_a_layer_relation_asks_for_one_configuration():
    for args in ((), (3,), (LSTM3, 3)):
        with pytest.raises(TypeError, match=r"relations\.carry takes one RNNConfig"):
            relations.carry(*args)


def test_a_cell_that_raises_is_no_stack_trace_of_the_kit():
    class Broken(nn.LSTMCell):
        def step(self, x, state):
            raise ValueError("no step today")

    with pytest.raises(GradientError, match="unroll: stopped by ValueError: no step today"):
        relations.unroll(RNNConfig(Broken))


def test_each_relation_names_its_number_and_kind():
    numbers = [r.number for r in relations.RELATIONS.values()]
    assert numbers == list(range(1, 32))
    for name, r in relations.RELATIONS.items():
        assert getattr(relations, name) is r
        assert name in relations.__all__
        assert r.kind == ("engine" if r.number < 15 else "layer")
        assert inspect.getdoc(r).startswith("Claim ")


class LearnedStart(nn.RNNCell):
    """A cell whose first state is a parameter."""

    def __init__(self, input_size, hidden_size, **settings):
        super().__init__(input_size, hidden_size, **settings)
        self.h0 = Parameter(np.full((1, hidden_size), 0.3, self.dtype))

    def initial_state(self, batch):
        return ops.broadcast(self.h0, shape=(batch, self.hidden_size))


@pytest.mark.parametrize("name", ["sharing", "padding", "initial_state"])
def test_what_passes_a_state_does_not_apply_to_a_learned_one(name):
    cfg = RNNConfig(LearnedStart, T=3, H=2)
    assert "learns its own" in relations.RELATIONS[name].needs(cfg)
    assert relations.RELATIONS[name].needs(cfg.replace(cell=nn.RNNCell)) is None
