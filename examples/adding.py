"""The adding problem asks whether a network can keep two numbers over many steps.

The lecture's long-term dependencies, in the test with which the LSTM was introduced (Hochreiter and
Schmidhuber 1997), in its modern form.  Every step brings a number in [0, 1] and a mark; two numbers
are marked, one in each half of the sequence, and after the last step their sum is asked for.  Who
always answers 1 has a mean squared error of 1/6 (papers print .1767).  An LSTM of 8 units learns
it.  Over 50 steps the plain tanh RNN gets part of the way; over 150 its gradients have vanished,
and it stays near 1/6 for as long as the LSTM needs.

    python examples/adding.py             # T = 50: a minute
    python examples/adding.py --long      # T = 150: four minutes

The errors of the RESULT line are on new sequences: the LSTM's worst of three seeds, and the RNN's
best.
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np

from tinygrad_rnn import Module, Tensor, nn, optim, train
from tinygrad_rnn import functional as F
from tinygrad_rnn.data import Batches


class Adder(Module):
    """A recurrent layer, and its last output read out: many to one."""

    def __init__(self, layer: nn.Recurrent, hidden: int, rng: Any = None) -> None:
        self.layer = layer
        self.linear = nn.Linear(hidden, 1, rng=rng)

    def forward(self, x: Any) -> Tensor:
        """Return the sum (N, 1) for x (T, N, 2)."""
        out, _ = self.layer(x)
        return self.linear(out[-1])


def loss(model: Module, batch: Any, state: Any) -> tuple[Tensor, Any]:
    """Return the mean squared error of a batch."""
    x, y = batch
    return F.mse_loss(model(x), y), None


def adding_problem(T: int, N: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Return x (T, N, 2), numbers and marks, and the sums (N, 1)."""
    numbers = rng.random((T, N), dtype=np.float32)
    marks = np.zeros_like(numbers)
    marks[rng.integers(0, T // 2, N), np.arange(N)] = 1
    marks[rng.integers(T // 2, T, N), np.arange(N)] = 1
    return np.stack([numbers, marks], axis=2), (numbers * marks).sum(0)[:, None]


def stream(T: int, N: int, count: int, seed: int) -> Batches[Any]:
    """Return `count` batches of sequences, each made when its turn comes: none is seen twice."""

    def take(index: Any) -> Any:
        return adding_problem(T, len(index), np.random.default_rng([seed, index[0]]))

    return Batches("adding", {"T": T, "N": N, "count": count, "seed": seed}, N * count, N, take)


SETTINGS = {
    "hidden": (8, "hidden size H"),
    "batch": (32, "sequences N in a batch"),
    "steps": (50, "length T of a sequence"),
    "held_out": (20, "batches of 500 to test on"),
    "updates": (4000, "batches to learn from"),
    "seeds": (3, "runs of each network"),
    "lr": (5e-3, "learning rate of Adam"),
    "long": (False, "T = 150, 5000 updates, whatever else is said"),
}
SMALL = ["--steps", "6", "--updates", "20", "--seeds", "2", "--held-out", "2"]


def run(session: common.Session) -> dict[str, float]:
    """Train both networks, seed by seed; return their errors on new sequences."""
    T, updates, seeds = session.steps, session.updates, session.seeds
    if session.long:
        T, updates = 150, 5000
    held_out = stream(T, 500, session.held_out, seed=10**6 + session.seed)
    y = np.concatenate([y for _, y in held_out])
    baseline = float(np.mean((y - 1) ** 2))
    session.say(
        f"T={T}; who always answers 1: {baseline:.4f} here, 1/6 in the mean (papers: .1767)"
    )
    if T == 50:
        session.say("a tanh RNN written out in NumPy, at T=50: .011 to .043")
    errors: dict[str, list[float]] = {"lstm": [], "rnn": []}
    for seed in range(session.seed, session.seed + seeds):
        for name, Layer in [("lstm", nn.LSTM), ("rnn", nn.RNN)]:
            rng = np.random.default_rng(seed)
            model = Adder(Layer(2, session.hidden, rng=rng), session.hidden, rng)
            adam = optim.Adam(model.parameters(), session.lr)
            data = stream(T, session.batch, updates, seed)
            session.fit(
                model, data, loss, adam, epochs=1, clip=1.0, label=f"{name}-{seed}",
                checkpoint_every=200,
            )  # fmt: skip
            errors[name].append(train.evaluate(model, held_out, loss))
            session.say(f"seed {seed}, {name}: {errors[name][-1]:.4f} ({session.seconds():.0f} s)")
    return {"lstm_mse": max(errors["lstm"]), "rnn_mse": min(errors["rnn"]), "baseline": baseline}


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
