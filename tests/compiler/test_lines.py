"""Whatever stops a step from being compiled, the warning names the line of the cell."""

import contextlib
import inspect
import warnings

import numpy as np
import pytest

from tinygrad_rnn import Tensor, functional, nn, ops
from tinygrad_rnn.compiler import CompileWarning, rows
from tinygrad_rnn.compiler.trace import BATCHES
from tinygrad_rnn.errors import ShapeError, StateError
from tinygrad_rnn.op import OPS, primitive
from tinygrad_rnn.ops import concat, matmul, tanh

from .test_compile import Plain, fast, inputs

CELLS_FILE = inspect.getsourcefile(nn.RNNCell)
OUTER = Tensor([2.0, 2.0, 2.0], requires_grad=True)
LOG = []
CALLS = 0


def here(kind, comment="# here"):
    """Return the place of the line with the comment, as errors write it."""
    lines, first = inspect.getsourcelines(kind)
    (k,) = [k for k, line in enumerate(lines) if line.rstrip().endswith(comment)]
    return f"{inspect.getsourcefile(kind)}:{first + k}"


def reason(cell, T=2):
    """Return why the step of a cell runs unrolled."""
    quick = fast(nn.Recurrent(cell), "numpy")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with contextlib.suppress(StateError, ShapeError, TypeError):  # as it is unrolled
            quick(inputs(T))
    texts = [str(w.message) for w in found if w.category is CompileWarning]
    assert texts, quick.report()
    assert texts[0].split("runs unrolled: ")[1] in quick.report()
    return texts[0]


CELLS = {}


def refused(text):
    """Note a cell with what is said about it."""

    def note(kind):
        CELLS[kind.__name__] = kind, text
        return kind

    return note


# --- found while the step runs ------------------------------------------------------------------


@refused("reads the value of a Tensor (bool())")
class Branches(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        if a.sum() > 0:  # here
            a = -a
        return a, a


@refused("reads the value of a Tensor (.item())")
class AsksInAHelper(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        a = a * self.scale(a)
        return a, a

    def scale(self, a):
        return a.sum().item()  # here


@refused("division by zero")
class Fails(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        a = a * (1 / (len(x) - BATCHES[0]))  # here
        return a, a


@refused("its step failed with example values")
class FailsInTheEngine(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        a = a @ x.reshape(-1, 1)  # here
        return a, a


@refused("its step failed with example values")
class FailsInNumPy(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        a = a - np.mean(a, axis=1, keepdims=True, dtype=np.float64)  # here
        return a, a


@refused("returned a state (5, 4), but was given (5, 3)")
class Grows(Plain):
    def step(self, x, h):  # here
        a = tanh(self.affine(x, h))
        return a, concat(a, a[:, :1], axis=1)


@refused("the step makes float32 of float64")
class Narrows(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        y = a.astype(np.float32)  # here
        return y, a


# --- found in what two runs of it made ----------------------------------------------------------


@refused("takes another path for another batch")
class TakesAnotherWay(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        if len(a) > 5:
            a = a + h  # here
        return a, a


@refused("takes another path for another batch")
class TakesAnotherOp(Plain):
    def step(self, x, h):
        a = self.affine(x, h)
        a = tanh(a) if len(a) > 5 else abs(a)  # here
        return a, a


@refused("takes another path for another batch")
class ReadsInAnotherOrder(Plain):
    def step(self, x, h):
        a = self.affine(x, h)
        a = a - x if len(a) > 5 else x - a  # here
        return a, a


@refused("mixes the batch with features")
class Flattens(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        flat = a.reshape(-1)  # here
        a = flat.reshape(-1, 3)
        return a, a


@refused("depends on the batch")
class CutsTheBatch(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        last = a[len(a) - 1 : len(a)]  # here
        return a + last, a


@refused("numbers that change from call to call")
class DrawsItsOwn(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        noise = np.random.default_rng().random(3)
        a = a + noise  # here
        return a, a


@refused("how many sequences there are")
class TakesAMean(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        m = a.mean(axis=0)  # here
        return a - m, a


@refused("which is no parameter of the cell")
class ReadsOutside(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        a = a * OUTER  # here
        return a, a


# --- found in the roles of its values -----------------------------------------------------------


@refused("mixes the sequences of the batch")
class Mixes(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        s = a.sum(axis=0)  # here
        a = a - s
        return a, a


@refused("mixes the sequences of the batch")
class TurnsAround(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        a = a[::-1]  # here
        return a, a


@refused("mixes the sequences of the batch")
class Attends(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        scores = functional.softmax(
            matmul(a, a.T)  # here
        )
        a = scores @ a
        return a, a


@refused("an index of arrays is not known to the compiler")
class Indexes(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        a = a[:, np.array([2, 1, 0])]  # here
        return a, a


# --- what a step does besides -------------------------------------------------------------------


@refused("the step sets Counts.count")
class Counts(Plain):
    def step(self, x, h):
        before = self.count
        self.count = before + 1  # here
        a = tanh(self.affine(x, h))
        return a, a


@refused("the step sets Keeps.last")
class Keeps(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        self.remember(a)
        return a, a

    def remember(self, a):
        self.last = a  # here


@refused("the step changes Appends.seen")
class Appends(Plain):
    def __init__(self):
        super().__init__()
        self.seen = []

    def step(self, x, h):
        a = tanh(self.affine(x, h))
        self.seen.append(1)  # here
        return a, a


@refused("the step draws random numbers from Draws.rng")
class Draws(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        a = a + self.rng.standard_normal(3)  # here
        return a, a


@refused("the step sets Hides.count")
class Hides(Plain):
    def step(self, x, h):  # here
        a = tanh(self.affine(x, h))
        vars(self).update({"co" + "unt": 7})
        return a, a


@refused("the step sets CALLS")
class CountsOutside(Plain):
    def step(self, x, h):
        global CALLS
        CALLS += 1  # here
        a = tanh(self.affine(x, h))
        return a, a


@refused("the step changes LOG")
class LogsOutside(Plain):
    def step(self, x, h):
        a = tanh(self.affine(x, h))
        LOG.append(a)  # here
        return a, a


@refused("the step sets total")
class CountsOnTheClass(Plain):
    total = 0

    def step(self, x, h):
        a = tanh(self.affine(x, h))
        type(self).total += 1  # here
        return a, a


@pytest.mark.parametrize("name", CELLS)
def test_the_warning_names_the_line(name):
    kind, text = CELLS[name]
    said = reason(kind())
    assert text in said
    assert f" at {here(kind)}" in said
    LOG.clear()


def test_an_op_that_the_compiler_does_not_know():
    twice = primitive("()->()", "2 x", name="twice_of_lines")(lambda x: x * 2)
    twice.vjp(lambda g, y, x: g * 2)

    class Unknown(Plain):
        def step(self, x, h):
            a = tanh(self.affine(x, h))
            a = twice(a)  # here
            return a, a

    try:
        said = reason(Unknown())
    finally:
        del OPS["twice_of_lines"]
    assert f"twice_of_lines is not known to the compiler at {here(Unknown)}" in said


def test_an_op_that_only_a_gradient_needs():
    back = primitive("()->()", "-x", name="back_of_lines")(lambda x: -x)
    front = primitive("()->()", "tanh(x)", name="front_of_lines")(np.tanh)
    back.vjp(lambda g, y, x: -g)

    def rule(g, y, x):
        return g * back(y)  # here

    front.vjp(rule)

    class Half(Plain):
        def step(self, x, h):
            a = tanh(self.affine(x, h))
            a = front(a)
            return a, a

    known = rows.KNOWN
    rows.KNOWN = known | {front}
    try:
        said = reason(Half())
    finally:
        rows.KNOWN = known
        del OPS["back_of_lines"], OPS["front_of_lines"]
    assert f"back_of_lines is not known to the compiler at {here(rule)}" in said


def test_a_gradient_of_the_library_is_at_the_line_of_its_op(monkeypatch):
    monkeypatch.setattr(rows, "KNOWN", rows.KNOWN - {ops.sub})

    class Squashes(Plain):
        def step(self, x, h):
            a = self.affine(x, h)
            b = tanh(a)  # here
            a = b + h
            return a, a

    assert f"sub is not known to the compiler at {here(Squashes)}" in reason(Squashes())


def test_a_function_that_a_cell_of_the_library_is_given():
    def peek(a):
        return a * float(a.data.max())  # here

    said = reason(nn.RNNCell(3, 3, activation=peek, dtype=np.float64))
    assert f"(.data) at {here(peek)}" in said


def test_a_cell_of_the_library_is_named_where_no_line_is_the_users(monkeypatch):
    monkeypatch.setattr(rows, "KNOWN", rows.KNOWN - {ops.tanh})
    said = reason(nn.RNNCell(3, 3, dtype=np.float64))
    lines, first = inspect.getsourcelines(nn.RNNCell.step)
    (k,) = [k for k, line in enumerate(lines) if "self.activation(a)" in line]
    assert f"tanh is not known to the compiler at {CELLS_FILE}:{first + k}" in said
