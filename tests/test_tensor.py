"""Tensor, and gradients of recorded nodes: what each call gives back, step by step."""

import copy
import threading

import numpy as np
import pytest

from tinygrad_rnn import Parameter, Tensor, debug, grad, mark, no_grad, ops, record
from tinygrad_rnn.errors import DtypeError, NonFiniteError


def leaf(values, dtype=np.float64, **more):
    return Tensor(np.asarray(values, dtype), requires_grad=True, **more)


# --- grad and backward ---------------------------------------------------------------------------


def test_grad_of_several_outputs_is_the_weighted_sum():
    x, y = leaf([1.0, 2.0]), leaf(3.0)
    a, b = x * y, y * y
    gx, gy = grad([a, b], [x, y], [[1.0, 10.0], 100.0])
    np.testing.assert_array_equal(gx, [3.0, 30.0])
    assert gy == 1 + 20 + 100 * 6
    np.testing.assert_array_equal(grad([b, b, a.sum()], x), [3.0, 3.0])
    assert grad([b, b, a.sum()], [y]) == [6 + 6 + 3]
    weights = [[1.0, 10.0], None]
    assert grad((a, b), y, weights) == 1 + 20 + 6


def test_grad_of_an_output_by_itself_and_of_one_output_by_another():
    x = leaf([1.0, 2.0])
    h = x * 2.0
    y = h * h
    u = np.array([1.0, 10.0])
    np.testing.assert_array_equal(grad(h, h, u), u)
    np.testing.assert_array_equal(grad([y, h], h, [u, u]), 2 * h.data * u + u)
    g = grad(h, h, u)
    assert not np.shares_memory(g, u)


@pytest.mark.parametrize("create_graph", [False, True])
def test_inputs_that_are_not_reached_get_zeros(create_graph):
    x, z = leaf([1.0, 2.0]), leaf(np.ones((2, 1)), np.float32)
    found = grad((x * x).sum(), [z, x, x > 1], create_graph=create_graph)
    assert [g.shape for g in found] == [(2, 1), (2,), (2,)]
    assert found[0].dtype == np.float32
    assert not np.asarray(found[0]).any()
    assert all(isinstance(g, Tensor if create_graph else np.ndarray) for g in found)


@pytest.mark.parametrize("create_graph", [False, True])
def test_an_index_gets_zeros(create_graph):
    x, i = leaf([1.0, 2.0, 3.0]), Tensor([2, 2])
    for y in (x[i].sum(), ops.take(x, i).sum(), ops.where(i > 0, x[:2], 0.0).sum()):
        g = grad(y, [i], create_graph=create_graph)[0]
        np.testing.assert_array_equal(np.asarray(g), [0, 0])


def test_nodes_inside_the_graph():
    x = leaf([0.5, -1.0])
    h = ops.tanh(x)
    y = (h * h * 3.0).sum()
    gh, gx = grad(y, [h, x])
    np.testing.assert_allclose(gh, 6 * np.tanh(x.data), rtol=1e-15)
    np.testing.assert_allclose(gx, gh * (1 - np.tanh(x.data) ** 2), rtol=1e-15)
    assert x.grad is None
    assert h.grad is None


def test_create_graph_to_the_third_order():
    a, b = leaf(2.0), leaf(-0.5)
    y = a**3 * b**2 + a * b**3
    by_a, by_b = grad(y, [a, b], create_graph=True)
    assert (by_a.item(), by_b.item()) == (12 * 0.25 - 0.125, 16 * -0.5 + 2 * 3 * 0.25)
    aa, ab = grad(by_a, [a, b], create_graph=True)
    assert (aa.item(), ab.item()) == (12 * 0.25, 24 * -0.5 + 3 * 0.25)
    assert [float(g) for g in grad(aa, [a, b])] == [6 * 0.25, 12 * 2 * -0.5]
    assert [float(g) for g in grad(ab, [a, b])] == [12 * 2 * -0.5, 6 * 4 + 6 * -0.5]
    x = leaf([1.0, 2.0])
    cubes = (x * x * x * x).sum()
    for order, factor in ((1, 4), (2, 12), (3, 24)):
        first = grad(cubes, x, create_graph=True)
        np.testing.assert_array_equal(first.data, factor * x.data ** (4 - order))
        cubes = first.sum()


def test_recorded_gradients_can_be_the_loss():
    """A gradient penalty: backward() runs through what create_graph recorded."""
    x, w = leaf([1.0, 2.0]), leaf([3.0, 5.0])
    g = grad((w * w * x * x).sum(), x, create_graph=True)
    (g * g).sum().backward()
    np.testing.assert_array_equal(w.grad, 16 * w.data**3 * x.data**2)


def test_backward_accumulates_until_it_is_cleared():
    for values in (2.0, [1.0, 2.0], np.zeros((0, 2))):
        x = leaf(values)
        y = (x * 3.0).sum()
        for k in (1, 2, 3):
            y.backward()
            assert type(x.grad) is np.ndarray
            np.testing.assert_array_equal(x.grad, np.full(x.shape, 3.0 * k), strict=True)
        x.grad = None
        y.backward(2.0)
        np.testing.assert_array_equal(x.grad, np.full(x.shape, 6.0), strict=True)


def test_gradients_kept_by_the_caller_do_not_change():
    x = leaf([1.0, 2.0])
    y = x + 0.0
    u = np.ones(2)
    y.backward(u)
    first = x.grad
    y.backward(u)
    np.testing.assert_array_equal(first, [1, 1])
    np.testing.assert_array_equal(x.grad, [2, 2])
    assert not np.shares_memory(first, u)
    x.grad[:] = 7.0
    np.testing.assert_array_equal(u, [1, 1])


def test_gradients_of_a_list_share_no_memory():
    x, y = leaf([1.0]), leaf([1.0])
    a, b = grad((x + y).sum(), [x, y])
    a[:] = 5.0
    assert b[0] == 1.0


def test_only_leaves_and_retained_nodes_store_gradients():
    x, frozen = leaf([1.0, 2.0]), Tensor([3.0, 4.0])
    h = x * frozen
    k = h * 1.0
    k.retain_grad()
    (k * k).sum().backward()
    np.testing.assert_array_equal(k.grad, 2 * k.data)
    np.testing.assert_array_equal(x.grad, k.grad * frozen.data)
    assert h.grad is None
    assert frozen.grad is None


def test_grad_can_be_assigned_and_is_converted():
    x = leaf([1.0, 2.0], np.float32)
    x.grad = [1, 2]
    assert x.grad.dtype == np.float32
    (x * 1).sum().backward()
    np.testing.assert_array_equal(x.grad, np.array([2, 3], np.float32), strict=True)
    x.grad = None
    assert x.grad is None


def test_a_gradient_has_the_dtype_of_its_leaf():
    x = leaf([1.0, 2.0], np.float32)
    y = x.astype(np.float64) * np.array([1 / 3, 2.0])
    y.backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, np.array([1 / 3, 2.0], np.float32), strict=True)
    np.testing.assert_array_equal(grad(x * 2, x, [1.0, 2.0]).dtype, np.float32)


# --- recording -----------------------------------------------------------------------------------


def test_nothing_is_recorded_without_need():
    x, w = Tensor([1.0]), leaf([2.0])
    assert (x * 2.0).op is None
    assert (x * 2.0).inputs == ()
    assert (x * w).op is ops.mul
    with no_grad():
        y = x * w
        with record():
            assert (x * 2.0).op is ops.mul
        assert (x * w).op is None
    assert (y.op, y.requires_grad) == (None, False)
    with record():
        z = x * 2.0
        with no_grad():
            assert (x * 2.0).op is None
        assert not z.requires_grad
    assert z.inputs[0] is x
    assert grad(z, x) == 2.0


def test_no_grad_ends_with_an_error_too():
    x = leaf([1.0])
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert (x * 2.0).requires_grad


def test_no_grad_holds_for_its_own_thread():
    x, inside, done = leaf([1.0]), threading.Event(), threading.Event()
    found = {}

    def other():
        with no_grad():
            inside.set()
            assert done.wait(10)
            found["other"] = (x * 2.0).requires_grad

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    found["main"] = (x * 2.0).requires_grad
    done.set()
    thread.join()
    assert found == {"main": True, "other": False}


def test_marks_name_nodes_once():
    h = leaf([1.0]) * 2.0
    mark(h=h, other=3)
    mark(again=h)
    assert h.name == "h"


# --- dtypes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_python_numbers_are_weak(dtype):
    x = leaf([1.0, 2.0], dtype)
    results = [x + 1, 1 + x, x * 2.5, 2.5 - x, x / 3, 1 / x, x**2, 2.0**x, x @ [1.0, 2.0], -x]
    results += [x + True, x.__add__([1, 2]), ops.where([True, False], x, 0.0)]
    assert {y.dtype for y in results} == {np.dtype(dtype)}
    if np.dtype(dtype).kind == "f":
        results += [ops.maximum(x, 0), ops.maximum(0.0, x)]
        assert (x + 1j).dtype == np.result_type(dtype, 1j)
    for y in results:
        assert grad(y.sum(), x).dtype == dtype


def test_integers_and_booleans_take_the_floating_type():
    x = leaf([1.0, 2.0], np.float32)
    for y in (
        x * np.array([1, 2]),
        np.array([True, False]) * x,
        x + Tensor([1, 2]),
        x + np.int64(1),
    ):
        assert y.dtype == np.float32
        assert grad(y.sum(), x).dtype == np.float32
    assert ops.concat(x, Tensor([1, 2])).dtype == np.float32
    assert (Tensor([1, 2]) * 2).dtype == np.int64
    assert (Tensor([1, 2]) * 0.5).dtype == np.float64
    assert x[np.array([0, 1])].inputs[1].dtype == np.int64


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, y: x + y, lambda x, y: y @ x, lambda x, y: x * y.data, lambda x, y: y.data * x,
        lambda x, y: x * np.float64(2), lambda x, y: ops.concat(x, y),
        lambda x, y: ops.where(x > 0, x, y), lambda x, y: x + y.astype(np.complex128),
    ],
)  # fmt: skip
def test_two_floating_types_do_not_mix(mix):
    x, y = leaf([1.0], np.float32, name="x"), leaf([1.0], name="y")
    with pytest.raises(DtypeError, match=r"mixed with .*Tensor\.astype\('"):
        mix(x, y)


def test_complex_and_real_of_one_precision_mix():
    x, y = leaf([1.0 + 2j], np.complex128), leaf([2.0])
    z = x * y
    gx, gy = grad(z, [x, y], [1.0])
    assert (z.dtype, gx.dtype) == (np.complex128, np.complex128)
    assert (gx[0], gy[0]) == (2.0, 1 + 2j)  # analytic: not conjugated


# --- what NumPy users expect ---------------------------------------------------------------------


def test_arrays_stand_on_both_sides():
    a, x = np.array([[1.0, 2.0], [3.0, 4.0]]), leaf([1.0, 2.0])
    pairs = [
        (a + x, a + x.data), (a - x, a - x.data), (a * x, a * x.data), (a / x, a / x.data),
        (a @ x, a @ x.data), (a**x, a**x.data), (a < x, a < x.data), (a == x, a == x.data),
        (x - a, x.data - a), (x @ a, x.data @ a), (abs(-x), x.data),
    ]  # fmt: skip
    for y, want in pairs:
        assert isinstance(y, Tensor)
        np.testing.assert_array_equal(y.data, want, strict=True)


def test_methods_are_named_as_in_numpy():
    a = np.arange(24.0).reshape(2, 3, 4)
    x = leaf(a)
    same = [
        (x.sum(), a.sum()), (x.sum(axis=(0, -1)), a.sum(axis=(0, -1))), (x.mean(1), a.mean(1)),
        (x.mean(axis=0, keepdims=True), a.mean(0, keepdims=True)), (x.max(-1), a.max(-1)),
        (x.min((0, 1)), a.min((0, 1))), (x.reshape(6, -1), a.reshape(6, -1)),
        (x.reshape((4, 6)), a.reshape(4, 6)), (x.transpose(), a.transpose()), (x.T, a.T),
        (x.transpose(2, 0, 1), a.transpose(2, 0, 1)), (x.mT, a.mT), (x[1, ..., 0], a[1, ..., 0]),
        (x.transpose((0, -1, 1)), a.transpose(0, -1, 1)), (x.astype(np.float32), a.astype("f4")),
    ]  # fmt: skip
    for y, want in same:
        np.testing.assert_array_equal(y.data, want, strict=True)
    assert (x.shape, x.ndim, x.size, x.dtype, len(x)) == ((2, 3, 4), 3, 24, np.float64, 2)
    assert x.numpy() is x.data is a


def test_iteration_conversion_and_truth():
    x = leaf([1.5, -2.0], name="x")
    assert [y.item() for y in x] == [1.5, -2.0]
    assert [y.op for y in x] == [ops.getitem] * 2
    a, b = x
    assert (float(a), int(b), bool(a), f"{a:.3f}") == (1.5, -2, True, "1.500")
    assert not Tensor(0.0)
    assert bool(Tensor([[1]]))
    np.testing.assert_array_equal(np.asarray(x), x.data)
    assert np.shares_memory(np.asarray(x), x.data)
    assert not np.shares_memory(np.array(x), x.data)
    assert np.asarray(x, np.float32).dtype == np.float32
    assert len({x, a, b, x}) == 3


def test_repr_and_format():
    x = leaf([1.0, 2.0], name="x")
    assert repr(x) == "Tensor([1., 2.], dtype=float64, name='x', requires_grad=True)"
    assert repr(x * 2) == "Tensor([2., 4.], dtype=float64, op=mul)"
    assert f"{Tensor(1.0)}" == "Tensor(1., dtype=float64)"
    assert repr(Parameter(np.float32(2))) == "Parameter(2., dtype=float32, requires_grad=True)"
    assert len(repr(Tensor(np.zeros(10_000)))) < 200


def test_deepcopy_copies_leaves():
    x = Parameter([1.0, 2.0], name="W")
    x.grad = [3.0, 4.0]
    y, again = copy.deepcopy([x, x])
    assert y is again
    assert (type(y), y.name, y.requires_grad) == (Parameter, "W", True)
    y.data[:] = 0.0
    y.grad[:] = 0.0
    np.testing.assert_array_equal(x.data, [1.0, 2.0])
    np.testing.assert_array_equal(x.grad, [3.0, 4.0])


def test_a_parameter_owns_its_data_and_a_tensor_does_not():
    a = np.array([1.0, 2.0])
    assert np.shares_memory(Tensor(a).data, a)
    assert not np.shares_memory(Parameter(a).data, a)
    x = leaf([1.0, 2.0])
    x.data[0] = 5.0
    np.testing.assert_array_equal(grad((x * x).sum(), x), [10.0, 4.0])


# --- debug ---------------------------------------------------------------------------------------


def test_debug_names_the_op_that_gives_the_first_nonfinite_value():
    x = leaf([1.0, 0.0, -1.0], name="p")
    with (
        debug(),
        pytest.raises(NonFiniteError, match=r"log gave -inf at \[1\] from finite inputs p \(3,\)"),
    ):
        ops.log(x)
    with debug(), pytest.raises(NonFiniteError, match=r"data \(2,\) holds nan at \[1\]"):
        Tensor([0.0, np.nan])
    y = leaf([np.inf], name="y")
    with (
        debug(),
        pytest.raises(NonFiniteError, match=r"add gave inf at \[0\] from inputs y \(1,\)"),
    ):
        y + 1.0


def test_debug_names_the_node_whose_gradient_is_not_finite():
    x = leaf([4.0, 0.0], name="x")
    with debug():
        y = ops.sqrt(x).sum()
        with pytest.raises(NonFiniteError, match=r"gradient that reached x \(2,\) is inf at \[1\]"):
            y.backward()
        with pytest.raises(NonFiniteError, match=r"gradient that reached x \(2,\) is inf at \[1\]"):
            grad(y, x)


def test_debug_catches_a_write_to_a_saved_array():
    a = np.array([1.0, 2.0])
    x = leaf(a, name="x")
    with debug():
        h = x * x
        y = ops.tanh(h).sum()
        for array in (a, h.data):
            with pytest.raises(ValueError, match="read-only"):
                array += 1.0
        y.backward()
        a += 1.0  # the graph has been used
        z = (x * x).sum()
        with pytest.raises(ValueError, match="read-only"):
            a[0] = 9.0
    a[0] = 7.0  # and after the context
    assert z.item() == 13.0
    assert h.data.flags.writeable


def test_debug_leaves_arrays_writeable_after_an_error():
    x = leaf([1.0, 2.0])
    with pytest.raises(NonFiniteError), debug():
        (x[:1] * x).sum() / 0.0
    x.data[0] = 3.0
    assert x.data[0] == 3.0
    fixed = np.array([1.0])
    fixed.flags.writeable = False
    with debug():
        leaf(fixed) * 2.0
    assert not fixed.flags.writeable


def test_debug_changes_no_result():
    def run():
        x = leaf([[0.5, -1.0], [2.0, 3.0]])
        return grad((ops.sigmoid(x @ x.T) * x[0]).sum(), x)

    with debug():
        inside = run()
    np.testing.assert_array_equal(inside, run())


def test_a_node_asked_for_twice_gets_two_arrays():
    x = Tensor([1.0, 2.0], requires_grad=True)
    first, second = grad((x * x).sum(), [x, x])
    first += 1
    assert second.tolist() == [2.0, 4.0]


def test_a_tensor_cotangent_of_another_type_is_converted():
    x = Tensor([1.0, 2.0], requires_grad=True)
    g = grad(x * x, x, Tensor(np.ones(2, np.float32)), create_graph=True)
    assert g.dtype == np.float64
    assert g.numpy().tolist() == [2.0, 4.0]


def test_shapes_may_be_numpy_integers():
    x = Tensor(np.arange(6.0))
    assert x.reshape(np.int64(2), np.int64(3)).shape == (2, 3)
    assert x.reshape(np.int64(6)).shape == (6,)


def test_numpys_type_errors_name_the_op():
    with pytest.raises(DtypeError, match=r"neg: mask \(1,\) do not fit"):
        -Tensor([True], name="mask")
