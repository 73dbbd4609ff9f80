"""The peer in the first row: PyTorch eager, the cell composed of its primitives."""

from collections.abc import Callable

import numpy as np
import torch

from .problem import Array, Pick, Problem, Run, Sampler

torch.set_num_threads(1)

Affine = Callable[[torch.Tensor, torch.Tensor, list[torch.Tensor]], torch.Tensor]


def literal(x: torch.Tensor, h: torch.Tensor, P: list[torch.Tensor]) -> torch.Tensor:
    """The pre-activations as the equation has them, and as ours does."""
    return x @ P[0] + h @ P[1] + P[2]


def addmm(x: torch.Tensor, h: torch.Tensor, P: list[torch.Tensor]) -> torch.Tensor:
    """The same with both sums inside the matrix products: two calls instead of four."""
    return torch.addmm(torch.addmm(P[2], x, P[0]), h, P[1])


def step(z: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates i, f, g, o from the pre-activations; the new h and c."""
    i, f, g, o = z.chunk(4, 1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * c + i * g
    return o * torch.tanh(c), c


def lstm(problem: Problem, affine: Affine = literal) -> Run:
    """Forward and backward of the composed cell in a loop over the steps."""
    x = torch.from_numpy(problem.x)
    P = [torch.from_numpy(w.copy()).requires_grad_() for w in problem.weights]
    shape = (x.shape[1], P[1].shape[0])

    def run() -> list[Array]:
        for p in P:
            p.grad = None
        h = c = torch.zeros(shape)
        outputs = []
        for x_t in x.unbind(0):
            h, c = step(affine(x_t, h, P), c)
            outputs.append(h)
        torch.stack(outputs).sum().backward()
        return [p.grad.numpy() for p in P if p.grad is not None]

    return run


def sampler(weights: dict[str, Array], pick: Pick, affine: Affine = literal) -> Sampler:
    """Embedding, composed LSTM, linear layer, one character at a time, without a graph."""
    W = {k: torch.from_numpy(np.array(v)).requires_grad_() for k, v in weights.items()}
    P = [W["W_x"], W["W_h"], W["b"]]
    E, V, bias, H = W["E"], W["V"], W["c"], weights["W_h"].shape[0]

    def read(h: torch.Tensor) -> torch.Tensor:
        return torch.addmm(bias, h, V) if affine is addmm else h @ V + bias

    def run(length: int) -> list[int]:
        text, char = [], 0
        with torch.no_grad():
            h = c = torch.zeros(1, H)
            for n in range(length):
                h, c = step(affine(E[char : char + 1], h, P), c)
                char = pick(read(h).numpy()[0], n)
                text.append(char)
        return text

    return run
