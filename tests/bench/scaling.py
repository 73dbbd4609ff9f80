"""What a long sequence costs: time and memory per step, and what stays when the graph goes."""

import gc
import tracemalloc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from . import ours
from .problem import make
from .table import Row, at_most

H, N, D = 16, 1, 16
CASE = f"LSTM H={H}, N={N}, D={D}"


@contextmanager
def collector(on: bool) -> Iterator[None]:
    """Run with the cyclic garbage collector on or off, and put it back."""
    before = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        yield
    finally:
        (gc.enable if before else gc.disable)()


def measure_steps(smoke: bool, rounds: int) -> Iterator[Row]:
    """Minimum over interleaved runs of the time per step, from the shortest T to the longest.

    Garbage is collected before each run, and one untimed run follows: without it the first run
    after a collection is up to twice as slow at T = 100, which would flatter the growth.
    """
    lengths = (10, 30, 100) if smoke else (100, 1000, 10_000)
    runs = {T: ours.lstm(make(H, N, T, D)) for T in lengths}
    for on in (False, True):
        best = dict.fromkeys(lengths, float("inf"))
        for _ in range(rounds):
            for T, run in runs.items():
                gc.collect()
                with collector(on):
                    run()
                    start = perf_counter()
                    run()
                    best[T] = min(best[T], (perf_counter() - start) / T)
        micro = {T: 1e6 * s for T, s in best.items()}
        growth = micro[lengths[-1]] / micro[lengths[0]]
        per_step = " / ".join(f"{micro[T]:.1f}" for T in lengths)
        text = f"{growth:.2f} ({per_step} us per step at T = {' / '.join(map(str, lengths))})"
        case = f"{CASE}, T={lengths[-1]} / T={lengths[0]}, gc {'on' if on else 'off'}"
        if on:
            yield Row("time per step", case, text, data={"value": growth, "us": micro})
        else:
            yield at_most("time per step", case, growth, 1.3, text, us=micro)


def measure_memory(smoke: bool, rounds: int) -> Iterator[Row]:
    """Peak of forward and backward per step: the same for every T if memory is linear in T."""
    lengths = (50, 100, 200) if smoke else (1000, 2000, 4000, 8000)
    per_step = {}
    with collector(False):
        for T in lengths:
            run = ours.lstm(make(H, N, T, D))
            run()
            gc.collect()
            tracemalloc.start()
            try:
                base = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
                run()
                per_step[T] = (tracemalloc.get_traced_memory()[1] - base) / T
            finally:
                tracemalloc.stop()
    spread = max(per_step.values()) / min(per_step.values())
    figures = " / ".join(f"{b:.0f}" for b in per_step.values())
    text = f"{spread:.3f} ({figures} bytes per step at T = {' / '.join(map(str, lengths))})"
    yield at_most("peak memory", f"{CASE}, largest / smallest", spread, 1.1, text, bytes=per_step)


def measure_free(smoke: bool, rounds: int) -> Iterator[Row]:
    """`del` alone frees the graph: the collector is off, so a cycle would keep it."""
    T = 100 if smoke else 10_000
    problem = make(H, N, T, D)
    layer, parameters = ours.layer(problem)
    layer(problem.x)[0].sum().backward()  # whatever is made once is made here
    for p in parameters:
        p.grad = None
    gc.collect()
    with collector(False):
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            out, state = layer(problem.x)
            loss = out.sum()
            loss.backward()
            seen = [weakref.ref(node) for node in (loss, out, out.inputs[0], out.inputs[-1])]
            held = tracemalloc.get_traced_memory()[0] - before
            del out, state, loss
            for p in parameters:
                p.grad = None
            left = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    dead = all(r() is None for r in seen)
    text = f"{left / 1e3:.0f} kB of {held / 1e6:.1f} MB left, nodes dead: {dead}"
    case = f"{CASE}, T={T}, gc off"
    # free lists of the interpreter and of NumPy keep a little, whatever T is
    row = at_most("freed by del", case, left / 1e3, 500, text, held_bytes=held, dead=dead)
    row.wanted += " kB, dead"
    row.met = bool(row.met) and dead
    yield row
