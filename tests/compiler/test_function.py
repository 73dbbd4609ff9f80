"""A compiled function is the function: values and all gradients, or it says why not."""

import copy
import functools
import inspect
import itertools
import threading
import warnings
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_rnn
from tinygrad_rnn import (
    Parameter,
    Tensor,
    debug,
    errors,
    functional,
    grad,
    graph,
    nn,
    no_grad,
    ops,
    record,
)
from tinygrad_rnn.compiler import CompiledFunction, CompileWarning
from tinygrad_rnn.ops import sigmoid, tanh
from tinygrad_rnn.testing import profiles
from tinygrad_rnn.transforms import hvp, value_and_grad

from .drawn_cells import BINARY, UNARY

compile = tinygrad_rnn.compile
EXAMPLES = {"dev": 25, "ci": 50, "thorough": 500}
RATES = [3.0]
SCALE = Parameter(np.array([0.5, -1.0, 2.0]))


def tensor(*shape, seed=0, dtype=np.float64, requires_grad=True):
    a = np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)
    return Tensor(a, requires_grad=requires_grad)


def leaves(y):
    if isinstance(y, dict):
        y = list(y.values())
    return [t for p in y for t in leaves(p)] if isinstance(y, list | tuple) else [y]


def weight(t, k):
    return np.cos(k + np.arange(t.size).reshape(t.shape)).astype(t.dtype)


def numbers(f, args, wrt):
    """Return what f gives, and the gradients of a sum in which every output counts."""
    made = [t for t in leaves(f(*args)) if isinstance(t, Tensor)]
    loss = sum((y * weight(y, k)).sum() for k, y in enumerate(made) if y.dtype.kind == "f")
    return [y.data for y in made], grad(loss, wrt), [y.requires_grad for y in made]


def agree(ours, theirs, tolerance=1e-12):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.abs(a * 1.0 - b).max(initial=0) <= tolerance * max(
            np.abs(b).max(initial=0), 1e-300
        )


def same(f, args, wrt=None, tolerance=1e-12):
    """Compare f with itself compiled, twice; return the compiled one."""
    fast = compile(f)
    wrt = args if wrt is None else wrt
    want = numbers(f, args, wrt)
    for _ in range(2):
        found = numbers(fast, args, wrt)
        agree(found[0], want[0], tolerance)
        agree(found[1], want[1], tolerance)
        assert found[2] == want[2]
    assert "plainly" not in fast.report()
    assert "back end: NumPy" in fast.report()
    return fast


# --- values and gradients


def products(x, w):
    return tanh(x @ w + w[0]).sum(axis=0) / (1 + (w * w).sum())


def relus(x, w):
    return functional.layer_norm(functional.relu(x @ w)) - ops.maximum(w[:2], 0.1)


def indices(x, w):
    return x[[0, 1, 0], [2, 2, 0]] * ops.take(w, np.array([[1], [0]]))[0, 0, 0]


def powers(x, w):
    return (x * x + 1) ** 1.5 / 2 ** (-x), x * -w.T[:, :2].T * -x[0] - (-w[:2])


def reused(x, w):
    """Chains whose buffers are used again while views of them are still read."""
    a = tanh(x @ w)
    row = a[0].reshape(1, 3)
    b = a * 2
    c = b + row
    d = c.T
    e = c * 3 + 1
    return e * d.T + sigmoid(e - c), row


@pytest.mark.parametrize("f", [products, relus, indices, powers, reused])
@pytest.mark.parametrize("rows", [2, 1000])  # from 2048 elements on `where` works on bits
def test_a_compiled_function_is_the_function(f, rows):
    if rows == 1000 and f in (relus, powers):
        f = functools.partial(_wide, f)
    same(f, [tensor(rows, 3), tensor(3, 3, seed=1)])


def _wide(f, x, w):
    return functional.relu(x - 0.1) * (f(x[:2], w)[0] * 1).sum(), ops.where(x < 0, x, x * x)


LINES = st.lists(
    st.tuples(st.sampled_from([*UNARY, *BINARY]), st.integers(0, 9), st.integers(0, 9)),
    min_size=1,
    max_size=12,
)


def check_lines(lines, shape, seed, dtype):
    def f(x, y):
        pool = [x, y * 1.5]
        for name, i, j in lines:
            a, b = pool[i % len(pool)], pool[j % len(pool)]
            pool.append(UNARY[name](a) if name in UNARY else BINARY[name](a, b))
        return pool[-1], pool[len(pool) // 2] + x

    args = [tensor(*shape, seed=seed, dtype=dtype), tensor(*shape, seed=seed + 1, dtype=dtype)]
    limit = 1e-12 if dtype is np.float64 else 64 * np.finfo(dtype).eps
    fast = compile(f)
    want, found = numbers(f, args, args), numbers(fast, args, args)
    for ours, theirs in zip(found[:2], want[:2], strict=True):
        scale = max([np.abs(b).max() for b in theirs] + [1])  # what cancels is compared with that
        for a, b in zip(ours, theirs, strict=True):
            assert np.abs(a - b).max() <= limit * scale
    assert found[2] == want[2]
    assert "plainly" not in fast.report()


def test_a_drawn_function_is_the_same_compiled():
    @settings(max_examples=EXAMPLES.get(profiles.name(), 5), deadline=None)
    @given(
        LINES,
        st.tuples(st.integers(1, 4), st.integers(1, 4)),
        st.integers(0, 99),
        st.sampled_from([np.float64, np.float32]),
    )
    def run(lines, shape, seed, dtype):
        check_lines(lines, shape, seed, dtype)

    run()


@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_each_line_by_itself(name):
    check_lines([("mul", 0, 1), (name, 2, 0), ("add", 3, 1)], (3, 4), 0, np.float64)


def test_where_chooses_by_bits_what_is_not_finite():
    a = np.resize([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.0], (50, 60))
    mask, x = Tensor(np.arange(3000).reshape(50, 60) % 7 < 3), Tensor(a)
    for f in (
        lambda m, x: ops.where(m, x, 0.0),
        lambda m, x: ops.where(m, 0.0, x),
        lambda m, x: ops.where(m, x, -0.0),
        lambda m, x: ops.where(m, x, x[::-1]),
        lambda m, x: ops.where(m[:, :1], x, x[:1]),
    ):
        assert compile(f)(mask, x).data.tobytes() == f(mask, x).data.tobytes()


def test_a_mask_of_integers():
    x, mask = tensor(50, 60), np.arange(3000).reshape(50, 60) % 3
    same(lambda x: ops.where(mask, x * 2, x) + ops.where(mask[:3], x[:3], 0.0).sum(), [x])


def test_an_op_that_the_compiler_does_not_know():
    kept = ops.primitive("()->()", "x^3", name="cube_of_a_test")(lambda x: x * x * x)
    kept.vjp(lambda g, y, x: g * 3 * x * x)
    own = ops.primitive("()->()", "x", name="itself_of_a_test")(lambda x: x)  # its input's memory
    own.vjp(lambda g, y, x: g)
    try:

        def f(x):
            a = x * 2
            b = own(a)
            c = a + 1  # nothing reads `a` itself after this
            return kept(c) * c + b

        same(f, [tensor(3, 4)])
    finally:
        del ops.primitive.__globals__["OPS"]["cube_of_a_test"]
        del ops.primitive.__globals__["OPS"]["itself_of_a_test"]


def test_dead_code_goes_and_common_subexpressions_are_one():
    def f(x, w):
        (x @ w).sum()
        return tanh(x * w) + tanh(x * w)

    fast = same(f, [tensor(2, 2), tensor(2, 2, seed=1)])
    assert [v.op.name for v in fast.plan.pre.values] == ["mul", "tanh", "add"]


def test_buffers_are_used_again():
    def f(x):
        for _ in range(10):
            x = tanh(x + 1)
        return x

    fast = compile(f)
    with no_grad():
        fast(tensor(5, 5))
    (found,) = fast._recordings.values()
    assert found.source.count("np.empty") == 0
    assert found.source.count(", v2)") == 19  # all but the first, which makes it


def test_outputs_are_new_at_each_call():
    fast = compile(lambda x: (tanh(x), Tensor(np.zeros(3)), x.sum(axis=0)))
    first = fast(tensor(4, 3))
    before = [y.data.copy() for y in first]
    second = fast(tensor(4, 3, seed=5))
    second[1].data[...] = 7
    agree([y.data for y in first], before)
    agree([fast(tensor(4, 3))[1].data], [np.zeros(3)])
    assert not any(np.shares_memory(a.data, b.data) for a, b in zip(first, second, strict=True))


def test_float32_stays_float32_within_64_eps():
    args = [tensor(6, 3, dtype=np.float32), tensor(3, 3, seed=1, dtype=np.float32)]
    same(products, args, tolerance=64 * np.finfo(np.float32).eps)


# --- inputs and outputs


def test_parameters_and_tensors_of_closures_and_globals_are_inputs():
    w, offset = Parameter(np.eye(3) * 2), Tensor(np.ones(3))
    x = tensor(4, 3)

    def f(x):
        return tanh((x + offset) @ w) * SCALE

    fast = same(f, [x], [x, w, SCALE])
    w.data -= 0.3  # as an optimiser does
    offset.data = np.full(3, 2.0)
    agree(*[numbers(g, [x], [x, w, SCALE])[0] for g in (fast, f)])
    agree(*[numbers(g, [x], [x, w, SCALE])[1] for g in (fast, f)])
    assert len(fast._recordings) == 1


def test_a_training_step_is_the_same():
    losses = []
    for made in (lambda f: f, compile):
        model = nn.Sequential(nn.Linear(3, 8, rng=0), tanh, nn.Linear(8, 2, rng=1))
        rule = tinygrad_rnn.optim.Adam(model.parameters(), lr=0.1)
        step = made(lambda x, t, model=model: functional.cross_entropy(model(x), t))
        x = tensor(5, 3, dtype=np.float32, requires_grad=False)
        t = Tensor(np.eye(2, dtype=np.float32)[[0, 1, 1, 0, 1]])
        for _ in range(5):
            rule.zero_grad()
            loss = step(x, t)
            loss.backward()
            rule.step()
        losses.append(loss.item())
    assert losses[0] < 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_what_a_name_stands_for_is_seen():
    w, power, layers = Parameter([2.0]), 2, [nn.Linear(1, 1, dtype=np.float64, rng=0)]
    model = nn.Sequential(nn.Linear(1, 1, dtype=np.float64, rng=0), lambda x: x)
    f = compile(lambda x: layers[0](model(x * w)) * power)
    x = tensor(3, 1)

    def plain():
        return (layers[0](model(x * w)) * power).data

    agree([f(x).data], [plain()])
    w = Parameter([3.0])
    agree([f(x).data], [plain()])
    power = 5
    agree([f(x).data], [plain()])
    layers[0].W = Parameter(np.array([[7.0]]))
    agree([f(x).data], [plain()])
    layers[0] = nn.Linear(1, 1, dtype=np.float64, rng=3)
    agree([f(x).data], [plain()])
    assert len(f._recordings) == 5


def test_dropout_that_is_turned_off_is_gone():
    model = nn.Sequential(nn.Linear(3, 3, dtype=np.float64, rng=0), nn.Dropout(0.5, rng=0)).eval()
    fast = compile(lambda x: model(x))
    x = tensor(4, 3)
    agree([fast(x).data], [model(x).data])
    model.train()
    with pytest.warns(CompileWarning, match=r"draws random numbers|numbers that change"):
        fast(x)
    model.eval()
    agree([fast(x).data], [model(x).data])
    assert "plainly" not in fast.report()


def test_a_parameter_that_is_frozen_or_converted_is_recorded_anew():
    w = Parameter(np.array([1.0, 2.0]))
    fast = compile(lambda x: x * w)
    x = tensor(2)
    assert fast(x).requires_grad
    w.requires_grad = False
    fast(x).sum().backward()
    assert w.grad is None
    x.requires_grad = False
    assert not fast(x).requires_grad
    w.data, x.data = w.data.astype(np.float32), x.data.astype(np.float32)
    assert fast(x).dtype == np.float32


def test_an_outside_tensor_of_another_shape_is_recorded_anew():
    w = Parameter(np.ones(2))
    fast = compile(lambda x: tanh(w).mean() * x)
    for n in (2, 5, 3):
        w.data = np.arange(1.0 + n)
        agree([fast(tensor(2)).data], [np.tanh(w.data).mean() * tensor(2).data])


def test_types_and_kinds_tell_signatures_apart():
    fast = compile(lambda x, n: sigmoid(x) * (2 if n is True else 3))
    assert fast(Tensor([0.0]), 1).item() == 1.5
    assert fast(Tensor([0.0]), True).item() == 1
    assert fast(Tensor(np.zeros(1, np.float32)), 1).dtype == np.float32
    assert fast(Tensor([-800.0]), 1).item() == 0  # without a warning


def test_arrays_of_the_same_numbers_are_not_one():
    a, b = np.ones(3), np.ones(3)
    fast = compile(lambda x: x * a + x * b)
    fast(tensor(3))
    b[:] = 5
    agree([fast(tensor(3)).data], [6 * tensor(3).data])


def test_arrays_are_read_where_they_stand():
    table = np.arange(4.0)
    fast = compile(lambda x: x * table + Tensor(table[:1]))
    x = tensor(4)
    table[:] = -table
    fast(x)
    table[:] = [5, 6, 7, 8]
    agree([fast(x).data], [(x * table + 5).data])


def test_arrays_count_as_tensors_and_other_arguments_are_settings():
    def f(x, axis=0, *, how="sum", w=1.0):
        y = x * w
        return y.sum(axis=axis) if how == "sum" else y.max(axis=axis)

    fast = compile(f)
    x = np.arange(6.0).reshape(2, 3)
    agree([fast(x).data], [x.sum(0)])
    agree([fast(x, 1).data], [x.sum(1)])
    agree([fast(x, axis=1, how="max").data], [x.max(1)])
    agree([fast(x, w=2).data], [2 * x.sum(0)])
    agree([fast(x, w=np.float64(3.0)).data], [3 * x.sum(0)])
    agree([fast(x, w=np.float64(4.0)).data], [4 * x.sum(0)])
    assert fast(x, w=True).data.sum() == x.sum()
    assert len(fast._recordings) == 6


class Pair(NamedTuple):
    h: object
    c: object


def test_nests():
    def f(state, words):
        h, c = state
        return {"pair": Pair(h * c, [tanh(c)]), "n": 3, "none": None, "x": words["x"] * 2}

    args = [(tensor(2), tensor(2, seed=1)), {"x": tensor(3)}]
    fast = same(f, args, [*args[0], args[1]["x"]])
    found = fast(*args)
    assert list(found) == ["pair", "n", "none", "x"]
    assert isinstance(found["pair"], Pair)
    assert (found["n"], found["none"]) == (3, None)
    assert isinstance(found["pair"].c, list)


def test_outputs_that_are_inputs_and_outputs_that_are_one():
    w = Parameter([1.0])

    def f(x, y):
        z = x * 2
        return x, w, z, z, y.detach(), x > 0

    args = [tensor(2), tensor(2, seed=1)]
    same(f, args)
    x, p, z, again, detached, positive = compile(f)(*args)
    assert x is args[0]
    assert p is w
    assert z is again
    assert not detached.requires_grad
    assert not positive.requires_grad
    assert positive.dtype == bool


def test_only_inputs_that_are_used_get_gradients():
    fast = compile(lambda x, y, z: (x * 2, z.detach() * y.detach()))
    x, y, z = tensor(2), tensor(2), tensor(2)
    a, b = fast(x, y, z)
    assert not b.requires_grad
    a.sum().backward()
    agree([x.grad], [np.full(2, 2.0)])
    assert y.grad is None
    assert z.grad is None


def test_an_argument_that_is_given_twice_or_read_from_outside_as_well():
    w = Parameter([2.0, 3.0])
    same(lambda x, y: x * x * y * w, [w, w], [w])


def test_gradients_add_up_and_outputs_without_a_cotangent_count_as_nothing():
    fast = compile(lambda x: (x * 2, x * x))
    x = tensor(3)
    for _ in range(2):
        y, z = fast(x)
        z.sum().backward()
    agree([x.grad], [4 * x.data])
    y.sum().backward()
    y.sum().backward()
    agree([x.grad], [4 * x.data + 4])


def test_integers_and_indices_are_inputs():
    w = Parameter(np.arange(12.0).reshape(4, 3))
    x = tensor(3)
    fast = compile(lambda i, x: w[i] * x + i.sum())
    for ids in ([0, 2], [3, 3], [1, 1]):
        ids = np.array(ids)
        agree([fast(ids, x).data], [(w[ids] * x + ids.sum()).data])
        agree(grad(fast(ids, x).sum(), [w, x]), grad((w[ids] * x).sum(), [w, x]))
    with pytest.raises(IndexError, match=r"getitem: .* do not fit"):
        fast(np.array([0, 9]), x)
    assert len(fast._recordings) == 1


def lookup(i, table):
    return functional.embedding(i, table) * 2


def loss_of(i, logits):
    return functional.cross_entropy(logits * 1, i)


def shifted(i, table):
    return functional.embedding(i - 1, table) + table[i]  # which may be negative


@pytest.mark.parametrize(
    ("f", "wrong"), [(lookup, (-1, 4, -9)), (loss_of, (-5, 5)), (shifted, (0, -1, 6))]
)
@pytest.mark.parametrize("made", [Tensor, np.asarray])
@pytest.mark.parametrize("dtype", [np.int64, np.int8])
def test_ids_are_checked_at_each_call(f, wrong, made, dtype):
    fast, table = compile(f), tensor(4, 5)

    def ids(*numbers):
        return made(np.array(numbers, dtype))

    agree([fast(ids(1, 3, 2, 1), table).data], [f(ids(1, 3, 2, 1), table).data])
    for k in wrong:
        with pytest.raises(IndexError, match=r"id -?\d+ at \[2\] is not in 0\.\.") as eager:
            f(ids(1, 1, k, 1), table)
        with pytest.raises(IndexError) as compiled:
            fast(ids(1, 1, k, 1), table)
        assert str(compiled.value) == str(eager.value)
    agree([fast(ids(2, 2, 1, 3), table).data], [f(ids(2, 2, 1, 3), table).data])
    assert len(fast._recordings) == 1
    assert "plainly" not in fast.report()


def test_ids_from_outside_are_checked_at_each_call():
    ids, table = Tensor(np.array([0, 1])), tensor(4, 5)
    fast = compile(lambda table: functional.embedding(ids, table))
    fast(table)
    ids.data[1] = -1
    with pytest.raises(IndexError, match=r"embedding: id -1 at \[1\] is not in 0\.\.3"):
        fast(table)
    ids.data[1] = 3
    agree([fast(table).data], [table.data[[0, 3]]])


def test_an_index_that_may_be_negative_may_be():
    fast, x = compile(lambda i, x: x[i] * 2), tensor(4)
    for ids in ([0, 1], [-1, -4], [3, -2]):
        agree([fast(np.array(ids), x).data], [x.data[ids] * 2])
    assert len(fast._recordings) == 1


def test_several_shapes():
    fast = compile(products)
    for rows in (2, 5, 2, 1, 5):
        args = [tensor(rows, 3, seed=rows), tensor(3, 3)]
        agree(numbers(fast, args, args)[1], numbers(products, args, args)[1])
    assert len(fast._recordings) == 3


def test_too_many_signatures_are_forgotten_with_a_warning():
    fast = compile(lambda x, n: x * n)
    x = tensor(2)
    for n in range(32):
        fast(x, n)
    with pytest.warns(CompileWarning, match="more than 32 signatures"):
        fast(x, 32)
    fast(x, 33)
    assert len(fast._recordings) == 32
    agree([fast(x, 0).data], [x.data * 0])


# --- modes


def test_no_grad_records_nothing_and_keeps_nothing():
    fast = compile(lambda x: tanh(x * SCALE))
    x = tensor(2, 3)
    with no_grad():
        y = fast(x)
    assert (y.op, y.requires_grad) == (None, False)
    assert fast.plan.kept == []
    assert fast.plan.sink.values == []
    agree([y.data], [np.tanh(x.data * SCALE.data)])
    assert fast(x).requires_grad


def test_gradients_of_gradients():
    w = Parameter(np.random.default_rng(0).uniform(-1, 1, (3, 3)))

    def f(x, y):
        a = tanh(x @ w) * y
        return a, (a * a).sum(), x

    found = []
    for g in (f, compile(f)):
        x, y = tensor(2, 3), tensor(3, seed=1)
        p, q, r = g(g(x, y)[0], y)  # what w gets by the first call is counted once
        first = grad(q + (p * r).sum(), [x, y, w], create_graph=True)
        found.append([t.data for t in first] + grad(sum((t * t).sum() for t in first), [x, y, w]))
    agree(*found)


def test_transforms_of_a_compiled_function_and_compiled_transforms():
    def f(x):
        return (tanh(x) * x * SCALE).sum()

    x, t = tensor(3).data, tensor(3, seed=1).data
    agree(hvp(compile(f), (x,), (t,)), hvp(f, (x,), (t,)))
    slope = compile(lambda x: grad(f(x), x, create_graph=True))
    agree([slope(Tensor(x, requires_grad=True)).data], [value_and_grad(f)(x)[1]])
    assert "plainly" not in slope.report()


def test_complex_numbers_run_plainly_without_a_warning():
    fast = compile(products)
    x, w = tensor(2, 3), tensor(3, 3, seed=1)
    step = x.data.astype(complex)
    step[0, 0] += 1e-30j
    got = fast(Tensor(step), Tensor(w.data.astype(complex))).data.imag / 1e-30
    want = sum(grad(products(x, w)[k], x)[0, 0] for k in range(3))
    assert got.sum() == pytest.approx(want, rel=1e-12)
    z = Parameter(np.array([1.0 + 1j]))
    agree([compile(lambda x: x * z)(Tensor([1.0 + 0j])).data], [z.data])
    y = compile(lambda x: x * z)(Tensor(np.ones(1)))
    agree([y.data], [z.data])
    assert y.requires_grad


def test_record_and_debug_see_all_nodes():
    fast = compile(lambda x: ops.log(x) * 2)
    with record():
        assert len(graph.nodes([fast(Tensor([1.0, 2.0]))])) == 4
    with debug(), pytest.raises(errors.NonFiniteError, match="log gave"):
        fast(Tensor([0.0]))


def test_a_recurrent_layer_inside_a_function():
    layer = nn.GRU(2, 3, dtype=np.float64, rng=0)

    def f(x):
        out, h = layer(x)
        return (out * out).sum(), h

    x = tensor(4, 2, 2)
    same(f, [x], [x, *layer.parameters()], 1e-11)


def test_two_threads_call_one_function():
    w = Parameter(np.random.default_rng(0).uniform(-1, 1, (30, 30)))

    def f(x):
        for _ in range(5):
            x = tanh(x @ w) + sigmoid(x)
        return x

    fast = compile(f)
    inputs = [tensor(30, 30, seed=k) for k in range(4)]
    want = [numbers(f, [x], [x])[:2] for x in inputs]
    wrong = []

    def work(x, wanted):
        try:
            for _ in range(100):
                ours = numbers(fast, [x], [x])
                agree(ours[0], wanted[0])
                agree(ours[1], wanted[1])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=each) for each in zip(inputs, want, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert type(w) is Parameter


# --- what cannot be recorded


def reason(f, args, match):
    """Check that f runs plainly, is right, and says why with the line."""
    fast = compile(f)
    with pytest.warns(CompileWarning, match=match) as caught:
        got = fast(*args)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(*args)  # told once
    assert "runs plainly" in fast.report()
    return got


def test_a_branch_on_a_value_warns_and_is_right():
    def f(x):
        if x.sum() > 0:
            return x * 2
        return x * 3

    line = inspect.getsourcelines(f)[1] + 1
    fast = compile(f)
    with pytest.warns(CompileWarning, match=rf"bool\(\)\) at .*test_function.py:{line}"):
        agree([fast(Tensor([1.0])).data], [np.array([2.0])])
    agree([fast(Tensor([-1.0])).data], [np.array([-3.0])])
    assert f"test_function.py:{line}" in fast.report()


@pytest.mark.parametrize(
    ("f", "match"),
    [
        (lambda x: x * x.item(), r"\.item\(\)\) at .*test_function"),
        (lambda x: x * float(x), r"\.item\(\)\) at .*test_function"),
        (lambda x: x * x.data, r"\.data\) at .*test_function"),
        (lambda x: x * np.asarray(x), r"numpy\) at .*test_function"),
        (lambda x: x * SCALE.data[0], r"\.data\) at .*test_function"),
        (lambda x: x * SCALE if SCALE[0] > 0 else x, r"bool\(\)\) at .*test_function"),
        (lambda x: x * Tensor(x), r"another's array at .*test_function"),
        (lambda x: x * Tensor(SCALE), r"another's array at .*test_function"),
        (lambda x: x * np.random.default_rng().random(), r"numbers that change.* at .*test_func"),
        (lambda x: x * grad((x * x).sum(), x), r"\.data\) at .*test_function"),
        (lambda x: x * (_behind(x) * 2), r"numbers that change.* at .*test_function"),
        (lambda x: (x * 2, np.ones(3)), "an array that is no Tensor"),
        (lambda x: (x * 2, {1}), "a set, which is no Tensor"),
        (lambda x: 3, "it returns no Tensor"),
        (lambda x: x * Tensor([1.0], requires_grad=True), "a leaf .* requires a gradient"),
        (lambda x: _step(x * 2), r"backward\(\)\) at .*test_function"),
        (lambda x: _unrecorded(x), r"no_grad\(\) at .*test_function"),
    ],
)
def test_what_cannot_be_recorded_runs_plainly(f, match):
    x = Tensor([2.0], requires_grad=True)
    got = leaves(reason(f, [x], match))[0]
    if isinstance(got, Tensor) and "random" not in match and "change" not in match:
        agree([got.data], [leaves(f(x))[0].data])


def _behind(x):
    return Tensor.__dict__["data"].__get__(x)


def _step(y):
    y.sum().backward()
    return y * 1


def _unrecorded(x):
    with no_grad():
        scale = SCALE * 2
    return x * scale


def test_a_recorded_tensor_from_outside_is_to_be_an_argument():
    h = SCALE * 2
    reason(lambda x: x * h, [tensor(3)], "result of mul .* as an argument")


def test_an_error_of_numbers_that_only_a_recording_has_names_its_line():
    def g(x):
        y = x * 2
        return y if type(x) is Tensor else y + np.ones(7)

    line = inspect.getsourcelines(g)[1] + 2
    agree([reason(g, [tensor(2)], rf"while it was recorded at .*:{line}: .*do not").data],
          [tensor(2).data * 2])  # fmt: skip


def test_a_function_that_sets_the_numbers_of_a_tensor():
    w = Parameter([1.0])

    def f(x):
        w.data = w.data.copy() if type(w) is Parameter else np.zeros(1)
        return x * w

    line = inspect.getsourcelines(f)[1] + 1
    reason(f, [tensor(1)], rf"sets the numbers of a Tensor at .*test_function.py:{line}")
    assert w.data == [1.0]


def test_an_argument_that_has_no_key():
    reason(lambda x, s: x * len(s), [tensor(2), {1, 2}], "type set is no Tensor")


class Stateful(tinygrad_rnn.Module):
    def __init__(self):
        self.w = Parameter([2.0])
        self.h = None
        self.calls = []
        self.rng = np.random.default_rng(0)

    def remember(self, x):
        self.h = x * self.w if self.h is None else self.h * 0.5 + x * self.w
        return self.h

    def count(self, x):
        self.calls.append(1)
        return x * len(self.calls)

    def noisy(self, x):
        return x * self.rng.random()

    def twice(self, x):
        return x * self.w * 2


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("remember", "sets Stateful.h"),
        ("count", "changes Stateful.calls"),
        ("noisy", "draws random numbers from Stateful.rng"),
    ],
)
def test_side_effects_on_a_module_are_undone_and_it_runs_plainly(name, match):
    model, plain = Stateful(), Stateful()
    f, g = compile(getattr(model, name)), getattr(plain, name)
    x = Tensor([1.0], requires_grad=True)
    with pytest.warns(CompileWarning, match=match):
        got = [f(x)]
    got += [f(x), f(x)]
    agree([y.data for y in got], [g(x).data for _ in range(3)])


def test_a_counter_of_a_closure_is_put_back():
    n = 0

    def f(x):
        nonlocal n
        n += 1
        return x * n

    reason(f, [tensor(2)], "sets n")
    assert n == 2


def test_an_effect_behind_a_helper_is_seen_undone_and_has_its_line():
    calls, counts = [], {"n": 0}

    def helper(x):
        calls.append(1)
        counts["n"] += 1
        return x * 2

    line = inspect.getsourcelines(helper)[1] + 1
    reason(lambda x: helper(x), [tensor(2)], rf"it changes calls at .*test_function.py:{line}")
    assert (len(calls), counts) == (2, {"n": 2})


def test_what_a_helper_names_is_seen(monkeypatch):
    rate, inner = 2.0, {"f": lambda x: x * RATES[0]}
    other = Parameter(np.ones(2))

    def helper(x):
        return inner["f"](x) * rate

    fast = compile(lambda x: helper(x))
    x = tensor(2)
    agree([fast(x).data], [x.data * 6])
    rate = 3.0
    agree([fast(x).data], [x.data * 9])
    monkeypatch.setitem(globals(), "RATES", [4.0])
    agree([fast(x).data], [x.data * 12])
    inner["f"] = lambda x: x * other
    same(lambda x: helper(x), [x], [x, other])
    agree([fast(x).data], [x.data * 3])
    other = Parameter(np.full(2, 5.0))  # of a function that was not there at first
    agree([fast(x).data], [x.data * 15])


def test_what_an_object_and_a_class_of_it_hold_is_seen():
    rates = [3.0]

    class Scaled:
        rate = 2.0

        def __init__(self):
            self.shift = 1.0

        def __call__(self, x, *, by=rates):
            return self.inner(x) * by[0]

        def inner(self, x):
            return x * self.rate + self.shift

    f, x = Scaled(), Tensor([1.0])
    fast = compile(f)
    assert fast(x).item() == 9
    f.shift = 2.0
    assert fast(x).item() == 12
    Scaled.rate = 3.0
    assert fast(x).item() == 15
    rates[0] = 1.0
    assert fast(x).item() == 5


def test_a_bound_method_sees_its_module():
    model = Stateful()
    fast = compile(model.twice)
    x = Tensor([1.0])
    assert fast(x).item() == 4
    model.w = Parameter([5.0])
    assert fast(x).item() == 10


def test_an_error_of_the_function_is_its_own():
    fast = compile(lambda x, w: x @ w)
    with pytest.raises(errors.ShapeError, match=r"matmul.*\(2, 3\).*\(2, 3\)"):
        fast(tensor(2, 3), tensor(2, 3))
    assert fast._recordings == {}
    fast(tensor(2, 3), tensor(3, 2))
    assert "plainly" not in fast.report()


class Aside:
    __slots__ = ("y",)  # which are not followed


def test_a_tensor_that_is_set_for_the_next_call():
    aside = Aside()
    aside.y = Tensor(np.ones(2))

    def f(x):
        y, aside.y = aside.y, Tensor(np.ones(2))
        return x * y

    reason(f, [tensor(2)], "it sets a Tensor that it reads the next time")


def test_a_returned_number_that_changes():
    numbers = itertools.count()
    reason(lambda x: (x * 2, next(numbers)), [tensor(2)], "another path for other numbers")


def test_a_tensor_that_was_kept_aside_says_so():
    aside = Aside()

    def f(x):
        aside.y = x * 2
        return x * 3

    compile(lambda x: f(x))(tensor(2))  # the effect is on an object of slots: it is not seen
    with pytest.raises(tinygrad_rnn.compiler.CompileError, match="while a function was recorded"):
        _ = aside.y * 1


# --- the object


def test_why_it_runs_plainly_keeps_no_arrays():
    x = tensor(2)
    fast = compile(lambda x: x * x.sum().item())
    with pytest.warns(CompileWarning):
        fast(x)
    (why,) = fast._recordings.values()
    assert why.__traceback__ is None
    assert why.__context__ is None


def test_it_looks_like_the_function():
    fast = compile(products)
    assert isinstance(fast, CompiledFunction)
    assert fast.__name__ == "products"
    assert inspect.signature(fast) == inspect.signature(products)
    assert repr(fast).startswith("compile(<function products")
    assert fast.report() == "not called yet"
    assert fast.plan is None
    assert compile(fast) is fast


def test_the_report_tells_the_plan():
    fast = compile(lambda x: tanh(x) * 2)
    fast(tensor(2))
    text = fast.report()
    assert "forward: 2" in text
    assert "tanh" in text
    assert "kept for the gradients: v1" in text


def test_a_decorated_method():
    class Model(tinygrad_rnn.Module):
        def __init__(self, w):
            self.w = Parameter([w])

        @compile
        def forward(self, x):
            """Scale."""
            return x * self.w

    a, b = Model(2.0), Model(3.0)
    x = Tensor([1.0])
    assert [a(x).item(), b(x).item(), a(x).item()] == [2, 3, 2]
    assert Model.forward.__doc__ == "Scale."
    twin = copy.deepcopy(a)
    twin.w.data[:] = 9
    assert [twin(x).item(), a(x).item()] == [9, 2]


def test_deepcopy():
    model = Stateful()
    object.__setattr__(model, "fast", compile(model.twice))
    x = Tensor([1.0])
    assert model.fast(x).item() == 4
    twin = copy.deepcopy(model)
    twin.w.data[:] = 10
    assert twin.fast(x).item() == 20
    assert model.fast(x).item() == 4
    again = copy.deepcopy(compile(products))
    assert again.report() == "not called yet"


def test_partials_and_objects_that_can_be_called():
    class Scaled:
        def __init__(self):
            self.w = Parameter([2.0])

        def __call__(self, x):
            return x * self.w

    x = Tensor([3.0])
    assert compile(Scaled())(x).item() == 6
    assert compile(functools.partial(lambda a, x: x * a, Parameter([5.0])))(x).item() == 15


def test_settings_of_layers_are_refused():
    with pytest.raises(ValueError, match=r'backend="numba" is for layers; a function runs on'):
        compile(products, backend="numba")
    with pytest.raises(ValueError, match=r"threads=2 is for layers"):
        compile(products, threads=2)
    with pytest.raises(ValueError, match="is none of"):
        compile(products, backend="torch")
    compile(products, backend="numpy")
    for wrong in (3, None, nn.LSTM, len):
        with pytest.raises(TypeError, match="expected a layer or a model, or a function"):
            compile(wrong)


def test_a_dropped_result_frees_what_was_kept():
    import gc
    import weakref

    fast = compile(lambda x: tanh(x) * tanh(x))
    gc.disable()
    try:
        y = fast(tensor(3))
        kept = weakref.ref(y.inputs[0])
        assert kept() is not None
        del y
        assert kept() is None
    finally:
        gc.enable()
