"""Forecast a time series: a recurrent neuron, a deep RNN, and networks that do not recur.

The lecture asks whether a CNN can treat sequences, and answers: with a convolution over time, a
time-delay network, but a shallow one.  Each output of it reads a number of steps that its layers
fix, where an RNN reads all; wider windows from layer to layer make up for that.
Here both forecast the next value of a series of two sine waves and noise from 50 values, as in
chapter 15 of A. Géron's "Hands-on Machine Learning" (2nd edition): its data, its sizes, 20 epochs.

    python examples/series.py

Figures are mean squared errors on the 2000 series for validation, as in the book.  It has: naive
.020211, one recurrent neuron .0109, RNN of 20, 20 and 1 units .0029, of 20 and 20 with a linear
read-out .0026.  Unlike there, the learning rate falls to 0, so that little depends on the seed.
No forecast can be better than the noise, whose variance is .1^2 / 12 = .000833.
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np

from tinygrad_rnn import Module, Tensor, nn, optim, train
from tinygrad_rnn import functional as F
from tinygrad_rnn.bptt import reads
from tinygrad_rnn.data import batches


def one_neuron(rng: Any) -> Module:
    """Return the lecture's recurrent neuron: three parameters."""
    return nn.Recurrent(nn.RNNCell(1, 1, rng=rng))


def deep_rnn(rng: Any) -> Module:
    """Return three layers of 20, 20 and 1 units, figure 14-12 of the lecture."""
    sizes = [(1, 20), (20, 20), (20, 1)]
    return nn.Recurrent([nn.RNNCell(D, H, rng=rng) for D, H in sizes])


def time_delay(rng: Any) -> Module:
    """Return convolutions over time whose windows double from layer to layer, and a read-out."""
    net = nn.TDNN([1, 20, 20, 20, 20, 20], 2, dilations=[1, 2, 4, 8, 16], rng=rng)
    return nn.Sequential(net, nn.Linear(20, 1, rng=rng))


def shallow(rng: Any) -> Module:
    """Return the network of Waibel et al. (1989): two convolutions of a few steps."""
    return nn.Sequential(nn.TDNN([1, 20, 20], [3, 5], rng=rng), nn.Linear(20, 1, rng=rng))


NETWORKS = {  # name: (network, first learning rate, published)
    "rnn1": (one_neuron, 1e-2, ".0109"),
    "deep": (deep_rnn, 2e-3, ".0029"),
    "tdnn": (time_delay, 2e-3, "none"),
    "shallow": (shallow, 2e-3, "none"),
}


def last(model: Any, x: Any) -> Tensor:
    """Return the last output (N, 1) of a network for x (T, N, 1)."""
    y = model(x)
    return (y[0] if isinstance(y, tuple) else y)[-1]


def loss(model: Module, batch: Any, state: Any) -> tuple[Tensor, Any]:
    """Return the mean squared error of a batch."""
    x, y = batch
    return F.mse_loss(last(model, x), y), None


def waves(count: int, T: int) -> Any:
    """Return `count` series (T, count, 1): two sine waves of their own speeds, and noise."""
    rng = np.random.RandomState(42)  # the book's numbers, so that errors compare
    speed, speed2, offset, offset2 = rng.rand(4, count, 1)
    time = np.linspace(0, 1, T)
    series = 0.5 * np.sin((time - offset) * (10 + 10 * speed))
    series += 0.2 * np.sin((time - offset2) * (20 + 20 * speed2))
    series += 0.1 * (rng.rand(count, T) - 0.5)
    return series.T[:, :, None].astype(np.float32)


SETTINGS = {
    "samples": (10_000, "series: 7 of 10 to learn from, 2 for validation"),
    "steps": (50, "length T of what is given"),
    "epochs": (20, "passes over the series"),
    "batch": (32, "series N in a batch"),
}
SMALL = ["--samples", "300", "--steps", "34", "--epochs", "1"]


def run(session: common.Session) -> dict[str, float]:
    """Train the networks; return their errors and those of the baselines."""
    T, count = session.steps, session.samples
    series = waves(count, T + 1)
    cuts = [slice(0, 7 * count // 10), slice(7 * count // 10, 9 * count // 10)]
    (x, y), (x_new, y_new) = [(series[:T, cut], series[T, cut]) for cut in cuts]

    found = {"naive": float(np.mean((x_new[-1] - y_new) ** 2))}
    weights, *_ = np.linalg.lstsq(with_ones(x), y[:, 0], rcond=None)
    found["least_squares"] = float(np.mean((with_ones(x_new) @ weights - y_new[:, 0]) ** 2))
    session.say(f"noise: {0.1**2 / 12:.6f}, no forecast is better")
    session.say(f"the last value again: {found['naive']:.6f} (published .020211)")
    session.say(f"exact least squares of all {T} values: {found['least_squares']:.5f}")

    held_out = batches(x_new, y_new, axis=(1, 0), batch_size=500, shuffle=False)
    for name, (network, lr, published) in NETWORKS.items():
        model = network(np.random.default_rng(session.seed))
        data = batches(x, y, axis=(1, 0), batch_size=session.batch, rng=session.seed)
        seen = reads(lambda x, model=model: last(model, x)[None], x[:, :8])
        rate = optim.cosine(lr, session.epochs * len(data))
        adam = optim.Adam(model.parameters(), rate)
        session.fit(model, data, loss, adam, epochs=session.epochs, label=name)
        found[name] = train.evaluate(model, held_out, loss)
        session.say(
            f"{name}: {found[name]:.5f} (published {published}), "
            f"{sum(p.size for p in model.parameters())} parameters, reads the last {seen.sum()} "
            f"of {T} steps ({session.seconds():.0f} s)"
        )
    return found


def with_ones(x: Any) -> Any:
    """Return (N, T + 1) for x (T, N, 1): the steps and a column of ones, in double precision."""
    return np.vstack([x[:, :, 0], np.ones(x.shape[1])]).T


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    return common.main(__file__, __doc__, SETTINGS, run, argv, check)


def check(args: Any) -> str | None:
    """Return what is wrong with the settings."""
    if args.steps < 32:
        return f"--steps {args.steps}: expected at least 32, which the time-delay network reads"
    if args.samples < 10:
        return f"--samples {args.samples}: expected at least 10"
    return None


if __name__ == "__main__":
    raise SystemExit(main())
