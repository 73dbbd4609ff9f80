"""Test files that ghostwrite writes: they lint, pass, and fail where a gradient is wrong."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinygrad_rnn import functional, nn, ops, testing
from tinygrad_rnn.op import OPS
from tinygrad_rnn.testing import ghostwrite

ROOT = Path(__file__).resolve().parent.parent.parent

OWN = '''"""What a user may write."""

import numpy as np

from tinygrad_rnn import Module, Parameter, functional, nn
from tinygrad_rnn.op import primitive
from tinygrad_rnn.ops import log, sigmoid, sqrt, tanh


@primitive("()->()", "log(1 + exp(x))")
def softplus(x):
    return np.log1p(np.exp(x))


softplus.vjp(lambda g, y, x: g * sigmoid(x))


@primitive("()->()", "x^2")
def wrong_square(x):
    return x * x


wrong_square.vjp(lambda g, y, x: g * x)


@primitive(None, "flip(x)")
def flip(x, axis):
    return np.flip(x, axis)


flip.vjp(lambda g, y, x, axis: flip(g, axis=axis))


def swish(x, beta=1.5):
    return x * sigmoid(beta * x)


def mix(a, b, c):
    return tanh(a * b) + c


def entropy(p):
    return -(p * log(p)).sum()


def affine(x, W, b):
    return x @ W + b


def normed(x):
    return x / sqrt((x * x).sum(axis=-1, keepdims=True) + 0.25), x.sum()


def attention(q, k, v):
    return functional.softmax(q @ k.mT) @ v


def doubled_wrongly(x):
    return wrong_square(x).sum()


def constant(x):
    return 1.0


class Leaky(nn.Cell):
    def __init__(self, input_size, hidden_size, dtype=np.float32, rng=None):
        super().__init__(input_size, hidden_size, dtype=dtype)
        self.add_weights(rng=rng)

    def step(self, x, h):
        h = 0.5 * h + 0.5 * tanh(self.affine(x, h))
        return h, h


class Scaled(Leaky):
    def __init__(self, input_size, hidden_size, factor, kind="plain"):
        super().__init__(input_size, hidden_size)
        self.factor, self.kind = factor, kind

    def step(self, x, h):
        h = tanh(self.affine(x, h)) * self.factor
        return h, h


class Gate(Module):
    def __init__(self, size):
        self.W = Parameter(np.eye(size, dtype=np.float32))

    def forward(self, x):
        return x * sigmoid(x @ self.W)
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The user's module, importable while the tests of this file run."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_ops.py").write_text(OWN)
    sys.path.insert(0, str(folder))
    before = dict(OPS)
    yield importlib.import_module("own_ops")
    sys.path.remove(str(folder))
    del sys.modules["own_ops"]
    OPS.clear()
    OPS.update(before)


def run(text):
    """Run what a test file defines, as pytest would."""
    space = {"__name__": "ghostwritten"}
    exec(compile(text, "ghostwritten.py", "exec"), space)
    tests = [value for name, value in space.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


RIGHT = ["softplus", "swish", "mix", "entropy", "affine", "normed", "attention", "Gate"]


@pytest.mark.parametrize("name", RIGHT)
def test_tests_of_the_users_things_pass(name, own):
    run(ghostwrite(getattr(own, name)))


@pytest.mark.parametrize(
    "obj",
    [ops.getitem, functional.softmax, functional.mse_loss, nn.Linear, nn.Linear(5, 2, bias=False),
     nn.Embedding, nn.LayerNorm, nn.Dropout(0.25)],
    ids=lambda obj: getattr(obj, "name", None) or getattr(obj, "__name__", type(obj).__name__),
)  # fmt: skip
def test_tests_of_the_frameworks_things_pass(obj):
    run(ghostwrite(obj))


@pytest.mark.parametrize("name", ["wrong_square", "doubled_wrongly"])
def test_tests_of_wrong_gradients_fail(name, own):
    with pytest.raises(testing.GradientError, match="wrong"):
        run(ghostwrite(getattr(own, name)))


def test_shapes_and_domains_are_found(own):
    assert "@given(x=st.tensors())" in ghostwrite(own.swish)
    assert "@given(xs=st.broadcastable(3))" in ghostwrite(own.mix)
    assert "@given(p=st.tensors(values=st.positive))" in ghostwrite(own.entropy)
    assert "W=st.tensors((3, 4)), b=st.tensors((4,))" in ghostwrite(own.affine)
    assert "Linear(5, 2, bias=False, rng=0)" in ghostwrite(nn.Linear(5, 2, bias=False))
    assert "module.eval()" in ghostwrite(nn.Dropout(0.25))


def test_cells_and_layers_get_every_relation(own):
    assert "@testing.gradtest(st.rnn_configs(cells=[Leaky]))" in ghostwrite(own.Leaky)
    assert "return Scaled(cfg.D, cfg.H, 0.5)\n" in ghostwrite(own.Scaled(2, 3, 0.5))
    text = ghostwrite(own.Scaled(2, 3, 0.5, "fancy"))
    assert 'return Scaled(cfg.D, cfg.H, 0.5, kind="fancy")\n' in text
    relu = ghostwrite(nn.RNNCell(2, 3, activation="relu"))
    assert 'return RNNCell(cfg.D, cfg.H, activation="relu")' in relu
    assert "rnn_configs(cells=[LSTM])" in ghostwrite(nn.LSTM(2, 3))
    assert "RNNCell(cfg.D, cfg.H, bias=False)" in ghostwrite(nn.RNNCell(2, 3, bias=False))
    assert "RNNCell(cfg.D, cfg.H)" in ghostwrite(nn.RNNCell(2, 3))
    layer = nn.Recurrent([nn.RNNCell(2, 3), nn.GRUCell(3, 2)])
    assert "rnn_configs(cells=[RNNCell, GRUCell])" in ghostwrite(layer)


def written(own, folder):
    """Write a test file for everything, and return the paths."""
    things = [getattr(own, name) for name in [*RIGHT, "Leaky"]]
    things += [own.Scaled(2, 3, 0.5, "fancy"), nn.Linear, nn.Embedding, nn.LSTM, ops.matmul]
    paths = [folder / f"test_thing{k}.py" for k in range(len(things))]
    for path, thing in zip(paths, things, strict=True):
        path.write_text(ghostwrite(thing))
    (folder / "own_ops.py").write_text(OWN)
    return paths


def test_files_are_as_ruff_has_them(own, tmp_path):
    pytest.importorskip("ruff", reason="ruff, of the extra lint, is not installed")
    paths = [p.name for p in written(own, tmp_path)]
    for command in (["check", "--select=E,F,W,I,UP,B,PT,RUF,SIM"], ["format", "--check"]):
        call = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", *paths]
        found = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr


def test_pytest_runs_the_tests_of_cells(own, tmp_path):
    """By pytest itself, since a suite is many nodes; the dearest relations are left out."""
    (tmp_path / "test_leaky.py").write_text(ghostwrite(own.Leaky))
    (tmp_path / "test_scaled.py").write_text(ghostwrite(own.Scaled(2, 3, 0.5)))
    (tmp_path / "own_ops.py").write_text(OWN)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    call = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider",
            "-k", "integrity or body"]  # fmt: skip
    found = subprocess.run(
        call, cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    assert "3 passed" in found.stdout


def test_what_cannot_be_written_is_refused_in_words(own, monkeypatch):
    def inner(x):
        return x * 2

    for obj, error, text in [
        (3, TypeError, "ghostwrite: 3 is no primitive"),
        (int, TypeError, "ghostwrite: <class 'int'> is no primitive"),
        (inner, ValueError, "the function inner cannot be imported by a test"),
        (own.constant, ValueError, "it returned float, not a Tensor"),
        (functional.embedding, ValueError, r"embedding\(ids, table\) took none of the arrays"),
        (own.Scaled, ValueError, "Scaled needs factor; pass an instance"),
        (nn.Readout, ValueError, "Readout.* failed"),
        (own.flip, KeyError, "flip: a structural op, without a signature"),
    ]:
        with pytest.raises(error, match=text):
            ghostwrite(obj)
    monkeypatch.setattr(own.swish, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "swish", own.swish, raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "/somewhere/script.py", raising=False)
    assert "from script import swish" in ghostwrite(own.swish)
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    with pytest.raises(ValueError, match="what a session defines cannot be imported"):
        ghostwrite(own.swish)
