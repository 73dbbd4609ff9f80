"""A new recurrent cell in ten lines, trained on the adding problem.

The cell is a leaky integrator whose leak is learned, unit by unit: no library has it, and every
option of a recurrent layer works for it.  Two numbers of a sequence are marked; the target is
their sum (Hochreiter and Schmidhuber 1997).  Who always answers 1 has a mean squared error of 1/6.
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np

from tinygrad_rnn import Module, Parameter, Tensor, mark, nn, optim, train
from tinygrad_rnn import functional as F
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


class Adder(Module):
    """The cell as a layer, and its last state read out."""

    def __init__(self, hidden_size: int, rng: Any = None) -> None:
        rng = np.random.default_rng(rng)
        self.layer = nn.Recurrent(LeakyCell(2, hidden_size, rng))
        self.linear = nn.Linear(hidden_size, 1, rng=rng)

    def forward(self, x: Any) -> Tensor:
        """Return the sum (N, 1) for x (T, N, 2)."""
        _, h = self.layer(x)
        y: Tensor = self.linear(h)
        return y


def loss(model: Module, batch: Any, state: Any) -> tuple[Tensor, Any]:
    """Return the mean squared error of a batch."""
    x, y = batch
    return F.mse_loss(model(x), y), None


def adding_problem(count: int, T: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Return x (T, count, 2), numbers and marks, and the sums (count, 1)."""
    numbers = rng.random((T, count), dtype=np.float32)
    marks = np.zeros_like(numbers)
    half = T // 2
    marks[rng.integers(0, half, count), np.arange(count)] = 1
    marks[rng.integers(half, T, count), np.arange(count)] = 1
    return np.stack([numbers, marks], axis=2), (numbers * marks).sum(0)[:, None]


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
    model = Adder(session.hidden, rng)
    session.say(model.summary())
    data = batches(
        *adding_problem(session.samples, session.steps, rng),
        axis=(1, 0), batch_size=50, rng=session.seed,
    )  # fmt: skip
    held_out = batches(
        *adding_problem(1000, session.steps, rng), axis=(1, 0), batch_size=500, shuffle=False
    )
    optimizer = optim.Adam(model.parameters(), optim.cosine(1e-2, session.epochs * len(data)))
    session.fit(model, data, loss, optimizer, epochs=session.epochs, clip=1.0)
    leak = 1 / (1 + np.exp(-model.layer.L0["fwd"].s.data))
    session.say(f"leaks from {leak.min():.3f} to {leak.max():.3f}; always 1: {1 / 6:.4f}")
    return {"mse": train.evaluate(model, held_out, loss), "baseline": 1 / 6}


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    return common.main(__file__, __doc__, SETTINGS, run, argv, check)


def check(args: Any) -> str | None:
    """Return what is wrong with the settings."""
    if args.steps < 2:
        return f"--steps {args.steps}: expected at least 2, one for each number of the sum"
    return None


if __name__ == "__main__":
    raise SystemExit(main())
