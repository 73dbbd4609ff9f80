"""Compiled layers beside PyTorch's fused LSTM, JAX's scan, composed cells and our eager layers."""

import gc
import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

import tinygrad_rnn
from tinygrad_rnn import Parameter, Tensor, mark, nn
from tinygrad_rnn.ops import sigmoid, tanh

from .problem import Array
from .scaling import collector
from .table import Row, at_most
from .timing import ratio, rotate

Size = tuple[int, int, int, int]  # H, N, T, D
SIZES: tuple[Size, ...] = ((16, 1, 32, 16), (64, 16, 32, 32), (128, 32, 64, 64), (512, 64, 64, 256))
SMOKE_SIZES: tuple[Size, ...] = ((4, 1, 3, 2), (5, 3, 4, 3))
COMPILED, NUMPY, EAGER = "ours, compiled", "ours, NumPy back end", "ours, eager"
LIMITS: dict[str, tuple[float | None, ...]] = {  # ours compiled / peer, at each of the sizes
    "torch.nn.LSTM": (0.25, 1.0, 1.0, 1.0),
    "jax.jit of lax.scan": (0.75, 0.75, 0.75, 0.75),
    "PyTorch composed": (0.4, 0.4, 0.4, 0.5),
    EAGER: (0.15, None, 0.6, None),
}
NUMPY_LIMITS = (0.7, 0.7, None, None)  # NumPy back end / ours, eager
TOLERANCE = 5e-5  # of a gradient's largest element, float32 against our eager layer in float64
ROOT = Path(__file__).resolve().parents[2]
THREADS = 2
CORETYPE = "OPENBLAS_CORETYPE"
notes: set[str] = set()


class LeakyCell(nn.Cell):
    """The cell of the README: a leak that is learned, unit by unit."""

    def __init__(self, input_size, hidden_size, rng=None):
        super().__init__(input_size, hidden_size)
        self.add_weights(rng=rng)
        self.s = Parameter(np.zeros(hidden_size, np.float32))

    def step(self, x, h):
        a = sigmoid(self.s)
        h = (1 - a) * h + a * tanh(self.affine(x, h))
        mark(a=a, h=h)
        return h, h


LAYERS: dict[str, Callable[[int, int], nn.Recurrent]] = {
    "LSTM": lambda D, H: nn.LSTM(D, H, rng=0),
    "GRU, reset before": lambda D, H: nn.GRU(D, H, reset_after=False, rng=0),
    "peephole LSTM": lambda D, H: nn.Recurrent(nn.PeepholeLSTMCell(D, H, rng=0)),
    "layer-norm LSTM": lambda D, H: nn.Recurrent(nn.LayerNormLSTMCell(D, H, rng=0)),
    "leaky cell of the README": lambda D, H: nn.Recurrent(LeakyCell(D, H, rng=0)),
}


@dataclass
class Case:
    """One cell at one size: x (T,N,D), the output's cotangent (T,N,H), the weights by name."""

    cell: str
    size: Size
    x: Array
    cotangent: Array
    weights: dict[str, Array]

    def __str__(self) -> str:
        return f"{self.cell}, (H,N,T,D) = {self.size}"


class Contestant(NamedTuple):
    """Forward and backward, and what reads the gradients of the last run: x and the weights."""

    run: Callable[[], Any]
    gradients: Callable[[], dict[str, Array]]
    layer: Any = None  # ours


def make(cell: str, size: Size) -> Case:
    """Draw a case in float32: a new layer's weights and noise, so that none is 0.

    Gains of a normalisation are halved: at 1 the gradients explode with T, and rounding errors of
    all contestants with them.
    """
    H, N, T, D = size
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    named = LAYERS[cell](D, H).named_parameters()
    weights = {k.removeprefix("L0.fwd."): p.data for k, p in named}
    weights = {k: w + np.float32(0.1 / len(w) ** 0.5) * noise(*w.shape) for k, w in weights.items()}
    weights = {k: w / 2 if k.startswith("gain") else w for k, w in weights.items()}
    return Case(cell, size, noise(T, N, D), noise(T, N, H), weights)


def layer(case: Case) -> nn.Recurrent:
    """Build the layer of a case, with its weights."""
    H, _, _, D = case.size
    made = LAYERS[case.cell](D, H)
    made.load_state_dict({f"L0.fwd.{k}": w for k, w in case.weights.items()})
    return made


def contest(made: nn.Recurrent, case: Case, dtype: Any = np.float32) -> Contestant:
    """Forward and backward of one of our layers, eager or compiled."""
    x, cotangent = Tensor(case.x.astype(dtype), requires_grad=True), case.cotangent.astype(dtype)
    named = {k.removeprefix("L0.fwd."): p for k, p in made.named_parameters()}
    leaves = [x, *named.values()]

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        out, _ = made(x)
        out.backward(cotangent)

    return Contestant(run, lambda: {"x": x.grad, **{k: p.grad for k, p in named.items()}}, made)


def compiled(made: nn.Recurrent, **options: Any) -> nn.Recurrent | None:
    """Compile a layer; without a compiler it stays eager, without an option there is no row."""
    found = getattr(tinygrad_rnn, "compile", None)
    if found is None:
        try:
            found = import_module("tinygrad_rnn.compiler").compile
        except (ImportError, AttributeError):
            if options:
                return None
            note("tinygrad_rnn has no compile yet: what is called compiled is the eager layer")
            return made
    lacking = sorted(set(options) - set(inspect.signature(found).parameters))
    if lacking:
        note(f"left out: compile has no argument {', '.join(lacking)}")
        return None
    fast: nn.Recurrent = found(made, **options)
    return fast


def note(text: str) -> None:
    """Print a note, once, where the progress is printed too."""
    if text not in notes:
        notes.add(text)
        print(text, file=sys.stderr, flush=True)


def peer(file: str) -> Any:
    """Import a peer, or say that its rows are left out."""
    try:
        return import_module(f".{file}", __package__)
    except ModuleNotFoundError as error:
        if str(error.name).startswith(str(__package__)):
            raise
        note(f"left out: the rows of {file} ({error})")
        return None


def contestants(case: Case) -> dict[str, Contestant]:
    """Ours, compiled and eager, and the peers that are installed and know the cell."""
    fast = compiled(layer(case))
    assert fast is not None
    found = {COMPILED: contest(fast, case), EAGER: contest(layer(case), case)}
    if case.cell == "LSTM":
        slow = compiled(layer(case), backend="numpy")
        if slow is not None:
            found[NUMPY] = contest(slow, case)
    torch, jax = peer("peer_compiled"), peer("peer_jax")
    if torch is not None:
        found["PyTorch composed"] = torch.composed(case)
        if case.cell == "LSTM":
            found["torch.nn.LSTM"] = torch.fused(case)
    if jax is not None and case.cell == "LSTM":
        found["jax.jit of lax.scan"] = jax.scan(case)
    return found


def check(every: Mapping[str, Contestant], case: Case) -> dict[str, float]:
    """Return the largest relative error of each contestant's gradients; raise above `TOLERANCE`.

    The reference is our eager layer in float64, so that the composed peers check it in turn.
    """
    exact = contest(layer(case).astype(np.float64), case, np.float64)
    exact.run()
    expected = exact.gradients()
    errors = {}
    for name, one in every.items():
        one.run()
        got = one.gradients()
        if set(got) != set(expected):
            raise AssertionError(f"{name}, {case}: gradients of {list(got)}, not {list(expected)}")
        worst = 0.0
        for label, b in expected.items():
            a = got[label]
            if a.shape != b.shape or a.dtype != np.float32:
                raise AssertionError(
                    f"{name}, {case}: gradient of {label} is {a.dtype} {a.shape}, "
                    f"not float32 {b.shape}"
                )
            error = float(np.abs(a - b).max() / np.abs(b).max())
            if not error <= TOLERANCE:
                raise AssertionError(
                    f"{name}, {case}: gradient of {label} is off by {error:.1e} of its largest "
                    f"element, which is more than {TOLERANCE:.0e}"
                )
            worst = max(worst, error)
        errors[name] = worst
    return errors


def measure(smoke: bool, rounds: int) -> Iterator[Row]:
    """All parts: each cell at each size, two threads, first calls, memory, long sequences."""
    with one_core():
        for cell in LAYERS:
            for k, size in enumerate(SMOKE_SIZES if smoke else SIZES):
                if smoke and cell != "LSTM" and not k:
                    continue
                yield from measure_case(cell, size, k, max(3, rounds // 3) if k == 3 else rounds)
        yield from measure_first(smoke)
        yield from measure_memory(smoke)
        yield from measure_length(smoke, rounds)
    yield from measure_threads(smoke, rounds)


@contextmanager
def one_core() -> Iterator[None]:
    """Stay on the last of the cores that are open: JAX would take them all, and so may we."""
    if not hasattr(os, "sched_setaffinity"):
        note("this system cannot bind a process to a core: JAX and ours may use several")
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure_case(cell: str, size: Size, k: int, rounds: int) -> Iterator[Row]:
    """Check, then time in rotation, one cell at the k-th size: a row for each contestant."""
    case = make(cell, size)
    every = contestants(case)
    errors = check(every, case)
    unrolled = {name: is_unrolled(one.layer) for name, one in every.items()}
    times = rotate({name: one.run for name, one in every.items()}, rounds)
    mine, eager = times[COMPILED], times[EAGER]
    for name, theirs in times.items():
        if name == COMPILED:
            continue
        if name == NUMPY:
            limit, pair, title = NUMPY_LIMITS[k], (theirs, eager), f"{NUMPY} / {EAGER}"
        else:
            limits = LIMITS[name] if cell == "LSTM" or name == "PyTorch composed" else (None,) * 4
            limit, pair, title = limits[k], (mine, theirs), f"{COMPILED} / {name}"
        data = {
            "ms": {n: [1e3 * s for s in times[n]] for n in (COMPILED, name)},
            "error": {n: errors[n] for n in (COMPILED, name)},
        }
        if unrolled[NUMPY if name == NUMPY else COMPILED]:
            title += " (RAN UNROLLED)"
        yield row("compiled, forward + backward", f"{case}, {title}", pair, limit, **data)


def is_unrolled(made: Any) -> bool:
    """Return whether a layer of ours has run without a plan of a compiled loop."""
    return getattr(made, "plan", None) is None


def row(
    name: str, case: str, pair: tuple[list[float], list[float]], limit: float | None, **data: Any
) -> Row:
    """Return the row of two contestants' times, with or without a limit on their ratio."""
    value = ratio(*pair)
    a, b = (1e3 * median(times) for times in pair)
    text = f"{value:.3f} ({a:.3g} / {b:.3g} ms)"
    if limit is None:
        return Row(name, case, text, data={"value": value, **data})
    return at_most(name, case, value, limit, text, **data)


# --- two threads, memory and first calls are measured in processes of their own


def child(part: str, *arguments: Any, **environment: str | None) -> Any:
    """Run a function of this module in a fresh interpreter; return what it returned."""
    program = f"import json; from tests.bench.compiled import {part}; "
    program += f"print(json.dumps({part}(*{arguments!r})))"
    env = {k: v for k, v in {**os.environ, **environment}.items() if v is not None}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # users import compiled files
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure_threads(smoke: bool, rounds: int) -> Iterator[Row]:
    """Our compiled LSTM with two threads against ``torch.nn.LSTM`` with two."""
    free = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    for size, pair in child("threads_in_child", smoke, rounds, **free):
        case = f"LSTM, (H,N,T,D) = {tuple(size)}, ours / torch.nn.LSTM"
        yield row(f"compiled, {THREADS} threads each", case, pair, 0.9)


def threads_in_child(smoke: bool, rounds: int) -> list[Any]:
    """Return (size, (seconds of ours, of torch)) for each size; empty where it cannot be done."""
    if not hasattr(os, "sched_setaffinity"):
        count = os.cpu_count() or 1
    else:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # the parent may be pinned
        count = len(os.sched_getaffinity(0))
    if count < THREADS:
        note(f"left out: {THREADS} threads ({count} core is open to this process)")
        return []
    torch = peer("peer_compiled")
    if torch is None:
        return []
    torch.use_threads(THREADS)
    found: list[Any] = []
    for k, size in enumerate(SMOKE_SIZES if smoke else SIZES):
        case = make("LSTM", size)
        fast = compiled(layer(case), threads=THREADS)
        if fast is None:
            return []
        pair = {"ours": contest(fast, case), "torch": torch.fused(case)}
        check(pair, case)
        block = 0.01 if smoke else 0.05  # idle threads of OpenMP spin at the start of a block
        turns = max(3, rounds // 3) if k == 3 else rounds
        times = rotate({name: one.run for name, one in pair.items()}, turns, block)
        found.append((size, (times["ours"], times["torch"])))
    return found


def measure_first(smoke: bool) -> Iterator[Row]:
    """The first forward and backward of a compiled LSTM, the import of numba apart."""
    size = SMOKE_SIZES[0] if smoke else SIZES[1]
    times: dict[str, list[float]] = {"an empty cache": [], "a warm cache": []}
    imports = []
    for _ in range(1 if smoke else 3):
        with tempfile.TemporaryDirectory() as folder:  # its mode is 0700
            for taken in times.values():
                first, loaded = child("first_in_child", size, TINYGRAD_RNN_CACHE=folder)
                taken.append(first)
                imports.append(loaded)
    for (name, taken), limit in zip(times.items(), (4.0, 0.5), strict=True):
        value, case = median(taken), f"LSTM, (H,N,T,D) = {size}, {name}"
        text = f"{value:.2f} s (import of numba {median(imports):.2f} s)"
        one = at_most("compiled, first call", case, value, limit, text, s=taken, import_s=imports)
        one.wanted += " s"
        yield one


def first_in_child(size: Size) -> tuple[float, float]:
    """Return the seconds of compiling, forward and backward, and those of importing numba."""
    case = make("LSTM", size)
    start = perf_counter()
    try:
        import numba  # noqa: F401
    except ModuleNotFoundError:
        note("numba is not installed: the first call is that of the NumPy back end")
    loaded = perf_counter() - start
    made = layer(case)
    start = perf_counter()
    fast = compiled(made)
    assert fast is not None
    contest(fast, case).run()
    return perf_counter() - start, loaded


def measure_memory(smoke: bool) -> Iterator[Row]:
    """What stays between forward and backward, against ``torch.nn.LSTM``."""
    size = (64, 16, 32, 32) if smoke else SIZES[-1]
    kept = child("memory_in_child", size)
    if not kept:
        return
    value = kept["ours"] / max(kept["torch"], 1)
    text = f"{value:.3f} ({kept['ours'] / 1e6:.1f} / {kept['torch'] / 1e6:.1f} MB)"
    case = f"LSTM, (H,N,T,D) = {size}, ours / torch.nn.LSTM"
    yield at_most("compiled, memory between forward and backward", case, value, 1.3, text, **kept)


def memory_in_child(size: Size) -> dict[str, float]:
    """Return the growth of the resident memory with each graph that is kept, in bytes."""
    if not Path("/proc/self/statm").exists():
        note("left out: memory (this system has no /proc/self/statm)")
        return {}
    torch = peer("peer_compiled")
    if torch is None:
        return {}
    case = make("LSTM", size)
    fast = compiled(layer(case))
    assert fast is not None
    x = Tensor(case.x, requires_grad=True)
    forwards = {"ours": lambda: fast(x), "torch": torch.forward(case)}
    alive: list[Any] = []  # the graphs of the first stay, so that the second reuses nothing
    kept = {}
    for name, forward in forwards.items():
        alive += [forward() for _ in range(5)]  # memory that was free is used up
        gc.collect()
        before = resident()
        alive += [forward() for _ in range(6)]
        gc.collect()
        kept[name] = (resident() - before) / 6
    return kept


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure_length(smoke: bool, rounds: int) -> Iterator[Row]:
    """Minimum over interleaved runs of the time per step, at two lengths."""
    H, N, D = (4, 1, 2) if smoke else (16, 1, 16)
    lengths = (10, 100) if smoke else (1000, 10_000)
    runs = {}
    for T in lengths:
        case = make("LSTM", (H, N, T, D))
        fast = compiled(layer(case))
        assert fast is not None
        runs[T] = contest(fast, case).run
    best = dict.fromkeys(lengths, float("inf"))
    for _ in range(rounds):
        for T, run in runs.items():
            gc.collect()
            with collector(False):
                run()
                for _ in range(3):
                    start = perf_counter()
                    run()
                    best[T] = min(best[T], (perf_counter() - start) / T)
    short, long = (1e6 * s for s in best.values())
    text = f"{long / short:.2f} ({long:.3g} / {short:.3g} us per step)"
    case_ = f"LSTM, H={H}, N={N}, D={D}, T={lengths[1]} / T={lengths[0]}"
    yield at_most("compiled, time per step", case_, long / short, 1.15, text, us=[short, long])


def environment(unset: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what the head of the report says: OpenBLAS' kernels, and what compiles.

    `unset` holds what the benchmark removed from the environment before NumPy was loaded.
    """
    value, was = os.environ.get(CORETYPE), (unset or {}).get(CORETYPE)
    if value is not None:
        text = f"{value}: these figures are not comparable, they want it unset"
    elif was is not None:
        text = f"unset, as the figures want it (it was {was})"
    else:
        text = "unset, as the figures want it"
    about = {CORETYPE: text}
    for name, package in (("JAX", "jax"), ("numba", "numba")):
        try:
            about[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            about[name] = "not installed"
    return about
