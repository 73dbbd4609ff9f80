"""A character language model: an LSTM learns English from the help texts of Python itself.

The lecture's "many to many": at every step the network reads a character and says how probable
each next one is.  The state is carried from batch to batch, gradients reach back T steps
(truncated BPTT), and the last tenth of the text, which training never sees, measures the result in
nats per character, beside counting characters (unigram) and pairs of them (bigram).

    python examples/char_lm.py                         # about a minute; Ctrl-C stops it cleanly
    python examples/char_lm.py --resume                # goes on from the checkpoint
    python examples/char_lm.py --hidden 256 --epochs 10

NumPy's matrix products run on one thread unless OPENBLAS_NUM_THREADS says otherwise: these matrices
are small, and where other programs keep the cores busy, threads would wait for each other.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from pydoc_data import topics
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is loaded

import numpy as np

import viz
from tinygrad_rnn import Module, Tensor, data, nn, no_grad, optim, train
from tinygrad_rnn.errors import CheckpointError, StateError
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


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the settings."""
    parser = argparse.ArgumentParser(
        description="Train an LSTM character language model on the help texts of Python.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--hidden", type=int, default=128, metavar="H", help="size of the LSTM")
    add("--embedding", type=int, default=64, metavar="D", help="size of a character's vector")
    add("--steps", type=int, default=32, metavar="T", help="steps that gradients reach back")
    add("--batch", type=int, default=32, metavar="N", help="streams read side by side")
    add("--epochs", type=int, default=4, help="passes over the text")
    add("--lr", type=float, default=8e-3, help="learning rate of Adam; falls to 0 as a cosine")
    add("--clip", type=float, default=1.0, help="greatest norm of the gradient")
    add("--limit-chars", type=int, metavar="n", help="use only the first n characters")
    add("--seed", type=int, default=0, help="of the initial weights and of the sample")
    add("--sample", type=int, default=400, metavar="n", help="characters to write at the end")
    add("--temperature", type=float, default=0.7, help="below 1: more cautious writing")
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="for drawing and history")
    add("--checkpoint", type=Path, metavar="PATH", help="file (default: char_lm.npz in --out)")
    add("--resume", action="store_true", help="continue from the checkpoint if there is one")
    add("--quiet", action="store_true", help="print only the result")
    args = parser.parse_args(argv)
    if not 0 < args.temperature < math.inf:
        parser.error(f"--temperature {args.temperature}: expected a number above 0")
    if args.sample < 0:
        parser.error(f"--sample {args.sample}: expected 0 or more")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Do all of it; return the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        return run(read_arguments(words), words)
    except KeyboardInterrupt:
        print("stopped; --resume goes on from the last checkpoint, if there is one")
        return 130


def run(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Train, measure, write and draw; return the exit status."""
    begin = time.perf_counter()
    say = (lambda *_: None) if args.quiet else print
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.checkpoint or args.out / "char_lm.npz"

    text = "\n".join(topics.topics.values())[: args.limit_chars]
    vocabulary = data.Vocabulary(text)
    ids, V = vocabulary.encode(text), len(vocabulary)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    say(f"text: {len(text):,} characters, {V} different, sha256 {digest}... (differs by Python)")

    cut = len(ids) * 9 // 10
    batches = data.bptt_batches(ids[:cut], batch_size=args.batch, steps=args.steps)
    held_out = data.bptt_batches(ids[cut:], batch_size=8, steps=100)
    unigram, bigram = count_baselines(ids[:cut], held_out, V)
    say(f"held out: the last {len(ids) - cut:,} characters")
    say(f"baselines: unigram {unigram:.3f}, bigram {bigram:.3f} nats per character")

    model = CharLM(V, args.embedding, args.hidden, rng=args.seed)
    [first] = data.bptt_batches(  # a batch's worth of text
        ids[: args.batch * args.steps + 1], batch_size=args.batch, steps=args.steps
    )
    untrained = train.evaluate(model, [first], loss) * args.steps
    uniform = args.steps * math.log(V)
    say(f"untrained: {untrained:.2f} nats in T={args.steps} steps; T ln V = {uniform:.2f}")
    say(model.summary())

    schedule = optim.cosine(args.lr, steps=args.epochs * len(batches))
    try:
        history = train.fit(
            model,
            batches,
            loss,
            optim.Adam(model.parameters(), lr=schedule),
            epochs=args.epochs,
            clip=args.clip,
            validation=held_out,
            checkpoint=checkpoint,
            resume=args.resume,
            progress=False if args.quiet else None,
        )
    except (CheckpointError, StateError) as error:
        raise SystemExit(f"cannot resume: {error}") from error
    history.save(args.out / "char_lm.csv")
    for epoch, value in history.validation.items():
        say(f"epoch {epoch}: validation {value:.3f} nats per character")
    if history.interrupted:
        command = ["python", "examples/char_lm.py", *words] + ["--resume"] * (not args.resume)
        print(f"stopped after step {len(history.step)}; to go on: {shlex.join(command)}")
        return 130

    rng = np.random.default_rng(args.seed)
    start = text[cut : cut + 20]
    say(f"sample after {start!r}, temperature {args.temperature}:")
    say(sample(model, vocabulary, start, args.sample, args.temperature, rng))
    x, y = first
    say(draw(model, x[:4, :1], y[:4, :1], args.out / "char_lm.svg"))
    say(f"history: {args.out / 'char_lm.csv'}, checkpoint: {checkpoint}")
    print(
        f"RESULT val_nats_per_char={history.validation[args.epochs]:.4f} unigram={unigram:.4f} "
        f"bigram={bigram:.4f} seconds={time.perf_counter() - begin:.1f}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
