"""A network looks at a digit and spells its name: one to many.

The lecture's picture of one to many is image captioning, from an image to a sequence of words.
Here the images are scikit-learn's 1797 handwritten digits of 8 x 8, and the caption is the digit's
name, letter by letter: "zero" to "nine", then a full stop.  A small encoder turns the image into
the first state of a GRU.  In training the network reads the letters before (teacher forcing), on
new images its own.  The first letter does not settle the word, as with "two" and "three" or "six"
and "seven": the state has to keep the image while it spells.

    python examples/caption_digits.py

There is no published figure for this task; always spelling the commonest name is right for every
tenth image.  The accuracies of the RESULT line are the means of the seeds, each with a split and a
network of its own.
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np

from tinygrad_rnn import Module, Tensor, nn, no_grad, optim
from tinygrad_rnn.data import Vocabulary, batches, pad
from tinygrad_rnn.functional import cross_entropy
from tinygrad_rnn.ops import tanh

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
END = "."  # ends a name, and begins one
VOCABULARY = Vocabulary(END + "".join(NAMES))
[STOP] = VOCABULARY.encode(END)
SPELLED, LENGTHS = pad([VOCABULARY.encode(name + END) for name in NAMES], value=STOP)  # (6, 10)


class Captioner(Module):
    """An image (N, 64) makes the first state; letters follow."""

    def __init__(self, H: int, rng: Any = None) -> None:
        V = len(VOCABULARY)
        self.encoder = nn.Sequential(nn.Linear(64, H, rng=rng), nn.Dropout(0.2, rng=rng))
        self.embedding = nn.Embedding(V, 16, rng=rng)
        self.decoder = nn.Readout(nn.GRU(16, H, rng=rng), V, rng=rng)

    def forward(self, images: Any, letters: Any) -> Tensor:
        """Return the logits (T, N, V) of the letters that follow those given, (T, N)."""
        state = tanh(self.encoder(images))[None]
        logits, _ = self.decoder(self.embedding(letters), state)
        return logits

    def spell(self, images: Any, steps: int) -> np.ndarray:
        """Return the letters (steps, N) that the network writes, each read before the next."""
        state, letters = tanh(self.encoder(images))[None], [np.full(len(images), STOP)]
        for _ in range(steps):
            logits, state = self.decoder(self.embedding(letters[-1][None]), state)
            letters.append(logits.numpy()[0].argmax(-1))
        return np.stack(letters[1:])


def loss(model: Captioner, batch: Any, state: Any) -> tuple[Tensor, Any]:
    """Return the mean cross-entropy of a letter, in nats; what follows the stop does not count."""
    images, digits = batch
    y = SPELLED[:, digits]
    before = np.concatenate([np.full((1, len(digits)), STOP), y[:-1]])
    logits = model(images, before)
    return cross_entropy(logits, y, reduction="mean", mask=counted(digits)), None


def counted(digits: Any) -> np.ndarray:
    """Return which letters (T, N) belong to the names, the full stop included."""
    mask: np.ndarray = np.arange(len(SPELLED))[:, None] < LENGTHS[digits]
    return mask


def accuracies(letters: np.ndarray, digits: np.ndarray) -> tuple[float, float]:
    """Return which parts of the words and of the letters are right."""
    mask = counted(digits)
    right = letters == SPELLED[:, digits]
    return float((right | ~mask).all(axis=0).mean()), float(right[mask].mean())


def show(image: np.ndarray, name: str) -> str:
    """Return an image (64,) as text, its name beside it."""
    rows = ["".join([" .:-=+*#%@"[int(9 * v)] * 2 for v in row]) for row in image.reshape(8, 8)]
    return "\n".join([*rows[:-1], f"{rows[-1]}   {name}"])


SETTINGS = {
    "hidden": (128, "size H of the state"),
    "epochs": (30, "passes over the training images"),
    "held_out": (450, "of 1797 images"),
    "seeds": (3, "splits and networks"),
}
SMALL = ["--hidden", "16", "--epochs", "1", "--held-out", "1400", "--seeds", "1"]


def check(args: Any) -> str | None:
    """Return what is wrong with the settings."""
    if args.held_out > 1700:
        return f"--held-out {args.held_out}: expected at most 1700, to leave some for training"
    return None


def run(session: common.Session) -> dict[str, float]:
    """Train and read what the networks spell; return the accuracies."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit(
            "the images come with scikit-learn, which is missing: pip install -e '.[examples]'"
        ) from error
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    found = []
    for seed in range(session.seed, session.seed + session.seeds):
        rng = np.random.default_rng(seed)
        test, train = np.split(rng.permutation(len(images)), [session.held_out])
        majority = np.bincount(digits[train]).argmax()
        words, letters = accuracies(SPELLED[:, np.full(len(test), majority)], digits[test])
        session.say(f"seed {seed}: {len(train)} images to learn from, {len(test)} held out")
        session.say(f'  always "{NAMES[majority]}": words {words:.3f}, letters {letters:.3f}')

        model = Captioner(session.hidden, rng)
        data = batches(images[train], digits[train], batch_size=32, rng=rng)
        adam = optim.Adam(model.parameters(), optim.cosine(5e-3, session.epochs * len(data)))
        session.fit(model, data, loss, adam, epochs=session.epochs, clip=1.0, label=f"seed-{seed}")
        model.eval()
        with no_grad():
            spelled = model.spell(images[test], len(SPELLED))
        found.append(accuracies(spelled, digits[test]))
        words, letters = found[-1]
        session.say(f"  spelled: words {words:.3f}, letters {letters:.3f} (published: none)")
    for i in range(2):
        name = VOCABULARY.decode(spelled[:, i]).split(END)[0]
        session.say(show(images[test[i]], f'"{name}", is {NAMES[digits[test[i]]]}'))
    words, letters = np.mean(found, axis=0)
    return {"word_accuracy": words, "char_accuracy": letters}


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    return common.main(__file__, __doc__, SETTINGS, run, argv, check)


if __name__ == "__main__":
    raise SystemExit(main())
