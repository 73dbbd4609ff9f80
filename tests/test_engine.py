"""The engine: random graphs against a second engine, memory, depth, and how the sweep collects."""

import gc
import weakref
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn import Tensor, debug, grad, graph, ops, record
from tinygrad_rnn.errors import NonFiniteError
from tinygrad_rnn.op import OPS
from tinygrad_rnn.testing import check_grad

PICK = st.integers(0, 10**6)


def leaf(values, **more):
    return Tensor(np.asarray(values, np.float64), requires_grad=True, **more)


# --- random graphs; those of the state machine are in kit/test_machine.py ------------------------


def test_a_constant_has_a_gradient_when_it_is_asked_for():
    x, c = leaf([1.0, 2.0]), Tensor([3.0, 4.0])
    y = (x * c).sum()
    np.testing.assert_array_equal(grad(y, c), x.data)
    y.backward()
    assert c.grad is None


def test_a_scalar_that_meets_arrays_and_scalars_keeps_every_gradient():
    """Two sums of (1,) make a buffer; reduced to 0-d it is a NumPy scalar, which += would lose."""
    v, a = leaf(0.25), np.array([2.0])
    y = ((v * v + v + v) + (v + a) + (v * a)).sum()
    y.backward()
    np.testing.assert_allclose(v.grad, 2 * 0.25 + 1 + 1 + 1 + 2)
    check_grad(lambda v, x: (v * v + v + v) + (v + x) + (v * x), 0.25, [2.0])


def random_graph(rng, size):
    """Return a function of three leaves that makes a random graph with fan-out, and a sum."""
    kinds = [
        lambda a, b: a * b, lambda a, b: a + b, lambda a, b: ops.tanh(a - b), lambda a, b: a @ b.mT,
        lambda a, b: a[::-1] + b[:1], lambda a, b: a.sum(0) * b, lambda a, b: ops.sigmoid(a.T) @ b,
        lambda a, b: ops.concat(a, b)[1:4], lambda a, b: a / (1.5 + ops.tanh(b)),
    ]  # fmt: skip
    plan = [(kinds[rng.integers(len(kinds))], *rng.integers(0, k + 3, 2)) for k in range(size)]

    def f(*leaves):
        nodes = list(leaves)
        for kind, i, j in plan:
            nodes.append(ops.tanh(kind(nodes[i], nodes[j])))
        total = nodes[-1]
        for node in nodes[:-1]:
            total = total + node * 0.5
        return total

    return f


@given(seed=PICK, size=st.integers(1, 8))
def test_random_graphs_have_the_right_first_and_second_derivatives(seed, size):
    rng = np.random.default_rng(seed)
    check_grad(random_graph(rng, size), *rng.standard_normal((3, 3, 3)), seed=seed, order=2)


@given(seed=PICK)
def test_fan_out_adds_and_order_of_building_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    f, g = random_graph(rng, 4), random_graph(rng, 4)
    xs = [leaf(a) for a in rng.standard_normal((3, 3, 3))]
    first = grad(f(*xs).sum() + g(*xs).sum(), xs)
    later = g(*xs).sum()
    unused = ops.exp(xs[0]) * xs[1]  # a branch that the loss does not see
    swapped = grad(f(*xs).sum() + later, xs)
    apart = [a + b for a, b in zip(grad(f(*xs).sum(), xs), grad(later, xs), strict=True)]
    twice = grad([f(*xs).sum(), later], xs)
    del unused
    for a, *others in zip(first, swapped, apart, twice, strict=True):
        for b in others:
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(grad(later, xs), grad(later, xs))


# --- depth, memory -------------------------------------------------------------------------------

DEPTH = 20_000


def test_a_chain_of_20_000_steps_runs_forward_and_backward():
    x = leaf(1.0)
    y = x
    for _ in range(DEPTH):
        y = y * 1.0 + x
    y.backward()
    assert y.item() == DEPTH + 1
    assert x.grad == DEPTH + 1
    g = grad(y, x, create_graph=True)
    assert g.item() == DEPTH + 1
    del y, g  # freeing it does not recurse either


@pytest.fixture
def without_gc():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def lives_of(build):
    """Return weak references to the nodes and arrays that `build` made, after it is gone."""
    found = []
    y = build(lambda t: found.extend(weakref.ref(n) for n in graph.nodes([t])))
    del y
    return [w for w in found if w() is not None]


def loss_of(xs):
    h = xs[0]
    for _ in range(3):
        h = ops.tanh(h @ xs[1] + xs[0][[0, 0, 1]])
    return (ops.concat(h, xs[0]) * 2.0).sum()


@pytest.mark.usefixtures("without_gc")
class TestFreedWithoutTheCollector:
    def xs(self):
        return [leaf(np.eye(3)), leaf(np.ones((3, 3)) / 3)]

    def test_after_forward(self):
        def build(see):
            y = loss_of(self.xs())
            see(y)
            return y

        assert lives_of(build) == []

    def test_after_backward(self):
        def build(see):
            y = loss_of(self.xs())
            y.backward()
            y.backward()
            see(y)
            return y

        assert lives_of(build) == []

    def test_after_create_graph(self):
        def build(see):
            xs = self.xs()
            first = grad(loss_of(xs), xs, create_graph=True)
            second = grad((first[0] * first[1]).sum(), xs, create_graph=True)
            see(second[0])
            see(second[1])
            return second

        assert lives_of(build) == []

    def test_detach_holds_its_source_weakly(self):
        y = loss_of(self.xs())
        d = y.detach()
        assert d.attrs["detached"]() is y
        assert not d.requires_grad
        assert np.shares_memory(d.data, y.data)
        del y
        assert d.attrs["detached"]() is None

    def test_after_errors(self):
        def build(see):
            xs = self.xs()
            y = loss_of(xs)
            see(y)
            with pytest.raises(ValueError, match="do not fit"):
                y.reshape(1, 1) @ xs[0]
            with pytest.raises(ValueError, match="cannot have the shape"):
                y.backward([1.0, 2.0])
            with debug(), pytest.raises(NonFiniteError):
                ops.log(xs[0] * 0.0)
            return y

        assert lives_of(build) == []

    def test_after_an_error_inside_backward(self, monkeypatch):
        def fail(g, y, x):
            raise ZeroDivisionError

        def build(see):
            y = loss_of(self.xs())
            see(y)
            monkeypatch.setattr(ops.tanh, "rules", (fail,))
            with pytest.raises(ZeroDivisionError):
                y.backward()
            return y

        assert lives_of(build) == []


# --- collecting ----------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """Count what backward runs: forwards by op name, rules by ``op'``."""
    seen = Counter()

    def counted(name, f):
        def run(*args, **kwargs):
            seen[name] += 1
            return f(*args, **kwargs)

        return run

    for name, op in OPS.items():
        monkeypatch.setattr(op, "forward", counted(name, op.forward))
        rules = tuple(None if r is None else counted(name + "'", r) for r in op.rules)
        monkeypatch.setattr(op, "rules", rules)
        if op.rule_all is not None:
            monkeypatch.setattr(op, "rule_all", counted(name + "'", op.rule_all))
    return seen


def unrolled(T, by_hand=False):
    """Return the loss and the leaves of a recurrence with gates, over T steps."""
    rng = np.random.default_rng(0)
    x, W, U = (leaf(rng.standard_normal(s) / 4) for s in ((T, 2, 3), (3, 8), (4, 8)))
    h, outputs = Tensor(np.zeros((2, 4))), []
    for t in range(T):
        z = x[t] @ W + h @ U
        a, b = (ops.part(z, axis=1, start=k, stop=k + 4) for k in (0, 4))
        h = ops.sigmoid(a) * ops.tanh(b)
        outputs.append(h)
    return ops.stack(*outputs).sum(), [x, W, U]


def test_uses_of_one_array_become_one_call(calls):
    T = 7
    y, leaves = unrolled(T)
    calls.clear()
    grad(y, leaves)
    assert calls["scatter"] == 1  # T reads of x
    assert calls["matmul"] == 0  # on arrays, rules multiply with @ of NumPy
    assert calls["matmul'"] == 2 * T - 1  # gradients of x[t] and h(t - 1); those of W and U wait
    assert calls["concat"] == T + 2 * 2  # each split; and rows and gradients for W and for U
    assert calls["getitem'"] == calls["part'"] == 0
    assert calls["stack'"] == 1


def test_collected_gradients_are_also_one_call_in_a_recorded_backward(calls):
    T = 5
    y, leaves = unrolled(T)
    found = grad(y, leaves, create_graph=True)
    before = {id(t) for t in graph.nodes([y])}
    made = Counter(
        t.op.name for t in graph.nodes(found) if t.op is not None and id(t) not in before
    )
    assert made["scatter"] == 1
    assert made["concat"] == T + 4
    assert made["matmul"] == 2 * T - 1 + 2
    for a, b in zip(grad(y, leaves), found, strict=True):
        np.testing.assert_array_equal(a, b.data)


def test_work_is_linear_in_the_number_of_steps(calls):
    def work(T, create_graph):
        y, leaves = unrolled(T)
        calls.clear()
        found = grad(y, leaves, create_graph=create_graph)
        nodes = len(graph.nodes(found)) if create_graph else 0
        return np.array([nodes, sum(calls.values())])

    for create_graph in (False, True):
        a, b, c = (work(T, create_graph) for T in (10, 20, 40))
        np.testing.assert_array_equal(c - b, 2 * (b - a))


def test_takes_and_overlapping_parts_collect(calls):
    table = leaf(np.arange(12.0).reshape(4, 3))
    y = sum(
        (ops.take(table, np.array(i)) * (k + 1.0)).sum() for k, i in enumerate([[0, 0], [3], [0]])
    )
    calls.clear()
    g = grad(y, table)
    assert (calls["scatter"], calls["take'"]) == (1, 0)
    np.testing.assert_array_equal(g[:, 0], [2 + 3, 0, 0, 2])
    x = leaf(np.arange(6.0))
    y = sum(ops.part(x, axis=0, start=a, stop=b).sum() for a, b in ((0, 4), (2, 6)))
    calls.clear()
    np.testing.assert_array_equal(grad(y, x), [1, 1, 2, 2, 1, 1])
    assert (calls["scatter"], calls["concat"]) == (1, 0)
    y = sum(ops.part(x, axis=0, start=a, stop=b).sum() * a for a, b in ((4, 6), (1, 4), (0, 1)))
    calls.clear()
    np.testing.assert_array_equal(grad(y, x), [0, 1, 1, 1, 4, 4])
    assert calls["scatter"] + calls["concat"] == 1


def test_real_and_complex_gradients_meet():
    """Some outputs are complex, as complex steps make them, others are not."""
    for k in range(4):
        w = leaf([1.0, 2.0])
        factors = [2.0, 3.0, 4.0, 1.0]
        factors[k] = np.array(5j)
        g = grad([(w * f).sum() for f in factors], w)
        np.testing.assert_array_equal(g, [sum(factors)] * 2)
        g = grad([w[0] * f for f in factors], w)
        np.testing.assert_array_equal(g, [sum(factors), 0])


@pytest.mark.parametrize("by", ["record", "requires_grad"])
def test_comparison_masks_are_nodes(by):
    x = leaf([1.0, -2.0]) if by == "requires_grad" else Tensor([1.0, -2.0])
    with record():
        y = ops.where(x > 0, x, 0.0 * x).sum()
    names = [t.op.name for t in graph.nodes([y]) if t.op]
    assert names == ["greater", "mul", "where", "sum"]
    np.testing.assert_array_equal(grad(y, x), [1.0, 0.0])
