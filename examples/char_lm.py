"""A character language model: an LSTM learns English from the help texts of Python itself.

The lecture's "many to many": at every step the network reads a character and says how probable
each next one is.  The state is carried from batch to batch, gradients reach back T steps
(truncated BPTT), and the last tenth of the text, which training never sees, measures the result in
nats per character, beside counting characters (unigram) and pairs of them (bigram).

    python examples/char_lm.py                         # about a minute; Ctrl-C stops it cleanly
    python examples/char_lm.py --resume                # goes on from the checkpoint
    python examples/char_lm.py --hidden 256 --epochs 10
    python examples/char_lm.py --compile               # the LSTM's loop over time compiled: faster
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from pydoc_data import topics
from typing import Any

import common
import numpy as np

import viz
from tinygrad_rnn import Module, Tensor, compiler, data, nn, no_grad, optim, train
from tinygrad_rnn.functional import cross_entropy, softmax


class CharLM(Module):
    """Character ids (T, N) -> logits (T, N, V) of the character that follows each."""

    def __init__(self, V: int, embedding: int, H: int, rng: Any = None) -> None:
        rng = np.random.default_rng(rng)
        self.embedding = nn.Embedding(V, embedding, rng=rng)
        self.lstm = nn.LSTM(embedding, H, rng=rng)
        self.linear = nn.Linear(H, V, rng=rng)

    def forward(self, ids: Any, state: Any = None) -> tuple[Tensor, Any]:
        """Return the logits, and the state to go on from."""
        h, state = self.lstm(self.embedding(ids), state)
        return self.linear(h), state


def loss(model: CharLM, batch: Any, state: Any) -> tuple[Tensor, Any]:
    """Return the mean cross-entropy of a batch in nats per character, and the state to carry."""
    x, y = batch
    logits, state = model(x, state)
    return cross_entropy(logits, y, reduction="mean"), state


def count_baselines(ids: np.ndarray, held_out: data.Batches[Any], V: int) -> tuple[float, float]:
    """Return nats per held-out character of counted characters, and of counted pairs.

    Every count starts at 1, so that nothing is impossible.
    """
    single = np.ones(V)
    np.add.at(single, ids, 1)
    pairs = np.ones((V, V))
    np.add.at(pairs, (ids[:-1], ids[1:]), 1)
    unigram = -np.log(single / single.sum())
    bigram = -np.log(pairs / pairs.sum(axis=1, keepdims=True))
    x, y = (
        np.concatenate([part.ravel() for part in parts]) for parts in zip(*held_out, strict=True)
    )
    return float(unigram[y].mean()), float(bigram[x, y].mean())


def sample(
    model: CharLM,
    vocabulary: data.Vocabulary[str],
    start: str,
    length: int,
    temperature: float,
    rng: np.random.Generator,
) -> str:
    """Return `start` and what the model writes after it, character by character."""
    ids, state, x = list(vocabulary.encode(start)), None, vocabulary.encode(start)
    with no_grad():
        for _ in range(length):
            logits, state = model(x[:, None], state)
            p = softmax(logits.numpy()[-1, 0].astype(np.float64) / temperature)
            x = rng.choice(len(p), size=1, p=p)
            ids.append(x[0])
    return vocabulary.decode(ids)


def draw(model: CharLM, x: np.ndarray, y: np.ndarray, path: Path) -> str:
    """Draw the graph of a loss, unrolled in time; return what to tell about it."""
    picture = viz.draw(loss(model, (x, y), None)[0])
    kept = picture.save(path.with_suffix(".dot"))
    try:
        return f"graph of {len(x)} steps: {picture.save(path)}"
    except (RuntimeError, OSError) as error:
        return f"graph of {len(x)} steps: {kept}, not {path.name}: {error}"


def compiled(model: CharLM, batch: Any) -> tuple[CharLM, list[str]]:
    """Return a twin of the model, of the same parameters, that runs compiled; and what it says.

    A loss of `batch` makes its kernels: then the reports know the back end, and what it cannot do.
    """
    twin = compiler.compile(copy.copy(model))
    loss(twin, batch, None)
    lines = []
    for name, layer in twin.named_modules():
        if isinstance(layer, compiler.Compiled):
            said = layer.report().partition("hoisted before the loop")[0]
            lines += [f"compile: {name}: {line}" for line in said.splitlines()]
    return twin, lines


SETTINGS = {
    "hidden": (128, "size H of the LSTM"),
    "embedding": (64, "size D of a character's vector"),
    "steps": (32, "steps T that gradients reach back"),
    "batch": (32, "streams N read side by side"),
    "epochs": (4, "passes over the text"),
    "lr": (8e-3, "learning rate of Adam; falls to 0 as a cosine"),
    "clip": (1.0, "greatest norm of the gradient"),
    "limit_chars": (10**9, "use only the first ones of the text"),
    "sample": (400, "characters to write at the end"),
    "temperature": (0.7, "below 1: more cautious writing"),
    "compile": (False, "compile the LSTM's loop over time (with numba where it is installed)"),
}
SMALL = [
    "--hidden=24", "--embedding=8", "--steps=8", "--batch=4", "--epochs=2", "--lr=0.02",
    "--limit-chars=6000", "--sample=20",
]  # fmt: skip


def run(session: common.Session) -> dict[str, float]:
    """Train, measure, write and draw; return the result."""
    say = session.say
    text = "\n".join(topics.topics.values())[: session.limit_chars]
    vocabulary = data.Vocabulary(text)
    ids, V = vocabulary.encode(text), len(vocabulary)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    say(f"text: {len(text):,} characters, {V} different, sha256 {digest}... (differs by Python)")

    cut = len(ids) * 9 // 10
    batches = data.bptt_batches(ids[:cut], batch_size=session.batch, steps=session.steps)
    held_out = data.bptt_batches(ids[cut:], batch_size=8, steps=100)
    unigram, bigram = count_baselines(ids[:cut], held_out, V)
    say(f"held out: the last {len(ids) - cut:,} characters")
    say(f"baselines: unigram {unigram:.3f}, bigram {bigram:.3f} nats per character")

    model = CharLM(V, session.embedding, session.hidden, rng=session.seed)
    [first] = data.bptt_batches(  # a batch's worth of text
        ids[: session.batch * session.steps + 1], batch_size=session.batch, steps=session.steps
    )
    untrained = train.evaluate(model, [first], loss) * session.steps
    uniform = session.steps * math.log(V)
    say(f"untrained: {untrained:.2f} nats in T={session.steps} steps; T ln V = {uniform:.2f}")
    say(model.summary())

    trained = model
    if session.compile:  # for training: a sample has no loop, and the picture shows the steps
        trained, report = compiled(model, first)
        say("\n".join(report))

    schedule = optim.cosine(session.lr, steps=session.epochs * len(batches))
    adam = optim.Adam(model.parameters(), lr=schedule)
    history = session.fit(
        trained, batches, loss, adam, epochs=session.epochs, clip=session.clip, validation=held_out
    )
    for epoch, value in history.validation.items():
        say(f"epoch {epoch}: validation {value:.3f} nats per character")
    rng = np.random.default_rng(session.seed)
    start = text[cut : cut + 20]
    say(f"sample after {start!r}, temperature {session.temperature}:")
    say(sample(model, vocabulary, start, session.sample, session.temperature, rng))
    x, y = first
    say(draw(model, x[:4, :1], y[:4, :1], session.out / "char_lm.svg"))
    say(f"history: {session.path('', '.csv')}, checkpoint: {session.path('', '.npz')}")
    last = history.validation[session.epochs]
    return {"val_nats_per_char": last, "unigram": unigram, "bigram": bigram}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; return the exit status."""
    return common.main(__file__, __doc__, SETTINGS, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
