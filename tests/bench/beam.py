"""Beam search of width 5 against five greedy runs, by the date model."""

from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np

from . import dates
from .table import at_most
from .timing import ratio, rotate

WIDTH = 5


def measure(smoke: bool, rounds: int) -> Iterator[Any]:
    """Both write until the longest answer; <eos> is out of reach, so that all have one length."""
    for N in (1, dates.N):
        model = dates.model().eval()
        model.linear.b.data[model.eos] = -1e4
        source = np.random.default_rng(0).integers(0, dates.SOURCE, (dates.T, N))

        def five(model: Any = model, source: Any = source) -> None:
            for _ in range(WIDTH):
                model.greedy(source)

        def beam(model: Any = model, source: Any = source) -> None:
            model.beam(source, WIDTH)

        times = rotate({"beam": beam, "greedy": five}, rounds)
        r, a, b = (
            ratio(times["beam"], times["greedy"]), median(times["beam"]), median(times["greedy"]),
        )  # fmt: skip
        text = f"{r:.3f} ({1e3 * a:.2f} / {1e3 * b:.2f} ms)"
        case = f"date model, N={N}, width {WIDTH} / {WIDTH} greedy runs"
        yield at_most("beam search", case, r, 1.2, text, seconds=times)
