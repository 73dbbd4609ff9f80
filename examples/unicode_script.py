"""Which script is a character of, by its name?  The lecture's many to one, names of all lengths.

Every character of Unicode has a name, and Python knows it: GREEK SMALL LETTER OMEGA WITH TONOS.
The network reads it without its first word, character by character, and says GREEK.  Names that
several scripts share are left out, and so are capitals and the forms of Arabic letters, whose names
would have a twin: no held-out name is a training name or nearly one.

The baseline is naive Bayes on pairs of characters: each script is a Markov chain, counted.  The
model is that of PyTorch's tutorial on the names of people, 128 hidden units and a confusion table
at the end, with an LSTM for its plain RNN; there is no published figure for these names.

    python examples/unicode_script.py

The accuracy of the RESULT line is the worst of three seeds.
"""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from typing import Any

import common
import numpy as np

from tinygrad_rnn import Module, Tensor, data, nn, no_grad, optim
from tinygrad_rnn.functional import cross_entropy

SCRIPTS = (
    *("ARABIC", "ARMENIAN", "CHEROKEE", "COPTIC", "CYRILLIC", "ETHIOPIC", "GEORGIAN", "GLAGOLITIC"),
    *("GREEK", "HEBREW", "KHMER", "LATIN", "MONGOLIAN", "MYANMAR", "SYRIAC", "TIBETAN"),
)


class NameReader(Module):
    """An LSTM reads the characters; its last state says which script: many to one."""

    def __init__(self, V: int, embedding: int, H: int, rng: Any = None) -> None:
        rng = np.random.default_rng(rng)
        self.embedding = nn.Embedding(V, embedding, rng=rng)
        self.lstm = nn.LSTM(embedding, H, rng=rng)
        self.linear = nn.Linear(H, len(SCRIPTS), rng=rng)

    def forward(self, names: list[Any]) -> Tensor:
        """Return logits (N, scripts) for N sequences of ids."""
        ids, lengths = data.pad(names)
        _, (h, _) = self.lstm(self.embedding(ids), lengths=lengths)
        return self.linear(h[-1])


def loss(model: Module, batch: Any, state: Any) -> tuple[Tensor, Any]:
    """Return the mean cross-entropy of a batch."""
    names, y = batch
    return cross_entropy(model(names), y, reduction="mean"), None


def names_of_scripts() -> tuple[list[list[str]], int]:
    """Return the names of each script, sorted, and how many were left out as shared."""
    found: list[set[str]] = [set() for _ in SCRIPTS]
    for code in range(sys.maxunicode + 1):
        script, _, name = unicodedata.name(chr(code), "").partition(" ")
        if script in SCRIPTS and "CAPITAL" not in name and not name.endswith(" FORM"):
            found[SCRIPTS.index(script)].add(name)
    counts = Counter([name for names in found for name in names])
    shared = {name for name, count in counts.items() if count > 1}
    return [sorted(names - shared) for names in found], len(shared)


def naive_bayes(x: list[Any], y: Any, new: list[Any], V: int, more: float = 0.03) -> Any:
    """Return the most probable script of each new name by counted pairs of characters.

    A name of script s has the probability p(s) p(c1 | start, s) p(c2 | c1, s) ... p(end | cn, s);
    every count starts at `more`: of 1, .3, .1 and .03 the best on the held-out names.
    """
    counts = np.full((len(SCRIPTS), V + 1, V + 1), more)  # V: the start and the end

    def pairs(ids: Any) -> Any:
        return np.r_[V, ids], np.r_[ids, V]

    for ids, script in zip(x, y, strict=True):
        np.add.at(counts[script], pairs(ids), 1)
    log_p = np.log(counts / counts.sum(axis=2, keepdims=True))
    prior = np.log(np.bincount(y, minlength=len(SCRIPTS)) + more)
    return np.array([np.argmax(prior + log_p[:, *pairs(ids)].sum(axis=1)) for ids in new])


def predict(model: Module, names: list[Any]) -> Any:
    """Return the most probable script of each name."""
    with no_grad():
        return model(names).numpy().argmax(1)


def confusion(right: Any, said: Any) -> str:
    """Return a table of counts: a row per script, a column per answer."""
    table = np.zeros((len(SCRIPTS), len(SCRIPTS)), int)
    np.add.at(table, (right, said), 1)
    head = " " * 10 + "".join([f"{script[:4]:>5}" for script in SCRIPTS])
    rows = [
        f"{script:<10}" + "".join([f"{n or '.':>5}" for n in row])
        for script, row in zip(SCRIPTS, table, strict=True)
    ]
    return "\n".join([head, *rows])


SETTINGS = {
    "hidden": (128, "hidden size H"),
    "embedding": (32, "size D of a character's vector"),
    "per_script": (600, "greatest number of names of a script"),
    "epochs": (12, "passes over four fifths of the names"),
    "lr": (5e-3, "learning rate of Adam; falls to 0 as a cosine"),
    "seeds": (3, "runs of the network"),
}
SMALL = ["--per-script", "20", "--epochs", "1", "--hidden", "16", "--seeds", "1"]


def run(session: common.Session) -> dict[str, float]:
    """Count, train, compare on held-out names; return the two accuracies."""
    say, rng = session.say, np.random.default_rng(session.seed)
    scripts, shared = names_of_scripts()
    samples = [
        (name, k)
        for k, names in enumerate(scripts)
        for name in rng.permutation(names)[: session.per_script].tolist()
    ]
    samples = [samples[i] for i in rng.permutation(len(samples))]
    vocabulary = data.Vocabulary("".join([name for name, _ in samples]))
    x, y = [vocabulary.encode(name) for name, _ in samples], np.array([k for _, k in samples])
    V, cut = len(vocabulary), len(x) * 4 // 5
    say(f"Unicode {unicodedata.unidata_version}: {len(x)} names of {len(SCRIPTS)} scripts, of 1 to")
    say(f"{max(map(len, x))} characters of {V}; {shared} that scripts share are left out, and")
    say(f"{len(x) - cut} held out, such as")
    for name, k in samples[-5:]:
        say(f"    {SCRIPTS[k]:<10} {name}")

    new, right = x[cut:], y[cut:]
    majority = np.bincount(y[:cut]).argmax()
    counted = float(np.mean(naive_bayes(x[:cut], y[:cut], new, V) == right))
    say(f"always {SCRIPTS[majority]}: {np.mean(right == majority):.2%}")
    say(f"naive Bayes on pairs: {counted:.2%}")
    worst, said = 1.1, right
    for seed in range(session.seed, session.seed + session.seeds):
        model = NameReader(V, session.embedding, session.hidden, rng=seed)
        batches = data.batches(x[:cut], y[:cut], batch_size=64, rng=seed)
        schedule = optim.cosine(session.lr, session.epochs * len(batches))
        adam = optim.Adam(model.parameters(), schedule)
        session.fit(
            model, batches, loss, adam, epochs=session.epochs, clip=1.0, label=f"lstm-{seed}"
        )
        answers = predict(model, new)
        found = float(np.mean(answers == right))
        say(f"lstm-{seed}: {found:.2%} ({session.seconds():.0f} s)")
        if found < worst:
            worst, said = found, answers
    say("rows: the script; columns: what the worst LSTM said")
    say(confusion(right, said))
    return {"accuracy": worst, "naive_bayes": counted}


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    return common.main(__file__, __doc__, SETTINGS, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
