"""Transforms of functions: what they give, and that they nest."""

import numpy as np
import pytest

from tinygrad_rnn import (
    Tensor,
    grad,
    hvp,
    jacobian,
    jvp,
    no_grad,
    ops,
    record,
    value_and_grad,
    vjp,
)
from tinygrad_rnn.errors import GraphError, ShapeError

X = np.array([0.5, -1.5, 2.0])


def cube(x):
    return x * x * x


@pytest.mark.parametrize(
    ("f", "slope"),
    [
        (lambda x: x, np.ones(3)),
        (lambda x: x + 1, np.ones(3)),
        (lambda x: 2 - x, -np.ones(3)),
        (cube, 3 * X**2),
        (ops.tanh, 1 - np.tanh(X) ** 2),
        (lambda x: Tensor(X), np.zeros(3)),
    ],
)
def test_jvp_is_slope_times_tangent(f, slope):
    v = np.array([1.0, 2.0, -3.0])
    y, dy = jvp(f, (X,), (v,))
    np.testing.assert_allclose(dy, slope * v, rtol=1e-14)
    assert isinstance(y, np.ndarray)


def test_jvp_adds_over_inputs_and_takes_several_outputs():
    y, dy = jvp(lambda x, y: x + y * y, ([3.0], [4.0]), ([1.0], [1.0]))
    assert (y.tolist(), dy.tolist()) == ([19.0], [9.0])
    (a, b), (da, db) = jvp(lambda x, y: (x, y * 2), ([3.0], [4.0]), ([5.0], [6.0]))
    assert (a, b, da, db) == (3.0, 8.0, 5.0, 12.0)


def test_vjp_and_jvp_are_adjoint():
    rng = np.random.default_rng(0)
    A, x, v, u = (rng.standard_normal(s) for s in [(4, 3), 3, 3, 4])

    def f(x):
        return ops.tanh(A @ x)

    _, pullback = vjp(f, x)
    assert jvp(f, (x,), (v,))[1] @ u == pytest.approx(pullback(u)[0] @ v, rel=1e-13)


def test_value_and_grad_of_chosen_arguments():
    def f(x, y, scale):
        return (x * y * scale).sum()

    value, (gx, gy) = value_and_grad(f, argnums=(0, 1))(X, X + 1, 2.0)
    assert value == pytest.approx(2 * (X * (X + 1)).sum())
    np.testing.assert_allclose(gx, 2 * (X + 1))
    np.testing.assert_allclose(gy, 2 * X)


@pytest.mark.parametrize("wrap", [np.asarray, Tensor])
@pytest.mark.parametrize("context", [no_grad, record])
def test_every_transform_works_on_arrays_and_plain_tensors_everywhere(wrap, context):
    with context():
        x = wrap(X)
        assert value_and_grad(lambda x: cube(x).sum())(x)[1].tolist() == (3 * X**2).tolist()
        np.testing.assert_allclose(jacobian(cube)(x), np.diag(3 * X**2))
        np.testing.assert_allclose(vjp(cube, x)[1](np.ones(3))[0], 3 * X**2)
        np.testing.assert_allclose(jvp(cube, (x,), (np.ones(3),))[1], 3 * X**2)
        np.testing.assert_allclose(hvp(lambda x: cube(x).sum(), (x,), (np.ones(3),))[0], 6 * X)


def test_they_nest():
    second = jacobian(jacobian(cube))(np.array([1.0, 2.0]))
    assert second[:, [0, 1], [0, 1]].tolist() == [[6.0, 0.0], [0.0, 12.0]]
    slope = value_and_grad(lambda x: jvp(cube, (x,), (np.ones(3),))[1].sum())(X)[1]
    np.testing.assert_allclose(slope, 6 * X)
    third = value_and_grad(lambda x: hvp(lambda x: cube(x).sum(), (x,), (np.ones(3),))[0].sum())(X)
    np.testing.assert_allclose(third[1], 6 * np.ones(3))


@pytest.mark.parametrize("inner", [jacobian, value_and_grad])
def test_an_outer_gradient_passes_through_arguments_that_were_not_chosen(inner):
    def f(w):
        y = inner(lambda x, w: x * w)(np.array(1.0), w)
        return w * (y[1] if isinstance(y, tuple) else y)  # w * dy/dx = w^2

    assert value_and_grad(f)(np.array(3.0)) == (9.0, 6.0)


def test_an_empty_output_has_an_empty_jacobian():
    assert jacobian(lambda x: x[:0])(X).shape == (0, 3)


def test_a_tangent_of_another_shape():
    with pytest.raises(ShapeError, match=r"tangent of an input \(3,\) cannot be \(2,\)"):
        jvp(cube, (X,), (np.ones(2),))


def test_a_function_that_returns_no_tensor():
    with pytest.raises(GraphError, match="returned float, not a Tensor"):
        vjp(lambda x: 1.0, X)


def test_integers_inside_a_record_stop_gradients():
    x = Tensor([1.5, 2.5], requires_grad=True)
    with record():
        y = (x * x.astype(int)).sum()
    assert grad(y, x).tolist() == [1.0, 2.0]
    y.backward()
    assert x.grad.tolist() == [1.0, 2.0]
