"""Label every character of Python source by the kind of its token: synced many to many.

The lecture's synced sequences have an output for every input, at once.  Here the inputs are the
characters of files of Python's own library, and the labels are what `tokenize` says they belong to:
a string, a comment, a keyword, ...  An LSTM that reads forward cannot know that `i` begins `if`, or
`r` a raw string; one that reads in both directions can.  So that this does not compare sizes, the
forward LSTM has as many outputs as both directions together, and more weights.

    python examples/label_source.py

There is no published figure for this task; the baselines are the commonest kind, and the commonest
kind of each character.  All figures are parts of the characters of files that training never sees;
they differ a little between versions of Python, whose files differ.
"""

from __future__ import annotations

import hashlib
import io
import keyword
import platform
import tokenize
from pathlib import Path
from typing import Any

import common
import numpy as np

from tinygrad_rnn import Module, Tensor, nn, no_grad, optim
from tinygrad_rnn.data import Batches, Vocabulary, batches
from tinygrad_rnn.functional import cross_entropy

LIBRARY = Path(tokenize.__file__).parent
TRAIN = [
    "calendar", "contextlib", "csv", "fractions", "gettext", "heapq", "queue", "random", "shlex",
    "textwrap", "trace",
]  # fmt: skip
HELD_OUT = ["cmd", "graphlib", "tempfile", "timeit"]
KINDS = ["space", "name", "keyword", "number", "operator", "string", "comment"]


class Labeller(Module):
    """Ids of characters (T, N) -> logits (T, N, K) of their kinds."""

    def __init__(self, V: int, H: int, bidirectional: bool, rng: Any = None) -> None:
        self.embedding = nn.Embedding(V, 24, rng=rng)
        lstm = nn.LSTM(24, H, bidirectional=bidirectional, rng=rng)
        self.readout = nn.Readout(lstm, len(KINDS), rng=rng)

    def forward(self, ids: Any) -> Tensor:
        """Return the logits."""
        logits, _ = self.readout(self.embedding(ids))
        return logits


def loss(model: Labeller, batch: Any, state: Any) -> tuple[Tensor, Any]:
    """Return the mean cross-entropy of a character's kind, in nats."""
    ids, kinds = batch
    return cross_entropy(model(ids), kinds, reduction="mean"), None


def kinds_of(source: str) -> np.ndarray:
    """Return the kind of each character, as a number (T,); what is in no token is space."""
    starts = np.cumsum([0, 0, *map(len, source.splitlines(keepends=True))])  # rows count from 1
    kinds = np.zeros(len(source), np.int64)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = tokenize.tok_name[token.type].lower()
        name = {"op": "operator"}.get(name, "string" if name.startswith("fstring") else name)
        if name == "name" and keyword.iskeyword(token.string):
            name = "keyword"
        if name in KINDS:
            (row, column), (last_row, last_column) = token.start, token.end
            kinds[starts[row] + column : starts[last_row] + last_column] = KINDS.index(name)
    return kinds


def read(names: list[str], limit: int) -> tuple[str, np.ndarray]:
    """Return the first `limit` characters of some files, and their kinds."""
    try:
        sources = [(LIBRARY / f"{name}.py").read_text("utf-8") for name in names]
    except OSError as error:
        raise SystemExit(f"this Python comes without its sources: {error}") from error
    kinds = np.concatenate([kinds_of(source) for source in sources])
    return "".join(sources)[:limit], kinds[:limit]


def cut(ids: np.ndarray, kinds: np.ndarray, T: int, **settings: Any) -> Batches[Any]:
    """Return pieces of T characters in batches."""
    count = len(ids) // T
    x, y = (a[: count * T].reshape(count, T).T for a in (ids, kinds))
    return batches(x, y, axis=1, batch_size=32, **settings)


def recalls(model: Labeller, data: Batches[Any]) -> tuple[float, np.ndarray]:
    """Return which part of all characters, and of those of each kind, is labelled right."""
    right, total = np.zeros((2, len(KINDS)))
    with no_grad():
        for ids, kinds in data:
            hit = model(ids).numpy().argmax(-1) == kinds
            right += np.bincount(kinds[hit], minlength=len(KINDS))
            total += np.bincount(kinds.ravel(), minlength=len(KINDS))
    return right.sum() / total.sum(), right / np.maximum(total, 1)


SETTINGS = {
    "hidden": (48, "size H of each of two directions; the forward LSTM has 2 H"),
    "steps": (100, "characters T of a piece"),
    "epochs": (3, "passes over the text"),
    "seeds": (3, "runs of each network"),
    "limit_chars": (10**9, "use only the first ones of the texts"),
}
SMALL = ["--hidden=8", "--steps=20", "--epochs=1", "--seeds=1", "--limit-chars=3000"]


def check(args: Any) -> str | None:
    """Return what is wrong with the settings."""
    if args.limit_chars < args.steps:
        return f"--limit-chars {args.limit_chars}: expected at least one piece, {args.steps}"
    return None


def run(session: common.Session) -> dict[str, float]:
    """Train both networks, seed by seed; return which part of the held-out characters is right."""
    say = session.say
    text, kinds = read(TRAIN, session.limit_chars)
    test_text, test_kinds = read(HELD_OUT, session.limit_chars)
    digest = hashlib.sha256((text + test_text).encode()).hexdigest()[:12]
    say(f"Python {platform.python_version()}, sha256 of the texts {digest}...")
    say(f"train: {len(text):,} characters of {', '.join(TRAIN)}")
    say(f"held out: {len(test_text):,} characters of {', '.join(HELD_OUT)}")
    vocabulary = Vocabulary(["<unk>", *text], unknown="<unk>")
    ids, test_ids = vocabulary.encode(list(text)), vocabulary.encode(list(test_text))

    counts = np.zeros((len(vocabulary), len(KINDS)), int)
    np.add.at(counts, (ids, kinds), 1)
    majority = float(np.mean(test_kinds == counts.sum(0).argmax()))
    by_character = float(np.mean(test_kinds == counts.argmax(1)[test_ids]))
    say(f"always {KINDS[counts.sum(0).argmax()]}: {majority:.4f} (published: none)")
    say(f"the commonest kind of each character: {by_character:.4f}")

    held_out = cut(test_ids, test_kinds, session.steps, shuffle=False)
    found: dict[str, list[Any]] = {"bidirectional": [], "forward": []}
    for seed in range(session.seed, session.seed + session.seeds):
        for name in found:
            both = name == "bidirectional"
            H = session.hidden if both else 2 * session.hidden
            rng = np.random.default_rng(seed)
            model = Labeller(len(vocabulary), H, both, rng)
            data = cut(ids, kinds, session.steps, rng=rng)
            adam = optim.Adam(model.parameters(), optim.cosine(1e-2, session.epochs * len(data)))
            session.fit(
                model, data, loss, adam, epochs=session.epochs, clip=1.0, label=f"{name}-{seed}"
            )
            found[name].append(recalls(model, held_out))
            say(f"seed {seed}, {name}: {found[name][-1][0]:.4f} ({session.seconds():.0f} s)")
    say(f"{'right by kind':>15}" + "".join([f"{kind:>10}" for kind in KINDS]))
    for name, results in found.items():
        mean = np.mean([by_kind for _, by_kind in results], axis=0)
        say(f"{name:>15}" + "".join([f"{value:10.3f}" for value in mean]))
    result = {name: float(np.mean([a for a, _ in results])) for name, results in found.items()}
    return {**result, "majority": majority}


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    return common.main(__file__, __doc__, SETTINGS, run, argv, check)


if __name__ == "__main__":
    raise SystemExit(main())
