"""What the strategies draw: exact values, the shapes and layers that go wrong, small failures."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as hst

from tinygrad_rnn import Tensor, nn, ops, testing
from tinygrad_rnn.testing import RNNConfig, cases
from tinygrad_rnn.testing import strategies as st
from tinygrad_rnn.testing.programs import LOSSES, Graph, Loss


def drawn(strategy, count=200):
    """Return what a strategy draws, the same in every run."""
    found = []

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def collect(value):
        found.append(value)

    collect()
    return found


def smallest(strategy, condition):
    chosen = settings(database=None, derandomize=True, max_examples=2000, deadline=None)
    return find(strategy, condition, settings=chosen)


# --- arrays ------------------------------------------------------------------------------------


@given(x=st.tensors(dtype=hst.sampled_from(["float64", "float32", "float16", "int64"])))
def test_tensors_are_exact_in_every_dtype(x):
    eighths = x.astype(np.float64) * (1 if x.dtype.kind == "i" else 8)
    np.testing.assert_array_equal(eighths, np.round(eighths))
    assert np.all(np.abs(eighths) <= 16)
    assert x.ndim <= 3


@pytest.mark.parametrize("shape", [(3, 4), (8, 8), (12, 8), (100,)])
def test_tensors_are_not_filled_with_one_value(shape):
    """A fill gives 3 % distinct entries; of 33 values a random draw gives nearly all."""
    several = drawn(st.tensors(shape), 100)[1:]  # the first is the simplest: zeros
    size = math.prod(shape)
    expected = 33 * (1 - (1 - 1 / 33) ** size)
    entries = [np.unique(x, return_counts=True) for x in several]
    assert np.median([len(values) for values, _ in entries]) > 0.6 * expected
    assert np.median([counts.max() / size for _, counts in entries]) < 0.3


@given(x=st.tensors(hst.sampled_from([(2, 3), (5,), (9, 9), ()]), distinct=True))
def test_distinct_tensors_have_no_ties(x):
    assert len(np.unique(x)) == x.size


def test_tensors_shrink_entry_by_entry():
    x = smallest(st.tensors((2, 3)), lambda x: x[1, 2] > 0.5)
    np.testing.assert_array_equal(x, [[0, 0, 0], [0, 0, 0.625]])
    assert smallest(st.tensors(), lambda x: x.size > 1).shape == (2,)


@pytest.mark.parametrize("domain", [st.positive, st.nonzero, st.unit, st.between, st.distinct])
def test_domains_hold_what_they_say(domain):
    x = domain(np.random.default_rng(0), (20, 30))
    holds = {
        st.positive: np.all(x > 0),
        st.nonzero: np.all(x != 0) and np.any(x < 0),
        st.unit: np.all(np.abs(x) < 1),
        st.between: np.all(x * 8 % 1 == 0.5),
        st.distinct: len(np.unique(x)) == x.size,
    }
    assert holds[domain]
    np.testing.assert_array_equal(x.astype(np.float32), x)
    assert all(np.array_equal(x.shape, (2, 3)) for x in drawn(st.tensors((2, 3), values=domain), 5))


def test_special_values_all_come():
    for dtype in ("float64", "float32"):
        x = np.concatenate([x.ravel() for x in drawn(st.special((3, 4), dtype), 100)])
        assert x.dtype == dtype
        assert {0.0, 20.0, -20.0, 800.0, -800.0} <= set(x.tolist())
        assert np.any((x == 0) & np.signbit(x))
        assert np.any((x != 0) & (np.abs(x) < np.finfo(dtype).smallest_normal))


@given(x=st.tensors(), layout=st.layouts())
def test_layouts_change_nothing_but_the_layout(x, layout):
    y = layout(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    if layout is not cases.repeated:
        np.testing.assert_array_equal(y, x)


def test_layouts_are_what_they_are_called():
    x = np.arange(6.0).reshape(2, 3)
    assert cases.fortran(x).flags.f_contiguous
    assert not cases.strided(x).flags.c_contiguous
    assert all(s > 8 for s in cases.strided(x).strides)
    assert all(s < 0 for s in cases.backwards(x).strides)
    assert cases.repeated(x).strides == (0, 0)
    assert not cases.readonly(x).flags.writeable
    assert set(drawn(st.layouts(), 100)) == set(cases.LAYOUTS)


# --- operands ----------------------------------------------------------------------------------


def test_broadcastable_shapes_meet_every_case():
    found = drawn(st.broadcastable(2), 300)
    shapes = {tuple(x.shape for x in pair) for pair in found}
    for shape in shapes:
        np.broadcast_shapes(*shape)
    assert any(a == () and b != () for a, b in shapes)
    assert any(len(a) > len(b) > 0 for a, b in shapes)
    assert any(1 in a and 1 not in b for a, b in shapes)
    assert any(0 in a + b for a, b in shapes)
    assert all(len(trio) == 3 for trio in drawn(st.broadcastable(3), 20))


@given(pair=st.matmul_operands())
def test_matmul_operands_fit(pair):
    ops.matmul(*pair)


def test_matmul_operands_are_of_all_ranks():
    ranks = {tuple(min(x.ndim, 3) for x in pair) for pair in drawn(st.matmul_operands(), 300)}
    assert ranks >= set(itertools.product([1, 2, 3], repeat=2))


@given(shape=st.shapes(), data=hst.data())
def test_axes_fit(shape, data):
    axis = data.draw(st.axes(shape))
    np.sum(np.zeros(shape), axis=axis)


@given(shape=st.shapes(min_side=0), data=hst.data())
def test_indices_fit(shape, data):
    np.zeros(shape)[data.draw(st.indices(shape))]


def test_indices_are_of_all_kinds():
    found = drawn(st.indices((3, 4)), 400)
    flat = [i for index in found for i in (index if isinstance(index, tuple) else (index,))]
    arrays = [i for i in flat if isinstance(i, np.ndarray)]
    assert any(i is None for i in flat)
    assert any(i is ... for i in flat)
    assert any(isinstance(i, slice) and (i.step or 1) < 0 for i in flat)
    assert any(a.dtype == bool for a in arrays)
    assert any(a.dtype.kind == "i" and len(np.unique(a)) < a.size for a in arrays)
    assert any(a.dtype.kind == "i" and np.any(a < 0) for a in arrays)


@given(drawn_parts=st.concat_parts(), chosen=st.where_args())
def test_parts_and_masks_fit(drawn_parts, chosen):
    parts, axis = drawn_parts
    np.concatenate(parts, axis)
    mask, x, y = chosen
    assert mask.dtype == bool
    np.where(mask, x, y)


def test_cotangents_are_of_all_kinds():
    outputs = [Tensor(np.zeros((2, 3), np.float32)), np.zeros(2)]
    found = drawn(st.cotangents(outputs), 200)
    for u, v in found:
        assert u is None or (u.shape, u.dtype) == ((2, 3), np.float32)
        assert v is None or (v.shape, v.dtype) == ((2,), np.float64)
    kinds = {tuple("-" if u is None else bool(u.any()) for u in pair) for pair in found}
    assert {(True, True), (True, False), (False, True), (False, False)} <= kinds
    assert any("-" in kind for kind in kinds)
    assert all(u is not None for pair in drawn(st.cotangents(outputs, "zero"), 5) for u in pair)
    with pytest.raises(ValueError, match="kind='half' is none of dense"):
        drawn(st.cotangents(outputs, "half"), 1)


# --- recurrent layers ----------------------------------------------------------------------------

KINDS = {
    "T == 1": (lambda c: c.T == 1, 0.05),
    "N == 1": (lambda c: c.N == 1, 0.1),
    "H == 1": (lambda c: c.H == 1, 0.1),
    "D == H": (lambda c: c.D == c.H, 0.2),
    "D == H > 1": (lambda c: c.D == c.H > 1, 0.1),
    "all differ": (lambda c: len({c.T, c.N, c.D, c.H}) == 4, 0.05),
    "long": (lambda c: c.T >= 24, 0.005),
    "a length of 0": (lambda c: c.lengths is not None and 0 in c.lengths, 0.1),
    "ragged": (lambda c: c.lengths is not None and len(set(c.lengths)) > 1, 0.1),
    "both directions": (lambda c: c.bidirectional, 0.25),
    "three layers": (lambda c: c.layers == 3, 0.1),
    "float32": (lambda c: c.dtype == "float32", 0.25),
    "no bias": (lambda c: not c.bias, 0.2),
    "batch first": (lambda c: c.batch_first, 0.2),
    "zeros": (lambda c: c.state == "zero", 0.1),
    "no state": (lambda c: c.state == "none", 0.1),
}


@pytest.fixture(scope="module")
def configs():
    return drawn(st.rnn_configs(), 600)


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_wrong_is_drawn_on_purpose(kind, configs):
    holds, least = KINDS[kind]
    assert np.mean([holds(c) for c in configs]) >= least
    assert not all(holds(c) for c in configs)


def test_square_layers_are_no_accident():
    found = drawn(st.rnn_configs(D=(1, 40), H=(1, 40)), 400)
    assert np.mean([c.D == c.H > 1 for c in found]) > 0.12


def test_drawn_layers_are_varied_and_in_range(configs):
    assert len({repr(c) for c in configs}) > 0.5 * len(configs)
    assert {c.cell for c in configs} == set(st.ALL)
    assert np.mean([c.T > 8 for c in configs]) <= 0.2
    for c in configs:
        assert 1 <= c.T <= 64
        assert 1 <= c.N <= 3
        assert 1 <= c.D <= 4
        assert 1 <= c.H <= 4
        assert c.lengths is None or (len(c.lengths) == c.N and 1 <= max(c.lengths) <= c.T)


@given(cfg=st.rnn_configs(long_T=0))
def test_drawn_layers_run(cfg):
    out, _ = cfg.run(cfg.make())
    steps = (cfg.N, cfg.T) if cfg.batch_first else (cfg.T, cfg.N)
    assert out.shape == (*steps, cfg.H * cfg.directions)
    assert out.dtype == cfg.dtype
    assert np.all(np.isfinite(out.data))


@pytest.mark.parametrize("cfg", st.corners(), ids=repr)
def test_corners_run(cfg):
    out, _ = cfg.run(cfg.make())
    assert out.shape == (cfg.T, cfg.N, cfg.H * cfg.directions)
    assert np.all(np.isfinite(out.data))


def test_corners_hold_every_corner():
    for cell in st.ALL:
        found = st.corners([cell])
        assert all(c.cell is cell for c in found)
        for kind in ("T == 1", "N == 1", "H == 1", "D == H", "a length of 0", "zeros", "float32"):
            assert any(KINDS[kind][0](c) for c in found), kind
        assert any(c.T == 64 for c in found)
        assert any(c.bidirectional and c.layers == 2 and c.lengths for c in found)
    assert len(st.corners()) == len(st.ALL) * len(st.corners([nn.GRU]))


def test_layers_shrink_to_one_step_of_one_unit():
    plain = RNNConfig(nn.RNN, T=1, N=1, D=1, H=1)
    assert smallest(st.rnn_configs(), lambda c: c.H == 3) == plain.replace(H=3)
    assert smallest(st.rnn_configs(), lambda c: c.bidirectional) == plain.replace(
        bidirectional=True
    )
    found = smallest(st.rnn_configs(), lambda c: c.lengths is not None and 0 in c.lengths)
    assert found == plain.replace(N=2, lengths=(1, 0))
    assert smallest(st.rnn_configs(), lambda c: c.T > 8) == plain.replace(T=24)


def test_ranges_and_choices_are_the_callers():
    found = drawn(
        st.rnn_configs(
            cells=[nn.GRUCell], T=(2, 3), N=2, D=5, H=(2, 2), layers=1, bidirectional=False,
            bias=True, batch_first=False, state="zero", lengths=False, dtype="float32", long_T=0,
        ),
        30,
    )  # fmt: skip
    assert {(c.cell, c.N, c.D, c.H, c.layers, c.state, c.lengths, c.dtype) for c in found} == {
        (nn.GRUCell, 2, 5, 2, 1, "zero", None, "float32")
    }
    assert {c.T for c in found} == {2, 3}
    for wrong in ({"cells": []}, {"T": (0, 3)}, {"H": (3, 2)}, {"layers": 0}):
        with pytest.raises(ValueError, match=f"rnn_configs: {next(iter(wrong))}"):
            drawn(st.rnn_configs(**wrong), 20)


def test_variants_of_cells_print_as_what_is_imported():
    assert repr(RNNConfig(st.rnn_relu, 1, 1, 1, 1)) == "RNNConfig(rnn_relu, T=1, N=1, D=1, H=1)"
    cell = RNNConfig(st.gru_reset_before, D=2, H=3, bias=False).make_cell()
    assert isinstance(cell, nn.GRUCell)
    assert not cell.reset_after
    assert [name for name, _ in cell.named_parameters()] == ["W_x", "W_h"]
    x = Tensor(np.array([-1.0, 2.0]))
    for make, want in ((st.rnn_relu, [0.0, 2.0]), (st.rnn_identity, [-1.0, 2.0])):
        cell = RNNConfig(make).make_cell()
        np.testing.assert_array_equal(np.asarray(cell.activation(x)), want)


# --- graphs and losses -----------------------------------------------------------------------


@given(graph=st.graphs(), seed=hst.integers(0, 99))
def test_gradients_of_graphs_are_right(graph, seed):
    testing.check_grad(graph, *graph.inputs, order=2, seed=seed)


@given(graph=st.graphs(max_nodes=5, max_inputs=2))
def test_graphs_print_as_the_code_that_makes_them(graph):
    again = eval(repr(graph), {"Graph": Graph})
    assert again == graph
    np.testing.assert_array_equal(again(*graph.inputs), graph(*graph.inputs))
    assert len(graph.inputs) <= 2
    y = graph(*[Tensor(x) for x in graph.inputs])
    np.testing.assert_array_equal(y.data, graph(*graph.inputs))


def test_graphs_have_what_engines_go_wrong_at():
    found = drawn(st.graphs(), 300)
    text = "\n".join(graph.source for graph in found)
    for word in ("@", "tanh", "concat", "stack", "where", "log_softmax", ".T", "[::-1]", ".sum(",
                 "[[0, -1, 0]]", ".reshape", "[..., None]", "0.5 *", " / (1 +"):  # fmt: skip
        assert word in text, word
    reused = [any(sum(f"v{k}" in step for step in g.steps) > 2 for k in range(10)) for g in found]
    assert np.mean(reused) > 0.2
    assert np.mean([len(g.steps) for g in found]) > 4
    for graph in found[:100]:  # every input reaches the result
        xs = [Tensor(x, requires_grad=True) for x in graph.inputs]
        assert {x.order for x in xs} <= {t.order for t in _ancestors(graph(*xs))}
        assert np.max(np.abs(graph(*graph.inputs))) <= 8


def _ancestors(y):
    found, todo = [], [y]
    while todo:
        node = todo.pop()
        found.append(node)
        todo += node.inputs
    return found


def test_graphs_shrink_to_one_line():
    found = smallest(st.graphs(), lambda g: any("concat" in step for step in g.steps))
    assert len(found.steps) == 1
    with pytest.raises(TypeError, match="the graph has 1 inputs, got 2"):
        found(1.0, 2.0)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (4, 2, 3)])
def test_losses_are_scalars_with_right_gradients(kind, shape):
    loss = Loss(kind, seed=3)
    x = st.grid(np.random.default_rng(0), shape)
    assert loss(Tensor(x)).shape == ()
    assert loss((Tensor(x), "state")).item() == loss(Tensor(x)).item()
    testing.check_grad(loss, x, order=2)
    assert loss(Tensor(x.astype(np.float32))).dtype == np.float32


def test_all_losses_are_drawn():
    assert {loss.kind for loss in drawn(st.losses(), 100)} == set(LOSSES)
