"""The program of a step: what is in it, for any batch, and what no program can stand for."""

import numpy as np
import pytest

from tinygrad_rnn import Tensor, nn, no_grad, ops, record
from tinygrad_rnn.compiler import CompileError, rows
from tinygrad_rnn.compiler.passes import common
from tinygrad_rnn.compiler.recording import Hidden
from tinygrad_rnn.compiler.trace import BATCHES, Request, trace
from tinygrad_rnn.ops import tanh

from .test_compile import WORDS, Plain


def request(cell, features=3, nest=lambda parts: parts[0], n=1):
    size = cell.hidden_size
    return Request(
        cell, lambda cell, x, state, inside, mask: (*cell.step(x, state), {}), features,
        [((size,), cell.dtype)] * n, nest, False, None,
    )  # fmt: skip


def program(cell, **words):
    found = trace(request(cell, **words))
    common(found)
    rows.assign(found)
    return found


def test_the_program_of_a_plain_cell():
    p = program(nn.RNNCell(3, 4, **WORDS))
    forward = [v.op.name for v in p.values if v.op and not v.backward]
    assert sorted(forward) == ["add", "add", "matmul", "matmul", "tanh"]
    assert p.y is p.states[0]
    assert p.y.shape == (None, 4)
    assert set(p.parameter_grads) == {"W_x", "W_h", "b"}
    assert p.x_grad.shape == (None, 3)
    assert [g.shape for g in p.state_grads] == [(None, 4)]


def test_the_parts_of_a_state_have_gradients_in_their_order():
    p = program(nn.LSTMCell(3, 4, **WORDS), nest=tuple, n=2)
    assert [v.name for v in p.values if v.leaf == "state"] == ["0", "1"]
    assert len(p.state_grads) == len(p.states) == 2


def test_values_come_after_what_they_are_made_of():
    p = program(nn.GRUCell(3, 4, **WORDS))
    at = {v: k for k, v in enumerate(p.values)}
    assert all(at[i] < at[v] for v in p.values for i in v.inputs)


def test_the_gradients_of_weights_are_sums_over_rows():
    p = program(nn.LSTMCell(3, 4, **WORDS), nest=tuple, n=2)
    assert {p.parameter_grads[k].role for k in p.parameter_grads} == {"summed"}
    assert {v.role for v in p.values if v.leaf == "parameter"} == {"shared"}
    assert {v.role for v in p.values if v.leaf in ("x", "state", "cotangent")} == {"rows"}


def test_a_size_that_is_the_batch_of_a_trace_is_no_batch():
    for size in BATCHES:
        p = program(nn.LSTMCell(size, size, **WORDS), features=size, nest=tuple, n=2)
        assert p.y.shape == (None, size)


def test_neither_the_cell_nor_its_generator_is_touched():
    class Noisy(Plain):
        def step(self, x, h):
            h = tanh(self.affine(x, h) + self.rng.standard_normal(3))
            return h, h

    cell = Noisy()
    before = cell.rng.bit_generator.state, [p.data.copy() for p in cell.parameters()]
    with pytest.raises(CompileError, match=r"draws random numbers from Noisy.rng"):
        trace(request(cell))
    assert cell.rng.bit_generator.state == before[0]
    assert all((p.data == a).all() for p, a in zip(cell.parameters(), before[1], strict=True))
    assert cell.count == 0
    assert not any(isinstance(p, Hidden) for p in cell.parameters())


def test_the_result_of_an_op_outside_is_a_constant():
    with record():
        outer = Tensor(np.full(3, 0.5)) * 2
    p = program(step(lambda s, x, h, a: a * outer))
    assert [v.array.tolist() for v in p.values if v.leaf == "constant"] == [[1.0, 1.0, 1.0]]
    assert [v.op.name for v in p.values if v.op and not v.backward].count("mul") == 1


def step(line):
    """Return a cell whose step is `line`, of x, h and a = affine(x, h)."""

    class Own(Plain):
        def step(self, x, h):
            h = line(self, x, h, tanh(self.affine(x, h)))
            return h, h

    return Own()


def put(cell, value):
    cell.log = value
    return value


def unrecorded(a):
    with no_grad():
        return ops.where(a > -2, 1.0, 0.0)  # the same for all numbers that a trace draws


def leave(cell, value):
    cell.rng = np.random.default_rng(1)
    return value


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (lambda s, x, h, a: a if a.sum() else h, r"\(bool\(\)\) at .*test_trace.py:\d+"),
        (lambda s, x, h, a: a * a.sum().item(), r"\(.item\(\)\) at .*test_trace.py:\d+"),
        (lambda s, x, h, a: a * np.asarray(x).sum(), r"\(numpy\) at .*test_trace.py:\d+"),
        (lambda s, x, h, a: a * float(s.b.data.sum()), r"\(.data\) at .*test_trace.py:\d+"),
        (lambda s, x, h, a: a if a.detach().numpy().any() else h, r"\(.numpy\(\)\)"),
        (lambda s, x, h, a: a * a.shape[0], "how many sequences"),
        (lambda s, x, h, a: a if len(a) > BATCHES[0] else a + h + x, "another path"),
        (lambda s, x, h, a: a * np.random.default_rng().random(3), "change from call to call"),
        (lambda s, x, h, a: put(s, a), "sets Own.log"),
        (lambda s, x, h, a: a * unrecorded(a), r"under no_grad\(\) at .*test_trace.py:\d+"),
        (lambda s, x, h, a: setattr(s.b, "data", np.ones(3)) or a, r"sets the numbers of a Tensor"),
        (lambda s, x, h, a: leave(s, a), "Own.rng"),
        (lambda s, x, h, a: a.astype(np.float32).astype(np.float64) + a[:0].sum(), "mixes"),
        (lambda s, x, h, a: a[::-1], "mixes"),
        (lambda s, x, h, a: a[:, 0:1] * a.T[0:1, 0:1] + a, "mixes"),
        (lambda s, x, h, a: a @ (a.T @ a), "mixes"),
        (lambda s, x, h, a: a - a.max(), "mixes"),
        (lambda s, x, h, a: a * 0.5 + a.sum(axis=0, keepdims=True), "mixes"),
        (lambda s, x, h, a: ops.concat(a[1:], a[:1], axis=0), "mixes|mixes the batch"),
        (lambda s, x, h, a: ops.log_softmax(a, axis=0), "mixes"),
        (lambda s, x, h, a: a[:, np.array([2, 1, 0])], "an index of arrays"),
    ],
)
def test_what_has_no_program(line, text):
    with pytest.raises(CompileError, match=text):
        program(step(line))
