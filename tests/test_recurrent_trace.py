"""What a trace holds for marks with and without a batch, and steps that change their state."""

import numpy as np
import pytest

from tinygrad_rnn import Parameter, mark, no_grad
from tinygrad_rnn.errors import StateError
from tinygrad_rnn.nn import LSTM, Cell, LSTMCell, Recurrent
from tinygrad_rnn.ops import sigmoid, tanh

D, H, T = 3, 4, 5
LEAK = 1 / (1 + np.exp(1 - np.arange(4.0)))


class LeakyCell(Cell):
    """The README's: a leak (H,) that is learned, the same for all sequences."""

    def __init__(self):
        super().__init__(D, H, dtype=np.float64)
        self.add_weights(rng=0)
        self.s = Parameter(np.arange(4.0) - 1)

    def step(self, x, h):
        a = sigmoid(self.s)
        h = (1 - a) * h + a * tanh(self.affine(x, h))
        mark(a=a, h=h)
        return h, h


@pytest.fixture(params=[False, True], ids=["recorded", "no_grad"])
def layer(request):
    both = Recurrent([(LeakyCell(), LeakyCell())])
    if not request.param:
        yield both
    else:
        with no_grad():
            yield both


@pytest.mark.parametrize("N", [1, 2, H])
def test_a_mark_without_a_batch_is_the_same_for_all_sequences(layer, N):
    lengths = [T, 2, 1, 3][:N]
    _, _, trace = layer(np.ones((T, N, D)), lengths=lengths, trace=True)
    for side in ("fwd", "rev"):
        np.testing.assert_allclose(trace[f"L0.{side}.a"].data, [LEAK] * T)
        h = trace[f"L0.{side}.h"].data
        assert h.shape == (T, N, H)
        for n, length in enumerate(lengths):
            assert h[:length, n].all()
            assert not h[length:, n].any()


@pytest.mark.parametrize("lengths", [None, [T]])
def test_a_mark_without_a_batch_keeps_its_axis_for_one_sequence(layer, lengths):
    x = np.ones((T, D))
    _, _, trace = layer(x, trace=True)
    _, _, batch = layer(x[:, None], lengths=lengths, trace=True)
    for side in ("fwd", "rev"):
        np.testing.assert_allclose(trace[f"L0.{side}.a"].data, [LEAK] * T)
        np.testing.assert_allclose(batch[f"L0.{side}.a"].data, [LEAK] * T)
        assert trace[f"L0.{side}.h"].shape == (T, H)
        np.testing.assert_array_equal(trace[f"L0.{side}.h"].data, batch[f"L0.{side}.h"].data[:, 0])


def test_where_no_step_ran_nothing_was_marked():
    out, _, trace = LSTM(D, H, rng=0)(np.ones((T, 2, D)), lengths=[0, 0], trace=True)
    assert trace == {}
    assert not out.requires_grad


class Changing(Cell):
    """Returns what is not like its state from the step `at` on."""

    def __init__(self, at, change):
        super().__init__(D, H)
        self.at, self.change = at, change

    def initial_state(self, batch):
        return super().initial_state(batch), np.zeros((batch, 2), self.dtype)

    def step(self, x, state):
        self.at -= 1
        y = state[0] + 1
        new = (y, state[1] + 1)
        return (y, new) if self.at > 0 else self.change(y, new)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda y, s: (y, s[0]),
            r"returned a state \(2, 4\), but was given \(\(2, 4\), \(2, 2\)\)",
        ),
        (lambda y, s: (y, (*s, y)), r"returned a state .* but was given \(\(2, 4\), \(2, 2\)\)"),
        (lambda y, s: (y, (s[0], s[1][:, :1])), r"a state \(\(2, 4\), \(2, 1\)\), but was given"),
        (lambda y, s: (y, (s[0].data, s[1])), r"returned Tensor, tuple; expected Tensors"),
        (lambda y, s: y, r"returned Tensor; expected Tensors \(output, state\)"),
        (lambda y, s: None, r"returned NoneType; expected Tensors \(output, state\)"),
    ],
)
@pytest.mark.parametrize("t", [1, 3, T])
def test_a_state_that_changes_its_structure_names_the_layer_and_the_step(change, text, t):
    with pytest.raises(StateError, match=rf"Changing\.step.*L0\.fwd, step t={t} of {T}.*{text}"):
        Recurrent(Changing(t, change))(np.ones((T, 2, D)))


def test_a_state_may_be_a_tuple_of_a_kind_of_its_own():
    class Pair(tuple):
        pass

    class Named(LSTMCell):
        def step(self, x, state):
            y, state = super().step(x, state)
            return y, Pair(state)

    out, _ = Recurrent(Named(D, H, rng=0))(np.ones((T, 2, D)))
    want, _ = Recurrent(LSTMCell(D, H, rng=0))(np.ones((T, 2, D)))
    np.testing.assert_array_equal(out.data, want.data)
