"""The layers against other engines' layers, and what an oracle says of planted defects."""

import sys
import warnings

import numpy as np
import pytest

from tinygrad_rnn import nn, ops
from tinygrad_rnn.nn import GRUCell, LSTMCell
from tinygrad_rnn.testing import GradientError, RNNConfig, Verdict, check_against, report
from tinygrad_rnn.testing.configs import randomise
from tinygrad_rnn.testing.oracles import ORACLES, OracleMissing, _differences

MARKS = {"torch": [pytest.mark.torch]}
oracles = pytest.mark.parametrize(
    "oracle", [pytest.param(name, marks=MARKS.get(name, [])) for name in ORACLES]
)
quick = pytest.mark.parametrize(
    "oracle", [pytest.param("torch", marks=pytest.mark.torch), "autograd"]
)
CELLS = [nn.RNN, nn.LSTM, nn.GRU]
BASE = RNNConfig(nn.LSTM, T=4, N=3, D=2, H=3)


def against(oracle, cfg, layer=None):
    """Ask the oracle; without it, skip and say why."""
    layer = cfg.make() if layer is None else layer
    try:
        return check_against(oracle, layer, cfg.x(), state=cfg.initial(layer), lengths=cfg.lengths)
    except OracleMissing as missing:
        pytest.skip(str(missing))


@oracles
def test_a_deep_ragged_layer_in_two_directions(oracle):
    cfg = BASE.replace(T=2, N=2, H=1, D=1, layers=2, bidirectional=True, lengths=(1, 2))
    found = against(oracle, cfg)
    assert found.verdict is Verdict.RIGHT
    assert found.method.startswith(f"oracle {oracle}")
    seen = {f.input for f in found.findings}
    assert {"x(t=1)", "x(t=2)", "h0[3]", "c0[0]", "L1.rev.W_h, gate f"} <= seen
    assert {"y", "h_n", "c_n", "all outputs", "y(t=2)"} <= {f.output for f in found.findings}


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU])
def test_the_other_cells_over_jax(cell):
    against("jax", BASE.replace(cell=cell, T=1, N=1, H=1))


@quick
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"bidirectional": True},
        {"layers": 3},
        {"bias": False},
        {"batch_first": True},
        {"batch_first": True, "bidirectional": True, "lengths": (1, 4, 2)},
        {"lengths": (0, 4, 2)},
        {"lengths": (3, 0, 0), "layers": 2, "bidirectional": True, "batch_first": True},
        {"lengths": (0, 0, 0)},
        {"state": "none"},
        {"state": "zero", "lengths": (4, 4, 1)},
        {"T": 1, "N": 1, "H": 1},
        {"T": 40, "N": 1, "H": 2},
        {"dtype": "float32", "bidirectional": True, "lengths": (4, 0, 1)},
        {"dtype": "float32", "T": 40, "N": 1},
    ],
    ids=lambda change: ", ".join(f"{k}={v}" for k, v in change.items()) or "plain",
)
def test_every_shape_of_layer(oracle, cell, change):
    found = against(oracle, BASE.replace(cell=cell, **change))
    assert found.verdict is Verdict.RIGHT
    assert len(found.findings) > 10


@quick
@pytest.mark.parametrize("cell", CELLS)
def test_unbatched(oracle, cell):
    cfg = BASE.replace(cell=cell, layers=2, bidirectional=True)
    layer = cfg.make()
    pytest.importorskip(oracle)
    assert check_against(oracle, layer, cfg.x()[:, 0]).verdict is Verdict.RIGHT


@quick
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_activations(oracle, activation):
    pytest.importorskip(oracle)
    layer = randomise(nn.RNN(2, 3, activation=activation, dtype="float64"), 3)
    assert check_against(oracle, layer, BASE.x()).verdict is Verdict.RIGHT


def test_what_only_the_equations_know():
    pytest.importorskip("autograd")
    for layer in (
        nn.RNN(2, 2, activation="identity", dtype="float64"),
        nn.GRU(2, 2, reset_after=False, dtype="float64"),
        nn.Recurrent([LSTMCell(2, 3, dtype="float64"), GRUCell(3, 2, dtype="float64")]),
    ):
        found = check_against("autograd", randomise(layer, 3), BASE.x())
        assert found.verdict is Verdict.RIGHT


@quick
def test_frozen_and_tied_weights(oracle):
    pytest.importorskip(oracle)
    cell = LSTMCell(2, 2, dtype="float64", rng=0)
    tied = randomise(nn.Recurrent([(cell, cell)]), 1)
    assert check_against(oracle, tied, BASE.x()).verdict is Verdict.RIGHT
    frozen = BASE.make()
    frozen.L0["fwd"].W_h.requires_grad = False
    found = against(oracle, BASE, frozen).findings
    assert not any("W_h" in f.input for f in found)


def test_integers_as_input():
    pytest.importorskip("autograd")
    layer = randomise(nn.GRU(2, 3, dtype="float64"), 1)
    x = np.array([[[1, -2]], [[0, 3]]])
    assert check_against("autograd", layer, x).verdict is Verdict.RIGHT


@pytest.mark.torch
def test_the_random_numbers_of_torch_are_left_alone():
    torch = pytest.importorskip("torch")
    before = torch.random.get_rng_state()
    against("torch", BASE)
    assert torch.equal(before, torch.random.get_rng_state())


@quick
def test_the_layer_is_left_as_it_was(oracle):
    layer = BASE.make()
    before = {name: (p.data, p.data.copy()) for name, p in layer.named_parameters()}
    against(oracle, BASE, layer)
    for name, p in layer.named_parameters():
        assert p.data is before[name][0]
        np.testing.assert_array_equal(p.data, before[name][1])
        assert p.grad is None


# --- what it must find --------------------------------------------------------------------------


def planted(monkeypatch, cls, change):
    """Let the equations of a cell of this framework be those of another."""
    step = cls.step
    monkeypatch.setattr(cls, "step", lambda self, x, state: change(self, step, x, state))


def forget(self, step, x, state):
    h, (h, c) = step(self, x, state)
    return h, (h, c + 1e-9 * state[1])


def truncate(self, step, x, state):
    count[0] += 1
    return step(self, x, state if count[0] != 9 else tuple([s.detach() for s in state]))


count = [0]


@quick
class TestPlanted:
    def test_a_value_off_by_a_billionth(self, oracle, monkeypatch):
        planted(monkeypatch, LSTMCell, forget)
        with pytest.raises(GradientError, match="values of LSTM differ from oracle") as caught:
            against(oracle, BASE.replace(T=2, N=2))
        assert caught.value.verdict is Verdict.WRONG
        assert "ours      " in str(caught.value)
        assert caught.value.report.verdict is Verdict.WRONG

    def test_a_gradient_cut_off_early_in_time(self, oracle, monkeypatch):
        """24 steps, cut at the 9th: what is lost is far below any absolute tolerance."""
        planted(monkeypatch, LSTMCell, truncate)
        cfg = RNNConfig(nn.LSTM, T=24, N=1, D=1, H=2)
        layer = cfg.make()
        for p in layer.parameters():
            p.data = p.data * 0.3
        count[0] = -24  # the state of another length is asked for first
        with pytest.raises(GradientError, match=r"backward of LSTM differ") as caught:
            against(oracle, cfg, layer)
        wrong = [f for f in caught.value.report.findings if f.verdict is Verdict.WRONG]
        assert {"x(t=1)", "x(t=8)"} <= {f.input.split(",")[0] for f in wrong}
        assert "x(t=9)" not in {f.input.split(",")[0] for f in wrong}
        assert min(f.scale for f in wrong) < 1e-6

    def test_a_gate_is_named(self, oracle, monkeypatch):
        def scaled(self, step, x, state):
            h, c = state
            a = self.affine(x, h)
            i, f, g, o = (a[:, k * 3 : k * 3 + 3] for k in range(4))
            f = f + 1e-3 * (f - f.detach())  # the gradient of the forget gate alone
            c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
            h = ops.sigmoid(o) * ops.tanh(c)
            return h, (h, c)

        planted(monkeypatch, LSTMCell, scaled)
        with pytest.raises(GradientError) as caught:
            against(oracle, BASE.replace(T=1, N=2))
        wrong = {f.input for f in caught.value.report.findings if f.verdict is Verdict.WRONG}
        gates = {name.split("gate ")[1][0] for name in wrong if "gate " in name}
        assert gates == {"f"}

    def test_padding_that_leaks(self, oracle, monkeypatch):
        from tinygrad_rnn.nn import recurrent

        monkeypatch.setattr(recurrent, "keep_past_end", lambda inside, new, old: new)
        with pytest.raises(GradientError, match="values of GRU differ"):
            against(oracle, BASE.replace(cell=nn.GRU, T=2, N=2, lengths=(2, 1)))

    def test_float32_wrong_by_a_thousandth(self, oracle, monkeypatch):
        rule = ops.sigmoid.rules[0]
        monkeypatch.setattr(ops.sigmoid, "rules", (lambda g, y, x: rule(g, y, x) * 1.001,))
        with pytest.raises(GradientError, match="backward of GRU differ"):
            against(oracle, BASE.replace(cell=nn.GRU, T=2, N=2, dtype="float32"))


@pytest.mark.parametrize(("got", "right"), [(1e-17, True), (1e-15, False), (np.nan, False)])
def test_a_block_that_is_exactly_zero(got, right):
    """Rounding of the largest gradient may keep a sum from 0; nothing else may."""
    blocks = [[("x", ...)], [("W", ...)]]
    mine, other = [np.array([got]), np.array([0.5])], [np.zeros(1), np.array([0.5])]
    found = _differences(blocks, mine, other, list, "y", "oracle")
    assert [f.verdict is Verdict.RIGHT for f in found] == [right, True]


def test_reports_are_published(monkeypatch):
    pytest.importorskip("autograd")
    seen = []
    monkeypatch.setattr(report, "LISTENERS", [seen.append])
    found = against("autograd", BASE.replace(T=1))
    assert seen == [found]
    assert found.evaluations == 1


@oracles
def test_a_rule_that_loses_precision(oracle, monkeypatch):
    rule = ops.tanh.rules[0]
    monkeypatch.setattr(ops.tanh, "rules", (lambda g, y, x: rule(g, y, x) * (1 + 1e-8),))
    with pytest.raises(GradientError, match="backward of RNN differ"):
        against(oracle, BASE.replace(cell=nn.RNN, T=1, N=1, H=1))


# --- what it does not know ----------------------------------------------------------------------


class Leaky(nn.Cell):
    def step(self, x, h):
        h = 0.5 * h + x @ np.ones((2, 3))
        return h, h


class Mine(LSTMCell):
    pass


@oracles
@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (lambda: nn.Recurrent(Leaky(2, 3, dtype="float64")), "it runs a Leaky"),
        (lambda: nn.Recurrent(Mine(2, 3, dtype="float64")), "it runs a Mine"),
        (lambda: nn.Linear(2, 3), "Linear: the oracle knows"),
        (lambda: nn.Readout(nn.RNN(2, 3), 1), "Readout: the oracle knows"),
        (lambda: nn.LSTM(2, 3, 2, dropout=0.5), "call eval"),
        (lambda: nn.RNN(2, 3, activation=ops.sigmoid), "not of your own"),
    ],
)
def test_an_unknown_module_is_said_in_words(oracle, layer, why):
    if layer.__code__.co_names[-1] == "sigmoid":
        pytest.importorskip(oracle)
    with pytest.raises(GradientError, match="the oracle knows RNN, LSTM, GRU only") as caught:
        check_against(oracle, layer(), BASE.x())
    assert caught.value.verdict is Verdict.UNRELIABLE
    assert why in str(caught.value)


@pytest.mark.torch
def test_what_torch_does_not_have():
    pytest.importorskip("torch")
    for layer, why in [
        (nn.GRU(2, 3, reset_after=False), "no reset_after=False"),
        (nn.RNN(2, 3, activation="identity"), "not identity"),
        (nn.Recurrent([LSTMCell(2, 3), GRUCell(3, 3)]), "of one kind"),
    ]:
        with pytest.raises(GradientError, match=why) as caught:
            check_against("torch", layer, BASE.x())
        assert caught.value.verdict is Verdict.UNRELIABLE


@oracles
def test_one_that_is_missing_says_so(oracle, monkeypatch):
    monkeypatch.setitem(sys.modules, oracle, None)
    with pytest.raises(OracleMissing, match="is not installed; pip install") as caught:
        check_against(oracle, BASE.make(), BASE.x())
    assert isinstance(caught.value, ImportError)


def test_an_oracle_that_does_not_exist():
    with pytest.raises(ValueError, match="oracle is one of torch, jax, autograd, got 'mxnet'"):
        check_against("mxnet", BASE.make(), BASE.x())


def test_inputs_it_does_not_take():
    layer = nn.RNN(2, 3)
    for inputs in [([BASE.x()[:, 0]],), (None,), ()]:
        with pytest.raises(GradientError, match="it takes one input"):
            check_against("torch", layer, *inputs)
    pytest.importorskip("autograd")
    layer = layer.astype("complex128")
    with pytest.raises(GradientError, match="it is complex128") as caught:
        check_against("autograd", layer, BASE.x())
    assert caught.value.verdict is Verdict.UNRELIABLE


@oracles
def test_no_warning_comes_through(oracle):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        against(oracle, BASE.replace(T=1, N=1, H=1))
