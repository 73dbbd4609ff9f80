"""What the engine says to bad input: the op, the shapes, the names, and what would be right."""

import copy

import numpy as np
import pytest

from tinygrad_rnn import Tensor, grad, no_grad, ops
from tinygrad_rnn.errors import DtypeError, GraphError, ShapeError
from tinygrad_rnn.op import primitive
from tinygrad_rnn.scope import Call, Place, at

x = Tensor(np.ones((2, 3)), requires_grad=True, name="x")
W = Tensor(np.ones((4, 5)), requires_grad=True, name="W_x")
low = Tensor(np.ones((2, 3), np.float32), name="low")
const = Tensor(np.ones(3))


def off_grid():
    with at(Place(Call("encoder", 7), 0, "fwd", 2)):
        return x @ W


BAD = {
    "matmul": (lambda: x @ W, ShapeError, ["matmul", "x (2, 3)", "W_x (4, 5)"]),
    "matmul of a scalar": (lambda: x @ 2.0, ShapeError, ["matmul", "x (2, 3)", "()"]),
    "place": (off_grid, ShapeError, ["matmul in encoder.L0.fwd, step t=3 of 7: x (2, 3)"]),
    "add": (lambda: x + W, ShapeError, ["add", "x (2, 3)", "W_x (4, 5)"]),
    "array + x": (lambda: np.ones(4) + x, ShapeError, ["add", "a constant (4,)", "x (2, 3)"]),
    "where": (lambda: ops.where(x > 0, x, W), ShapeError, ["where", "x (2, 3)", "W_x (4, 5)"]),
    "concat": (lambda: ops.concat(x, W), ShapeError, ["concat", "x (2, 3)", "W_x (4, 5)"]),
    "concat axis": (lambda: ops.concat(x, x, axis=2), IndexError, ["concat", "x (2, 3)", "axis=2"]),
    "stack": (lambda: ops.stack(x, W), ShapeError, ["stack", "x (2, 3)", "W_x (4, 5)"]),
    "getitem": (lambda: x[2], IndexError, ["getitem", "x (2, 3)", "index 2", "size 2"]),
    "getitem array": (
        lambda: x[:, [0, 3]],
        IndexError,
        ["getitem", "x (2, 3)", "index 3", "size 3"],
    ),
    "getitem mask": (lambda: x[np.ones(3, bool)], IndexError, ["getitem", "x (2, 3)", "boolean"]),
    "getitem axes": (lambda: x[0, 0, 0], IndexError, ["getitem", "x (2, 3)", "too many indices"]),
    "getitem float": (
        lambda: x[np.ones(2)],
        DtypeError,
        ["index is float64", "integer or boolean"],
    ),
    "take": (lambda: ops.take(x, np.array(5)), IndexError, ["take", "x (2, 3)", "index 5"]),
    "reshape": (lambda: x.reshape(4, 2), ShapeError, ["reshape", "x (2, 3)", "shape=(4, 2)"]),
    "broadcast": (
        lambda: ops.broadcast(x, shape=(2,)),
        ShapeError,
        ["broadcast", "x (2, 3)", "(2,)"],
    ),
    "transpose": (lambda: x.transpose(0, 0), ShapeError, ["transpose", "x (2, 3)", "axes=(0, 0)"]),
    "sum axis": (lambda: x.sum(axis=2), IndexError, ["sum", "x (2, 3)", "axis=2", "out of bounds"]),
    "max of nothing": (lambda: Tensor(np.ones((0,))).max(), ShapeError, ["max", "(0,)"]),
    "mT": (lambda: const.mT, ShapeError, ["mT", "two axes", "(3,)"]),
    "result names": (lambda: (x * 2) @ W, ShapeError, ["result of mul (2, 3)", "W_x (4, 5)"]),
    "float32 + float64": (
        lambda: low + x,
        DtypeError,
        ["add: float32 mixed with float64", "low (2, 3)", "x (2, 3)", "Tensor.astype('float32')"],
    ),
    "integers": (
        lambda: Tensor([1, 2], requires_grad=True),
        DtypeError,
        ["int64 data cannot require a gradient", "np.float32"],
    ),
    "booleans": (lambda: Tensor([True], requires_grad=True), DtypeError, ["bool data cannot"]),
    "text": (lambda: Tensor(["a"]), DtypeError, ["data is <U1, not numbers"]),
    "objects": (lambda: Tensor([None]), DtypeError, ["data is object, not numbers"]),
    "backward of many": (
        lambda: (x * 2).backward(),
        GraphError,
        ["result of mul (2, 3) is no scalar", "pass the gradient", "y.sum()"],
    ),
    "backward of none": (
        lambda: (const * 2).sum().backward(),
        GraphError,
        ["backward: a constant () requires no gradient", "no_grad()"],
    ),
    "gradient's shape": (
        lambda: (x * 2).backward(np.ones(3)),
        ShapeError,
        ["the gradient of result of mul (2, 3) cannot have the shape (3,)"],
    ),
    "weight's shape": (
        lambda: grad([x.sum(), x * 2], x, [1.0, [1.0]]),
        ShapeError,
        ["the gradient of result of mul (2, 3) cannot have the shape (1,)"],
    ),
    "weight's number": (
        lambda: grad([x.sum(), x.sum()], x, [1.0]),
        ShapeError,
        ["2 outputs but 1 gradients"],
    ),
    "grad of many": (lambda: grad(x * 2, x), GraphError, ["result of mul (2, 3) is no scalar"]),
    "grad of unrecorded": (
        lambda: grad(const * 2, const),
        GraphError,
        ["a constant (3,) was not recorded"],
    ),
    "grad's shape": (
        lambda: setattr(x, "grad", np.ones(3)),
        ShapeError,
        ["grad of x (2, 3) cannot have the shape (3,)"],
    ),
    "item": (lambda: x.item(), ShapeError, ["item: one element is needed", "(2, 3)"]),
    "float": (lambda: float(x), ShapeError, ["one element is needed", "(2, 3)"]),
    "format": (lambda: f"{x:.2f}", ShapeError, ["one element is needed", "(2, 3)"]),
    "truth": (
        lambda: bool(x > 0),
        ValueError,
        ["(2, 3) is neither true nor false", "any()", "all()"],
    ),
    "truth of nothing": (lambda: bool(Tensor([])), ValueError, ["(0,) is neither true nor false"]),
    "len": (lambda: len(Tensor(1.0)), TypeError, ["len() of a Tensor without axes"]),
    "iteration": (lambda: list(Tensor(1.0)), TypeError, ["Tensor without axes"]),
    "deepcopy": (lambda: copy.deepcopy(x * 2), GraphError, ["a recorded Tensor", "t.detach()"]),
    "a name taken": (
        lambda: primitive("()->()", "x", name="tanh")(np.tanh),
        ValueError,
        ["'tanh' exists"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_error(case):
    attempt, kind, words = BAD[case]
    with pytest.raises(kind) as caught:
        attempt()
    assert type(caught.value) is kind
    message = str(caught.value)
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} missing in: {message}"


def test_grad_of_what_no_grad_hid_says_so():
    with no_grad():
        y = (x * 2).sum()
    with pytest.raises(GraphError, match=r"was not recorded: .*made under no_grad\(\)"):
        grad(y, x)
    with pytest.raises(GraphError, match=r"requires no gradient: .*made under no_grad\(\)"):
        y.backward()


def test_nothing_is_left_behind_by_an_error():
    y = Tensor([1.0, 2.0], requires_grad=True)
    for attempt in (lambda: (y * 2).backward([1.0]), lambda: (y * 2).backward()):
        with pytest.raises((GraphError, ShapeError)):
            attempt()
    assert y.grad is None
    (y * 2).sum().backward()
    np.testing.assert_array_equal(y.grad, [2.0, 2.0])
