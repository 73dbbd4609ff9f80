"""Rotated timing: contestants take turns in short blocks, so that all meet the same weather."""

import gc
from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import Any

Run = Callable[[], Any]


def rotate(runs: Mapping[str, Run], rounds: int, block: float = 0.01) -> dict[str, list[float]]:
    """Return, for each contestant, its seconds per repetition in each round.

    In each round every contestant runs one block of repetitions that lasts about `block` seconds,
    after one untimed repetition; the first contestant of a round is the second of the round before.
    Garbage is collected between the blocks, so that nobody pays for another one's cycles; within a
    block the collector runs as usual.
    """
    names = list(runs)
    reps = {name: max(1, round(block / seconds(runs[name]))) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()  # imported modules are not walked again
    try:
        for r in range(rounds):
            for name in names[r % len(names) :] + names[: r % len(names)]:
                run = runs[name]
                gc.collect()
                run()
                start = perf_counter()
                for _ in range(reps[name]):
                    run()
                times[name].append((perf_counter() - start) / reps[name])
    finally:
        gc.unfreeze()
    return times


def seconds(run: Run) -> float:
    """Time one run, after one that is not timed."""
    run()
    start = perf_counter()
    run()
    return perf_counter() - start


def ratio(ours: list[float], peer: list[float]) -> float:
    """Return the median over the rounds of ours / peer."""
    return median(a / b for a, b in zip(ours, peer, strict=True))
