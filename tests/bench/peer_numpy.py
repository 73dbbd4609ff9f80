"""The expert's baseline: back-propagation through time written by hand in NumPy."""

import numpy as np

from .problem import Array, Problem, Run


def lstm(problem: Problem) -> Run:
    """One product for the inputs of all steps, one for each weight's gradient, nothing superfluous.

    All four gates are one tanh, since sigmoid(z) = (1 + tanh(z/2)) / 2, and every factor of the
    backward pass that needs no gradient is formed for all steps at once.
    """
    (T, N, D), H = problem.x.shape, problem.W_h.shape[0]
    x, (W_x, W_h, b), dtype = problem.x, problem.weights, problem.x.dtype
    scale = np.full((4, 1), 0.5, dtype)
    scale[2] = 1
    shift = 1 - scale
    row = np.broadcast_to(scale, (4, H)).reshape(4 * H)

    def run() -> list[Array]:
        A = (x.reshape(T * N, D) @ (W_x * row) + b * row).reshape(T, N, 4, H)
        U = W_h * row
        hs, cs = np.zeros((T + 1, N, H), dtype), np.zeros((T + 1, N, H), dtype)
        tanh_c = np.empty((T, N, H), dtype)
        for t in range(T):
            a = A[t]
            a += (hs[t] @ U).reshape(N, 4, H)
            np.tanh(a, out=a)
            a *= scale
            a += shift
            c, th = cs[t + 1], tanh_c[t]
            np.multiply(a[:, 1], cs[t], out=c)
            c += a[:, 0] * a[:, 2]
            np.tanh(c, out=th)
            np.multiply(a[:, 3], th, out=hs[t + 1])

        i, f, g, o = A[:, :, 0], A[:, :, 1], A[:, :, 2], A[:, :, 3]
        through = o * (1 - tanh_c * tanh_c)  # dc from dh
        F = A * (1 - A)  # da from dc (i, f, g) and from dh (o)
        F[:, :, 0] *= g
        F[:, :, 1] *= cs[:-1]
        np.multiply(1 - g * g, i, out=F[:, :, 2])
        F[:, :, 3] *= tanh_c
        dY, back = np.ones((T, N, H), dtype), np.ascontiguousarray(W_h.T)
        dh, dc = np.zeros((N, H), dtype), np.zeros((N, H), dtype)
        for t in reversed(range(T)):
            da = F[t]
            dh += dY[t]
            dc += dh * through[t]
            da[:, :3] *= dc[:, None]
            da[:, 3] *= dh
            dh = da.reshape(N, 4 * H) @ back
            dc *= f[t]
        rows = F.reshape(T * N, 4 * H)
        return [x.reshape(T * N, D).T @ rows, hs[:-1].reshape(T * N, H).T @ rows, rows.sum(axis=0)]

    return run
