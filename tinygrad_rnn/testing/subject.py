"""What is checked: anything with ``forward(*arrays)`` and ``vjp(arrays, cotangents)``.

``from_function`` and ``from_module`` make such an object of what this framework records; one
made for another engine needs the two methods and nothing else.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .. import graph
from ..arrays import Array
from ..module import Module
from ..nn import Cell, Recurrent
from ..nn.states import map_state
from ..op import Op
from ..scope import no_grad, record, recording
from ..tensor import Tensor
from ..transforms import grad

Pull = Callable[[Sequence[Any]], tuple[Any, ...]]
Block = tuple[str, Any]  # a label, and the index of its elements


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
        return tuple([np.asarray(part) for part in (y if isinstance(y, tuple | list) else (y,))])

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
        with no_grad():
            return tuple([t.data for t in self._run([Tensor(a) for a in arrays])])

    def pull(self, arrays: Sequence[Array]) -> tuple[tuple[Array, ...], Pull]:
        """Record once, and return the outputs and the pullback."""
        self.evaluations += 1
        leaves, outs = self.recorded(arrays)
        self.note(outs)

        def back(cotangents: Sequence[Any], create_graph: bool = False) -> tuple[Any, ...]:
            return pull_back(outs, leaves, cotangents, create_graph)

        return tuple([t.data for t in outs]), back

    def record(self, arrays: Sequence[Array]) -> tuple[list[Tensor], list[Tensor]] | None:
        """Return outputs and leaves; every inner value is kept."""
        with record():
            leaves, outs = self.recorded(arrays)
        return outs, leaves

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


# --- modules --------------------------------------------------------------------------------------


class ModuleSubject(Recorded):
    """A module: its inputs, its initial state and every parameter are what is checked.

    The parameters themselves are leaves of the graph; ``restore`` gives them their values back.
    """

    def __init__(
        self, module: Module, inputs: Sequence[Any], state: Any, lengths: Any, call: dict[str, Any]
    ) -> None:
        self.module = module
        self.dtype = dtype_of(module)
        self.kwargs = dict(call) if lengths is None else {**call, "lengths": lengths}
        given = [_as_input(x, self.dtype) for x in inputs]
        if state is None and isinstance(module, Recurrent | Cell):
            state = initial_state(module, given, self.kwargs)
        self.state = None if state is None else map_state(np.asarray, state)
        states = [] if state is None else flatten(self.state)
        free = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.letters = [] if state is None else _letters(self.state)
        self.count = len(given)
        self.places = [name for name, _ in free]
        self.before = [p.data for _, p in free]
        self.twins: dict[np.dtype[Any], Module] = {np.finfo(self.dtype).dtype: module}
        names = ["x"] if self.count == 1 else [f"x{k}" for k in range(self.count)]
        names += [f"{letter}0" for letter in self.letters] + self.places
        self.widths = _widths(module)
        super().__init__(
            module, [*given, *states, *self.before], type(module).__name__, names
        )  # fmt: skip

    def forward(self, *arrays: Array) -> tuple[Array, ...]:
        """Return the outputs, recording nothing."""
        self.evaluations += 1
        self._place(arrays)
        with no_grad():
            return tuple([t.data for t in self._call_with([Tensor(a) for a in self._own(arrays)])])

    def pull(self, arrays: Sequence[Array]) -> tuple[tuple[Array, ...], Pull]:
        """Record once; the pullback gives the parameters these values again before it runs."""
        outputs, back = super().pull(arrays)

        def placed(cotangents: Sequence[Any], create_graph: bool = False) -> tuple[Any, ...]:
            self._place(arrays)
            return back(cotangents, create_graph)  # type: ignore[call-arg]

        return outputs, placed

    def recorded(self, arrays: Sequence[Array]) -> tuple[list[Tensor], list[Tensor]]:
        """Return leaves and outputs of one recorded call; the parameters are leaves."""
        parameters = self._place(arrays)
        leaves = [Tensor(a, requires_grad=a.dtype.kind in "fc") for a in self._own(arrays)]
        with recording():
            return [*leaves, *parameters], self._call_with(leaves)

    def _own(self, arrays: Sequence[Array]) -> Sequence[Array]:
        return arrays[: len(arrays) - len(self.places)]

    def _place(self, arrays: Sequence[Array]) -> list[Tensor]:
        """Give the parameters these values; they are those of a twin in another dtype."""
        values = arrays[len(arrays) - len(self.places) :]
        dtype = np.finfo(np.result_type(*[a for a in arrays if a.dtype.kind in "fc"])).dtype
        if dtype not in self.twins:
            self.twins[dtype] = copy.deepcopy(self.module).astype(dtype)
        self.current = self.twins[dtype]
        found = dict(self.current.named_parameters())
        parameters: list[Tensor] = [found[name] for name in self.places]
        for p, value in zip(parameters, values, strict=True):
            p.data = value
        return parameters

    def _call_with(self, leaves: list[Tensor]) -> list[Tensor]:
        kwargs = dict(self.kwargs)
        if self.state is not None:
            parts = iter(leaves[self.count :])
            kwargs["state"] = map_state(lambda _: next(parts), self.state)
        self.call = lambda *inputs: self.current(*inputs, **kwargs)
        return self._run(leaves[: self.count])

    def restore(self) -> None:
        """Give the parameters the arrays that they had."""
        found = dict(self.module.named_parameters())
        for name, data in zip(self.places, self.before, strict=True):
            found[name].data = data

    def blocks(self, k: int) -> list[Block]:
        """Cut inputs by step, states by layer and direction, parameters by gate."""
        name, a = self.inputs[k], self.arrays[k]
        if k < self.count:
            time = 1 if getattr(self.module, "batch_first", False) and a.ndim == 3 else 0
            return by_step(name, a, time)
        if name not in self.places:
            rows = len(a) if a.ndim == 3 else 1
            return [(f"{name}[{r}]", (r,)) for r in range(rows)] if rows > 1 else [(name, ...)]
        width, letters = self.widths.get(name, (0, ()))
        count = a.shape[-1] // width if a.ndim and width and a.shape[-1] % width == 0 else 1
        labels = letters if len(letters) == count else tuple(str(j) for j in range(count))
        if count < 2:
            return [(name, ...)]
        return [
            (f"{name}, gate {letter}", (..., slice(j * width, (j + 1) * width)))
            for j, letter in enumerate(labels)
        ]

    def output_blocks(self, k: int, y: Array) -> list[Block]:
        """Cut the output by step; final states are whole."""
        if k == 0:
            time = 1 if getattr(self.module, "batch_first", False) and y.ndim == 3 else 0
            return by_step("y", y, time)
        if k <= len(self.letters):
            return [(f"{self.letters[k - 1]}_n", ...)]
        return by_step(f"output {k}", y)


def from_module(
    module: Module, *inputs: Any, state: Any = None, lengths: Any = None, **call: Any
) -> ModuleSubject:
    """Return a module at its inputs as a Differentiable: ``.arrays`` is the point.

    Its inputs are those of the call, the initial state of a layer or cell (zeros where none is
    given) and every parameter that requires a gradient, in this order; ``.inputs`` names them.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> from_module(nn.RNN(1, 2, rng=0), np.ones((3, 1, 1))).inputs
    ['x', 'h0', 'L0.fwd.W_x', 'L0.fwd.W_h', 'L0.fwd.b']
    """
    return ModuleSubject(module, inputs, state, lengths, call)


def dtype_of(module: Module) -> np.dtype[Any]:
    """Return the dtype of a module's parameters; float64 where it has none."""
    own = [p.dtype for p in module.parameters()]
    return own[0] if own else np.dtype(getattr(module, "dtype", np.float64))


def _as_input(x: Any, dtype: np.dtype[Any]) -> Array:
    a = np.asarray(x.data if isinstance(x, Tensor) else x)
    return a.astype(dtype) if a.dtype.kind == "f" else a


def initial_state(module: Any, inputs: Sequence[Array], kwargs: dict[str, Any]) -> Any:
    """Return the state that a layer or cell starts from where none is passed, as arrays."""
    if isinstance(module, Cell):
        return module.initial_state(len(inputs[0]) if inputs else 1)
    with no_grad():
        final = module(*inputs, **{**kwargs, "trace": False})[1]
    starts = [cell.initial_state(1) for _, _, cell in module.cells()]
    if any(np.any(s) for start in starts for s in flatten(start)):
        raise ValueError(
            f"{type(module).__name__}: its initial state is not zero; pass it as state="
        )
    return map_state(lambda s: np.zeros_like(s.data), final)


def _letters(state: Any) -> list[str]:
    """Return what the arrays of a state are called: h, or h and c, or numbered."""
    if state is None:
        return []
    if not isinstance(state, tuple):
        return ["h"]
    flat = flatten(state)
    if len(flat) == len(state) == 2:
        return ["h", "c"]
    return [f"s{k}" for k in range(len(flat))]


def _widths(module: Module) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Return for each parameter of a cell the width and the letters of its gates."""
    return {
        f"{prefix}.{name}" if prefix else name: (cell.hidden_size, cell.gates)
        for prefix, cell in module.named_modules()
        if isinstance(cell, Cell)
        for name, _ in cell.named_children()
    }


def as_subject(f: Any, inputs: Sequence[Any], **call: Any) -> Subject:
    """Return what a check looks at: a function, a module, or a foreign Differentiable."""
    if isinstance(f, Module):
        return ModuleSubject(f, inputs, call.pop("state", None), call.pop("lengths", None), call)
    if isinstance(f, ModuleSubject):
        return f
    arrays = [np.asarray(x.data if isinstance(x, Tensor) else x) for x in inputs]
    if isinstance(f, Recorded):
        return Recorded(f.call, arrays, f.name, f.inputs)
    if hasattr(f, "forward") and hasattr(f, "vjp") and not isinstance(f, Op):
        return Subject(f, arrays)
    if not callable(f):
        raise TypeError(
            f"{type(f).__name__} is neither a function of Tensors nor a module nor an object with "
            f"forward(*arrays) and vjp(arrays, cotangents)"
        )
    return Recorded(f, arrays, name_of(f), _argument_names(f, len(arrays)))


def _argument_names(f: Any, n: int) -> list[str] | None:
    """Return the names of the parameters of a Python function, where they fit n inputs."""
    if isinstance(f, Op):
        return list("xyz")[:n] if n <= 3 else None
    try:
        known = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return None
    names = [p.name for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return names[:n] if len(names) >= n else None
