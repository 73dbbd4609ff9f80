"""What a student, an engineer and the owner of another engine ran into."""

import warnings

import numpy as np
import pytest

from tinygrad_rnn import debug, functional, nn, ops
from tinygrad_rnn.tensor import Parameter, Tensor
from tinygrad_rnn.testing import (
    GradientError,
    Verdict,
    check_grad,
    check_module,
    check_taylor,
    check_vjp,
    derivative,
    from_function,
)


def error_of(f, *inputs, check=check_grad, **settings):
    with pytest.raises(GradientError) as found:
        check(f, *inputs, **settings)
    return found.value


def unreliable(f, *inputs, **settings):
    error = error_of(f, *inputs, **settings)
    assert error.verdict is Verdict.UNRELIABLE, str(error)
    return str(error)


class Pair:
    """The two methods of another engine."""

    def __init__(self, forward, gradient):
        self.forward, self.gradient = forward, gradient

    def vjp(self, arrays, cotangents):
        return (self.gradient(cotangents[0], *arrays),)


# --- kinks ----------------------------------------------------------------------------------------


RELU = Pair(lambda x: np.maximum(x, 0), lambda u, x: u * (x > 0))


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda x: ops.max(x, axis=0), np.ones((3, 2))),
        (lambda x: ops.max(x, axis=1), np.zeros((2, 3))),
        (lambda x: ops.where(x > 0, x, 0.0), np.zeros((2, 2))),
        (lambda x: ops.where(x > 0, x, 0.1 * x), np.zeros((2, 3))),
        (RELU, np.zeros((2, 2))),
        (nn.RNN(2, 2, activation="relu", dtype="float64", rng=0), np.zeros((2, 1, 2))),
    ],
    ids=["max rows", "max columns", "where", "leaky", "foreign relu", "rnn"],
)
def test_kinks_of_several_elements_with_cotangents_of_either_sign(f, x):
    for seed in range(8):
        assert check_grad(f, x, seed=seed).verdict is Verdict.RIGHT


def test_kinks_that_meet_on_the_tape_of_another_engine_are_no_wrong_gradient():
    w = np.array([[1.0], [-2.0], [0.7]])
    net = Pair(lambda x: np.maximum(x, 0) @ w, lambda u, x: (u @ w.T) * (x > 0))
    verdicts = {check_grad(net, np.zeros((1, 3)), seed=seed).verdict for seed in range(20)}
    assert verdicts == {Verdict.RIGHT, Verdict.UNRELIABLE}

    class Both:
        def forward(self, x, y):
            return np.maximum(x, y)

        def vjp(self, arrays, cotangents):
            x, y = arrays
            return cotangents[0] * (x >= y), cotangents[0] * (y >= x)

    error = error_of(Both(), np.zeros(3), np.zeros(3))  # moved alike, there is no kink
    assert error.verdict is Verdict.WRONG


@pytest.mark.parametrize(
    ("f", "x", "words"),
    [
        (ops.sqrt, [0.0, 1.0], "its slope is infinite or has no limit there|on one side"),
        (lambda x: x ** Tensor([2.0, 2.0]), [-1.0, 2.0], None),
        (lambda x: Tensor([-1.0, 2.0]) ** x, [2.0, 2.0], "no finite values on one side"),
        (ops.exp, np.array([88.7] * 4, np.float32), "beyond the numbers of float32"),
    ],
)
def test_a_gradient_that_is_not_finite_where_the_function_has_none(f, x, words):
    if words is None:
        assert check_grad(f, x).verdict is Verdict.RIGHT
        return
    error = error_of(f, x)
    assert error.verdict is Verdict.UNRELIABLE
    assert "is not differentiable by" in str(error)
    assert any(word in str(error) for word in words.split("|"))


def test_a_gradient_that_is_not_finite_where_the_function_is_smooth_is_wrong():
    error = error_of(lambda x: ops.where(x > 0, ops.sqrt(x), 0.0), [-1.0, 0.0 + 1.0])
    assert error.verdict is Verdict.WRONG
    assert "backward gave nan" in str(error)


# --- large, small, steep --------------------------------------------------------------------------


def test_a_gradient_whose_square_overflows_is_compared():
    right = Pair(lambda x: x * 1e200, lambda u, x: u * 1e200)
    wrong = Pair(lambda x: x * 1e200, lambda u, x: u * 3e200)
    assert check_grad(right, np.ones(2)).verdict is Verdict.RIGHT
    assert error_of(wrong, np.ones(2)).verdict is Verdict.WRONG


def test_numbers_at_the_ends_of_the_range_raise_no_warning():
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_grad(ops.exp, [700.0, 1.0], order=2).verdict is Verdict.RIGHT
        check_vjp(ops.exp, [700.0, 1.0])
        x = np.array([[[300.0, -300.0]], [[1.0, 200.0]]])
        check_module(nn.LSTM(2, 2, dtype="float64", rng=0), x)


@pytest.mark.parametrize(
    ("forward", "gradient", "x"),
    [
        (lambda x: np.abs(np.sqrt(x)), lambda u, x: u / 2 / np.sqrt(x), [1e-9, 1.0]),
        (lambda x: np.abs(np.tanh(1e6 * x)), lambda u, x: u * 1e6 / np.cosh(1e6 * x) ** 2, [1e-6]),
        (np.log, lambda u, x: u / x, [1e-300, 1.0]),
        (lambda x: 1 / x, lambda u, x: -u / x**2, [1e-100, 1.0]),
    ],
    ids=["beside the border", "steep", "tiny", "beside the pole"],
)
def test_a_reference_that_steps_too_far_is_no_wrong_gradient(forward, gradient, x):
    assert check_grad(Pair(forward, gradient), np.array(x)).verdict is Verdict.RIGHT
    wrong = Pair(forward, lambda u, x: 2 * gradient(u, x))
    if x[0] > 1e-90:
        assert error_of(wrong, np.array(x)).verdict is Verdict.WRONG


def test_a_function_that_raises_outside_of_its_domain():
    def f(x, inner=lambda x: x):
        if (x.data.real <= 0).any():
            raise ValueError("not positive")
        return ops.log(inner(x))

    assert check_grad(f, [0.01, 1.0]).verdict is Verdict.RIGHT
    assert check_grad(f, [0.01, 1.0], inner=ops.abs).method == "ridders"
    with debug():
        assert check_grad(ops.log, [0.01, 1.0]).verdict is Verdict.RIGHT


# --- what is passed in ----------------------------------------------------------------------------


def test_keywords_reach_the_function():
    seen = []

    def f(x, *, scale=1.0):
        seen.append(scale)
        return x * scale

    check_grad(f, [1.0, 2.0], scale=3.0)
    check_grad(from_function(f), [1.0, 2.0], scale=3.0)
    assert set(seen) == {3.0}
    with pytest.raises(TypeError, match="unexpected keyword argument 'blokcs'"):
        check_grad(f, [1.0], blokcs="one")
    with pytest.raises(TypeError, match="no setting blokcs"):
        check_grad(RELU, np.ones(2), blokcs="one")


@pytest.mark.parametrize(
    "setting",
    [{"n_dirs": 0}, {"n_dirs": 1.5}, {"max_evals": 0}, {"seed": -1}, {"seed": "a"},
     {"rtol": np.nan}, {"rtol": np.inf}, {"rtol": -1.0}, {"atol": -1.0}, {"wrt": -1}, {"wrt": "x"}],
    ids=str,
)  # fmt: skip
def test_settings_that_would_check_nothing(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        check_grad(lambda x: x.detach() * 1.0, [1.0, 2.0], **setting)


def test_a_number_of_numpy_chooses_an_input():
    assert len(check_grad(ops.mul, [1.0], [2.0], wrt=np.int64(1)).findings) == 1


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ([np.ones(2), np.ones(3)], "input 1 is a list of arrays of different shapes"),
        (None, "input 1 is NoneType"),
        ("abc", "input 1 is str"),
        ({"a": 1.0}, "input 1 is dict"),
    ],
)
def test_an_input_that_is_no_array(x, words):
    for check in (check_grad, check_vjp):
        with pytest.raises(TypeError, match=words):
            check(lambda x, y: x, np.ones(2), x)


def test_complex_inputs_are_refused_in_words():
    assert "only real inputs are checked" in unreliable(lambda x: x * x, np.ones(2) + 1j)


def test_classes_in_the_place_of_objects():
    for what in (nn.LSTM, type(RELU)):
        if what is Pair:
            what = type("Two", (), {"forward": None, "vjp": None})
        with pytest.raises(TypeError, match=r"is a class: pass one of its objects"):
            check_grad(what, np.ones((2, 1, 2)))


def test_another_engine_that_returns_no_arrays():
    gone = Pair(lambda x: {"y": x}, None)
    assert "returned dict, not an array or a tuple of them" in unreliable(gone, np.ones(3))


def test_a_cotangent_of_none_is_named():
    pair = Pair(np.tanh, lambda u, x: u * (1 - np.tanh(x) ** 2))
    assert "None, which stands for zeros" in str(error_of(pair, np.ones(2), check=check_vjp))


def test_an_input_that_the_function_changed_is_given_back():
    def forward(x):
        x += 1
        return x * 2

    x = np.ones(3)
    error_of(Pair(forward, None), x)
    assert (x == 1).all()


# --- modules --------------------------------------------------------------------------------------


def test_a_cell_without_input_is_called_with_none():
    cell = nn.RNNCell(0, 3, dtype="float64", rng=0)
    assert check_module(cell, None).verdict is Verdict.RIGHT
    layer = nn.Recurrent(nn.RNNCell(0, 3, dtype="float64", rng=0))
    for state in (None, np.ones((2, 3))):
        assert check_module(layer, None, state=state, steps=3).verdict is Verdict.RIGHT


def test_a_state_has_the_dtype_of_the_module_as_an_input_has():
    x, state = np.ones((2, 1, 2)), np.zeros((1, 1, 2))
    assert check_module(nn.GRU(2, 2, rng=0), x, state=state).verdict is Verdict.RIGHT


class Scaled(nn.RNNCell):
    """Holds an array of its own dtype that astype does not know."""

    def step(self, x, state):
        h, _ = super().step(x, state)
        h = h * np.full(self.hidden_size, 2.0, np.float32)
        return h, h


class Keeping(nn.RNNCell):
    def step(self, x, state):
        h, _ = super().step(x, state)
        self.kept = h
        return h, h


def test_a_float32_module_without_a_reference_in_float64():
    x = np.ones((3, 2, 2))
    words = unreliable(nn.Recurrent(Scaled(2, 2, rng=0)), x)
    assert "runs at this point, but not beside it in float64" in words
    words = unreliable(nn.Recurrent(Keeping(2, 2, rng=0)), x)
    assert "cannot be copied to float64" in words


# --- the other calls ------------------------------------------------------------------------------


def test_the_taylor_remainder_says_what_it_cannot_see():
    def two(x):
        return x.sum(), x.sum()

    tiny = (lambda x: (x.detach() * x * 1e-20).sum(), [1.0, 2.0])
    for f, x, words in [
        (two, [1.0], "returns 2 outputs, not a scalar"),
        (lambda x: abs(x).sum(), [0.0, 1.0], "not differentiable at this point"),
        (*tiny, "no remainder is seen"),
    ]:
        assert words in unreliable(f, x, check=check_taylor)
    assert check_taylor(lambda x: (x * 2).sum(), [1.0]).verdict is Verdict.RIGHT
    assert check_taylor(lambda x: ((x + 1e3) - 1e3).sum(), [1.0]).verdict is Verdict.RIGHT
    with pytest.raises(TypeError, match="a function of one Tensor"):
        check_taylor(nn.Linear(2, 1), np.ones((1, 2)))


def test_a_derivative_where_there_is_no_value():
    found = derivative(lambda x: np.log(x).sum(), [0.0], [1.0])
    assert np.isnan(found.value)
    assert found.error == np.inf
    with pytest.raises(ValueError, match="not a number"):
        derivative(lambda x: x, [0.0, 1.0], [1.0, 0.0])


def test_parameters_outside_of_the_function_are_left_alone():
    w = Parameter(np.ones(2))
    check_grad(lambda x: functional.relu(x * w), [1.0, 2.0], order=2)
    assert w.grad is None
