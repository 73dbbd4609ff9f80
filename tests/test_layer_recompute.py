"""``checkpoint_every``: the same outputs and gradients from steps that are run again."""

import gc
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn import Module, Tensor, debug, grad, graph, nn, no_grad, ops, optim, record
from tinygrad_rnn.errors import DtypeError, GraphError, NonFiniteError, ShapeError
from tinygrad_rnn.functional import mse_loss
from tinygrad_rnn.nn import GRU, LSTM, RNN, Cell, GRUCell, LSTMCell, Recurrent, RNNCell
from tinygrad_rnn.testing import check_module
from tinygrad_rnn.testing.strategies import rnn_configs
from tinygrad_rnn.train import fit

from .test_cells import flatten, randomise, weighted
from .test_recurrent import LAYERS, D, H, arrays, assert_close, build, inputs, states

EVERY = (1, 2, 3, 5, 7, "sqrt")  # of 5 steps


def near(found, wanted, limit=1e-12):
    """Compare each array by its largest element: sums are taken in another order."""
    for a, b in zip(found, wanted, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert np.abs(a - b).max(initial=0) <= limit * np.abs(b).max(initial=0)


def agree(plain, layer, x, state=None, **call):
    """Compare outputs to the bit, and every gradient."""
    runs = [run(x, state, **call) for run in (plain, layer)]
    want, got = [list(flatten(run)) for run in runs]
    assert_close(arrays(got), arrays(want), rtol=0, atol=0)
    given = [t for t in [*flatten([x]), *flatten([state])] if isinstance(t, Tensor)]
    expected = grad(weighted(runs[0]), [*given, *plain.parameters()])
    near(grad(weighted(runs[1]), [*given, *layer.parameters()]), expected)
    assert any(g.any() for g in expected)


def recomputed(outputs):
    return [t for t in graph.nodes(list(flatten(outputs))) if t.op and t.op.name == "recompute"]


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_to_the_bit_and_gradients(kind, every):
    for layers, both, lengths in ((1, False, None), (2, True, [2, 0, 5])):
        plain = build(kind, layers, both)
        layer = build(kind, layers, both, checkpoint_every=every)
        agree(plain, layer, inputs(5, 3, D), states(plain, 3), lengths=lengths)
        assert len(recomputed(layer(inputs(5, 3, D)))) == layers * (1 + both)


OPTIONS = [
    {"dropout": 0.5},
    {"recurrent_dropout": 0.5},
    {"zoneout": 0.5},
    {"learn_state": True},
    {"merge": "sum"},
    {"merge": "mul", "learn_state": True, "dropout": 0.3, "recurrent_dropout": 0.3, "zoneout": 0.2},
    {"batch_first": True, "merge": "ave"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_with_every_other_option(options):
    for kind in ("lstm", "gru-before"):
        for every, lengths in ((2, None), ("sqrt", [0, 3])):
            plain, layer = [
                build(kind, 2, True, checkpoint_every=k, **options) for k in (None, every)
            ]
            plain.mask_seed = layer.mask_seed = 3
            shape = (2, 5, D) if options.get("batch_first") else (5, 2, D)
            agree(plain, layer, inputs(*shape), lengths=lengths)
            plain.eval()
            layer.eval()
            agree(plain, layer, inputs(*shape), lengths=lengths)


def test_without_a_mask_seed_the_steps_are_run_again_with_the_same_masks():
    plain, layer = [
        build("lstm", 2, checkpoint_every=k, recurrent_dropout=0.5, zoneout=0.3, dropout=0.2)
        for k in (None, 2)
    ]
    for _ in range(2):  # their generators move alike
        agree(plain, layer, inputs(5, 2, D))


def test_merge_of_none_an_unbatched_input_and_a_list():
    for merge in (None, "concat"):
        plain, layer = [build("gru", 1, True, checkpoint_every=k, merge=merge) for k in (None, 2)]
        agree(plain, layer, inputs(5, D))
        agree(plain, layer, [inputs(2, D), inputs(5, D, seed=4)])


@given(cfg=rnn_configs((RNN, LSTM, GRU, LSTMCell), T=(1, 6), long_T=0.0), k=st.integers(1, 7))
def test_any_configuration(cfg, k):
    plain, layer = cfg.make(), cfg.make()
    layer.checkpoint_every = k
    lengths = None if cfg.lengths is None else list(cfg.lengths)
    runs = [a(cfg.x(), cfg.initial(a), lengths=lengths) for a in (plain, layer)]
    want, got = [list(flatten(run)) for run in runs]
    assert_close(arrays(got), arrays(want), rtol=0, atol=0)
    limit = 1e-12 if cfg.dtype == "float64" else 1e-4
    want = grad(weighted([y.astype(np.float64) for y in want]), list(plain.parameters()))
    got = grad(weighted([y.astype(np.float64) for y in got]), list(layer.parameters()))
    near(got, want, limit)


def test_the_kit_sees_nothing_wrong():
    for kind, every in (("lstm", 2), ("gru", "sqrt"), ("rnn", 1)):
        layer = build(kind, 2, True, checkpoint_every=every, zoneout=0.3, learn_state=True)
        layer.mask_seed = 3
        check_module(layer, inputs(3, 2, D).data, lengths=[3, 1])


def test_lengths_that_leave_whole_segments_out():
    """Behind all ends nothing is run; the reverse direction starts at the longest of them."""
    for T, lengths in ((7, [1, 2]), (7, [0, 1]), (7, [0, 0]), (7, [3, 0]), (1, [0, 0])):
        for every in (1, 2, 3):
            plain, layer = [build("lstm", 2, True, checkpoint_every=k) for k in (None, every)]
            x = inputs(T, 2, D)
            x.data[max(lengths) :] = np.nan
            agree(plain, layer, x, states(plain, 2), lengths=lengths)


def test_complex_numbers():
    for lengths in (None, [1, 2], [5, 0]):
        plain, layer = [build("lstm", 2, True, checkpoint_every=k) for k in (None, 2)]
        x = Tensor(inputs(5, 2, D).data * (1 + 0.5j), requires_grad=True)
        runs = [run(x, lengths=lengths) for run in (plain, layer)]
        assert runs[1][0].dtype == np.complex128
        assert_close(arrays(runs[1]), arrays(runs[0]), rtol=0, atol=0)
        u = np.random.default_rng(0).standard_normal(runs[0][0].shape) * (2 - 1j)
        want = grad(runs[0][0], [x, *plain.parameters()], u)
        near(grad(runs[1][0], [x, *layer.parameters()], u), want)


@pytest.mark.parametrize("every", [1, 2, 5, "sqrt"])
def test_gradients_of_gradients(every):
    for options in ({}, {"learn_state": True, "zoneout": 0.5, "recurrent_dropout": 0.3}):
        found = []
        for k in (None, every):
            layer = build("lstm", 2, True, checkpoint_every=k, **options)
            layer.mask_seed = 3
            x = inputs(5, 2, D)
            leaves = [x, *layer.parameters()]
            first = grad(weighted(layer(x, lengths=[5, 2])), leaves, create_graph=True)
            found.append([*[g.data for g in first], *grad(weighted(first), leaves)])
        near(found[1], found[0])


class Tied(Module):
    """One cell in two layers, and an input that depends on its parameters."""

    def __init__(self, every):
        cell = randomise(LSTMCell(H, H, dtype=np.float64), 2)
        self.layer = Recurrent([cell, cell], checkpoint_every=every)

    def forward(self, x):
        return self.layer(x @ self.layer.L0["fwd"].W_h[:, :H])


def test_what_the_input_depends_on_is_not_counted_twice():
    found = []
    for every in (None, 2, 4):
        model = Tied(every)
        leaves = [inputs(4, 2, H), *model.parameters()]
        first = grad(weighted(model(leaves[0])), leaves)
        again = grad(weighted(model(leaves[0])), leaves, create_graph=True)
        near([g.data for g in again], first)
        found.append([*first, *grad(weighted(again), leaves)])
    near(found[1], found[0])
    near(found[2], found[0])


def test_an_input_without_a_gradient_and_no_input_at_all():
    plain, layer = [build("gru", checkpoint_every=k) for k in (None, 2)]
    x = inputs(5, 2, D).data
    agree(plain, layer, x)
    agree(plain, layer, None if layer.input_size == 0 else x, states(plain, 2))
    plain, layer = [build("lstm", D=0, checkpoint_every=k) for k in (None, 2)]
    agree(plain, layer, None, states(plain, 2), steps=5)
    for create_graph in (False, True):
        found = [
            grad(weighted(a(None, steps=5)), list(a.parameters()), create_graph=create_graph)
            for a in (plain, layer)
        ]
        near(*[[np.asarray(g) for g in gs] for gs in found[::-1]])
    frozen = build("lstm", checkpoint_every=2)
    for p in frozen.parameters():
        p.requires_grad = False
    assert recomputed(frozen(Tensor(x))) == []
    given = inputs(5, 2, D)
    near([grad(weighted(frozen(given)), given)], [grad(weighted(build("lstm")(given)), given)])


def test_a_node_holds_and_computes_what_is_needed():
    """Outputs and the states between; the gradient of x where somebody asks for it."""
    layer = build("lstm", checkpoint_every=2)
    for needed in (True, False):
        (node,) = recomputed(layer(Tensor(inputs(5, 2, D).data, requires_grad=needed)))
        assert node.size == 5 * 2 * H + 3 * (2 * 2 * H)
        given = [t.data for t in node.inputs]
        found = node.op.rule_all(np.ones(node.shape), node.data, *given, **node.attrs)
        assert (found[0] is not None) is needed
        assert all(g.any() for g in found[1:])


def test_a_loss_may_be_differentiated_twice_and_adds_up():
    layer, x = build("lstm", checkpoint_every=2), inputs(5, 2, D)
    loss = weighted(layer(x))
    want = grad(loss, list(layer.parameters()))
    loss.backward()
    loss.backward()
    near([p.grad for p in layer.parameters()], [2 * g for g in want])


def test_where_all_steps_are_wanted_all_are_kept():
    layer, x = build("lstm", checkpoint_every=2), inputs(5, 2, D)
    assert recomputed(layer(x))
    out, _, trace = layer(x, trace=True)
    assert recomputed([out, list(trace.values())]) == []
    assert trace["L0.fwd.f"].shape == (5, 2, H)
    with record():
        assert recomputed(layer(x)) == []
    broken = inputs(5, 2, D)
    broken.data[3, 1, 0] = np.nan
    with debug():
        assert recomputed(layer(x)) == []
        with pytest.raises(NonFiniteError, match="t=4 of 5"):
            layer(broken)
    with no_grad():
        out, _ = layer(np.ones((5, 2, D)))
        assert not out.requires_grad
    plain = build("lstm")
    np.testing.assert_array_equal(out.data, plain(np.ones((5, 2, D)))[0].data)


class Model(Module):
    def __init__(self, every):
        rng = np.random.default_rng(0)
        self.layer = LSTM(1, 4, 2, dropout=0.2, zoneout=0.1, checkpoint_every=every, rng=rng)
        self.readout = nn.Linear(4, 1, rng=rng)

    def forward(self, x):
        return self.readout(self.layer(x)[0][-1])


def test_training_takes_the_same_steps():
    x = np.random.default_rng(0).standard_normal((6, 8, 1)).astype(np.float32)
    losses = []
    for every in (None, 3):
        model = Model(every)
        history = fit(
            model, [(x, x.sum(0))], lambda m, b, s: (mse_loss(m(b[0]), b[1]), s),
            optim.Adam(model.parameters(), lr=0.05), epochs=8, progress=False,
        )  # fmt: skip
        losses.append(history.loss)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert losses[0][-1] < losses[0][0]


# --- what is refused -----------------------------------------------------------------------------


class Drawing(RNNCell):
    """Draws random numbers in its step."""

    def __init__(self):
        super().__init__(D, H, rng=0)
        self.noise = nn.Dropout(0.5, rng=0)

    def step(self, x, h):
        return super().step(self.noise(x), h)


def test_a_step_that_draws_random_numbers():
    layer = Recurrent(Drawing(), checkpoint_every=2)
    with pytest.raises(GraphError) as caught:
        layer(np.ones((5, 2, D)))
    assert "checkpoint_every: Drawing draws random numbers in its steps" in str(caught.value)
    layer.eval()
    layer(np.ones((5, 2, D)))


class Foreign(GRUCell):
    """Reads a Tensor that is no parameter of it."""

    def __init__(self, other):
        super().__init__(D, H, dtype=np.float64, rng=0)
        self.others = (other,)  # no attribute that would make it a parameter

    def step(self, x, h):
        h = super().step(x, h)[0] * self.others[0]
        return h, h


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_step_that_reads_a_foreign_tensor(create_graph):
    gain = Tensor(np.ones(H), requires_grad=True, name="gain")
    layer, x = Recurrent(Foreign(gain), checkpoint_every=2), inputs(5, 2, D)
    loss = weighted(layer(x))
    with pytest.raises(GraphError) as caught:
        grad(loss, x, create_graph=create_graph)
    assert "checkpoint_every: Foreign reads gain (3,), which is no parameter" in str(caught.value)
    made = gain * 2  # nor anything made of it
    with pytest.raises(GraphError, match=r"Foreign reads gain \(3,\)"):
        grad(
            weighted(Recurrent(Foreign(made), checkpoint_every=2)(x)), x, create_graph=create_graph
        )
    constant = Recurrent(Foreign(Tensor(np.ones(H))), checkpoint_every=2)
    assert grad(weighted(constant(x)), x, create_graph=create_graph).shape == x.shape


class Misfit(RNNCell):
    """Multiplies what does not fit in the step in which x is 3."""

    def step(self, x, h):
        h = self.affine(x, h)
        return (h @ x, h) if x.data.flat[0] == 3 else (h, h)


def test_an_error_names_the_step_of_the_sequence():
    for every in (None, 1, 2):
        layer = Recurrent(Misfit(2, 3, rng=0), checkpoint_every=every)
        with pytest.raises(ShapeError, match="step t=4 of 5"):
            layer(np.arange(5.0)[:, None, None] * np.ones((1, 4, 2)))


class Counting(Cell):
    """A state of two types."""

    def initial_state(self, batch):
        return np.zeros((batch, self.hidden_size), self.dtype), np.zeros((batch, 1), np.float64)

    def step(self, x, state):
        _, count = state
        return x, (x, count + 1)


def test_a_state_of_two_types():
    layer = Recurrent(Counting(D, D), checkpoint_every=2)
    with pytest.raises(
        DtypeError, match="Counting must have one floating type, got float32, float64"
    ):
        layer(np.ones((5, 2, D)))


class Widening(Cell):
    """An output of another type than its state."""

    def step(self, x, h):
        return x.astype(np.float64), x


def test_an_output_of_another_type_than_the_state():
    for every in (1, 2):
        layer = Recurrent(Widening(D, D), checkpoint_every=every)
        with pytest.raises(DtypeError, match="Widening must have one floating type, got float64"):
            layer(np.ones((5, 2, D)))


class Wide(Cell):
    """Its output has more axes than its state, which has more than another's."""

    def initial_state(self, batch):
        return np.zeros((batch, 2, self.hidden_size), self.dtype)

    def step(self, x, h):
        h = h * 0.5 + x.reshape(-1, 1, self.hidden_size)
        return ops.concat(h, h * 2, axis=1), h


def test_outputs_and_states_of_any_shape():
    plain, layer = [
        Recurrent([(Wide(D, D, dtype=np.float64),) * 2], checkpoint_every=k) for k in (None, 2)
    ]
    for lengths in (None, [2, 1], [0, 3]):
        agree(plain, layer, inputs(5, 2, D), lengths=lengths)


# --- memory --------------------------------------------------------------------------------------

ROW = 2 * 8 * 4  # bytes of a state (N, H) in float32


def peak(T, every):
    """Return the most memory at a time of forward and backward, beyond what is there before."""
    layer, x = RNN(1, 8, checkpoint_every=every, rng=0), np.ones((T, 2, 1), np.float32)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        out, _ = layer(x)
        (out * out).sum().backward()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.enable()


def test_memory_is_at_most_a_sixth_at_2000_steps():
    assert peak(2000, "sqrt") <= peak(2000, None) / 6


def test_memory_is_that_of_a_segment_and_of_the_states_between():
    step = (peak(400, None) - peak(200, None)) / 200  # what a step keeps
    assert step > 20 * ROW
    grown = peak(400, 200) - peak(400, 20)
    assert 0.5 * 180 * step < grown < 1.5 * 180 * step
    states = peak(400, 1) - peak(200, 1) - (peak(400, 20) - peak(200, 20))
    assert states > 0.9 * 190 * ROW  # 190 more of them are kept
    for k in (20, 40):
        assert peak(600, k) - peak(400, k) < 0.3 * 200 * step


def test_outputs_of_any_rank_are_turned_to_the_batch():
    class Square(Cell):
        def step(self, x, state):
            return state.reshape(-1, 2, 2) * 1.0, state + x

    x = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    plain = Recurrent(Square(4, 4), batch_first=True)(x)[0]
    saved = Recurrent(Square(4, 4), batch_first=True, checkpoint_every=np.int64(2))(x)[0]
    assert plain.shape == (2, 5, 2, 2)
    np.testing.assert_array_equal(saved.data, plain.data)


def test_complex_and_real_parts_of_a_state_meet():
    class Apart(Cell):
        """One part is complex, the other stays real: a complex step along the second part."""

        states = ("h", "c")

        def initial_state(self, batch):
            zero = super().initial_state(batch)
            return zero, zero.copy()

        def step(self, x, state):
            h, c = state
            return h + x, (h + x, c * h)

    x, h, c = inputs(5, 2, 3).data, inputs(2, 3, seed=1).data, inputs(2, 3, seed=2).data
    found = []
    for every in (None, 2):
        layer = Recurrent(Apart(3, 3, dtype=np.float64), checkpoint_every=every)
        h0 = Tensor(h, requires_grad=True)
        out, state = layer(x, (h0, c + 1j))
        found.append([out.data, *arrays(state), grad(out.sum(), h0)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
