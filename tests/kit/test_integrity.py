"""check_vjp: what holds of a backward beside its numbers, each broken once."""

import numpy as np
import pytest

from tinygrad_rnn import Tensor, nn, ops
from tinygrad_rnn.op import OPS
from tinygrad_rnn.testing import GradientError, RNNConfig, Verdict, check_vjp, strategies


class Scaled:
    """y = a x, by hand; one method is damaged in each test."""

    a = 3.0

    def forward(self, x):
        return (self.a * x,)

    def vjp(self, arrays, cotangents):
        u = np.zeros_like(arrays[0]) if cotangents[0] is None else cotangents[0]
        return (self.a * u,)


X = np.array([[1.0, -2.0, 0.5]])


def words_of(subject, *inputs):
    with pytest.raises(GradientError) as found:
        check_vjp(subject, *(inputs or (X,)))
    return str(found.value)


@pytest.fixture
def restored():
    before = {op: (op.rules, op.rule_all, op.collectors) for op in OPS.values()}
    yield
    for op, (rules, rule_all, collectors) in before.items():
        op.rules, op.rule_all, op.collectors = rules, rule_all, collectors


@pytest.mark.parametrize("cfg", strategies.corners()[:12], ids=repr)
def test_layers_keep_everything(cfg):
    layer = cfg.make()
    kept = [p.data for p in layer.parameters()]
    lengths = None if cfg.lengths is None else list(cfg.lengths)
    report = check_vjp(layer, cfg.x(), state=cfg.initial(layer), lengths=lengths)
    assert report.verdict is Verdict.RIGHT
    assert len(report.findings) == 9
    assert all(
        p.data is a and p.grad is None for p, a in zip(layer.parameters(), kept, strict=True)
    )


def test_a_hand_written_pair_passes_what_can_be_asked_of_it():
    assert len(check_vjp(Scaled(), X).findings) == 6


class Counting(Scaled):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return (self.a * x + 1e-9 * self.calls,)


class Leaking(Scaled):
    last = 0.0

    def forward(self, x):
        y = self.a * x + (self.last if abs(x).sum() > 3 else 0.0)
        self.last = 1e-3 if abs(x).sum() < 3 else self.last
        return (y,)


class RandomBackward(Scaled):
    rng = np.random.default_rng(0)

    def vjp(self, arrays, cotangents):
        return (super().vjp(arrays, cotangents)[0] * (1 + 1e-12 * self.rng.random()),)


class MutatingForward(Scaled):
    def forward(self, x):
        x *= 1.5
        return (self.a * x,)


class MutatingBackward(Scaled):
    def vjp(self, arrays, cotangents):
        (g,) = super().vjp(arrays, cotangents)
        arrays[0][...] = 0
        return (g,)


class MutatedCotangent(Scaled):
    def vjp(self, arrays, cotangents):
        if cotangents[0] is not None:
            cotangents[0][...] *= self.a
            return (cotangents[0].copy(),)
        return (np.zeros_like(arrays[0]),)


class Aliased(Scaled):
    a = 1.0

    def vjp(self, arrays, cotangents):
        return (np.zeros_like(arrays[0]) if cotangents[0] is None else cotangents[0],)


class Affine(Scaled):
    def vjp(self, arrays, cotangents):
        return (super().vjp(arrays, cotangents)[0] + 1e-6,)


class Clipped(Scaled):
    def vjp(self, arrays, cotangents):
        return (np.clip(super().vjp(arrays, cotangents)[0], -4, 4),)


class OnlyNone(Scaled):
    def vjp(self, arrays, cotangents):
        return (
            (np.ones_like(arrays[0]),) if cotangents[0] is None else super().vjp(arrays, cotangents)
        )


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (Counting, "not deterministic"),
        (Leaking, "after a call elsewhere"),
        (RandomBackward, "two backward passes gave different gradients of x"),
        (MutatingForward, "forward of MutatingForward changed its input x in place"),
        (MutatingBackward, "backward of MutatingBackward changed its input x in place"),
        (MutatedCotangent, "changed the cotangent of output 0 in place"),
        (Aliased, "the gradient of x shares memory with the cotangent of output 0"),
        (Affine, "not linear in the cotangent"),
        (Clipped, "not linear in the cotangent"),
        (OnlyNone, "absent (None) gave a gradient of x that is not 0"),
    ],
)
def test_each_kind_of_damage_is_named(damaged, words):
    assert words in words_of(damaged(), X.copy())


def test_two_gradients_that_share_memory():
    class Pair:
        def forward(self, x, y):
            return (x + y,)

        def vjp(self, arrays, cotangents):
            u = np.zeros_like(arrays[0]) if cotangents[0] is None else cotangents[0].copy()
            return u, u

    assert "the gradient of x1 shares memory with the gradient of x0" in words_of(Pair(), X, X + 1)


@pytest.mark.usefixtures("restored")
def test_a_rule_that_writes_in_place_is_named_with_its_line():
    def rule(g, y, x):
        g *= 1 - y * y
        return g

    ops.tanh.rules = (rule,)
    words = words_of(lambda x: ops.tanh(x * 2.0), X)
    assert "writes in place" in words
    assert "tanh  kit/test_integrity.py:" in words


def test_a_graph_that_something_holds():
    held = []

    def f(x):
        y = ops.tanh(x)
        held.append(y)
        return y * 2.0

    assert "outlive the result: something holds the result (1, 3) of tanh" in words_of(f)


def test_accumulation(monkeypatch):
    def overwrite(self, gradient=None):
        before = dict.fromkeys([])
        original(self, gradient)
        for t in leaves:
            t._grad = None if t._grad is None else t._grad * 1.5
        assert before == {}

    original, leaves = Tensor.backward, []

    def f(x):
        leaves.append(x)
        return x * 2.0

    monkeypatch.setattr(Tensor, "backward", overwrite)
    assert ".grad of x is not" in words_of(f)


def test_what_the_user_had_in_grad_is_kept():
    cfg = RNNConfig(nn.GRU, T=2)
    layer = cfg.make()
    for p in layer.parameters():
        p.grad = np.ones(p.shape)
    check_vjp(layer, cfg.x())
    assert all((p.grad == 1).all() for p in layer.parameters())
