"""How much of a gradient rounding alone may change: the whole tape is run again with noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import graph
from ..arrays import Array
from ..scope import record
from ..tensor import Tensor
from .subject import Subject, pull_back

RUNS = 3


def noise(subject: Subject, cotangents: Sequence[Array | None]) -> list[Array] | None:
    """Return for each entry of each gradient how far noise of one rounding error moves it.

    The forward pass and its backward pass are one graph; it is computed again with every result
    changed at random by one unit of rounding, as Monte Carlo arithmetic does (Parker 1997).
    Of another engine only the inputs and the cotangents can be changed.  None where the backward
    pass cannot be recorded since a rule works on arrays alone, or where it is not deterministic.
    """
    recorded = subject.record(subject.arrays)
    if recorded is None:
        return _from_outside(subject, cotangents)
    outs, leaves = recorded
    try:
        with record(), np.errstate(all="ignore"):  # a linear rule is recorded too
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


def _from_outside(subject: Subject, cotangents: Sequence[Array | None]) -> list[Array] | None:
    """Return how far noise in the inputs and the cotangents moves the gradients."""
    rng = np.random.default_rng(0)
    result = [np.zeros(a.shape) for a in subject.arrays]
    first: list[Array | None] = []
    for run in range(RUNS + 2):  # the first two without noise
        arrays, us = subject.arrays, list(cotangents)
        if run > 1:
            arrays = [_rounded(a, rng) for a in arrays]
            us = [None if u is None else _rounded(u, rng) for u in us]
        _, back = subject.pull([a.copy() for a in arrays])
        found = [_copy(g) for g in back([_copy(u) for u in us])]
        if run == 0:
            first = found
            continue
        for k, (g, before) in enumerate(zip(found, first, strict=True)):
            if g is None or before is None:
                continue
            if run == 1 and g.tobytes() != before.tobytes():
                return None
            change = np.abs(g.astype(np.float64) - before)
            result[k] = np.maximum(result[k], change)
    return result


def _rounded(a: Array, rng: np.random.Generator) -> Array:
    """Return `a` with every element changed at random by one unit of rounding."""
    if a.dtype.kind != "f":
        return a
    eps = np.finfo(a.dtype).eps
    return np.asarray(a * (1 + eps * rng.uniform(-1, 1, a.shape)), a.dtype)


def _copy(a: Array | None) -> Array | None:
    return None if a is None else np.array(a)


def _again(order: Sequence[Any], rng: np.random.Generator) -> dict[int, Array]:
    """Compute a graph again, each result rounded at random; what is compared stays as it was.

    A linear op has sums inside: their rounding is relative to what it adds up, its inputs.
    """
    values: dict[int, Array] = {}
    for t in order:
        if t.op is None or t.data.dtype.kind not in "fc":
            values[t.order] = t.data
            continue
        inputs = [values[x.order] for x in t.inputs]
        if t.op.linear:
            inputs = [_rounded(a, rng) for a in inputs]
        values[t.order] = _rounded(np.asarray(t.op.forward(*inputs, **t.attrs)), rng)
    return values
