"""Eager forward and backward of one LSTM layer, ours against the peers."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from statistics import median
from typing import Any

import numpy as np

from . import ours, peer_numpy
from .problem import SIZES, SMOKE_SIZES, Problem, Run, check, make
from .table import Row, at_most
from .timing import ratio, rotate

WANTED = {"PyTorch": 0.95, "PyTorch, addmm": 0.95, "HIPS autograd": 0.35, "MyGrad": 0.35}
PEERS = (("PyTorch", "peer_torch"), ("HIPS autograd", "peer_autograd"), ("MyGrad", "peer_mygrad"))
Contestant = Callable[[Problem], Run]


def contestants() -> dict[str, Contestant]:
    """Ours, the hand-written one, and the peers that are installed."""
    found: dict[str, Contestant] = {"ours": ours.lstm, "NumPy by hand": peer_numpy.lstm}
    for name, file in PEERS:
        module = optional(name, file)
        if module is not None:
            found[name] = module.lstm
            if name == "PyTorch":
                found["PyTorch, addmm"] = partial(module.lstm, affine=module.addmm)
    return found


def optional(name: str, file: str) -> Any:
    """Import a peer, or say that it is left out."""
    try:
        return import_module(f".{file}", __package__)
    except ModuleNotFoundError as error:
        print(f"left out: {name} ({error})")
        return None


def measure(smoke: bool, rounds: int) -> Iterator[Row]:
    """Check that all gradients agree, then time; one row for each size and peer."""
    every = contestants()
    for H, N, T, D in SMOKE_SIZES if smoke else SIZES:
        problem = make(H, N, T, D)
        reference = peer_numpy.lstm(problem.astype(np.float64))()
        runs = {name: build(problem) for name, build in every.items()}
        errors = {name: check(name, run(), reference) for name, run in runs.items()}
        times = rotate(runs, rounds)
        mine = times.pop("ours")
        for name, theirs in times.items():
            r, a, b = ratio(mine, theirs), median(mine), median(theirs)
            data = {
                "size": {"H": H, "N": N, "T": T, "D": D},
                "peer": name,
                "ours_ms": [1e3 * s for s in mine],
                "peer_ms": [1e3 * s for s in theirs],
                "error": {"ours": errors["ours"], "peer": errors[name]},
            }
            case = f"(H,N,T,D) = {(H, N, T, D)}, ours / {name}"
            text = f"{r:.3f} ({1e3 * a:.2f} / {1e3 * b:.2f} ms)"
            label = "LSTM forward + backward"
            if name in WANTED:
                yield at_most(label, case, r, WANTED[name], text, **data)
            else:
                yield Row(label, case, text, data={"value": r, **data})
