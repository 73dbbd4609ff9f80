"""PyTorch beside the compiled layers: its fused LSTM, and each cell composed of its functions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from .compiled import Case, Contestant
from .problem import Array

torch.set_num_threads(1)

Weights = dict[str, Tensor]
Step = Callable[[Weights, Tensor, Any], tuple[Tensor, Any]]


def use_threads(count: int) -> None:
    """Let PyTorch use so many threads."""
    torch.set_num_threads(count)


def affine(P: Weights, x: Tensor, h: Tensor) -> Tensor:
    """The pre-activations, both sums inside the matrix products: PyTorch's fastest way."""
    return torch.addmm(torch.addmm(P["b"], x, P["W_x"]), h, P["W_h"])


def lstm(P: Weights, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Gates i, f, g, o."""
    h, c = state
    i, f, g, o = affine(P, x, h).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return h, (h, c)


def gru(P: Weights, x: Tensor, h: Any) -> tuple[Tensor, Any]:
    """Gates r, z, n; the reset gate acts before the product."""
    H = h.shape[1]
    x_rz, x_n = torch.addmm(P["b"], x, P["W_x"]).split([2 * H, H], 1)
    r, z = torch.sigmoid(torch.addmm(x_rz, h, P["W_rz"])).chunk(2, 1)
    n = torch.tanh(torch.addmm(x_n, r * h, P["W_n"]))
    h = (1 - z) * n + z * h
    return h, h


def gru_parts(P: Weights) -> Weights:
    """The two parts of W_h, cut once: a cut at each step would add up whole gradients."""
    W = P["W_h"]
    return {**P, "W_rz": W[:, : 2 * len(W)], "W_n": W[:, 2 * len(W) :]}


def peephole(P: Weights, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Gates that see the cell state, the output gate the new one."""
    h, c = state
    i, f, g, o = affine(P, x, h).chunk(4, 1)
    i, f = torch.sigmoid(i + P["p_i"] * c), torch.sigmoid(f + P["p_f"] * c)
    c = f * c + i * torch.tanh(g)
    h = torch.sigmoid(o + P["p_o"] * c) * torch.tanh(c)
    return h, (h, c)


def layer_normed(P: Weights, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Both products normalised over all gates, and the cell state for the output."""
    h, c = state
    wide = P["b"].shape
    a = layer_norm(h @ P["W_h"], wide, P["gain_h"], P["b"])
    a = a + layer_norm(x @ P["W_x"], wide, P["gain_x"])
    i, f, g, o = a.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(layer_norm(c, c.shape[1:], P["gain_c"], P["bias_c"]))
    return h, (h, c)


def leaky(P: Weights, x: Tensor, h: Any) -> tuple[Tensor, Any]:
    """The cell of the README."""
    a = torch.sigmoid(P["s"])
    h = (1 - a) * h + a * torch.tanh(affine(P, x, h))
    return h, h


STEPS: dict[str, tuple[Step, int, Callable[[Weights], Weights]]] = {  # parts of the state
    "LSTM": (lstm, 2, dict),
    "GRU, reset before": (gru, 1, gru_parts),
    "peephole LSTM": (peephole, 2, dict),
    "layer-norm LSTM": (layer_normed, 2, dict),
    "leaky cell of the README": (leaky, 1, dict),
}


def composed(case: Case) -> Contestant:
    """Forward and backward of the cell in a loop over the steps."""
    step, parts, prepare = STEPS[case.cell]
    H, N, _, _ = case.size
    x, cotangent = torch.tensor(case.x).requires_grad_(), torch.tensor(case.cotangent)
    P = {k: torch.tensor(w).requires_grad_() for k, w in case.weights.items()}

    def run() -> None:
        for p in (x, *P.values()):
            p.grad = None
        zero = torch.zeros(N, H)
        state: Any = (zero, zero) if parts == 2 else zero
        weights, outputs = prepare(P), []
        for x_t in x.unbind(0):
            y, state = step(weights, x_t, state)
            outputs.append(y)
        torch.stack(outputs).backward(cotangent)

    return Contestant(run, lambda: read({"x": x, **P}))


def read(leaves: Weights) -> dict[str, Array]:
    """The gradients as arrays."""
    return {k: p.grad.numpy() for k, p in leaves.items() if p.grad is not None}


def module(case: Case) -> torch.nn.LSTM:
    """Build ``torch.nn.LSTM`` with the weights of a case; its second bias is 0."""
    H, _, _, D = case.size
    made = torch.nn.LSTM(D, H)
    W = {k: torch.tensor(w) for k, w in case.weights.items()}
    with torch.no_grad():
        made.weight_ih_l0.copy_(W["W_x"].T)
        made.weight_hh_l0.copy_(W["W_h"].T)
        made.bias_ih_l0.copy_(W["b"])
        made.bias_hh_l0.zero_()
    return made


def fused(case: Case) -> Contestant:
    """Forward and backward of ``torch.nn.LSTM``."""
    made = module(case)
    x, cotangent = torch.tensor(case.x).requires_grad_(), torch.tensor(case.cotangent)
    leaves = [x, *made.parameters()]

    def run() -> None:
        for p in leaves:
            p.grad = None
        out, _ = made(x)
        out.backward(cotangent)

    def gradients() -> dict[str, Array]:
        named = {"x": x, "W_x": made.weight_ih_l0, "W_h": made.weight_hh_l0, "b": made.bias_ih_l0}
        return {k: g.T if k in ("W_x", "W_h") else g for k, g in read(named).items()}

    return Contestant(run, gradients)


def forward(case: Case) -> Callable[[], Any]:
    """The forward pass of ``torch.nn.LSTM`` alone: what it returns keeps its graph alive."""
    made, x = module(case), torch.tensor(case.x).requires_grad_()
    return lambda: made(x)
