"""A new recurrent cell in ten lines, trained on the adding problem.

The cell is a leaky integrator whose leak is learned, unit by unit: no library has it, and every
option of a recurrent layer works for it.  Two numbers of a sequence are marked; the target is
their sum (Hochreiter and Schmidhuber 1997).  Who always answers 1 has a mean squared error of 1/6.
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np
from adding import Adder, adding_problem, check, loss

from tinygrad_rnn import Parameter, Tensor, mark, nn, optim, train
from tinygrad_rnn.data import batches
from tinygrad_rnn.ops import sigmoid, tanh


class LeakyCell(nn.Cell):
    """h = (1 - a) h' + a tanh(x W_x + b + h' W_h), with a = sigmoid(s) learned."""

    def __init__(self, input_size: int, hidden_size: int, rng: Any = None) -> None:
        super().__init__(input_size, hidden_size)
        self.add_weights(rng=rng)
        self.s = Parameter(np.linspace(-2, 4, hidden_size, dtype=np.float32))  # slow and fast units

    def step(self, x: Any, state: Any) -> tuple[Tensor, Tensor]:
        """Return (h, h)."""
        a = sigmoid(self.s)
        h = (1 - a) * state + a * tanh(self.affine(x, state))
        mark(h=h)
        return h, h


SETTINGS = {
    "hidden": (32, "hidden size H"),
    "steps": (20, "length T of a sequence"),
    "samples": (4000, "training sequences"),
    "epochs": (8, "passes over them"),
}
SMALL = ["--samples", "200", "--epochs", "1", "--hidden", "8", "--steps", "6"]


def run(session: common.Session) -> dict[str, float]:
    """Train the cell; return its error on new sequences."""
    rng = np.random.default_rng(session.seed)
    layer = nn.Recurrent(LeakyCell(2, session.hidden, rng))
    model = Adder(layer, session.hidden, rng)
    session.say(f"always 1: {1 / 6:.4f}")
    session.say(model.summary())
    data = batches(
        *adding_problem(session.steps, session.samples, rng),
        axis=(1, 0), batch_size=50, rng=session.seed,
    )  # fmt: skip
    held_out = batches(
        *adding_problem(session.steps, 1000, rng), axis=(1, 0), batch_size=500, shuffle=False
    )
    optimizer = optim.Adam(model.parameters(), optim.cosine(1e-2, session.epochs * len(data)))
    session.fit(model, data, loss, optimizer, epochs=session.epochs, clip=1.0)
    leak = 1 / (1 + np.exp(-model.layer.L0["fwd"].s.data))
    session.say(f"leaks from {leak.min():.3f} to {leak.max():.3f}")
    return {"mse": train.evaluate(model, held_out, loss), "baseline": 1 / 6}


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    return common.main(__file__, __doc__, SETTINGS, run, argv, check)


if __name__ == "__main__":
    raise SystemExit(main())
