"""Sampling a text: one character in, one out, N = 1, no graph."""

from collections.abc import Iterator
from functools import partial
from statistics import median

import numpy as np

from . import ours
from .lstm import optional
from .problem import Array
from .table import Row, at_most
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

    samplers = {"ours": ours.sampler(weights, pick)}
    module = optional("PyTorch", "peer_torch")
    if module is not None:
        samplers["PyTorch"] = module.sampler(weights, pick)
        samplers["PyTorch, addmm"] = module.sampler(weights, pick, module.addmm)
    texts = {name: run(length) for name, run in samplers.items()}
    if any(text != texts["ours"] for text in texts.values()):
        raise AssertionError("sampling: the contestants write different texts")
    times = rotate({k: partial(run, length) for k, run in samplers.items()}, rounds)
    speed = {name: length / median(t) for name, t in times.items()}
    data = {"characters_per_second": speed, "seconds": times}
    if "PyTorch" not in times:
        yield Row("sampling", CASE, f"{speed['ours']:.0f} characters/s", data=data)
        return
    for name in ("PyTorch", "PyTorch, addmm"):
        r = ratio(times["ours"], times[name])
        text = f"{r:.3f} in time ({speed['ours']:.0f} / {speed[name]:.0f} characters/s)"
        yield at_most("sampling", f"{CASE}, ours / {name}", r, 1.0, text, **data)
