"""Checks of the backward rules: every op on a few chosen cases, of first and second order."""

from collections import Counter

import numpy as np

from tests.op_cases import (
    ALL,
    BINARY,
    BROADCASTS,
    COMPARISONS,
    INDICES,
    MATMULS,
    Case,
    draw_inputs,
    getitem_case,
    grid,
)
from tinygrad_rnn import Tensor, grad, ops
from tinygrad_rnn.functional import split
from tinygrad_rnn.testing.checks import check_grad
from tinygrad_rnn.testing.integrity import check_vjp

NAMES = sorted({name for name in ALL if hasattr(ops, name)} - set(COMPARISONS))
RNG = np.random.default_rng(0)


def check(f, *inputs):
    check_grad(f, *inputs, order=2)
    check_vjp(f, *inputs)


def check_case(case):
    wrt = case.wrt

    def f(*xs):
        inputs = list(case.inputs)
        for k, x in zip(wrt, xs, strict=True):
            inputs[k] = x
        return case(*inputs)

    check(f, *[case.inputs[k] for k in wrt])


def drawn(op, *shapes):
    return Case(op, draw_inputs(op, shapes, np.random.default_rng(len(shapes[0]))))


def attributed(op, inputs, *attrs):
    return [Case(op, tuple(inputs), a) for a in attrs]


X = RNG.permutation(24).reshape(2, 3, 4) / 4 - 1  # no two alike
SELECTIONS = [np.array([0, 2, 2, -1]), np.array([[1, 1], [0, 2]]), np.array([], int), np.array(1)]


def cases_of(name):
    """Yield the chosen cases of an op."""
    op = ALL[name]
    if name in BINARY:
        yield drawn(op, (2, 3), (2, 3))
        for a, b in [*BROADCASTS, ((1, 4, 3), (4, 1))]:
            yield drawn(op, a, b)
            yield drawn(op, b, a)
    elif name == "matmul":
        for a, b in MATMULS:
            yield drawn(op, a, b)
    elif name == "where":
        for shapes in [((2, 3),) * 3, ((3, 1), (1, 2), ()), ((), (2, 3), (3,)), ((0, 1), (), (3,))]:
            yield drawn(op, *shapes)
    elif op.signature is not None:
        yield drawn(op, (2, 3))
        yield drawn(op, ())
    elif name in ("sum", "max"):
        for axis in (None, 0, -1, 1, (0, 2), (-1, 1), (), (0, 1, 2)):
            yield from attributed(op, [X], {"axis": axis}, {"axis": axis, "keepdims": True})
        yield from attributed(op, [np.array(1.5)], {}, {"axis": ()}, {"axis": 0}, {"axis": -1})
        yield Case(op, (X,), {})
    elif name == "log_softmax":
        yield from attributed(op, [X / 8], {}, {"axis": 0}, {"axis": -2}, {"axis": 2})
    elif name == "broadcast":
        for shape, to in [((), (2, 3)), ((3,), (2, 3)), ((1, 3, 1), (2, 3, 2)), ((2,), (2,))]:
            yield Case(op, (grid(RNG, shape),), {"shape": to})
    elif name == "reshape":
        yield from attributed(op, [X], {"shape": (4, 6)}, {"shape": (-1,)}, {"shape": (3, 2, 1, 4)})
    elif name == "transpose":
        yield from attributed(op, [X], {}, {"axes": None})
        for axes in ((1, 2, 0), (2, 0, 1), (-1, 0, -2), (0, 2, 1)):
            yield Case(op, (X,), {"axes": axes})
    elif name == "astype":
        yield from attributed(op, [X], {"dtype": np.float64})
    elif name == "getitem":
        for index in INDICES:
            yield getitem_case(grid(RNG, (3, 4, 2)), index)
    elif name == "scatter":
        for several in ([0, -1], [INDICES[20], INDICES[2]], [(slice(1, 3), None), INDICES[22], 1]):
            yield scatter_case(several)
    elif name == "take":
        for i in SELECTIONS:
            yield Case(op, (grid(RNG, (3, 2)), i))
    elif name == "part":
        for axis, (start, stop) in [(0, (0, 1)), (1, (1, 3)), (2, (0, 4)), (2, (2, 2))]:
            yield Case(op, (X,), {"axis": axis, "start": start, "stop": stop})
    elif name == "concat":
        for axis in (0, 1, 2, -1, -2):
            shapes = [[n if a == axis % 3 else m for a, m in enumerate(X.shape)] for n in (1, 0, 3)]
            yield Case(op, tuple([grid(RNG, s) for s in shapes]), {"axis": axis})
        yield Case(op, (X, X), {})
    elif name == "stack":
        for axis in (0, 1, -1, 2, -2):
            yield Case(op, tuple([grid(RNG, (2, 3)) for _ in range(3)]), {"axis": axis})
        yield from (Case(op, (X[0],), {"axis": a}) for a in (0, 1))
        yield Case(op, (X, X), {})
    else:
        raise LookupError(f"no case of {name} was chosen")


def scatter_case(several):
    x = grid(RNG, (3, 4, 2))
    reads = [getitem_case(x, i) for i in several]
    parts = [grid(RNG, read(*read.inputs).shape) for read in reads]
    arrays = [a for read in reads for a in read.inputs[1:]]
    index = tuple(read.attrs["index"] for read in reads)
    return Case(ops.scatter, (*parts, *arrays), {"index": index, "shape": x.shape})


def rules_and_collectors_agree():
    """A collector of one use is the rule of that input."""
    for name in ("getitem", "take", "part", "matmul"):
        for case in cases_of(name):
            check_collectors(case)


def check_collectors(case):
    op, y = case.op, case(*case.inputs)
    g = grid(np.random.default_rng(1), y.shape)
    for k, (rule, collector) in enumerate(zip(op.rules, op.collectors, strict=True)):
        if rule is not None and collector is not None:
            shape = case.inputs[k].shape
            want = ops.unbroadcast(rule(g, y, *case.inputs, **case.attrs), shape)
            got = ops.unbroadcast(collector(case.inputs[k], [(g, case.inputs, case.attrs)]), shape)
            np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-13)


def rules_of(name):
    def run():
        for case in cases_of(name):
            check_case(case)

    run.__name__ = f"rules_of_{name}"
    return run


# --- what one use of an op does not show ---------------------------------------------------------


def uses_of_a_weight():
    """Several uses of one matrix, of one row and of many, by one collector."""
    xs = [grid(RNG, s) for s in [(2, 3), (1, 3), (4, 3), (3,), (2, 2, 3), (0, 3), (0, 2, 3)]]
    W = grid(RNG, (3, 2))
    for chosen in (xs, xs[:1], xs[4:5], xs[:3], xs[3:5]):

        def f(W, *xs):
            return ops.concat(*[(x @ W).reshape(-1) for x in xs])

        check(f, W, *chosen)
    check(lambda W, x: (x @ W) * (x[:1] @ W), grid(RNG, (5, 3, 2)), xs[0])
    check(lambda W, x: ops.sum(x @ W) * (x[0] @ W), grid(RNG, (1, 3, 2)), grid(RNG, (5, 2, 3)))
    check(lambda v, x: (x @ v) * (x[::-1] @ v), grid(RNG, (3,)), xs[0])


def uses_of_a_weight_in_blocks():
    before = ops._CACHED
    try:
        for ops._CACHED in (0, 7, 13, 24):
            uses_of_a_weight()
    finally:
        ops._CACHED = before


def uses_of_one_array():
    """Reads, look-ups and parts of one array, in any order, that overlap or do not."""
    x, i = grid(RNG, (4, 3)), np.array([0, 2, 2])
    check(lambda x: x[0] * x[1:4] + x[i] * x[-1] + ops.sum(x[:, ::2]), x)
    check(lambda x: ops.take(x, i) * ops.take(x, i[::-1]) + ops.take(x, np.array(1)), x)
    for axis, cuts in [
        (0, [(0, 1), (1, 4)]), (0, [(1, 4), (0, 1)]), (1, [(0, 2), (2, 3)]), (0, [(0, 2), (1, 4)]),
        (1, [(0, 1), (2, 3)]), (1, [(1, 3)]), (0, [(0, 3), (3, 3)]), (0, [(0, 2), (2, 3)]),
        (1, [(0, 1), (0, 3), (1, 3)]),
    ]:  # fmt: skip

        def parts(x, axis=axis, cuts=cuts):
            ys = [ops.part(x, axis=axis, start=a, stop=b) for a, b in cuts]
            return sum((ops.sum(y * y) * (k + 1.0) for k, y in enumerate(ys)), ops.sum(x))

        check(parts, x)

    def mixed(x):
        a, b = (ops.part(x, axis=axis, start=0, stop=2) for axis in (0, 1))
        c = ops.part(x, axis=1, start=2, stop=3)
        return ops.sum(a * a) + ops.sum(b * b * b) + ops.sum(c)

    check(mixed, x)

    def looks_like_tiles(x):
        a, b = ops.part(x, axis=0, start=0, stop=2), ops.part(x, axis=1, start=2, stop=3)
        return ops.sum(a * a) + ops.sum(b * b * b)

    check(looks_like_tiles, x)


def a_tie_shares_the_gradient():
    """Where both operands are one array, max(x, x) = x: its gradient is 1; likewise along axes."""
    for a in (np.array([1.5, -2.0, 0.0]), np.array(0.25)):
        x = Tensor(a, requires_grad=True)
        for op in (ops.maximum, ops.minimum):
            y, z = Tensor(a, requires_grad=True), Tensor(a, requires_grad=True)
            u = a + 1
            by_both = grad(op(y, z), [y, z], u)
            np.testing.assert_array_equal(by_both[0], u / 2)
            np.testing.assert_array_equal(by_both[1], u / 2)
            np.testing.assert_array_equal(grad(op(x, x), x, u), u)
    for axis, n in ((0, 2), (1, 3), (None, 6)):
        x = Tensor(np.ones((2, 3)), requires_grad=True)
        g = grad(x.max(axis).sum(), x)
        np.testing.assert_allclose(g, 1 / n)
    z = Tensor([0.0, 1.0, -1.0], requires_grad=True)
    np.testing.assert_array_equal(grad(abs(z).sum(), z), [0, 1, -1])


def powers_at_their_edges():
    from tests import test_ops

    for x, y, by_x in [(0.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.0, 2.0, 0.0), (-2.0, 3.0, 12.0),
                       (-2.0, -2.0, 0.25), (-0.5, 0.0, 0.0), (-1.5, 1.0, 1.0)]:  # fmt: skip
        test_ops.test_pow_at_its_edges(x, y, by_x)
    test_ops.test_pow_mixed_second_derivative_where_the_exponent_is_zero()


def other_types():
    """Gradients have the type of what they are the gradient of."""
    from tests import test_ops

    test_ops.test_astype_converts_the_gradient_back()
    for name in [n for n in NAMES if n != "astype"]:
        for case in cases_of(name):
            low = case.replace(lambda x: x.astype(np.float32))
            y = low(*low.inputs)
            assert y.dtype == np.float32, name
            u = grid(np.random.default_rng(0), y.shape).astype(np.float32)
            for g, h in zip(low.gradients(u), case.gradients(u.astype(np.float64)), strict=True):
                assert g.dtype == np.float32, name
                np.testing.assert_allclose(g, h, rtol=1e-4, atol=1e-5)


def a_large_product():
    """The way that large matrices take, on small ones."""
    before = ops._LARGE
    try:
        ops._LARGE = 1
        rules_of("matmul")()
    finally:
        ops._LARGE = before


def a_weight_is_used_in_blocks_that_fit_the_cache():
    """Each block holds as many uses as 24 elements of gradients; one use is no block."""
    seen = []
    before, ops._CACHED, plain = ops._CACHED, 24, ops.concat.forward
    ops.concat.forward = lambda *parts, axis=0: seen.append(len(parts)) or plain(*parts, axis=axis)
    try:
        for rows, blocks in (
            ([1, 2, 5], [3, 3]), ([5, 2, 1, 1, 1], [3, 3, 2, 2]), ([3], []), ([1], []),
            ([11, 1], [2, 2]), ([12, 1], [1, 1, 1, 1]), ([1] * 12, [9, 9, 3, 3]),
        ):  # fmt: skip
            W = Tensor(grid(RNG, (3, 2)), requires_grad=True)
            ys = [Tensor(grid(RNG, (n, 3))) @ W for n in rows[::-1]]  # the newest comes first
            seen.clear()
            grad(ys, W, [grid(RNG, y.shape) for y in ys])
            assert seen == blocks, (rows, seen)
    finally:
        ops._CACHED, ops.concat.forward = before, plain


def a_large_gradient_is_laid_out_by_rows():
    before = ops._LARGE
    try:
        ops._LARGE = 1
        case = drawn(ops.matmul, (2, 3), (3, 4))
        assert ops._matmul_x(case(*case.inputs), None, *case.inputs).flags.c_contiguous
    finally:
        ops._LARGE = before


def what_collects_is_one_call():
    """T reads of one array are one call, not T: the loop stays linear in T."""
    calls = Counter()

    def counted(name, f):
        def run(*args, **kwargs):
            calls[name] += 1
            return f(*args, **kwargs)

        return run

    for op in (ops.scatter, ops.concat):
        op.forward = counted(op.name, op.forward)
    x, W, i = grid(RNG, (4, 6)), grid(RNG, (6, 2)), np.array([0, 1])

    def made(f, *arrays):
        leaves = [Tensor(a, requires_grad=True) for a in arrays]
        y = f(*leaves)
        calls.clear()
        grad(y, leaves)
        return dict(calls)

    assert made(lambda x: ops.sum(x[0] * x[1] * x[i] * x[2:3]), x) == {"scatter": 1}
    assert made(lambda x: ops.sum(ops.take(x, i) * ops.take(x, i)), x) == {"scatter": 1}
    assert made(lambda W: ops.sum((x @ W) * (x[:1] @ W)), W) == {"concat": 2}
    for width in (2, 3, 6):
        found = made(lambda x: sum(ops.sum(p * p) for p in split(x, 6 // width)), x)  # noqa: B023
        assert found == {"concat": 1}


HELPERS = {  # function: the ops whose cases use it
    "_matmul": ["matmul"], "_rows": ["matmul"], "_sum": ["sum"], "_max": ["max"],
    "_kept": ["sum", "max"], "_getitem": ["getitem"], "_scatter": ["scatter"], "_take": ["take"],
    "_part": ["part"], "_concat": ["concat"], "_fill": ["getitem", "scatter"],
    "_holds": ["getitem", "scatter"], "total": ["matmul"], "unbroadcast": ["add", "where"],
}  # fmt: skip
COMPOSED = [uses_of_one_array, uses_of_a_weight, a_large_product, uses_of_a_weight_in_blocks]
REST = [
    a_tie_shares_the_gradient, rules_and_collectors_agree, powers_at_their_edges, other_types,
    a_weight_is_used_in_blocks_that_fit_the_cache, what_collects_is_one_call,
    a_large_gradient_is_laid_out_by_rows,
]  # fmt: skip


def kit(function):
    """Return the checks of the kit, those first that use the function."""
    first = function.split(".")[0]
    near = [n for start, names in HELPERS.items() if first.startswith(start) for n in names]
    names = [*([first] if first in ALL else []), *near, *NAMES]
    found = [rules_of(name) for name in dict.fromkeys(names)]
    return [*found[: 1 + len(near)], *COMPOSED, *found[1 + len(near) :]]
