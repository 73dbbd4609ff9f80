"""What is checked: anything with ``forward(*arrays)`` and ``vjp(arrays, cotangents)``.

``from_function`` and ``from_module`` make such an object of what this framework records; one
made for another engine needs the two methods and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .. import graph
from ..arrays import Array
from ..op import Op
from ..scope import no_grad, record, recording, scope
from ..tensor import Tensor
from ..transforms import grad

Pull = Callable[[Sequence[Any]], tuple[Any, ...]]
Block = tuple[str, Any]  # a label, and the index of its elements


@contextmanager
def plain() -> Iterator[None]:
    """Record nothing, and let ``debug()`` stop at nothing: a reference may leave the domain."""
    here = scope()
    before, here.frozen = here.frozen, None
    try:
        with no_grad():
            yield
    finally:
        here.frozen = before


@runtime_checkable
class Differentiable(Protocol):
    """What a check needs of an engine, ours or another.

    ``forward`` keeps the dtype of its inputs, complex128 included where the function is
    analytic.  ``vjp`` returns one gradient for each input, None where none flows; a cotangent
    of None stands for zeros.
    """

    def forward(self, *arrays: Array) -> tuple[Array, ...]:
        """Return the outputs for the inputs."""

    def vjp(
        self, arrays: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> tuple[Array | None, ...]:
        """Return the gradient of the sum of <cotangent, output> for each input."""


class Subject:
    """A Differentiable with what checks ask of it beyond the two methods; made for foreign ones.

    Attributes
    ----------
    name : str
    arrays : list of ndarray
        The point.
    inputs, outputs : list of str
        Their names; those of the outputs are known after the first call.
    """

    tensors = False  # whether the tape can be read
    ops: tuple[Op, ...] = ()  # on the tape of the last pull

    def __init__(self, f: Any, arrays: Sequence[Array], name: str = "") -> None:
        self.f, self.arrays = f, list(arrays)
        self.name = name or getattr(f, "name", None) or type(f).__name__
        self.inputs = _names(getattr(f, "names", None), "x", len(self.arrays))
        self.evaluations = 0

    def forward(self, *arrays: Array) -> tuple[Array, ...]:
        """Return the outputs."""
        self.evaluations += 1
        y = self.f.forward(*arrays)
        ys = tuple([np.asarray(part) for part in (y if isinstance(y, tuple | list) else (y,))])
        for part, given in zip(ys, y if isinstance(y, tuple | list) else (y,), strict=True):
            if part.dtype.kind not in "biufc":
                raise NotATensorError(
                    f"{self.name} returned {type(given).__name__}, not an array or a tuple of them"
                )
        return ys

    def pull(self, arrays: Sequence[Array]) -> tuple[tuple[Array, ...], Pull]:
        """Return the outputs and the function that takes cotangents back to gradients."""
        return self.forward(*arrays), lambda cotangents: _listed(
            self.f.vjp(list(arrays), cotangents)
        )

    def record(self, arrays: Sequence[Array]) -> tuple[list[Tensor], list[Tensor]] | None:
        """Return outputs and leaves as recorded nodes, all inner values kept; None if foreign."""
        return None

    def unsafe(self) -> list[str]:
        """Return the ops for which a complex step is wrong."""
        return [] if getattr(self.f, "complex_safe", True) else [self.name]

    def blocks(self, k: int) -> list[Block]:
        """Return the parts of input k that are compared each by itself."""
        return by_step(self.inputs[k], self.arrays[k])

    def output_blocks(self, k: int, y: Array) -> list[Block]:
        """Return the parts of output k."""
        return by_step(f"output {k}", y, 0)

    def restore(self) -> None:
        """Give back what evaluations have changed."""


def _listed(gradients: Any) -> tuple[Any, ...]:
    return tuple(gradients) if isinstance(gradients, tuple | list) else (gradients,)


def _names(given: Sequence[str] | None, letter: str, n: int) -> list[str]:
    names = list(given or ())
    return names + [letter if n == 1 else f"{letter}{k}" for k in range(len(names), n)]


def by_step(name: str, a: Array, axis: int = 0) -> list[Block]:
    """Cut an array of three axes or more along one of them, which is time."""
    if a.ndim < 3 or a.shape[axis] == 1:
        return [(name, ...)]
    before = (slice(None),) * axis
    return [(f"{name}(t={t + 1})", (*before, t)) for t in range(a.shape[axis])]


# --- what this framework records --------------------------------------------------------------


class Recorded(Subject):
    """A function of Tensors, whose graph is ours: it returns a Tensor or a nest of them."""

    tensors = True

    def __init__(
        self,
        call: Callable[..., Any],
        arrays: Sequence[Array],
        name: str,
        names: Sequence[str] | None = None,
    ) -> None:
        self.call = call
        self.f = self
        self.arrays = list(arrays)
        self.name = name
        self.inputs = _names(names, "x", len(self.arrays))
        self.evaluations = 0

    def forward(self, *arrays: Array) -> tuple[Array, ...]:
        """Return the outputs, recording nothing."""
        self.evaluations += 1
        with plain():
            return tuple([t.data for t in self._run([Tensor(a) for a in arrays])])

    def pull(self, arrays: Sequence[Array]) -> tuple[tuple[Array, ...], Pull]:
        """Record once, and return the outputs and the pullback."""
        self.evaluations += 1
        leaves, outs = self.recorded(arrays)
        self.note(outs)

        def back(cotangents: Sequence[Any], create_graph: bool = False) -> tuple[Any, ...]:
            self._place(arrays)  # rules read the leaves
            return pull_back(outs, leaves, cotangents, create_graph)

        return tuple([t.data for t in outs]), back

    def record(self, arrays: Sequence[Array]) -> tuple[list[Tensor], list[Tensor]] | None:
        """Return outputs and leaves; every inner value is kept."""
        with record():
            leaves, outs = self.recorded(arrays)
        return outs, leaves

    def _place(self, arrays: Sequence[Array]) -> Any:
        """Give leaves that live outside of this object these values."""

    def note(self, outs: Sequence[Tensor]) -> None:
        """Note the ops on the tape."""
        self.ops = tuple({t.op.name: t.op for t in graph.nodes(outs) if t.op}.values())

    def recorded(self, arrays: Sequence[Array]) -> tuple[list[Tensor], list[Tensor]]:
        """Return leaves and outputs of one recorded call."""
        leaves = [Tensor(a, requires_grad=a.dtype.kind in "fc") for a in arrays]
        with recording():
            return leaves, self._run(leaves)

    def _run(self, leaves: list[Tensor]) -> list[Tensor]:
        flat = flatten(self.call(*leaves))
        for y in flat:
            if not isinstance(y, Tensor):
                raise NotATensorError(
                    f"{self.name} returned {type(y).__name__}, not a Tensor or a nest of Tensors"
                )
        return flat

    def unsafe(self) -> list[str]:
        """Return the ops on the last tape that are not analytic."""
        return sorted([op.name for op in self.ops if not op.complex_safe])

    def vjp(
        self, arrays: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> tuple[Array | None, ...]:
        """Return the gradients: the second method of the protocol."""
        return self.pull(arrays)[1](cotangents)


class NotATensorError(TypeError):
    """A function returned something that the engine did not make."""


def pull_back(
    outs: Sequence[Tensor], leaves: Sequence[Tensor], cotangents: Sequence[Any], create_graph: bool
) -> tuple[Any, ...]:
    """Return the gradients at the leaves, None for one that is not floating or not reached."""
    wanted = [t for t in leaves if t.requires_grad]
    seeded = [(y, u) for y, u in zip(outs, cotangents, strict=True) if u is not None]
    seeded = [(y, u) for y, u in seeded if y.op is not None or any(y is t for t in wanted)]
    if not seeded:
        found = [np.zeros(t.shape, t.dtype) for t in wanted]
        values: Iterator[Any] = iter([Tensor(g) for g in found] if create_graph else found)
    else:
        with recording():
            ys, us = zip(*seeded, strict=True)
            values = iter(grad(list(ys), wanted, list(us), create_graph))
    return tuple([next(values) if t.requires_grad else None for t in leaves])


def flatten(nest: Any) -> list[Any]:
    """Return the leaves of nested tuples and lists, in order."""
    if isinstance(nest, tuple | list):
        return [leaf for part in nest for leaf in flatten(part)]
    return [nest]


def from_function(
    f: Callable[..., Any], *, names: Sequence[str] | None = None, name: str | None = None
) -> Recorded:
    """Return a function of Tensors as a Differentiable.

    Parameters
    ----------
    f : callable
        Takes Tensors, returns a Tensor or a nest of them.
    names : sequence of str, optional
        Of the inputs.

    Examples
    --------
    >>> d = from_function(lambda x, y: x * y)
    >>> d.vjp([np.array([2.0]), np.array([3.0])], [np.array([1.0])])
    (array([3.]), array([2.]))
    """
    return Recorded(f, [], name or name_of(f), names)


def name_of(f: Any) -> str:
    """Return what reports call a function."""
    return getattr(f, "__name__", None) or getattr(f, "name", None) or type(f).__name__


class Leaves(Recorded):
    """A function without arguments, of leaves that it closes over: these are what is checked."""

    def __init__(
        self, call: Callable[[], Any], leaves: Mapping[str, Tensor], widths: Mapping[str, int]
    ) -> None:
        super().__init__(call, [t.data for t in leaves.values()], name_of(call), list(leaves))
        self.leaves, self.widths = list(leaves.values()), widths
        self.before = self.arrays

    def forward(self, *arrays: Array) -> tuple[Array, ...]:
        """Return the outputs, recording nothing."""
        self.evaluations += 1
        self._place(arrays)
        with plain():
            return tuple([t.data for t in self._run([])])

    def recorded(self, arrays: Sequence[Array]) -> tuple[list[Tensor], list[Tensor]]:
        """Return leaves and outputs of one recorded call."""
        self._place(arrays)
        with recording():
            return self.leaves, self._run([])

    def _place(self, arrays: Sequence[Array]) -> None:
        for t, a in zip(self.leaves, arrays, strict=True):
            t.data = a

    def restore(self) -> None:
        """Give the leaves the arrays that they had."""
        self._place(self.before)

    def blocks(self, k: int) -> list[Block]:
        """Cut by gate where a width is known, else by step."""
        name, a = self.inputs[k], self.arrays[k]
        return by_gate(name, a, self.widths.get(name, 0), ()) or by_step(name, a)


def from_leaves(
    loss: Callable[[], Any],
    leaves: Mapping[str, Tensor],
    widths: Mapping[str, int] | None = None,
) -> Leaves:
    """Return a function that closes over Tensors as a Differentiable of these Tensors.

    Parameters
    ----------
    loss : callable
        Without arguments; returns a Tensor or a nest of them.
    leaves : dict of str to Tensor
        By the name that a report calls them.
    widths : dict of str to int, optional
        The size of a gate, for leaves that are several gates side by side.

    Examples
    --------
    >>> w = Tensor([2.0], requires_grad=True)
    >>> from_leaves(lambda: w * w, {"w": w}).vjp([np.array([3.0])], [np.array([1.0])])
    (array([6.]),)
    """
    return Leaves(loss, leaves, widths or {})


def by_gate(name: str, a: Array, width: int, letters: Sequence[str]) -> list[Block]:
    """Cut the last axis into gates of one width; empty where there is one gate, or none."""
    count = a.shape[-1] // width if a.ndim and width and a.shape[-1] % width == 0 else 1
    labels = letters if len(letters) == count else [str(j) for j in range(count)]
    return [
        (f"{name}, gate {letter}", (..., slice(j * width, (j + 1) * width)))
        for j, letter in enumerate(labels if count > 1 else [])
    ]
