"""A call like one before takes a shorter way, which gives the same; any other call does not."""

import numpy as np
import pytest

import tinygrad_rnn
from tinygrad_rnn import Parameter, Tensor, debug, grad, nn, no_grad, record
from tinygrad_rnn.compiler.repeat import Repeat
from tinygrad_rnn.ops import tanh

from .test_compile import BACKENDS, WORDS, Plain, _own_cache, agree, fast, inputs, weight  # noqa: F401

LAYERS = {
    "lstm": lambda: nn.LSTM(3, 4, **WORDS),
    "gru": lambda: nn.GRU(3, 4, **WORDS),
    "rnn": lambda: nn.RNN(3, 4, **WORDS),
    "one unit": lambda: nn.LSTM(3, 1, **WORDS),
    "recurrent": lambda: nn.Recurrent(nn.LSTMCell(3, 4, **WORDS)),
    "recurrent with one state": lambda: nn.Recurrent(nn.GRUCell(3, 4, **WORDS)),
    "layer norm": lambda: nn.Recurrent(nn.LayerNormLSTMCell(3, 4, **WORDS)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture
def taken(monkeypatch):
    """Give the list of calls that took the shorter way."""
    calls, run = [], Repeat.run

    def spy(self, *given):
        calls.append(self)
        return run(self, *given)

    monkeypatch.setattr(Repeat, "run", spy)
    return calls


@pytest.fixture
def nothing_repeats(monkeypatch):
    """Give a function after which no call takes the shorter way."""
    return lambda: monkeypatch.setattr(Repeat, "holds", lambda self: False)


def parts(result):
    out, state, *_ = result
    return [out, *(state if isinstance(state, tuple) else [state])]


def numbers(layer, x, *state, **words):
    """Return what a call gives and its gradients, every output counted."""
    made = parts(layer(x, *state, **words))
    given = [s for s in parts((None, *state)) if s is not None] if state else []
    leaves = [t for t in [x, *given, *layer.parameters()] if t.requires_grad]
    found = [y.data.copy() for y in made]
    if not any(y.requires_grad for y in made):
        return found
    loss = sum((y * weight(y, k)).sum() for k, y in enumerate(made))
    return found + grad(loss, leaves)


def told(result):
    return [
        (t.name, t.data.shape, t.data.dtype, t.requires_grad, str(t.place), t.place.step,
         t.place.call.steps)
        for t in parts(result)
    ]  # fmt: skip


def states(layer, x, seed=1):
    """Return a state of random numbers, as the layer gives it."""
    rng = np.random.default_rng(seed)
    made = [Tensor(rng.uniform(-1, 1, t.shape).astype(t.dtype)) for t in parts(layer(x))[1:]]
    return tuple(made) if isinstance(layer(x)[1], tuple) else made[0]


def ready(layer, backend="numpy", x=None):
    """Return a compiled layer that was called before."""
    quick = fast(layer, backend)
    quick(inputs() if x is None else x)
    return quick


def equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.array_equal(a, b)


# --- calls like one before


@every_backend
@every_layer
def test_the_second_call_is_short_and_the_same(name, backend, taken, nothing_repeats):
    layer = LAYERS[name]()
    quick = ready(layer, backend)
    assert not taken
    calls = [(inputs(),), (inputs(2, seed=3), None), (inputs(), states(layer, inputs()))]
    short = [numbers(quick, *call) for call in calls]
    assert len(taken) == len(calls)
    nothing_repeats()
    for ours, call in zip(short, calls, strict=True):
        equal(ours, numbers(quick, *call))
        agree(ours, numbers(layer, *call))
    assert len(taken) == len(calls)


@every_layer
def test_it_takes_the_state_that_a_call_gave_detached(name, taken):
    layer = LAYERS[name]()
    runs = []
    for each in (ready(layer), layer):
        state, found = None, []
        for seed in range(3):
            x = inputs(seed=seed)
            made = each(x, state)
            loss = sum((y * weight(y, k)).sum() for k, y in enumerate(parts(made)))
            found += [y.data for y in parts(made)] + grad(loss, [x, *layer.parameters()])
            state = made[1]
            state = tuple([s.detach() for s in state]) if type(state) is tuple else state.detach()
        runs.append(found)
    assert len(taken) == 3
    agree(*runs)


@every_layer
def test_gradients_of_gradients(name, taken):
    layer = LAYERS[name]()
    runs = []
    for each in (ready(layer), layer):
        x, state = inputs(), states(layer, inputs())
        made = parts(each(x, state))
        leaves = [x, *layer.parameters()]
        loss = sum((y * y * weight(y, k)).sum() for k, y in enumerate(made))
        first = grad(loss, leaves, create_graph=True)
        runs.append([g.data for g in first] + grad(sum((g * g).sum() for g in first), leaves))
    assert len(taken) == 1
    agree(*runs)


@every_backend
@every_layer
def test_back_twice(name, backend, taken):
    layer = LAYERS[name]()
    quick = ready(layer, backend)
    x = inputs()
    made = parts(quick(x))
    assert len(taken) == 1
    loss = sum((y * weight(y, k)).sum() for k, y in enumerate(made))
    leaves = [x, *layer.parameters()]
    first = [g.copy() for g in grad(loss, leaves)]
    again = parts(quick(inputs(seed=7)))  # what it keeps is its own
    assert len(taken) == 2
    grad(sum((y * y).sum() for y in again), list(layer.parameters()))
    equal(grad(loss, leaves), first)


@every_backend
def test_two_short_calls_before_one_backward(backend, taken):
    layer = nn.LSTM(3, 4, **WORDS)
    runs = []
    for each in (ready(layer, backend), layer):
        x, y = inputs(4, seed=1), inputs(4, seed=2)
        one, two = parts(each(x)), parts(each(y))
        loss = sum((t * weight(t, k)).sum() for k, t in enumerate([*one, *two]))
        runs.append([t.data for t in [*one, *two]] + grad(loss, [x, y, *layer.parameters()]))
    assert len(taken) == 2
    agree(*runs)


def test_the_state_to_start_from_is_not_changed(taken):
    layer = nn.LSTM(3, 4, **WORDS)
    quick = ready(layer)
    state = states(layer, inputs())
    before = [s.data.copy() for s in state]
    for _ in range(3):
        numbers(quick, inputs(), state)
    equal([s.data for s in state], before)
    agree(numbers(quick, inputs()), numbers(layer, inputs()))  # nor the zeros
    assert len(taken) == 4


def test_only_a_part_of_the_output_is_used(taken):
    layer = nn.LSTM(3, 4, **WORDS)
    quick = ready(layer)
    for pick in (lambda r: r[0][2], lambda r: r[1][0], lambda r: r[1][1]):
        x = inputs()
        ours, theirs = [
            grad((pick(each(x)) ** 2).sum(), [x, *layer.parameters()]) for each in (quick, layer)
        ]
        agree(ours, theirs)
    assert len(taken) == 3


def test_the_plan_of_a_short_call_is_told(taken):
    quick = ready(nn.LSTM(3, 4, **WORDS))
    quick(inputs())
    quick(inputs().detach())
    assert not quick.plan.x_grad
    quick(inputs())
    assert quick.plan.x_grad
    assert len(taken) == 2


# --- what changes between the calls


def changed(layer, change, taken, x=None, before=None):
    """Compare a call after a change with the plain layer; return whether it was a short one."""
    x = inputs() if x is None else x
    quick = fast(layer, "numpy")
    for _ in range(2):
        quick(x if before is None else before)
    done = len(taken)
    change(quick)
    agree(numbers(quick, x), numbers(layer, x))
    again = len(taken) - done
    agree(numbers(quick, x), numbers(layer, x))
    return bool(again)


def test_a_parameter_frozen_and_free_again(taken):
    layer = nn.GRU(3, 4, **WORDS)
    cell = layer.L0["fwd"]

    def set_to(value):
        cell.W_x.requires_grad = value

    assert not changed(layer, lambda quick: set_to(False), taken)
    assert not changed(layer, lambda quick: set_to(True), taken)


@pytest.mark.parametrize("D", [1, 3])
@pytest.mark.parametrize("H", [1, 4])
@pytest.mark.parametrize("factor", [1, 2])
def test_a_parameter_replaced(D, H, factor, taken):
    layer = nn.RNN(D, H, **WORDS)
    cell = layer.L0["fwd"]

    def replace(quick):
        for name, p in list(cell.named_parameters()):
            setattr(cell, name, Parameter(factor * p.data))

    assert not changed(layer, replace, taken, inputs(D=D))


def test_new_numbers_of_a_parameter_are_seen(taken):
    layer = nn.LSTM(3, 4, **WORDS)

    def train(quick):
        for p in layer.parameters():
            p.data = p.data * 2
            p.data[0] += 1

    assert changed(layer, train, taken)


class Leaky(Plain):
    """A step with settings, of its own and in the module."""

    def __init__(self):
        super().__init__()
        self.leak, self.drop = 0.5, 0.0

    def step(self, x, h):
        h = self.leak * tanh(self.affine(x, h)) * FACTOR
        return (h * 0.5 if self.training else h), h


FACTOR = 1.0


def test_a_setting_of_the_cell(taken):
    layer = nn.Recurrent(Leaky())
    assert not changed(layer, lambda quick: setattr(layer.L0["fwd"], "leak", 2.0), taken)


def test_a_global_that_the_step_reads(taken, monkeypatch):
    layer = nn.Recurrent(Leaky())
    change = lambda quick: monkeypatch.setitem(globals(), "FACTOR", 3.0)  # noqa: E731
    assert not changed(layer, change, taken)


def test_another_step(taken, monkeypatch):
    def step(self, x, h):
        h = tanh(self.affine(x, h)) - 1
        return h, h

    layer = nn.Recurrent(Leaky())
    assert not changed(layer, lambda quick: monkeypatch.setattr(Leaky, "step", step), taken)


def test_a_checkpoint_every_few_steps(taken):
    layer = nn.LSTM(3, 4, **WORDS)
    quick = ready(layer)
    quick.checkpoint_every = 2
    agree(numbers(quick, inputs()), numbers(layer, inputs()))
    assert not taken


def test_a_replaced_cell(taken):
    layer = nn.Recurrent(nn.RNNCell(3, 4, **WORDS))
    other = nn.RNNCell(3, 4, dtype=np.float64, rng=5)

    def replace(quick):
        quick.L0["fwd"] = layer.L0["fwd"] = other

    assert not changed(layer, replace, taken)


def test_other_sizes(taken):
    layer = nn.LSTM(3, 4, **WORDS)
    assert not changed(layer, lambda quick: None, taken, inputs(5, 2), before=inputs(5, 3))
    assert changed(layer, lambda quick: None, taken, inputs(2, 3), before=inputs(5, 3))
    with pytest.raises(tinygrad_rnn.errors.ShapeError):
        ready(layer)(inputs(D=2))
    with pytest.raises(tinygrad_rnn.errors.ShapeError):
        ready(layer)(Tensor(np.zeros((0, 3, 3))))


def test_another_dtype_of_the_layer(taken):
    layer = nn.LSTM(3, 4, **WORDS)
    quick = ready(layer)
    quick.astype(np.float32)
    x = inputs(dtype=np.float32)
    for _ in range(2):
        agree(numbers(quick, x), numbers(layer, x), 64 * np.finfo("f4").eps)
    assert len(taken) == 1
    assert quick(x)[0].dtype == np.float32


def test_whether_x_has_a_gradient(taken):
    layer = nn.LSTM(3, 4, **WORDS)
    x = inputs().detach()
    assert not changed(layer, lambda quick: None, taken, x, before=inputs())
    assert not changed(layer, lambda quick: None, taken, inputs(), before=x)


# --- calls that are none like it


@every_layer
def test_a_state_with_a_gradient(name, taken):
    layer = LAYERS[name]()
    quick = ready(layer)
    state = states(layer, inputs())
    free = [Tensor(s.data, requires_grad=True) for s in parts((None, state))[1:]]
    state = tuple(free) if isinstance(state, tuple) else free[0]
    for _ in range(2):
        agree(numbers(quick, inputs(), state), numbers(layer, inputs(), state))
    assert not taken
    only = (state[0], state[1].detach()) if isinstance(state, tuple) else state
    agree(numbers(quick, inputs(), only), numbers(layer, inputs(), only))
    assert not taken


def test_states_as_arrays_and_lists(taken):
    layer = nn.LSTM(3, 4, **WORDS)
    quick = ready(layer)
    state = states(layer, inputs())
    want = parts(layer(inputs(), state))
    for given in (list(state), tuple([s.data for s in state]), [s.data.tolist() for s in state]):
        made = parts(quick(inputs(), tuple(given) if type(given[0]) is list else given))
        agree([t.data for t in made], [t.data for t in want])


@pytest.mark.parametrize("make", [LAYERS["lstm"], LAYERS["gru"], LAYERS["recurrent"]])
def test_states_of_another_structure_are_the_error_of_the_layer(make):
    layer = make()
    quick = ready(layer)
    right = states(layer, inputs())
    one = right[0] if isinstance(right, tuple) else right
    wrong = [
        one if isinstance(right, tuple) else (one,),
        (one, one, one),
        states(layer, inputs(5, 2)),
        (),
    ]
    flat = Tensor(one.data.reshape(-1))
    wrong.append((flat, flat) if isinstance(right, tuple) else flat)
    for state in wrong:
        with pytest.raises(tinygrad_rnn.errors.StateError) as theirs:
            layer(inputs(), state)
        with pytest.raises(tinygrad_rnn.errors.StateError) as ours:
            quick(inputs(), state)
        assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("words", [{"lengths": [2, 5, 0]}, {"trace": True}])
def test_lengths_and_traces(words, taken):
    layer = nn.LSTM(3, 4, **WORDS)
    quick = ready(layer)
    for _ in range(2):
        agree(numbers(quick, inputs(), **words), numbers(layer, inputs(), **words))
    assert not taken
    agree(numbers(quick, inputs()), numbers(layer, inputs()))
    assert len(taken) == 1


def test_all_nodes_are_kept_inside_record_and_debug(taken):
    layer = nn.LSTM(3, 4, **WORDS)
    quick = ready(layer)
    for inside in (record, debug):
        with inside():
            agree(numbers(quick, inputs()), numbers(layer, inputs()))
            assert [t.op.name for t in parts(quick(inputs()))] == ["stack", "stack", "stack"]
    assert not taken
    agree(numbers(quick, inputs()), numbers(layer, inputs()))
    assert len(taken) == 1


def test_without_a_graph(taken):
    layer = nn.LSTM(3, 4, **WORDS)
    quick = ready(layer)
    for k in range(2):
        with no_grad():
            made, want = parts(quick(inputs())), parts(layer(inputs()))
        assert len(taken) == k
        agree([t.data for t in made], [t.data for t in want])
        assert not any(t.requires_grad or t.inputs for t in made)
    agree(numbers(quick, inputs()), numbers(layer, inputs()))
    assert len(taken) == 2


class Own(nn.LSTM):
    def forward(self, x, state=None):
        out, state = super().forward(x * 2, state)
        return out + 1, state


class Joins(nn.LSTM):
    def _join(self, outputs, given):
        return super()._join(outputs, given) * 2


class Starts(Plain):
    """A step before which the state is not zero."""

    def initial_state(self, batch):
        return np.full((batch, self.hidden_size), START)

    def step(self, x, h):
        h = tanh(self.affine(x, h))
        return h, h


START = 0.5

OTHERS = {
    "own forward": lambda: Own(3, 4, **WORDS),
    "own output": lambda: Joins(3, 4, **WORDS),
    "learned state": lambda: nn.GRU(3, 4, learn_state=True, **WORDS),
    "own initial state": lambda: nn.Recurrent(Starts()),
    "batch first": lambda: nn.LSTM(3, 4, batch_first=True, **WORDS),
    "two directions": lambda: nn.LSTM(3, 4, bidirectional=True, **WORDS),
    "two layers": lambda: nn.LSTM(3, 4, num_layers=2, **WORDS),
    "two cells": lambda: nn.Recurrent([nn.GRUCell(3, 4, **WORDS), nn.RNNCell(4, 2, **WORDS)]),
    "zoneout": lambda: nn.LSTM(3, 4, zoneout=0.5, **WORDS).eval(),
    "checkpoints": lambda: nn.LSTM(3, 4, checkpoint_every=2, **WORDS),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_take_the_long_way(name, taken):
    layer = OTHERS[name]()
    quick = ready(layer)
    for seed in range(2):
        agree(numbers(quick, inputs(seed=seed)), numbers(layer, inputs(seed=seed)))
    assert not taken


def test_recurrent_dropout_takes_the_long_way(taken):
    layer = nn.LSTM(3, 4, recurrent_dropout=0.5, **WORDS)
    quick = fast(layer, "numpy")
    for seed in range(3):
        layer.mask_seed = quick.mask_seed = seed
        agree(numbers(quick, inputs()), numbers(layer, inputs()))
    quick.eval(), layer.eval()
    for _ in range(2):
        agree(numbers(quick, inputs()), numbers(layer, inputs()))
    assert not taken


def test_a_state_learned_later(taken):
    layer = nn.GRU(3, 4, **WORDS)
    quick = ready(layer)
    layer.L0["fwd"].learn_state()
    layer.L0["fwd"].h0.data += 0.5
    for _ in range(2):
        agree(numbers(quick, inputs()), numbers(layer, inputs()))
    assert not taken


def test_an_own_initial_state_may_be_another_each_time(taken, monkeypatch):
    layer = nn.Recurrent(Starts())
    quick = ready(layer)
    monkeypatch.setitem(globals(), "START", -0.5)
    agree(numbers(quick, inputs()), numbers(layer, inputs()))
    assert not taken


def test_one_sequence_without_a_batch(taken):
    layer = nn.LSTM(3, 4, **WORDS)
    quick = ready(layer, x=inputs(5, 1))
    x = Tensor(inputs(5, 1).data[:, 0], requires_grad=True)
    for _ in range(2):
        agree(numbers(quick, x), numbers(layer, x))
    assert not taken


def test_inside_the_step_of_another_layer(taken):
    class Outer(Plain):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def step(self, x, h):
            out, _ = self.inner(x.reshape((1, *x.shape)))
            h = tanh(self.affine(out[0], h))
            return h, h

    inner = nn.RNN(3, 3, **WORDS)
    layer, twin = nn.Recurrent(Outer(inner)), nn.Recurrent(Outer(ready(inner)))
    for p, q in zip(twin.parameters(), layer.parameters(), strict=True):
        p.data = q.data
    for _ in range(2):
        agree(numbers(twin, inputs()), numbers(layer, inputs()))
    assert not taken


def test_arrays_take_the_long_way_and_give_the_same(taken):
    layer = nn.LSTM(3, 4, **WORDS)
    quick = ready(layer, x=inputs().detach())
    made = parts(quick(inputs().data))
    assert not taken
    agree([t.data for t in made], [t.data for t in parts(quick(inputs().detach()))])
    assert len(taken) == 1


def test_a_learned_state_is_read_anew():
    layer = nn.LSTM(3, 4, learn_state=True, **WORDS)
    quick, x = fast(layer, "numpy"), inputs()
    with no_grad():
        quick(x), quick(x)
        layer.load_state_dict({k: np.asarray(v) + 0.5 for k, v in layer.state_dict().items()})
        agree([quick(x)[0].data], [layer(x)[0].data])


@every_backend
def test_the_last_state_is_an_array_of_its_own(backend):
    quick = fast(nn.Recurrent(nn.LSTMCell(3, 4, **WORDS)), backend)
    for _ in range(3):
        out, state = quick(inputs())
        assert not any(np.shares_memory(out.data, s.data) for s in state)


def test_debug_of_a_backward_alone():
    quick, x = fast(nn.LSTM(3, 4, **WORDS), "numpy"), inputs()
    out, _ = quick(x)
    with debug():
        out.sum().backward()
    assert np.isfinite(x.grad).all()
