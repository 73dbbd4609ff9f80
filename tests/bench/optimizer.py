"""The rows of `tests.bench.adam`, which measures Adam and can be run alone as well."""

from collections.abc import Iterator
from importlib import import_module

from .table import Row, at_most


def measure(smoke: bool, rounds: int) -> Iterator[Row]:
    """One step of Adam, ours against PyTorch's default one."""
    try:
        import_module("torch")
        adam = import_module(".adam", __package__)
    except ModuleNotFoundError as error:
        print(f"left out: Adam ({error})")
        return
    for row in adam.run(rounds=rounds):
        text = f"{row.ratio:.3f} ({row.ours:.2f} / {row.torch:.2f} ms)"
        case = f"{row.case}, ours / PyTorch"
        data = {"elements": row.elements, "ours_ms": row.ours, "peer_ms": row.torch}
        yield at_most("Adam step", case, row.ratio, 1.0, text, **data)
