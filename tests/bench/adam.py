"""One step of Adam against PyTorch's default one, on one thread: ``python -m tests.bench.adam``.

Both run in one process, in short blocks that take turns, so that both meet the same neighbours;
the figure is the median over rounds of (time of our block) / (time of theirs).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from tinygrad_rnn.optim import Adam
from tinygrad_rnn.tensor import Parameter

# Two LSTM layers between an embedding and a readout: V = 128, D = 128, H = 256.
MODEL = (
    *((128, 128), (128, 1024), (256, 1024), (1024,)),
    *((256, 1024), (256, 1024), (1024,)),
    *((256, 128), (128,), (256,)),
)
CASES = {"one (1000, 1000)": ((1000, 1000),), f"{len(MODEL)} of a model": MODEL}


class Row(NamedTuple):
    """Milliseconds of one step, ours and theirs, and the median of the ratios."""

    case: str
    elements: int
    ours: float
    torch: float
    ratio: float


def _seconds(step: Callable[[], Any], calls: int) -> float:
    begin = perf_counter()
    for _ in range(calls):
        step()
    return (perf_counter() - begin) / calls


def run(rounds: int = 60, calls: int = 5) -> list[Row]:
    """Measure both cases: `rounds` pairs of blocks of `calls` steps each."""
    import torch

    torch.set_num_threads(1)
    rows = []
    for case, shapes in CASES.items():
        rng = np.random.default_rng(0)
        values = [rng.standard_normal(s, dtype=np.float32) for s in shapes]
        grads = [rng.standard_normal(s, dtype=np.float32) for s in shapes]
        params = [Parameter(v) for v in values]
        theirs = [torch.nn.Parameter(torch.tensor(v)) for v in values]
        for p, q, g in zip(params, theirs, grads, strict=True):
            p.grad, q.grad = g, torch.tensor(g)
        steps = (Adam(params).step, torch.optim.Adam(theirs).step)
        for step in steps:
            _seconds(step, calls)
        pairs = []
        for k in range(rounds):
            order = steps if k % 2 else steps[::-1]  # neither is always the first
            times = {step: _seconds(step, calls) for step in order}
            pairs.append((times[steps[0]], times[steps[1]]))
        ours, others = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        rows.append(Row(case, sum(v.size for v in values), ours, others, ratio))
    return rows


def main() -> None:
    """Print the rows."""
    print(f"{'float32 parameters':20} {'elements':>9} {'ours ms':>8} {'torch ms':>8} {'ratio':>6}")
    for row in run():
        print(f"{row.case:20} {row.elements:9} {row.ours:8.3f} {row.torch:8.3f} {row.ratio:6.3f}")


if __name__ == "__main__":
    main()
