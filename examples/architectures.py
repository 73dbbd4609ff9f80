"""Every architecture that the lecture draws, in a few lines each, and its arrows by gradient.

Figure 14-4 has four: sequence to sequence, sequence to vector, vector to sequence (here in both
forms: zeros as further inputs, or its own output fed back) and delayed sequence to sequence.
"Various architectures of RNN" has five: one to one, one to many, many to one, and many to many
delayed and synced.  For each one this prints the lengths of input and output, the number of its
parameters, and a picture: a star where the output y(t) depends on the input x(s), found by
dy(t)/dx(s).  No star is above the diagonal of a synced network: it knows no future.  Nothing is
trained here; ``examples/README.md`` names the example that trains each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import common
import numpy as np
import numpy.typing as npt

from tinygrad_rnn import Parameter, Tensor, bptt, graph, nn
from tinygrad_rnn.functional import softmax
from tinygrad_rnn.ops import concat, tanh


class Sizes(NamedTuple):
    """D inputs, H hidden units, V outputs, and how many steps come out where that is free."""

    D: int
    H: int
    V: int
    T_out: int
    rng: np.random.Generator


# --- figure 14-4; x is (T_in, N, D), what comes back (T_out, N, V)


def sequence_to_sequence(x: Tensor, s: Sizes) -> Tensor:
    """An output for every input."""
    o, _ = nn.Readout(nn.RNN(s.D, s.H, rng=s.rng), s.V, rng=s.rng)(x)
    return o


def sequence_to_vector(x: Tensor, s: Sizes) -> Tensor:
    """Only the last output counts."""
    out, _ = nn.RNN(s.D, s.H, rng=s.rng)(x)
    return nn.Linear(s.H, s.V, rng=s.rng)(out[-1:])


def vector_to_sequence(x: Tensor, s: Sizes) -> Tensor:
    """One input, then zeros."""
    zeros = np.zeros((s.T_out - 1, *x.shape[1:]), x.dtype)
    return sequence_to_sequence(concat(x, zeros) if len(zeros) else x, s)


def vector_to_sequence_fed_back(x: Tensor, s: Sizes) -> Tensor:
    """One input, then each output is the next input."""
    cell = nn.FeedbackCell(nn.RNNCell(s.D, s.H, rng=s.rng), nn.Linear(s.H, s.D, rng=s.rng))
    y, _ = nn.Recurrent(cell)(None, cell.start(x[0]), steps=s.T_out)
    return y


def delayed_sequence_to_sequence(x: Tensor, s: Sizes) -> Tensor:
    """The encoder reads all, and its last state is the first of a decoder without input."""
    _, h = nn.RNN(s.D, s.H, rng=s.rng)(x)
    o, _ = nn.Readout(nn.RNN(0, s.H, rng=s.rng), s.V, rng=s.rng)(None, h, steps=s.T_out)
    return o


# --- the five of "Various architectures of RNN"


def one_to_one(x: Tensor, s: Sizes) -> Tensor:
    """Image classification, without time: the "vanilla" network."""
    hidden, head = nn.Linear(s.D, s.H, rng=s.rng), nn.Linear(s.H, s.V, rng=s.rng)
    return head(tanh(hidden(x)))


def one_to_many(x: Tensor, s: Sizes) -> Tensor:
    """Image captioning: the image is the first state, and each word the next input."""
    cell = nn.FeedbackCell(
        nn.RNNCell(s.V, s.H, rng=s.rng), nn.Linear(s.H, s.V, rng=s.rng), feed=softmax
    )
    image = tanh(nn.Linear(s.D, s.H, rng=s.rng)(x[0]))
    go = np.zeros((x.shape[1], s.V))
    y, _ = nn.Recurrent(cell)(None, cell.start(go, image), steps=s.T_out)
    return y


def many_to_one(x: Tensor, s: Sizes) -> Tensor:
    """Sentiment analysis: the state after the last word is read out."""
    _, (h, _) = nn.LSTM(s.D, s.H, rng=s.rng)(x)
    return nn.Linear(s.H, s.V, rng=s.rng)(h)


def many_to_many_delayed(x: Tensor, s: Sizes) -> Tensor:
    """Machine translation: an encoder, and a decoder that is fed its own words."""
    _, state = nn.Recurrent(nn.LSTMCell(s.D, s.H, rng=s.rng))(x)
    cell = nn.FeedbackCell(
        nn.LSTMCell(s.V, s.H, rng=s.rng), nn.Linear(s.H, s.V, rng=s.rng), feed=softmax
    )
    go = np.zeros((x.shape[1], s.V))
    y, _ = nn.Recurrent(cell)(None, cell.start(go, state), steps=s.T_out)
    return y


def many_to_many_synced(x: Tensor, s: Sizes) -> Tensor:
    """Video classification on frame level: a label for every frame, from it and its past."""
    frames = tanh(nn.Linear(s.D, s.H, rng=s.rng)(x))
    o, _ = nn.Readout(nn.GRU(s.H, s.H, rng=s.rng), s.V, rng=s.rng)(frames)
    return o


FIGURE_14_4 = (
    sequence_to_sequence,
    sequence_to_vector,
    vector_to_sequence,
    vector_to_sequence_fed_back,
    delayed_sequence_to_sequence,
)
FIVE = (one_to_one, one_to_many, many_to_one, many_to_many_delayed, many_to_many_synced)


# --- what there is to see


def parameters(y: Tensor) -> int:
    """Return how many numbers of parameters y is made of; all steps share them."""
    return sum([p.size for p in graph.nodes([y]) if isinstance(p, Parameter)])


def picture(seen: npt.NDArray[np.bool_]) -> str:
    """Return a matrix of stars: a row for each y(t), a column for each x(s)."""
    head = "        " + " ".join([f"x({s + 1})" for s in range(seen.shape[1])])
    rows = [
        f"  y({t + 1})  " + " ".join(["  * " if star else "  . " for star in row]).rstrip()
        for t, row in enumerate(seen)
    ]
    return "\n".join([head, *rows])


def run_one(build: Callable[[Tensor, Sizes], Tensor], T_in: int, s: Sizes) -> tuple[Tensor, Tensor]:
    """Return the outputs of one architecture and its input, one vector where it reads one."""
    T = 1 if build.__name__.startswith(("one_", "vector_")) else T_in
    x = Tensor(s.rng.standard_normal((T, 1, s.D), dtype=np.float32), requires_grad=True)
    return build(x, s), x


SETTINGS: common.Settings = {
    "inputs": (4, "D, the size of x(t)"),
    "hidden": (8, "H, the size of the hidden state"),
    "outputs": (3, "V, the size of y(t)"),
    "steps_in": (5, "length of a sequence that is read"),
    "steps_out": (4, "length of a sequence that is written, where it is free"),
}
SMALL = ["--steps-in", "3", "--steps-out", "2", "--hidden", "4"]


def run(session: common.Session) -> dict[str, float]:
    """Show every architecture; return how many there are, with their arrows and parameters."""
    sizes = Sizes(
        session.inputs, session.hidden, session.outputs, session.steps_out,
        np.random.default_rng(session.seed),
    )  # fmt: skip
    table, total = [], 0
    for title, builders in (("Figure 14-4", FIGURE_14_4), ("Various architectures", FIVE)):
        session.say(f"{title}\n{'-' * len(title)}")
        for build in builders:
            y, x = run_one(build, session.steps_in, sizes)
            seen, name = bptt.reads(y, x), build.__name__.replace("_", " ")
            session.say(f"{name}: {build.__doc__}\n{picture(seen)}\n")
            table.append((name, len(x), len(y), parameters(y), int(seen.sum())))
            total += int(seen.sum())
    session.say(f"{'':<30}{'T_in':>6}{'T_out':>6}{'parameters':>12}{'arrows':>8}")
    for name, *numbers in table:
        session.say(f"{name:<30}{numbers[0]:>6}{numbers[1]:>6}{numbers[2]:>12}{numbers[3]:>8}")
    return {"architectures": len(table), "arrows": total, "parameters": sum(r[3] for r in table)}


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    return common.main(__file__, __doc__, SETTINGS, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
