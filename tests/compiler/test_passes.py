"""Each pass leaves the numbers alone: programs are run value by value, before and after."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn import nn, ops
from tinygrad_rnn.compiler import passes, rows
from tinygrad_rnn.compiler.passes import common, schedule
from tinygrad_rnn.compiler.rows import VIEWS
from tinygrad_rnn.compiler.trace import trace

from .drawn_cells import drawn_cells
from .test_compile import WORDS
from .test_trace import program, request

CELLS = {
    "rnn": lambda: (nn.RNNCell(3, 4, **WORDS), 1),
    "lstm": lambda: (nn.LSTMCell(3, 4, **WORDS), 2),
    "gru": lambda: (nn.GRUCell(3, 4, **WORDS), 1),
    "layer norm": lambda: (nn.LayerNormLSTMCell(3, 4, **WORDS), 2),
}


def asked(cell, n):
    return request(cell, cell.input_size, tuple if n > 1 else lambda p: p[0], n)


def evaluate(program, values, N=4):
    """Return each value's numbers for a batch of `N`, computed in this order."""
    found = {}
    for v in values:
        shape = tuple([N if k is None else k for k in v.shape])
        if v.op is not None:
            attrs = dict(v.attrs)
            if "shape" in attrs:
                attrs["shape"] = tuple([N if k is None else k for k in attrs["shape"]])
            found[v] = v.op.forward(*[found[i] for i in v.inputs], **attrs)
        elif v.leaf == "constant":
            found[v] = np.broadcast_to(v.array, shape)
        else:
            seed = list(f"{v.leaf} {v.name}".encode())
            found[v] = np.random.default_rng(seed).uniform(-1, 1, shape)
    return found


def results(p):
    return [
        p.y, *p.states, *p.marks.values(), p.x_grad, *p.state_grads, *p.parameter_grads.values(),
    ]  # fmt: skip


def read(p):
    found = evaluate(p, p.values)
    return [None if v is None else found[v] for v in results(p)]


def check_common(cell, n):
    p = trace(asked(cell, n))
    before, length = read(p), len(p.values)
    common(p)
    assert len(p.values) <= length
    for a, b in zip(read(p), before, strict=True):
        assert (a is None and b is None) or np.array_equal(a, b)
    keys = [(v.op, v.inputs, repr(v.attrs)) for v in p.values if v.op is not None]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", CELLS)
def test_common_subexpressions_leave_the_numbers(name):
    check_common(*CELLS[name]())


@given(drawn_cells())
def test_common_subexpressions_of_drawn_cells(cell):
    check_common(cell, cell.n_states)


def test_what_is_computed_twice_is_computed_once():
    class Twice(nn.Cell):
        def step(self, x, h):
            h = ops.tanh(x) * ops.tanh(x) + ops.tanh(x * 2.0) + ops.tanh(x * 2.0)
            return h, h

    p = program(Twice(3, 3, dtype=np.float64))
    assert [v.op.name for v in p.values if v.op and not v.backward].count("tanh") == 2


def plan(cell, n, **words):
    p = trace(asked(cell, n))
    common(p)
    rows.assign(p)
    every = {"x_grad": True, "parameters": tuple(p.parameter_grads), "backward": True,
             "traced": False}  # fmt: skip
    return schedule(p, **{**every, **words})


def check_schedule(s):
    """Every section reads what is there by then, and the loop alone reads the state before."""
    p = s.program
    there = {v for v in p.values if v.role == "shared" or v.op is None}
    for section in (s.pre, s.loop, s.post):
        for v in section.values:
            assert all(i in there or i in section.values for i in v.inputs), v
            assert not v.backward
        there |= set(section.values)
    assert {p.y, *p.states} <= there
    there = {v for v in there if v.role == "shared" or v.op is None} | set(s.kept)
    for section in (s.back_pre, s.back_loop, s.sink):
        for v in section.values:
            assert all(i in there or i in section.values for i in v.inputs), v
        there |= set(section.values)
    wanted = [p.parameter_grads[k] for k in s.parameters] + ([p.x_grad] if s.x_grad else [])
    assert {g for g in [*wanted, *p.state_grads] if g is not None} <= there
    state = passes._depends(p, lambda v: v.leaf in ("state", "mask"))
    assert not [v for v in s.pre.values if v in state and v.op not in VIEWS]


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_each_section_finds_what_it_reads(name, fuse):
    check_schedule(plan(*CELLS[name](), fuse=fuse))


@given(drawn_cells(), st.booleans())
def test_each_section_of_drawn_cells_finds_what_it_reads(cell, fuse):
    check_schedule(plan(cell, cell.n_states, fuse=fuse))


def names(section):
    return [v.op.name for v in section.values]


def test_products_with_the_input_are_hoisted_and_gradients_of_weights_sunk():
    for make in CELLS.values():
        s = plan(*make())
        assert names(s.pre).count("matmul") == 1
        assert names(s.loop).count("matmul") == 1
        assert names(s.back_loop).count("matmul") == 1  # to the state before
        assert names(s.sink).count("matmul") == 3  # to W_x, to W_h, to x


def test_nothing_is_computed_that_nobody_wants():
    s = plan(*CELLS["lstm"](), x_grad=False, parameters=())
    assert names(s.sink) == []
    s = plan(*CELLS["lstm"](), x_grad=False, parameters=("b",))
    assert "matmul" not in names(s.sink)
    s = plan(*CELLS["lstm"](), backward=False)
    assert (s.back_pre.values, s.back_loop.values, s.sink.values, s.kept) == ([], [], [], [])
