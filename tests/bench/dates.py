"""A training step of the date model, ours against the same model composed in PyTorch eager."""

from collections.abc import Callable, Iterator
from importlib import import_module
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from tinygrad_rnn import optim
from tinygrad_rnn.nn.seq2seq import EncoderDecoder

from .problem import Array
from .table import at_most
from .timing import ratio, rotate

SOURCE, TARGET, D, H, T, U, N = 40, 13, 32, 128, 18, 10, 32
CLIP, RATE = 1.0, 1e-3
CASE = f"embedding {D}, LSTM {H}, source T={T}, target {U + 1}, N={N}"
Build = Callable[["Batch"], tuple[Callable[[], float], Callable[[], dict[str, Array]]]]


class Batch(NamedTuple):
    """Sources (T, N) with lengths or None, targets (U, N), and the first weights by our names."""

    source: Array
    lengths: Array | None
    target: Array
    weights: dict[str, Array]


def model(weights: dict[str, Array] | None = None) -> EncoderDecoder:
    """Make the date model."""
    made = EncoderDecoder(SOURCE, TARGET, H, embedding_size=D, max_length=U, rng=0)
    if weights is not None:
        made.load_state_dict(weights)
    return made


def make(ragged: bool) -> Batch:
    """Draw a batch; ragged ones are as long as "May 2, 2019" to "September 22, 2019"."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(11, T + 1, N) if ragged else None
    if lengths is not None:
        lengths[0] = T
    source, target = rng.integers(0, SOURCE, (T, N)), rng.integers(2, TARGET, (U, N))
    return Batch(source, lengths, target, model().state_dict())


def ours(batch: Batch) -> tuple[Callable[[], float], Callable[[], dict[str, Array]]]:
    """Return a training step, which returns its loss, and what reads the last gradients."""
    made = model(batch.weights)
    adam = optim.Adam(made.parameters(), RATE)

    def run() -> float:
        made.zero_grad()
        loss = made.loss(batch.source, batch.target, source_lengths=batch.lengths)
        loss.backward()
        optim.clip_grad_norm(made.parameters(), CLIP)
        adam.step()
        return float(loss.item())

    def gradients() -> dict[str, Array]:
        return {name: p.grad for name, p in made.named_parameters() if p.grad is not None}

    return run, gradients


def measure(smoke: bool, rounds: int) -> Iterator[Any]:
    """Forward, loss, backward, clipping, Adam; ragged sources, and sources of one length."""
    try:
        import_module("torch")
        peer = import_module(".peer_dates", __package__)
    except ModuleNotFoundError as error:
        print(f"left out: the date model ({error})")
        return
    for ragged in (True, False):
        batch = make(ragged)
        builds: dict[str, Build] = {"ours": ours, "PyTorch": peer.literal, "addmm": peer.addmm}
        made = {name: build(batch) for name, build in builds.items()}
        check({name: (run(), gradients()) for name, (run, gradients) in made.items()})
        times = rotate({name: run for name, (run, _) in made.items()}, rounds)
        for name, label in (("PyTorch", "PyTorch"), ("addmm", "PyTorch, addmm")):
            r, a, b = ratio(times["ours"], times[name]), median(times["ours"]), median(times[name])
            text = f"{r:.3f} ({1e3 * a:.2f} / {1e3 * b:.2f} ms)"
            case = f"{CASE}, {'ragged' if ragged else 'one length'}, ours / {label}"
            yield at_most("training step of the date model", case, r, 1.0, text, seconds=times)


def check(first: dict[str, tuple[float, dict[str, Array]]]) -> None:
    """Raise where losses or gradients of the first step differ."""
    loss, gradients = first["ours"]
    for name, (theirs, others) in first.items():
        if not abs(loss - theirs) <= 1e-4 * abs(loss):
            raise AssertionError(f"dates: the loss of {name} is {theirs}, ours {loss}")
        for k, g in gradients.items():
            if not np.abs(g - others[k]).max() <= 1e-3 * np.abs(g).max():
                raise AssertionError(f"dates: the gradient of {k} by {name} differs from ours")
