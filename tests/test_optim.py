"""Optimizers against their equations, against PyTorch, and against being stopped and misused."""

import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn import optim
from tinygrad_rnn.errors import DtypeError, ShapeError, StateError
from tinygrad_rnn.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop, base
from tinygrad_rnn.tensor import Parameter

# --- the equations, written out in float64 ---------------------------------------------------

Rule = Iterator[np.ndarray]


def sgd(p, grads, lr, momentum=0.0, nesterov=False, weight_decay=0.0) -> Rule:
    u = np.zeros_like(p)
    for g in grads:
        g = g + weight_decay * p
        u = momentum * u + g
        p = p - lr * (g + momentum * u if nesterov else u)
        yield p


def adagrad(p, grads, lr=1e-2, eps=1e-10, weight_decay=0.0) -> Rule:
    s = np.zeros_like(p)
    for g in grads:
        g = g + weight_decay * p
        s = s + g**2
        p = p - lr * g / (np.sqrt(s) + eps)
        yield p


def rmsprop(p, grads, lr=1e-2, alpha=0.99, eps=1e-8, momentum=0.0, weight_decay=0.0) -> Rule:
    v = u = np.zeros_like(p)
    for g in grads:
        g = g + weight_decay * p
        v = alpha * v + (1 - alpha) * g**2
        u = momentum * u + g / (np.sqrt(v) + eps)
        p = p - lr * u
        yield p


def adam(p, grads, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, shrink=0.0) -> Rule:
    m = v = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        p = p - lr * shrink * p
        g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        yield p


def adamw(p, grads, weight_decay=1e-2, **settings) -> Rule:
    return adam(p, grads, shrink=weight_decay, **settings)


CASES: list[tuple[type[Optimizer], Callable[..., Rule], dict[str, Any]]] = [
    (SGD, sgd, {"lr": 0.1}),
    (SGD, sgd, {"lr": 0.1, "weight_decay": 0.3}),
    (SGD, sgd, {"lr": 0.1, "momentum": 0.9}),
    (SGD, sgd, {"lr": 0.1, "momentum": 0.7, "nesterov": True, "weight_decay": 0.1}),
    (Adagrad, adagrad, {}),
    (Adagrad, adagrad, {"lr": 0.3, "eps": 0.1, "weight_decay": 0.2}),
    (RMSprop, rmsprop, {}),
    (RMSprop, rmsprop, {"lr": 0.05, "alpha": 0.8, "eps": 0.2}),
    (RMSprop, rmsprop, {"momentum": 0.6, "weight_decay": 0.2}),
    (Adam, adam, {}),
    (Adam, adam, {"lr": 0.1, "betas": (0.5, 0.8), "eps": 0.1, "weight_decay": 0.2}),
    (AdamW, adamw, {}),
    (AdamW, adamw, {"lr": 0.1, "betas": (0.5, 0.8), "eps": 0.1, "weight_decay": 0.4}),
]
IDS = [f"{kind.__name__}-{'-'.join(settings) or 'default'}" for kind, _, settings in CASES]
every_case = pytest.mark.parametrize(("kind", "rule", "settings"), CASES, ids=IDS)
every_kind = pytest.mark.parametrize(("kind", "settings"), [(k, s) for k, _, s in CASES], ids=IDS)


def start(shape=(3, 5), steps=40, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=shape))  # elements of different size
    grads = [(scale * rng.normal(0.3, 1.0, shape)).astype(dtype) for _ in range(steps)]
    return rng.normal(size=shape).astype(dtype), grads


def run(optimizer, p, grads):
    for g in grads:
        p.grad = g.copy()
        optimizer.step()
        yield p.data


@every_case
def test_every_step_is_the_equation(kind, rule, settings):
    p0, grads = start()
    p = Parameter(p0)
    values = run(kind([p], **settings), p, grads)
    for got, expected in zip(values, rule(p0, grads, **settings), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-13)


@every_case
def test_float32_stays_float32_and_close_to_the_equation(kind, rule, settings):
    p0, grads = start(dtype=np.float32)
    p = Parameter(p0)
    optimizer = kind([p], **settings)
    *_, got = run(optimizer, p, grads)
    *_, expected = rule(p0.astype(np.float64), [g.astype(np.float64) for g in grads], **settings)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)
    for key, array in optimizer.state_dict().items():
        assert array.shape == () or array.dtype == np.float32, key


@pytest.mark.torch
@every_kind
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-11), (np.float32, 1e-5)])
def test_equals_pytorch_over_many_steps(kind, settings, dtype, tolerance):
    torch = pytest.importorskip("torch")
    p0, grads = start(steps=300, dtype=dtype)
    p, q = Parameter(p0), torch.nn.Parameter(torch.tensor(p0))
    ours, theirs = kind([p], **settings), getattr(torch.optim, kind.__name__)([q], **settings)
    for g in grads:
        p.grad, q.grad = g.copy(), torch.tensor(g)
        ours.step()
        theirs.step()
        np.testing.assert_allclose(
            p.data, q.detach().numpy(), rtol=tolerance, atol=tolerance * np.abs(p0).max()
        )


@pytest.mark.torch
@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RMSprop", "Adam", "AdamW"])
def test_defaults_are_those_of_pytorch(name):
    torch = pytest.importorskip("torch")
    lr = {"lr": 0.1} if name == "SGD" else {}
    ours = getattr(optim, name)([Parameter(np.ones(2))], **lr).groups[0]
    theirs = getattr(torch.optim, name)([torch.nn.Parameter(torch.ones(2))], **lr).defaults
    settings = {key: value for key, value in ours.items() if key != "params"}
    assert settings == {key: theirs[key] for key in settings}


# --- arrays ----------------------------------------------------------------------------------


@every_kind
def test_the_size_of_a_piece_changes_no_bit(kind, settings, monkeypatch):
    results = []
    for chunk in (4, 15, 1000):
        monkeypatch.setattr(base, "_CHUNK", chunk)
        p0, grads = start(steps=5)
        p = Parameter(p0)
        *_, last = run(kind([p], **settings), p, grads)
        results.append(last.tobytes())
    assert results[0] == results[1] == results[2]


@every_kind
@pytest.mark.parametrize("layout", ["transposed", "strided"])
def test_any_layout_is_updated_in_place(kind, settings, layout):
    p0, grads = start(steps=5)
    p = Parameter(p0)
    *_, expected = run(kind([p], **settings), p, grads)
    array = p0.T.copy().T if layout == "transposed" else np.repeat(p0, 2, axis=1)[:, ::2]
    assert not array.flags.c_contiguous
    q = Parameter(p0)
    q.data = array
    for _ in run(kind([q], **settings), q, [np.asfortranarray(g) for g in grads]):
        assert q.data is array
    np.testing.assert_array_equal(array, expected)


@every_kind
def test_gradients_are_only_read(kind, settings):
    p0, grads = start(steps=1)
    p = Parameter(p0)
    optimizer = kind([p], **settings)
    for _ in range(2):
        p.grad = np.broadcast_to(grads[0][0, 0], p0.shape)  # read-only, no two elements apart
        optimizer.step()
        assert (p.grad == grads[0][0, 0]).all()


@pytest.mark.parametrize("shape", [(), (0, 3), (1,)])
def test_scalars_and_empty_parameters(shape):
    p = Parameter(np.ones(shape))
    p.grad = np.full(shape, 2.0)
    SGD([p], lr=0.25, momentum=0.9).step()
    np.testing.assert_array_equal(p.data, np.full(shape, 0.5))


def test_a_read_only_parameter_is_an_error_before_anything_changes():
    p, q = Parameter(np.ones(2)), Parameter(np.ones(3), name="frozen.W")
    p.grad, q.grad = np.ones(2), np.ones(3)
    q.data.flags.writeable = False
    optimizer = Adam([p, q])
    with pytest.raises(ValueError, match=r"'frozen\.W' float64 \(3,\): its array is read-only"):
        optimizer.step()
    assert optimizer.steps == 0
    assert (p.data == 1).all()
    assert optimizer.state_dict()["0.count"] == 0


def test_a_converted_parameter_is_an_error():
    p = Parameter(np.ones(2))
    optimizer = Adam([p])
    *_, _ = run(optimizer, p, [np.ones(2)])
    p.grad, p.data = None, p.data.astype(np.float32)
    p.grad = np.ones(2, np.float32)
    with pytest.raises(DtypeError, match="state of the optimizer is float64; convert a model"):
        optimizer.step()
    p.grad, p.data = None, np.ones(3)
    p.grad = np.ones(3)
    with pytest.raises(ShapeError, match=r"state of the optimizer has shape \(2,\)"):
        optimizer.step()


# --- skipping --------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("how", ["no gradient", "frozen"])
def test_what_is_skipped_keeps_value_state_and_count(kind, settings, how):
    p0, grads = start(steps=8)
    free, held, other = Parameter(p0), Parameter(p0), Parameter(p0)
    *_, expected = run(kind([free], **settings), free, grads)
    optimizer = kind([held, other], **settings)
    for k, g in enumerate(grads):
        held.grad = g
        if k in (0, 3, 4):  # steps that pass `held` by
            before = held.data.copy()
            held.grad = None if how == "no gradient" else g
            held.requires_grad = how == "no gradient"
            other.grad = g
            optimizer.step()
            np.testing.assert_array_equal(held.data, before)
            held.requires_grad, held.grad = True, g
        optimizer.step()
    np.testing.assert_array_equal(held.data, expected)
    assert optimizer.steps == 11


def test_zero_grad_forgets_the_gradients_of_all_groups():
    p, q = Parameter(np.ones(2)), Parameter(np.ones(2))
    p.grad, q.grad = np.ones(2), np.ones(2)
    SGD([{"params": [p]}, {"params": [q]}], lr=0.1).zero_grad()
    assert p.grad is None
    assert q.grad is None


# --- groups and schedules --------------------------------------------------------------------


def test_groups_have_settings_of_their_own_that_may_change():
    p, q = Parameter(np.ones(1)), Parameter(np.ones(1))
    optimizer = SGD([{"params": (x for x in [p])}, {"params": [q], "lr": 0.5}], lr=0.25)
    assert optimizer.lrs == (0.25, 0.5)
    p.grad, q.grad = np.ones(1), np.ones(1)
    optimizer.step()
    assert (p.data[0], q.data[0]) == (0.75, 0.5)
    optimizer.groups[1]["lr"] = 0.125
    optimizer.groups[0]["momentum"] = 0.5
    optimizer.step()
    optimizer.step()
    assert (p.data[0], q.data[0]) == (0.75 - 0.25 - 0.375, 0.25)
    optimizer.groups[0]["learning_rate"] = 1.0
    with pytest.raises(ValueError, match="group 0: unknown setting 'learning_rate'; SGD takes lr"):
        optimizer.step()
    assert optimizer.steps == 3


def test_a_schedule_gives_the_rate_of_each_step():
    p, q = Parameter(np.zeros(1)), Parameter(np.zeros(1))
    groups = [{"params": [p]}, {"params": [q], "lr": optim.step_decay(8.0, 1, 0.5)}]
    optimizer = SGD(groups, lr=lambda k: 10.0**k)
    seen = []
    for _ in range(3):
        p.grad, q.grad = -np.ones(1), -np.ones(1)
        seen.append((optimizer.lr, *optimizer.lrs))
        optimizer.step()
    assert seen == [(1.0, 1.0, 8.0), (10.0, 10.0, 4.0), (100.0, 100.0, 2.0)]
    assert (p.data[0], q.data[0]) == (111.0, 14.0)


def test_a_schedule_that_gives_no_rate_changes_nothing():
    p = Parameter(np.ones(1))
    p.grad = np.ones(1)
    optimizer = SGD([p], lr=lambda k: -1.0)
    with pytest.raises(ValueError, match=r"lr: expected a number in \[0, inf\), got -1.0"):
        optimizer.step()
    assert (optimizer.steps, p.data[0]) == (0, 1.0)


def test_schedules_are_their_equations():
    decay = optim.step_decay(2.0, every=3, factor=0.1)
    assert [decay(k) for k in (0, 2, 3, 5, 6)] == pytest.approx([2, 2, 0.2, 0.2, 0.02])
    wave = optim.cosine(3.0, steps=10, final=1.0)
    expected = [2 + math.cos(math.pi * k / 10) for k in range(11)] + [1.0, 1.0]
    assert [wave(k) for k in range(13)] == pytest.approx(expected)
    rising = optim.warmup(decay, steps=4)
    assert [rising(k) for k in range(6)] == pytest.approx([0.5, 1.0, 1.5, 0.2, 0.2, 0.2])
    assert [optim.constant(0.3)(k) for k in (0, 99)] == [0.3, 0.3]


@pytest.mark.parametrize(
    "make",
    [
        lambda: optim.step_decay(0.1, every=0, factor=0.5),
        lambda: optim.cosine(0.1, steps=2.5),
        lambda: optim.warmup(0.1, steps=-1),
    ],
)
def test_schedules_refuse_lengths_below_one(make):
    with pytest.raises(ValueError, match="at least 1"):
        make()


@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, "0.1", None])
@pytest.mark.parametrize(
    "make",
    [
        optim.constant,
        lambda x: optim.step_decay(x, every=2, factor=0.5),
        lambda x: optim.step_decay(0.1, every=2, factor=x),
        lambda x: optim.cosine(x, steps=2),
        lambda x: optim.cosine(0.1, steps=2, final=x),
        lambda x: optim.warmup(x, 4),
    ],
)
def test_schedules_refuse_what_is_no_rate(make, bad):
    with pytest.raises((ValueError, TypeError), match="expected a number"):
        make(bad)


# --- misuse ----------------------------------------------------------------------------------

W = Parameter(np.ones((2, 3)), name="W")


@pytest.mark.parametrize(
    ("params", "settings", "error", "message"),
    [
        ([], {}, ValueError, "no parameters"),
        ([{"params": []}], {}, ValueError, "no parameters"),
        ([{"lr": 0.1}], {}, ValueError, "group 0 has no 'params'"),
        ([W, W], {}, ValueError, r"'W' float64 \(2, 3\) is given twice"),
        ([{"params": [W]}, {"params": [W]}], {}, ValueError, "given twice"),
        ([W, np.ones(2)], {}, TypeError, "item 1 is a ndarray"),
        ([("W", W)], {}, TypeError, "item 0 is a tuple"),
        ([{"params": [W]}, W], {}, TypeError, "item 0 is a dict"),
        (W, {}, TypeError, "expected an iterable of Parameters, got Parameter"),
        ({"W": W}, {}, TypeError, "got dict"),
        ([{"params": W}], {}, TypeError, "got Parameter"),
        ([Parameter(np.ones(2, complex))], {}, DtypeError, "complex128 .* is not real"),
        ([{"params": [W], "rate": 1}], {}, ValueError, "group 0: unknown setting 'rate'"),
        ([W], {"lr": -0.1}, ValueError, r"group 0: lr: expected a number in \[0, inf\), got -0.1"),
        ([W], {"lr": math.nan}, ValueError, "lr"),
        ([W], {"lr": "0.1"}, TypeError, "lr: expected a number, got '0.1'"),
        ([W], {"lr": None}, TypeError, "lr"),
        ([W], {"momentum": -1.0}, ValueError, "momentum"),
        ([W], {"weight_decay": -1.0}, ValueError, "weight_decay"),
        ([W], {"nesterov": True}, ValueError, "nesterov needs a momentum"),
        ([W], {"nesterov": 1.0, "momentum": 0.9}, TypeError, "nesterov: expected True or False"),
    ],
)
def test_what_cannot_be_optimized_is_an_error(params, settings, error, message):
    with pytest.raises(error, match=message):
        SGD(params, **{"lr": 0.1, **settings})


@pytest.mark.parametrize(
    ("kind", "settings", "error"),
    [
        (Adam, {"betas": (0.9, 1.0)}, ValueError),
        (Adam, {"betas": (-0.1, 0.9)}, ValueError),
        (Adam, {"betas": 0.9}, TypeError),
        (Adam, {"eps": -1e-8}, ValueError),
        (AdamW, {"betas": (0.9,)}, TypeError),
        (RMSprop, {"alpha": 1.0}, ValueError),
        (Adagrad, {"eps": True}, TypeError),
    ],
)
def test_settings_out_of_range_are_errors(kind, settings, error):
    with pytest.raises(error, match=next(iter(settings))):
        kind([W], **settings)


def test_parameters_of_a_group_are_fixed():
    optimizer = SGD([Parameter(np.ones(2))], lr=0.1)
    optimizer.groups.append({**optimizer.groups[0], "params": (Parameter(np.ones(2)),)})
    with pytest.raises(ValueError, match="make a new one"):
        optimizer.step()


@pytest.mark.parametrize(
    ("grad", "error", "message"),
    [
        (np.ones(3), ShapeError, r"the gradient has shape \(3,\)"),
        (np.ones(2, np.float32), DtypeError, "the gradient is float32"),
    ],
)
def test_a_gradient_that_does_not_fit_is_an_error(grad, error, message):
    p = Parameter(np.ones(2))
    with pytest.raises(error, match=message):  # the engine may refuse it before the optimizer does
        base._check_fit(p, grad, [])


# --- states ----------------------------------------------------------------------------------


@every_kind
def test_to_go_on_after_a_load_is_not_to_have_stopped(kind, settings):
    settings = {**settings, "lr": optim.cosine(0.1, 20)}
    p0, grads = start(steps=12, dtype=np.float32)
    p, late = Parameter(p0), Parameter(np.ones(2))  # `late` has no gradient before the load
    optimizer = kind([p, late], **settings)
    *_, _ = run(optimizer, p, grads[:5])
    file = io.BytesIO()
    np.savez(file, **optimizer.state_dict())
    file.seek(0)
    q, later = Parameter(p.data), Parameter(np.ones(2))
    resumed = kind([q, later], **settings)
    resumed.load_state_dict(dict(np.load(file, allow_pickle=False)))
    late.grad, later.grad = np.ones(2), np.ones(2)
    for a, b in zip(run(optimizer, p, grads[5:]), run(resumed, q, grads[5:]), strict=True):
        assert a.tobytes() == b.tobytes()
    assert late.data.tobytes() == later.data.tobytes()
    assert resumed.steps == 12
    old, new = optimizer.state_dict(), resumed.state_dict()
    assert list(old) == list(new)
    assert all(old[key].tobytes() == new[key].tobytes() for key in old)


def trained(kind=Adam, **settings):
    p, q = Parameter(np.ones(2), name="b"), Parameter(np.ones((2, 2), np.float32), name="W")
    optimizer = kind([p, q], **settings)
    p.grad, q.grad = np.ones(2), np.ones((2, 2), np.float32)
    optimizer.step()
    return optimizer


def test_a_state_is_named_arrays_and_a_copy():
    optimizer = trained()
    state = optimizer.state_dict()
    assert list(state) == ["kind", "steps", "0.count", "0.m", "0.v", "1.count", "1.m", "1.v"]
    assert all(type(array) is np.ndarray for array in state.values())
    before = {key: array.copy() for key, array in state.items()}
    optimizer.step()
    optimizer.load_state_dict(state)
    optimizer.step()
    assert all((state[key] == before[key]).all() for key in state)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"kind": np.array("AdamW")}, "kind"),
        ({"kind": None}, "kind"),
        ({"steps": None}, "steps"),
        ({"steps": np.array(-1)}, "steps"),
        ({"steps": np.array(1.0)}, "steps"),
        ({"1.count": np.array([1])}, "1.count"),
        ({"1.count": None}, "1.count"),
        ({"1.v": None}, "1.v"),
        ({"1.v": np.ones((2, 2))}, "1.v"),
        ({"1.m": np.ones((4,), np.float32)}, "1.m"),
        ({"2.m": np.ones(2)}, "2.m"),
        ({"1.momentum": np.ones((2, 2), np.float32)}, "1.momentum"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(changes, key):
    source, target = trained(lr=0.5), trained(lr=0.25)
    source.step()
    state = {**source.state_dict(), **changes}
    before = target.state_dict()
    with pytest.raises(StateError, match=f"'{key}'"):
        target.load_state_dict({k: v for k, v in state.items() if v is not None})
    after = target.state_dict()
    assert list(before) == list(after)
    assert all((before[k] == after[k]).all() for k in before)


def test_momentum_is_in_the_state_where_it_is_needed_or_was_kept():
    plain, heavy = trained(SGD, lr=0.1), trained(SGD, lr=0.1, momentum=0.5)
    assert "0.momentum" not in plain.state_dict()
    with pytest.raises(StateError, match=r"'0\.momentum': missing"):
        heavy.load_state_dict(plain.state_dict())
    plain.load_state_dict(heavy.state_dict())
    assert (plain.state_dict()["1.momentum"] == 1).all()


# --- clipping --------------------------------------------------------------------------------


def with_gradients(*arrays):
    params = [Parameter(np.zeros_like(a)) for a in arrays]
    for p, a in zip(params, arrays, strict=True):
        p.grad = a
    return params


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    st.floats(1e-3, 1e3),
    st.integers(-100, 100),
)
def test_the_norm_is_clipped_and_the_direction_kept(values, limit, exponent):
    arrays = [np.array(values) * 2.0**exponent, np.array(values[:1]) * 2.0**exponent]
    params = with_gradients(*arrays)
    whole = np.concatenate(arrays)
    expected = math.hypot(*whole)
    assert optim.clip_grad_norm(params, limit) == pytest.approx(expected, rel=1e-12)
    clipped = np.concatenate([p.grad for p in params])
    assert math.hypot(*clipped) <= limit * (1 + 1e-12)
    factor = min(1.0, limit / expected) if expected else 1.0
    np.testing.assert_allclose(clipped, whole * factor, rtol=1e-12)
    if expected <= limit:
        assert all(p.grad is a for p, a in zip(params, arrays, strict=True))


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 1e30), (np.float64, 1e200)])
@pytest.mark.parametrize("sign", [1, -1])
def test_huge_and_tiny_gradients_neither_overflow_nor_vanish(dtype, size, sign):
    big = size**sign
    params = with_gradients(np.full((3, 3), big, dtype), np.full(7, big, dtype))
    assert optim.clip_grad_norm(params, 2.0 * big) == pytest.approx(4 * big, rel=1e-6)
    for p in params:
        assert p.grad.dtype == dtype
        np.testing.assert_allclose(p.grad, big / 2, rtol=1e-6)


def test_the_norm_of_float32_gradients_is_computed_in_float64():
    g = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    expected = math.sqrt(math.fsum(float(x) ** 2 for x in g))
    assert optim.clip_grad_norm(with_gradients(g), math.inf) == pytest.approx(expected, rel=1e-13)


def test_gradients_of_zero_stay_zero():
    params = with_gradients(np.zeros(3), np.zeros((0, 2)))
    assert optim.clip_grad_norm(params, 1.0) == 0.0
    assert (params[0].grad == 0).all()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_norm_that_is_not_finite_leaves_the_gradients(bad):
    params = with_gradients(np.array([1.0, bad]), np.array([5.0]))
    norm = optim.clip_grad_norm(params, 1.0)
    assert math.isnan(norm) if math.isnan(bad) else norm == math.inf
    assert params[0].grad[0] == 1.0
    assert params[1].grad[0] == 5.0


def test_clipping_takes_read_only_and_shared_gradients():
    shared = np.full((2, 2), 3.0)
    params = with_gradients(shared, shared, np.broadcast_to(4.0, (2, 2)), shared.T)
    norm = math.sqrt(12 * 9 + 4 * 16)
    assert optim.clip_grad_norm(params, 1.0) == pytest.approx(norm)
    for p, value in zip(params, (3, 3, 4, 3), strict=True):
        np.testing.assert_allclose(p.grad, value / norm)
    optim.clip_grad_value(params, 3.5 / norm)
    for p, value in zip(params, (3, 3, 3.5, 3), strict=True):
        np.testing.assert_allclose(p.grad, value / norm)
    assert (shared == 3).all()


def test_clipping_skips_what_a_step_skips():
    params = with_gradients(np.array([3.0]), np.array([1e9]), np.array([4.0]))
    params[1].requires_grad = False
    params.append(Parameter(np.ones(2)))
    assert optim.clip_grad_norm((p for p in params), math.inf) == 5.0
    optim.clip_grad_value(params, 2.0)
    assert [p.grad[0] for p in params[:3]] == [2.0, 1e9, 2.0]
    assert params[3].grad is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_are_clipped_in_their_dtype(dtype):
    params = with_gradients(np.array([-7.0, 0.5, 7.0, math.nan], dtype))
    optim.clip_grad_value(params, 1e300)
    np.testing.assert_array_equal(params[0].grad, np.array([-7.0, 0.5, 7.0, math.nan], dtype))
    optim.clip_grad_value(params, 1)
    np.testing.assert_array_equal(params[0].grad, np.array([-1.0, 0.5, 1.0, math.nan], dtype))
    assert params[0].grad.dtype == dtype


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, "1"])
@pytest.mark.parametrize("clip", [optim.clip_grad_norm, optim.clip_grad_value])
def test_a_limit_must_be_positive(clip, limit):
    with pytest.raises(ValueError, match="expected a number above 0"):
        clip(with_gradients(np.ones(2)), limit)


@pytest.mark.torch
def test_clipping_equals_pytorch():
    torch = pytest.importorskip("torch")
    _, grads = start(steps=3)
    params = with_gradients(*grads)
    theirs = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in grads]
    for q, g in zip(theirs, grads, strict=True):
        q.grad = torch.tensor(g)
    expected = torch.nn.utils.clip_grad_norm_(theirs, 1.5)  # divides by norm + 1e-6
    assert optim.clip_grad_norm(params, 1.5) == pytest.approx(float(expected), rel=1e-12)
    for p, q in zip(params, theirs, strict=True):
        np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=1e-6)


@pytest.mark.torch
def test_the_benchmark_runs():
    pytest.importorskip("torch")
    from .bench.adam import CASES, run

    assert [row.case for row in run(rounds=1, calls=1)] == list(CASES)
