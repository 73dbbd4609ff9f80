"""How much of a gradient rounding alone may change: the whole tape is run again with noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import graph
from ..arrays import Array
from ..scope import recording
from ..tensor import Tensor
from .subject import Subject, pull_back

RUNS = 3


def noise(subject: Subject, cotangents: Sequence[Array | None]) -> list[Array] | None:
    """Return for each entry of each gradient how far noise of one rounding error moves it.

    The forward pass and its backward pass are one graph; it is computed again with every result
    changed at random by one unit of rounding, as Monte Carlo arithmetic does (Parker 1997).
    None where the backward pass cannot be recorded: another engine, or a rule that works on
    arrays alone.
    """
    recorded = subject.record(subject.arrays)
    if recorded is None:
        return None
    outs, leaves = recorded
    try:
        with recording(), np.errstate(all="ignore"):
            us = [
                None if u is None else Tensor(u.astype(y.dtype))
                for u, y in zip(cotangents, outs, strict=True)
            ]
            found = pull_back(outs, leaves, us, True)
            wanted = [(k, g) for k, g in enumerate(found) if g is not None]
            order = graph.nodes([g for _, g in wanted])
            result = [np.zeros(t.shape) for t in leaves]
            rng = np.random.default_rng(0)
            for _ in range(RUNS):
                values = _again(order, rng)
                for k, g in wanted:
                    change = np.abs(values[g.order].astype(np.float64) - g.data)
                    result[k] = np.maximum(result[k], change)
    except Exception:  # a rule that does not run on Tensors: nothing is known of its rounding
        return None
    return result


def _again(order: Sequence[Any], rng: np.random.Generator) -> dict[int, Array]:
    """Compute a graph again, each result rounded at random; what is compared stays as it was."""
    values: dict[int, Array] = {}
    for t in order:
        if t.op is None or t.data.dtype.kind not in "fc":
            values[t.order] = t.data
            continue
        y = np.asarray(t.op.forward(*[values[x.order] for x in t.inputs], **t.attrs))
        eps = np.finfo(y.dtype).eps
        values[t.order] = (y * (1 + eps * rng.uniform(-1, 1, y.shape))).astype(y.dtype)
    return values
