"""States: one Tensor, or any tuple of Tensors and tuples; what is done to all of them alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import ops
from ..arrays import Array
from ..tensor import Tensor

State = Any  # one Tensor, or any tuple of Tensors


def choose(inside: Tensor, new: Tensor, old: Any) -> Tensor:
    """Return `new` for the sequences that are `inside` (N, 1), `old` for the others."""
    if new.ndim != 2:
        inside = inside.reshape((-1,) + (1,) * (new.ndim - 1))
    return ops.where(inside, new, old)


def keep_past_end(inside: Tensor, new: State, old: State) -> State:
    """Return the state after a step: `new` for the sequences inside, else `old`."""
    if isinstance(new, tuple):
        return tuple([keep_past_end(inside, a, b) for a, b in zip(new, old, strict=True)])
    return choose(inside, new, old)


def zero_past_end(outputs: Any, valid: Array) -> Any:
    """Return outputs (T, N, ...) that are zero past the end of each sequence."""
    return ops.where(valid.reshape(valid.shape + (1,) * (outputs.ndim - 2)), outputs, 0.0)


def finite_past_end(outputs: Any, valid: Array) -> Any:
    """Return outputs (T, N, ...), whole or by steps, finite past the end of each sequence.

    No gradient arrives there, but what reads an infinity would multiply it with that 0.
    """
    if isinstance(outputs, Tensor):
        if np.isfinite(outputs.data).all():
            return outputs
        return zero_past_end(outputs, valid)
    return [
        y if np.isfinite(y.data).all() else choose(Tensor(inside[:, None]), y, 0.0)
        for y, inside in zip(outputs, valid, strict=True)
    ]


def holds_tensors(state: Any) -> bool:
    """Return whether a state is made of Tensors and tuples alone."""
    if isinstance(state, tuple):
        return all(holds_tensors(s) for s in state)
    return isinstance(state, Tensor)


def alike(a: Any, b: Any) -> bool:
    """Return whether two states surely have one structure; fast, for every step of a loop."""
    if type(a) is Tensor is type(b):
        same: bool = a.data.shape == b.data.shape
        return same
    if type(a) is not tuple or type(b) is not tuple or len(a) != len(b):
        return False
    for k, p in enumerate(a):
        q = b[k]  # faster than zip(..., strict=True)
        if type(p) is not Tensor or type(q) is not Tensor or p.data.shape != q.data.shape:
            return False
    return True


def first_of(state: Any) -> Any:
    """Return the first array of a state; None where there is none."""
    while isinstance(state, tuple):
        state = state[0] if state else None
    return state


def nest(state: Any) -> Any:
    """Return a state with its lists as tuples; a list of numbers is an array."""
    if isinstance(state, list):
        if not any(isinstance(s, tuple | np.ndarray | Tensor) for s in state):
            return np.asarray(state)
        state = tuple(state)
    return tuple([nest(s) for s in state]) if isinstance(state, tuple) else state


def map_state(f: Any, state: Any) -> Any:
    """Return a state with `f` applied to each array."""
    if isinstance(state, tuple):
        return tuple([map_state(f, s) for s in state])
    return f(state)


def fill(template: State, parts: Iterable[Any]) -> State:
    """Return a state of the structure of `template` that is made of `parts`."""
    rest = iter(parts)
    return map_state(lambda _: next(rest), template)


def name_parts(state: State, names: tuple[str, ...]) -> None:
    """Call the parts of a new state by their letters where the step did not mark them."""
    parts = leaves(state)
    if len(parts) == len(names):
        for name, part in zip(names, parts, strict=True):
            if part.name is None:
                part.name = name


def name_initial(old: State, new: State) -> None:
    """Call an initial state after what the first step calls its successor: h0 for h."""
    if isinstance(old, tuple):
        for a, b in zip(old, new, strict=True):
            name_initial(a, b)
    elif old.name is None and new.name is not None:
        old.name = f"{new.name}0"


def structure(state: Any) -> tuple[Any, ...]:
    """Return a state's shapes, nested as it is: ``((3, 4), (3, 4))``."""
    if isinstance(state, tuple):
        return tuple([structure(s) for s in state])
    return state.shape if isinstance(state, Tensor) else np.shape(state)


def as_tensors(state: Any, dtype: npt.DTypeLike | None = None) -> State:
    """Return a state with its arrays as Tensors, real ones in `dtype` where it is given."""
    if isinstance(state, tuple):
        return tuple([as_tensors(s, dtype) for s in state])
    if isinstance(state, Tensor):
        return state
    a = np.asarray(state)
    return Tensor(a if dtype is None or a.dtype.kind == "c" else a.astype(dtype))


def leaves(state: State) -> list[Tensor]:
    """Return the Tensors of a state, in order."""
    if isinstance(state, tuple):
        return [t for s in state for t in leaves(s)]
    return [state]
