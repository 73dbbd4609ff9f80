"""Is a sentence kind or unkind?  The lecture's many to one, sentiment analysis.

The sentences come from a small grammar, in which negation turns a word around ("not good", "nothing
about the film was bad") and of two clauses the main one counts ("although the plot was good, ...").
So the order of the words decides: "the film was good , not bad" and "the film was bad , not good"
have the same words.  A bag of words, logistic regression on how often each word occurs, must fail
on these; an LSTM that reads word by word need not.

    python examples/sentiment.py

No held-out sentence is a training sentence.  The accuracy of the RESULT line is the worst of three
seeds.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import common
import numpy as np

from tinygrad_rnn import Module, Tensor, data, nn, no_grad, optim
from tinygrad_rnn.functional import cross_entropy

WORDS = [  # by sentiment: 0 unkind, 1 kind
    ["bad", "boring", "awful", "dull", "weak", "sad"],
    ["good", "funny", "lovely", "clever", "strong", "moving"],
]
SUBJECTS = ["the film", "the plot", "the book", "the acting", "the music", "this story"]
KEEP = ["{s} was {w}", "{s} was very {w}", "{s} was {w} , not {other}"]
TURN = [
    "{s} was not {w}",
    "{s} was not very {w}",
    "nothing about {s} was {w}",
    "nobody said that {s} was {w}",
]
NEGATIONS = {"not", "nothing", "nobody"}


class Reader(Module):
    """An LSTM reads the words; its last state says which sentiment: many to one."""

    def __init__(self, V: int, embedding: int, H: int, rng: Any = None) -> None:
        rng = np.random.default_rng(rng)
        self.embedding = nn.Embedding(V, embedding, rng=rng)
        self.lstm = nn.LSTM(embedding, H, rng=rng)
        self.linear = nn.Linear(H, 2, rng=rng)

    def forward(self, sentences: list[Any]) -> Tensor:
        """Return logits (N, 2) for N sequences of ids."""
        ids, lengths = data.pad(sentences)
        _, (h, _) = self.lstm(self.embedding(ids), lengths=lengths)
        return self.linear(h[-1])


class BagOfWords(Module):
    """Logistic regression on the number of times that each word occurs."""

    def __init__(self, V: int, rng: Any = None) -> None:
        self.V = V
        self.linear = nn.Linear(V, 2, rng=rng)

    def forward(self, sentences: list[Any]) -> Tensor:
        """Return logits (N, 2) for N sequences of ids."""
        return self.linear(np.stack([np.bincount(ids, minlength=self.V) for ids in sentences]))


def loss(model: Module, batch: Any, state: Any) -> tuple[Tensor, Any]:
    """Return the mean cross-entropy of a batch."""
    sentences, y = batch
    return cross_entropy(model(sentences), y, reduction="mean"), None


def clause(rng: np.random.Generator) -> tuple[str, int]:
    """Return a clause and its sentiment: that of its word; in a quarter, the other one."""
    word, turned = rng.integers(2), rng.random() < 1 / 4
    form = rng.choice(TURN if turned else KEEP)
    s, w, other = rng.choice(SUBJECTS), rng.choice(WORDS[word]), rng.choice(WORDS[1 - word])
    return form.format(s=s, w=w, other=other), int(word ^ turned)


def sentence(rng: np.random.Generator) -> tuple[str, int]:
    """Return a sentence and its sentiment, that of its main clause."""
    (a, _), (b, y) = clause(rng), clause(rng)
    return str(rng.choice([b, f"{a} but {b}", f"although {a} , {b}", f"{b} although {a}"])), y


def sample(count: int, rng: np.random.Generator) -> tuple[list[str], Any]:
    """Return `count` different sentences and their sentiments."""
    found: dict[str, int] = {}
    while len(found) < count:
        text, y = sentence(rng)
        found[text] = y
    return list(found), np.array(list(found.values()))


def predict(model: Module, sentences: list[Any]) -> Any:
    """Return the more probable sentiment of each."""
    with no_grad():
        return model(sentences).numpy().argmax(1)


SETTINGS = {
    "hidden": (32, "hidden size H"),
    "embedding": (16, "size D of a word's vector"),
    "samples": (8000, "training sentences"),
    "held_out": (2000, "sentences to test on"),
    "epochs": (6, "passes over them"),
    "lr": (1e-2, "learning rate of Adam; falls to 0 as a cosine"),
    "seeds": (3, "runs of the LSTM"),
}
SMALL = ["--samples=200", "--held-out=50", "--epochs=1", "--hidden=8", "--seeds=1"]


def run(session: common.Session) -> dict[str, float]:
    """Train both models; return how often they are right about new sentences."""
    say, held = session.say, session.held_out
    texts, y = sample(session.samples + held, np.random.default_rng(session.seed))
    vocabulary = data.Vocabulary([word for text in texts for word in text.split()])
    x = [vocabulary.encode(text.split()) for text in texts]
    bags = Counter(tuple(sorted(ids)) for ids in x)
    twins = sum([n for n in bags.values() if n > 1])
    say(f"{len(x)} different sentences of {len(vocabulary)} words, {held} of them held out,")
    say(f"none of them a training sentence; {twins} have exactly the words of another one:")
    for text, value in zip(texts[:6], y, strict=False):
        say(f"    {'+' if value else '-'} {text}")

    negated = np.array([not NEGATIONS.isdisjoint(text.split()) for text in texts[:held]])

    def accuracy(model: Module, name: str, seed: int) -> float:
        batches = data.batches(x[held:], y[held:], batch_size=32, rng=seed)
        label, steps = f"{name}-{seed}", session.epochs * len(batches)
        adam = optim.Adam(model.parameters(), optim.cosine(session.lr, steps))
        session.fit(model, batches, loss, adam, epochs=session.epochs, clip=1.0, label=label)
        right = predict(model, x[:held]) == y[:held]
        say(
            f"{label}: {right.mean():.2%} ({right[~negated].mean():.2%} without a negation, "
            f"{right[negated].mean():.2%} with one; {session.seconds():.0f} s)"
        )
        return float(right.mean())

    V = len(vocabulary)
    majority = max(y[:held].mean(), 1 - y[:held].mean())
    say(f"always the same answer: {majority:.2%}")
    bag = accuracy(BagOfWords(V, rng=session.seed), "bag", session.seed)
    worst = 1.0
    for seed in range(session.seed, session.seed + session.seeds):
        model = Reader(V, session.embedding, session.hidden, rng=seed)
        worst = min(worst, accuracy(model, "lstm", seed))
    for text in ["the film was good , not bad", "the film was bad , not good"]:
        answer = predict(model, [vocabulary.encode(text.split())])[0]
        say(f"the last LSTM about '{text}': {'+' if answer else '-'}")
    return {"accuracy": worst, "bag_of_words": bag}


def check(args: Any) -> str | None:
    """Return what is wrong with the settings."""
    if args.samples + args.held_out > 10**6:
        return f"--samples {args.samples}: expected 1,000,000 with the held-out ones, or fewer"
    return None


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    return common.main(__file__, __doc__, SETTINGS, run, argv, check)


if __name__ == "__main__":
    raise SystemExit(main())
