"""Checks of the sweep: programs with fan-out, reuse and views, and what ``backward`` stores."""

import gc
import weakref
from contextlib import contextmanager

import numpy as np
import pytest

from tests import test_engine
from tests.op_cases import grid
from tinygrad_rnn import Tensor, autodiff, debug, grad, graph, no_grad, ops, record
from tinygrad_rnn.errors import GraphError, NonFiniteError, ShapeError
from tinygrad_rnn.op import OPS, Op
from tinygrad_rnn.testing import reference
from tinygrad_rnn.testing.checks import check_grad
from tinygrad_rnn.testing.integrity import check_vjp
from tinygrad_rnn.testing.machine import OWN
from tinygrad_rnn.testing.reference import Ref

RNG = np.random.default_rng(3)
A, B, S = grid(RNG, (2, 3)), grid(RNG, (2, 3)), np.array(0.75)
LOW = grid(RNG, (3,))
i = np.array([0, 1, 1])

PROGRAMS = [  # a function, its inputs
    (lambda x: x + x, [A]),
    (lambda x: x + x + x + x, [A]),
    (lambda x: x * x * x + x, [A]),
    (lambda x, y: x + y, [A, B]),
    (lambda x, y: (x + y) + (x + y) * x + y, [A, B]),
    (lambda x, y: x + y + x * y[0], [A, LOW]),
    (lambda y, x: x * y + y + ops.sum(y * y), [LOW, A]),
    (lambda y, x: y + (x * y) + (x - y) * (y + y), [LOW, A]),
    (lambda s, x: s * x + s + s * s * x + (x * s), [S, A]),
    (lambda s: s + s * s + s, [S]),
    (lambda x: x.reshape(3, 2) @ x + (x.T @ x)[0, 0], [A]),
    (lambda x: (x.reshape(-1) + x.T.reshape(-1)) * x.reshape(-1), [A]),
    (lambda x: x[0] + x[0] * x[1] + x[i][:2].sum(0), [A]),
    (lambda x, W: ops.tanh(ops.tanh(x @ W) @ W.T) + x, [A, B.T.copy()]),
    (lambda x, W: (x @ W) + (x[:1] @ W) * 2 + W.sum(), [A, B.T.copy()]),
    (lambda x, y: ops.concat(x, y, x, axis=1) * 2, [A, B]),
    (lambda x, y: ops.stack(x, y, x).sum(0) + x, [A, B]),
    (lambda x, y: ops.where(x > 0, x, y) * ops.where(x > 0, y, x), [A, B]),
    (lambda x, y: ops.part(x, axis=1, start=0, stop=2) @ y + x @ ops.concat(y, y[:1]),
     [A, B[:, :2].copy()]),
    (lambda x, y: (x, x * y, y), [A, B]),
    (lambda x, y: (x + y, ops.sum(x * x), y), [A, B]),
    (lambda x: (x, x), [A]),
    (lambda x: (x + x, x * 2.0, ops.exp(x)), [A]),
    (lambda x: x, [A]),
    (lambda x: ops.sum(x * x) * ops.sum(x), [A]),
]  # fmt: skip


def programs():
    for f, arrays in PROGRAMS:
        check_grad(f, *arrays, order=2)
        check_vjp(f, *arrays)


def programs_in_float32():
    for f, arrays in PROGRAMS:
        low = [a.astype(np.float32) for a in arrays]
        check_grad(f, *low)
        check_vjp(f, *low)


def random_graphs():
    for seed in range(8):
        f = test_engine.random_graph(np.random.default_rng(seed), 2 + seed)
        arrays = np.random.default_rng(seed + 50).standard_normal((3, 3, 3))
        check_grad(f, *arrays, order=2)
        check_vjp(f, *arrays)


# --- grad and backward, called in every way ------------------------------------------------------


def leaf(a, **more):
    return Tensor(np.array(a, np.float64), requires_grad=True, **more)


def same(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-13, atol=1e-14)


def gradients_inside_the_graph():
    """At inner nodes, at the output itself, at constants, at what nothing depends on."""
    for create_graph in (False, True):
        x, c, other = leaf(A), Tensor(B), leaf(S)
        h = x * c
        y = ops.sum(h * h)
        got = grad(y, [h, x, c, y, other], create_graph=create_graph)
        h0 = A * B
        for g, want in zip(got, [2 * h0, 2 * h0 * B, 2 * h0 * A, 1.0, 0.0], strict=True):
            assert np.shape(g) == np.shape(want)
            same(g, want)
        same(grad([y, h], [h, y], [3.0, B], create_graph)[0], 6 * h0 + B)
        same(grad([y, h], [h, y], [3.0, B], create_graph)[1], 3.0)
        same(grad(h, h, B, create_graph), B)
        same(grad([h, h, x], x, [B, A, A], create_graph), (A + B) * B + A)
        integer = Tensor(np.array([0, 1]))
        z = x[integer]
        same(grad(ops.sum(z), [integer, x], create_graph=create_graph)[0], [0, 0])
        mask = x > 0
        y = ops.sum(ops.where(mask, x, c))
        got = grad(y, [mask, x, c], create_graph=create_graph)
        for g, want in zip(got, [0 * A, 1.0 * (A > 0), 1.0 * (A <= 0)], strict=True):
            same(g, want)
        one, two = grad(y, [x, x], create_graph=create_graph)
        same(one, two)
        assert create_graph or not np.shares_memory(one, two)


def nothing_needless_is_computed():
    """No rule runs for an input that leads to nothing wanted."""
    x, W = leaf(A), leaf(B.T)
    y, z = ops.sum(ops.exp(x) @ W), ops.sum(ops.tanh(x))
    ran = []
    before = ops.exp.rules, ops.tanh.rules

    def noted(rule, name):
        return lambda *args, **attrs: ran.append(name) or rule(*args, **attrs)

    ops.exp.rules = (noted(before[0][0], "exp"),)
    ops.tanh.rules = (noted(before[1][0], "tanh"),)
    try:
        grad([y, z], W)
        assert ran == []
        grad(y, x)
        assert ran == ["exp"]
        v = Tensor(B, requires_grad=True)
        grad(ops.concat(ops.exp(x), v), v, np.ones((4, 3)))
        assert ran == ["exp"]
        y.backward()
        z.backward()
        assert ran == ["exp", "exp", "tanh"]
        with no_grad():
            grad(z, x)
        assert ran[3:] == ["tanh"]
    finally:
        ops.exp.rules, ops.tanh.rules = before


def backward_stores_at_leaves():
    x, c, y, kept = leaf(A), Tensor(B), leaf(S), None
    h = x * c
    h.retain_grad()
    mid = h * y
    loss = ops.sum(mid)
    loss.backward()
    assert c.grad is None
    assert mid.grad is None
    assert loss.grad is None
    for t, want in ((x, B * 0.75), (y, np.sum(A * B)), (h, np.full((2, 3), 0.75))):
        assert type(t.grad) is np.ndarray
        assert t.grad.shape == t.shape
        same(t.grad, want)
    kept = x.grad
    before = kept.copy()
    loss.backward()
    same(x.grad, 2 * before)
    same(h.grad, np.full((2, 3), 1.5))
    same(y.grad, 2 * np.sum(A * B))
    same(kept, before)  # what somebody holds does not change
    loss.backward(3.0)
    same(x.grad, 5 * before)
    with no_grad():
        loss.backward()
    same(x.grad, 6 * before)
    u = np.ones((2, 3))
    x.grad = None
    (x + 0.0).backward(u)
    x.grad[...] = 7
    assert (u == 1).all()
    x.grad = None
    x.backward(u)  # a leaf itself
    same(x.grad, u)
    assert not np.shares_memory(x.grad, u)
    one, two = leaf(A), leaf(B)
    (one + two).backward(u)
    assert not np.shares_memory(one.grad, two.grad)
    s = leaf(0.5)
    for k in (1, 2):
        (s * 2).backward()
        assert type(s.grad) is np.ndarray
        same(s.grad, 2.0 * k)


def backward_asks_for_what_it_needs():
    x = leaf(A)
    for attempt, error in [
        (lambda: (x * 2).backward(), GraphError), (lambda: grad(x * 2, x), GraphError),
        (lambda: (x * 2).backward([1.0]), ShapeError), (lambda: Tensor(A).backward(), GraphError),
        (lambda: grad(ops.sum(x), x, np.ones(2)), ShapeError),
        (lambda: (x > 0).backward(A), GraphError),
    ]:  # fmt: skip
        with pytest.raises(error):
            attempt()
    assert x.grad is None
    for shape in ((1,), (1, 1), ()):
        y = leaf(np.full(shape, 2.0))
        (y * y).backward()
        same(y.grad, np.full(shape, 4.0))


def gradients_have_the_type_of_their_node():
    x = Tensor(A.astype(np.float32), requires_grad=True)
    y = x.astype(np.float64)
    z = y * 2.0
    assert [g.dtype for g in grad(z, [x, y], B)] == [np.float32, np.float64]
    z.backward(B)
    assert x.grad.dtype == np.float32
    (x * 2).backward(B)  # the cotangent is converted
    assert x.grad.dtype == np.float32
    assert grad(x * 2, x, B).dtype == np.float32
    assert grad(x * 2, x, (B * 4).astype(int)).dtype == np.float32
    (x * 1).backward(np.ones((2, 3), int))
    c = grad(x * 2, x, B * 1j)
    assert c.dtype.kind == "c"
    same(c, 2j * B.astype(np.float32))
    half = leaf(1.0)
    half.backward(1j)
    assert half.grad.dtype.kind == "c"
    test_engine.test_real_and_complex_gradients_meet()


def collected_and_direct_gradients_meet():
    """An array read by an op that collects and by one that does not, in both orders."""
    for f in (
        lambda x: ops.sum(x[0] * x[1]) + ops.sum(x * x * x),
        lambda x: ops.sum(x * x * x) + ops.sum(x[0] * x[1]),
        lambda x: ops.sum(x[0]) + ops.sum(ops.take(x, i)) + ops.sum(x[1] * x[0]) + ops.sum(x.T @ x),
        lambda x: ops.sum(x.T @ x) + ops.sum(x @ x.T) + ops.sum(ops.take(x, i) * ops.take(x, i)),
        lambda x: ops.sum(ops.part(x, axis=0, start=0, stop=1) * x[0] * ops.take(x, i[:1])),
    ):
        check_grad(f, A, order=2)
        check_vjp(f, A)
        x = leaf(A)
        want = grad(f(x), x)
        f(x).backward()
        f(x).backward()
        same(x.grad, 2 * want)


def nodes_are_found_in_the_order_of_creation():
    x, c = leaf(A), Tensor(B)
    h = ops.exp(x)
    k = h * c
    y = ops.sum(k + h)
    found = graph.nodes([y])
    assert [t.order for t in found] == sorted({t.order for t in found})
    assert len(found) == 6
    assert found[-1] is y
    needing = graph.nodes([y], requiring=True)
    assert len(needing) == 5
    assert all(t is not c for t in needing)
    assert len(graph.nodes([y, k, h])) == 6
    assert graph.nodes([c]) == [c]
    assert graph.reach(found, [c]) == {t.order for t in (c, k, k, *found[4:])}
    assert graph.reach(found, [x]) == {t.order for t in found if t is not c}
    assert graph.reach(found, []) == set()
    mask = x > 0
    z = ops.where(mask, x, c)
    assert z.order not in graph.reach(graph.nodes([z]), [mask])
    j = Tensor(np.array([1, 0]))
    with record():
        r = ops.take(c, j)
    assert r.order not in graph.reach(graph.nodes([r]), [j])
    assert r.order in graph.reach(graph.nodes([r]), [c])
    picked = x[j]
    assert picked.order not in graph.reach(graph.nodes([picked]), [j])
    joined = ops.concat(c, x)
    assert joined.order in graph.reach(graph.nodes([joined]), [c])


def a_non_finite_gradient_is_named():
    x = leaf([1.0, 0.0])
    for run in (lambda y: y.backward(), lambda y: grad(y, x)):
        with debug():
            y = ops.sum(ops.sqrt(x))
            with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match="a leaf"):
                run(y)


def graphs_are_freed():
    gc.collect()
    gc.disable()
    try:
        for create_graph in (False, True):
            x = leaf(A)
            y = ops.sum(ops.tanh(x[0] * x[1]) @ x.T)
            dead = [weakref.ref(t) for t in graph.nodes([y]) if t is not x]
            g = grad(y, x, create_graph=create_graph)
            y.backward()
            del y, g
            assert not any(w() is not None for w in dead)
    finally:
        gc.enable()


def a_second_engine():
    """Random graphs, built in both engines, with every way to ask for gradients."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        pairs = []
        for k in range(3):
            values = rng.integers(-16, 17, (2, 2)) / 8
            pairs.append((Tensor(values, requires_grad=k < 2), Ref(values, k < 2)))
        leaves = list(pairs)
        for _ in range(2 + seed):
            (t, r), (u, s) = (pairs[k] for k in rng.integers(len(pairs), size=2))
            kind = rng.integers(6)
            if kind == 0:
                name = sorted(reference.UNARY)[rng.integers(len(reference.UNARY))]
                pairs.append(
                    (getattr(OWN, name)(t), reference.elementwise(*reference.UNARY[name], r))
                )
            elif kind == 1:
                name = sorted(reference.BINARY)[rng.integers(len(reference.BINARY))]
                new = reference.elementwise(*reference.BINARY[name], r, s)
                pairs.append((getattr(OWN, name)(t, u), new))
            elif kind == 2:
                pairs.append((t @ u, reference.product(r, s)))
            elif kind == 3:
                at = reference.positions(r)[[0, 0]]
                pairs.append((t[[0, 0]], reference.moved(r, at)))
            elif kind == 4:
                pairs.append((ops.concat(t, u)[1:3], reference.moved(
                    reference.joined(r, s), np.arange(8).reshape(4, 2)[1:3])))  # fmt: skip
            else:
                pairs.append((t.detach(), r.detached()))
            t, r = pairs[-1]
            if np.abs(r.value).max() > 10:
                pairs[-1] = (ops.tanh(t), reference.elementwise(*reference.UNARY["tanh"], r))
        for t, r in pairs:
            assert t.requires_grad == r.needs
            if not r.needs:
                continue
            for _ in range(2):
                t.backward(np.ones(t.shape))
                reference.backward(r, [s for _, s in leaves])
            for u, s in leaves:
                assert (u.grad is None) == (s.grad is None)
                if s.grad is not None:
                    np.testing.assert_allclose(u.grad, s.grad, rtol=1e-11, atol=1e-11)


def long_chains():
    x = leaf(1.0)
    y = x
    for _ in range(3000):
        y = y * 1.0 + x
    y.backward()
    assert x.grad == 3001


# --- ops of one's own, of kinds that the package has not -----------------------------------------


@contextmanager
def declared(forward, *, rules=(), rule_all=None, collector=None):
    op = Op(forward, None, "own(x)", name="own", doc="An op of a test.")
    try:
        if rules:
            op.vjp(*rules)
        if rule_all:
            op.vjp_all(rule_all)
        if collector:
            op.collect(0, collector)
        yield op
    finally:
        del OPS["own"]


def a_collector_may_read_its_array():
    """Of arrays it is given arrays, of nodes a node: gradients of both orders are right."""

    def collector(x, uses):
        g = ops.total([g for g, _, _ in uses])
        seen.append(type(x))
        return g * 2 * x

    seen = []
    with declared(np.square, rules=(lambda g, y, x: g * 2 * x,), collector=collector) as square:
        check_grad(lambda x: square(x) * square(x) + square(x * 2), A, order=2)
        seen.clear()
        x = leaf(A)
        grad(square(x), x, B)
        assert seen == [np.ndarray]


def a_rule_of_all_may_leave_some_out():
    """None for a floating input; as many as there are inputs, else an error."""
    with declared(lambda x, y: x + y * 0, rule_all=lambda g, z, x, y: [g, None]) as first:
        x, y = leaf(A), leaf(B)
        same(grad(first(x, y), [x, y], A)[0], A)
        same(grad(first(x, y), [x, y], A)[1], 0 * A)
        first(x, y * 2).backward(A)
        assert y.grad is None
        same(grad([first(x, y), y * 3], y, [A, B]), 3 * B)
    with (
        declared(lambda x, y: x + y, rule_all=lambda g, z, x, y: [g]) as short,
        pytest.raises(ValueError, match="shorter"),
    ):
        grad(short(leaf(A), y), y, A)


def a_rule_of_another_type_is_converted():
    double = lambda g, y, x: (g * 2).astype(np.float64) if type(g) is np.ndarray else g * 2  # noqa: E731
    with declared(lambda x: x * 2, rules=(double,)) as own:
        x = Tensor(A.astype(np.float32), requires_grad=True)
        y = own(x)
        assert grad(y, x, B).dtype == np.float32
        y.backward(B)
        assert x.grad.dtype == np.float32


def no_gradient_passes_what_is_constant():
    """Neither a conversion to integers, nor an op without a rule; and nobody asks for one."""
    x = leaf(A * 4)
    whole = x.astype(np.int64)
    same(grad(ops.sum(x * whole), x), whole.data)
    with record():
        same(grad(ops.sum(x * x.astype(np.int64).astype(np.float64)), x), whole.data)
    ran = []
    before = ops.mul.rules
    with declared(np.floor) as floor:
        ops.mul.rules = (before[0], lambda *args: ran.append(1) or before[1](*args))
        try:
            same(grad(ops.sum(x * floor(x)), x), np.floor(x.data))
        finally:
            ops.mul.rules = before
    assert ran == []


def cotangents_take_the_type_of_their_node():
    x = leaf(A)
    u = np.full((2, 3), 100, np.int8)
    same(grad(x + x, x, u), 200.0 + 0 * A)
    (x + x).backward(u)
    same(x.grad, 200.0 + 0 * A)
    same(grad(-x, x, u > 0), -1.0 + 0 * A)


def many_ways_through_one_graph():
    """2^60 ways from the leaf to the loss, 60 nodes."""
    x = leaf(1.0)
    y = x
    for _ in range(60):
        y = y * 0.5 + y * 0.5
    y.backward()
    assert x.grad == 1
    assert grad(y, x) == 1


def debug_protects_until_the_gradients_are_there():
    x = leaf(A)
    for run in (lambda y: y.backward(), lambda y: grad(y, x)):
        with debug():
            y = ops.sum(x * x)
            assert not x.data.flags.writeable
            run(y)
            assert x.data.flags.writeable


def gradients_of_nodes():
    x = leaf(A)
    y, z = x * 2, ops.exp(x)
    found = autodiff.gradients([y], [x, z], [B])
    assert type(found[0]) is np.ndarray
    same(found[0], 2 * B)
    assert found[1] is None
    with pytest.raises(ValueError, match="shorter"):
        autodiff.gradients([y, z], [x], [B])


KIT = [programs, random_graphs, programs_in_float32]
REST = [
    gradients_inside_the_graph, backward_stores_at_leaves, nothing_needless_is_computed,
    backward_asks_for_what_it_needs, gradients_have_the_type_of_their_node,
    collected_and_direct_gradients_meet, nodes_are_found_in_the_order_of_creation,
    a_non_finite_gradient_is_named, graphs_are_freed, a_second_engine, long_chains,
    a_collector_may_read_its_array, a_rule_of_all_may_leave_some_out,
    a_rule_of_another_type_is_converted, no_gradient_passes_what_is_constant,
    cotangents_take_the_type_of_their_node, many_ways_through_one_graph,
    debug_protects_until_the_gradients_are_there, gradients_of_nodes,
]  # fmt: skip
