"""The state machine: this framework's tape and other engines pass, planted defects do not."""

import operator
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

from tinygrad_rnn import ops
from tinygrad_rnn.tensor import Tensor
from tinygrad_rnn.testing import (
    GradientError,
    TapeMachine,
    from_autograd,
    from_function,
    from_jax,
    from_torch,
)
from tinygrad_rnn.testing.machine import OWN

TestTape = TapeMachine.on()
TestProgramsOfThisEngine = TapeMachine.on(OWN, from_function)

HUNT = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    stateful_step_count=20,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)
SHORT = settings(HUNT, max_examples=25, stateful_step_count=20)


def run(F=None, adapter=None, settings=SHORT):
    TapeMachine.on(F, adapter, settings=settings)("runTest").runTest()


def only(namespace, *names):
    return SimpleNamespace(**{name: getattr(namespace, name) for name in names})


class TestOtherEngines:
    @pytest.mark.torch
    def test_torch(self):
        torch = pytest.importorskip("torch")
        run(torch, from_torch)

    def test_jax(self):
        run(pytest.importorskip("jax.numpy"), from_jax, settings(SHORT, max_examples=6))

    def test_autograd_without_its_two_defects(self):
        anp = pytest.importorskip("autograd.numpy")
        names = (
            "negative", "tanh", "square", "add", "subtract", "multiply", "maximum", "matmul",
            "sum", "reshape", "swapaxes", "concatenate",
        )  # fmt: skip
        run(only(anp, *names), from_autograd)

    def test_where_of_autograd_does_not_unbroadcast(self):
        anp = pytest.importorskip("autograd.numpy")
        with pytest.raises(GradientError, match=r"has shape|not broadcastable"):
            run(only(anp, "where"), from_autograd, HUNT)

    def test_broadcast_to_of_autograd_refuses_new_axes(self):
        anp = pytest.importorskip("autograd.numpy")
        with pytest.raises(GradientError, match="Can't handle extra leading dims") as caught:
            run(only(anp, "broadcast_to"), from_autograd, HUNT)
        assert "F.broadcast_to(v" in str(caught.value)


def changed(**more):
    return SimpleNamespace(**{**vars(OWN), **more})


class TestPlantedInPrograms:
    """An engine of the protocol with one defect each."""

    def test_value(self):
        with pytest.raises(GradientError, match=r"(value|gradient) of v"):
            run(changed(tanh=lambda x: ops.tanh(x) * (1 + 1e-9)), from_function, HUNT)

    def test_gradient(self):
        def add(x, y):
            return ops.add(x, y) + 0.0 * ops.tanh(x) + (x - x.detach()) * 1e-6

        with pytest.raises(GradientError, match="gradient of v") as caught:
            run(changed(add=add), from_function, HUNT)
        assert "F.add(" in str(caught.value)

    def test_none_taken_for_ones(self):
        class Ones:
            def __init__(self, f):
                self.inner = from_function(f)

            def forward(self, *arrays):
                return self.inner.forward(*arrays)

            def vjp(self, arrays, cotangents):
                outputs = self.forward(*arrays)
                pairs = zip(cotangents, outputs, strict=True)
                filled = [np.ones(y.shape) if u is None else u for u, y in pairs]
                return self.inner.vjp(arrays, filled)

        with pytest.raises(GradientError, match="gradient of v"):
            run(OWN, Ones, HUNT)

    def test_cotangent_changed_in_place(self):
        class Writes:
            def __init__(self, f):
                self.inner = from_function(f)
                self.forward = self.inner.forward

            def vjp(self, arrays, cotangents):
                found = self.inner.vjp(arrays, cotangents)
                cotangents[0][...] = 7.0
                return found

        with pytest.raises(GradientError, match="cotangent 0 was changed in place"):
            run(OWN, Writes, HUNT)


class TestPlantedInTheTape:
    def test_rule(self, monkeypatch):
        rules = (ops.mul.rules[0], lambda g, z, x, y: g * x * (1 + 1e-9))
        monkeypatch.setattr(ops.mul, "rules", rules)
        with pytest.raises(AssertionError):
            run(settings=HUNT)

    def test_unbroadcast(self, monkeypatch):
        rules = (None, lambda g, z, m, x, y: ops.where(m, g, 0.0), lambda g, z, m, x, y: g)
        monkeypatch.setattr(ops.where, "rules", rules)
        with pytest.raises(AssertionError):
            run(settings=HUNT)

    def test_leak(self, monkeypatch):
        kept = []
        forward = ops.tanh.forward

        def tanh(x):
            y = forward(x)
            kept.append(y)
            return y

        class Holding(TapeMachine):
            def apply(self, step, lives):
                t = super().apply(step, lives)
                if step.name == "tanh":
                    kept.append(t)
                return t

        monkeypatch.setattr(ops.tanh, "forward", tanh)
        with pytest.raises(AssertionError, match="outlive the last reference"):
            Holding.on(settings=HUNT)("runTest").runTest()

    def test_backward_that_does_not_accumulate(self, monkeypatch):
        backward = Tensor.backward

        def overwrite(self, gradient=None):
            for t in leaves:
                t.grad = None
            backward(self, gradient)

        leaves = []

        class Fresh(TapeMachine):
            def begin(self, values, needs):
                t = super().begin(values, needs)
                if isinstance(t, Tensor) and t.requires_grad:
                    leaves.append(t)
                return t

            def teardown(self):
                leaves.clear()
                super().teardown()

        monkeypatch.setattr(Tensor, "backward", overwrite)
        with pytest.raises(AssertionError):
            Fresh.on(settings=HUNT)("runTest").runTest()


def test_namespace_and_adapter_go_together():
    with pytest.raises(TypeError, match="go together"):
        TapeMachine.on(operator)
