"""What `import tinygrad_rnn` costs beside `import numpy`."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import tinygrad_rnn

from .table import Row, at_most

PROGRAMS = ("import numpy", "import tinygrad_rnn")


def measure(smoke: bool, rounds: int) -> Iterator[Row]:
    """Difference of the median wall times of fresh interpreters, in pairs of alternating order."""
    pairs = 3 if smoke else max(15, rounds)
    root = str(Path(str(tinygrad_rnn.__file__)).resolve().parents[1])
    path = os.environ.get("PYTHONPATH")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, path] if path else [root])}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # users import compiled files
    times: dict[str, list[float]] = {p: [] for p in PROGRAMS}
    for k in range(pairs + 1):
        for program in PROGRAMS[:: 1 if k % 2 else -1]:
            start = perf_counter()
            subprocess.run([sys.executable, "-c", program], env=env, check=True)
            if k:  # the first pair compiles and warms the disk cache
                times[program].append(1e3 * (perf_counter() - start))
    base, ours = (median(times[p]) for p in PROGRAMS)
    paired = median(b - a for a, b in zip(*times.values(), strict=True))
    text = f"{ours - base:.1f} ms ({ours:.0f} - {base:.0f} ms; median of pairs {paired:.1f} ms)"
    case = f"{pairs} pairs of processes, beyond import numpy"
    row = at_most("import tinygrad_rnn", case, ours - base, 60, text, ms=times, paired_ms=paired)
    row.wanted += " ms"
    yield row
