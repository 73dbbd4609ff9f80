"""Truncated BPTT against its definition, and the flow of gradients against derivatives by hand."""

import copy
import gc
import weakref

import numpy as np
import pytest

from tinygrad_rnn import Module, Tensor, bptt, grad, nn, no_grad, ops, optim
from tinygrad_rnn.errors import GraphError, ShapeError, StateError
from tinygrad_rnn.functional import cross_entropy, unbind
from tinygrad_rnn.train import evaluate, fit

from .test_cells import randomise

T, N, D, H, V = 11, 2, 3, 4, 5
rng = np.random.default_rng(4)
X, Y = rng.standard_normal((T, N, D)), rng.integers(V, size=(T, N))


def net(kind=nn.RNN, seed=1, **settings):
    layer = kind(D, H, dtype=np.float64, rng=0, **settings)
    return randomise(nn.Readout(layer, V, rng=0), seed=seed, scale=0.7)


def summed(model, batch, state):
    x, y = batch
    o, state = model(x, state)
    return cross_entropy(o, y), state


def mean(model, batch, state):
    value, state = summed(model, batch, state)
    return value / batch[1].size, state


def total(model, values):
    """Return the sum of the gradients of some losses, as one vector."""
    return sum(np.concatenate([g.ravel() for g in grad(v, model.parameters())]) for v in values)


# --- truncated -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM])
@pytest.mark.parametrize("k1", [1, 3, 4, 11, 20])
def test_back_over_all_steps_is_the_full_gradient(kind, k1):
    model = net(kind)
    full = total(model, [summed(model, (X, Y), None)[0]])
    chunks = bptt.truncated(model, summed, k1, max(k1, T)).chunks((X, Y))
    np.testing.assert_allclose(total(model, [v for v, _ in chunks]), full, rtol=1e-11, atol=1e-13)
    if k1 < T:
        short = total(model, [v for v, _ in bptt.truncated(model, summed, k1).chunks((X, Y))])
        assert np.linalg.norm(short - full) > 1e-3 * np.linalg.norm(full)


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (1, 4), (2, 3), (3, 3), (3, 5), (3, 8), (4, 10)])
def test_each_chunk_reaches_back_k2_steps_from_its_end(k1, k2):
    model, start = net(nn.LSTM), rng.standard_normal((2, 1, N, H))
    states = [tuple(start)]
    with no_grad():
        for t in range(T):
            states.append(model(X[t : t + 1], states[-1])[1])
    chunks = bptt.truncated(model, mean, k1, k2).chunks((X, Y), tuple(start))
    for a, (value, state) in zip(range(0, T, k1), chunks, strict=True):
        b = min(a + k1, T)
        s = max(0, b - k2)
        o, _ = model(X[s:b], states[s])
        want = cross_entropy(o[a - s :], Y[a:b], reduction="mean")
        np.testing.assert_allclose(value.data, want.data, rtol=1e-12)
        np.testing.assert_allclose(total(model, [value]), total(model, [want]), rtol=1e-9)
        for got, expected in zip(state, states[b], strict=True):
            np.testing.assert_allclose(got.data, expected.data, rtol=1e-12)
            assert got.op is None


def test_whole_chunks_are_cut_without_another_pass_where_k1_is_k2():
    seen = []

    def spy(model, batch, state):
        seen.append(len(batch[0]))
        return summed(model, batch, state)

    assert len(list(bptt.truncated(net(), spy, 4, 4).chunks((X[:8], Y[:8])))) == 2
    assert seen == [4, 4]
    assert len(list(bptt.truncated(net(), spy, 4, 4).chunks((X, Y)))) == 3
    assert seen[2:] == [4, 4, 3, 1, 3]  # to step 7, and from there back over 4 steps, not 3


def test_the_graph_of_a_chunk_is_freed_before_the_next_is_made():
    alive, most = [], []

    def spy(model, batch, state):
        most.append(sum(ref() is not None for ref in alive))
        value, state = summed(model, batch, state)
        alive.append(weakref.ref(value))
        return value, state

    model = net()
    gc.disable()
    try:
        sgd = optim.SGD(model.parameters(), lr=0.1)
        fit(model, [(X, Y)] * 2, bptt.truncated(model, spy, 2, 2), sgd, epochs=1)
    finally:
        gc.enable()
    assert most == [0] * 16


def loop(k1, k2, epochs, batches, kind=nn.LSTM):
    """Train by hand; return the parameters and the losses."""
    model, losses = net(kind), []
    adam = optim.Adam(model.parameters(), lr=0.02)
    for _ in range(epochs):
        state = None
        for batch in batches:
            cut = bptt.truncated(model, mean, k1, k2)
            for value, after in cut.chunks(batch, state):  # noqa: B007  it is the next state
                model.zero_grad()
                value.backward()
                adam.step()
                losses.append(value.item())
            state = after
    return model.state_dict(), losses


BATCHES = [(X[:7], Y[:7]), (X[7:], Y[7:]), (X[::-1], Y[::-1])]


class Training:
    """A training with chunks: 4 + 2 + 6 steps in an epoch."""

    def __init__(self, k1=2, k2=5):
        self.model = net(nn.LSTM)
        self.loss = bptt.truncated(self.model, mean, k1, k2)
        self.adam = optim.Adam(self.model.parameters(), lr=0.02)

    def fit(self, **settings):
        return fit(self.model, BATCHES, self.loss, self.adam, epochs=2, **settings)


@pytest.mark.parametrize(("k1", "k2"), [(2, 5), (3, 3)])
def test_fit_takes_one_step_for_each_chunk_as_a_loop_by_hand(k1, k2):
    training = Training(k1, k2)
    history = training.fit(validation=BATCHES[:2])
    parameters, losses = loop(k1, k2, 2, BATCHES)
    assert history.loss == losses
    assert history.step == list(range(1, len(losses) + 1))
    assert history.epoch == [1] * (len(losses) // 2) + [2] * (len(losses) // 2)
    assert all((training.model.state_dict()[k] == a).all() for k, a in parameters.items())


@pytest.mark.parametrize("step", [1, 3, 4, 6, 7, 15])
def test_a_run_that_is_stopped_ends_with_its_batch_and_continues_bit_by_bit(tmp_path, step):
    path, whole = tmp_path / "run.npz", Training()
    history = whole.fit()
    first = Training().fit(checkpoint=path, callbacks=[lambda s: s.step == step])
    ends = [4, 6, 12, 16, 18, 24]
    assert len(first.step) == min(end for end in ends if end >= step)
    again = Training()
    assert again.fit(checkpoint=path, resume=True) == history
    for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert (a.data == b.data).all()


def test_a_checkpoint_that_is_due_within_a_batch_is_written_at_its_end(tmp_path):
    def die(step):
        if step.step == 12:
            raise ZeroDivisionError

    path = tmp_path / "run.npz"
    with pytest.raises(ZeroDivisionError):
        Training().fit(checkpoint=path, checkpoint_every=5, callbacks=[die])
    assert Training().fit(checkpoint=path, resume=True, callbacks=[lambda s: True]).step[-1] == 12
    assert Training().fit() == Training().fit(checkpoint=path, resume=True)


def test_evaluate_is_the_mean_over_all_steps_and_needs_no_windows():
    model = net(nn.LSTM)
    for k1, k2 in ((2, 5), (3, 3)):
        value = evaluate(model, BATCHES, bptt.truncated(model, mean, k1, k2))
        assert value == evaluate(model, BATCHES, mean)
    with no_grad():
        chunks = [v.item() for v, _ in bptt.truncated(model, mean, 3).chunks((X, Y))]
    weighted = np.average(chunks, weights=[3, 3, 3, 2])
    np.testing.assert_allclose(evaluate(model, [(X, Y)], bptt.truncated(model, mean, 3)), weighted)


def test_reset_returns_samples_to_the_initial_state():
    model = net(nn.LSTM)
    state = tuple(Tensor(a) for a in rng.standard_normal((2, 1, N, H)))

    def run(mask, state=state):
        cut = bptt.truncated(model, mean, 2, 3, reset=lambda batch: np.array(mask))
        chunks = [(v.item(), [s.data for s in after]) for v, after in cut.chunks((X, Y), state)]
        with no_grad():
            whole = cut(model, (X, Y), state)[0].item()
        return chunks, whole

    kept, new, mixed = run([False] * N), run([True] * N), run([True, False])
    plain = list(bptt.truncated(model, mean, 2, 3).chunks((X, Y), state))
    assert [v for v, _ in kept[0]] == [v.item() for v, _ in plain]
    assert [v for v, _ in new[0]] == [v for v, _ in run([False] * N, None)[0]]
    for k in range(len(plain)):
        for a, b, c in zip(mixed[0][k][1], new[0][k][1], kept[0][k][1], strict=True):
            np.testing.assert_array_equal(a[:, 0], b[:, 0])
            np.testing.assert_array_equal(a[:, 1], c[:, 1])
    assert len({kept[1], new[1], mixed[1]}) == 3


def test_reset_sees_the_batch_and_zeroes_states_of_any_rank():
    seen = []

    def count(model, batch, state):
        seen.append([None if s is None else np.array(s) for s in state])
        return Tensor(batch).sum(), state

    mask = np.array([True, False])
    state = (np.ones((2, 3)), Tensor(np.ones(2)), None)
    cut = bptt.truncated(Module(), count, 1, reset=lambda batch: batch[0] > 0)
    next(cut.chunks(np.array([[1.0, 0.0]]), state))
    rows, single, none = seen[0]
    assert rows.tolist() == [[0.0] * 3, [1.0] * 3]
    assert single.tolist() == (~mask).tolist()
    assert none is None


def test_reset_of_all_samples_is_the_initial_state_of_the_model_also_a_learned_one():
    model = net(learn_state=True)
    model.layer.L0["fwd"].h0.data[:] = 0.5
    state, masks = np.zeros((1, N, H)), [np.array([True, True]), np.array([True, False])]
    cut = bptt.truncated(model, mean, 2, reset=lambda batch: masks.pop(0))
    value, _ = next(cut.chunks((X, Y), state))
    assert value.item() == mean(model, (X[:2], Y[:2]), None)[0].item()
    with pytest.raises(ValueError, match=r"some samples to 0, but layer.L0.fwd learns its initial"):
        next(cut.chunks((X, Y), state))


class FromOnes(nn.RNNCell):
    def initial_state(self, batch):
        return super().initial_state(batch) + 1


class Pairs(nn.Cell):
    """A state (N, 2, H)."""

    def initial_state(self, batch):
        return np.zeros((batch, 2, self.hidden_size), self.dtype)

    def step(self, x, state):
        return state[:, 0], state + ops.stack(x, x, axis=1)


def test_a_cell_that_does_not_begin_at_0_is_reset_with_the_whole_batch():
    model = nn.Readout(nn.Recurrent(FromOnes(D, H, dtype=np.float64, rng=0)), V, rng=0)
    state, masks = np.zeros((N, H)), [[True, True], [False, False], [True, False]]
    cut = bptt.truncated(model, mean, T, reset=lambda batch: np.array(masks.pop(0)))
    for start in (None, state):
        value, _ = next(cut.chunks((X, Y), state))
        assert value.item() == mean(model, (X, Y), start)[0].item()
    with pytest.raises(ValueError, match=r"0, but layer.L0.fwd does not begin at 0: reset all"):
        next(cut.chunks((X, Y), state))


@pytest.mark.parametrize(
    ("layer", "axis"), [(nn.Recurrent(Pairs(D, D)), 0), (nn.RNN(D, D, num_layers=2), 1)]
)
def test_a_reset_finds_the_samples_among_axes_of_one_size(layer, axis):
    state, seen = np.ones((2, 2, D)), []

    def look(model, batch, state):
        seen.append(state)
        return Tensor(batch).sum(), state

    def run(model, mask):
        cut = bptt.truncated(model, look, T, reset=lambda batch: np.array(mask))
        return next(cut.chunks(X, state))

    run(layer, [True, False])
    want = state.copy()
    np.moveaxis(want, axis, 0)[0] = 0
    np.testing.assert_array_equal(seen[0], want)
    run(Module(), [True, True])
    run(Module(), [False, False])
    assert seen[1] is None
    np.testing.assert_array_equal(seen[2], state)
    state = np.ones((3, 2, D) if axis else (2, 3, D))  # three masks fit the other axis
    with pytest.raises(ShapeError, match=r"shape \(3,\), but the state \(\d, \d, 3\)"):
        run(layer, [True, False, True])
    state = np.ones((2, 2, D))
    with pytest.raises(ShapeError, match=r"axis of the state \(2, 2, 3\) counts the N=2 samples"):
        run(Module(), [True, False])


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        ([1, 0], r"int64 \(2,\): expected booleans \(N,\)"),
        ([[True, False]], r"bool \(1, 2\): expected"),
        ([True, False, True], r"shape \(3,\), but the state \(1, 2, 4\).*N=3"),
        ([True, True, True], r"shape \(3,\), but the state \(1, 2, 4\).*N=3"),
        ([], r"expected|shape \(0,\)"),
    ],
)
def test_a_reset_that_does_not_fit_is_an_error(mask, match):
    cut = bptt.truncated(net(), mean, 2, reset=lambda batch: np.array(mask))
    with pytest.raises(ShapeError, match=match):
        next(cut.chunks((X, Y), np.zeros((1, N, H))))


@pytest.mark.parametrize(
    ("k1", "k2", "match"),
    [
        (5, 3, "k1=5 is more than k2=3"),
        (0, 3, "k1=0: expected a whole number"),
        (2, -1, "k2=-1"),
        (1.5, 3, "k1=1.5"),
        (2, "3", "k2='3'"),
        (True, 3, "k1=True"),
    ],
)
def test_steps_that_make_no_sense_are_refused(k1, k2, match):
    with pytest.raises(ValueError, match=match):
        bptt.truncated(net(), mean, k1, k2)
    with pytest.raises(ValueError, match=match):
        bptt.gradient_error(net(), mean, (X, Y), k1, k2)


@pytest.mark.parametrize(
    ("batch", "error", "match"),
    [
        ((X, Y[:-1]), ShapeError, r"\(11, 2, 3\), \(10, 2\): expected the same T"),
        ((X[:0], Y[:0]), ShapeError, "1 or more"),
        ((), ShapeError, "expected the same T"),
        ((X, np.array(3)), ShapeError, "same T"),
        ((X, Y.tolist()), TypeError, "entry 1 of the batch is a list"),
        ("abc", TypeError, "entry 0 of the batch is a str"),
    ],
)
def test_a_batch_that_is_not_time_major_is_refused(batch, error, match):
    cut = bptt.truncated(net(), mean, 2, 3)
    with pytest.raises(error, match=match):
        next(cut.chunks(batch))
    with pytest.raises(error, match=match), no_grad():
        cut(cut.model, batch, None)
    with pytest.raises(error, match=match):
        bptt.gradient_error(cut.model, mean, batch, 2, 3)


def test_what_a_loss_yields_is_checked():
    def run(*pairs):
        model = nn.Linear(1, 1)
        value = model(np.ones((1, 1))).sum()
        loss = lambda *_: iter([(value, p) if p == "pair" else p for p in pairs])  # noqa: E731
        fit(model, [1], loss, optim.SGD(model.parameters(), lr=0.1), epochs=1)

    with pytest.raises(ValueError, match=r"yielded no .loss, state. in epoch 1"):
        run()
    with pytest.raises(TypeError, match=r"must return .loss, state., got float"):
        run(3.0)
    with pytest.raises(StateError, match="tuple of these, got str"):
        run("pair")
    with pytest.raises(TypeError, match=r"must return .loss, state., got generator"):
        evaluate(Module(), [1], lambda *_: (p for p in ()))


def test_a_loss_that_is_made_for_another_model_is_refused():
    cut = bptt.truncated(net(), mean, 2, 5)
    with pytest.raises(ValueError, match=r"k2=5\) was made for another model than the Readout it"):
        cut(net(), (X, Y))
    with pytest.raises(ValueError, match="made for another model than the Module"), no_grad():
        cut(Module(), (X, Y))


def test_what_is_no_plain_loss_and_no_reset_is_refused():
    model = net()
    cut = bptt.truncated(model, mean, 2)
    for measure in (bptt.truncated, lambda *args: bptt.gradient_error(*args[:2], (X, Y), 2)):
        with pytest.raises(TypeError, match=r"pass the plain loss\(model, batch, state\)"):
            measure(model, cut, 2)
        with pytest.raises(TypeError, match=r"truncated: loss=3 is not callable"):
            measure(model, 3, 2)
    with pytest.raises(TypeError, match=r"truncated: reset=True is not callable"):
        bptt.truncated(model, mean, 2, reset=True)


def test_truncated_shows_what_it_is():
    assert repr(bptt.truncated(net(), mean, 2, 5)) == "truncated(Readout, k1=2, k2=5)"


# --- gradient_error ------------------------------------------------------------------------------


def test_the_error_is_that_of_the_summed_chunk_gradients():
    model = net(nn.GRU)
    model.linear.b.requires_grad = False
    start = rng.standard_normal((1, N, H))
    error = bptt.gradient_error(model, mean, (X, Y), 2, 3, start)
    sizes, state, values = [2, 2, 2, 2, 2, 1], start, []
    for a, n in zip(range(0, T, 2), sizes, strict=True):
        value, state = mean(model, (X[a : a + n], Y[a : a + n]), state)
        values.append(value)
    short = [v for v, _ in bptt.truncated(model, mean, 2, 3).chunks((X, Y), start)]
    everything = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            g, f = (sum(grad(v, p) for v in part) for part in (short, values))
            everything.append((g.ravel(), f.ravel()))
            size = np.linalg.norm(g) * np.linalg.norm(f)
            want = np.linalg.norm(g - f) / np.linalg.norm(f)
            assert error.relative[name] == pytest.approx(want, rel=1e-9)
            assert error.cosine[name] == pytest.approx((g * f).sum() / size, rel=1e-9)
    assert list(error.relative) == [n for n, _ in model.named_parameters() if n != "linear.b"]
    g, f = (np.concatenate(side) for side in zip(*everything, strict=True))
    assert error.total_relative == pytest.approx(np.linalg.norm(g - f) / np.linalg.norm(f))
    assert 0.01 < error.total_relative < 1 > error.total_cosine > 0.5
    assert (error.k1, error.k2, error.T) == (2, 3, T)


def test_back_over_all_steps_there_is_no_error_whatever_drops_out():
    model = net(num_layers=2, dropout=0.5)
    model.parameters()[0].grad = np.ones((D, H))
    model.linear.eval()
    with no_grad():
        errors = [bptt.gradient_error(model, mean, (X, Y), 2, k2) for k2 in (2, 3, 5, T)]
    assert errors[-1].total_relative < 1e-13
    assert errors[-1].total_cosine == pytest.approx(1)
    assert errors[0].total_relative > errors[1].total_relative > errors[2].total_relative > 1e-6
    assert (model.training, model.layer.training, model.linear.training) == (True, True, False)
    assert [p.grad is None for p in model.parameters()] == [False] + [True] * 7
    assert (model.parameters()[0].grad == 1).all()


def test_gradients_that_are_zero():
    class Two(Module):
        def __init__(self):
            self.layer = net()
            self.idle = nn.Linear(2, 2, dtype=np.float64)

    def idle(model, batch, state):
        return mean(model.layer, batch, state)

    def late(model, batch, state):  # only the last step counts, and only through its state
        h = batch * model.idle.W[0, 0] if state is None else state
        return (h * (0 if state is None else 1)).sum(), h

    error = bptt.gradient_error(Two(), idle, (X, Y), 2)
    assert (error.relative["idle.W"], error.cosine["idle.W"]) == (0.0, 1.0)
    error = bptt.gradient_error(Two(), late, np.ones((2, 1)), 1)
    assert (error.relative["idle.W"], error.cosine["idle.W"]) == (1.0, 0.0)
    assert repr(error).splitlines()[0] == "GradientError of k1=1, k2=1 at T=2"


def test_a_model_that_is_frozen_has_no_gradients_to_compare():
    model = net()
    for p in model.parameters():
        p.requires_grad = False
    with pytest.raises(ValueError, match="gradient_error: no parameter of Readout requires"):
        bptt.gradient_error(model, mean, (X, Y), 2)


# --- report: the terms of the weights ------------------------------------------------------------

LENGTHS = [5, 2, 0]
LAYERS = {
    "rnn": (nn.RNN, {}),
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "gru as published": (nn.GRU, {"reset_after": False}),
    "stacked, both directions": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "without bias, batch first": (nn.GRU, {"bias": False, "batch_first": True}),
}


def made(name):
    kind, settings = LAYERS[name]
    return randomise(kind(D, H, dtype=np.float64, rng=0, **settings), seed=3, scale=0.7)


def weighted(out):
    w = np.random.default_rng(7).standard_normal(out.shape)
    return (out * out * w).sum()


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_terms_sum_to_the_gradient(name, ragged):
    layer = made(name)
    x = rng.standard_normal((5, 3, D)).transpose(1, 0, 2) if layer.batch_first else X[:5, [0, 1, 0]]
    out, _ = layer(x, lengths=LENGTHS if ragged else None)
    loss = weighted(out)
    found = bptt.report(loss, layer, transfer=False)
    loss.backward()
    assert list(found.terms) == [name for name, _ in layer.named_parameters()]
    for name, p in layer.named_parameters():
        assert found.terms[name].shape == (5, *p.shape)
        np.testing.assert_allclose(found.terms[name].sum(0), p.grad, rtol=1e-11, atol=1e-13)
    assert np.isnan(found.transfer).all()


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "gru as published"])
def test_each_term_is_the_gradient_of_a_copy_of_the_weight_for_its_step(name):
    layer = made(name)
    found = bptt.report(weighted(layer(X)[0]), layer, transfer=False)
    copies = [copy.deepcopy(layer.L0["fwd"]) for _ in range(T)]
    state, outputs = None, []
    for x, cell in zip(X, copies, strict=True):
        y, state = cell(x, state)
        outputs.append(y)
    loss = weighted(ops.stack(*outputs))
    for part, p in copies[0].named_parameters():
        untied = grad(loss, [dict(cell.named_parameters())[part] for cell in copies])
        np.testing.assert_allclose(found.terms[f"L0.fwd.{part}"], untied, rtol=1e-9, atol=1e-13)
        assert p.shape == untied[0].shape


@pytest.mark.parametrize("name", ["rnn", "stacked, both directions"])
def test_a_learned_initial_state_and_noise_leave_the_terms_right(name):
    kind, settings = LAYERS[name]
    layer = kind(D, H, dtype=np.float64, rng=0, learn_state=True, zoneout=0.3, **settings)
    layer.recurrent_dropout = 0.3
    loss = weighted(randomise(layer, seed=3, scale=0.7)(X)[0])
    terms = bptt.report(loss, layer, transfer=False).terms
    loss.backward()
    steps = {name: p.grad for name, p in layer.named_parameters() if "0" not in name.split(".")[-1]}
    assert list(terms) == list(steps)  # h0 and c0 are read before the first step
    for name, g in steps.items():
        np.testing.assert_allclose(terms[name].sum(0), g, rtol=1e-10, atol=1e-13)


def test_frozen_weights_and_steps_beyond_the_loss_have_no_terms():
    layer = made("rnn")
    cell = layer.L0["fwd"]
    cell.b.requires_grad = False
    found = bptt.report((layer(X)[0][6] ** 2).sum() + (cell.W_h**2).sum(), layer)
    assert list(found.terms) == ["L0.fwd.W_x", "L0.fwd.W_h"]
    assert (np.abs(found.terms["L0.fwd.W_x"]).max((1, 2)) > 0).tolist() == [True] * 7 + [False] * 4
    want = grad((layer(X)[0][6] ** 2).sum(), cell.W_h)  # no step reads a penalty
    np.testing.assert_allclose(found.terms["L0.fwd.W_h"].sum(0), want, rtol=1e-12)
    assert bptt.report(weighted(layer(X)[0]), layer, terms=False, transfer=False).terms == {}


# --- report: states ------------------------------------------------------------------------------


def nudged(layer, x, lengths=None):
    """Return a loss of a stack that runs by hand, and the leaves added to each h(t)."""
    leaves, below = [], [Tensor(s) for s in x]
    steps, batch = x.shape[:2]
    lengths = np.full(batch, steps) if lengths is None else np.array(lengths)
    for k in range(layer.num_layers):
        sides = []
        for direction, cell in getattr(layer, f"L{k}").items():
            e = [Tensor(np.zeros((batch, H)), requires_grad=True) for _ in range(steps)]
            state, side = Tensor(cell.initial_state(batch)), [None] * steps
            for t in range(steps)[:: -1 if direction == "rev" else 1]:
                inside = (t < lengths)[:, None]
                h = cell.step(below[t], state)[0] + e[t]
                side[t], state = ops.where(inside, h, 0.0), ops.where(inside, h, state)
            leaves.append(e)
            sides.append(side)
        below = [ops.concat(*parts, axis=-1) for parts in zip(*sides, strict=True)]
    return weighted(ops.stack(*below)), leaves


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
def test_h_norm_is_the_total_derivative_by_a_nudge_of_each_state(kind, lengths):
    layer = kind(D, H, 2, bidirectional=True, dtype=np.float64, rng=0)
    layer, x = randomise(layer, seed=3, scale=0.7), X[:5, [0, 1, 0]]
    found = bptt.report(weighted(layer(x, lengths=lengths)[0]), nn.Sequential(layer, np.tanh))
    loss, leaves = nudged(layer, x, lengths)
    want = [[np.linalg.norm(grad(loss, e), axis=1).mean() for e in row] for row in leaves]
    np.testing.assert_allclose(found.h_norm, want, rtol=1e-10)
    assert found.rows == ("L0.fwd", "L0.rev", "L1.fwd", "L1.rev")
    assert np.isnan([found.c_norm, found.c_from_c, found.c_from_h]).all()


def lstm_by_hand(cell, x, at=None, on=None, index=None, step=0.0):
    """Return the loss, gates and states of an LSTM in NumPy; one h(t) or c(t) is nudged."""
    W_x, W_h, b = (p.data for p in (cell.W_x, cell.W_h, cell.b))
    h = c = np.zeros((x.shape[1], H), complex)
    seen, out = [], []
    for t, row in enumerate(x):
        a = np.split(row @ W_x + h @ W_h + b, 4, axis=1)
        i, f, o = (1 / (1 + np.exp(-a[k])) for k in (0, 1, 3))
        c = f * c + i * np.tanh(a[2])
        if (at, on) == (t, "c"):
            c[index] += step
        h = o * np.tanh(c)
        if (at, on) == (t, "h"):
            h[index] += step
        seen.append({"f": f, "o": o, "c": c})
        out.append(h)
    w = np.random.default_rng(7).standard_normal((len(x), x.shape[1], H))
    return (np.array(out) ** 2 * w).sum(), seen


def test_what_flows_through_an_lstm_by_complex_steps():
    layer, x = made("lstm"), X[:4]
    cell, eps = layer.L0["fwd"], 1e-30
    found = bptt.report(weighted(layer(x)[0]), layer)
    slopes = {
        on: np.array(
            [
                [[lstm_by_hand(cell, x, t, on, (n, j), 1j * eps)[0].imag / eps for j in range(H)]
                 for n in range(N)]
                for t in range(4)
            ]
        )
        for on in "hc"
    }  # fmt: skip
    _, seen = lstm_by_hand(cell, x)
    dh, dc = slopes["h"], slopes["c"]
    along = np.zeros_like(dc)
    along[:-1] = [seen[t + 1]["f"].real * dc[t + 1] for t in range(3)]
    through = np.array(
        [s["o"].real * (1 - np.tanh(s["c"].real) ** 2) * g for s, g in zip(seen, dh, strict=True)]
    )
    np.testing.assert_allclose(along + through, dc, rtol=1e-9)
    for got, want in [
        (found.h_norm, dh),
        (found.c_norm, dc),
        (found.c_from_c, along),
        (found.c_from_h, through),
    ]:
        np.testing.assert_allclose(got, [np.linalg.norm(want, axis=2).mean(1)], rtol=1e-9)


def test_the_conveyor_goes_on_where_the_loss_reads_no_output():
    layer = made("lstm")
    _, (_, c) = layer(X[:3], lengths=[3, 2])
    found = bptt.report(c.sum(), layer)
    assert found.h_norm[0, 2] == found.c_from_h[0, 2] == 0  # h(3) reaches nothing
    assert found.c_norm[0, 2] == found.c_from_c[0, 2] == np.sqrt(H) / 2  # of one of the two
    assert (found.c_from_h[0, :2] > 0).all()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("lengths", [None, [5, 3]])
def test_transfer_is_the_spectral_norm_of_a_product_of_jacobians(lengths, layers):
    layer = randomise(nn.RNN(D, H, layers, dtype=np.float64, rng=0), seed=3, scale=0.7)
    x, W = X[:5], getattr(layer, f"L{layers - 1}")["fwd"].W_h.data
    h = layer(x)[0].data
    found = bptt.report(weighted(layer(x, lengths=lengths)[0]), layer)
    want = np.zeros((5, N))
    for n, last in enumerate(lengths or [5, 5]):
        J = np.eye(H)  # rows: of h(T)
        for t in reversed(range(last)):
            want[t, n] = np.linalg.norm(J, 2)
            J = J @ np.diag(1 - h[t, n] ** 2) @ W.T
    np.testing.assert_allclose(found.transfer, want.mean(1), rtol=1e-11)


def test_transfer_ends_at_the_last_step_that_reaches_the_loss():
    layer = made("stacked, both directions")
    found = bptt.report((layer(X)[0][6, :, :H] ** 2).sum(), layer)
    assert found.transfer[6] == 1
    assert (found.transfer[:6] > 0).all()
    assert (found.transfer[7:] == 0).all()


@pytest.mark.parametrize("frozen", ["L0", "rev", "fwd"])
def test_states_that_were_not_recorded_are_nan(frozen):
    layers = 2 if frozen == "L0" else 1
    layer = nn.LSTM(D, H, layers, bidirectional=True, dtype=np.float64, rng=0)
    for name, p in layer.named_parameters():
        p.requires_grad = frozen not in name
    loss = weighted(layer(X)[0])
    found = bptt.report(loss, layer)
    missing = np.array([frozen in row for row in found.rows])
    assert 0 < missing.sum() < len(missing)
    for norms in (found.h_norm, found.c_norm, found.c_from_c, found.c_from_h):
        assert np.isnan(norms[missing]).all()
        assert np.isfinite(norms[~missing]).all()
    assert np.isnan(found.transfer).all() == (frozen == "fwd")
    assert "nan" in str(found)
    x = Tensor(X, requires_grad=True)  # now they are recorded
    seen = bptt.report(weighted(layer(x)[0]), layer)
    assert (seen.h_norm > 0).all()
    np.testing.assert_allclose(seen.h_norm[~missing], found.h_norm[~missing], rtol=1e-6)


def test_a_row_that_the_loss_does_not_read_is_0():
    layer = nn.RNN(D, H, bidirectional=True, rng=0)
    found = bptt.report(layer(X)[0][:, :, :H].sum(), layer)
    assert (found.h_norm[0] > 0).all()
    assert (found.h_norm[1] == 0).all()


def test_one_step_of_one_sequence():
    for x in (X[:1, :1], X[:1, 0]):
        layer = made("lstm")
        found = bptt.report((layer(x)[0] * 2).sum(), layer)
        assert found.h_norm.tolist() == [[4.0]]  # |(2, 2, 2, 2)|
        assert (found.c_from_c.tolist(), found.transfer.tolist()) == ([[0.0]], [1.0])
        assert repr(found) == "Report(L0.fwd, T=1, N=1)"


def test_norms_do_not_underflow():
    layer = nn.RNN(1, 2, dtype=np.float32, rng=0)
    found = bptt.report((layer(np.ones((2, 1, 1)))[0][1] * 1e-30).sum(), layer)
    np.testing.assert_allclose(found.h_norm[0, 1], np.sqrt(2) * 1e-30, rtol=1e-6)
    layer.astype(np.float64)
    found = bptt.report((layer(np.ones((2, 1, 1)))[0][1] * 1e-300).sum(), layer)
    np.testing.assert_allclose(found.h_norm[0, 1], np.sqrt(2) * 1e-300, rtol=1e-12)


def test_cells_of_ones_own():
    class Leak(nn.Cell):
        """Keeps half; has no weights and marks nothing."""

        def step(self, x, h):
            h = h * 0.5 + x
            return h, h

    class Gain(nn.Cell):
        """Reads its weight by parts, one of them twice."""

        def __init__(self):
            super().__init__(2, 2, dtype=np.float64)
            self.W = nn.RNNCell(2, 4, dtype=np.float64, rng=0).W_x

        def step(self, x, h):
            left, right = unbind(self.W.reshape(2, 2, 2).transpose(1, 0, 2))
            h = ops.tanh(x @ left + h @ right + (self.W * self.W).sum())
            return h, h

    x = Tensor(np.ones((3, 1, 2)), requires_grad=True)
    layer = nn.Recurrent(Leak(2, 2, dtype=np.float64))
    found = bptt.report(layer(x)[0][2].sum(), layer)
    np.testing.assert_allclose(found.h_norm, [np.sqrt(2) * np.array([0.25, 0.5, 1])], rtol=1e-14)
    assert found.transfer.tolist() == [0.25, 0.5, 1]
    assert found.terms == {}
    layer = nn.Recurrent(Gain())
    loss = layer(x)[0].sum()
    want = grad(loss, layer.L0["fwd"].W)
    np.testing.assert_allclose(bptt.report(loss, layer).terms["L0.fwd.W"].sum(0), want, rtol=1e-12)


def test_a_table_of_12_steps_is_printed():
    layer = made("lstm")
    lines = str(bptt.report(weighted(layer(X)[0]), layer, transfer=False)).splitlines()
    assert lines[0].split() == ["L0.fwd"] * 2
    assert lines[1].split() == ["t", "|dE/dh|", "|dE/dc|"]
    assert len(lines) == 2 + T
    out, _ = layer(np.ones((300, 1, D)))
    found = bptt.report(out[-1].sum(), layer, transfer=False, terms=False)
    lines = [line.split() for line in str(found).splitlines()[2:]]
    assert len(lines) == 12
    assert [int(lines[0][0]), int(lines[-1][0])] == [1, 300]
    for t, h, c in lines:
        assert (float(h), float(c)) == pytest.approx(
            (found.h_norm[0, int(t) - 1], found.c_norm[0, int(t) - 1]), rel=1e-3
        )


def test_what_cannot_be_reported_is_said():
    layer, other = made("rnn"), made("lstm")
    out, _ = layer(X)
    with pytest.raises(GraphError, match="no scalar"):
        bptt.report(out, layer)
    with pytest.raises(GraphError, match="has no step of LSTM"):
        bptt.report(out.sum(), other)
    with no_grad(), pytest.raises(GraphError, match="no step of RNN"):
        bptt.report(layer(X)[0].sum(), layer)
    short = nn.RNN(D, H, dtype=np.float64, rng=0, checkpoint_every=2)
    with pytest.raises(GraphError, match=r"no step of RNN.*\(no checkpoint_every\)"):
        bptt.report(short(X)[0].sum(), short)
    with pytest.raises(GraphError, match=r"no step of RNN.*lengths that are not all 0"):
        bptt.report(layer(X, lengths=[0] * N)[0].sum(), layer)
    with pytest.raises(TypeError, match="report: loss is a float: expected a scalar Tensor"):
        bptt.report(3.0, layer)
    with pytest.raises(GraphError, match="2 calls of RNN"):
        bptt.report((layer(X)[0] + out).sum(), layer)
    with pytest.raises(TypeError, match="layer is a Tensor"):
        bptt.report(out.sum(), out)
    with pytest.raises(ValueError, match=r"contains 2 recurrent layers \(layers.0, layers.1\)"):
        bptt.report(out.sum(), nn.Sequential(layer, other))
    with pytest.raises(ValueError, match=r"Linear contains 0 recurrent layers \(none\)"):
        bptt.report(out.sum(), nn.Linear(2, 2))
