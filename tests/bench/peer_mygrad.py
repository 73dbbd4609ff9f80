"""MyGrad: the cell on its tensors, with its sigmoid, without memory guarding."""

import sys

import mygrad as mg
import numpy as np
from mygrad.nnet.activations import sigmoid

from .problem import Array, Problem, Run

mg.turn_memory_guarding_off()


def lstm(problem: Problem) -> Run:
    """Forward and backward in a loop over the steps; `backward` recurses as deep as the graph."""
    x, H = problem.x, problem.W_h.shape[0]
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + 20 * len(x)))
    P = [mg.tensor(w.copy()) for w in problem.weights]
    zeros = np.zeros((x.shape[1], H), np.float32)
    parts = [(slice(None), slice(k * H, (k + 1) * H)) for k in range(4)]

    def run() -> list[Array]:
        for p in P:
            p.null_grad()
        W_x, W_h, b = P
        h = c = mg.tensor(zeros, constant=True)
        outputs = []
        for x_t in x:
            z = mg.matmul(x_t, W_x) + mg.matmul(h, W_h) + b
            i, f, g, o = (z[s] for s in parts)
            i, f, g, o = sigmoid(i), sigmoid(f), mg.tanh(g), sigmoid(o)
            c = f * c + i * g
            h = o * mg.tanh(c)
            outputs.append(h)
        mg.concatenate(outputs).sum().backward()
        return [p.grad for p in P]

    return run
