"""What is checked of the inputs of an op, what errors say of them, and ``debug()``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from .arrays import Array
from .errors import DtypeError, NonFiniteError, ShapeError
from .op import Op
from .scope import Place, scope


@contextmanager
def debug() -> Iterator[None]:
    """Stop at the first value that is not finite, forward or backward, and name its op and step.

    Arrays that the graph saves are read-only inside until ``backward()`` has run over them, so
    that writing to one of them raises NumPy's ``ValueError`` at the line that does it.

    Raises
    ------
    NonFiniteError
        With the op, the place, and the names and shapes of the inputs.

    Examples
    --------
    >>> from tinygrad_rnn import Tensor, ops
    >>> with debug():
    ...     ops.log(Tensor([1.0, 0.0], name="p"))
    Traceback (most recent call last):
    tinygrad_rnn.errors.NonFiniteError: log gave -inf at [1] from finite inputs p (2,)
    """
    here = scope()
    before, here.frozen = here.frozen, []
    try:
        with np.errstate(all="ignore"):  # what NumPy would warn of is an error here
            yield
    finally:
        frozen, here.frozen = here.frozen, before
        thaw(frozen)


def describe(t: Any) -> str:
    """Return what errors call a node: its name or origin, and its shape."""
    name = t.name or (
        f"result of {t.op.name}" if t.op else "a constant" if not t.requires_grad else "a leaf"
    )
    return f"{name} {t.shape}"


def where(place: Place | None = None) -> str:
    """Return `` in encoder.L0.fwd, step t=3 of 7`` for a place, here by default."""
    text = str(place or scope().place or "")
    return f" in {text}" if text else ""


def explain(op: Op, inputs: tuple[Any, ...], attrs: dict[str, Any], error: Exception) -> Exception:
    """Return the error with the op, the place, and the names and shapes of its inputs."""
    settings = "".join([f", {k}={v!r}" for k, v in attrs.items()])
    kinds: dict[type[Exception], type[Exception]] = {IndexError: IndexError, TypeError: DtypeError}
    kind = next((kinds[k] for k in kinds if isinstance(error, k)), ShapeError)
    operands = ", ".join([describe(x) for x in inputs])
    return kind(f"{op.name}{where()}: {operands}{settings} do not fit: {error}")


def agree(op: Op, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Convert integers and booleans to the floating type they meet; refuse two floating types."""
    chosen = range(*op.selects.indices(len(inputs)))
    kinds = {x.data.dtype for x in inputs[: chosen.start] + inputs[chosen.stop :]}
    if len(kinds) == 1 and next(iter(kinds)).kind in "fc":
        return inputs
    operands = [x for k, x in enumerate(inputs) if k not in chosen]
    floating = [x.data.dtype for x in operands if x.data.dtype.kind in "fc"]
    if not floating:
        return inputs
    dtype = floating[0]
    for other in floating:
        if other != dtype and np.finfo(other).dtype != np.finfo(dtype).dtype:
            raise DtypeError(
                f"{op.name}: {dtype} mixed with {other}{where()}: "
                f"{', '.join(describe(x) + ' ' + str(x.dtype) for x in operands)}; convert one: "
                f"Tensor.astype({str(dtype)!r}), Module.astype({str(dtype)!r}), float(y)"
            )
    return tuple(
        [
            x if k in chosen or x.data.dtype.kind in "fc" else x.astype(dtype)
            for k, x in enumerate(inputs)
        ]
    )


def first_bad(a: Array) -> str:
    """Return the first element that is not finite, and where it stands."""
    at = [int(i) for i in np.argwhere(~np.isfinite(a))[0]]
    return f"{a[tuple(at)]} at {at}"


def inspect(
    t: Any, frozen: list[Array], op: Op | None = None, inputs: tuple[Any, ...] = ()
) -> None:
    """Raise if `t` is not finite; protect the arrays that its node saves."""
    if t.data.dtype.kind in "fc" and not np.isfinite(t.data).all():
        bad = [x for x in inputs if x.data.dtype.kind in "fc" and not np.isfinite(x.data).all()]
        source = f"{op.name} gave" if op else f"{t.name or 'data'} {t.shape} holds"
        raise NonFiniteError(
            f"{source} {first_bad(t.data)}{where()}"
            + (f" from {'finite ' if not bad else ''}inputs " if inputs else "")
            + ", ".join([describe(x) for x in bad or inputs])
        )
    for a in [x.data for x in (t, *t.inputs)] if t.op else []:
        if a.flags.writeable and (a.base is None or isinstance(a.base, np.ndarray)):
            a.flags.writeable = False
            frozen.append(a)


def thaw(frozen: list[Array] | None) -> None:
    """Let the arrays be written to again."""
    for a in sorted(frozen or (), key=lambda a: a.base is not None):  # a base before its views
        with suppress(ValueError):  # what belongs to another library may not be given back
            a.flags.writeable = True
    if frozen:
        frozen.clear()


def watch(follow: bool = False) -> Callable[[Any, Any], None] | None:
    """Return what a sweep shows its nodes and their gradients to; None where nothing looks.

    Under ``debug()`` it stops at a gradient that is not finite.  With `follow`, nodes that the
    sweep makes are placed where the node they belong to was made.
    """
    here = scope()
    if here.frozen is None and not follow:
        return None

    def look(t: Any, g: Any) -> None:
        if follow:
            here.place = t.place
        a = getattr(g, "data", g) if hasattr(g, "__record__") else np.asarray(g)
        if here.frozen is not None and not np.isfinite(a).all():
            raise NonFiniteError(
                f"backward: the gradient that reached {describe(t)}"
                f"{f', the result of {t.op.name},' if t.op else ''} is "
                f"{first_bad(a)}{where(t.place)}"
            )

    return look
