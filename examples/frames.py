"""Label every frame of a video with the way that a glyph is going: synced many to many.

The lecture's synced sequence is "video classification on frame level".  These videos are made here:
a glyph of 3 x 3 pixels wanders, in noise, over a screen of 8 x 8 that is joined at its edges, and
turns now and then.  The label of a frame is the move that led to it: up, down, left or right.  No
frame shows it, so who looks at one frame alone is right in a quarter of them; memory is needed.  In
some frames the glyph is hidden (it goes straight on meanwhile): two frames are not enough either.

    python examples/frames.py

Three networks learn from the same videos: a classifier of single frames, one of pairs of frames,
and an LSTM over what a frame's encoder says.  That the LSTM uses its memory is shown by taking it
away: with its state set to zero before every frame it falls to a quarter.  There is no published
figure for this task.  The first frame has no move before it that can be seen and is not counted.
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np

from tinygrad_rnn import Module, Tensor, nn, no_grad, optim
from tinygrad_rnn import functional as F
from tinygrad_rnn.data import Batches

SIZE = 8
MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
NAMES = ("up", "down", "left", "right")
GLYPHS = np.array(  # a cross, a ring, a corner
    [[[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[1, 1, 1], [1, 0, 1], [1, 1, 1]],
     [[1, 0, 0], [1, 0, 0], [1, 1, 1]]], np.float32,
)  # fmt: skip


def videos(T: int, N: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return frames (T, N, 64) and moves (T, N); the glyph turns where it is seen, 1 in 5 times."""
    place, move = rng.integers(0, SIZE, (N, 2)), rng.integers(0, 4, N)
    glyph = np.zeros((N, SIZE, SIZE), np.float32)
    glyph[:, :3, :3] = GLYPHS[rng.integers(0, len(GLYPHS), N)]
    frames = rng.normal(0, 0.1, (T, N, SIZE, SIZE)).astype(np.float32)
    labels = np.empty((T, N), np.int64)
    rows = np.arange(SIZE)
    for t in range(T):
        hidden = (rng.random(N) < 0.2) & (t > 0)
        turns = (rng.random(N) < 0.2) & ~hidden
        move = np.where(turns, rng.integers(0, 4, N), move)
        place, labels[t] = (place + MOVES[move]) % SIZE, move
        i, j = [(rows - place[:, [k]]) % SIZE for k in (0, 1)]
        shown = glyph[np.arange(N)[:, None, None], i[:, :, None], j[:, None, :]]
        frames[t] += shown * ~hidden[:, None, None]
    return frames.reshape(T, N, -1), labels


def stream(T: int, N: int, count: int, seed: int) -> Batches[Any]:
    """Return `count` batches of videos, each made when its turn comes: none is seen twice."""

    def take(index: Any) -> Any:
        return videos(T, len(index), np.random.default_rng([seed, index[0]]))

    return Batches("frames", {"T": T, "N": N, "count": count, "seed": seed}, N * count, N, take)


class Labeller(Module):
    """An encoder for each frame, an LSTM over time, and a read-out: synced many to many."""

    def __init__(self, H: int, rng: Any = None) -> None:
        self.encoder = nn.Linear(SIZE * SIZE, H, rng=rng)
        self.readout = nn.Readout(nn.LSTM(H, H, rng=rng), len(MOVES), rng=rng)

    def forward(self, frames: Any) -> Tensor:
        """Return the logits (T, N, 4) for frames (T, N, 64)."""
        logits, _ = self.readout(F.relu(self.encoder(frames)))
        return logits

    def without_memory(self, frames: Any) -> Tensor:
        """Return the logits where every frame is a video of its own."""
        T, N = frames.shape[:2]
        return self(frames.reshape(1, T * N, -1)).reshape((T, N, -1))


class PerFrame(Module):
    """A classifier of what the last `frames` frames show, without a state."""

    def __init__(self, frames: int, H: int, rng: Any = None) -> None:
        self.frames = frames
        self.hidden = nn.Linear(SIZE * SIZE * frames, 2 * H, rng=rng)
        self.linear = nn.Linear(2 * H, len(MOVES), rng=rng)

    def forward(self, frames: Any) -> Tensor:
        """Return the logits (T, N, 4) for frames (T, N, 64); before the first one it is dark."""
        before = [
            np.pad(frames, [(k, 0), (0, 0), (0, 0)])[: len(frames)] for k in range(self.frames)
        ]
        return self.linear(F.relu(self.hidden(np.concatenate(before, axis=2))))


def loss(model: Module, batch: Any, state: Any) -> tuple[Tensor, Any]:
    """Return the mean cross-entropy of a frame's move, in nats."""
    frames, moves = batch
    return F.cross_entropy(model(frames)[1:], moves[1:], reduction="mean"), None


def accuracies(forward: Any, data: Batches[Any]) -> np.ndarray:
    """Return which part of the moves is right in frames 2, 3, ..., T."""
    with no_grad():
        hits = [forward(frames).numpy().argmax(-1) == moves for frames, moves in data]
    return np.concatenate(hits, axis=1)[1:].mean(axis=1)


SETTINGS = {
    "hidden": (64, "size H of the encoder and of the LSTM"),
    "steps": (16, "frames T of a video"),
    "updates": (1500, "batches of 32 videos to learn from"),
    "seeds": (3, "runs of each network"),
}
SMALL = ["--hidden", "16", "--steps", "6", "--updates", "10", "--seeds", "1"]


def check(args: Any) -> str | None:
    """Return what is wrong with the settings."""
    if args.steps < 2:
        return f"--steps {args.steps}: expected at least 2, since the first frame is not counted"
    return None


def run(session: common.Session) -> dict[str, float]:
    """Train the three networks, seed by seed; return the mean accuracies on new videos."""
    T, updates, say = session.steps, session.updates, session.say
    held_out = stream(T, 500, 4, seed=10**6 + session.seed)
    say(f"{updates * 32:,} videos of {T} frames; guessing one of {', '.join(NAMES)}: .25")
    found: dict[str, list[Any]] = {}
    for seed in range(session.seed, session.seed + session.seeds):
        rng = np.random.default_rng(seed)
        models = {
            "one frame": PerFrame(1, session.hidden, rng),
            "two frames": PerFrame(2, session.hidden, rng),
            "LSTM": Labeller(session.hidden, rng),
        }
        for name, model in models.items():
            adam = optim.Adam(model.parameters(), optim.cosine(5e-3, updates))
            session.fit(
                model, stream(T, 32, updates, seed), loss, adam, epochs=1, clip=1.0,
                label=f"{name.replace(' ', '-')}-{seed}", checkpoint_every=200,
            )  # fmt: skip
            found.setdefault(name, []).append(accuracies(model, held_out))
        cut = accuracies(models["LSTM"].without_memory, held_out)
        found.setdefault("LSTM, state cut", []).append(cut)
        means = ", ".join([f"{name} {runs[-1].mean():.3f}" for name, runs in found.items()])
        say(f"seed {seed}: {means} ({session.seconds():.0f} s)")
    say(f"{'right in frame':>16}" + "".join([f"{t:5d}" for t in range(2, T + 1)]))
    for name, runs in found.items():
        say(f"{name:>16}" + "".join([f"{value:5.2f}" for value in np.mean(runs, axis=0)]))
    return {"lstm": np.mean(found["LSTM"]), "per_frame": np.mean(found["one frame"])}


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    return common.main(__file__, __doc__, SETTINGS, run, argv, check)


if __name__ == "__main__":
    raise SystemExit(main())
