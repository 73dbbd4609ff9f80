"""Which digit is it, read row by row?  The lecture's many to one on images, sequence to vector.

A digit of 8 x 8 pixels (scikit-learn's) is a sequence of 8 rows of 8 pixels; after the last row the
network says which digit it saw.  Both the plain RNN and the LSTM do it; beside them the baseline
that sees all pixels at once, scikit-learn's logistic regression.  digits_mlp.py is the same task
without a recurrence.

    pip install -e '.[examples]' && python examples/digits_rows.py

`accuracy` in the RESULT line is that of the LSTM; each figure is the worst of three seeds.
"""

from __future__ import annotations

from typing import Any

import common
import digits_mlp
import numpy as np

from tinygrad_rnn import Module, Tensor, nn


class RowReader(Module):
    """A recurrent layer over the rows, and its last output read out."""

    def __init__(self, layer: nn.Recurrent, H: int, rng: Any = None) -> None:
        self.layer = layer
        self.linear = nn.Linear(H, 10, rng=rng)

    def forward(self, x: Any) -> Tensor:
        """Return logits (N, 10) for pictures (N, 64): 8 steps of 8 pixels."""
        rows = x.reshape(-1, 8, 8).swapaxes(0, 1)  # (T, N, D)
        out, _ = self.layer(rows)
        return self.linear(out[-1])


SETTINGS = {
    "hidden": (64, "hidden size H"),
    "samples": (1797, "pictures, a fifth of them held out"),
    "epochs": (30, "passes over the others"),
    "lr": (5e-3, "learning rate of Adam; falls to 0 as a cosine"),
    "seeds": (3, "runs of each network"),
}
SMALL = ["--samples", "200", "--epochs", "1", "--hidden", "16", "--seeds", "1"]


def run(session: common.Session) -> dict[str, float]:
    """Train both networks, seed by seed; return their accuracy on new digits."""
    digits = digits_mlp.load(session.samples, session.seed)
    session.say(f"{len(digits.x)} pictures to learn from, {len(digits.x_new)} held out")
    logistic = digits_mlp.logistic_regression(digits)
    session.say(f"logistic regression: {logistic:.2%}")
    found: dict[str, list[float]] = {"lstm": [], "rnn": []}
    for seed in range(session.seed, session.seed + session.seeds):
        for name, Layer in [("lstm", nn.LSTM), ("rnn", nn.RNN)]:
            rng = np.random.default_rng(seed)
            model = RowReader(Layer(8, session.hidden, rng=rng), session.hidden, rng)
            found[name].append(digits_mlp.learn(session, model, digits, name, seed))
    return {"accuracy": min(found["lstm"]), "rnn": min(found["rnn"]), "logistic": logistic}


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    return common.main(__file__, __doc__, SETTINGS, run, argv, digits_mlp.check)


if __name__ == "__main__":
    raise SystemExit(main())
