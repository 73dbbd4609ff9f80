"""A compiled layer is the layer: outputs, states, marks and all gradients, or it says why not."""

import importlib.util

import numpy as np
import pytest

import tinygrad_rnn
from tinygrad_rnn import Parameter, Tensor, debug, functional, grad, graph, nn, no_grad, record
from tinygrad_rnn.compiler import CompileWarning
from tinygrad_rnn.functional import split
from tinygrad_rnn.ops import sigmoid, tanh

NUMBA = importlib.util.find_spec("numba") is not None
BACKENDS = [
    "numpy",
    pytest.param("numba", marks=pytest.mark.skipif(not NUMBA, reason="numba is not installed")),
]
WORDS = {"dtype": np.float64, "rng": 0}
LAYERS = {
    "rnn": lambda: nn.RNN(3, 4, **WORDS),
    "relu": lambda: nn.RNN(3, 4, activation="relu", **WORDS),
    "lstm": lambda: nn.LSTM(3, 4, **WORDS),
    "lstm without bias": lambda: nn.LSTM(3, 4, bias=False, **WORDS),
    "gru": lambda: nn.GRU(3, 4, **WORDS),
    "gru, as published": lambda: nn.GRU(3, 4, reset_after=False, **WORDS),
    "peephole": lambda: nn.Recurrent(nn.PeepholeLSTMCell(3, 4, **WORDS)),
    "coupled": lambda: nn.Recurrent(nn.CoupledLSTMCell(3, 4, **WORDS)),
    "layer norm": lambda: nn.Recurrent(nn.LayerNormLSTMCell(3, 4, **WORDS)),
    "irnn": lambda: nn.Recurrent(nn.IRNNCell(3, 4, **WORDS)),
    "mgu": lambda: nn.Recurrent(nn.MGUCell(3, 4, **WORDS)),
    "stacked, both ways": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, **WORDS),
    "wide": lambda: nn.LSTM(3, 33, **WORDS),
    "one unit": lambda: nn.LSTM(3, 1, **WORDS),
    "learned state": lambda: nn.GRU(3, 4, learn_state=True, **WORDS),
    "zoneout": lambda: nn.LSTM(3, 4, zoneout=(0.3, 0.1), **WORDS).eval(),
}


def tensors(result):
    out, state, trace = result
    return [out, *(state if isinstance(state, tuple) else [state]), *trace.values()]


def weight(t, k):
    return np.cos(k + np.arange(t.size).reshape(t.shape)).astype(t.dtype)


def numbers(layer, x, **call):
    """Return what a call gives, and the gradients of a sum in which every output counts."""
    leaves = [x, *call.get("state", ()), *layer.parameters()]
    made = tensors(layer(x, trace=True, **call))
    loss = sum((y * weight(y, k)).sum() for k, y in enumerate(made))
    return [y.data for y in made] + grad(loss, leaves)


def agree(ours, theirs, tolerance=1e-12):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-300)


def inputs(T=5, N=3, D=3, seed=0, dtype=np.float64):
    x = np.random.default_rng(seed).standard_normal((T, N, D)).astype(dtype)
    return Tensor(x, requires_grad=True)


def fast(layer, backend):
    return tinygrad_rnn.compiler.compile(layer, backend=backend)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TINYGRAD_RNN_CACHE", str(tmp_path_factory.getbasetemp() / "kernels"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_compiled_layer_is_the_layer(name, backend):
    layer = LAYERS[name]()
    quick = fast(layer, backend)
    for x in (inputs(), inputs(1, 1), inputs(4, 11)):
        agree(numbers(quick, x), numbers(layer, x))
    assert "unrolled" not in quick.report()
    assert f"back end: {'numba' if backend == 'numba' else 'NumPy'}" in quick.report()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["lstm", "gru", "layer norm", "stacked, both ways"])
def test_sequences_of_several_lengths(name, backend):
    layer = LAYERS[name]()
    agree(
        numbers(fast(layer, backend), inputs(), lengths=[2, 5, 0]),
        numbers(layer, inputs(), lengths=[2, 5, 0]),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_initial_states_have_gradients(backend):
    layer = nn.LSTM(3, 4, **WORDS)
    state = tuple([Tensor(weight(np.zeros((1, 3, 4)), k), requires_grad=True) for k in (0, 1)])
    ours = numbers(fast(layer, backend), inputs(), state=state)
    agree(ours, numbers(layer, inputs(), state=state))


@pytest.mark.parametrize("backend", BACKENDS)
def test_recurrent_dropout_and_dropout_between_layers(backend):
    layer = nn.LSTM(3, 4, num_layers=2, dropout=0.5, recurrent_dropout=0.5, **WORDS)
    quick = fast(layer, backend)
    layer.mask_seed = quick.mask_seed = 3
    agree(numbers(quick, inputs()), numbers(layer, inputs()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_within_64_eps(backend):
    layer = nn.LSTM(3, 17, rng=0)
    x = inputs(dtype=np.float32)
    agree(numbers(fast(layer, backend), x), numbers(layer, x), 64 * np.finfo("f4").eps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_gradients(backend):
    layer = nn.LSTM(3, 4, **WORDS)
    found = []
    for each in (layer, fast(layer, backend)):
        x = inputs()
        out, (_, c) = each(x)
        leaves = [x, *layer.parameters()]
        first = grad((out * out).sum() + (c * c).sum(), leaves, create_graph=True)
        found.append([g.data for g in first] + grad(sum((g * g).sum() for g in first), leaves))
    agree(*found)


def test_keys_and_parameters_are_those_of_the_layer():
    layer = nn.LSTM(3, 4, num_layers=2)
    quick = tinygrad_rnn.compile(layer)
    assert list(quick.state_dict()) == list(layer.state_dict())
    assert all(p is q for p, q in zip(quick.parameters(), layer.parameters(), strict=True))
    assert isinstance(quick, nn.LSTM)
    assert tinygrad_rnn.compile(quick) is quick


def test_a_model_has_its_layers_compiled():
    model = nn.Readout(nn.LSTM(3, 4), 2)
    before = list(model.state_dict())
    assert tinygrad_rnn.compile(model) is model
    assert isinstance(model.layer, tinygrad_rnn.compiler.Compiled)
    assert list(model.state_dict()) == before


def test_backward_runs_twice_and_without_a_graph_nothing_is_kept():
    quick = fast(nn.LSTM(3, 4, **WORDS), "numpy")
    x = inputs()
    out, _ = quick(x)
    out.backward(np.ones(out.shape))
    once = x.grad.copy()
    out.backward(np.ones(out.shape))
    agree([x.grad], [2 * once])
    with no_grad():
        plain, _ = quick(x)
    assert not plain.requires_grad
    agree([plain.data], [out.data])
    assert quick.plan.kept == []


def test_frozen_parameters_get_no_gradient():
    layer = nn.LSTM(3, 4, **WORDS)
    layer.L0["fwd"].W_h.requires_grad = False
    fast(layer, "numpy")(inputs())[0].sum().backward()
    assert layer.L0["fwd"].W_h.grad is None
    assert layer.L0["fwd"].W_x.grad is not None


def test_record_and_debug_and_complex_numbers_run_unrolled():
    quick = fast(nn.RNN(3, 4, **WORDS), "numpy")
    with record():
        out, _ = quick(np.ones((3, 1, 3)))
    assert out.op.name == "stack"
    with debug():
        out, _ = quick(inputs())
    assert out.op.name == "stack"
    z, _ = quick(np.ones((3, 1, 3)) + 0j)
    assert z.dtype == np.complex128


def test_a_replaced_parameter_and_a_changed_setting_are_seen():
    layer = nn.Recurrent(nn.LayerNormLSTMCell(3, 4, **WORDS))
    quick = fast(layer, "numpy")
    quick(inputs())
    cell = layer.L0["fwd"]
    cell.W_h = Parameter(cell.W_h.data * 2)
    cell.eps = 0.5
    agree(numbers(quick, inputs()), numbers(layer, inputs()))


class Plain(nn.Cell):
    def __init__(self):
        super().__init__(3, 3, dtype=np.float64)
        self.add_weights(rng=0)
        self.count, self.rng = 0, np.random.default_rng(0)


class Branches(Plain):
    def step(self, x, h):
        h = tanh(self.affine(x, h))
        return (h, h) if h.sum() > 0 else (-h, -h)


class Reads(Plain):
    def step(self, x, h):
        h = tanh(self.affine(x, h)) * float(x.data.mean() > -100)
        return h, h


class ReadsParameter(Plain):
    def step(self, x, h):
        h = tanh(self.affine(x, h)) * self.W_h.numpy().max()
        return h, h


class Mixes(Plain):
    def step(self, x, h):
        h = tanh(self.affine(x, h))
        h = h - h.sum(axis=0) * 0.1
        return h, h


class Counts(Plain):
    def step(self, x, h):
        self.count += 1
        h = tanh(self.affine(x, h))
        return h, h


class Outside(Plain):
    def step(self, x, h):
        h = tanh(self.affine(x, h)) * SCALE
        return h, h


SCALE = Tensor([2.0], requires_grad=True)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Branches, r"reads the value of a Tensor \(bool\(\)\) at .*test_compile.py:\d+"),
        (Reads, r"reads the value of a Tensor \(.data\) at .*test_compile.py:\d+"),
        (ReadsParameter, r"reads the value of a Tensor \(.numpy\(\)\) at .*test_compile.py:\d+"),
        (Mixes, "mixes the sequences of the batch"),
        (Counts, "sets Counts.count"),
        (Outside, "which is no parameter of the cell"),
    ],
)
def test_what_cannot_be_compiled_runs_unrolled_and_says_why(cell, text):
    layer = nn.Recurrent(cell())
    quick = fast(layer, "numpy")
    with pytest.warns(CompileWarning, match=text):
        ours = numbers(quick, inputs())
    assert "runs unrolled" in quick.report()
    agree(ours, numbers(layer, inputs()))


class Noisy(Plain):
    def step(self, x, h):
        h = tanh(self.affine(x, h)) + self.rng.standard_normal(3)
        return h, h


def test_a_step_with_its_own_randomness_runs_unrolled():
    quick = fast(nn.Recurrent(Noisy()), "numpy")
    with pytest.warns(CompileWarning, match="random numbers"):
        quick(inputs())


class Own(Plain):
    """Products, sums, parts and choices as a user would write them."""

    def step(self, x, h):
        a = self.affine(x, h)
        left, right = split(tinygrad_rnn.functional.stack([a, h], axis=1).reshape((-1, 6)), 2)
        top = functional.softmax(left) + left.max(axis=1, keepdims=True)
        h = sigmoid(right) * top
        return h, h


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cell_of_ones_own(backend):
    layer = nn.Recurrent(Own())
    agree(numbers(fast(layer, backend), inputs()), numbers(layer, inputs()))


@pytest.mark.skipif(not NUMBA, reason="numba is not installed")
def test_the_number_of_threads_changes_no_bit():
    layer = nn.LSTM(3, 64, rng=0)
    x = inputs(T=30, N=29, dtype=np.float32)
    one, two = [numbers(tinygrad_rnn.compile(layer, threads=n, backend="numba"), x) for n in (1, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("every", [2, "sqrt"])
def test_checkpoints_keep_states_only_and_change_nothing(every, backend):
    layer = nn.LSTM(3, 4, checkpoint_every=every, bidirectional=True, **WORDS)
    quick, x = fast(layer, backend), inputs(7)
    assert [t.op.name for t in graph.nodes([quick(x)[0]]) if t.op].count("recompute") == 2
    for call in ({}, {"lengths": [7, 0, 3]}):
        found = []
        for each in (layer, quick):
            out, (h, c) = each(x, **call)
            found.append(grad((out * out).sum() + (h * c).sum(), [x, *layer.parameters()]))
        agree(*found)
    assert "unrolled" not in quick.report()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_runs_unrolled_between_checkpoints_has_its_own_lengths(backend):
    layer = nn.Recurrent(Mixes(), checkpoint_every=2)
    quick, x = fast(layer, backend), inputs(5)

    def found(each):
        out, h = each(x, lengths=[5, 2, 3])
        return [out.data, *grad((out * out).sum() + h.sum(), [x, *layer.parameters()])]

    with pytest.warns(CompileWarning, match="mixes the sequences"):
        ours = found(quick)
    agree(ours, found(layer))


def test_layers_in_lists_are_compiled_and_a_shared_one_stays_one():
    class Model(nn.Sequential):
        def __init__(self, layer):
            super().__init__(nn.Linear(3, 3))
            self.more, self.named = [layer, nn.GRU(3, 3)], {"same": layer}

    model = tinygrad_rnn.compile(Model(nn.LSTM(3, 3)))
    assert all(isinstance(m, tinygrad_rnn.compiler.Compiled) for m in model.more)
    assert model.more[0] is model.named["same"]


@pytest.mark.parametrize(
    ("model", "words", "error", "text"),
    [
        (nn.Linear(2, 2), {}, ValueError, "Linear holds no recurrent layer"),
        (len, {}, TypeError, "expected a layer or a model"),
        (nn.LSTM(2, 2), {"threads": 0}, ValueError, "threads=0 must be a whole number"),
        (nn.LSTM(2, 2), {"backend": "C"}, ValueError, "backend='C' is none of"),
    ],
)
def test_bad_arguments(model, words, error, text):
    with pytest.raises(error, match=text):
        tinygrad_rnn.compile(model, **words)


def test_a_back_end_that_does_not_load_is_not_used(monkeypatch):
    def broken(*_):
        raise ImportError("numba is broken")

    monkeypatch.setattr(tinygrad_rnn.compiler.numba_backend, "available", lambda: True)
    monkeypatch.setattr(tinygrad_rnn.compiler.numba_backend, "Kernels", broken)
    quick = tinygrad_rnn.compile(nn.LSTM(3, 4))
    quick(inputs(dtype=np.float32))
    assert "back end: NumPy\nwithout numba: numba is broken" in quick.report()


def test_numba_that_is_asked_for_must_be_there(monkeypatch):
    monkeypatch.setattr(tinygrad_rnn.compiler.numba_backend, "available", lambda: False)
    with pytest.raises(ImportError, match="pip install numba"):
        tinygrad_rnn.compile(nn.LSTM(3, 4), backend="numba")


def test_a_reason_that_is_mended_is_forgotten():
    quick = fast(nn.LSTM(3, 4, zoneout=0.1, **WORDS), "numpy")
    with pytest.warns(CompileWarning, match="zoneout"):
        quick(inputs())
    quick.eval()(inputs())
    assert "unrolled" not in quick.report()
