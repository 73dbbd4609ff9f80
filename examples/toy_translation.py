"""Translation: "I drink milk" -> "Je bois du lait", an encoder and a decoder on a toy grammar.

The lecture's Fig 14-15.  An LSTM reads the English sentence backwards, its last state is the first
state of a second LSTM, which reads <go> and then each French word that it should have written
before, and is asked for the next one and for <eos> at the end.  The grammar makes 50,400 sentences.
A dictionary cannot translate them: verbs agree with their subjects, articles with what follows (du
lait, de la soupe, de l'eau, but de la bonne eau), some adjectives change places, "not" is two words
around the verb (ne bois pas de lait), and who likes milk likes le lait.  Tested on sentences that
training has not seen, "I drink milk" among them.  The architecture is Sutskever, Vinyals
and Le's (2014); no figure is published for a toy.

    python examples/toy_translation.py                                # three seeds
    python examples/toy_translation.py --seeds 1 --samples 500        # too few to learn it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import common
import numpy as np

from tinygrad_rnn import Tensor, nn, optim
from tinygrad_rnn.data import Vocabulary, batches

SUBJECTS = [  # English, French, person: 0 I, 1 you, 2 he, 3 we, 4 they
    ("I", "je", 0), ("you", "vous", 1), ("he", "il", 2), ("she", "elle", 2), ("we", "nous", 3),
    ("they", "ils", 4), ("the boy", "le garçon", 2), ("the girls", "les filles", 4),
    ("my mother", "ma mère", 2), ("my friends", "mes amis", 4),
]  # fmt: skip
VERBS = {
    "drink": "bois buvez boit buvons boivent",
    "eat": "mange mangez mange mangeons mangent",
    "see": "vois voyez voit voyons voient",
    "buy": "achète achetez achète achetons achètent",
    "want": "veux voulez veut voulons veulent",
    "take": "prends prenez prend prenons prennent",
    "like": "aime aimez aime aimons aiment",
}
NOUNS = {
    "milk": "lait m", "bread": "pain m", "coffee": "café m", "tea": "thé m", "cheese": "fromage m",
    "juice": "jus m", "soup": "soupe f", "beer": "bière f", "meat": "viande f", "salad": "salade f",
    "water": "eau f", "oil": "huile f",
}  # fmt: skip
ADJECTIVES = {
    "": ("", ""), "cold": ("froid", "froide"), "hot": ("chaud", "chaude"),
    "fresh": ("frais", "fraîche"), "good": ("bon", "bonne"), "bad": ("mauvais", "mauvaise"),
}  # fmt: skip
BEFORE = ("good", "bad")  # adjectives that stand before their noun
TIMES = {
    "": "", "today": "aujourd'hui", "every day": "tous les jours", "at home": "à la maison",
    "in the evening": "le soir",
}  # fmt: skip


def elided(word: str, following: str) -> str:
    """Return je, ne, de, le or la as it stands before a word: j', n', d', l'."""
    return f"{word[0]}'" if following[0] in "aeh" else word


def translation(subject: Any, no: bool, verb: str, adjective: str, noun: str, time: str) -> Any:
    """Return a sentence and its translation, words apart by spaces."""
    who, qui, person = subject
    nom, gender = NOUNS[noun].split()
    forms = VERBS[verb].split()
    english = [who, "does not" if no and person == 2 else "do not" if no else "", verb]
    english[2] += "s" if person == 2 and not no else ""
    agreeing = ADJECTIVES[adjective][gender == "f"]
    things = f"{agreeing} {nom}" if adjective in BEFORE else f"{nom} {agreeing}"
    definite = elided("le" if gender == "m" else "la", things)
    if verb == "like":
        article = definite
    elif no:
        article = elided("de", things)
    else:
        article = "du" if definite == "le" else f"de {definite}"
    form = forms[person]
    if no:
        form = f"{elided('ne', form)} {form} pas"
    french = [elided(qui, form) if qui == "je" else qui, form, article, things, TIMES[time]]
    return " ".join([*english, adjective, noun, time]).split(), " ".join(french).split()


def grammar() -> list[tuple[list[str], list[str]]]:
    """Return every sentence with its translation."""
    parts = (SUBJECTS, (False, True), VERBS, ADJECTIVES, NOUNS, TIMES)
    return [translation(*words) for words in product(*parts)]


def dictionary(pairs: Sequence[Any]) -> dict[str, str]:
    """Return for each English word the French one that it shares most sentences with, by Dice."""
    english, french, both = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
    for e, f in pairs:
        english.update(set(e))
        french.update(set(f))
        both.update(product(set(e), set(f)))
    found: dict[str, tuple[float, str]] = {}
    for (e, f), n in both.items():
        found[e] = max(found.get(e, (0.0, "")), (n / (english[e] + french[f]), f))
    return {e: f for e, (_, f) in found.items()}


def spoken(words: Sequence[str]) -> str:
    """Return words as they are written: capital first, no space after an apostrophe."""
    text = " ".join(words).replace("' ", "'")
    return text[:1].upper() + text[1:]


def loss(model: Any, batch: Any, state: Any) -> tuple[Tensor, Any]:
    """Return the mean cross-entropy of a French word."""
    return model.loss(*batch), None


SETTINGS = {
    "hidden": (128, "size H of both LSTMs"),
    "embedding": (32, "size D of a word's vector"),
    "samples": (3000, "sentences to learn from"),
    "tests": (1000, "sentences to be tested on"),
    "epochs": (8, "passes over them"),
    "batch": (32, "sentences N in a batch"),
    "lr": (5e-3, "learning rate of Adam; falls to 0 as a cosine"),
    "seeds": (3, "runs; the result is the worst of them"),
}
SMALL = ["--hidden=16", "--embedding=8", "--samples=100", "--tests=30", "--epochs=2", "--seeds=2"]


def run(session: common.Session) -> dict[str, float]:
    """Train, and translate sentences that training has not seen."""
    say = session.say
    pairs = grammar()
    say(f"the grammar makes {len(pairs):,} sentences, {session.samples} are learned from")
    english = Vocabulary(word for e, _ in pairs for word in e)
    french = Vocabulary([word for _, f in pairs for word in f] + ["<go>", "<eos>"])
    go, eos = french.encode(["<go>", "<eos>"])
    lecture = next(k for k, (e, _) in enumerate(pairs) if spoken(e) == "I drink milk")
    results = []
    for seed in range(session.seed, session.seed + session.seeds):
        rng = np.random.default_rng(seed)
        order = rng.permutation(np.delete(np.arange(len(pairs)), lecture))
        learned = [pairs[k] for k in order[: session.samples]]
        tests = [pairs[k] for k in [lecture, *order[-session.tests + 1 :]]]
        words = dictionary(learned)
        literal = [[words.get(e, "") for e in sentence] for sentence, _ in tests]
        baseline = np.mean([a == f for a, (_, f) in zip(literal, tests, strict=True)])
        say(f"seed {seed}; word by word: {baseline:.1%} right, {spoken(literal[0])!r}")

        model = nn.EncoderDecoder(
            len(english), len(french), session.hidden, embedding_size=session.embedding,
            go=go, eos=eos, max_length=20, rng=rng,
        )  # fmt: skip
        sources = [english.encode(e) for e, _ in learned]
        targets = [french.encode(f) for _, f in learned]
        data = batches(sources, targets, batch_size=session.batch, rng=rng)
        adam = optim.Adam(model.parameters(), optim.cosine(session.lr, session.epochs * len(data)))
        session.fit(model, data, loss, adam, epochs=session.epochs, clip=1.0, label=f"seed-{seed}")
        found = model.eval().greedy([english.encode(e) for e, _ in tests])
        answers = [french.decode(ids) for ids in found]
        right = [a == f for a, (_, f) in zip(answers, tests, strict=True)]
        results.append((float(np.mean(right)), float(baseline)))
        wrong = [k for k, ok in enumerate(right) if not ok]
        for k in dict.fromkeys([0, 1, 2, *wrong[:3]]):
            e, f = tests[k]
            better = "" if right[k] else f", not {spoken(f)!r}"
            say(f"{spoken(e)!r} -> {spoken(answers[k])!r}{better}")
        say(f"seed {seed}: {results[-1][0]:.1%} right of {len(tests)} ({session.seconds():.0f} s)")
    exact, baseline = min(results)
    return {"exact": exact, "word_by_word": baseline}


def check(args: Any) -> str | None:
    """Return what is wrong with the settings."""
    if args.tests < 3:
        return f"--tests {args.tests}: expected at least 3"
    if args.samples + args.tests > 50_400:
        return f"--samples {args.samples}: with --tests {args.tests} more than the 50,400 sentences"
    return None


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    return common.main(__file__, __doc__, SETTINGS, run, argv, check)


if __name__ == "__main__":
    raise SystemExit(main())
