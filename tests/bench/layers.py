"""What options of a layer cost: ragged batches, two directions, steps that are run again."""

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np

from tinygrad_rnn import Tensor, nn

from .scaling import collector
from .table import Row, at_most
from .timing import ratio, rotate

SIZES = ((32, 16, 32, 64), (64, 32, 64, 128), (64, 32, 128, 256))  # T, N, D, H
LONG = (5000, 8, 64, 64)


def problem(T: int, N: int, D: int, H: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Return x (T, N, D), whose gradient is wanted, the output's cotangent, and lengths."""
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((T, N, D)).astype(np.float32), requires_grad=True)
    lengths = rng.integers(T // 2, T + 1, N)
    lengths[0] = T
    return x, rng.standard_normal((T, N, 2 * H)).astype(np.float32), lengths


def both_ways(layer: nn.Recurrent, x: Tensor, cotangent: np.ndarray, **call: object) -> None:
    """Run forward and backward."""
    out, _ = layer(x, **call)
    out.backward(cotangent[:, :, : out.shape[2]])
    x.grad = None
    for p in layer.parameters():
        p.grad = None


def compare(name: str, case: str, limit: float, rounds: int, **runs: Callable[[], None]) -> Row:
    """Return the row of the first run's time as a ratio to the second's."""
    times = rotate(runs, rounds)
    (one, a), (other, b) = times.items()
    value = ratio(a, b)
    text = f"{value:.3f} ({one} {1e3 * median(a):.2f} ms, {other} {1e3 * median(b):.2f} ms)"
    return at_most(name, case, value, limit, text)


def measure(smoke: bool, rounds: int) -> Iterator[Row]:
    """Ragged against padded, two directions against two layers, recomputed against kept."""
    for T, N, D, H in ((4, 2, 3, 4),) if smoke else SIZES:
        x, w, lengths = problem(T, N, D, H)
        one, other = nn.LSTM(D, H, rng=0), nn.LSTM(D, H, rng=1)
        both = nn.LSTM(D, H, bidirectional=True, rng=0)
        case = f"LSTM T={T}, N={N}, D={D}, H={H}"

        def ragged(layer=one, x=x, w=w, lengths=lengths) -> None:
            both_ways(layer, x, w, lengths=lengths)

        def padded(layer=one, x=x, w=w) -> None:
            both_ways(layer, x, w)

        def two_directions(layer=both, x=x, w=w) -> None:
            both_ways(layer, x, w)

        def two_layers(layers=(one, other), x=x, w=w) -> None:
            for layer in layers:
                both_ways(layer, x, w)

        yield compare(
            "ragged / padded", f"{case}, lengths T/2..T", 1.15, rounds, ragged=ragged, padded=padded
        )
        yield compare(
            "two directions / two layers", case, 1.1, rounds,
            two_directions=two_directions, two_layers=two_layers,
        )  # fmt: skip


def measure_checkpoint(smoke: bool, rounds: int) -> Iterator[Row]:
    """Time and peak memory of ``checkpoint_every="sqrt"`` against the layer that keeps all."""
    T, N, D, H = (50, 2, 3, 4) if smoke else LONG
    x, w, _ = problem(T, N, D, H)
    layers = {
        "recomputed": nn.LSTM(D, H, rng=0, checkpoint_every="sqrt"),
        "kept": nn.LSTM(D, H, rng=0),
    }
    case = f"LSTM T={T}, N={N}, D={D}, H={H}"
    with collector(False):
        peaks = {name: peak(layer, x, w) for name, layer in layers.items()}
        runs = {name: lambda layer=layer: both_ways(layer, x, w) for name, layer in layers.items()}
        yield compare("checkpointed, time", case, 1.4, rounds, **runs)
    value = peaks["recomputed"] / peaks["kept"]
    text = f"{value:.3f} ({peaks['recomputed'] / 1e6:.1f} of {peaks['kept'] / 1e6:.1f} MB)"
    name = "checkpointed, memory beyond inputs, outputs and their gradients"
    yield at_most(name, case, value, 0.1, text, bytes=peaks)


def peak(layer: nn.Recurrent, x: Tensor, w: np.ndarray) -> int:
    """Return the peak of forward and backward beyond inputs, outputs and their gradients."""
    both_ways(layer, x, w)
    gc.collect()
    tracemalloc.start()
    try:
        out, _ = layer(x)
        out.backward(w[:, :, : out.shape[2]])
        counted = 2 * out.data.nbytes + x.grad.nbytes  # backward copies the output's gradient
        return tracemalloc.get_traced_memory()[1] - counted
    finally:
        tracemalloc.stop()
        x.grad = None
