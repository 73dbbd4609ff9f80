"""What users do wrong, or in odd ways: said clearly, and nothing is lost."""

import threading

import numpy as np
import pytest

from tinygrad_rnn import Parameter, Tensor, debug, grad, nn, ops, scope
from tinygrad_rnn import functional as F
from tinygrad_rnn.errors import DtypeError, ShapeError
from tinygrad_rnn.op import OPS, primitive


def test_none_texts_and_lists_of_tensors_are_no_numbers():
    t = Tensor([3.0, 4.0], requires_grad=True)
    for wrong in (None, "3", ["3"]):
        with pytest.raises(DtypeError, match="no number"):
            t + wrong
    for attempt in (lambda: t * [t, t], lambda: ops.stack([t, t]), lambda: Tensor([t, t])):
        with pytest.raises(TypeError, match="a list of Tensors is no Tensor"):
            attempt()


def test_reductions_of_numbers_take_their_axis():
    x = Tensor(3.0, requires_grad=True)
    (x.sum(axis=0) + x.max(axis=-1)).backward()
    assert x.grad == 2.0


def test_a_rule_of_the_wrong_shape_is_refused():
    op = primitive(None, "twice(x)", name="twice_wrong")(lambda x: 2 * x)
    try:
        op.vjp(lambda g, y, x: (g * 2).T)
        x = Tensor(np.ones((2, 3)), requires_grad=True)
        with pytest.raises(ShapeError, match=r"rule returned \(3, 2\) for an input .* \(2, 3\)"):
            op(x).sum().backward()
    finally:
        del OPS["twice_wrong"]


def test_inputs_beyond_the_rules_have_no_gradient():
    op = primitive(None, "x + y", name="one_rule")(np.add)
    try:
        op.vjp(lambda g, z, x, y: g)
        x, y = (Tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
        op(x, y).sum().backward()
        assert x.grad.tolist() == [1.0, 1.0]
        assert y.grad is None
    finally:
        del OPS["one_rule"]


def test_threads_lose_no_gradient():
    p = Parameter(np.zeros(200_000))

    def work():
        for _ in range(20):
            (p * 1.0).sum().backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert p.grad.min() == p.grad.max() == 80


def test_debug_ends_even_if_an_array_cannot_be_thawed():
    w = Tensor(np.ones(3), requires_grad=True)
    foreign = np.frombuffer(bytearray(24))
    with debug():
        (Tensor(foreign) * w).sum().backward()
    assert scope.scope().frozen is None
    assert foreign.flags.writeable


def test_grad_thaws_as_backward_does():
    w = Tensor(np.ones(3), requires_grad=True)
    with debug():
        g = grad((w * w).sum(), w)
        w.data -= 0.5 * g
    assert w.numpy().tolist() == [0.0, 0.0, 0.0]


def test_a_thread_that_first_saw_other_error_states():
    found = []

    def work():
        with np.errstate(all="raise"):
            ops.sigmoid(np.array([800.0]))
        found.append(ops.sigmoid(np.array([800.0, -800.0])).tolist())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[1.0, 0.0]]


def test_a_parameter_is_not_replaced_by_what_is_none():
    layer = nn.Linear(2, 1, rng=0)
    layer(np.ones((1, 2))).sum().backward()
    with pytest.raises(TypeError, match=r"W.data -= rate \* W.grad"):
        layer.W -= 0.1 * layer.W.grad
    assert [name for name, _ in layer.named_parameters()] == ["W", "b"]


@pytest.mark.parametrize("f", [lambda x, axis: F.split(x, 2, axis), F.unbind])
@pytest.mark.parametrize("axis", [2, -3])
def test_an_axis_out_of_range(f, axis):
    with pytest.raises(np.exceptions.AxisError, match=f"axis {axis} is out of bounds"):
        f(Tensor(np.ones((4, 6))), axis)


@pytest.mark.parametrize("sections", [0, -2])
def test_no_sections(sections):
    with pytest.raises(ShapeError, match=f"cannot be cut into {sections} equal parts"):
        F.split(np.ones(4), sections)


def test_part_counts_axes_from_0():
    with pytest.raises(ShapeError, match=r"part: .* axis=-1 must count from 0"):
        ops.part(Tensor(np.ones((2, 3))), axis=-1, start=0, stop=1)


def test_masked_steps_shield_from_what_their_logits_hold():
    x = Tensor([[1.0, 2.0], [np.nan, 1.0]], requires_grad=True)
    for settings in ({"mask": [True, False]}, {"ignore_index": 7}):
        loss = F.cross_entropy(x, [0, 7] if "ignore_index" in settings else [0, 1], **settings)
        g = grad(loss, x)
        assert np.isfinite(g).all()
        assert g[1].tolist() == [0.0, 0.0]


def test_logsumexp_of_infinities():
    with np.errstate(divide="ignore"):
        y = F.logsumexp(np.array([[-np.inf, -np.inf], [0.0, -np.inf], [np.inf, 0.0]]))
    assert y.tolist() == [-np.inf, 0.0, np.inf]
