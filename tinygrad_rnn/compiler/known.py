"""What kernels know: which ops, of which shapes; what is left runs on NumPy."""

from __future__ import annotations

import math
from typing import Any

from .. import ops
from .errors import CompileError
from .rows import ELEMENTWISE, VIEWS
from .trace import Value


def features(v: Value) -> int:
    """Return how many numbers a row of `v` has; raise where it is no vector."""
    shape = v.shape[1:] if v.role == "rows" else v.shape
    if len(shape) > 1:
        if v.role == "shared" and len(v.shape) == 2 and v.shape[0] == 1:
            return int(v.shape[1])  # type: ignore[arg-type]
        raise CompileError(f"rows of shape {shape} run on NumPy")
    return math.prod([int(n) for n in shape if n is not None])


def view(v: Value) -> tuple[Value, int, int]:
    """Return what a view shows: a value, the first feature, and the step between features."""
    if v.op is None or v.op not in VIEWS or v.role == "shared":
        return v, 0, 1
    a = v.inputs[0]
    inner, offset, step = view(a)
    n, m = features(v), features(a)
    if v.op is ops.part and v.attrs["axis"] == 1:
        return inner, offset + step * v.attrs["start"], step
    if v.op is ops.broadcast and m == 1 and a.role == "rows":
        return inner, offset, 0
    if v.op is ops.broadcast and n == m:
        return inner, offset, step
    if v.op is ops.reshape and n == m and a.role == "rows":
        return inner, offset, step
    if v.op is ops.getitem:
        index = v.attrs["index"]
        index = index if isinstance(index, tuple) else (index,)
        slices = [i for i in index if i is not None and i is not Ellipsis]
        if n == m and all(i == slice(None) for i in slices):
            return inner, offset, step
        if len(slices) == 2 and slices[0] == slice(None) and isinstance(slices[1], slice):
            start, _, by = slices[1].indices(m)
            if by == 1:
                return inner, offset + step * start, step
    raise CompileError(f"{v.op.name}({v.attrs}) runs on NumPy")


def check(v: Value) -> None:
    """Raise where no kernel knows an op, or knows it for other shapes only."""
    op = v.op
    features(v)
    if op in VIEWS:
        view(v)
        return
    if op in ELEMENTWISE:
        for i in v.inputs:
            if features(i) not in (1, features(v)):
                raise CompileError(f"{op.name if op else ''} of {i.shape} runs on NumPy")
        return
    if op is ops.matmul:
        x, w = v.inputs
        if len(x.shape) == 2 and w.role == "shared" and len(w.shape) == 2 and view(x)[2]:
            return
    elif op in (ops.sum, ops.max):
        axes = v.attrs.get("axis")
        axes = axes if isinstance(axes, tuple) else (axes,)
        if len(v.inputs[0].shape) == 2 and tuple([a % 2 for a in axes]) == (1,):
            return
    elif op is ops.concat:
        if all(len(i.shape) == 2 for i in v.inputs):
            return
    elif op is ops.scatter and (
        all(len(i.shape) == 2 for i in v.inputs)
        and all(columns_of(i) is not None for i in v.attrs["index"])
    ):
        return
    raise CompileError(f"{op.name if op else ''} of {v.shape} runs on NumPy")


def columns_of(index: Any) -> slice | None:
    """Return the slice of the features that an index names."""
    index = index if isinstance(index, tuple) else (index,)
    if len(index) == 1 and index[0] == slice(None):
        return slice(None)
    if len(index) == 2 and index[0] == slice(None) and isinstance(index[1], slice):
        return index[1] if index[1].step in (None, 1) else None
    return None


def is_known(v: Value) -> bool:
    """Return whether kernels know an op and its shapes."""
    if v.role == "summed":
        return sums_rows(v) or is_outer(v)
    try:
        check(v)
    except CompileError:
        return False
    return v.role == "rows"


def sums_rows(v: Value) -> bool:
    """Return whether `v` sums rows that a kernel knows: the gradient of a bias."""
    axes = v.attrs.get("axis")
    return (
        v.op is ops.sum and v.inputs[0].role == "rows" and len(v.inputs[0].shape) == 2
        and (axes if isinstance(axes, tuple) else (axes,)) == (0,)
    )  # fmt: skip


def is_outer(v: Value) -> bool:
    """Return whether `v` sums products of two rows: the gradient of a weight."""
    if v.op is not ops.matmul or v.role != "summed":
        return False
    a, b = v.inputs
    return a.op is ops.transpose and all(
        [u.role == "rows" and len(u.shape) == 2 and u.leaf not in ("mask", "constant")
         and (u.op not in VIEWS or is_known(u)) for u in (a.inputs[0], b)]
    )  # fmt: skip
