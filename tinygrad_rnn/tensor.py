"""Tensor: an array that remembers how it was made, and where."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from . import autodiff, graph, ops
from .errors import DtypeError, GraphError, NonFiniteError, ShapeError
from .op import Array, Op

_next_order = count().__next__
_nothing: dict[str, Any] = {}
_NUMBERS = (bool, int, float, complex)  # np.float64 is a float too, but meets arrays as an array


# --- where a node is made ----------------------------------------------------------------------


class Call:
    """One call of a module: what tells its nodes from those of its next call."""

    __slots__ = ("path", "steps")

    def __init__(self, path: str, steps: int | None = None) -> None:
        self.path = path
        self.steps = steps


class Place:
    """Where a node was made: in which call, and in a recurrent layer which layer and step.

    `step` counts from 0 in ids; what a person reads counts t from 1, as the lecture does.
    """

    __slots__ = ("call", "direction", "layer", "step")

    def __init__(
        self,
        call: Call,
        layer: int | None = None,
        direction: str | None = None,
        step: int | None = None,
    ) -> None:
        self.call, self.layer, self.direction, self.step = call, layer, direction, step

    def id(self, number: int, name: str) -> str:
        """Return ``encoder#2.L0.fwd.T3.f`` for the node `name` in the call of that number."""
        parts = [self.call.path + (f"#{number}" if number > 1 else "")]
        if self.layer is not None:
            parts += [f"L{self.layer}", str(self.direction)]
        if self.step is not None:
            parts.append(f"T{self.step}")
        return ".".join([p for p in parts if p] + [name])

    def __str__(self) -> str:
        text = self.call.path
        if self.layer is not None:
            text += f"{'.' if text else ''}L{self.layer}.{self.direction}"
        if self.step is not None:
            text += f", step t={self.step + 1} of {self.call.steps}"
        return text


class Scope:
    """What holds while nodes are made: recorded or not, inspected or not, and the place."""

    __slots__ = ("frozen", "marks", "mode", "place")

    def __init__(self) -> None:
        self.mode = _NEEDED
        self.place: Place | None = None
        self.marks: dict[str, Any] | None = None  # what mark() fills while a trace is taken
        self.frozen: list[Array] | None = None  # the arrays debug() protects; None outside it


_NEVER, _NEEDED, _ALWAYS = 0, 1, 2


class _Thread(threading.local):
    def __init__(self) -> None:
        self.scope = Scope()


_thread = _Thread()


def scope() -> Scope:
    """Return the scope of this thread."""
    return _thread.scope


@contextmanager
def _mode(mode: int) -> Iterator[None]:
    here = _thread.scope
    before, here.mode = here.mode, mode
    try:
        yield
    finally:
        here.mode = before


@contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing inside: for evaluation and sampling.

    >>> w = Tensor([2.0], requires_grad=True)
    >>> with no_grad():
    ...     y = w * 3
    >>> y.requires_grad
    False
    """
    with _mode(_NEVER):
        yield


@contextmanager
def record() -> Iterator[None]:
    """Record every op inside, also where no input requires a gradient: for drawings and traces.

    >>> with record():
    ...     y = Tensor(2.0, name="x") * 3
    >>> y.op
    <op mul: x * y>
    """
    with _mode(_ALWAYS):
        yield


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
    >>> with debug():
    ...     ops.log(Tensor([1.0, 0.0], name="p"))
    Traceback (most recent call last):
    tinygrad_rnn.errors.NonFiniteError: log gave -inf at [1] from finite inputs p (2,)
    """
    here = _thread.scope
    before, here.frozen = here.frozen, []
    try:
        with np.errstate(all="ignore"):  # what NumPy would warn of is an error here
            yield
    finally:
        _thaw(here.frozen)
        here.frozen = before


@contextmanager
def at(place: Place | None) -> Iterator[None]:
    """Make the nodes inside at `place`."""
    here = _thread.scope
    before, here.place = here.place, place
    try:
        yield
    finally:
        here.place = before


def mark(**values: Any) -> None:
    """Name the values of a step: what drawings, traces, errors and worked solutions call them.

    >>> h = Tensor([1.0]) * 2
    >>> mark(h=h)
    >>> h.name
    'h'
    """
    for name, value in values.items():
        if isinstance(value, Tensor) and value.name is None:
            value.name = name
    marks = _thread.scope.marks
    if marks is not None:
        marks.update(values)


# --- the node ----------------------------------------------------------------------------------


class Tensor:
    """An array that remembers how it was made.

    Parameters
    ----------
    data : array_like
        Used as it is where it is an array: the two share memory.
    requires_grad : bool
        Whether ``backward()`` stores a gradient here.
    name : str, optional
        What errors and drawings call it.

    Attributes
    ----------
    data : ndarray
    grad : ndarray or None
        Of the shape and dtype of `data`; ``backward()`` adds to it.
    op, inputs, attrs : Op or None, tuple of Tensor, dict
        How it was made; a leaf has no op and no inputs.
    order : int
        Counts creations: a topological order.
    place : Place or None
        Where it was made.

    Raises
    ------
    DtypeError
        If `data` is no array of numbers, or requires a gradient without being floating.

    Examples
    --------
    >>> x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4., 6.])
    """

    __slots__ = (
        "__weakref__", "_grad", "attrs", "data", "inputs", "name", "op", "order", "place",
        "requires_grad", "retains_grad",
    )  # fmt: skip
    __array_ufunc__ = None  # leaves `ndarray + Tensor` to Tensor.__radd__

    data: Array
    op: Op | None
    inputs: tuple[Tensor, ...]
    attrs: dict[str, Any]
    name: str | None
    place: Place | None

    def __init__(self, data: Any, requires_grad: bool = False, name: str | None = None) -> None:
        data = data.data if isinstance(data, Tensor) else np.asarray(data)
        if data.dtype.kind not in "biufc":
            raise DtypeError(f"Tensor: data is {data.dtype}, not numbers")
        if requires_grad and data.dtype.kind not in "fc":
            raise DtypeError(
                f"Tensor: {data.dtype} data cannot require a gradient; convert it: "
                f"Tensor(np.asarray(data, np.float32), requires_grad=True)"
            )
        here = _thread.scope
        self.data = data
        self.op, self.inputs, self.attrs = None, (), _nothing
        self.requires_grad, self.retains_grad = requires_grad, False
        self.order = _next_order()
        self._grad: Array | None = None
        self.name, self.place = name, here.place
        if here.frozen is not None:
            _inspect(self, here.frozen)

    def __record__(self, op: Op, x: Any, more: tuple[Any, ...], attrs: dict[str, Any]) -> Tensor:
        """Apply `op`, whose operands include this Tensor: the general path of ``Op.__call__``."""
        if not more:
            return _apply(op, (self,), attrs)
        inputs = (x, *more)
        chosen = range(*op.selects.indices(len(inputs)))
        like = next(
            (t for t in inputs if isinstance(t, Tensor) and t.data.dtype.kind in "fc"), self
        )
        return _apply(
            op,
            _agree(
                op,
                tuple(
                    [
                        t
                        if isinstance(t, Tensor)
                        else Tensor(t)
                        if k in chosen
                        else constant(t, like)
                        for k, t in enumerate(inputs)
                    ]
                ),
            ),
            attrs,
        )

    # --- operators record directly, without asking their operands

    def __add__(self, y: Any) -> Tensor:
        return _binary(ops.add, self, y)

    def __sub__(self, y: Any) -> Tensor:
        return _binary(ops.sub, self, y)

    def __mul__(self, y: Any) -> Tensor:
        return _binary(ops.mul, self, y)

    def __truediv__(self, y: Any) -> Tensor:
        return _binary(ops.div, self, y)

    def __matmul__(self, y: Any) -> Tensor:
        return _binary(ops.matmul, self, y)

    def __pow__(self, y: Any) -> Tensor:
        return _binary(ops.pow, self, y)

    def __radd__(self, y: Any) -> Tensor:
        return _binary(ops.add, constant(y, self), self)

    def __rsub__(self, y: Any) -> Tensor:
        return _binary(ops.sub, constant(y, self), self)

    def __rmul__(self, y: Any) -> Tensor:
        return _binary(ops.mul, constant(y, self), self)

    def __rtruediv__(self, y: Any) -> Tensor:
        return _binary(ops.div, constant(y, self), self)

    def __rmatmul__(self, y: Any) -> Tensor:
        return _binary(ops.matmul, constant(y, self), self)

    def __rpow__(self, y: Any) -> Tensor:
        return _binary(ops.pow, constant(y, self), self)

    def __neg__(self) -> Tensor:
        return _apply(ops.neg, (self,), _nothing)

    def __abs__(self) -> Tensor:
        return _apply(ops.abs, (self,), _nothing)

    def __lt__(self, y: Any) -> Tensor:
        return _binary(ops.less, self, y)

    def __le__(self, y: Any) -> Tensor:
        return _binary(ops.less_equal, self, y)

    def __gt__(self, y: Any) -> Tensor:
        return _binary(ops.greater, self, y)

    def __ge__(self, y: Any) -> Tensor:
        return _binary(ops.greater_equal, self, y)

    def __eq__(self, y: Any) -> Tensor:  # type: ignore[override]
        return _binary(ops.equal, self, y)

    def __ne__(self, y: Any) -> Tensor:  # type: ignore[override]
        return _binary(ops.not_equal, self, y)

    __hash__ = object.__hash__

    def __getitem__(self, index: Any) -> Tensor:
        if type(index) is int or type(index) is slice:
            return _apply(ops.getitem, (self,), {"index": index})
        arrays: list[Tensor] = []
        parts = [_index(i, arrays) for i in (index if isinstance(index, tuple) else (index,))]
        return _apply(ops.getitem, (self, *arrays), {"index": tuple(parts)})

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a Tensor without axes")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self[k] for k in range(len(self))])

    def __bool__(self) -> bool:
        if self.data.size != 1:
            raise ValueError(
                f"a Tensor of shape {self.shape} is neither true nor false; "
                f"ask its array: t.data.any() or t.data.all()"
            )
        return bool(self.data.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.data, dtype, copy=copy)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if self.op is not None:
            raise GraphError("deepcopy: a recorded Tensor has a graph; copy t.detach()")
        twin = object.__new__(type(self))
        Tensor.__init__(twin, self.data.copy(), False, self.name)
        twin.requires_grad, twin.retains_grad = self.requires_grad, self.retains_grad
        twin._grad = None if self._grad is None else self._grad.copy()
        memo[id(self)] = twin
        return twin

    def __repr__(self) -> str:
        text = np.array2string(self.data, separator=", ", prefix="Tensor(", threshold=50)
        extras = [f"name={self.name!r}"] if self.name else []
        extras += [f"op={self.op.name}"] if self.op else []
        extras += ["requires_grad=True"] if self.requires_grad and not self.op else []
        return ", ".join([f"{type(self).__name__}({text}", f"dtype={self.dtype}", *extras]) + ")"

    # --- NumPy's names

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.data.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """Number type of the elements."""
        return self.data.dtype

    @property
    def T(self) -> Tensor:
        """The axes in reverse order."""
        return _apply(ops.transpose, (self,), _nothing)

    @property
    def mT(self) -> Tensor:
        """The last two axes swapped."""
        n = self.data.ndim
        if n < 2:
            raise ShapeError(f"mT: needs two axes or more, got shape {self.shape}")
        return _apply(ops.transpose, (self,), {"axes": (*range(n - 2), n - 1, n - 2)})

    def sum(self, axis: ops.Axis = None, keepdims: bool = False) -> Tensor:
        """Sum over all elements, over one axis or over several."""
        return _apply(ops.sum, (self,), {"axis": axis, "keepdims": keepdims})

    def mean(self, axis: ops.Axis = None, keepdims: bool = False) -> Tensor:
        """Mean over all elements, over one axis or over several."""
        y = self.sum(axis, keepdims)
        return y / (self.data.size / y.data.size if y.data.size else 1)

    def max(self, axis: ops.Axis = None, keepdims: bool = False) -> Tensor:
        """Largest element, of all or along axes."""
        return _apply(ops.max, (self,), {"axis": axis, "keepdims": keepdims})

    def min(self, axis: ops.Axis = None, keepdims: bool = False) -> Tensor:
        """Smallest element, of all or along axes."""
        return -(-self).max(axis, keepdims)

    def reshape(self, *shape: Any) -> Tensor:
        """Give the same elements another shape, as numbers or one tuple; -1 stands for the rest."""
        to = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return _apply(ops.reshape, (self,), {"shape": tuple(to)})

    def transpose(self, *axes: Any) -> Tensor:
        """Permute the axes, given as numbers or one tuple; without them reverse all."""
        to = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        return _apply(ops.transpose, (self,), {"axes": tuple(to)} if to else _nothing)

    def astype(self, dtype: npt.DTypeLike) -> Tensor:
        """Convert to another number type; its gradient is converted back."""
        y = _apply(ops.astype, (self,), {"dtype": np.dtype(dtype)})
        y.requires_grad = y.requires_grad and y.data.dtype.kind in "fc"
        return y

    def item(self) -> Any:
        """Return the only element as a Python number."""
        if self.data.size != 1:
            raise ShapeError(f"item: one element is needed, the shape is {self.shape}")
        return self.data.item()

    def numpy(self) -> Array:
        """Return the array."""
        return self.data

    # --- gradients

    @property
    def grad(self) -> Array | None:
        """The gradient that ``backward()`` summed here, of the shape and dtype of the data."""
        return self._grad

    @grad.setter
    def grad(self, value: npt.ArrayLike | None) -> None:
        if value is None:
            self._grad = None
            return
        g = np.asarray(value, self.data.dtype)
        if g.shape != self.data.shape:
            raise ShapeError(f"grad of {_describe(self)} cannot have the shape {g.shape}")
        self._grad = g

    def detach(self) -> Tensor:
        """Return a leaf of the same data: no gradient passes.  Drawings find its source."""
        leaf = Tensor(self.data, name=self.name)
        leaf.attrs = {"detached": weakref.ref(self)}
        return leaf

    def retain_grad(self) -> None:
        """Let ``backward()`` store the gradient of this node too, although it is no leaf."""
        self.retains_grad = True

    def backward(self, gradient: npt.ArrayLike | Tensor | None = None) -> None:
        """Add to ``.grad`` of every leaf that requires one the gradient of this Tensor.

        It may run again while the graph is alive: gradients add up.

        Parameters
        ----------
        gradient : array_like, optional
            The gradient of the final quantity with respect to this Tensor; 1 for a scalar.

        Raises
        ------
        GraphError
            If this Tensor requires no gradient, or is no scalar and `gradient` is missing.
        ShapeError
            If `gradient` has another shape.

        Examples
        --------
        >>> x = Tensor([1.0, 2.0], requires_grad=True)
        >>> (x * 3).backward([1.0, 10.0])
        >>> x.grad
        array([ 3., 30.])
        """
        if not self.requires_grad:
            raise GraphError(
                f"backward: {_describe(self)} requires no gradient: nothing it was made from does, "
                f"or it was made under no_grad()"
            )
        seed = _seed(self, gradient)
        order = graph.nodes((self,), requiring=True)
        keep = [t for t in order if t.op is None or t.retains_grad]
        found = autodiff.sweep(
            order, {id(t) for t in order}, [(self, seed)], {id(t) for t in keep}, False, _watch()
        )
        for t in keep:
            g = found.get(id(t))
            if g is not None:
                g = _of_dtype(g, t.data.dtype)
                t._grad = g if t._grad is None else t._grad + g
        _thaw(_thread.scope.frozen)


class Parameter(Tensor):
    """A Tensor that a Module owns and an optimiser changes: a copy of `data` that requires a gradient.

    >>> Parameter([1.0, 2.0], name="b")
    Parameter([1., 2.], dtype=float64, name='b', requires_grad=True)
    """

    __slots__ = ()

    def __init__(self, data: Any, name: str | None = None) -> None:
        super().__init__(np.array(data, copy=True), requires_grad=True, name=name)


# --- making nodes ------------------------------------------------------------------------------

_new = object.__new__


def _node(
    op: Op, inputs: tuple[Tensor, ...], attrs: dict[str, Any], data: Any, needs: bool
) -> Tensor:
    here = _thread.scope
    t: Tensor = _new(Tensor)
    t.data = data if type(data) is np.ndarray else np.asarray(data)
    t.order = _next_order()
    t._grad = t.name = None
    t.retains_grad = False
    t.place = here.place
    mode = here.mode
    if mode and (needs or mode == _ALWAYS):
        t.op, t.inputs, t.attrs = op, inputs, attrs
        t.requires_grad = needs and (op.rules != () or op.rule_all is not None)
    else:
        t.op, t.inputs, t.attrs, t.requires_grad = None, (), _nothing, False
    if here.frozen is not None:
        _inspect(t, here.frozen, op, inputs)
    return t


def _binary(op: Op, x: Tensor, y: Any) -> Tensor:
    if not isinstance(y, Tensor):
        y = constant(y, x)
    a, b = x.data, y.data
    if a.dtype is not b.dtype and a.dtype != b.dtype:
        x, y = _agree(op, (x, y))
        a, b = x.data, y.data
    try:
        data = op.forward(a, b)
    except ValueError as error:
        raise _explain(op, (x, y), _nothing, error) from None
    return _node(op, (x, y), _nothing, data, x.requires_grad or y.requires_grad)


def _apply(op: Op, inputs: tuple[Tensor, ...], attrs: dict[str, Any]) -> Tensor:
    try:
        data = op.forward(*[x.data for x in inputs], **attrs)
    except (ValueError, IndexError) as error:
        raise _explain(op, inputs, attrs, error) from None
    return _node(op, inputs, attrs, data, any([x.requires_grad for x in inputs]))


def constant(value: Any, like: Tensor) -> Tensor:
    """Return `value` as a Tensor that meets `like` as NumPy would have it (NEP 50).

    Python numbers, and lists of them, take the dtype of `like`; arrays keep theirs.
    """
    if isinstance(value, Tensor):
        return value
    dtype = like.data.dtype
    if isinstance(value, np.ndarray | np.generic):
        return Tensor(value)
    if dtype.kind in "fc" and not (dtype.kind == "f" and np.iscomplexobj(value)):
        return Tensor(np.asarray(value, dtype))
    if type(value) in _NUMBERS:
        return Tensor(np.asarray(value, np.result_type(dtype, value)))
    return Tensor(value)


def _agree(op: Op, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Convert integers and booleans to the floating type they meet; refuse two floating types."""
    chosen = range(*op.selects.indices(len(inputs)))
    operands = [x for k, x in enumerate(inputs) if k not in chosen]
    floating = [x.data.dtype for x in operands if x.data.dtype.kind in "fc"]
    if not floating:
        return inputs
    dtype = floating[0]
    for other in floating:
        if other != dtype and np.finfo(other).dtype != np.finfo(dtype).dtype:
            raise DtypeError(
                f"{op.name}: {dtype} mixed with {other}{_where()}: "
                f"{', '.join(_describe(x) + ' ' + str(x.dtype) for x in operands)}; convert one: "
                f"Tensor.astype({str(dtype)!r}), Module.astype({str(dtype)!r}), or float(y) for a scalar"
            )
    return tuple(
        [
            x if k in chosen or x.data.dtype.kind in "fc" else x.astype(dtype)
            for k, x in enumerate(inputs)
        ]
    )


def _index(i: Any, arrays: list[Tensor]) -> Any:
    """Return what stands for one part of an index; an array goes to `arrays`."""
    if i is None or i is Ellipsis or isinstance(i, slice) or type(i) is int:
        return i
    if isinstance(i, np.integer):
        return int(i)
    a = i if isinstance(i, Tensor) else Tensor(np.asarray(i, None if np.size(i) else np.intp))
    if a.data.dtype.kind not in "bui":
        raise DtypeError(f"x[i]: an index is {a.dtype}, not integer or boolean")
    arrays.append(a)
    return ops.ARRAY


# --- gradients of recorded nodes -----------------------------------------------------------------


@overload
def grad(
    outputs: Tensor | Sequence[Tensor],
    wrt: Tensor,
    gradients: Any = None,
    create_graph: Literal[False] = False,
) -> Array: ...
@overload
def grad(
    outputs: Tensor | Sequence[Tensor],
    wrt: Sequence[Tensor],
    gradients: Any = None,
    create_graph: Literal[False] = False,
) -> list[Array]: ...
@overload
def grad(
    outputs: Tensor | Sequence[Tensor],
    wrt: Tensor,
    gradients: Any = None,
    *,
    create_graph: Literal[True],
) -> Tensor: ...
@overload
def grad(
    outputs: Tensor | Sequence[Tensor],
    wrt: Sequence[Tensor],
    gradients: Any = None,
    *,
    create_graph: Literal[True],
) -> list[Tensor]: ...
@overload
def grad(outputs: Any, wrt: Any, gradients: Any = None, create_graph: bool = False) -> Any: ...


def grad(outputs: Any, wrt: Any, gradients: Any = None, create_graph: bool = False) -> Any:
    """Return the gradients of recorded outputs, at leaves or at nodes inside the graph.

    Parameters
    ----------
    outputs : Tensor or sequence of Tensor
    wrt : Tensor or sequence of Tensor
        Where the gradients are wanted.
    gradients : array_like or sequence, optional
        The weight of each output; needed where an output is no scalar.
    create_graph : bool
        Return Tensors that were recorded, so that they can be differentiated again.

    Returns
    -------
    ndarray or Tensor, or a list of them for a sequence
        Zeros where an output does not depend on a node.  ``.grad`` is left alone.

    Raises
    ------
    GraphError
        If no output was recorded, or one is no scalar and `gradients` is missing.

    Examples
    --------
    >>> x = Tensor(3.0, requires_grad=True)
    >>> first = grad(x * x * x, x, create_graph=True)
    >>> first.item(), grad(first, x).item()
    (27.0, 18.0)
    """
    one = isinstance(wrt, Tensor)
    targets: Sequence[Tensor] = [wrt] if one else list(wrt)
    several = not isinstance(outputs, Tensor)
    outs: Sequence[Tensor] = list(outputs) if several else [outputs]
    weights = list(gradients) if several and gradients is not None else [gradients] * len(outs)
    if len(weights) != len(outs):
        raise ShapeError(f"grad: {len(outs)} outputs but {len(weights)} gradients")
    if all(y.op is None and not any(y is t for t in targets) for y in outs):
        raise GraphError(
            f"grad: {_describe(outs[0])} was not recorded: nothing it was made from requires a "
            f"gradient, or it was made under no_grad()"
        )
    seeds: list[Any] = [_seed(y, g, create_graph) for y, g in zip(outs, weights, strict=True)]
    if not create_graph:
        found = autodiff.gradients(outs, targets, seeds, False, _watch())
        back: list[Any] = [
            np.zeros(t.shape, t.dtype) if g is None else _of_dtype(g, t.data.dtype)
            for t, g in zip(targets, found, strict=True)
        ]
    else:
        with at(None):
            found = autodiff.gradients(outs, targets, seeds, True, _watch(True))
            back = [
                Tensor(np.zeros(t.shape, t.dtype)) if g is None else g
                for t, g in zip(targets, found, strict=True)
            ]
    return back[0] if one else back


def _seed(y: Tensor, gradient: Any, create_graph: bool = False) -> Any:
    """Return the gradient that a sweep starts with at `y`."""
    if gradient is None:
        if y.data.size != 1:
            raise GraphError(
                f"{_describe(y)} is no scalar: pass the gradient of the final quantity with respect "
                f"to it, or reduce it first, as in y.sum()"
            )
        gradient = np.ones(y.shape, y.dtype)
    if isinstance(gradient, Tensor):
        g: Any = gradient if create_graph else gradient.data
    else:
        dtype = y.dtype if not np.iscomplexobj(gradient) else np.result_type(y.dtype, np.complex64)
        g = np.array(gradient, dtype)
        g = Tensor(g) if create_graph else g
    if g.shape != y.shape:
        raise ShapeError(f"the gradient of {_describe(y)} cannot have the shape {g.shape}")
    return g


def _of_dtype(g: Array, dtype: np.dtype[Any]) -> Array:
    """Return `g` in the floating type of what it is the gradient of; complex parts are kept."""
    return g if g.dtype == dtype or g.dtype.kind == "c" else g.astype(dtype)


def _watch(place: bool = False) -> autodiff.Watch | None:
    """Return what a sweep shows its nodes to: `place` makes new nodes where their node was made."""
    here = _thread.scope
    if here.frozen is None and not place:
        return None

    def watch(t: Tensor, g: Any) -> None:
        if place:
            here.place = t.place
        a = g.data if isinstance(g, Tensor) else np.asarray(g)
        if here.frozen is not None and not np.isfinite(a).all():
            raise NonFiniteError(
                f"backward: the gradient that reached {_describe(t)}"
                f"{f', the result of {t.op.name},' if t.op else ''} is "
                f"{_first_bad(a)}{_where(t.place)}"
            )

    return watch


# --- errors and inspection -----------------------------------------------------------------------


def _describe(t: Tensor) -> str:
    name = t.name or (
        f"result of {t.op.name}" if t.op else "a constant" if not t.requires_grad else "a leaf"
    )
    return f"{name} {t.shape}"


def _where(place: Place | None = None) -> str:
    text = str(place or _thread.scope.place or "")
    return f" in {text}" if text else ""


def _explain(
    op: Op, inputs: tuple[Tensor, ...], attrs: dict[str, Any], error: Exception
) -> Exception:
    """Return the error with the op, the place, and the names and shapes of its inputs."""
    settings = "".join([f", {k}={v!r}" for k, v in attrs.items()])
    kind = IndexError if isinstance(error, IndexError) else ShapeError
    return kind(
        f"{op.name}{_where()}: {', '.join(_describe(x) for x in inputs)}{settings} do not fit: {error}"
    )


def _first_bad(a: Array) -> str:
    at = [int(i) for i in np.argwhere(~np.isfinite(a))[0]]
    return f"{a[tuple(at)]} at {at}"


def _inspect(
    t: Tensor, frozen: list[Array], op: Op | None = None, inputs: tuple[Tensor, ...] = ()
) -> None:
    """Raise if `t` is not finite; protect the arrays that its node saves."""
    if t.data.dtype.kind in "fc" and not np.isfinite(t.data).all():
        bad = [x for x in inputs if x.data.dtype.kind in "fc" and not np.isfinite(x.data).all()]
        source = f"{op.name} gave" if op else f"{t.name or 'data'} {t.shape} holds"
        raise NonFiniteError(
            f"{source} {_first_bad(t.data)}{_where()}"
            + (f" from {'finite ' if not bad else ''}inputs " if inputs else "")
            + ", ".join([_describe(x) for x in bad or inputs])
        )
    for a in [x.data for x in (t, *t.inputs)] if t.op else []:
        if a.flags.writeable:
            a.flags.writeable = False
            frozen.append(a)


def _thaw(frozen: list[Array] | None) -> None:
    for a in reversed(frozen or ()):  # a view can be written to when its base can
        a.flags.writeable = True
    if frozen:
        frozen.clear()
