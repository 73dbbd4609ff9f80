"""Cells of random composition over the ops that the compiler knows, as a hypothesis strategy."""

import numpy as np
from hypothesis import strategies as st

from tinygrad_rnn import Parameter, functional, nn, ops

UNARY = {  # each keeps its values within a few units, whatever it is given
    "tanh": ops.tanh,
    "sigmoid": ops.sigmoid,
    "neg": lambda a: -a,
    "exp": lambda a: ops.exp(ops.tanh(a)),
    "log": lambda a: ops.log(ops.sigmoid(a) + 0.5),
    "sqrt": lambda a: ops.sqrt(a * a + 0.5),
    "pow": lambda a: (ops.sigmoid(a) + 0.5) ** 1.5,
    "square": lambda a: ops.tanh(a) ** 2,
    "abs": abs,
    "relu": functional.relu,
    "softmax": functional.softmax,
    "log softmax": ops.log_softmax,
    "layer norm": functional.layer_norm,
    "variance": lambda a: a - functional.var(a, axis=-1, keepdims=True),
    "logsumexp": lambda a: a - functional.logsumexp(a, keepdims=True),
    "sum": lambda a: ops.tanh(a) + a.sum(axis=-1, keepdims=True) / a.shape[1],
    "largest": lambda a: a - a.max(axis=1, keepdims=True),
    "smooth": lambda a: a.astype(a.dtype) * 0.5,
    "flip": lambda a: a[:, ::-1],
    "shift": lambda a: ops.concat(a[:, 1:], a[:, :1], axis=-1),
    "there and back": lambda a: a.reshape((-1, a.shape[1], 1)).transpose((0, 2, 1))[:, 0],
    "outer": lambda a: ops.tanh(a[:, :, None] * a[:, None, :]).sum(axis=2),
    "detached": lambda a: a.detach() * 0.5,
}
BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: ops.tanh(a) * b,
    "div": lambda a, b: a / (1 + b * b),
    "maximum": ops.maximum,
    "minimum": ops.minimum,
    "where": lambda a, b: ops.where(a < b, a * 0.5, ops.sigmoid(b)),
    "less or equal": lambda a, b: ops.where(a <= b, a, b + 0.25),
    "stack": lambda a, b: functional.stack([a, b], axis=1).sum(axis=1),
    "concat": lambda a, b: functional.split(ops.concat(a, b, axis=1), 2)[1] + a,
    "attend": lambda a, b: _attend(a, functional.stack([a, b], axis=1)),
}
WEIGHTED = {  # with a parameter of its own: its shape for a hidden size H, and what it does
    "product": (lambda H: (H, H), lambda a, w: a @ w),
    "product with a transpose": (lambda H: (H, H), lambda a, w: a @ w.T),
    "bias": (lambda H: (H,), lambda a, w: a + w),
    "leak": (lambda H: (H,), lambda a, w: a * ops.sigmoid(w)),
    "scale": (lambda H: (), lambda a, w: a * w),
    "two products": (lambda H: (H, 2 * H), lambda a, w: _gated(a @ w)),
}


def _attend(a, pair):
    """Return the mean of a pair (N, 2, H), weighted by how alike each is to `a` (N, H)."""
    scores = pair @ a.reshape((-1, a.shape[1], 1))
    return (pair * functional.softmax(ops.tanh(scores), axis=1)).sum(axis=1)


def _gated(a):
    left, right = functional.split(a, 2)
    return ops.sigmoid(left) * right


class DrawnCell(nn.Cell):
    """A cell that runs a list of (name, operands): indices into what there is so far."""

    def __init__(self, D, H, states, lines, ends, dtype=np.float64):
        super().__init__(D, H, dtype=dtype)
        self.asked = D, H, states, lines, ends
        self.lines, self.ends, self.n_states = tuple(lines), tuple(ends), states
        rng = np.random.default_rng(0)
        self.W_in = Parameter(rng.uniform(-1, 1, (D, H)).astype(dtype))
        for k, (name, *_) in enumerate(lines):
            if name in WEIGHTED:
                w = rng.uniform(-1, 1, WEIGHTED[name][0](H)) / np.sqrt(H)
                setattr(self, f"w{k}", Parameter(w.astype(dtype)))

    def initial_state(self, batch):
        zero = np.zeros((batch, self.hidden_size), self.dtype)
        return zero if self.n_states == 1 else (zero,) * self.n_states

    def step(self, x, state):
        pool = [x @ self.W_in, *(state if self.n_states > 1 else [state])]
        for k, (name, *operands) in enumerate(self.lines):
            a = [pool[i % len(pool)] for i in operands]
            if name in UNARY:
                made = UNARY[name](a[0])
            elif name in BINARY:
                made = BINARY[name](*a)
            else:
                made = WEIGHTED[name][1](a[0], getattr(self, f"w{k}"))
            pool.append(made)
        y, *new = [pool[-1 - i % len(pool)] for i in self.ends]
        new = [ops.tanh(s) for s in new]
        return y, (tuple(new) if self.n_states > 1 else new[0])

    def __repr__(self):
        return "DrawnCell({}, {}, {}, {}, {})".format(*self.asked)


NAMES = [*UNARY, *BINARY, *WEIGHTED]


@st.composite
def drawn_cells(draw, dtype=np.float64):
    """Draw a cell with one to three states and up to twelve lines."""
    states = draw(st.integers(1, 3))
    place = st.integers(0, 15)
    lines = draw(st.lists(st.tuples(st.sampled_from(NAMES), place, place), min_size=1, max_size=12))
    ends = draw(st.lists(st.integers(0, 4), min_size=1 + states, max_size=1 + states))
    return DrawnCell(draw(st.integers(1, 3)), draw(st.integers(1, 5)), states, lines, ends, dtype)
