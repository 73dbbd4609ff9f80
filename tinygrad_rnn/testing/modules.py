"""Modules as subjects: inputs, initial states and every parameter, each with its blocks."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import Array
from ..module import Module
from ..nn import Cell, Recurrent
from ..nn.states import map_state
from ..op import Op
from ..scope import no_grad, recording
from ..tensor import Tensor
from .report import GradientError, Verdict
from .subject import Block, Leaves, Recorded, Subject, by_gate, by_step, flatten, name_of, plain


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
        placed = [None if x is None else _as_input(x, self.dtype, k) for k, x in enumerate(inputs)]
        given = [x for x in placed if x is not None]
        self.absent = [x is None for x in placed]  # a layer without input is called with None
        if state is None and isinstance(module, Recurrent | Cell):
            state = initial_state(module, placed, self.kwargs)
        self.state = None
        if state is not None:
            self.state = map_state(lambda s: _as_input(s, self.dtype, "state"), state)
        states = [] if state is None else flatten(self.state)
        free = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.letters = [] if state is None else _letters(self.state)
        self.count = len(given)
        self.places = [name for name, _ in free]
        self.before = [p.data for _, p in free]
        self.twins: dict[np.dtype[Any], tuple[Module, list[Tensor]]] = {}
        self.twins[np.finfo(self.dtype).dtype] = self._with_places(module)
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
        with plain():
            return tuple([t.data for t in self._call_with([Tensor(a) for a in self._own(arrays)])])

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
            self.twins[dtype] = self._with_places(_twin(self.module, dtype))
        self.current, parameters = self.twins[dtype]
        for p, value in zip(parameters, values, strict=True):
            p.data = value
        return parameters

    def _with_places(self, module: Module) -> tuple[Module, list[Tensor]]:
        """Return a module and those of its parameters that are checked."""
        found = dict(module.named_parameters())
        return module, [found[name] for name in self.places]

    def _call_with(self, leaves: list[Tensor]) -> list[Tensor]:
        kwargs = dict(self.kwargs)
        if self.state is not None:
            parts = iter(leaves[self.count :])
            kwargs["state"] = map_state(lambda _: next(parts), self.state)
        self.call = lambda *inputs: self.current(*self._placed(inputs), **kwargs)
        return self._run(leaves[: self.count])

    def _placed(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        parts = iter(inputs)
        return [None if absent else next(parts) for absent in self.absent]

    def restore(self) -> None:
        """Give the parameters the arrays that they had."""
        _, parameters = self.twins[np.finfo(self.dtype).dtype]
        for p, data in zip(parameters, self.before, strict=True):
            p.data = data

    def blocks(self, k: int) -> list[Block]:
        """Cut inputs by step, states by layer and direction, parameters by gate."""
        name, a = self.inputs[k], self.arrays[k]
        if k < self.count:
            time = 1 if getattr(self.module, "batch_first", False) and a.ndim == 3 else 0
            return by_step(name, a, time)
        if name not in self.places:
            rows = len(a) if a.ndim == 3 else 1
            return [(f"{name}[{r}]", (r,)) for r in range(rows)] if rows > 1 else [(name, ...)]
        return by_gate(name, a, *self.widths.get(name, (0, ()))) or [(name, ...)]

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


def _twin(module: Module, dtype: np.dtype[Any]) -> Module:
    """Return the same module in another dtype, for a reference in double precision."""
    try:
        return copy.deepcopy(module).astype(dtype)
    except Exception as error:
        raise GradientError(
            f"reference unreliable: {type(module).__name__} cannot be copied to {dtype} "
            f"({type(error).__name__}: {error}); check it in that dtype: "
            f"module.astype({str(dtype)!r})",
            verdict=Verdict.UNRELIABLE,
        ) from None


def _as_input(x: Any, dtype: np.dtype[Any], which: int | str) -> Array:
    a = as_array(x, which)
    return a.astype(dtype) if a.dtype.kind == "f" else a


def as_array(x: Any, which: int | str = "") -> Array:
    """Return an input of a check as an array of numbers.

    Raises
    ------
    TypeError
        If it is none.
    """
    what = f"input {which}" if isinstance(which, int) else which or "an input"
    try:
        a = np.asarray(x.data if isinstance(x, Tensor) else x)
    except ValueError:
        raise TypeError(
            f"{what} is a list of arrays of different shapes: pass each as an input of its own; "
            f"sequences for a layer are padded, with lengths="
        ) from None
    if a.dtype.kind not in "biufc":
        raise TypeError(
            f"{what} is {type(x).__name__} ({a.dtype}), not an array of numbers: let the function "
            f"close over it, or pass it by keyword"
        )
    return a


def initial_state(module: Any, inputs: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return the state that a layer or cell starts from where none is passed, as arrays.

    None where it is learned: what is passed in its place would hide its parameters.
    """
    if isinstance(module, Cell):
        batch = len(inputs[0]) if inputs and inputs[0] is not None else 1
        return None if learned([module.first_state(1)]) else module.initial_state(batch)
    with no_grad():
        final = module(*inputs, **{**kwargs, "trace": False})[1]
    cells = [cell for _, _, cell in module.cells()]
    if learned([cell.first_state(1) for cell in cells]):
        return None
    rows = [np.asarray(s) for cell in cells for s in flatten(cell.initial_state(1))]
    shapes = [s.shape for s in flatten(final)]
    if len(rows) != len(shapes):  # stacked as in PyTorch: (layers * directions, N, H)
        count = len(shapes)
        rows = [np.stack(rows[k::count]) for k in range(count)]
    values = iter([np.array(np.broadcast_to(_fit(r, s), s)) for r, s in zip(rows, shapes)])  # noqa: B905
    return map_state(lambda s: next(values).astype(s.dtype), final)


def _fit(row: Array, shape: tuple[int, ...]) -> Array:
    """Drop the axis of the batch, of length 1, where a state has none."""
    return row if row.ndim == len(shape) else row.reshape(*row.shape[:-2], row.shape[-1])


def learned(starts: Sequence[Any]) -> bool:
    """Whether an initial state is made of parameters."""
    return any(
        isinstance(s, Tensor) and s.requires_grad for start in starts for s in flatten(start)
    )


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
    call = {k: v for k, v in call.items() if v is not None or k not in ("state", "lengths")}
    foreign = hasattr(f, "forward") and hasattr(f, "vjp") and not isinstance(f, Op | Recorded)
    if call and (foreign or isinstance(f, ModuleSubject | Leaves)) and not isinstance(f, type):
        raise TypeError(f"check of {name_of(f)}: no setting {', '.join(call)}")
    if isinstance(f, ModuleSubject | Leaves):
        return f
    arrays = [as_array(x, k) for k, x in enumerate(inputs)]
    if isinstance(f, Recorded):
        return Recorded(functools.partial(f.call, **call), arrays, f.name, f.inputs)
    if isinstance(f, type) and (foreign or issubclass(f, Module)):
        raise TypeError(f"{f.__name__} is a class: pass one of its objects, {f.__name__}(...)")
    if foreign:
        return Subject(f, arrays)
    if not callable(f):
        raise TypeError(
            f"{type(f).__name__} is neither a function of Tensors nor a module nor an object with "
            f"forward(*arrays) and vjp(arrays, cotangents)"
        )
    named = _argument_names(f, len(arrays))
    return Recorded(functools.partial(f, **call) if call else f, arrays, name_of(f), named)


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
