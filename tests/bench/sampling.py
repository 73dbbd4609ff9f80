"""Sampling a text: one character in, one out, N = 1, no graph."""

from collections.abc import Iterator
from functools import partial
from statistics import median

import numpy as np

from . import ours
from .lstm import optional
from .problem import Array
from .table import Row
from .timing import ratio, rotate

V, D, H = 103, 64, 128
CASE = f"embedding {D}, LSTM {H}, linear {V}, N=1"


def measure(smoke: bool, rounds: int) -> Iterator[Row]:
    """Characters per second; all draw with the same uniform numbers and write the same text."""
    length = 20 if smoke else 200
    rng = np.random.default_rng(0)
    uniform = rng.random(length)
    shapes = {"W_x": (D, 4 * H), "W_h": (H, 4 * H), "b": (4 * H,)}
    shapes |= {"E": (V, D), "V": (H, V), "c": (V,)}
    weights = {
        k: (rng.standard_normal(s) / (s[0] ** 0.5 if len(s) > 1 else 1)).astype(np.float32)
        for k, s in shapes.items()
    }

    def pick(logits: Array, n: int) -> int:
        odds = np.exp(logits - logits.max()).cumsum()
        return int(odds.searchsorted(uniform[n] * odds[-1], side="right"))

    samplers = {f"ours, by {by}": ours.sampler(weights, pick, by) for by in ("layer", "cell")}
    mine = list(samplers)
    module = optional("PyTorch", "peer_torch")
    if module is not None:
        samplers["PyTorch"] = module.sampler(weights, pick)
        samplers["PyTorch, addmm"] = module.sampler(weights, pick, module.addmm)
    texts = [run(length) for run in samplers.values()]
    if any(text != texts[0] for text in texts):
        raise AssertionError("sampling: the contestants write different texts")
    times = rotate({k: partial(run, length) for k, run in samplers.items()}, rounds)
    speed = {name: length / median(t) for name, t in times.items()}
    data = {"characters_per_second": speed, "seconds": times}
    for own in mine:
        if "PyTorch" not in times:
            yield Row("sampling", f"{CASE}, {own}", f"{speed[own]:.0f} characters/s", data=data)
        for peer in [name for name in times if name not in mine]:
            text = f"{ratio(times[own], times[peer]):.3f} in time"
            text += f" ({speed[own]:.0f} / {speed[peer]:.0f} characters/s)"
            yield Row("sampling", f"{CASE}, {own} / {peer}", text, data=data)
