"""What a step reads besides its cell is found, and every change of it is seen."""

import functools
import types

import numpy as np
import pytest

from tinygrad_rnn import Module, Tensor, nn
from tinygrad_rnn.compiler import CompileError
from tinygrad_rnn.compiler.outside import Outside
from tinygrad_rnn.ops import sigmoid, tanh

from .test_compile import LAYERS, Plain

ALPHA = 0.5
MODE = "fast"
UNIT = 1
SIZES = (1, 2)
RATES = {"a": 1.0, "deep": [1.0, 2.0]}
ARRAY = np.ones(3)
LIST = [1.0]
HELD = Tensor(np.ones(3))
CONFIG = types.SimpleNamespace(alpha=1.0, other=1.0)
MODULE = types.ModuleType("settings_of_a_user")
MODULE.rate = 1.0
UNREAD = 1.0


class Options:
    scale = 1.0


def helper(a):
    return inner_helper(a) * ALPHA


def inner_helper(a):
    return a * SIZES[0]


def another(a):
    return a


def kept(f):
    @functools.wraps(f)
    def around(*args):
        return f(*args)

    return around


@kept
def wrapped(a):
    return a * ALPHA


class Reads(Plain):
    """A step that is any function of (cell, a)."""

    scale, switch = 1.0, True

    def __init__(self, line=None):
        super().__init__()
        self.line = line

    def step(self, x, h):
        h = tanh(self.affine(x, h))
        return h, h

    @property
    def half(self):
        return ALPHA

    @staticmethod
    def still(a):
        return a * ALPHA

    def method(self, a):
        return a * ALPHA


class Derived(Reads):
    pass


class Inner(Module):
    def forward(self, a):
        return a * ALPHA


class Nested(Plain):
    def __init__(self):
        super().__init__()
        self.parts = [Inner()]

    def step(self, x, h):
        return h, self.parts[0](h)


def closure():
    """Return a cell whose step reads a variable of the function around it, and how to set that."""
    scale = 1.0

    class Closed(Plain):
        def step(self, x, h):
            h = tanh(self.affine(x, h)) * scale
            return h, h

    def change(m):
        nonlocal scale
        scale = 2.0

    return Closed(), change


def put(name, value):
    return lambda m: m.setitem(globals(), name, value)


def of(line, change):
    return lambda: (Reads(line), change)


WAYS = {
    "a global": of(lambda c, a: a * ALPHA, put("ALPHA", 0.25)),
    "a global that is deleted": of(lambda c, a: a * ALPHA, lambda m: m.delitem(globals(), "ALPHA")),
    "a type": of(lambda c, a: a * UNIT, put("UNIT", True)),
    "a string": of(lambda c, a: a if MODE == "fast" else -a, put("MODE", "slow")),
    "a tuple": of(lambda c, a: a * SIZES[0], put("SIZES", (2, 2))),
    "a dict": of(lambda c, a: a * RATES["a"], lambda m: m.setitem(RATES, "a", 2.0)),
    "a list in a dict": of(lambda c, a: a * RATES["deep"][0],
                           lambda m: m.setitem(RATES, "deep", [2.0, 2.0])),
    "a list in place": of(lambda c, a: a * LIST[0], lambda m: LIST.append(2.0)),
    "an array": of(lambda c, a: a * ARRAY, put("ARRAY", np.ones((1, 3)))),
    "an array in place": of(lambda c, a: a * ARRAY, lambda m: ARRAY.__imul__(2)),
    "a Tensor": of(lambda c, a: a * HELD, lambda m: HELD.data.__imul__(2)),
    "a Tensor's array": of(lambda c, a: a * HELD, lambda m: m.setattr(HELD, "data", np.zeros(3))),
    "an object": of(lambda c, a: a * CONFIG.alpha, lambda m: m.setattr(CONFIG, "alpha", 2.0)),
    "a module": of(lambda c, a: a * MODULE.rate, lambda m: m.setattr(MODULE, "rate", 2.0)),
    "a class": of(lambda c, a: a * Options.scale, lambda m: m.setattr(Options, "scale", 2.0)),
    "a helper": of(lambda c, a: helper(a), put("helper", another)),
    "a helper's helper": of(lambda c, a: helper(a), put("inner_helper", another)),
    "a helper's global": of(lambda c, a: helper(a), put("SIZES", (2, 2))),
    "a decorated helper's global": of(lambda c, a: wrapped(a), put("ALPHA", 0.25)),
    "a partial's global": of(functools.partial(helper), put("ALPHA", 0.25)),
    "a function inside": of(lambda c, a: (lambda b: b * ALPHA)(a),
                            put("ALPHA", 0.25)),
    "an op by its name": of(lambda c, a: sigmoid(a), put("sigmoid", tanh)),
    "a class attribute": of(lambda c, a: a * c.scale, lambda m: m.setattr(Reads, "scale", 2.0)),
    "an inherited attribute": lambda: (Derived(lambda c, a: a * c.scale),
                                       lambda m: m.setattr(Reads, "scale", 2.0)),
    "an attribute that hides another": lambda: (
        Derived(lambda c, a: a * c.scale),
        lambda m: m.setattr(Derived, "scale", 2.0, raising=False),
    ),
    "a step": lambda: (Reads(), lambda m: m.setattr(Reads, "step", Nested.step)),
    "a method of the library that is hidden": lambda: (
        Reads(), lambda m: m.setattr(Reads, "affine", helper, raising=False)
    ),
    "a property's global": of(lambda c, a: a * c.half, put("ALPHA", 0.25)),
    "a static method's global": of(lambda c, a: c.still(a), put("ALPHA", 0.25)),
    "a method's global": of(lambda c, a: c.method(a), put("ALPHA", 0.25)),
    "a module inside": lambda: (Nested(), put("ALPHA", 0.25)),
    "an activation's global": lambda: (nn.RNNCell(3, 3, activation=helper), put("ALPHA", 0.25)),
    "a closure": closure,
}  # fmt: skip


def said(changes):
    return [text for text in [what() for what, _ in changes] if text]


@pytest.mark.parametrize("way", WAYS)
def test_a_change_is_seen_and_nothing_else(way, monkeypatch):
    cell, change = WAYS[way]()
    read = Outside(cell)
    before, changes = read(), read.snapshot()
    assert read() == before
    assert hash(read()) == hash(before)
    assert Outside(cell)() == before
    monkeypatch.setitem(globals(), "UNREAD", 2.0)
    monkeypatch.setattr(CONFIG, "other", 2.0)
    assert read() == before
    assert said(changes) == []
    change(monkeypatch)
    assert read() != before
    assert len(said(changes)) == 1
    assert Outside(cell)() != before


EFFECTS = {
    "a global": ("it sets ALPHA", lambda: put_now("ALPHA", 7.0)),
    "a list": ("it changes LIST", lambda: LIST.append(3.0)),
    "a list in a dict": ("it changes RATES", lambda: RATES["deep"].clear()),
    "a dict": ("it changes RATES", lambda: RATES.update(a=RATES.pop("a"), b=2)),
    "an object": ("it sets alpha", lambda: setattr(CONFIG, "alpha", 7.0)),
    "a class": ("it sets scale", lambda: setattr(Options, "scale", 7.0)),
    "what hides": ("it sets scale", lambda: setattr(Derived, "scale", 7.0)),
    "a generator": ("it draws random numbers from RNG", lambda: RNG.random()),
    "a module": ("it sets Inner.new", lambda: setattr(INNER, "new", 7.0)),
    "an array of a module": ("it changes Inner.mean", lambda: INNER.mean.__imul__(2)),
    "a set of a module": ("it changes Inner.seen", lambda: INNER.seen.add(4)),
}
RNG = np.random.default_rng(0)
INNER = Inner()
INNER.mean, INNER.seen = np.ones(3), {1, 2}


def put_now(name, value):
    globals()[name] = value


def seen_now():
    return (
        ALPHA, LIST[:], list(RATES.items()), RATES["deep"][:], CONFIG.alpha, Options.scale,
        "scale" in vars(Derived), RNG.bit_generator.state["state"], sorted(vars(INNER)),
        INNER.mean.tolist(), INNER.seen.copy(),
    )  # fmt: skip


@pytest.mark.parametrize("name", EFFECTS)
def test_a_change_is_undone(name):
    text, change = EFFECTS[name]

    def f(a, derived=Derived()):  # noqa: B008
        return a * ALPHA * LIST[0] * RATES["a"] * CONFIG.alpha * Options.scale * RNG * INNER

    read, before = Outside(f), seen_now()
    key = read()
    with pytest.raises(CompileError, match=text), read.undone():
        change()
    assert seen_now() == before
    assert read() == key
    with read.undone():
        pass
    with pytest.raises(ZeroDivisionError), read.undone():
        _ = [change(), 1 / 0]
    assert seen_now() == before


def test_a_value_that_comes_back_is_the_one_from_before(monkeypatch):
    read = Outside(Reads(lambda c, a: a * ALPHA))
    before = read()
    monkeypatch.setitem(globals(), "ALPHA", 3.0)
    assert read() != before
    monkeypatch.undo()
    assert read() == before


def test_a_new_helper_is_followed_once_it_is_looked_for_again(monkeypatch):
    cell = Reads(lambda c, a: helper(a))
    monkeypatch.setitem(globals(), "helper", lambda a: a * MODE)
    read = Outside(cell)
    before = read()
    monkeypatch.setitem(globals(), "MODE", "slow")
    assert read() != before


def test_a_variable_that_is_not_there_yet():
    def factory():
        class Early(Plain):
            def step(self, x, h):
                return h * late, h

        read = Outside(Early())
        before = read()
        late = 1.0
        return before, read()

    before, after = factory()
    assert before != after


@pytest.mark.parametrize("name", LAYERS)
def test_a_cell_of_the_library_reads_nothing_outside(name):
    cells = [cell for _, _, cell in LAYERS[name]().cells()]
    assert [Outside(cell)() for cell in cells] == [()] * len(cells)


@pytest.mark.parametrize("n", [64, 65])
def test_a_function_tells_a_long_list_by_identity(n, monkeypatch):
    monkeypatch.setitem(globals(), "LIST", [0.0] * n)
    read, cell = Outside(lambda a: a * LIST[0]), Outside(Reads(lambda c, a: a * LIST[0]))
    before, of_cell = read(), cell()
    LIST[5] = 1.0
    assert (read() == before) is (n > 64)
    assert cell() != of_cell
    monkeypatch.setitem(globals(), "LIST", [0.0] * n)
    assert (read() != before) is (n > 64)


def test_libraries_are_not_followed():
    read = Outside(Reads(lambda c, a: np.tanh(nn.init.xavier((3, 3))) + a.sum() + functools.reduce))
    assert {f.__module__ for f in read.functions} == {__name__}
    assert not {f.__name__ for f in read.functions} & {"xavier", "affine", "tanh"}
    assert len(read()) < 10


def test_what_has_no_content_that_is_known_is_itself(monkeypatch):
    class Thing:
        __slots__ = ()
        __hash__ = None

        def __eq__(self, other):
            raise AssertionError("asked")

    monkeypatch.setitem(globals(), "UNREAD", Thing())
    read = Outside(Reads(lambda c, a: a * UNREAD))
    before = read()
    assert read() == before
    assert {before: 1}[read()] == 1
    monkeypatch.setitem(globals(), "UNREAD", Thing())
    assert read() != before


def test_a_not_a_number_is_no_change(monkeypatch):
    monkeypatch.setitem(globals(), "ALPHA", float("nan"))
    read = Outside(Reads(lambda c, a: a * ALPHA))
    before, changes = read(), read.snapshot()
    assert said(changes) == []
    assert {before: 1}[read()] == 1
