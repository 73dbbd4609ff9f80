"""Which values of a step belong to the sequences of the batch, and that each keeps to itself.

A value is *shared* (made of parameters and constants), *rows* (one for each sequence, the batch
is its first axis), *columns* (the transpose of rows), or *summed* over the rows, as the gradient
of a parameter.  Where no sequence sees another, T steps of N sequences are one step of T*N.
"""

from __future__ import annotations

from .. import ops
from .errors import CompileError
from .trace import Program, Value

ELEMENTWISE = frozenset(
    [ops.add, ops.sub, ops.mul, ops.div, ops.neg, ops.exp, ops.log, ops.sqrt, ops.tanh, ops.sigmoid,
     ops.pow, ops.abs, ops.maximum, ops.minimum, ops.where, ops.less, ops.less_equal, ops.greater,
     ops.greater_equal, ops.equal, ops.not_equal, ops.astype]
)  # fmt: skip
VIEWS = frozenset([ops.part, ops.reshape, ops.transpose, ops.broadcast, ops.getitem])
KNOWN = (
    ELEMENTWISE | VIEWS | {ops.matmul, ops.sum, ops.max, ops.log_softmax, ops.concat, ops.stack,
                           ops.scatter}
)  # fmt: skip


def assign(program: Program) -> None:
    """Give each value its role; raise where a step mixes the sequences of its batch."""
    for v in program.values:
        v.role = _role(v)


def _role(v: Value) -> str:
    batch = [k for k, n in enumerate(v.shape) if n is None]
    if v.op is None:
        return "rows" if batch else "shared"
    roles = {i.role for i in v.inputs}
    if not batch:
        if roles <= {"shared"}:
            return "shared"
        if "rows" in roles or "columns" in roles:
            _check_sum(v)
        return "summed"
    if v.op is ops.transpose and roles == {"rows"} and batch == [1] and len(v.shape) == 2:
        return "columns"
    if v.op is ops.transpose and roles == {"columns"}:
        return "rows"
    if batch != [0] or not roles <= {"shared", "rows"}:
        raise _mixes(v)
    _check_rows(v)
    return "rows"


def _mixes(v: Value) -> CompileError:
    name = v.op.name if v.op else "?"
    return CompileError(
        f"{name} mixes the sequences of the batch, or moves the axis of the batch{v.line}"
    )


def _check_sum(v: Value) -> None:
    """Raise unless `v` is a sum over the rows, of a gradient."""
    a = v.inputs[0]
    if v.backward and v.op is ops.sum and a.role == "rows":
        return
    if v.backward and v.op is ops.matmul and a.role == "columns" and v.inputs[1].role == "rows":
        return
    raise _mixes(v)


def _check_rows(v: Value) -> None:
    """Raise unless each row of `v` is made of the same row of its inputs."""
    op, attrs, ndim = v.op, v.attrs, len(v.shape)
    if op not in KNOWN:
        raise CompileError(f"the op {op.name if op else ''} is not known to the compiler{v.line}")
    first = v.inputs[0]
    if op is ops.matmul:
        x, w = v.inputs
        if x.role == "rows" and len(x.shape) >= 2 and (
            w.role == "shared" or (len(x.shape) == len(w.shape) >= 3)
        ):  # fmt: skip
            return
        raise _mixes(v)
    if op in (ops.sum, ops.max):
        axes = attrs.get("axis")
        axes = axes if isinstance(axes, tuple) else (axes,)
        if None in axes or any(a % len(first.shape) == 0 for a in axes):
            raise _mixes(v)
    elif op in (ops.log_softmax, ops.concat, ops.stack, ops.part):
        axis = attrs.get("axis", -1 if op is ops.log_softmax else 0)
        if axis % ndim == 0 or any(i.role != "rows" for i in v.inputs):
            raise _mixes(v)
    elif op is ops.transpose:
        axes = attrs.get("axes")
        if axes is None or axes[0] % ndim:
            raise _mixes(v)
    elif op is ops.getitem:
        if len(v.inputs) > 1:
            raise CompileError(f"an index of arrays is not known to the compiler{v.line}")
        if not _whole(attrs["index"]):
            raise _mixes(v)
    elif op is ops.scatter:
        if len(v.inputs) > len(attrs["index"]):
            raise CompileError(f"an index of arrays is not known to the compiler{v.line}")
        if not all(_whole(i) for i in attrs["index"]):
            raise _mixes(v)
    elif op is ops.reshape and first.shape[0] is not None:
        raise _mixes(v)
    elif op in ELEMENTWISE or op is ops.broadcast:
        for i in v.inputs:
            if i.role == "rows" and len(i.shape) != ndim:
                raise _mixes(v)


def _whole(index: object) -> bool:
    """Return whether an index leaves the first axis alone."""
    first = index[0] if isinstance(index, tuple) and index else index
    return first == slice(None) if isinstance(first, slice) else first is Ellipsis
