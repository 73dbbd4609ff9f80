"""Back-propagation through time by hand, beside the tape: the same gradients to 1e-12.

The loop that everybody derives once for h(t) = tanh(W h(t-1) + U x(t) + b), o(t) = V h(t) + c and
the cross entropy of softmax(o), equations (6) to (13), on a line of text, one character a step.
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np
import numpy.typing as npt

from tinygrad_rnn import functional as F
from tinygrad_rnn import nn

Array = npt.NDArray[np.float64]
TEXT = "backpropagation through time is the chain rule, step by step"


def by_hand(weights: dict[str, Array], x: Array, d: Array) -> tuple[float, dict[str, Array]]:
    """Return E and its gradients for inputs x (T, D) and one-hot targets d (T, K)."""
    U, W, V, b, c = (weights[k] for k in "UWVbc")
    T, H = len(x), len(W)
    h = np.zeros((T + 1, H))  # h[-1] is the initial state: row T, as long as it is zero
    y = np.zeros_like(d)
    for t in range(T):
        h[t] = np.tanh(W @ h[t - 1] + U @ x[t] + b)
        o = V @ h[t] + c
        y[t] = np.exp(o - o.max()) / np.exp(o - o.max()).sum()
    g = {k: np.zeros_like(a) for k, a in weights.items()}
    dh_next = np.zeros(H)
    for t in reversed(range(T)):
        do = y[t] - d[t]
        g["V"] += np.outer(do, h[t])
        g["c"] += do
        dh = V.T @ do + dh_next  # from the output, and from the next step
        da = (1 - h[t] ** 2) * dh
        g["U"] += np.outer(da, x[t])
        g["W"] += np.outer(da, h[t - 1])
        g["b"] += da
        dh_next = W.T @ da
    return float(-(d * np.log(y)).sum()), g


def by_tape(weights: dict[str, Array], x: Array, d: Array) -> tuple[float, dict[str, Array]]:
    """Return the same by unrolling the layer and calling ``backward()``."""
    net = nn.from_lecture(**weights)
    o, _ = net(x)
    loss = F.cross_entropy(o, d)
    loss.backward()
    names = {
        "U": "layer.L0.fwd.W_x",
        "W": "layer.L0.fwd.W_h",
        "b": "layer.L0.fwd.b",
        "V": "linear.W",
        "c": "linear.b",
    }
    gradients = dict(net.named_parameters())
    return loss.item(), {k: _gradient(gradients[name]) for k, name in names.items()}


def _gradient(p: Any) -> Array:
    """Return a gradient in the lecture's column form."""
    g: Array = p.grad
    return g.T if g.ndim > 1 else g


SETTINGS = {
    "hidden": (20, "hidden size H"),
    "text": (TEXT, "what to predict, character by character"),
}
SMALL = ["--hidden", "5"]


def run(session: common.Session) -> dict[str, float]:
    """Compare the two on one text; return the largest relative difference."""
    letters = sorted(set(session.text))
    one_hot = F.one_hot([letters.index(a) for a in session.text], len(letters), np.float64)
    x, d = one_hot[:-1], one_hot[1:]
    rng = np.random.default_rng(session.seed)
    D, H = len(letters), session.hidden
    weights = {
        "U": rng.standard_normal((H, D)) / np.sqrt(D),
        "W": rng.standard_normal((H, H)) / np.sqrt(H),
        "V": rng.standard_normal((D, H)) / np.sqrt(H),
        "b": 0.1 * rng.standard_normal(H),
        "c": 0.1 * rng.standard_normal(D),
    }
    (e_hand, hand), (e_tape, tape) = by_hand(weights, x, d), by_tape(weights, x, d)
    session.say(f"{len(x)} steps, {D} characters, H = {H}")
    session.say(
        f"baseline T ln V = {len(x) * np.log(D):.3f}, E by hand {e_hand:.3f}, by tape {e_tape:.3f}"
    )
    session.say(
        f"{'gradient':<8}  {'shape':<9}  {'norm by hand':>12}  {'by tape':>12}  relative difference"
    )
    worst = abs(e_hand - e_tape) / e_hand
    for k, g in hand.items():
        difference = float(np.linalg.norm(g - tape[k]) / np.linalg.norm(g))
        worst = max(worst, difference)
        norms = f"{np.linalg.norm(g):12.6f}  {np.linalg.norm(tape[k]):12.6f}"
        session.say(f"dE/d{k:<4}  {g.shape!s:<9}  {norms}  {difference:.1e}")
    return {"difference": worst, "loss": e_tape}


def check(args: Any) -> str | None:
    """Return what is wrong with the settings."""
    if len(set(args.text)) < 2:
        return f"--text {args.text!r}: expected at least two different characters"
    return None


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    return common.main(__file__, __doc__, SETTINGS, run, argv, check)


if __name__ == "__main__":
    raise SystemExit(main())
