"""Layers over time: against equations, against themselves run otherwise, and against PyTorch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn import Tensor, grad, mark
from tinygrad_rnn.nn import GRU, LSTM, RNN, Cell, GRUCell, LSTMCell, Recurrent, RNNCell
from tinygrad_rnn.nn.noise import Noise

from .test_cells import KINDS, check_gradients, flatten, randomise, weighted

LAYERS = {  # name: (class, its settings, the cell's equations)
    "rnn": (RNN, {}, KINDS["rnn-tanh"][2]),
    "lstm": (LSTM, {}, KINDS["lstm"][2]),
    "gru": (GRU, {}, KINDS["gru-after"][2]),
    "gru-before": (GRU, {"reset_after": False}, KINDS["gru-before"][2]),
}
kinds = pytest.mark.parametrize("kind", LAYERS)
shapes = pytest.mark.parametrize(
    ("layers", "bidirectional"), [(1, False), (3, False), (1, True), (2, True)]
)
D, H = 2, 3


def build(kind, layers=1, bidirectional=False, **settings):
    cls, own, _ = LAYERS[kind]
    settings = {"dtype": np.float64, "rng": 0} | own | settings
    size = settings.pop("D", D)
    return randomise(
        cls(size, H, layers, bidirectional=bidirectional, **settings), seed=3, scale=0.7
    )


def inputs(*shape, seed=1):
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def states(layer, N=None, seed=2):
    """Return a random initial state as leaves, as RNN, LSTM and GRU take it; N=None: no batch."""
    rows = layer.num_layers * layer.num_directions
    shape = (rows, H) if N is None else (rows, N, H)
    if isinstance(layer, LSTM):
        return inputs(*shape, seed=seed), inputs(*shape, seed=seed + 1)
    return inputs(*shape, seed=seed)


def leaves_of(layer, **more):
    found = dict(layer.named_parameters())
    for name, value in more.items():
        found |= {f"{name}{k}": t for k, t in enumerate(flatten(value))}
    return found


def arrays(nest):
    return [t.data for t in flatten(nest)]


def assert_close(a, b, rtol=1e-12, atol=1e-14):
    a, b = list(a), list(b)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def equations(kind, layer, x, state, lengths):
    """Return outputs (T, N, H), finals and traces by plain loops, one sequence at a time."""
    step, (T, N, _) = LAYERS[kind][2], x.shape
    trace, finals, y = {}, [], x
    for k in range(layer.num_layers):
        sides = []
        for side, cell in getattr(layer, f"L{k}").items():
            p, out, last = cell.state_dict(), np.zeros((T, N, H)), []
            for n in range(N):
                row = len(finals)
                pick = tuple([s[row, n : n + 1] for s in state])
                s = pick if len(pick) > 1 else pick[0]
                order = range(lengths[n])
                for t in reversed(order) if side == "rev" else order:
                    out[t, n], s, marks = step(p, y[t, n : n + 1], s)
                    for name, value in marks.items():
                        trace.setdefault(f"L{k}.{side}.{name}", np.zeros((T, N, H)))[t, n] = value
                last.append(s)
            several = isinstance(last[0], tuple)
            parts = zip(*last, strict=True) if several else [last]
            finals.append([np.concatenate(part) for part in parts])
            sides.append(out)
        y = np.concatenate(sides, axis=-1)
    return y, [np.stack(part) for part in zip(*finals, strict=True)], trace


# --- the equations -------------------------------------------------------------------------------


@kinds
@shapes
@pytest.mark.parametrize("lengths", [None, [2, 4, 0, 3]])
def test_values_states_and_traces_are_those_of_the_equations(kind, layers, bidirectional, lengths):
    layer, x = build(kind, layers, bidirectional), inputs(4, 4, D)
    state = states(layer, 4)
    out, final, trace = layer(x, state, lengths=lengths, trace=True)
    want, finals, traced = equations(kind, layer, x.data, arrays(state), lengths or [4] * 4)
    assert_close([out.data], [want])
    assert_close(arrays(final), finals)
    assert list(trace) == list(traced)
    assert_close([v.data for v in trace.values()], traced.values())


@kinds
@pytest.mark.parametrize("lengths", [None, [2, 0, 3]])
def test_gradients_are_those_of_a_complex_step_at_every_step(kind, lengths):
    layer, x = build(kind, 2, True), inputs(3, 3, D)
    state = states(layer, 3)

    def loss():
        out, final, trace = layer(x, state, lengths=lengths, trace=True)
        return weighted([out, final, list(trace.values())])

    check_gradients(loss, leaves_of(layer, x=x, state=state), H)


@kinds
def test_a_far_gradient_is_not_lost_beside_near_ones(kind):
    layer, x = build(kind), inputs(40, 1, D)
    check_gradients(lambda: weighted(layer(x)[0][-1]), leaves_of(layer, x=x), H)


@pytest.mark.parametrize("activation", ["relu", "identity", lambda a: a * a * 0.1])
def test_the_activation_of_an_rnn_may_be_chosen(activation):
    layer, x = build("rnn", 2, activation=activation), inputs(3, 2, D)
    check_gradients(lambda: weighted(layer(x)), leaves_of(layer, x=x), H)
    f = {"relu": lambda a: np.maximum(a, 0), "identity": lambda a: a}.get(activation, activation)
    p = layer.state_dict()
    h1 = f(x.data[0] @ p["L0.fwd.W_x"] + p["L0.fwd.b"])
    h2 = f(h1 @ p["L1.fwd.W_x"] + p["L1.fwd.b"])
    assert_close([layer(x)[0].data[0]], [h2])


# --- ragged batches ------------------------------------------------------------------------------


def one_by_one(layer, x, state, lengths):
    """Return outputs and finals of each sequence run by itself; where a length is 0, its state."""
    outs, finals = [], []
    for n, length in enumerate(lengths):
        own = [s[:, n] for s in flatten(state)]
        own = tuple(own) if len(own) > 1 else own[0]
        if length:
            out, own = layer(x[:length, n], own)
            outs.append(out)
        finals.append(own)
    return outs, finals


@kinds
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (1, True), (2, True)])
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), extra=st.integers(0, 1))
def test_a_ragged_batch_is_its_sequences_run_one_by_one(
    kind, layers, bidirectional, lengths, extra
):
    T, N = max(*lengths, 1) + extra, len(lengths)
    layer, x = build(kind, layers, bidirectional), inputs(T, N, D)
    for n, length in enumerate(lengths):
        x.data[length:, n] = np.nan  # no value of the padding matters
    state = states(layer, N)
    out, final = layer(x, state, lengths=lengths)
    outs, finals = one_by_one(layer, x, state, lengths)
    valid = [n for n in range(N) if lengths[n]]
    assert_close([out.data[: lengths[n], n] for n in valid], arrays(outs))
    for n, length in enumerate(lengths):
        assert not out.data[length:, n].any()
        assert_close([s.data[:, n] for s in flatten(final)], arrays(finals[n]))

    rng = np.random.default_rng(5)
    w = rng.standard_normal(out.shape)
    ws = [rng.standard_normal(s.shape) for s in flatten(final)]
    whole = (out * w).sum() + sum((s * v).sum() for s, v in zip(flatten(final), ws, strict=True))
    parts = Tensor(0.0)
    for n, y in zip(valid, outs, strict=True):
        parts = parts + (y * w[: lengths[n], n]).sum()
    for n in range(N):
        for s, v in zip(flatten(finals[n]), ws, strict=True):
            parts = parts + (s * v[:, n]).sum()
    leaves = list(leaves_of(layer, x=x, state=state).values())
    assert_close(grad(whole, leaves), grad(parts, leaves), rtol=1e-10, atol=1e-13)


@kinds
def test_nan_in_the_padding_reaches_no_gradient(kind):
    layer, x = build(kind, 2, True), inputs(4, 2, D)
    x.data[2:, 1] = np.nan
    out, final, trace = layer(x, lengths=[4, 2], trace=True)
    loss = weighted([out, final, list(trace.values())])
    gradients = grad(loss, [*layer.parameters(), x])
    assert all(np.isfinite(g).all() for g in gradients)
    assert not gradients[-1][2:, 1].any()
    assert gradients[-1][:2, 1].all()


@kinds
def test_full_lengths_change_no_bit(kind):
    layer, x = build(kind, 2, True), inputs(4, 3, D)
    plain, full = layer(x), layer(x, lengths=[4, 4, 4])
    assert all((a == b).all() for a, b in zip(arrays(plain), arrays(full), strict=True))


def test_a_batch_of_empty_sequences_keeps_its_initial_state():
    layer, x = build("lstm", 2), inputs(3, 2, D)
    state = states(layer, 2)
    out, final = layer(x, state, lengths=[0, 0])
    assert out.shape == (3, 2, H)
    assert not out.data.any()
    assert_close(arrays(final), arrays(state), rtol=0, atol=0)


# --- other forms of input ------------------------------------------------------------------------


@kinds
def test_batch_first_swaps_input_and_output_but_no_state(kind):
    one, two = build(kind, 2, True), build(kind, 2, True, batch_first=True)
    x = inputs(4, 3, D)
    out, final = one(x, states(one, 3), lengths=[2, 4, 1])
    flipped, same = two(x.transpose(1, 0, 2), states(two, 3), lengths=[2, 4, 1])
    assert_close([flipped.data.transpose(1, 0, 2), *arrays(same)], [out.data, *arrays(final)])


@kinds
@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_is_a_batch_of_one_without_its_axis(kind, batch_first):
    layer = build(kind, 2, True, batch_first=batch_first)
    x = inputs(2, D)  # as many steps as layers: nothing may take one for the other
    state = states(layer)
    out, final, trace = layer(x, state, trace=True)
    assert out.shape == (2, 2 * H)
    assert trace["L1.rev.h"].shape == (2, H)
    batched = build(kind, 2, True)
    wide = [s.reshape(4, 1, H) for s in flatten(state)]
    want, ends = batched(x.reshape(2, 1, D), tuple(wide) if len(wide) > 1 else wide[0])
    assert_close([out.data, *arrays(final)], [want.data[:, 0], *[e[:, 0] for e in arrays(ends)]])
    check_gradients(lambda: weighted(layer(x, state)), leaves_of(layer, x=x, state=state))


@kinds
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_list_of_sequences_gives_a_list(kind, batch_first):
    layer = build(kind, 2, True, batch_first=batch_first)
    xs = [inputs(3, D), inputs(1, D, seed=2), inputs(0, D), inputs(4, D, seed=4)]
    state = states(layer, 4)
    out, final = layer(xs, state)
    assert [y.shape for y in out] == [(3, 2 * H), (1, 2 * H), (0, 2 * H), (4, 2 * H)]
    padded = np.full((4, 4, D), np.nan)
    for n, s in enumerate(xs):
        padded[: len(s), n] = s.data
    want, ends = build(kind, 2, True)(padded, state, lengths=[3, 1, 0, 4])
    assert_close(arrays(final), arrays(ends))
    for n, y in enumerate(out):
        np.testing.assert_array_equal(y.data, want.data[: len(y), n])
    check_gradients(lambda: weighted(layer(xs, state)), leaves_of(layer, x=xs, state=state))
    plain, _ = layer([s.data for s in xs], state)
    assert_close(arrays(plain), arrays(out), rtol=0, atol=0)


def test_nested_lists_of_numbers_and_integers_are_read_as_arrays():
    layer = RNN(1, 2, rng=0)
    nested = [[[1], [2]], [[3], [4]], [[5], [6]]]
    want, _ = layer(np.array(nested, np.float32))
    for x in (nested, np.array(nested), tuple(nested), Tensor(np.array(nested))):
        out, h = layer(x)
        assert (out.dtype, h.dtype) == (np.float32, np.float32)
        np.testing.assert_array_equal(out.data, want.data)
    out, _ = layer([[1.0], [2.0]])  # (T, D)
    assert out.shape == (2, 2)


@kinds
@shapes
def test_without_input_a_layer_runs_on_its_state(kind, layers, bidirectional):
    layer = build(kind, layers, bidirectional, D=0)
    state = states(layer, 2)
    out, _ = layer(None, state, steps=4)
    assert out.shape == (4, 2, H * (1 + bidirectional))
    check_gradients(lambda: weighted(layer(None, state, steps=4)), leaves_of(layer, state=state), H)
    alone = states(layer)
    assert layer(None, alone, steps=4)[0].shape == (4, H * (1 + bidirectional))
    assert layer(steps=4, x=None)[0].shape == (4, 1, H * (1 + bidirectional))


def test_a_state_may_be_a_list_or_plain_numbers_of_any_float_type():
    layer, x = LSTM(D, H, rng=0), np.ones((2, 1, D))
    h, c = np.full((1, 1, H), 0.5), np.full((1, 1, H), 0.25)
    want = layer(x, (Tensor(h.astype(np.float32)), Tensor(c.astype(np.float32))))[0].data
    for state in ((h, c), [h, c], (h.tolist(), c.tolist())):
        np.testing.assert_array_equal(layer(x, state)[0].data, want)
    cell = Recurrent(RNNCell(D, H, rng=0))
    np.testing.assert_array_equal(cell(x, [[0.5] * H])[0].data, cell(x, h[0])[0].data)


# --- structures of states ------------------------------------------------------------------------


def shape_of(nest):
    return tuple([shape_of(s) for s in nest]) if isinstance(nest, tuple) else nest.shape


def test_states_have_the_structure_of_the_design():
    x = np.ones((4, 2, D))

    def cell(cls, size=D):
        return cls(size, H, rng=0)

    def run(layer):
        return shape_of(layer(x)[1])

    hc = ((2, H), (2, H))
    assert run(Recurrent(cell(GRUCell))) == (2, H)
    assert run(Recurrent([cell(LSTMCell)])) == hc
    assert run(Recurrent([cell(RNNCell), cell(LSTMCell, H)])) == ((2, H), hc)
    pairs = [(cell(LSTMCell), cell(RNNCell)), (cell(GRUCell, 2 * H), cell(LSTMCell, 2 * H))]
    assert run(Recurrent(pairs)) == (hc, (2, H), (2, H), hc)  # layer by layer, forward first
    assert run(RNN(D, H)) == (1, 2, H)
    assert run(GRU(D, H, 3)) == (3, 2, H)
    assert run(LSTM(D, H, 2, bidirectional=True)) == ((4, 2, H), (4, 2, H))
    assert shape_of(Recurrent(pairs)(x[:, 0])[1]) == (((H,), (H,)), (H,), (H,), ((H,), (H,)))


def test_returned_states_may_be_passed_again_in_a_mixed_stack():
    pairs = [
        (LSTMCell(D, H, rng=0, dtype="f8"), RNNCell(D, 2, rng=1, dtype="f8")),
        (GRUCell(H + 2, 4, rng=2, dtype="f8"), LSTMCell(H + 2, 1, rng=3, dtype="f8")),
    ]
    layer, x = Recurrent(pairs), inputs(3, 2, D)
    out, state = layer(x)
    assert out.shape == (3, 2, 5)
    leaves = [Tensor(s.data, requires_grad=True) for s in flatten(state)]
    again = ((leaves[0], leaves[1]), leaves[2], leaves[3], (leaves[4], leaves[5]))
    check_gradients(lambda: weighted(layer(x, again)), leaves_of(layer, x=x, state=leaves))


class Leaky(Cell):
    """A user's cell: a moving average of the input, and a count of steps."""

    def __init__(self, size):
        super().__init__(size, size, dtype=np.float64)
        self.add_weights(rng=0)

    def initial_state(self, batch):
        return np.zeros((batch, self.hidden_size)), np.ones((batch, 2, 2))

    def step(self, x, state):
        m, count = state
        m = 0.5 * m + self.affine(x, m * count[:, :1, 0])
        mark(m=m)
        return m * 2, (m, count + 1)


def test_a_cell_of_ten_lines_runs_in_both_directions_over_ragged_batches():
    layer, x = Recurrent([(Leaky(3), Leaky(3))]), inputs(4, 3, 3)
    randomise(layer, seed=3, scale=0.3)
    x.data[3:, 1] = x.data[1:, 2] = np.nan
    lengths = [4, 3, 1]

    def run():
        return layer(x, lengths=lengths, trace=True)

    out, (forward, reverse), trace = run()
    assert list(trace) == ["L0.fwd.m", "L0.rev.m"]
    np.testing.assert_array_equal(forward[1].data[:, 0, 0], [5, 4, 2])  # each counted its own steps
    np.testing.assert_array_equal(reverse[1].data[:, 0, 0], [5, 4, 2])
    for n, length in enumerate(lengths):
        alone, ends = layer(x[:length, n])
        assert_close([out.data[:length, n]], [alone.data])
        assert_close([s.data[n] for s in flatten((forward, reverse))], arrays(ends))
    np.testing.assert_array_equal(trace["L0.fwd.m"].data * 2, out.data[..., :3])
    x.data = np.nan_to_num(x.data)
    check_gradients(lambda: weighted(list(flatten(run()[:2]))), leaves_of(layer, x=x))


# --- relations between runs ----------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("layers", [1, 2])
def test_two_chunks_with_the_state_carried_are_one_run(kind, layers):
    layer, x = build(kind, layers), inputs(7, 2, D)
    out, final = layer(x)
    first, carried = layer(x[:3])
    second, end = layer(x[3:], carried)
    chunks = np.concatenate([first.data, second.data])
    assert_close([out.data, *arrays(final)], [chunks, *arrays(end)], rtol=1e-14)
    w = np.random.default_rng(0).standard_normal(out.shape)
    whole = (out * w).sum()
    parts = (first * w[:3]).sum() + (second * w[3:]).sum()
    leaves = [*layer.parameters(), x]
    assert_close(grad(whole, leaves), grad(parts, leaves), rtol=1e-12)


@kinds
@pytest.mark.parametrize("t", [0, 2, 4])
def test_a_forward_layer_is_causal_and_a_reverse_one_anticausal(kind, t):
    x = inputs(5, 1, D)
    g = grad(weighted(build(kind, 2)(x)[0][t]), x)
    assert not g[t + 1 :].any()
    assert (np.abs(g[: t + 1]).sum((1, 2)) > 0).all()
    reverse = build(kind, 1, True)(x)[0][t, :, H:]
    g = grad(weighted(reverse), x)
    assert not g[:t].any()
    assert (np.abs(g[t:]).sum((1, 2)) > 0).all()


@kinds
@given(order=st.permutations(range(4)))
def test_permuting_the_batch_permutes_outputs_states_and_gradients(kind, order):
    layer, lengths = build(kind, 2, True), np.array([3, 1, 0, 2])
    x, state = inputs(3, 4, D), states(build(kind, 2, True), 4)
    order = list(order)
    moved = Tensor(x.data[:, order], requires_grad=True)
    parts = [Tensor(s.data[:, order]) for s in flatten(state)]
    out, final = layer(x, state, lengths=lengths)
    out2, final2 = layer(
        moved, tuple(parts) if len(parts) > 1 else parts[0], lengths=lengths[order]
    )
    assert_close([out2.data, *arrays(final2)], [a[:, order] for a in [out.data, *arrays(final)]])
    w = np.random.default_rng(0).standard_normal(out.shape)
    g, g2 = grad((out * w).sum(), x), grad((out2 * w[:, order]).sum(), moved)
    assert_close([g2], [g[:, order]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_its_cell_called_step_after_step_bit_for_bit(kind):
    cls, settings, _ = KINDS[kind]
    cell = randomise(cls(D, H, dtype=np.float64, rng=0, **settings), seed=1)
    layer, x = Recurrent(cell), inputs(5, 2, D)
    out, final = layer(x)
    state, ys = None, []
    for t in range(5):
        y, state = cell(x[t], state)
        ys.append(y)
    np.testing.assert_array_equal(out.data, np.stack([y.data for y in ys]))
    for a, b in zip(flatten(final), flatten(state), strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    w = np.random.default_rng(0).standard_normal(out.shape)
    leaves = [*cell.parameters(), x]
    steps = sum(((y * v).sum() for y, v in zip(ys, w, strict=True)), Tensor(0.0))
    assert_close(grad((out * w).sum(), leaves), grad(steps, leaves), rtol=1e-13)


# --- dropout between layers ----------------------------------------------------------------------


def test_dropout_acts_between_layers_only_and_in_training_only():
    x = inputs(6, 4, D)
    plain, dropped = build("lstm", 2), build("lstm", 2, dropout=0.5)
    out, _, trace = plain(x, trace=True)
    dropped.eval()
    np.testing.assert_array_equal(dropped(x)[0].data, out.data)
    dropped.train()
    out2, _, trace2 = dropped(x, trace=True)
    np.testing.assert_array_equal(trace2["L0.fwd.h"].data, trace["L0.fwd.h"].data)
    assert (out2.data != out.data).all()
    assert out2.data.all()  # nothing is zeroed after the last layer
    single = build("lstm", 1, dropout=0.9)
    np.testing.assert_array_equal(single(x)[0].data, build("lstm", 1)(x)[0].data)


def test_dropout_multiplies_the_output_below_by_a_mask_of_its_own():
    x, p = inputs(6, 4, D), 0.25
    layer = build("rnn", 2, True, dropout=p)
    layer.mask_seed = 8
    out, _, trace = layer(x, trace=True)
    kept = Noise(8, 0.0, 0.0).stream(0).random((6, 4, 2 * H)) >= p
    below = np.concatenate([trace["L0.fwd.h"].data, trace["L0.rev.h"].data], -1) * kept / (1 - p)
    cells = [getattr(layer, "L1")[side] for side in ("fwd", "rev")]  # noqa: B009
    want, _ = Recurrent([tuple(cells)])(below)
    assert_close([out.data], [want.data])
    assert 0 < kept.mean() < 1


def test_dropout_is_reproducible_by_rng_and_fresh_at_every_call():
    x = np.ones((3, 2, D))
    one, two = [RNN(D, H, 2, dropout=0.5, rng=4) for _ in range(2)]
    first = one(x)[0].data
    np.testing.assert_array_equal(first, two(x)[0].data)
    assert (one(x)[0].data != first).any()


def test_dropout_of_0_changes_no_bit_and_of_1_silences_the_layer_below():
    x = inputs(4, 2, D)
    np.testing.assert_array_equal(
        build("gru", 2, dropout=0.0)(x)[0].data, build("gru", 2)(x)[0].data
    )
    silent = build("gru", 2, dropout=1.0)
    alone = build("gru", 2)
    above = Recurrent(alone.L1["fwd"])(np.zeros((4, 2, H)))[0]
    np.testing.assert_array_equal(silent(x)[0].data, above.data)
