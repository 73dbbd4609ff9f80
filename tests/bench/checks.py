"""What a gradient check costs: one LSTM beside PyTorch's, and every primitive."""

from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from tinygrad_rnn import nn, testing
from tinygrad_rnn.testing import profiles

from .table import Row, at_most
from .timing import ratio, rotate

T, N, D, H = 6, 2, 3, 4
LIMIT_LSTM, LIMIT_OPS = 20.0, 60.0  # milliseconds, seconds


def measure(smoke: bool, rounds: int) -> Iterator[Row]:
    """Time ``check_module`` against torch's ``gradcheck`` of the same LSTM, and all primitives."""
    x = np.random.default_rng(0).standard_normal((T, N, D))
    layer = nn.LSTM(D, H, dtype="float64", rng=0)
    runs = {
        "ours": lambda: testing.check_module(layer, x),
        "with check_vjp": lambda: (testing.check_module(layer, x), testing.check_vjp(layer, x)),
        **torch_checks(x),
    }
    times = rotate(runs, rounds)
    case = f"LSTM T={T} N={N} D={D} H={H}, float64"
    ms = 1e3 * median(times["ours"])
    row = at_most("gradient check", f"{case}, check_module", ms, LIMIT_LSTM, f"{ms:.1f} ms")
    row.wanted += " ms"
    yield row
    ms = 1e3 * median(times["with check_vjp"])
    yield Row("gradient check", f"{case}, check_module and check_vjp", f"{ms:.1f} ms")
    for name in list(times)[2:]:
        took = 1e3 * median(times[name])
        share = ratio(times["ours"], times[name])
        yield Row(
            "gradient check", f"{case}, ours / {name}", f"{share:.3f} in time ({took:.0f} ms)"
        )
    examples = 5 if smoke else profiles.EXAMPLES["ci"]
    start = perf_counter()
    for op in testing.all_ops().values():
        testing.check_op(op, max_examples=examples)
    took = perf_counter() - start
    case = f"{len(testing.all_ops())} primitives, {examples} examples each, both dtypes and orders"
    row = at_most("gradient check", case, took, LIMIT_OPS, f"{took:.1f} s")
    row.wanted += " s"
    yield row


def torch_checks(x: np.ndarray) -> dict[str, Any]:
    """Return torch's two modes over an LSTM of the same size, by input and parameters."""
    import torch

    torch.set_num_threads(1)
    twin = torch.nn.LSTM(D, H).double()
    names = [name for name, _ in twin.named_parameters()]
    leaves = [torch.tensor(x, requires_grad=True)]
    leaves += [p.detach().clone().requires_grad_() for p in twin.parameters()]

    def f(x: Any, *parameters: Any) -> Any:
        values = dict(zip(names, parameters, strict=True))
        y, (h, c) = torch.func.functional_call(twin, values, (x,))
        return y, h, c

    return {
        "torch gradcheck": lambda: torch.autograd.gradcheck(f, leaves),
        "torch gradcheck, fast": lambda: torch.autograd.gradcheck(f, leaves, fast_mode=True),
    }
