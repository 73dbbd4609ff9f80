"""A hand-written LSTM with its backward through time, and the faults people make in one."""

from collections import namedtuple
from contextlib import contextmanager

import numpy as np

from .planting import Defect, edit

Step = namedtuple("Step", "x h_prev c_prev i f g o c tanh_c h")


def sigmoid(a):
    return 0.5 * np.tanh(0.5 * a) + 0.5  # analytic, and of the dtype of a


class HandLSTM:
    """``forward(x, h0, c0, W_x, W_h, b) -> (y, h_n, c_n)``, gates i, f, g, o; x is (T, N, D)."""

    names = ("x", "h0", "c0", "W_x", "W_h", "b")

    def run(self, arrays):
        x, h, c, W_x, W_h, b = arrays
        steps, H = [], h.shape[1]
        for x_t in x:
            a = x_t @ W_x + b + h @ W_h
            i, f, g, o = (a[:, k : k + H] for k in (0, H, 2 * H, 3 * H))  # faster than np.split
            i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
            h_prev, c_prev = h, c
            c = f * c + i * g
            tanh_c = np.tanh(c)
            h = o * tanh_c
            steps.append(Step(x_t, h_prev, c_prev, i, f, g, o, c, tanh_c, h))
        return steps

    def forward(self, *arrays):
        steps = self.run(arrays)
        return np.stack([s.h for s in steps]), steps[-1].h.copy(), steps[-1].c.copy()

    def vjp(self, arrays, cotangents):
        x, h0, c0, W_x, W_h, b = arrays
        T, N, D = x.shape  # noqa: RUF059  defects read it
        H = h0.shape[1]
        steps = self.run(arrays)
        shapes = (x.shape, h0.shape, c0.shape)
        g_y, g_h, g_c = (
            np.zeros(shape, b.dtype) if g is None else g
            for g, shape in zip(cotangents, ((T, N, H), *shapes[1:]), strict=True)
        )
        dx, dW_x, dW_h, db = (np.zeros(a.shape, b.dtype) for a in (x, W_x, W_h, b))
        dh, dc = g_h.copy(), g_c.copy()
        for t in reversed(range(T)):
            s = steps[t]
            dh = dh + g_y[t]
            dc = dc + dh * s.o * (1 - s.tanh_c**2)
            da_i = dc * s.g * s.i * (1 - s.i)
            da_f = dc * s.c_prev * s.f * (1 - s.f)
            da_g = dc * s.i * (1 - s.g**2)
            da_o = dh * s.tanh_c * s.o * (1 - s.o)
            da = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
            dW_x += s.x.T @ da
            dW_h += s.h_prev.T @ da
            db += da.sum(0)
            dx[t] = da @ W_x.T
            dh, dc = da @ W_h.T, dc * s.f
        return dx, dh, dc, dW_x, dW_h, db


class OnlyLast(HandLSTM):
    """h_n alone is the output: the gradient of an early step is what all later ones leave of it."""

    def forward(self, *arrays):
        return (super().forward(*arrays)[1],)

    def vjp(self, arrays, cotangents):
        x, h0 = arrays[:2]
        g_y = np.zeros((*x.shape[:2], h0.shape[1]), x.dtype)
        return super().vjp(arrays, [g_y, cotangents[0], None])


def arrays_of(cfg):
    """Return the inputs of the hand-written LSTM for a configuration."""
    rng = np.random.default_rng(cfg.seed)

    def draw(*shape):
        values = rng.integers(1, 9, shape) * rng.choice([-1, 1], shape) / 8
        return np.asarray(values, cfg.dtype)

    states = [draw(cfg.N, cfg.H) * np.asarray(cfg.state == "random", cfg.dtype) for _ in "hc"]
    x, W_x, W_h = (draw(cfg.T, cfg.N, cfg.D), draw(cfg.D, 4 * cfg.H), draw(cfg.H, 4 * cfg.H))
    return [x, *states, W_x, W_h, draw(4 * cfg.H)]


CARRY = "dh, dc = da @ W_h.T, dc * s.f"
RESULT = "return dx, dh, dc, dW_x, dW_h, db"
RUN = "steps = self.run(arrays)"


def truncation(k):
    """Plant a backward that is cut off before step k, counted from 1: the state is detached."""
    cut = f"\n        dh, dc = (0 * dh, 0 * dc) if t == {k} else (dh, dc)"
    return edit(HandLSTM, "vjp", (CARRY, CARRY + cut))


def _changed(expression):
    """Plant by passing every gradient through an expression in `d`."""
    return edit(
        HandLSTM,
        "vjp",
        (
            RESULT,
            (
                f"grads = dx, dh, dc, dW_x, dW_h, db\n"
                f"    return tuple([{expression} for d in grads])"
            ),
        ),
    )


@contextmanager
def _stale_tape():
    """Plant a backward that reads what the last forward saved, whatever it is asked for."""
    saves = edit(HandLSTM, "forward", (RUN, f"{RUN}\n    self.tape = steps"))
    reads = edit(HandLSTM, "vjp", (RUN, "steps = getattr(self, 'tape', None) or self.run(arrays)"))
    with saves(), reads():
        yield


def _row(name, mechanism, bites, *changes, plant=None):
    return Defect(name, "lstm", mechanism, bites, plant or edit(HandLSTM, "vjp", *changes))


DEFECTS = [
    _row(
        "truncated at step k",
        "the state is detached before one step (every k: below)",
        "T > k",
        plant=truncation(48),
    ),
    _row(
        "float32 inside",
        "what the backward saved was rounded to float32",
        "float64",
        (
            RUN,
            (
                "steps = [Step(*(a.astype('f4').astype(b.dtype) for a in s))"
                " for s in self.run(arrays)]"
            ),
        ),
    ),
    _row(
        "relative error 2e-6",
        "the gradient of W_h is 2e-6 too large",
        "anywhere",
        (RESULT, "return dx, dh, dc, dW_x, dW_h * b.dtype.type(1 + 2e-6), db"),
    ),
    _row(
        "clipped on the way",
        "the gradient carried in h is clipped to [-1, 1]",
        "large gradients",
        (CARRY, "dh, dc = np.clip(da @ W_h.T, -1, 1), dc * s.f"),
    ),
    _row(
        "wrong if T == 1",
        "a shortcut for one step forgets the forget gate",
        "T = 1",
        (CARRY, "dh, dc = da @ W_h.T, dc * (s.f if T > 1 else 1)"),
    ),
    _row(
        "wrong if N == 1",
        "squeeze before the sum over the batch",
        "N = 1",
        ("da.sum(0)", "da.squeeze().sum(0)"),
    ),
    _row(
        "wrong if H == 1",
        "a shortcut for one unit reads h_t for h_{t-1}",
        "H = 1",
        ("s.h_prev.T @ da", "(s.h_prev if H > 1 else s.h).T @ da"),
    ),
    _row(
        "wrong if D == H",
        "each gate's W_x is not transposed where the shape permits it",
        "D = H",
        (
            "dx[t] = da @ W_x.T",
            (
                "W = W_x if D != H else "
                "np.concatenate([w.T for w in np.split(W_x, 4, 1)], 1)\n        dx[t] = da @ W.T"
            ),
        ),
    ),
    _row(
        "wrong if h0 == 0",
        "a zero initial state is taken for none, and gets no gradient",
        "a zero state",
        (CARRY, f"{CARRY}\n        dh = dh if t or h0.any() else 0 * dh"),
    ),
    _row(
        "wrong if T > 4",
        "room for four steps in the sum of W_x",
        "T > 4",
        ("dW_x += s.x.T @ da", "dW_x += s.x.T @ da if t < 4 else 0 * dW_x"),
    ),
    _row(
        "small entries flushed",
        "entries below 1e-5 become 0",
        "vanishing gradients",
        plant=_changed("np.where(np.abs(d) < 1e-5, 0 * d, d)"),
    ),
    _row(
        "cotangent mutated",
        "the cotangent of h_n is the accumulator",
        "anywhere",
        ("g_h.copy()", "g_h"),
        ("dh = dh + g_y[t]", "dh += g_y[t]"),
    ),
    _row(
        "input mutated",
        "the gradient of x is written into x",
        "anywhere",
        (
            "dx, dW_x, dW_h, db = (np.zeros(a.shape, b.dtype) for a in (x, W_x, W_h, b))",
            "dW_x, dW_h, db = (np.zeros(a.shape, b.dtype) for a in (W_x, W_h, b))\n    dx = x",
        ),
    ),
    _row(
        "accumulator kept",
        "the sum for W_h is not set to zero between calls",
        "a second call",
        (
            "dh, dc = g_h.copy(), g_c.copy()",
            (
                "dh, dc = g_h.copy(), g_c.copy()\n"
                "    if getattr(self, 'kept', dW_h[:0]).shape != dW_h.shape:\n"
                "        self.kept = dW_h\n    dW_h = self.kept"
            ),
        ),
    ),
    _row(
        "buffer used again",
        "each call returns the same array for W_h, written anew",
        "two results held at once",
        (
            RESULT,
            (
                "if getattr(self, 'room', dW_h[:0]).shape != dW_h."
                "shape:\n        self.room = dW_h\n    self.room[...] = dW_h\n"
                "    return dx, dh, dc, dW_x, self.room, db"
            ),
        ),
    ),
    _row(
        "tape of the last call",
        "the backward reads what the last forward saved",
        "a forward in between",
        plant=_stale_tape,
    ),
    _row(
        "weights cached",
        "W_h is read at the first call and never again",
        "a second point",
        (
            "H = h0.shape[1]",
            (
                "H = h0.shape[1]\n"
                "    if getattr(self, 'W', W_h[:0]).shape != W_h.shape:\n"
                "        self.W = W_h.copy()"
            ),
        ),
        ("da @ W_h.T", "da @ self.W.T"),
    ),
    _row(
        "gates swapped",
        "two gates change places in the gradient of b",
        "anywhere",
        ("db += da.sum(0)", "db += np.concatenate([da_i, da_g, da_f, da_o], axis=1).sum(0)"),
    ),
    _row(
        "forget gate sees c_t",
        "its gradient takes the new cell state for the old",
        "anywhere",
        ("dc * s.c_prev", "dc * s.c"),
    ),
    _row(
        "no carry of c",
        "the gradient of c does not reach the step before",
        "T > 1, c0",
        (CARRY, "dh, dc = da @ W_h.T, 0 * dc"),
    ),
    _row(
        "carry without f",
        "the gradient of c passes by the forget gate",
        "T > 1, c0",
        (CARRY, "dh, dc = da @ W_h.T, dc"),
    ),
    _row(
        "no output-gate path",
        "h = o tanh(c) is differentiated by c alone",
        "anywhere",
        ("dh * s.tanh_c * s.o", "0 * dh * s.tanh_c * s.o"),
    ),
    _row(
        "Jacobians in order of time",
        "the sweep multiplies the steps' Jacobians first to last",
        "T > 1",
        ("s = steps[t]", "s = steps[T - 1 - t]"),
    ),
    _row("b averaged over the batch", "mean for sum", "N > 1", ("da.sum(0)", "da.mean(0)")),
    _row(
        "dW divided by T",
        "the sum over time is a mean",
        "T > 1",
        (RESULT, "return dx, dh, dc, dW_x / b.dtype.type(T), dW_h, db"),
    ),
    _row(
        "not deterministic",
        "the batch is summed in a random order",
        "N > 2, rounding alone",
        ("da.sum(0)", "da[np.random.default_rng().permutation(N)].sum(0)"),
    ),
    _row(
        "wrong dtype",
        "the gradient of b is float64 whatever b is",
        "float32",
        (RESULT, "return dx, dh, dc, dW_x, dW_h, db.astype(np.float64)"),
    ),
    _row(
        "wrong shape",
        "the gradient of b keeps the axis that was summed",
        "anywhere",
        (RESULT, "return dx, dh, dc, dW_x, dW_h, db[None]"),
    ),
    _row(
        "c_n ignored",
        "no cotangent enters through the last cell state",
        "a loss on c_n",
        ("dh, dc = g_h.copy(), g_c.copy()", "dh, dc = g_h.copy(), 0 * g_c"),
    ),
    _row(
        "last step's loss only",
        "the cotangents of y before the last step are dropped",
        "T > 1",
        ("dh = dh + g_y[t]", "dh = dh + g_y[t] if t == T - 1 else dh"),
    ),
    _row(
        "cotangents overwritten",
        "h_n's cotangent replaces that of the last y",
        "both at once",
        ("dh = dh + g_y[t]", "dh = g_h if t == T - 1 and g_h.any() else dh + g_y[t]"),
    ),
    _row(
        "None means ones",
        "a cotangent that is absent counts as ones",
        "an unused output",
        ("np.zeros(shape, b.dtype) if g is None", "np.ones(shape, b.dtype) if g is None"),
    ),
]
