"""How far back does a gradient reach?  The lecture's long-term dependency, measured.

The lecture's passage ends in "He is still living in where?".  The answer, Paris, stands 116 steps
before the question word, and the lecture says: a gradient does not get that far back (it vanishes
or explodes); the longer the sequence, the smaller the influence of far steps; and an LSTM has a
conveyor belt on which information flows on unchanged.  Here all of it is measured on that passage,
with untrained networks whose error E is the cross-entropy of "Paris" after the question word:

    |dE/dh(t)|  of plain networks, linear and tanh, with W = rho * an orthogonal matrix
    |dE/dc(t)|  of LSTMs with a forget-gate bias of 1 to 5, whole ("lstm") and with W_h = 0
                ("belt"), so that the conveyor belt is the only way back

Nothing was published to compare with but the lecture's own arithmetic, a weight taken to the power
of 100: 0.9^100 = 2.656e-05 and 1.1^100 = 13780.6.  A linear network must have a slope of log10(rho)
per step, a tanh network lies below its product bound, |W|^k times the largest tanh' of each step,
and the belt keeps sigmoid(bias) per step, give or take what the words add to the bias.

    python examples/long_term.py                # seconds; all curves in out/long_term.csv
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from typing import Any

import common
import numpy as np

from tinygrad_rnn import Tensor, bptt, data, grad, nn, no_grad
from tinygrad_rnn.functional import cross_entropy

TEXT = """Roland Dyens was born in Tunisia and lived most of his life in Paris. He studied with
Spanish classical guitarist Alberto Ponce and with Désiré Dondeyne. As a performer, Dyens was known
for improvisation. Sometimes he opened his concerts with an improvised piece, and he might improvise
the program itself, without planning or announcing beforehand what he would be playing. He said that
a journalist once told him he had the hands of a classical musician and the head of a jazz musician.
He played Bach suites and he played with jazz musicians at the Arvika Festival in Sweden. A heavy
metal band did a version of the third movement of his Libra Sonatine. He is still living in where?
"""
RADII, BIASES = (0.5, 0.9, 1.1), (1, 2, 3, 4, 5)
SETTINGS = {
    "hidden": (32, "units, H"),
    "size": (16, "numbers of a word's vector, D"),
}
SMALL = ["--hidden", "8", "--size", "4"]


def words() -> tuple[list[str], int]:
    """Return the words and punctuation from "Paris" to "where", and how far apart they are."""
    tokens = re.findall(r"\w+|[^\w\s]", TEXT)
    first, last = tokens.index("Paris"), tokens.index("where")
    return tokens[first : last + 1], last - first


def plain(D: int, H: int, radius: float, activation: str, rng: Any) -> nn.RNN:
    """Return a plain recurrent layer whose W has all its singular values at `radius`."""
    layer = nn.RNN(D, H, activation=activation, dtype=np.float64, rng=rng)
    layer.L0["fwd"].W_h.data *= radius  # orthogonal before
    return layer


def lstm(D: int, H: int, bias: float, belt: bool, rng: Any) -> nn.LSTM:
    """Return an LSTM with this bias of the forget gates; as a belt it does not read its h."""
    layer = nn.LSTM(D, H, dtype=np.float64, rng=rng)
    layer.L0["fwd"].b.data[H : 2 * H] = bias
    layer.L0["fwd"].W_h.data *= not belt
    return layer


def measure(
    layer: Any, x: np.ndarray, V: int, answer: int, transfer: bool = False
) -> tuple[bptt.Report, np.ndarray]:
    """Return the report of the error after the last word, and |dE/dx(t)|."""
    model, given = nn.Readout(layer, V, rng=0), Tensor(x, requires_grad=True)
    o, _ = model(given)
    E = cross_entropy(o[-1], [answer])
    found = bptt.report(E, layer, transfer=transfer, terms=False)
    return found, np.linalg.norm(grad(E, given)[:, 0], axis=1)


def slope(curve: np.ndarray) -> float:
    """Return log10 per step back: of the straight line through the logarithms."""
    back = np.arange(len(curve))[::-1]
    return float(np.polyfit(back, np.log10(curve), 1)[0])


def bound(layer: Any, x: np.ndarray) -> np.ndarray:
    """Return the product bound of |dh(T)/dh(t)|: of |W| max(1 - h(s)^2) for s = t + 1 .. T."""
    with no_grad():
        h = layer(x)[0].numpy()[:, 0]
    factors = np.linalg.norm(layer.L0["fwd"].W_h.data, 2) * (1 - h**2).max(axis=1)
    return np.append(np.cumprod(factors[:0:-1])[::-1], 1.0)


def power(w: float, steps: int) -> float:
    """Return dh(steps)/dh(0) of one linear neuron with the weight w."""
    layer = nn.RNN(0, 1, bias=False, activation="identity", dtype=np.float64)
    layer.L0["fwd"].W_h.data[:] = w
    h0 = Tensor(np.ones((1, 1, 1)), requires_grad=True)
    return float(grad(layer(None, h0, steps=steps)[1].sum(), h0).item())


def run(session: common.Session) -> dict[str, float]:
    """Measure all; print a table and write the curves."""
    tokens, distance = words()
    vocabulary = data.Vocabulary(tokens)
    V, D, H = len(vocabulary), session.size, session.hidden
    session.say(f'"Paris" stands {distance} steps before "where"')
    for w in (0.9, 1.1):
        session.say(
            f"baseline, one linear neuron: {w}^100 = {w**100:.6g}, measured {power(w, 100):.6g}"
        )

    vectors = np.random.default_rng(session.seed).standard_normal((V, D)) / math.sqrt(D)
    x = vectors[vocabulary.encode(tokens)][:, None]  # (T, N=1, D)
    answer = vocabulary.encode(["Paris"])[0]
    layers: dict[str, Any] = {}
    for kind, activation in (("linear", "identity"), ("tanh", "tanh")):
        for radius in RADII:
            layers[f"{kind} {radius}"] = plain(D, H, radius, activation, session.seed)
    for kind in ("lstm", "belt"):
        for bias in BIASES:
            layers[f"{kind} {bias}"] = lstm(D, H, bias, kind == "belt", session.seed)

    curves: dict[str, np.ndarray] = {}
    result: dict[str, float] = {"distance": distance}
    session.say(
        f"\n{'':12}{'at where':>12}{'at Paris':>12}{'slope':>10}{'expected':>10}{'bound':>12}"
    )
    for name, layer in layers.items():
        kind, number = name.split()
        found, at_x = measure(layer, x, V, answer, transfer=kind == "tanh")
        curve = found.h_norm[0] if isinstance(layer, nn.RNN) else found.c_norm[0]
        curves[f"{'dh' if isinstance(layer, nn.RNN) else 'dc'} {name}"] = curve
        curves[f"dx {name}"] = at_x
        line = f"{name:12}{curve[-1]:12.3e}{curve[0]:12.3e}{slope(curve):10.4f}"
        if kind == "linear":
            line += f"{math.log10(float(number)):10.4f}"
        if kind == "belt":
            line += f"{-math.log10(1 + math.exp(-float(number))):10.4f}"
        if kind == "tanh":
            most = bound(layer, x)
            assert (found.transfer <= most * (1 + 1e-9)).all()
            line += f"{'':10}{most[0] * curve[-1]:12.3e}"
        session.say(line)
        result[name.replace(" ", "_").replace(".", "")] = slope(curve)
    session.say("\n|dE/dx(t)|, the influence of a word that far back:")
    for name in ("tanh 0.9", "lstm 1", "belt 1", "belt 5"):
        parts = [f"{k}: {curves[f'dx {name}'][-1 - k]:.1e}" for k in (0, 1, 10, 50, distance)]
        session.say(f"{name:12}{',  '.join(parts)}")
    write(session.path("", ".csv"), tokens, curves)
    return result


def write(path: Any, tokens: Sequence[str], curves: dict[str, np.ndarray]) -> None:
    """Write a row for each step: its word, how far it is back, and all norms there."""
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(["t", "word", "steps back", *curves])
        for t, word in enumerate(tokens):
            norms = [f"{curve[t]:.6e}" for curve in curves.values()]
            rows.writerow([t + 1, word, len(tokens) - 1 - t, *norms])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; return the exit status."""
    return common.main(__file__, __doc__, SETTINGS, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
