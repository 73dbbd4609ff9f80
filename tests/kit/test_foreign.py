"""Other engines through the two methods: the same numbers, and their defects in words."""

import sys

import numpy as np
import pytest

from tinygrad_rnn import ops
from tinygrad_rnn.testing import (
    Differentiable,
    GradientError,
    Verdict,
    check_grad,
    check_vjp,
    from_autograd,
    from_function,
    from_jax,
    from_torch,
)

PEERS = [
    pytest.param(("torch", from_torch), marks=pytest.mark.torch, id="torch"),
    pytest.param(("autograd.numpy", from_autograd), id="autograd"),
    pytest.param(("jax.numpy", from_jax), id="jax"),
]
X, W = np.array([[0.5, -1.25], [1.0, 0.25]]), np.array([[1.5, -0.5, 0.25], [0.75, -1.0, 2.0]])
U = np.array([[1.0, -0.5, 2.0], [0.25, 1.5, -1.0]])


@pytest.fixture(params=PEERS)
def peer(request):
    """Return the primitives of a peer and its adapter."""
    namespace, adapter = request.param
    return pytest.importorskip(namespace), adapter


def two(xp):
    return lambda x, W: (xp.tanh(x @ W), (xp.sum(x * x), [x[0]]))


class TestEveryAdapter:
    def test_has_the_two_methods(self, peer):
        xp, adapter = peer
        assert isinstance(adapter(two(xp)), Differentiable)

    def test_gives_the_same_numbers_as_this_engine(self, peer):
        xp, adapter = peer

        def own(x, W):
            return ops.tanh(x @ W), ((x * x).sum(), [x[0]])

        theirs, ours = adapter(two(xp)), from_function(own)
        cotangents = [U, np.array(2.0), np.array([1.0, -3.0])]
        pairs = [
            *zip(theirs.forward(X, W), ours.forward(X, W), strict=True),
            *zip(theirs.vjp([X, W], cotangents), ours.vjp([X, W], cotangents), strict=True),
        ]
        assert len(pairs) == 5
        for got, want in pairs:
            assert type(got) is np.ndarray
            np.testing.assert_allclose(got, want, rtol=1e-14, atol=1e-14, strict=True)

    def test_no_cotangent_stands_for_zeros(self, peer):
        xp, adapter = peer
        d = adapter(two(xp))
        some = d.vjp([X, W], [None, np.array(1.0), None])
        zeros = d.vjp([X, W], [0 * U, np.array(1.0), np.zeros(2)])
        np.testing.assert_array_equal(some[0], 2 * X)
        np.testing.assert_array_equal(zeros[0], 2 * X)
        assert some[1] is None or not some[1].any()
        for g in d.vjp([X, W], [None, None, None]):
            assert g is None or not g.any()

    def test_integers_and_masks_have_no_gradient(self, peer):
        xp, adapter = peer
        d = adapter(lambda x, i, m: xp.where(m, x[i], 0.0 * x[i]))
        i, m = np.array([1, 0, 1]), np.array([[True, False], [False, True], [True, True]])
        np.testing.assert_array_equal(d.forward(X, i, m)[0], np.where(m, X[i], 0))
        g, none, neither = d.vjp([X, i, m], [np.ones((3, 2))])
        assert none is None
        assert neither is None
        np.testing.assert_array_equal(g, [[0, 1], [2, 1]])

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
    def test_dtypes_stay(self, peer, dtype):
        xp, adapter = peer
        d = adapter(lambda x: xp.tanh(x))
        x = X.astype(dtype)
        assert d.forward(x)[0].dtype == dtype
        assert d.vjp([x], [np.ones_like(x)])[0].dtype == dtype

    def test_gradients_share_no_memory(self, peer):
        _, adapter = peer
        u = np.ones((2, 2))
        found = adapter(lambda x, y: x + y).vjp([X, X.copy()], [u])
        assert not np.shares_memory(*found)
        assert not any(np.shares_memory(g, u) for g in found)

    def test_layouts(self, peer):
        xp, adapter = peer
        f = adapter(lambda x: xp.tanh(x))
        want = f.vjp([X[::-1].copy()], [np.ones((2, 2))])[0]
        frozen = X[::-1].copy()
        frozen.flags.writeable = False
        for x in (X[::-1], np.asfortranarray(X[::-1]), frozen):
            u = np.broadcast_to(np.array(1.0), (2, 2))
            np.testing.assert_array_equal(f.vjp([x], [u])[0], want)

    def test_checks_pass_where_all_is_right(self, peer):
        xp, adapter = peer
        d = adapter(two(xp), names=["x", "W"])
        for report in (check_grad(d, X, W), check_vjp(d, X, W)):
            assert report.verdict is Verdict.RIGHT
            assert report.findings
        assert check_grad(d, X.astype("f4"), W.astype("f4")).verdict is Verdict.RIGHT
        assert "W" in {f.input for f in check_grad(d, X, W).findings}

    def test_a_wrong_rule_is_found(self, peer):
        xp, adapter = peer
        d = adapter(lambda x: xp.tanh(x))
        right = d.vjp

        def vjp(arrays, cotangents):
            return tuple([g * (1 + 1e-7) for g in right(arrays, cotangents)])

        d.vjp = vjp
        with pytest.raises(GradientError, match="backward of <lambda> is wrong") as caught:
            check_grad(d, X)
        assert caught.value.verdict is Verdict.WRONG

    def test_one_that_does_not_see_its_input(self, peer):
        xp, adapter = peer
        one = xp.sum(xp.tanh(xp.ones(2)))
        g = adapter(lambda x: one).vjp([X], [np.array(1.0)])[0]
        assert g is None or not g.any()
        d = adapter(lambda x, y: (one, xp.tanh(y)))
        g, h = d.vjp([X, X], [np.array(1.0), np.ones((2, 2))])
        assert g is None or not g.any()
        assert h.all()


@pytest.mark.parametrize("named", PEERS)
def test_one_that_is_not_installed_is_named(named, monkeypatch):
    namespace, adapter = named
    monkeypatch.setitem(sys.modules, namespace.partition(".")[0], None)
    with pytest.raises(ImportError, match=f"{adapter.__name__}: .* is not installed; pip install"):
        adapter(lambda x: x)


@pytest.mark.parametrize("named", [PEERS[0], PEERS[2]])
def test_what_is_no_tensor_is_named(named):
    namespace, adapter = named
    pytest.importorskip(namespace)
    with pytest.raises(GradientError, match="output 1 is a str") as caught:
        check_grad(adapter(lambda x: (x, "loss")), X)
    assert caught.value.verdict is Verdict.UNRELIABLE


class TestDefectsOfAutograd:
    """HIPS autograd 1.9.1; a later version may have mended them."""

    @pytest.fixture
    def anp(self):
        return pytest.importorskip("autograd.numpy")

    @pytest.mark.parametrize("check", [check_grad, check_vjp])
    def test_where_does_not_unbroadcast(self, anp, check):
        mask = np.array([[True, False], [True, True], [False, True]])
        d = from_autograd(lambda x, y: anp.where(mask, x, y), names=["x", "y"])
        words = r"the gradient of x has shape \(3, 2\), x has \(2,\)"
        with pytest.raises(GradientError, match=words) as caught:
            check(d, np.array([0.5, -1.25]), np.arange(6.0).reshape(3, 2))
        assert caught.value.verdict is Verdict.WRONG

    def test_where_is_right_without_broadcasting(self, anp):
        mask = np.array([True, False])
        d = from_autograd(lambda x, y: anp.where(mask, x, y))
        assert check_grad(d, np.array([0.5, -1.25]), np.array([2.0, 3.0])).verdict is Verdict.RIGHT

    @pytest.mark.parametrize("check", [check_grad, check_vjp])
    def test_broadcast_to_refuses_new_leading_axes(self, anp, check):
        d = from_autograd(lambda x: anp.broadcast_to(x, (3, 2)))
        with pytest.raises(GradientError, match="Can't handle extra leading dims") as caught:
            check(d, np.array([0.5, -1.25]))
        assert caught.value.verdict is Verdict.WRONG

    def test_broadcast_to_is_right_without_new_axes(self, anp):
        d = from_autograd(lambda x: anp.broadcast_to(x, (3, 2)))
        assert check_grad(d, np.array([[0.5, -1.25]])).verdict is Verdict.RIGHT


@pytest.mark.torch
class TestTorchThatWritesInPlace:
    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    def function(self, torch, forward, backward):
        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        return from_torch(type("Doubled", (torch.autograd.Function,), methods).apply)

    def test_backward_that_changes_its_cotangent(self, torch):
        d = self.function(torch, lambda ctx, x: x * 2, lambda ctx, g: g.mul_(2))
        np.testing.assert_array_equal(d.vjp([X], [np.ones((2, 2))])[0], np.full((2, 2), 2.0))
        with pytest.raises(GradientError, match="changed the cotangent of output 0 in place"):
            check_vjp(d, X)

    def test_backward_that_does_not(self, torch):
        d = self.function(torch, lambda ctx, x: x * 2, lambda ctx, g: g * 2)
        assert check_vjp(d, X).verdict is Verdict.RIGHT

    def test_what_was_frozen_cannot_be_changed(self, torch):
        d = self.function(torch, lambda ctx, x: x * 2, lambda ctx, g: g.mul_(2))
        u = np.ones((2, 2))
        u.flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            d.vjp([X], [u])

    def test_forward_that_changes_its_input(self, torch):
        def forward(ctx, x):
            ctx.mark_dirty(x)
            return x.mul_(2)

        d = self.function(torch, forward, lambda ctx, g: g * 2)
        with pytest.raises(GradientError, match=r"forward of .* changed its input x in place"):
            check_vjp(d, X.copy())
