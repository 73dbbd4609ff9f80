"""A cell that is fed its own output, against a loop in NumPy and by every check of the kit."""

import numpy as np
import pytest

from tinygrad_rnn import Module, Tensor, grad, nn, ops
from tinygrad_rnn.errors import ShapeError, StateError
from tinygrad_rnn.functional import cross_entropy, one_hot, softmax
from tinygrad_rnn.nn import Linear, LSTMCell, Readout, Recurrent, RNNCell
from tinygrad_rnn.nn.feedback import FeedbackCell
from tinygrad_rnn.testing import RNNConfig, check_module
from tinygrad_rnn.testing.relations import RELATIONS, check

from .test_cells import check_gradients, flatten, lstm_step, randomise, rnn_step, weighted

N, H, V = 2, 4, 3
rng = np.random.default_rng(14)


def build(cell=RNNCell, D=0, feed=None, H=H, V=V):
    inner, readout = cell(D + V, H, dtype="f8", rng=0), Linear(H, V, dtype="f8", rng=1)
    return randomise(FeedbackCell(inner, readout, feed=feed), seed=2, scale=0.6)


def leaf(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def loop(p, step, x, y, inner, feed=lambda y: y):
    """Return the outputs and what is fed back at the end, by the equations."""
    p, outputs = {k.removeprefix("cell."): a for k, a in p.items()}, []
    for given in x:
        h, inner, _ = step(p, np.concatenate([given, y], axis=1), inner)
        outputs.append(h @ p["readout.W"] + p["readout.b"])
        y = feed(outputs[-1])
    return np.array(outputs), inner, y


@pytest.mark.parametrize("D", [0, 2])
@pytest.mark.parametrize(
    ("kind", "step", "parts"), [(RNNCell, rnn_step(np.tanh), 1), (LSTMCell, lstm_step, 2)]
)
def test_the_output_of_a_step_is_the_input_of_the_next(kind, step, parts, D):
    cell, T = build(kind, D), 5
    x, y0 = rng.standard_normal((T, N, D)), rng.standard_normal((N, V))
    inner = tuple(rng.standard_normal((parts, N, H)))
    inner = inner if parts > 1 else inner[0]
    settings = {"steps": T} if D == 0 else {}
    out, state = Recurrent(cell)(x if D else None, (inner, y0), **settings)
    want, end, last = loop(cell.state_dict(), step, x, y0, inner)
    np.testing.assert_allclose(out.data, want, rtol=1e-12)
    for a, b in zip(flatten(state), flatten((end, last)), strict=True):
        np.testing.assert_allclose(a.data, b, rtol=1e-12)


def test_it_starts_from_zeros_or_from_a_vector():
    cell = build(LSTMCell)
    layer, y0, zero = Recurrent(cell), leaf(N, V), np.zeros((N, H))
    np.testing.assert_array_equal(
        layer(None, cell.start(y0), steps=3)[0].data,
        layer(None, ((zero, zero), y0), steps=3)[0].data,
    )
    out, _ = layer(None, steps=3)
    np.testing.assert_array_equal(
        out.data, layer(None, cell.start(np.zeros((1, V))), steps=3)[0].data
    )
    h, c = leaf(N, H, seed=1), leaf(N, H, seed=2)  # as an encoder leaves them
    out, _ = layer(None, cell.start(y0, (h, c)), steps=3)
    assert all(g.any() for g in grad(weighted(out), [y0, h, c]))


def test_the_layer_goes_on_where_it_stopped():
    layer = Recurrent(build(LSTMCell))
    whole, end = layer(None, steps=7)
    first, state = layer(None, steps=4)
    second, last = layer(None, state, steps=3)
    np.testing.assert_array_equal(whole.data, np.concatenate([first.data, second.data]))
    for a, b in zip(flatten(end), flatten(last), strict=True):
        np.testing.assert_array_equal(a.data, b.data)


def test_teacher_forced_on_its_own_outputs_the_cell_says_the_same():
    cell = build(LSTMCell)
    y0 = rng.standard_normal((1, N, V))
    out, _ = Recurrent(cell)(None, cell.start(y0[0]), steps=6)
    forced = Recurrent(cell.cell)
    h, _ = forced(np.concatenate([y0, out.data[:-1]]))
    np.testing.assert_array_equal(cell.readout(h).data, out.data)
    assert {*map(id, forced.parameters())} < {*map(id, cell.parameters())}


def test_without_a_readout_the_cell_is_fed_what_it_gives():
    cell = randomise(FeedbackCell(RNNCell(H, H, dtype="f8", rng=0)), seed=1)
    out, _ = Recurrent(cell)(None, cell.start(np.ones((N, H))), steps=3)
    p, y = cell.state_dict(), np.ones((N, H))
    h = np.zeros((N, H))
    for t in range(3):
        y = h = np.tanh(y @ p["cell.W_x"] + p["cell.b"] + h @ p["cell.W_h"])
        np.testing.assert_allclose(out.data[t], y, rtol=1e-12)


# --- what is fed back ----------------------------------------------------------------------------


def test_a_softmax_is_fed_back():
    cell = build(feed=softmax)
    y0, h0 = rng.random((N, V)), np.zeros((N, H))
    out, (_, fed) = Recurrent(cell)(None, cell.start(y0), steps=4)
    x = np.zeros((4, N, 0))
    want, _, last = loop(cell.state_dict(), rnn_step(np.tanh), x, y0, h0, softmax)
    np.testing.assert_allclose(out.data, want, rtol=1e-12)
    np.testing.assert_allclose(fed.data, last, rtol=1e-12)


def test_the_likeliest_symbol_is_fed_back():
    cell = build(feed=lambda y: one_hot(y.data.argmax(-1), V))
    go = one_hot([0] * N, V, "f8")
    out, _, trace = Recurrent(cell)(None, cell.start(go), steps=6, trace=True)
    fed = trace["L0.fwd.fed"].data
    np.testing.assert_array_equal(fed, one_hot(out.data.argmax(-1), V))
    h, _ = Recurrent(cell.cell)(np.concatenate([go[None], fed[:-1]]))
    np.testing.assert_array_equal(cell.readout(h).data, out.data)


class Speller(Module):
    """A network that is fed the embedding of the symbol it gave last."""

    def __init__(self):
        self.letters = nn.Embedding(5, V, dtype="f8", rng=0)
        feed = nn.Sequential(lambda y: y.data.argmax(-1), self.letters)
        cell, readout = LSTMCell(V, H, dtype="f8", rng=1), Linear(H, 5, dtype="f8", rng=2)
        self.layer = Recurrent(FeedbackCell(cell, readout, feed=feed))

    def forward(self, ids, steps=4):
        cell = self.layer.L0["fwd"]
        return self.layer(None, cell.start(self.letters(ids)), steps=steps)[0]


def test_embeddings_are_fed_back_and_learn():
    model = Speller()
    out = model([0, 3])
    assert out.shape == (4, 2, 5)
    assert (model.layer.L0["fwd"].fed_size, model.layer.L0["fwd"].hidden_size) == (V, 5)
    loss = cross_entropy(out, np.ones((4, 2), int))
    said = {0, 3, *out.data[:-1].argmax(-1).ravel()}
    reached = grad(loss, model.letters.W).any(axis=1)
    assert set(np.flatnonzero(reached)) == said
    randomise(model, seed=3)
    leaves = dict(model.named_parameters())
    check_gradients(lambda: cross_entropy(model([0, 3]), np.ones((4, 2), int)), leaves)


# --- gradients, and every relation of layers -----------------------------------------------------


def test_gradients_of_a_free_run():
    cell = build(LSTMCell)
    y0, h, c = leaf(N, V), leaf(N, H, seed=1), leaf(N, H, seed=2)
    check_module(Recurrent(cell), None, state=((h.data, c.data), y0.data), steps=5)
    leaves = {"y0": y0, "h0": h, "c0": c, **dict(cell.named_parameters())}
    layer = Recurrent(cell)
    check_gradients(lambda: weighted(layer(None, cell.start(y0, (h, c)), steps=4)), leaves)


def jordan(cfg):
    """Return a cell that is fed its output beside its input (Jordan 1986)."""
    settings = {"dtype": cfg.dtype, "rng": cfg.seed, "bias": cfg.bias}
    inner, readout = RNNCell(cfg.D + cfg.H, 3, **settings), Linear(3, cfg.H, **settings)
    return FeedbackCell(inner, readout)


CONFIGS = [
    RNNConfig(jordan, T=1, N=1, D=1, H=1),
    RNNConfig(jordan, T=4, N=3, D=2, H=4, lengths=(4, 2, 0), seed=1),
    RNNConfig(jordan, T=3, N=2, D=2, H=3, layers=2, bidirectional=True, bias=False, seed=2),
]


@pytest.mark.parametrize("name", [name for name, r in RELATIONS.items() if r.kind == "layer"])
def test_the_relations_of_layers_hold(name):
    able = [cfg for cfg in CONFIGS if RELATIONS[name].needs(cfg) is None]
    for cfg in able:
        assert check(name, cfg).verdict.value == "right"
    gates = {"unit_permutation", "reparametrisation", "gate_limits", "closed_form", "sign_symmetry"}
    assert bool(able) == (name not in gates)  # those know the gates of RNN, LSTM and GRU alone


@pytest.mark.parametrize("cfg", CONFIGS)
def test_gradients_beside_an_input(cfg):
    layer = cfg.make()
    check_module(layer, cfg.x(), state=cfg.initial(layer), lengths=cfg.lengths)


# --- what a layer does to its cells --------------------------------------------------------------


def test_a_learned_state_may_be_that_of_the_cell_inside_or_of_the_whole():
    for whole in (False, True):
        cell = build(LSTMCell)
        (cell if whole else cell.cell).learn_state()
        names = {"h0", "c0", "y0"} if whole else {"cell.h0", "cell.c0"}
        learned = {name: p for name, p in cell.named_parameters() if name.endswith("0")}
        assert set(learned) == names
        randomise(cell, seed=4)
        layer = Recurrent(cell)
        assert all(g.any() for g in grad(weighted(layer(None, steps=3)[0]), [*learned.values()]))
        by_vector, _ = layer(None, cell.start(np.ones((1, V))), steps=3)
        got = grad(weighted(by_vector), [*learned.values()])
        assert {k for k, g in zip(learned, got, strict=True) if g.any()} == names - {"y0"}


def test_a_cell_fed_back_twice_learns_a_row_for_each_part():
    inner = FeedbackCell(RNNCell(2 * V, H, dtype="f8", rng=0), Linear(H, V, dtype="f8", rng=1))
    cell = FeedbackCell(inner)  # the state is ((h, y), y)
    cell.learn_state()
    names = [name for name in cell.state_dict() if "." not in name]
    assert names == ["s0_0", "s1_0", "s2_0"]
    randomise(cell, seed=4)
    p = cell.state_dict()
    (h, y), last = cell.first_state(N)
    for name, part in zip(names, (h, y, last), strict=True):
        np.testing.assert_array_equal(part.data, [p[name]] * N)
    loss = weighted(Recurrent(cell)(None, steps=3)[0])
    assert all(g.any() for g in grad(loss, [getattr(cell, name) for name in names]))


def test_recurrent_dropout_is_that_of_the_cell_inside():
    layer = Recurrent(build(LSTMCell), recurrent_dropout=0.5, rng=0)
    p = layer.L0["fwd"].state_dict()
    out, _ = layer(None, steps=1)  # h(0) = 0: nothing to drop
    np.testing.assert_array_equal(out.data, layer.eval()(None, steps=1)[0].data)
    layer.train()
    state = ((np.ones((1, H)), np.zeros((1, H))), np.zeros((1, V)))
    out, _ = layer(None, state, steps=1)
    masks = [np.array(m) * 2.0 for m in np.ndindex((2,) * H)]  # one of all masks there are
    inner = {k.removeprefix("cell."): a for k, a in p.items()}
    every = [lstm_step(inner, np.zeros((1, V)), (m[None], np.zeros((1, H))))[0] for m in masks]
    every = [h @ p["readout.W"] + p["readout.b"] for h in every]
    assert min(np.abs(out.data[0] - y).max() for y in every) < 1e-12


def test_its_steps_may_be_run_again_to_save_memory():
    cell, y0, found = build(LSTMCell), leaf(N, V), []
    for every in (None, 3):
        out, _ = Recurrent(cell, checkpoint_every=every)(None, cell.start(y0), steps=7)
        found.append([out.data, *grad(weighted(out), [y0, *cell.parameters()])])
    np.testing.assert_array_equal(found[0][0], found[1][0])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


# --- names, types, errors ------------------------------------------------------------------------


def test_parameters_values_and_states_have_names():
    cell = build(feed=softmax)
    layer = Recurrent(cell)
    names = ["cell.W_x", "cell.W_h", "cell.b", "readout.W", "readout.b"]
    assert [name for name, _ in layer.named_parameters()] == [f"L0.fwd.{name}" for name in names]
    (h0, fed0) = state = cell.start(np.zeros((1, V)), Tensor(np.zeros((1, H))))
    _, _, trace = layer(None, state, steps=2, trace=True)
    assert sorted(trace) == [f"L0.fwd.{name}" for name in ("a", "fed", "h", "y")]
    assert (fed0.name, h0.name) == ("fed0", "h0")
    assert trace["L0.fwd.y"].shape == (2, 1, V)


def test_sizes_are_what_a_stack_sees():
    cell = build(D=2)
    assert (cell.input_size, cell.hidden_size, build().input_size) == (2, V, 0)
    top = RNNCell(V, 2, dtype="f8", rng=0)
    out, ((h, y), g) = Recurrent([cell, top])(leaf(5, N, 2))
    assert [t.shape for t in (out, y, h, g)] == [(5, N, 2), (N, V), (N, H), (N, 2)]
    assert Readout(Recurrent(build()), 7, rng=0)(None, steps=2)[0].shape == (2, 1, 7)


def test_it_keeps_the_type_of_its_cell():
    cell = FeedbackCell(RNNCell(V, H, rng=0), Linear(H, V, rng=1))
    layer = Recurrent(cell)
    assert layer(None, cell.start(np.ones((1, V))), steps=2)[0].dtype == np.float32
    layer.astype("f8")
    assert cell.dtype == layer(None, cell.start([[1, 2, 3]]), steps=2)[0].dtype == np.float64


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: FeedbackCell(nn.RNN(V, V)),
            TypeError,
            "cell is RNN, expected a Cell: one step, no layer",
        ),
        (
            lambda: FeedbackCell(RNNCell(2, H), Linear(H, V)),
            ShapeError,
            "3 features are fed back, but RNNCell takes input_size=2",
        ),
        (
            lambda: FeedbackCell(RNNCell(V, H), 3),
            TypeError,
            "FeedbackCell: readout is int, expected a layer or a function",
        ),
        (
            lambda: FeedbackCell(RNNCell(V, H), feed="softmax"),
            TypeError,
            "FeedbackCell: feed is str, expected a layer or a function",
        ),
        (
            lambda: FeedbackCell(RNNCell(V, H), Linear(H + 1, V)),
            ShapeError,
            r"x \(1, 4\) does not end in 5",
        ),
        (
            lambda: FeedbackCell(RNNCell(V, H), Linear(H, V), feed=lambda y: y.data.argmax(-1)),
            ShapeError,
            r"feed made \(1,\) of \(1, 3\), expected \(1, features\)",
        ),
        (
            lambda: FeedbackCell(RNNCell(V, H), lambda h: (h, h)),
            ShapeError,
            r"readout made \(\(1, 4\), \(1, 4\)\) of \(1, 4\)",
        ),
        (
            lambda: build().start(np.zeros((N, V + 1))),
            ShapeError,
            r"start: y has shape \(2, 4\), expected \(N, 3\)",
        ),
        (lambda: build().start(np.zeros(V)), ShapeError, r"shape \(3,\), expected \(N, 3\)"),
        (
            lambda: Recurrent(build())(None, np.zeros((N, H)), steps=2),
            StateError,
            r"is \(2, 4\), expected \(\(2, 4\), \(2, 3\)\)",
        ),
        (lambda: Recurrent(build())(np.ones((2, N, V))), ShapeError, "pass x=None and steps=T"),
        (lambda: Recurrent(build())(None), ShapeError, "pass steps=T, 1 or more"),
    ],
)
def test_what_does_not_fit_is_said_in_words(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(("keep", "shape"), [(False, r"\(3,\)"), (True, r"\(1, 3\)")])
def test_a_feed_that_mixes_the_batch_is_named(keep, shape):
    def feed(y):
        return y if len(y) == 1 else ops.sum(y, axis=0, keepdims=keep)

    cell = build(feed=feed)
    words = rf"feed made {shape} of \(2, 3\), expected \(2, features\)"
    with pytest.raises(ShapeError, match=words):
        Recurrent(cell)(None, cell.start(np.zeros((N, V))), steps=2)
