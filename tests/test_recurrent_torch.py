"""Layers against PyTorch in float64 with the same weights: values and all gradients."""

import numpy as np
import pytest

from tinygrad_rnn import Tensor
from tinygrad_rnn.nn import GRU, LSTM, RNN

from .test_cells import flatten, randomise

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

D, H = 3, 4
KINDS = {
    "rnn-tanh": (RNN, {"activation": "tanh"}, "RNN", {"nonlinearity": "tanh"}),
    "rnn-relu": (RNN, {"activation": "relu"}, "RNN", {"nonlinearity": "relu"}),
    "lstm": (LSTM, {}, "LSTM", {}),
    "gru": (GRU, {}, "GRU", {}),
}
ARGUMENTS = ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
kinds = pytest.mark.parametrize("kind", KINDS)
structures = pytest.mark.parametrize(
    ("layers", "bidirectional"), [(1, False), (3, False), (1, True), (2, True)]
)


def pair(kind, layers=1, bidirectional=False, bias=True, batch_first=False):
    """Return our layer and PyTorch's with the same weights."""
    cls, settings, name, theirs = KINDS[kind]
    shared = (D, H, layers, bias, batch_first, 0.0, bidirectional)
    ours = randomise(cls(*shared, dtype=np.float64, rng=0, **settings), seed=1, scale=0.6)
    names = ("input_size", "hidden_size", *ARGUMENTS)
    peer = getattr(torch.nn, name)(**dict(zip(names, shared, strict=True)), **theirs).double()
    with torch.no_grad():
        for k, side, cell in ours.cells():
            end = f"l{k}" + ("_reverse" if side == "rev" else "")
            getattr(peer, f"weight_ih_{end}").copy_(torch.from_numpy(cell.W_x.data.T.copy()))
            getattr(peer, f"weight_hh_{end}").copy_(torch.from_numpy(cell.W_h.data.T.copy()))
            if bias:
                getattr(peer, f"bias_ih_{end}").copy_(torch.from_numpy(cell.b.data))
                second = getattr(peer, f"bias_hh_{end}").zero_()
                if name == "GRU":
                    second[2 * H :] = torch.from_numpy(cell.b_hn.data)
    return ours, peer


def ported(peer, ours):
    """Return the gradients of PyTorch's weights under our names and in our shapes."""
    found = {}
    for k, side, cell in ours.cells():
        end, place = f"l{k}" + ("_reverse" if side == "rev" else ""), f"L{k}.{side}"
        found[f"{place}.W_x"] = getattr(peer, f"weight_ih_{end}").grad.numpy().T
        found[f"{place}.W_h"] = getattr(peer, f"weight_hh_{end}").grad.numpy().T
        if hasattr(cell, "b"):
            found[f"{place}.b"] = getattr(peer, f"bias_ih_{end}").grad.numpy()
        if hasattr(cell, "b_hn"):
            found[f"{place}.b_hn"] = getattr(peer, f"bias_hh_{end}").grad.numpy()[2 * H :]
    return found


def compare(ours, peer, x, state, lengths=None):
    """Run both on the same data, pull the same cotangents back, and compare everything."""
    rng = np.random.default_rng(9)
    x1 = Tensor(x, requires_grad=True)
    x2 = torch.tensor(x, requires_grad=True)
    s1 = s2 = None
    if state is not None:
        s1 = tuple([Tensor(s, requires_grad=True) for s in state])
        s2 = tuple([torch.tensor(s, requires_grad=True) for s in state])
    unwrap = (lambda s: s) if isinstance(ours, LSTM) else (lambda s: s if s is None else s[0])
    out1, final1 = ours(x1, unwrap(s1), lengths=lengths)
    if lengths is None:
        out2, final2 = peer(x2, unwrap(s2))
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x2, torch.tensor(lengths), peer.batch_first, enforce_sorted=False
        )
        out2, final2 = peer(packed, unwrap(s2))
        out2, _ = torch.nn.utils.rnn.pad_packed_sequence(
            out2, peer.batch_first, total_length=x.shape[1 if peer.batch_first else 0]
        )
    values1 = [out1, *flatten(final1)]
    values2 = [out2, *flatten(final2)]
    assert len(values1) == len(values2)
    weights = [rng.standard_normal(v.shape) for v in values1]
    for a, b in zip(values1, values2, strict=True):
        np.testing.assert_allclose(a.data, b.detach().numpy(), rtol=1e-11, atol=1e-13)
    sum(((v * w).sum() for v, w in zip(values1, weights, strict=True)), Tensor(0.0)).backward()
    pairs = zip(values2, weights, strict=True)
    sum((v * torch.from_numpy(w)).sum() for v, w in pairs).backward()
    want = ported(peer, ours) | {"x": x2.grad.numpy()}
    want |= {f"state{k}": s.grad.numpy() for k, s in enumerate(s2 or ())}
    got = {name: p.grad for name, p in ours.named_parameters()} | {"x": x1.grad}
    got |= {f"state{k}": s.grad for k, s in enumerate(s1 or ())}
    assert set(got) == set(want)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-9, atol=1e-12, err_msg=name)


def data(ours, *lead):
    """Return an input of the leading shape, and an initial state as a tuple of arrays."""
    rng = np.random.default_rng(4)
    rows = ours.num_layers * ours.num_directions
    batch = lead[0 if ours.batch_first else 1 :][:1] if len(lead) == 2 else ()
    count = 2 if isinstance(ours, LSTM) else 1
    state = tuple([rng.standard_normal((rows, *batch, H)) for _ in range(count)])
    return rng.standard_normal((*lead, D)), state


@kinds
@structures
@pytest.mark.parametrize("start", ["zero", "given"])
def test_values_and_gradients(kind, layers, bidirectional, start):
    ours, peer = pair(kind, layers, bidirectional)
    x, state = data(ours, 6, 3)
    compare(ours, peer, x, state if start == "given" else None)


@kinds
@structures
@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_ragged_batches(kind, layers, bidirectional, batch_first):
    ours, peer = pair(kind, layers, bidirectional, batch_first=batch_first)
    x, state = data(ours, *((4, 6) if batch_first else (6, 4)))
    compare(ours, peer, x, state, lengths=[2, 5, 1, 3])


@kinds
def test_without_biases(kind):
    ours, peer = pair(kind, 2, bias=False)
    x, state = data(ours, 4, 2)
    compare(ours, peer, x, state)


@kinds
@pytest.mark.parametrize("batch_first", [False, True])
def test_batch_first_and_unbatched(kind, batch_first):
    ours, peer = pair(kind, 2, True, batch_first=batch_first)
    compare(ours, peer, *data(ours, 3, 5))
    ours, peer = pair(kind, 2, True, batch_first=batch_first)
    compare(ours, peer, *data(ours, 5))


@kinds
def test_float32_agrees_to_its_precision(kind):
    ours, peer = pair(kind, 2, True)
    x, _ = data(ours, 6, 3)
    ours.astype(np.float32)
    out, _ = ours(x)
    want, _ = peer.float()(torch.tensor(x, dtype=torch.float32))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out.data, want.detach().numpy(), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(("cls", "name"), [(LSTM, "LSTM"), (GRU, "GRU")])
def test_the_arguments_are_in_the_order_of_pytorch(cls, name):
    values = (2, False, True, 0.25, True)
    peer = getattr(torch.nn, name)(D, H, *values)
    ours = cls(D, H, *values)
    for attribute in ("num_layers", "batch_first", "dropout", "bidirectional"):
        assert getattr(ours, attribute) == getattr(peer, attribute)
    assert peer.bias is False
    assert not any(name.endswith("b") for name, _ in ours.named_parameters())
