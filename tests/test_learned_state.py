"""``learn_state``: the state before the first step is a parameter."""

import numpy as np
import pytest

from tinygrad_rnn import Tensor, grad
from tinygrad_rnn.nn import GRU, LSTM, RNN, Recurrent, RNNCell
from tinygrad_rnn.testing import check_module

from .test_cells import weighted
from .test_layer_options import SIDES, Pairs
from .test_recurrent import LAYERS, D, H, arrays, assert_close, build, inputs


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_learned_state_is_a_parameter_of_every_cell(kind, both):
    layer, plain = build(kind, 2, both, learn_state=True), build(kind, 2, both)
    letters = ("h", "c") if kind == "lstm" else ("h",)
    cells = [f"L{k}.{side}" for k in range(2) for side in SIDES[: 1 + both]]
    names = [f"{cell}.{letter}0" for cell in cells for letter in letters]
    assert set(layer.state_dict()) - set(plain.state_dict()) == set(names)
    p = layer.state_dict()
    plain.load_state_dict({n: a for n, a in p.items() if n not in names})
    x, lengths = inputs(3, 4, D), [3, 1, 0, 2]
    rows = [np.stack([p[f"{cell}.{s}0"] for cell in cells])[:, None] for s in letters]
    given = [Tensor(np.tile(r, (1, 4, 1)), requires_grad=True) for r in rows]
    state = tuple(given) if len(given) > 1 else given[0]
    got, want = layer(x, lengths=lengths), plain(x, state, lengths=lengths)
    assert_close(arrays(got), arrays(want), rtol=0, atol=0)
    # each sample starts from the row: its gradient is the sum over the batch
    found = grad(weighted(got), [dict(layer.named_parameters())[n] for n in names])
    each = grad(weighted(want), given)
    sums = dict(zip(letters, [g.sum(1) for g in each], strict=True))
    assert_close(found, [sums[n[-2]][cells.index(n[:-3])] for n in names])
    assert all(g.any() for g in found)
    assert_close(arrays(layer(x, state, lengths=lengths)), arrays(want), rtol=0, atol=0)
    loss = weighted(layer(x, state))
    assert not any(g.any() for g in grad(loss, [dict(layer.named_parameters())[n] for n in names]))


def test_a_learned_state_starts_where_the_cell_does():
    for cls in (RNN, LSTM, GRU):
        x = np.random.default_rng(0).standard_normal((3, 2, D))
        one, two = cls(D, H, rng=0), cls(D, H, rng=0, learn_state=True)
        assert_close(arrays(one(x)), arrays(two(x)), rtol=0, atol=0)
        assert all(p.dtype == np.float32 for p in two.parameters())


def test_a_learned_state_is_saved_shown_and_checked(tmp_path):
    layer = build("lstm", 1, True, learn_state=True)
    layer.save(tmp_path / "layer.npz")
    other = LSTM(D, H, bidirectional=True, learn_state=True, dtype=np.float64, rng=5)
    other.load(tmp_path / "layer.npz")
    x = inputs(2, 2, D)
    assert_close(arrays(other(x)), arrays(layer(x)), rtol=0, atol=0)
    text = str(layer.summary())
    for name in ("L0.fwd.h0", "L0.fwd.c0", "L0.rev.h0"):
        assert name in text
    report = check_module(layer, x.data, lengths=[2, 1])
    assert "L0.rev.c0" in str(report.findings)
    check_module(LSTM(D, H, learn_state=True, dtype=np.float64, rng=0).L0["fwd"], x.data[0])


def test_a_cell_of_its_own_learns_the_parts_that_it_names_or_numbers():
    layer = Recurrent(Pairs(0, 2, dtype=np.float64), learn_state=True)
    assert [n for n, _ in layer.named_parameters()] == ["L0.fwd.s0_0", "L0.fwd.s1_0", "L0.fwd.s2_0"]
    layer.L0["fwd"].s2_0.data[...] = [[1, 2], [3, 4]]
    _, (_, (_, c)) = layer(None, steps=1)
    assert_close([c.data], [[[[2, 3], [4, 5]]]])
    cell = RNNCell(D, H, rng=0)
    cell.learn_state()
    cell.h0.data[...] = 0.5
    given_state = cell(np.ones((2, D)), np.full((2, H), 0.5))
    assert_close(arrays(cell(np.ones((2, D)))), arrays(given_state), rtol=0, atol=0)
