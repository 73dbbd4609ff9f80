"""What a layer offers it offers compiled: all kinds of input, options, copies, new settings."""

import copy
import gc
import weakref

import numpy as np
import pytest

import tinygrad_rnn
from tinygrad_rnn import Parameter, Tensor, grad, mark, nn, no_grad
from tinygrad_rnn.compiler import Compiled, CompileWarning
from tinygrad_rnn.op import OPS, primitive
from tinygrad_rnn.ops import log_softmax, sigmoid, tanh

from .test_compile import (  # noqa: F401
    BACKENDS,
    LAYERS,
    WORDS,
    Plain,
    _own_cache,
    agree,
    fast,
    inputs,
    numbers,
    weight,
)

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def flat(value):
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [t for v in values for t in flat(v)]


def same(layer, backend, *x, **call):
    """Compare what a call gives and all gradients; return the compiled layer."""
    quick = fast(layer, backend)
    given = [t for t in flat([*x, call.get("state", ())]) if t.requires_grad]
    runs = []
    for each in (quick, layer):
        made = flat(each(*x, **call))
        leaves = [*given, *[p for p in layer.parameters() if p.requires_grad]]
        loss = sum((y * weight(y, k)).sum() for k, y in enumerate(made))
        runs.append([y.data for y in made] + grad(loss, leaves))
    agree(*runs)
    assert "unrolled" not in quick.report(), quick.report()
    return quick


def test_one_sequence_without_a_batch(backend):
    x = inputs(5, 1)[:, 0].detach()
    x.requires_grad = True
    same(nn.LSTM(3, 4, **WORDS), backend, x)
    same(nn.GRU(3, 4, bidirectional=True, **WORDS), backend, x, trace=True)


def test_the_batch_first(backend):
    same(nn.LSTM(3, 4, batch_first=True, num_layers=2, **WORDS), backend, inputs(3, 5))


def test_a_list_of_sequences(backend):
    sequences = [inputs(T, 1, seed=T)[:, 0].detach() for T in (3, 1, 4)]
    for t in sequences:
        t.requires_grad = True
    same(nn.GRU(3, 4, bidirectional=True, **WORDS), backend, sequences)


class Clock(nn.Cell):
    """A cell that reads no input."""

    def __init__(self):
        super().__init__(0, 4, dtype=np.float64)
        self.W_h = Parameter(np.random.default_rng(0).standard_normal((4, 4)))
        self.start = Parameter(np.ones(4))

    def step(self, x, h):
        h = tanh(self.start + h @ self.W_h)
        return h, h


def test_no_input(backend):
    for steps in (1, 5):
        quick = fast(nn.Recurrent(Clock()), backend)
        layer = nn.Recurrent(Clock())
        runs = []
        for each in (quick, layer):
            out, h = each(steps=steps)
            loss = (out * weight(out, 0)).sum() + (h * weight(h, 1)).sum()
            cell = each.L0["fwd"]
            runs.append([out.data, h.data, *grad(loss, [cell.start, cell.W_h])])
        agree(*runs)
        assert "unrolled" not in quick.report(), quick.report()


def test_checkpoints(backend):
    same(nn.LSTM(3, 4, checkpoint_every=2, **WORDS), backend, inputs(5), lengths=[5, 0, 3])


@pytest.mark.parametrize("merge", ["sum", "mul", "ave", None])
def test_two_directions_merged(backend, merge):
    pair = (nn.LSTMCell(3, 4, **WORDS), nn.LSTMCell(3, 4, dtype=np.float64, rng=1))
    same(nn.Recurrent(pair, merge=merge), backend, inputs(), lengths=[1, 5, 0])


def test_frozen_parameters_and_no_gradient_of_x(backend):
    layer = nn.GRU(3, 4, **WORDS)
    layer.L0["fwd"].W_x.requires_grad = False
    same(layer, backend, inputs())
    same(layer, backend, inputs().detach())


def test_all_parameters_frozen(backend):
    layer = nn.LSTM(3, 4, **WORDS)
    for p in layer.parameters():
        p.requires_grad = False
    same(layer, backend, inputs())


@pytest.mark.parametrize("sizes", [(1, 1), (1, 7), (7, 1), (2, 9), (2, 16)])
@pytest.mark.parametrize("hidden", [1, 2, 16, 17])
def test_sizes_of_one_and_beside_the_tile(backend, sizes, hidden):
    same(nn.LSTM(3, hidden, **WORDS), backend, inputs(*sizes))


@pytest.mark.parametrize("name", LAYERS)
def test_float32_of_every_cell(backend, name):
    layer = LAYERS[name]().astype(np.float32)
    x = inputs(dtype=np.float32)
    ours, theirs = [numbers(each, x) for each in (fast(layer, backend), layer)]
    agree(ours, theirs, 64 * np.finfo("f4").eps)


def test_two_calls_before_one_backward(backend):
    """What a call keeps for its gradients is its own."""
    layer = nn.LSTM(3, 4, **WORDS)
    runs = []
    for each in (fast(layer, backend), layer):
        x, y = inputs(4, 3, seed=1), inputs(4, 3, seed=2)
        first, state = each(x)
        second, _ = each(y, state)
        loss = (first * weight(first, 0) + second * weight(second, 1)).sum()
        runs.append([first.data, second.data, *grad(loss, [x, y, *layer.parameters()])])
    agree(*runs)


def test_only_a_part_of_the_output_is_used(backend):
    layer = nn.LSTM(3, 4, **WORDS)
    quick = fast(layer, backend)
    for pick in (lambda r: r[0][2], lambda r: r[1][0], lambda r: r[1][1]):
        x = inputs()
        ours, theirs = [
            grad((pick(each(x)) ** 2).sum(), [x, *layer.parameters()]) for each in (quick, layer)
        ]
        agree(ours, theirs)


def test_training_takes_the_same_way(backend):
    runs = []
    for compiled in (True, False):
        layer = nn.GRU(3, 4, **WORDS)
        model = fast(layer, backend) if compiled else layer
        step = tinygrad_rnn.optim.Adam(model.parameters(), lr=0.01)
        for seed in range(5):
            model.zero_grad()
            out, _ = model(inputs(seed=seed))
            (out**2).sum().backward()
            step.step()
        runs.append([p.data for p in layer.parameters()])
    agree(*runs, tolerance=1e-9)


def test_a_copy_is_compiled_and_its_own(backend):
    quick = fast(nn.LSTM(3, 4, **WORDS), backend)
    before = quick(inputs())[0].data.copy()
    twin = copy.deepcopy(quick)
    assert isinstance(twin, Compiled)
    for p in twin.parameters():
        p.data = p.data * 2
    assert np.abs(twin(inputs())[0].data - before).max() > 1e-3
    agree([quick(inputs())[0].data], [before])


def test_training_and_eval_are_seen(backend):
    layer = nn.LSTM(3, 4, recurrent_dropout=0.5, **WORDS)
    quick = fast(layer, backend)
    layer.mask_seed = quick.mask_seed = 3
    for mode in (True, False, True):
        layer.train(mode)
        quick.train(mode)
        agree(numbers(quick, inputs()), numbers(layer, inputs()))


def test_a_parameter_that_the_step_does_not_read_comes_first(backend):
    class Idle(nn.Cell):
        def __init__(self):
            super().__init__(3, 4, dtype=np.float64)
            self.a_spare = Parameter(np.full((3, 4), 7.0))
            self.add_weights(rng=0)

        def step(self, x, h):
            h = tanh(self.affine(x, h))
            return h, h

    layer = nn.Recurrent(Idle())
    quick = fast(layer, backend)
    used = [p for p in layer.parameters() if p is not layer.L0["fwd"].a_spare]
    runs = []
    for each in (quick, layer):
        out, _ = each(inputs())
        runs.append([out.data, *grad((out * weight(out, 0)).sum(), used)])
    agree(*runs)
    quick.zero_grad()
    quick(inputs())[0].sum().backward()
    assert layer.L0["fwd"].a_spare.grad is None


class Delay(Plain):
    """What comes out is the state from before, and the state is the input as it is."""

    def step(self, x, h):
        mark(seen=x)
        return h, x


class Sum(Plain):
    def step(self, x, h):
        return h + x, h + x


class Swap(nn.Cell):
    """Two parts of a state that change places."""

    def __init__(self):
        super().__init__(3, 3, dtype=np.float64)

    def initial_state(self, batch):
        return np.ones((batch, 3)), np.zeros((batch, 3))

    def step(self, x, state):
        a, b = state
        return a * b, (b, a + x)


class Shift(Swap):
    """The gradient of one part is what arrives at the other, which has a new one."""

    def step(self, x, state):
        a, b = state
        y = tanh(x + a * 2.0)
        return y, (b, y)


@pytest.mark.parametrize("cell", [Delay, Sum, Swap, Shift])
def test_values_that_pass_through_as_they_are(backend, cell):
    layer = nn.Recurrent(cell())
    quick = fast(layer, backend)
    for lengths in (None, [2, 0, 5]):
        runs = []
        for each in (quick, layer):
            x = inputs()
            made = flat(each(x, trace=True, lengths=lengths))
            loss = sum((y * weight(y, k)).sum() for k, y in enumerate(made))
            runs.append([y.data for y in made] + grad(loss, [x]))
        agree(*runs)
    assert "unrolled" not in quick.report(), quick.report()


def test_an_op_of_the_loop_that_no_kernel_knows(backend):
    class Shares(Plain):
        def step(self, x, h):
            h = log_softmax(self.affine(x, h), axis=-1)
            return h, h

    layer = nn.Recurrent(Shares())
    quick, x = fast(layer, backend), inputs()
    agree(*[[each(x)[0].data, *grad(each(x)[0].sum(), [x])] for each in (quick, layer)])
    assert "back end: NumPy" in quick.report()


def test_sigmoid_saturates_without_a_warning(backend):
    class Gate(Plain):
        def step(self, x, h):
            h = sigmoid(self.affine(x, h))
            return h, h

    quick = fast(nn.Recurrent(Gate()), backend)
    x = np.full((2, 2, 3), -1e4)
    assert set(np.unique(quick(x)[0].data)) | {0.0, 1.0} == {0.0, 1.0}


# --- settings that change -----------------------------------------------------------------------


class Set(Plain):
    def __init__(self, setting):
        super().__init__()
        self.setting = setting

    def step(self, x, h):
        s = self.setting
        while isinstance(s, list | tuple | dict):
            s = s["a"] if isinstance(s, dict) else s[0]
        h = tanh(self.affine(x, h)) * (s() if callable(s) else s)
        return h, h


def test_settings_of_all_kinds_are_seen(backend):
    for first, then in [
        (1.0, 2.0),
        ([1.0], [2.0]),
        (([1.0], 3), ([2.0], 3)),
        ({"a": 1.0}, {"a": 2.0}),
        (np.array([1.0, 2, 3]), np.array([3.0, 2, 1])),
        (Tensor(np.ones(3)), Tensor(np.full(3, 2.0))),
        (lambda: 1.0, lambda: 2.0),
    ]:
        layer = nn.Recurrent(Set(first))
        quick = fast(layer, backend)
        quick(inputs())
        layer.L0["fwd"].setting = then
        agree([quick(inputs())[0].data], [layer(inputs())[0].data])


def test_settings_changed_in_place_are_seen(backend):
    for setting, value in [([1.0], 2.0), (np.ones(3), 2.0), ({"a": 1.0}, 2.0)]:
        layer = nn.Recurrent(Set(setting))
        quick = fast(layer, backend)
        quick(inputs())
        setting["a" if isinstance(setting, dict) else 0] = value
        agree([quick(inputs())[0].data], [layer(inputs())[0].data])
    held = Tensor(np.ones(3))
    layer = nn.Recurrent(Set(held))
    quick = fast(layer, backend)
    quick(inputs())
    held.data = np.full(3, 2.0)
    agree([quick(inputs())[0].data], [layer(inputs())[0].data])


def test_no_new_setting_takes_the_address_of_one_that_a_program_was_made_of(backend):
    layer = nn.Recurrent(Set(lambda: 1.0))
    quick = fast(layer, backend)
    quick(inputs())
    before = weakref.ref(layer.L0["fwd"].setting)
    layer.L0["fwd"].setting = lambda: 2.0
    gc.collect()
    assert before() is not None
    agree([quick(inputs())[0].data], [layer(inputs())[0].data])


def test_a_replaced_cell_is_seen(backend):
    layer = nn.Recurrent(nn.RNNCell(3, 4, **WORDS))
    quick = fast(layer, backend)
    for seed in range(4):
        quick.L0["fwd"] = nn.RNNCell(3, 4, dtype=np.float64, rng=seed)
        layer.L0["fwd"] = quick.L0["fwd"]
        agree(numbers(quick, inputs()), numbers(layer, inputs()))


# --- what cannot be compiled --------------------------------------------------------------------


def warns(cell, backend, text):
    layer = nn.Recurrent(cell)
    quick = fast(layer, backend)
    with pytest.warns(CompileWarning, match=text):
        ours = numbers(quick, inputs())
    agree(ours, numbers(layer, inputs()))
    report = quick.report()
    assert "runs unrolled" in report
    agree(numbers(quick, inputs()), ours)  # and says it once
    return report


def test_an_op_that_the_compiler_does_not_know(backend):
    twice = primitive("()->()", "2 x", name="twice_unknown")(lambda x: x * 2)
    twice.vjp(lambda g, y, x: g * 2)
    try:

        class Unknown(Plain):
            def step(self, x, h):
                h = tanh(twice(self.affine(x, h)))
                return h, h

        assert "twice_unknown" in warns(Unknown(), backend, "twice_unknown is not known")
    finally:
        del OPS["twice_unknown"]


def test_the_value_of_a_detached_tensor_is_no_constant(backend):
    class Peeks(Plain):
        def step(self, x, h):
            h = tanh(self.affine(x, h))
            if h.detach().data.max() > 100:
                h = -h
            return h, h

    warns(Peeks(), backend, r"reads the value of a Tensor \(.data\) at .*test_layer.py:\d+")


def test_the_mean_over_the_batch(backend):
    class Norm(Plain):
        def step(self, x, h):
            h = tanh(self.affine(x, h))
            h = h - h.mean(axis=0)
            return h, h

    warns(Norm(), backend, "mean over the batch")


def test_an_example_that_fails_in_the_step_fails_as_it_does_unrolled(backend):
    class Broken(Plain):
        def step(self, x, h):
            raise ZeroDivisionError("of the cell")

    quick = fast(nn.Recurrent(Broken()), backend)
    with pytest.warns(CompileWarning, match="of the cell"), pytest.raises(ZeroDivisionError):
        quick(inputs())


def test_states_of_another_structure_are_the_error_of_the_layer(backend):
    quick = fast(nn.LSTM(3, 4, **WORDS), backend)
    with pytest.raises(tinygrad_rnn.errors.StateError):
        quick(inputs(), Tensor(np.zeros((1, 3, 4))))


def test_without_a_graph(backend):
    layer = nn.LSTM(3, 4, **WORDS)
    with no_grad():
        ours, theirs = [flat(each(inputs(), trace=True)) for each in (fast(layer, backend), layer)]
    agree([t.data for t in ours], [t.data for t in theirs])
    assert not any(t.requires_grad for t in ours)
