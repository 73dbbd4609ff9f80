"""Learn to add by reading and writing digits, "535+61" to "596": encoder and decoder.

An encoder reads the question letter by letter, and its last state starts a decoder that writes the
sum, most significant digit first.  The source is read backwards, as in the lecture's translation
network (Sutskever, Vinyals and Le 2014): then its beginning is near that of the answer.  The same
network without the reversal is trained beside it.

    python examples/addition.py           # 5 passes over 45,000 questions
    python examples/addition.py --long    # 12 passes: 99% per character

The task is that of Keras' example addition_rnn: two numbers of up to 3 digits, 50,000 different
questions, of which a tenth is held out, padded with spaces to 7 and 4 characters; the spaces count.
Published there: 99% of the characters in 100 epochs at a batch of 128, in about 30 at 32.  The
accuracies of the RESULT line are means of the seeds, on held-out questions, the network reading its
own digits.
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np

from tinygrad_rnn import Tensor, nn, optim
from tinygrad_rnn.data import Vocabulary, batches

GO = ">"
VOCABULARY = Vocabulary(GO + "0123456789+ ")


def questions(count: int, digits: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids (T, count) of different questions, a+b also as b+a, and (U, count) of sums."""
    seen: dict[tuple[int, ...], str] = {}
    while len(seen) < count:
        a, b = rng.integers(0, 10 ** rng.integers(1, digits + 1, 2)).tolist()
        seen.setdefault((min(a, b), max(a, b)), f"{a}+{b}")
    x = [VOCABULARY.encode(question.ljust(2 * digits + 1)) for question in seen.values()]
    y = [VOCABULARY.encode(str(sum(pair)).ljust(digits + 1)) for pair in seen]
    return np.stack(x, axis=1), np.stack(y, axis=1)


def adder(hidden: int, digits: int, reverse: bool, rng: Any) -> nn.EncoderDecoder:
    """Return the network; its answers have one digit more than a number."""
    V, [go] = len(VOCABULARY), VOCABULARY.encode(GO).tolist()
    return nn.EncoderDecoder(
        V, V, hidden, embedding_size=32, go=go, eos=None, max_length=digits + 1,
        reverse=reverse, rng=rng,
    )  # fmt: skip


def loss(model: nn.EncoderDecoder, batch: Any, state: Any) -> tuple[Tensor, Any]:
    """Return the mean cross-entropy of a character of the sums, in nats."""
    x, y = batch
    return model.loss(x, y), None


SETTINGS = {
    "digits": (3, "of a number, at most"),
    "hidden": (128, "size H of the two LSTMs"),
    "samples": (50_000, "questions, a tenth held out"),
    "epochs": (5, "passes over the others"),
    "seeds": (3, "draws of questions, and networks of each kind"),
    "long": (False, "12 passes"),
}
SMALL = ["--hidden=8", "--samples=300", "--epochs=1", "--seeds=1"]


def check(args: Any) -> str | None:
    """Return what is wrong with the settings."""
    most = 10**args.digits * (10**args.digits + 1) // 2
    if not 10 <= args.samples <= most // 2:
        return (
            f"--samples {args.samples}: expected 10 to {most // 2:,}, half of the {most:,} "
            f"questions of --digits {args.digits}"
        )
    return None


def run(session: common.Session) -> dict[str, float]:
    """Train with and without reversal, seed by seed; return the mean accuracies."""
    say, held_out = session.say, session.samples // 10
    epochs = 12 if session.long else session.epochs
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for seed in range(session.seed, session.seed + session.seeds):
        x, y = questions(session.samples, session.digits, np.random.default_rng(seed))
        test_x, test_y = x[:, :held_out], y[:, :held_out]
        majority = [np.bincount(place).argmax() for place in y[:, held_out:]]
        right = test_y == np.array(majority)[:, None]
        say(f"seed {seed}: always {VOCABULARY.decode(majority)!r}: characters {right.mean():.3f}")
        for reverse in found:
            rng = np.random.default_rng(seed)
            model = adder(session.hidden, session.digits, reverse, rng)
            data = batches(x[:, held_out:], y[:, held_out:], axis=1, batch_size=64, rng=rng)
            adam = optim.Adam(model.parameters(), optim.cosine(5e-3, epochs * len(data)))
            name = "reversed" if reverse else "as it is"
            session.fit(
                model, data, loss, adam, epochs=epochs, clip=1.0,
                label=f"{name.replace(' ', '-')}-{seed}",
            )  # fmt: skip
            model.eval()
            answers = np.stack(model.greedy(test_x), axis=1)
            right = answers == test_y
            found[reverse].append((right.mean(), right.all(axis=0).mean()))
            say(
                f"  source {name}: characters %.4f, whole sums %.4f" % found[reverse][-1],
                f"({session.seconds():.0f} s)",
            )
    say("published: 99% of the characters in 100 epochs (batch 128), about 30 (batch 32)")
    for n in range(3):
        question, answer = VOCABULARY.decode(test_x[:, n]), VOCABULARY.decode(answers[:, n])
        say(f"{question} = {answer} {'' if right[:, n].all() else '(wrong)'} (source as it is)")
    (letters, exact), (unreversed, _) = (np.mean(runs, axis=0) for runs in found.values())
    return {"char_accuracy": letters, "exact": exact, "unreversed_char_accuracy": unreversed}


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    return common.main(__file__, __doc__, SETTINGS, run, argv, check)


if __name__ == "__main__":
    raise SystemExit(main())
