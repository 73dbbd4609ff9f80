"""Which digit is it?  The lecture's one to one, image classification without a recurrence.

A "vanilla" network of one hidden layer sees all 64 pixels of a digit at once (scikit-learn's
bundled digits: 1797 pictures of 8 x 8, a fifth of them held out).  The baseline is scikit-learn's
logistic regression on the same split.  digits_rows.py reads the same pictures row by row.

    pip install -e '.[examples]' && python examples/digits_mlp.py

The accuracy of the RESULT line is the worst of three seeds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import common
import numpy as np

from tinygrad_rnn import Module, Tensor, data, nn, no_grad, optim
from tinygrad_rnn.functional import cross_entropy
from tinygrad_rnn.ops import tanh


def network(H: int, rng: Any = None) -> nn.Sequential:
    """Return pixels (N, 64) -> H hidden units -> logits (N, 10)."""
    rng = np.random.default_rng(rng)
    return nn.Sequential(nn.Linear(64, H, rng=rng), tanh, nn.Linear(H, 10, rng=rng))


class Digits(NamedTuple):
    """Pictures (N, 64) between 0 and 1 with their digits (N,), and the held-out fifth."""

    x: Any
    y: Any
    x_new: Any
    y_new: Any


def load(samples: int, seed: int) -> Digits:
    """Return scikit-learn's digits, or the first of them, in random order and split."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit(
            f"the digits come with scikit-learn, which is missing ({error}): "
            "pip install -e '.[examples]'"
        ) from error
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))[:samples]
    x, y = (x[order] / 16).astype(np.float32), y[order]
    cut = len(x) * 4 // 5
    return Digits(x[:cut], y[:cut], x[cut:], y[cut:])


def logistic_regression(digits: Digits) -> float:
    """Return the accuracy of scikit-learn's logistic regression on the held-out digits."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=1000).fit(digits.x, digits.y)
    return float(model.score(digits.x_new, digits.y_new))


def loss(model: Module, batch: Any, state: Any) -> tuple[Tensor, Any]:
    """Return the mean cross-entropy of a batch."""
    x, y = batch
    return cross_entropy(model(x), y, reduction="mean"), None


def accuracy(model: Module, digits: Digits) -> float:
    """Return how often the most probable digit is the right one, on the held-out digits."""
    with no_grad():
        return float(np.mean(model(digits.x_new).numpy().argmax(1) == digits.y_new))


def learn(session: common.Session, model: Module, digits: Digits, name: str, seed: int) -> float:
    """Train a model; return its accuracy."""
    batches = data.batches(digits.x, digits.y, batch_size=32, rng=seed)
    schedule = optim.cosine(session.lr, session.epochs * len(batches))
    adam = optim.Adam(model.parameters(), schedule)
    session.fit(model, batches, loss, adam, epochs=session.epochs, clip=1.0, label=f"{name}-{seed}")
    right = accuracy(model, digits)
    session.say(f"{name}-{seed}: {right:.2%} ({session.seconds():.0f} s)")
    return right


SETTINGS = {
    "hidden": (64, "hidden size H"),
    "samples": (1797, "pictures, a fifth of them held out"),
    "epochs": (40, "passes over the others"),
    "lr": (1e-2, "learning rate of Adam; falls to 0 as a cosine"),
    "seeds": (3, "runs of the network"),
}
SMALL = ["--samples", "200", "--epochs", "2", "--hidden", "16", "--seeds", "1"]


def run(session: common.Session) -> dict[str, float]:
    """Train the network, seed by seed; return its accuracy on new digits."""
    digits = load(session.samples, session.seed)
    session.say(f"{len(digits.x)} pictures to learn from, {len(digits.x_new)} held out")
    logistic = logistic_regression(digits)
    session.say(f"logistic regression: {logistic:.2%}")
    seeds = range(session.seed, session.seed + session.seeds)
    found = [learn(session, network(session.hidden, s), digits, "mlp", s) for s in seeds]
    return {"accuracy": min(found), "logistic": logistic}


def check(args: Any) -> str | None:
    """Return what is wrong with the settings."""
    if not 100 <= args.samples <= 1797:
        return f"--samples {args.samples}: expected 100 to 1797, which is how many there are"
    return None


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    return common.main(__file__, __doc__, SETTINGS, run, argv, check)


if __name__ == "__main__":
    raise SystemExit(main())
