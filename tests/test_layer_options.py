"""What layers can be asked for beside PyTorch's arguments: merges, noise, learned states."""

import numpy as np
import pytest

from tinygrad_rnn import graph, ops, record
from tinygrad_rnn.errors import ShapeError, StateError
from tinygrad_rnn.nn import GRU, LSTM, RNN, Cell, GRUCell, LSTMCell, Recurrent, RNNCell
from tinygrad_rnn.nn.recurrent import MERGES
from tinygrad_rnn.testing import check_module

from .test_cells import KINDS, flatten, randomise, sigma
from .test_recurrent import LAYERS, D, H, arrays, assert_close, build, inputs, states

SIDES = ("fwd", "rev")
MERGED = {
    "concat": lambda a, b: np.concatenate([a, b], -1),
    "sum": np.add,
    "mul": np.multiply,
    "ave": lambda a, b: (a + b) / 2,
}


def own(layer, k, side):
    """Return the parameters of one cell, by their own names."""
    start = f"L{k}.{side}."
    return {n[len(start) :]: a for n, a in layer.state_dict().items() if n.startswith(start)}


def one_direction(step, p, x, lengths, reverse, state):
    """Run the equations over x (T, N, D), one sequence at a time; beyond its end there is 0."""
    T, N, _ = x.shape
    width = p["W_h"].shape[0]
    out, finals = np.zeros((T, N, width)), []
    for n in range(N):
        s = tuple([a[n : n + 1] for a in state]) if len(state) > 1 else state[0][n : n + 1]
        for t in range(lengths[n])[:: -1 if reverse else 1]:
            y, s, _ = step(p, x[t, n : n + 1], s)
            out[t, n] = y[0]
        finals.append(s if isinstance(s, tuple) else (s,))
    return out, [np.concatenate(part) for part in zip(*finals, strict=True)]


def equations(kind, layer, x, lengths, merge):
    """Return the output, a pair with merge None, and the final states (L * directions, N, H)."""
    N, parts = x.shape[1], 2 if kind == "lstm" else 1
    finals = []
    for k in range(layer.num_layers):
        sides = []
        for side in SIDES[: layer.num_directions]:
            zero = [np.zeros((N, H))] * parts
            out, final = one_direction(
                LAYERS[kind][2], own(layer, k, side), x, lengths, side == "rev", zero
            )
            sides.append(out)
            finals.append(final)
        x = sides[0] if len(sides) == 1 else MERGED[merge](*sides) if merge else tuple(sides)
    return x, [np.stack(part) for part in zip(*finals, strict=True)]


# --- how two directions are merged ---------------------------------------------------------------


@pytest.mark.parametrize("merge", [*MERGED, None])
@pytest.mark.parametrize("kind", LAYERS)
def test_merges_are_those_of_the_equations(merge, kind):
    for layers, lengths in ((1, None), (1, [2, 4, 0]), (2, None), (2, [3, 0, 1])):
        if merge is None and layers > 1:
            continue
        layer, x = build(kind, layers, True, merge=merge), inputs(4, 3, D)
        out, final = layer(x, lengths=lengths)
        want, finals = equations(kind, layer, x.data, lengths or [4] * 3, merge)
        assert_close(arrays(out), flatten([want]))
        assert_close(arrays(final), finals)
        assert isinstance(out, tuple) is (merge is None)
    assert set(MERGES) == set(MERGED)


@pytest.mark.parametrize("merge", ["sum", "mul", "ave", None])
def test_gradients_of_merges(merge):
    for kind in ("lstm", "gru"):
        layer = build(kind, 1 if merge is None else 2, True, merge=merge)
        check_module(layer, inputs(3, 2, D).data, lengths=[3, 1])


@pytest.mark.parametrize("merge", ["sum", "concat", None])
def test_a_merge_of_any_kind_of_input(merge):
    """Batch first, unbatched, a list of sequences: as the batch that they are."""
    layer, x = build("lstm", 1, True, merge=merge), inputs(4, 2, D)
    turned = build("lstm", 1, True, merge=merge, batch_first=True)
    for lengths in (None, [4, 1]):
        out = list(flatten(layer(x, lengths=lengths)[0]))
        other = list(flatten(turned(x.transpose(1, 0, 2), lengths=lengths)[0]))
        assert len(out) == len(other) == (2 if merge is None else 1)
        assert_close([y.data for y in out], [y.data.transpose(1, 0, 2) for y in other])
    alone = layer(x.data[:, 0])[0]
    assert_close(arrays(alone), [y.data[:, 0] for y in flatten(layer(x)[0])])
    xs = [x.data[:, 0], x.data[:1, 1]]
    several = layer(xs)[0]
    sides = several if merge is None else (several,)
    assert isinstance(several, tuple) is (merge is None)
    for side, whole in zip(sides, out, strict=True):
        assert isinstance(side, list)
        assert_close(arrays(side), [whole.data[:4, 0], whole.data[:1, 1]])


def test_merge_changes_nothing_in_one_direction():
    x = inputs(3, 2, D)
    for merge in (*MERGED, None):
        assert_close([build("gru", 2, merge=merge)(x)[0].data], [build("gru", 2)(x)[0].data])


def test_output_size_is_that_of_the_output():
    for merge in (*MERGED, None):
        for both in (False, True):
            layer = GRU(D, H, bidirectional=both, merge=merge)
            out, _ = layer(np.ones((2, 1, D)))
            assert next(flatten(out)).shape[-1] == layer.output_size
    unequal = Recurrent([(RNNCell(2, 3), RNNCell(2, 4))], merge=None)
    assert unequal.output_size == 3  # that of the first of the pair
    assert LSTM(D, H, 2, bidirectional=True, merge="sum").L1["fwd"].input_size == H
    assert LSTM(D, H, 2, bidirectional=True).L1["fwd"].input_size == 2 * H


def test_layers_each_of_their_own_size_and_kind():
    """Four layers in both directions; the two of one layer differ as well."""
    f8 = {"dtype": np.float64, "rng": 0}
    cells = [
        (RNNCell(2, 3, **f8), GRUCell(2, 1, **f8)),
        (LSTMCell(4, 2, **f8), LSTMCell(4, 2, **f8)),
        (GRUCell(4, 1, reset_after=False, **f8), RNNCell(4, 4, **f8)),
        (LSTMCell(5, 3, **f8), RNNCell(5, 2, **f8)),
    ]
    kinds = {RNNCell: "rnn-tanh", LSTMCell: "lstm"}
    layer, x, lengths = randomise(Recurrent(cells), 1), inputs(3, 2, 2), [3, 2]
    out, final = layer(x, lengths=lengths)
    y, finals = x.data, []
    for k, pair in enumerate(cells):
        sides = []
        for side, cell in zip(SIDES, pair, strict=True):
            kind = kinds.get(type(cell)) or ("gru-after" if cell.reset_after else "gru-before")
            zero = [np.zeros((2, cell.hidden_size))] * (2 if kind == "lstm" else 1)
            done = one_direction(
                KINDS[kind][2], own(layer, k, side), y, lengths, side == "rev", zero
            )
            sides.append(done[0])
            finals += done[1]
        y = np.concatenate(sides, -1)
    assert_close([out.data, *arrays(final)], [y, *finals])
    assert layer.output_size == 5
    check_module(layer, x.data, lengths=lengths)


# --- recurrent dropout ---------------------------------------------------------------------------


def mask_of(layer, x, **call):
    """Return the masks that a call multiplies h with, one for each cell, read in its graph."""
    with record():
        out, final = layer(x, **call)
    masks = {t.order: t for t in graph.nodes([out, *flatten(final)]) if t.name == "recurrent_mask"}
    assert all(t.place is None or t.place.step is None for t in masks.values())  # of all steps
    return [t.data for t in masks.values()], out, final


class Keeping(Cell):
    """h = the h before it, as its products see it: nothing else happens."""

    def step(self, x, h):
        h = self.dropped(h)
        return h, h


def test_the_mask_is_one_for_all_steps_and_its_own_for_each_sample():
    layer = Recurrent(Keeping(0, 50, dtype=np.float64), recurrent_dropout=0.25, rng=0)
    out, _ = layer(None, np.ones((40, 50)), steps=3)
    mask = out.data[0]
    assert set(np.unique(mask)) == {0.0, 1 / 0.75}
    assert_close(out.data, [mask, mask**2, mask**3])
    assert not any(np.array_equal(mask[0], row) for row in mask[1:])
    assert abs(mask.mean() - 1) < 0.05  # its expectation is 1: 2000 units
    assert abs((mask == 0).mean() - 0.25) < 0.05


@pytest.mark.parametrize("kind", LAYERS)
def test_recurrent_dropout_is_in_the_products_alone(kind):
    """z * h' carries h' undropped, and c never is: as Keras has it."""
    layer, x = build(kind, recurrent_dropout=0.5), inputs(4, 3, D)
    layer.mask_seed = 3
    (mask,), out, _ = mask_of(layer, x)
    assert 0 < (mask == 0).mean() < 1
    p, h, c = layer.state_dict(), np.zeros((3, H)), np.zeros((3, H))
    W_x, W_h, b = p["L0.fwd.W_x"], p["L0.fwd.W_h"], p["L0.fwd.b"]
    for t in range(4):
        a, u, s = x.data[t] @ W_x + b, (h * mask) @ W_h, h * mask
        if kind == "rnn":
            h = np.tanh(a + u)
        elif kind == "lstm":
            i, f, g, o = np.split(a + u, 4, -1)
            c = sigma(f) * c + sigma(i) * np.tanh(g)
            h = sigma(o) * np.tanh(c)
        else:
            r, z = np.split(sigma((a + u)[:, : 2 * H]), 2, -1)
            if kind == "gru":
                n = np.tanh(a[:, 2 * H :] + r * (u[:, 2 * H :] + p["L0.fwd.b_hn"]))
            else:
                n = np.tanh(a[:, 2 * H :] + (r * s) @ W_h[:, 2 * H :])
            h = (1 - z) * n + z * h
        assert_close([out.data[t]], [h])
    check_module(layer, x.data, lengths=[4, 0, 2])


NOISY = [
    {"recurrent_dropout": 0.5},
    {"zoneout": 0.5},
    {"dropout": 0.5},
    {"recurrent_dropout": 0.3, "zoneout": 0.2, "dropout": 0.4},
]


@pytest.mark.parametrize("noise", NOISY)
def test_noise_is_fresh_frozen_and_reproducible(noise):
    x = inputs(4, 3, D)
    layer = build("gru", 2, True, **noise)
    first, second = [layer(x)[0].data for _ in range(2)]
    assert (first != second).any()
    assert_close([build("gru", 2, True, **noise)(x)[0].data], [first], rtol=0, atol=0)
    layer.mask_seed = 5
    state = repr(layer.rng.bit_generator.state)
    frozen = [layer(x)[0].data for _ in range(2)]
    np.testing.assert_array_equal(*frozen)
    assert repr(layer.rng.bit_generator.state) == state
    layer.mask_seed = 6
    assert (layer(x)[0].data != frozen[0]).any()
    layer.mask_seed = 0  # a seed like any other
    of_0 = layer(x)[0].data
    np.testing.assert_array_equal(layer(x)[0].data, of_0)
    layer.mask_seed = 1
    assert (layer(x)[0].data != of_0).any()
    layer.mask_seed = None
    assert (layer(x)[0].data != layer(x)[0].data).any()


def test_what_is_dropped_at_one_place_says_nothing_of_another():
    """Of two layers and directions, each mask is its own; and no other noise has its numbers."""
    layer, x = (
        build("gru", 2, True, recurrent_dropout=0.5, dropout=0.5, zoneout=0.5),
        inputs(5, 9, D),
    )
    layer.mask_seed = 1
    with record():
        out, final = layer(x)
    nodes = graph.nodes([out, final])
    drawn = {t.order: t.data.ravel() for t in nodes if t.name == "recurrent_mask"}
    drawn |= {  # the constants of zoneout's where, and of the dropout between the layers
        c.order: c.data.ravel()
        for t in nodes
        if t.op is not None and (t.op.name == "where" or t.op.name == "mul")
        for c in t.inputs
        if c.op is None and c.name is None and len(np.unique(c.data)) == 2
    }
    kept = [a[: 9 * H].astype(bool) for a in drawn.values()]
    assert len(kept) == 4 + 4 * 5 + 5
    for k, a in enumerate(kept):
        for b in kept[:k]:
            assert not np.array_equal(a, b[: len(a)])
            assert not np.array_equal(a, ~b[: len(a)])


@pytest.mark.parametrize("kind", LAYERS)
def test_without_a_rate_no_bit_changes_and_evaluation_drops_nothing(kind):
    x, state = inputs(4, 3, D), states(build(kind, 2), 3)
    want = arrays(build(kind, 2)(x, state, lengths=[4, 2, 3]))
    zero = (0.0, 0.0) if kind == "lstm" else 0.0
    for off in ({"recurrent_dropout": 0.0}, {"zoneout": 0.0}, {"zoneout": zero}):
        got = arrays(build(kind, 2, **off)(x, state, lengths=[4, 2, 3]))
        assert_close(got, want, rtol=0, atol=0)
    layer = build(kind, 2, recurrent_dropout=0.5, dropout=0.5)
    layer.eval()
    before = repr(layer.rng.bit_generator.state)
    assert_close(arrays(layer(x, state, lengths=[4, 2, 3])), want, rtol=0, atol=0)
    assert repr(layer.rng.bit_generator.state) == before


def test_all_of_h_may_be_dropped():
    x = inputs(3, 2, D)
    layer = build("rnn", recurrent_dropout=1.0)
    p = layer.state_dict()
    assert_close([layer(x)[0].data], [np.tanh(x.data @ p["L0.fwd.W_x"] + p["L0.fwd.b"])])


# --- zoneout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, [5, 0, 3]])
def test_zoneout_keeps_some_units_of_the_state_before(lengths):
    layer, x = build("rnn", zoneout=0.4), inputs(5, 3, D)
    h = states(layer, 3)
    out, final, trace = layer(x, h, lengths=lengths, trace=True)
    p, before, kept = layer.state_dict(), h.data[0], []
    for t in range(5):
        new = np.tanh(x.data[t] @ p["L0.fwd.W_x"] + p["L0.fwd.b"] + before @ p["L0.fwd.W_h"])
        for n in range(3):
            if t >= (lengths or [5] * 3)[n]:
                assert not out.data[t, n].any()
                continue
            assert_close([trace["L0.fwd.h"].data[t, n]], [new[n]])
            keeps = out.data[t, n] == before[n]
            kept.append(keeps)
            assert_close([out.data[t, n]], [np.where(keeps, before[n], new[n])])
            before[n] = out.data[t, n]
    assert_close([final.data[0]], [before])
    assert 0.1 < np.mean(kept) < 0.8
    assert len({k.tobytes() for k in kept}) > 3  # drawn anew at each step and for each sample


def test_zoneout_of_1_keeps_the_initial_state():
    for kind in LAYERS:
        layer, x = build(kind, zoneout=1.0), inputs(3, 2, D)
        state = states(layer, 2)
        out, final = layer(x, state)
        assert_close(arrays(final), arrays(state), rtol=0, atol=0)
        assert_close([out.data], [np.stack([next(flatten(state)).data[0]] * 3)], rtol=0, atol=0)
        layer.eval()
        assert_close(arrays(layer(x, state)[1]), arrays(state))


def test_evaluation_takes_the_mean_of_zoneout():
    """With one rate for both parts of the state, and with a rate for each."""
    x = inputs(4, 2, D)
    for rates in ((0.3, 0.3), (0.25, 0.0), (0.0, 0.5), (1.0, 0.5)):
        layer = build("lstm", zoneout=0.3 if rates == (0.3, 0.3) else rates)
        layer.eval()
        p, h, c = own(layer, 0, "fwd"), np.zeros((2, H)), np.zeros((2, H))
        out, final = layer(x)
        for t in range(4):
            _, (h_new, c_new), _ = KINDS["lstm"][2](p, x.data[t], (h, c))
            h, c = [
                r * a + (1 - r) * b for r, a, b in zip(rates, (h, c), (h_new, c_new), strict=True)
            ]
            assert_close([out.data[t]], [h])
        assert_close(arrays(final), [h[None], c[None]])
        check_module(layer, x.data)


def test_what_zoneout_makes_is_called_what_it_is_made_of():
    for training in (True, False):
        layer = Recurrent(LSTMCell(D, H, rng=0), zoneout=0.5)
        layer.train(training)
        _, (h, c) = layer(np.ones((2, 1, D)))
        assert (h.name, c.name) == ("h", "c")


def test_zoneout_of_one_part_leaves_the_other_alone():
    x = inputs(1, 50, D)
    plain, layer = build("lstm"), build("lstm", zoneout=(0.0, 0.5))
    state = states(plain, 50)
    _, (h, c) = plain(x, state)
    _, (h_kept, c_kept) = layer(x, state)
    np.testing.assert_array_equal(h_kept.data, h.data)
    kept = c_kept.data == state[1].data
    np.testing.assert_array_equal(np.where(kept, state[1].data, c.data), c_kept.data)
    assert 0.3 < kept.mean() < 0.7


def test_gradients_through_zoneout_and_recurrent_dropout():
    for kind in ("rnn", "lstm", "gru-before"):
        layer = build(kind, 2, True, zoneout=0.4, recurrent_dropout=0.4, dropout=0.4)
        layer.mask_seed = 3
        check_module(layer, inputs(3, 2, D).data, lengths=[3, 2])


class Pairs(Cell):
    """A state in a state; its output is no part of it."""

    def initial_state(self, batch):
        zero = np.zeros((batch, self.hidden_size), self.dtype)
        return zero, (zero.copy(), np.zeros((batch, 2, 2), self.dtype))

    def step(self, x, state):
        a, (b, c) = state
        return a + b, (a + 1, (b + 1, c + 1))


def test_zoneout_of_a_nested_state_and_of_more_axes():
    layer = Recurrent(Pairs(0, 40), zoneout=0.5, rng=0)
    _, (a, (b, c)) = layer(None, Pairs(0, 40).initial_state(30), steps=2)
    for part in (a, b, c):
        assert set(np.unique(part.data)) == {0, 1, 2}
        assert 0.3 < part.data.mean() / 2 < 0.7
    layer = Recurrent(Pairs(0, 40), zoneout=(0.0, 1.0), rng=0)
    _, (a, (b, c)) = layer(None, steps=2)
    assert (a.data == 2).all()
    assert not b.data.any()
    assert not c.data.any()


# --- bad input -----------------------------------------------------------------------------------


BAD = [
    ({"merge": "avg"}, ValueError, "'avg' is not one of 'concat', 'sum', 'mul', 'ave' or None"),
    ({"merge": 3}, ValueError, "merge=3 is not one of"),
    ({"merge": ["sum"]}, ValueError, "is not one of"),
    ({"merge": None, "num_layers": 2, "bidirectional": True}, ValueError,
     "it goes with one layer, not with 2"),
    ({"recurrent_dropout": 1.5}, ValueError, "recurrent_dropout=1.5 is not in [0, 1]"),
    ({"recurrent_dropout": -0.1}, ValueError, "recurrent_dropout=-0.1 is not in [0, 1]"),
    ({"recurrent_dropout": True}, ValueError, "recurrent_dropout=True is not in [0, 1]"),
    ({"recurrent_dropout": (0.1, 0.2)}, ValueError, "dropout=(0.1, 0.2) is not in [0, 1]"),
    ({"zoneout": float("nan")}, ValueError, "zoneout=nan is not in [0, 1]"),
    ({"zoneout": (0.5, 2)}, ValueError, "zoneout=(0.5, 2) is not in [0, 1]"),
    ({"zoneout": "much"}, ValueError, "zoneout='much' is not in [0, 1]"),
    ({"dropout": 1.01}, ValueError, "dropout=1.01 is not in [0, 1]"),
    *[
        ({"checkpoint_every": k}, ValueError, f"checkpoint_every={k!r} must be a number of steps")
        for k in (0, -1, 1.5, True, "x")
    ],
    ({"recurrent_droput": 0.1}, TypeError, "no argument 'recurrent_droput'; by keyword: merge, "),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "error", "text"), BAD)
def test_what_makes_no_layer_is_named(settings, error, text):
    for cls in (RNN, LSTM, GRU):
        with pytest.raises(error) as caught:
            cls(D, H, **settings)
        assert str(caught.value).startswith(f"{cls.__name__}: ")
        assert text in str(caught.value)


def test_directions_of_two_sizes_do_not_add_up():
    for merge in ("sum", "mul", "ave"):
        with pytest.raises(
            ShapeError, match=rf"merge='{merge}' needs directions of one size; layer 1"
        ):
            Recurrent([(RNNCell(2, 3), RNNCell(2, 3)), (RNNCell(3, 2), RNNCell(3, 4))], merge=merge)


def test_a_rate_for_each_part_of_the_state():
    x = np.ones((2, 1, D))
    for layer, rates in ((LSTM, (0.1,)), (LSTM, (0.1, 0.1, 0.1)), (GRU, (0.1, 0.1)), (RNN, (0.1,))):
        with pytest.raises(StateError, match="must have one rate for each part of the state"):
            layer(D, H, zoneout=rates)(x)


class Own(Cell):
    """Multiplies its state itself, past the mask."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.add_weights(rng=0)

    def step(self, x, h):
        h = ops.tanh(x @ self.W_x + h @ self.W_h)
        return h, h


def test_recurrent_dropout_that_would_do_nothing():
    layer = Recurrent(Own(D, H), recurrent_dropout=0.5)
    with pytest.raises(StateError, match=r"write self\.dropped\(h\) @ self\.W_h"):
        layer(np.ones((2, 1, D)))
    layer.eval()
    layer(np.ones((2, 1, D)))


class Failing(RNNCell):
    """Fails at its third step."""

    def step(self, x, h):
        if x.data.flat[0] == 2:
            raise ValueError("no step today")
        return super().step(x, h)


def test_a_step_that_fails_leaves_no_mask_behind():
    layer = Recurrent(Failing(1, H, rng=0), recurrent_dropout=1.0)
    x = np.arange(4.0).reshape(4, 1, 1)
    with pytest.raises(ValueError, match="no step today"):
        layer(x)
    cell = RNNCell(D, H, rng=0)
    state = np.ones((1, H))
    want = np.tanh(np.ones((1, D)) @ cell.W_x.data + state @ cell.W_h.data)
    np.testing.assert_allclose(cell(np.ones((1, D)), state)[0].data, want, rtol=1e-5)


@pytest.mark.parametrize("seed", ["a", -1, 1.5, np.random.default_rng(0)])
def test_a_seed_of_the_masks_is_a_whole_number(seed):
    layer = RNN(D, H, recurrent_dropout=0.5, rng=0)
    layer.mask_seed = seed
    with pytest.raises(ValueError, match=r"mask_seed=.* must be None or a whole number, 0 or more"):
        layer(np.ones((2, 1, D)))
