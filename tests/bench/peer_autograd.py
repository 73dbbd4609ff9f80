"""HIPS autograd: the cell in its NumPy, in the spelling that measured fastest."""

from typing import Any

import autograd.numpy as np
import numpy
from autograd import grad

from .problem import Problem, Run

try:
    from autograd.scipy.special import expit as sigmoid  # one node; needs SciPy
except ImportError:

    def sigmoid(z: Any) -> Any:
        """Logistic function."""
        return 0.5 * (np.tanh(0.5 * z) + 1.0)


def lstm(problem: Problem) -> Run:
    """Forward and backward in a loop over the steps.

    Measured: `dot` beats `matmul` at N = 1, `split` beats slices where the arrays are large.
    """
    x, H = problem.x, problem.W_h.shape[0]
    zeros = numpy.zeros((x.shape[1], H), numpy.float32)
    parts = [slice(k * H, (k + 1) * H) for k in range(4)]
    split = zeros.size >= 4096

    def loss(W_x: Any, W_h: Any, b: Any) -> Any:
        h = c = zeros
        outputs = []
        for x_t in x:
            z = np.dot(x_t, W_x) + np.dot(h, W_h) + b
            i, f, g, o = np.split(z, 4, axis=1) if split else [z[:, s] for s in parts]
            i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
            c = f * c + i * g
            h = o * np.tanh(c)
            outputs.append(h)
        return np.sum(np.concatenate(outputs))

    gradient = grad(loss, (0, 1, 2))
    return lambda: list(gradient(*problem.weights))
