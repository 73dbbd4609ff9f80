"""Every primitive, by table: gradients, layouts, dtypes, integrity and what its record declares."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.op_cases import (
    ALL,
    BINARY,
    BROADCASTS,
    CASES,
    COMPARISONS,
    DIFFERENTIABLE,
    INDICES,
    MATMULS,
    RNGS,
    Case,
    draw_inputs,
    flows,
    getitem_case,
    grid,
)  # fmt: skip
from tinygrad_rnn import Tensor, grad, ops, record
from tinygrad_rnn.testing import check_op, uncovered
from tinygrad_rnn.testing.estimate import complex_step, ridders
from tinygrad_rnn.testing.registry import check_case


def test_every_op_has_a_case():
    assert uncovered() == [], "ops that no test can be made for"
    assert all(op.doc and op.formula for op in ALL.values())


OF_A_FUNCTION = "recompute"  # as linear as the function it is given


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ALL))
def test_gradients_dtypes_and_integrity(name):
    """First and second order, float64 and float32, by arrays and by Tensors; or that none flows."""
    check_op(ALL[name], max_examples=20 if name == OF_A_FUNCTION else None)  # each is a loop


@pytest.mark.parametrize("name", sorted(set(BINARY) - set(COMPARISONS)))
def test_gradients_of_broadcast_operands(name):
    rng = np.random.default_rng(0)
    for shapes in BROADCASTS:
        for pair in (shapes, shapes[::-1]):
            check_case(Case(ALL[name], draw_inputs(ALL[name], pair, rng)))


def test_gradients_of_where_with_three_broadcast_operands():
    rng = np.random.default_rng(1)
    for shapes in [
        ((3, 1), (1, 2), ()),
        ((), (2, 3), (3,)),
        ((2,), (2, 2), (1,)),
        ((0, 1), (), (3,)),
    ]:
        check_case(Case(ops.where, draw_inputs(ops.where, shapes, rng)))


@pytest.mark.parametrize("shapes", MATMULS)
def test_gradients_of_matmul(shapes):
    check_case(Case(ops.matmul, draw_inputs(ops.matmul, shapes, np.random.default_rng(2))))


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_gradients_of_indices(index):
    x = grid(np.random.default_rng(3), (3, 4, 2))
    case = getitem_case(x, index)
    np.testing.assert_array_equal(case(*case.inputs), x[index])
    check_case(case)
    u = grid(np.random.default_rng(4), x[index].shape)
    want = np.zeros_like(x)
    np.add.at(want, index, u)
    np.testing.assert_array_equal(case.gradients(u)[0], want)


def test_ties_share_the_gradient():
    x, y = Tensor([1.0, 2.0, 3.0], requires_grad=True), Tensor([1.0, 5.0, 0.0], requires_grad=True)
    for op, gx in ((ops.maximum, [0.5, 0, 1]), (ops.minimum, [0.5, 1, 0])):
        found = grad(op(x, y).sum(), [x, y])
        np.testing.assert_array_equal(found[0], gx)
        np.testing.assert_array_equal(found[1], 1 - np.array(gx))
    a = Tensor([[2.0, 2.0, 1.0], [2.0, 0.0, 0.0]], requires_grad=True)
    for axis, want in (
        (None, [[1 / 3, 1 / 3, 0], [1 / 3, 0, 0]]),
        (1, [[0.5, 0.5, 0], [1, 0, 0]]),
        (0, [[0.5, 1, 1], [0.5, 0, 0]]),
    ):
        np.testing.assert_array_equal(grad(a.max(axis).sum(), a), want)
    z = Tensor(0.0, requires_grad=True)
    assert grad(abs(z), z) == 0.0


@pytest.mark.parametrize(
    ("x", "y", "by_x"),
    [(0.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.0, 2.0, 0.0), (-2.0, 3.0, 12.0), (-2.0, -2.0, 0.25),
     (-0.5, 0.0, 0.0), (-1.5, 1.0, 1.0)],
)  # fmt: skip
def test_pow_at_its_edges(x, y, by_x):
    for exponent in (y, np.float64(y), int(y)):
        a = Tensor(x, requires_grad=True)
        first = grad(a**exponent, a, create_graph=True)
        assert first.item() == by_x
        assert grad(first, a) == (y * (y - 1) * x ** (y - 2) if y * (y - 1) else 0.0)
    if x >= 0:  # by the exponent, 0 ** y is constant for y > 0; for 0 ** 0 it is taken as constant
        a, b = Tensor(x, requires_grad=True), Tensor(y, requires_grad=True)
        assert [float(g) for g in grad(a**b, [a, b])] == [by_x, 0.0]


def test_pow_mixed_second_derivative_where_the_exponent_is_zero():
    x, y = Tensor(2.0, requires_grad=True), Tensor(0.0, requires_grad=True)
    by_x, by_y = grad(x**y, [x, y], create_graph=True)
    assert grad(by_x, y) == pytest.approx(0.5, rel=1e-15)  # d/dy of y x^(y - 1)
    assert grad(by_y, x) == pytest.approx(0.5, rel=1e-15)


def test_sigmoid_saturates_silently_and_is_accurate_below():
    for dtype in (np.float64, np.float32, np.complex128):
        x = np.array([-800, 800, 0], dtype)
        np.testing.assert_array_equal(ops.sigmoid(x), np.array([0, 1, 0.5], dtype), strict=True)
        t = Tensor(x, requires_grad=True)
        np.testing.assert_array_equal(grad(ops.sigmoid(t).sum(), t), np.array([0, 0, 0.25]))
    want = math.exp(-40) / (1 + math.exp(-40))
    assert ops.sigmoid(np.array(-40.0)) == pytest.approx(want, rel=1e-15, abs=0)
    assert ops.sigmoid(np.float32(-40)) == pytest.approx(want, rel=1e-6, abs=0)
    for integers in (np.array(-40), np.array(-40, np.int8)):
        assert ops.sigmoid(integers) == pytest.approx(want, rel=1e-3, abs=0)
    assert ops.sigmoid(np.array(3, np.uint8)) == pytest.approx(1 / (1 + math.exp(-3)), rel=1e-3)
    t = Tensor(-40.0, requires_grad=True)
    assert grad(ops.sigmoid(t), t) == pytest.approx(want * (1 - want), rel=1e-15, abs=0)


def test_log_softmax_far_from_zero():
    x = np.array([1e4, 0.0, -1e4])
    np.testing.assert_array_equal(ops.log_softmax(x), [0.0, -1e4, -2e4])
    np.testing.assert_array_equal(ops.log_softmax(x.astype(np.float32)).dtype, np.float32)


def test_astype_converts_the_gradient_back():
    x = Tensor(np.array([1.5, 2.5], np.float32), requires_grad=True)
    y = x.astype(np.float64)
    g = grad(y, x, np.array([1 / 3, 1.0]))
    assert (y.dtype, g.dtype) == (np.float64, np.float32)
    np.testing.assert_array_equal(g, np.array([1 / 3, 1.0], np.float32))
    assert not x.astype(np.int64).requires_grad


# --- layouts, dtypes, integrity ------------------------------------------------------------------


def readonly(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def fortran(x):
    return x.copy(order="F")


def inner(x):
    """A view of a larger array, by strides that fit no packed layout."""
    whole = np.full([2 * n + 1 for n in x.shape], np.nan)
    view = whole[(..., *[slice(1, None, 2)] * x.ndim)]
    view[...] = x
    return view


def backwards(x):
    flip = (..., *[slice(None, None, -1)] * x.ndim)
    return x[flip].copy()[flip]


def repeated(x):
    return np.broadcast_to(x.flat[0] if x.size else 0.0, x.shape)


LAYOUTS = [fortran, inner, backwards, readonly, repeated]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", sorted(ALL))
@given(data=st.data())
def test_layouts_do_not_matter(layout, name, data):
    case = data.draw(CASES[name])
    odd = case.replace(layout)
    plain = odd.replace(lambda x: np.array(x, order="C", copy=True))
    y, want = odd(*odd.inputs), plain(*plain.inputs)
    np.testing.assert_allclose(y, want, rtol=1e-14, atol=1e-15, strict=True)
    if name in COMPARISONS:
        return
    u = grid(np.random.default_rng(0), want.shape)
    for cotangent in (u, layout(u)):
        plainly = plain.gradients(np.array(cotangent))
        for g, h in zip(odd.gradients(cotangent), plainly, strict=True):
            np.testing.assert_allclose(g, h, rtol=1e-13, atol=1e-14, strict=True)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@given(data=st.data())
def test_values_in_float32_are_those_in_float64(name, data):
    case = data.draw(CASES[name])
    if name == "astype":
        case = case._replace(attrs={"dtype": np.float32})
    low = case.replace(lambda x: x.astype(np.float32))
    y, want = low(*low.inputs), case(*case.inputs)
    assert y.dtype == np.float32
    assert np.linalg.norm(y - want) <= 64 * np.finfo(np.float32).eps * np.linalg.norm(want)


# --- what the record declares --------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(n for n in DIFFERENTIABLE if ALL[n].linear))
@given(data=st.data(), rng=RNGS)
def test_linear_ops_meet_their_adjoint_exactly(name, data, rng):
    """<A x, u> = <x, A'u> to the bit, on multiples of 1/8; and A(2x + z) = 2 A x + A z."""
    case = data.draw(CASES[name])
    y = case(*case.inputs)
    u = grid(rng, y.shape)
    left = np.sum(y * u)
    products = [
        np.sum(case.inputs[k] * g) for k, g in zip(case.wrt, case.gradients(u), strict=True)
    ]
    jointly = name not in {"mul", "matmul"}
    assert left == sum(products) if jointly else all(left == p for p in products)
    for change in [case.wrt] if jointly else [[k] for k in case.wrt]:
        z = [grid(rng, x.shape) if k in change else x for k, x in enumerate(case.inputs)]
        mixed = [2 * x + z[k] if k in change else x for k, x in enumerate(case.inputs)]
        np.testing.assert_array_equal(case(*mixed), 2 * y + case(*z))


@pytest.mark.parametrize(
    "name", sorted(n for n in DIFFERENTIABLE if not ALL[n].linear and n != OF_A_FUNCTION)
)
def test_ops_that_declare_no_linearity_have_none(name):
    op, rng = ALL[name], np.random.default_rng(0)
    n = op.signature.split("->")[0].count("(") if op.signature else 1
    x = draw_inputs(op, [(20,)] * n, rng)
    for k in range(n):
        negated = [-a if j == k else a for j, a in enumerate(x)]
        with np.errstate(invalid="ignore"):  # log(-1)
            if not np.array_equal(op(*negated), -op(*x)):
                return
        tripled = [3 * a if j == k else a for j, a in enumerate(x)]
        if not np.allclose(op(*tripled), 3 * op(*x), rtol=1e-12):
            return
    pytest.fail(f"{name} looks linear in each input and does not say so")


@pytest.mark.parametrize("name", sorted(n for n in DIFFERENTIABLE if ALL[n].complex_safe))
@given(data=st.data(), rng=RNGS)
def test_complex_safe_ops_are_so(name, data, rng):
    """Complex step and Ridders' method, which knows no complex numbers, agree on the forward."""
    case = data.draw(CASES[name])
    u = rng.standard_normal(case(*case.inputs).shape)
    v = [rng.uniform(-1, 1, x.shape) for x in case.inputs]

    def along(t):
        moved = [
            x + t * d if k in case.wrt else x
            for k, (x, d) in enumerate(zip(case.inputs, v, strict=True))
        ]
        return np.sum(u * case(*moved)).reshape(1)

    want, error = ridders(along, h=0.02)
    assert abs(complex_step(along) - want) <= error + 1e-11 * max(1, abs(want[0]))


@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
def test_ops_that_declare_no_complex_safety_mislead_a_complex_step():
    x = np.array([-1.0, 2.0])
    attrs = {"astype": {"dtype": np.float64}}
    unsafe = [ALL[name] for name in DIFFERENTIABLE if not ALL[name].complex_safe]
    assert {op.name for op in unsafe} >= {"abs", "astype"}
    for op in unsafe:

        def along(t, op=op):
            return np.sum(np.array([1.0, 3.0]) * op(x + t, **attrs.get(op.name, {}))).reshape(1)

        want, error = ridders(along)
        assert abs(np.nan_to_num(complex_step(along)) - want) > error, op


@pytest.mark.parametrize("name", sorted(COMPARISONS))
@given(data=st.data())
def test_comparisons_are_recorded_and_pass_no_gradient(name, data):
    case = data.draw(CASES[name])
    x, y = (Tensor(a, requires_grad=True) for a in case.inputs)
    z = ALL[name](x, y)
    np.testing.assert_array_equal(z.data, getattr(np, name)(*case.inputs), strict=True)
    assert z.op is ALL[name]
    assert not z.requires_grad
    assert not flows(ALL[name], 0)
    assert not flows(ALL[name], 1)
    found = grad((ops.where(z, x, y) * 2.0).sum(), [x, y])
    mask = np.broadcast_to(z.data, z.shape)
    want = grad((ops.where(mask, x, y) * 2.0).sum(), [x, y])
    np.testing.assert_equal(found, want)
    with record():
        assert ALL[name](Tensor(x.data), y.data).op is ALL[name]
    assert ALL[name](Tensor(x.data), y.data).op is None


def test_a_large_product_takes_the_transposed_way_to_the_same_gradient():
    rng = np.random.default_rng(0)
    x, y, g = (rng.standard_normal(s) for s in [(5, 128), (128, 256), (5, 256)])
    assert y.size >= ops._LARGE
    a, b = Tensor(x, requires_grad=True), Tensor(y, requires_grad=True)
    back = grad(a @ b, [a, b], g)
    np.testing.assert_allclose(back[0], g @ y.T, rtol=1e-13, atol=1e-12)
    np.testing.assert_allclose(back[1], x.T @ g, rtol=1e-13, atol=1e-12)
    assert back[0].flags.c_contiguous


@pytest.mark.parametrize("cached", [0, 7, 13, 1 << 18])
@pytest.mark.parametrize("create_graph", [False, True])
def test_uses_of_a_weight_may_be_collected_in_blocks(cached, create_graph, monkeypatch):
    monkeypatch.setattr(ops, "_CACHED", cached)
    rng = np.random.default_rng(0)
    xs = [rng.standard_normal((n, 3)) for n in (2, 1, 4, 2, 3)]
    W = Tensor(rng.standard_normal((3, 2)), requires_grad=True)
    outputs = [x @ W for x in xs]
    gs = [rng.standard_normal(y.shape) for y in outputs]
    found = np.asarray(grad(outputs, W, gs, create_graph))
    want = sum(x.T @ g for x, g in zip(xs, gs, strict=True))
    np.testing.assert_allclose(found, want, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("mask", [np.array([1.0, 0.0]), np.array([True, False])])
def test_a_mask_says_nothing_of_the_type_of_what_it_chooses(mask):
    x = Tensor(np.float32([3, 4]))
    for chosen in (ops.where(Tensor(mask), x, 0.5), ops.where(Tensor(mask), x.data, 0.5)):
        np.testing.assert_array_equal(chosen.data, np.float32([3, 0.5]), strict=True)
