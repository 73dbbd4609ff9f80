"""Checks of cells and layers: gradients and relations by the kit, then the equations."""

import importlib
import inspect
import itertools
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

from tests import test_cells, test_recurrent
from tests.test_cells import flatten
from tinygrad_rnn import Tensor, debug, grad, graph, mark, nn, no_grad, ops, record
from tinygrad_rnn.errors import DtypeError, ShapeError, StateError
from tinygrad_rnn.nn import recurrent
from tinygrad_rnn.scope import identify
from tinygrad_rnn.testing.checks import check_module
from tinygrad_rnn.testing.configs import RNNConfig
from tinygrad_rnn.testing.integrity import check_vjp
from tinygrad_rnn.testing.relations import RELATIONS
from tinygrad_rnn.testing.strategies import gru_reset_before, rnn_identity, rnn_relu

settings.register_profile(
    "mutation", max_examples=4, derandomize=True, database=None, deadline=None,
    phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
)  # fmt: skip
settings.load_profile("mutation")

LAYERS = (nn.RNN, nn.LSTM, nn.GRU)
VARIANTS = (
    nn.PeepholeLSTMCell, nn.CoupledLSTMCell, nn.LayerNormLSTMCell, nn.IRNNCell, nn.MGUCell,
    nn.LSTMVariant,
)  # fmt: skip
BARE = (nn.RNNCell, nn.LSTMCell, nn.GRUCell, rnn_relu, rnn_identity, gru_reset_before)


def configs(kinds, few=False):
    """Yield configurations for each kind of cell or layer, the telling ones first."""
    several = (
        {"lengths": (1, 3), "bidirectional": True, "layers": 2},
        {"T": 2, "N": 1},
        {"lengths": (2, 0), "batch_first": True, "bidirectional": True},
        {"layers": 3, "bias": False, "state": "none"},
        {"D": 3, "H": 3, "state": "zero", "batch_first": True, "layers": 2},
        {"T": 1, "H": 1},
    )
    for changes in several[:3] if few else several:
        for kind in kinds:
            yield RNNConfig(kind, **({"T": 3, "N": 2, "D": 2, "H": 3} | changes))


def modules_of(kinds):
    def gradients_of_modules():
        for cfg in configs(kinds):
            layer = cfg.make()
            lengths = None if cfg.lengths is None else list(cfg.lengths)
            check_module(layer, cfg.x(), state=cfg.initial(layer), lengths=lengths)
            check_vjp(layer, cfg.x(), state=cfg.initial(layer), lengths=lengths)

    gradients_of_modules.__name__ = f"check_module of {kinds[0].__name__}"
    return gradients_of_modules


def cells_alone():
    for kind, (cls, given, _) in test_cells.KINDS.items():
        for bias in (True, False):
            cell = test_cells.build(kind, 2, 3, bias)
            x, state = test_cells.given_to(cell, 2, 1)
            check_module(cell, x, state=state)
        assert cls is type(cell), given


def relations(kinds):
    return [_relation(name, kinds) for name, r in RELATIONS.items() if r.kind == "layer"]


def _relation(name, kinds):
    def run():
        for cfg in configs(kinds, few=kinds is BARE):
            if RELATIONS[name].needs(cfg) is None:
                RELATIONS[name](cfg)

    run.__name__ = f"{name} of {kinds[0].__name__}"
    return run


# --- the project's own tests, without pytest -----------------------------------------------------


def tests_of(module, skip):
    """Yield the tests of a module as functions of nothing: one for each set of parameters."""
    for name, test in vars(module).items():
        if not name.startswith("test_") or not callable(test) or name in skip:
            continue
        marks = [m for m in getattr(test, "pytestmark", ()) if m.name == "parametrize"]
        choices = [[_named(m.args[0], value) for value in m.args[1]] for m in marks]
        drawn = getattr(test, "hypothesis", None)
        wanted = set(inspect.signature(test).parameters)
        for k, combination in enumerate(itertools.product(*choices)):
            given = {name: v for part in combination for name, v in part.items()}
            missing = set() if drawn else wanted - set(given)
            if missing <= set(vars(module)):  # others are fixtures of pytest's own
                yield _call(f"{name}[{k}]", test, given, [vars(module)[n] for n in missing])


def _named(names, value):
    names = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
    return dict(zip(names, value if len(names) > 1 else [value], strict=True))


def _call(name, test, given, fixtures):
    def run():
        choices = [f._fixture_function_marker.params or (None,) for f in fixtures]
        for params in itertools.product(*choices):
            with ExitStack() as stack:
                for fixture, param in zip(fixtures, params, strict=True):
                    make = fixture._get_wrapped_function()
                    asked = (
                        [SimpleNamespace(param=param)] if inspect.signature(make).parameters else []
                    )
                    value = make(*asked)
                    if inspect.isgenerator(value):
                        value = stack.enter_context(contextmanager(lambda v=value: v)())
                    given[fixture.__name__] = value
                test(**given)

    run.__name__ = name
    return run


# --- in which order ------------------------------------------------------------------------------


def equations_of_cells():
    for kind in test_cells.KINDS:
        for D, bias in ((2, True), (0, False), (0, True)):
            cell = test_cells.build(kind, D, 3, bias)
            x, state = test_cells.given_to(cell, 2, 1)
            y, new = cell(x, state)
            want_y, want, _ = test_cells.KINDS[kind][2](cell.state_dict(), x, state)
            for a, b in zip(flatten((y, new)), flatten((want_y, want)), strict=True):
                np.testing.assert_allclose(a.data, b, rtol=1e-12, atol=1e-14)


def initial_states_share_nothing():
    for kind in test_cells.KINDS:
        arrays = list(flatten(test_cells.build(kind, 2, 3).initial_state(2)))
        assert all(a.shape == (2, 3) and not a.any() for a in arrays)
        assert len(arrays) == 1 or not np.shares_memory(*arrays)


def ragged_batches():
    test = test_recurrent.test_a_ragged_batch_is_its_sequences_run_one_by_one.hypothesis.inner_test
    for kind in test_recurrent.LAYERS:
        for layers, both in ((1, False), (2, True)):
            test(kind, layers, both, lengths=[2, 0, 3], extra=1)


class Wide(nn.Cell):
    """Its output has an axis more than its state."""

    def step(self, x, h):
        h = x + h
        return h.reshape(-1, 1, self.hidden_size) * np.ones((2, 1)), h


def outputs_may_have_more_axes():
    x = np.random.default_rng(0).standard_normal((3, 2, 2))
    cells = Wide(2, 2, dtype=np.float64), Wide(2, 2, dtype=np.float64)
    for lengths in (None, [3, 1], [0, 0]):
        out, (fwd, rev) = nn.Recurrent([cells])(x, lengths=lengths)
        if lengths == [0, 0]:
            continue
        assert out.shape == (3, 2, 2, 4)
        inside = np.arange(3)[:, None] < (lengths or [3, 3])
        kept = x * inside[..., None]
        want = np.cumsum(kept, 0)
        np.testing.assert_allclose(fwd.data, want[-1])
        np.testing.assert_allclose(rev.data, want[-1])
        shown = np.where(inside[..., None, None], want[:, :, None] + np.zeros((2, 1)), 0)
        np.testing.assert_allclose(out.data[..., :2], shown)


def without_dropout_nothing_is_drawn():
    for dropout, layers, draws in ((0.0, 2, False), (0.5, 1, False), (0.5, 2, True)):
        layer = nn.RNN(2, 3, layers, dropout=dropout, rng=0)
        before = repr(layer.rng.bit_generator.state)
        layer(np.ones((2, 1, 2)))
        assert (repr(layer.rng.bit_generator.state) != before) is draws
        before = repr(layer.rng.bit_generator.state)
        layer.eval()
        layer(np.ones((2, 1, 2)))
        assert repr(layer.rng.bit_generator.state) == before


class Wrong(nn.Cell):
    """Right at the first step; later it returns what `change` makes of it."""

    def __init__(self, change):
        super().__init__(2, 2, dtype=np.float64)
        self.change, self.calls = change, 0

    def step(self, x, h):
        self.calls += 1
        return (x + h, x + h) if self.calls < 3 else self.change(x + h, h)


def a_step_that_goes_wrong_later_is_named():
    for change in (
        lambda y, h: (y, h, h), lambda y, h: (y,), lambda y, h: y, lambda y, h: [y, h],
        lambda y, h: (y, h[:1]), lambda y, h: (y, (h, h)), lambda y, h: (y, h.data),
    ):  # fmt: skip
        with pytest.raises(StateError, match="step t=3 of 4"):
            nn.Recurrent(Wrong(change))(np.ones((4, 2, 2)))


class Nesting(nn.Cell):
    """Runs a layer inside its step, and fails at the third."""

    def __init__(self):
        super().__init__(2, 2, dtype=np.float64)
        self.inner, self.calls = nn.RNN(2, 2, dtype=np.float64, rng=0), 0

    def step(self, x, h):
        self.calls += 1
        y = self.inner(ops.stack(x, x))[0][-1]
        return (y, y) if self.calls < 3 else (y @ x, h)


def a_layer_inside_a_step_leaves_the_step_its_number():
    with pytest.raises(ShapeError, match="step t=3 of 4"):
        nn.Recurrent(Nesting())(np.ones((4, 3, 2)))


class Sometimes(nn.Cell):
    """A state of two parts, which has no letters; it is marked in the second step only."""

    def initial_state(self, batch):
        return np.zeros((batch, 1)), np.zeros((batch, 1))

    def step(self, x, state):
        h, m = state[0] + x, state[1] * 1.0
        if x.data.flat[0] == 2:
            mark(h=h, m=m)
        return h, (h, m)


class Unmarked(nn.Cell):
    """Marks nothing: its state has a letter all the same."""

    def step(self, x, h):
        return x + h, x + h


def only_the_first_state_is_called_initial():
    x = np.arange(1.0, 5).reshape(4, 1, 1)
    state = tuple([Tensor(np.zeros((1, 1)), requires_grad=True) for _ in range(2)])
    out, (h, m) = nn.Recurrent(Sometimes(1, 1, dtype=np.float64))(x, state)
    names = [t.name for t in graph.nodes([out, h, m]) if t.name]
    assert "h0" not in names
    assert "m0" not in names
    assert names.count("h") == names.count("m") == 1
    out, h = nn.Recurrent(Unmarked(1, 1, dtype=np.float64))(
        x, Tensor(np.zeros((1, 1)), requires_grad=True)
    )
    names = [t.name for t in graph.nodes([out, h]) if t.name]
    assert names.count("h0") == 1
    assert names.count("h") == 4


def what_no_rule_reads_is_released():
    """Large unnamed values of a step, where nobody records, debugs, or can ask for them."""
    layer = nn.LSTM(2, 4, dtype=np.float64, rng=0)
    x = np.random.default_rng(0).standard_normal((2, 3, 2))

    def blanks(x=x):
        out, _ = layer(Tensor(x, requires_grad=True))
        return sum(bool(np.isnan(t.data).any()) for t in graph.nodes([out]))

    def gradients():
        return grad(ops.sum(layer(x)[0] ** 2), list(layer.parameters()))

    want, before = gradients(), recurrent._WORTH_RELEASING
    assert blanks() == 0
    try:
        recurrent._WORTH_RELEASING = 12  # the elements of an output (N, H)
        assert blanks() > 0
        for a, b in zip(gradients(), want, strict=True):
            np.testing.assert_array_equal(a, b)
        with record():
            assert blanks() == 0
        with debug():
            assert blanks() == 0
        with no_grad():
            assert blanks() == 0
        recurrent._WORTH_RELEASING = 13
        assert blanks() == 0
    finally:
        recurrent._WORTH_RELEASING = before


def nothing_needless_is_computed():
    """`where` of a state only where a sequence has ended, of the input and the output once."""
    for lengths, both, wheres, concats in (
        (None, False, 0, 0), ([4, 4], False, 0, 0), ([4, 2], False, 2 + 2, 0),
        (None, True, 0, 4), ([3, 1], True, 2 * 2 + 2, 3), ([4, 2], True, 2 * 2 + 2, 4),
    ):  # fmt: skip
        layer = nn.RNN(2, 3, bidirectional=both, rng=0)
        x = Tensor(np.ones((max(lengths or [4]), 2, 2), np.float32), requires_grad=True)
        out, h = layer(x, lengths=lengths)
        made = [t.op.name for t in graph.nodes([out, h]) if t.op]
        assert made.count("concat") == concats, (lengths, both)
        assert made.count("where") == wheres, (lengths, both, made.count("where"))


def stacks_are_made_as_they_are_asked_for():
    for cls in LAYERS:
        layer = cls(3, 3, 2, bidirectional=True, rng=0)
        weights = [cell.W_h.data for _, _, cell in layer.cells()]
        assert not any(np.array_equal(a, b) for a, b in itertools.combinations(weights, 2))
        assert layer.bidirectional is True
        assert cls(3, 3).bidirectional is False
        with pytest.raises(DtypeError, match=f"^{cls.__name__}: "):
            cls(3, 3, dtype=np.int64)


class Typed(nn.Cell):
    """Notes the type of its input."""

    def step(self, x, h):
        self.seen = x.dtype
        return h, h


def any_input_is_read():
    for x in (np.ones((1, 1, 2), int), Tensor(np.ones((1, 1, 2), int)), [[[1, 1]]], np.ones((1, 2)),
              [np.ones((1, 2), int)]):  # fmt: skip
        cell = Typed(2, 2)
        nn.Recurrent(cell)(x)
        assert cell.seen == np.float32
    layer = test_recurrent.build("gru", 2, True)
    rng = np.random.default_rng(0)
    for lengths in ((2, 1), (1, 2, 2), (3, 2), (2, 2)):
        xs = [rng.standard_normal((n, 2)) for n in lengths]
        out, _ = layer(xs)
        for x, y in zip(xs, out, strict=True):
            np.testing.assert_allclose(y.data, layer(x)[0].data, rtol=1e-12)
    with pytest.raises(ShapeError, match="expected"):
        layer([])


def traces_have_places():
    for lengths in (None, [2, 1]):
        layer = nn.LSTM(2, 3, 2, bidirectional=True, rng=0)
        out, h, trace = layer(np.ones((2, 2, 2)), lengths=lengths, trace=True)
        ids = identify(graph.nodes([out, *h, *trace.values()]))
        assert not any("#" in name for name in ids.values())
        assert ids[trace["L1.rev.f"].order].split("_")[0] == "stack"
        assert {f"L0.fwd.T{t}.x" for t in range(2)} <= set(ids.values())


def an_input_is_read_step_by_step():
    """Its reads are recorded where it needs a gradient, and under record()."""
    layer = nn.RNN(2, 3, rng=0)
    x = np.ones((4, 2, 2), np.float32)

    def reads(x):
        return [t.op.name for t in graph.nodes([layer(x)[0]]) if t.op].count("getitem")

    assert reads(Tensor(x, requires_grad=True)) == 4
    assert reads(Tensor(x)) == reads(x) == 0
    with record():
        assert reads(x) == 4


class Deep(nn.Cell):
    """Its state has three axes; it needs no input."""

    def initial_state(self, batch):
        return np.zeros((batch, 2, 5), self.dtype)

    def step(self, x, h):
        return h[:, 0], h + 1


class Counting(nn.Cell):
    """Its state is two arrays with different numbers of axes."""

    def initial_state(self, batch):
        return np.zeros((batch, self.hidden_size), "f4"), np.zeros((batch, 2, 2), "f4")

    def step(self, x, state):
        m, count = state
        return m, (m * 2, count + 1)


def numbers_of_any_kind_are_read():
    cell = nn.RNNCell(2, 3, dtype=np.float64, rng=0)
    y, _ = cell([[1.0, 2.0]], [[0.5, 0.25, 0.0]])
    layer = nn.Recurrent(cell)
    out, h = layer([[[1.0, 2.0]]], [[0.5, 0.25, 0.0]])
    np.testing.assert_array_equal(out.data[0], y.data)
    twist = np.array([[0.5, 0.25, 0.0]]) * 1j
    for x in (np.ones((2, 1, 2)), np.ones((2, 1, 2)) * 1j):
        out, h = layer(x, twist)
        assert out.dtype == h.dtype == np.complex128
        want = x[0] @ cell.W_x.data + cell.b.data + twist @ cell.W_h.data
        np.testing.assert_allclose(out.data[0], np.tanh(want), rtol=1e-12)


def states_may_have_more_axes():
    layer = nn.Recurrent(Deep(0, 5))
    for state, shape in ((np.ones((3, 2, 5)), (4, 3, 5)), (None, (4, 1, 5))):
        out, h = layer(None, state, steps=4)
        assert out.shape == shape
        assert h.shape == (shape[1], 2, 5)
    alone = nn.Recurrent(Counting(0, 3))
    out, (m, count) = alone(None, (np.ones(3), np.zeros((2, 2))), steps=4)
    assert (out.shape, m.shape, count.shape) == ((4, 3), (3,), (2, 2))
    with pytest.raises(StateError, match="a tuple of 2 states"):
        nn.Recurrent([nn.GRUCell(2, 2), nn.GRUCell(2, 2)])(
            np.ones((1, 1, 2)), tuple(np.ones((3, 1, 2)))
        )


class Marking(nn.Cell):
    """Marks a state and a matrix of its own, which belongs to no sequence."""

    def step(self, x, h):
        h = x + h
        mark(h=h, own=Tensor(np.ones((5, 2))), leak=Tensor(np.ones(1)))
        return h, h


def marks_of_no_sequence_are_left_alone():
    cell = Marking(2, 2, dtype=np.float64)
    _, _, trace = nn.Recurrent(cell)(np.ones((2, 3, 2)), lengths=[2, 1, 2], trace=True)
    np.testing.assert_array_equal(trace["L0.fwd.own"].data, np.ones((2, 5, 2)))
    np.testing.assert_array_equal(trace["L0.fwd.h"].data[:, 1, 0], [1, 0])
    trace = nn.Recurrent(cell)(np.ones((2, 2)), trace=True)[2]
    assert {name: v.shape for name, v in trace.items()} == {
        "L0.fwd.h": (2, 2), "L0.fwd.own": (2, 5, 2), "L0.fwd.leak": (2, 1),
    }  # fmt: skip
    with record():
        trace = nn.Recurrent(cell)(np.ones((2, 3, 2)), lengths=[2, 1, 2], trace=True)[2]
        names = [t.op.name for t in graph.nodes([trace["L0.fwd.h"]]) if t.op]
    assert names.count("where") == 1  # of the second step


def every_test_of(name):
    """Run a module of tests, imported only then: some run layers while they are imported."""

    def run():
        for test in tests_of(importlib.import_module(f"tests.{name}"), SLOW):
            test()

    run.__name__ = name
    return run


class Ever(nn.LSTMVariant):
    """Never forgets, as the LSTM began."""

    gates = ("i", "g", "o")

    def forget_gate(self, a, c):
        return 1.0


def variants_start_as_they_are_said_to():
    for cls in (*VARIANTS, Ever):
        cell = cls(2, 3, rng=0)
        assert cell.b.shape == (3 * (len(cell.gates) or 1),)
        zero = cell.initial_state(2)
        assert not isinstance(zero, tuple) or not np.shares_memory(*zero)


def options_of_layers():
    """Each option by check_module, over ragged batches, and all of them where steps run again."""
    x = np.random.default_rng(0).standard_normal((3, 2, 2))
    for cls in (nn.LSTM, nn.GRU):
        for options in (
            {"recurrent_dropout": 0.4}, {"zoneout": 0.4}, {"learn_state": True}, {"merge": "mul"},
            {"checkpoint_every": 2, "learn_state": True},
            {"checkpoint_every": 1, "recurrent_dropout": 0.4, "zoneout": 0.4, "dropout": 0.4},
        ):  # fmt: skip
            layer = cls(2, 3, 2, bidirectional=True, dtype=np.float64, rng=0, **options)
            layer.mask_seed = 3
            for lengths in ([3, 1], None):
                check_module(layer, x, lengths=lengths)
                check_vjp(layer, x, lengths=lengths)


OPTIONS = ("test_layer_options", "test_learned_state", "test_layer_recompute")

SLOW = (
    "test_memory_is_at_most_a_sixth_at_2000_steps",
    "test_memory_is_that_of_a_segment_and_of_the_states_between",
    "test_a_ragged_batch_is_its_sequences_run_one_by_one",
    "test_ten_thousand_steps_run_forward_and_backward",
    "test_time_grows_linearly_with_the_steps",
)


def options():
    """Return the tests of what layers offer beside PyTorch's arguments, each by itself."""
    modules = [importlib.import_module(f"tests.{name}") for name in OPTIONS]
    return [t for module in modules for t in tests_of(module, SLOW)]


def before_the_kit(area):
    """Return what is fast."""
    if area == "options":
        return options()
    if area == "variants":
        return list(tests_of(importlib.import_module("tests.test_variants"), SLOW))
    layers = tests_of(test_recurrent, SLOW)
    equations = [t for t in layers if t.__name__.startswith("test_values_states_and_traces")]
    return [equations_of_cells] if area == "cells" else equations


def kit(area):
    """Return the checks of the kit, for a fault in a cell or in a layer."""
    if area == "options":
        return [options_of_layers]
    if area == "variants":
        well = [
            v for v in VARIANTS if v is not nn.LayerNormLSTMCell
        ]  # of H = 1 it is ill-conditioned
        return [modules_of(VARIANTS), *relations(well)]
    layers = [modules_of(LAYERS), *relations(LAYERS)]
    bare = [modules_of(BARE), *relations(BARE)]
    return [cells_alone, *bare] if area == "cells" else [*layers, *bare]


def after_the_kit(area):
    if area in ("options", "variants"):
        return [variants_start_as_they_are_said_to] if area == "variants" else []
    if area == "cells":
        return [initial_states_share_nothing, *tests_of(test_cells, SLOW), *options()]
    return [
        outputs_may_have_more_axes,
        a_step_that_goes_wrong_later_is_named,
        only_the_first_state_is_called_initial,
        any_input_is_read,
        traces_have_places,
        a_layer_inside_a_step_leaves_the_step_its_number,
        stacks_are_made_as_they_are_asked_for,
        numbers_of_any_kind_are_read,
        marks_of_no_sequence_are_left_alone,
        an_input_is_read_step_by_step,
        states_may_have_more_axes,
        what_no_rule_reads_is_released,
        nothing_needless_is_computed,
        without_dropout_nothing_is_drawn,
        ragged_batches,
        *map(every_test_of, ("test_recurrent_graph", "test_recurrent_trace", "test_errors_nn")),
        *tests_of(test_recurrent, SLOW),
        *options(),
    ]
