"""Tensor: an array that remembers how it was made, and where."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from . import autodiff, graph, ops
from .arrays import Array, array, numbers
from .errors import DtypeError, GraphError, ShapeError
from .inspection import agree, describe, explain, inspect, thaw, watch
from .op import Op
from .scope import ALWAYS, adding, thread

next_order = count().__next__
_nothing: dict[str, Any] = {}


# --- the node ----------------------------------------------------------------------------------


def _left(op: Op) -> Callable[[Tensor, Any], Tensor]:
    """Return the operator method ``x op y``."""
    forward = op.forward

    def operate(x: Tensor, y: Any) -> Tensor:
        if not isinstance(y, Tensor):
            y = constant(y, x)
        if x.data.dtype is not y.data.dtype and x.data.dtype != y.data.dtype:
            x, y = agree(op, (x, y))
        try:
            data = forward(x.data, y.data)
        except (ValueError, TypeError) as error:
            raise explain(op, (x, y), _nothing, error) from None
        return _node(op, (x, y), _nothing, data, x.requires_grad or y.requires_grad)

    return operate


def _right(op: Op) -> Callable[[Tensor, Any], Tensor]:
    """Return the reflected operator method ``y op x``."""
    operate = _left(op)
    return lambda x, y: operate(constant(y, x), x)


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
        How it was made; a leaf has no op and no inputs.  Inner nodes of a layer's step may have
        been released (``Cell``); inside ``record()`` all are kept.
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

    def __init__(self, data: Any, requires_grad: bool = False, name: str | None = None) -> None:
        data = data.data if isinstance(data, Tensor) else array(data)
        if data.dtype.kind not in "biufc":
            raise DtypeError(f"Tensor: data is {data.dtype}, not numbers")
        if requires_grad and data.dtype.kind not in "fc":
            raise DtypeError(f"Tensor: {data.dtype} data cannot require a gradient; use np.float32")
        here = thread.scope
        self.data = data
        self.op, self.inputs, self.attrs = None, (), _nothing
        self.requires_grad, self.retains_grad = requires_grad, False
        self.order = next_order()
        self._grad: Array | None = None
        self.name, self.place = name, here.place
        if here.frozen is not None:
            inspect(self, here.frozen)

    def __record__(self, op: Op, x: Any, more: tuple[Any, ...], attrs: dict[str, Any]) -> Tensor:
        """Apply `op`, whose operands include this Tensor: the general path of ``Op.__call__``."""
        if not more:
            return _apply(op, self, attrs)
        given = (x, *more)
        if not all([isinstance(t, Tensor) for t in given]):
            chosen = range(*op.selects.indices(len(given)))
            floats = [Tensor(t) for k, t in enumerate(given) if k not in chosen and
                      isinstance(t, Tensor | np.ndarray) and t.dtype.kind in "fc"]  # fmt: skip
            like = floats[0] if floats else self
            given = tuple([t if isinstance(t, Tensor) else Tensor(t) if k in chosen
                           else constant(t, like) for k, t in enumerate(given)])  # fmt: skip
        return _apply_all(op, agree(op, given), attrs)

    # --- operators record directly, without asking their operands

    __add__, __radd__ = _left(ops.add), _right(ops.add)
    __sub__, __rsub__ = _left(ops.sub), _right(ops.sub)
    __mul__, __rmul__ = _left(ops.mul), _right(ops.mul)
    __truediv__, __rtruediv__ = _left(ops.div), _right(ops.div)
    __matmul__, __rmatmul__ = _left(ops.matmul), _right(ops.matmul)
    __pow__, __rpow__ = _left(ops.pow), _right(ops.pow)
    __lt__, __gt__ = _left(ops.less), _left(ops.greater)
    __le__, __ge__ = _left(ops.less_equal), _left(ops.greater_equal)
    __eq__ = _left(ops.equal)  # type: ignore[assignment]  # elementwise, as an array's
    __ne__ = _left(ops.not_equal)  # type: ignore[assignment]

    def __neg__(self) -> Tensor:
        return _apply(ops.neg, self, _nothing)

    def __abs__(self) -> Tensor:
        return _apply(ops.abs, self, _nothing)

    __hash__ = object.__hash__

    def __getitem__(self, index: Any) -> Tensor:
        if type(index) is int or type(index) is slice:
            return _apply(ops.getitem, self, {"index": index})
        template, arrays = ops.parse(index)
        chosen = [a if isinstance(a, Tensor) else Tensor(a) for a in arrays]
        return _apply_all(ops.getitem, (self, *chosen), {"index": template})

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
        return _apply(ops.transpose, self, _nothing)

    @property
    def mT(self) -> Tensor:
        """The last two axes swapped."""
        n = self.data.ndim
        if n < 2:
            raise ShapeError(f"mT: needs two axes or more, got shape {self.shape}")
        return _apply(ops.transpose, self, {"axes": (*range(n - 2), n - 1, n - 2)})

    def sum(self, axis: ops.Axis = None, keepdims: bool = False) -> Tensor:
        """Sum over all elements, over one axis or over several."""
        return _apply(ops.sum, self, {"axis": axis, "keepdims": keepdims})

    def mean(self, axis: ops.Axis = None, keepdims: bool = False) -> Tensor:
        """Mean over all elements, over one axis or over several."""
        y = self.sum(axis, keepdims)
        return y / (self.data.size / y.data.size if y.data.size else 1)

    def max(self, axis: ops.Axis = None, keepdims: bool = False) -> Tensor:
        """Largest element, of all or along axes."""
        return _apply(ops.max, self, {"axis": axis, "keepdims": keepdims})

    def min(self, axis: ops.Axis = None, keepdims: bool = False) -> Tensor:
        """Smallest element, of all or along axes."""
        return -(-self).max(axis, keepdims)

    def reshape(self, *shape: Any) -> Tensor:
        """Give the same elements another shape, as numbers or one tuple; -1 stands for the rest."""
        to = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        return _apply(ops.reshape, self, {"shape": tuple(to)})

    def transpose(self, *axes: Any) -> Tensor:
        """Permute the axes, given as numbers or one tuple; without them reverse all."""
        to = axes[0] if len(axes) == 1 and isinstance(axes[0], tuple | list) else axes
        return _apply(ops.transpose, self, {"axes": tuple(to)} if to else _nothing)

    def astype(self, dtype: npt.DTypeLike) -> Tensor:
        """Convert to another number type; its gradient is converted back."""
        y = _apply(ops.astype, self, {"dtype": np.dtype(dtype)})
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
            raise ShapeError(f"grad of {describe(self)} cannot have the shape {g.shape}")
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
                f"backward: {describe(self)} requires no gradient: nothing it was made from does, "
                f"or it was made under no_grad()"
            )
        seeds = [(self, autodiff.seed(self, gradient))]
        order = graph.nodes((self,), requiring=True)
        keep = [t for t in order if t.op is None or t.retains_grad]
        path, kept = {t.order for t in order}, {t.order for t in keep}
        found = autodiff.sweep(order, path, seeds, kept, watch=watch())
        for t in keep:
            if t.order in found:
                g = autodiff.of_dtype(found[t.order], t.data.dtype)
                with adding:  # a 0-d sum is a scalar of NumPy's
                    t._grad = g if t._grad is None else np.asarray(t._grad + g)
        thaw(thread.scope.frozen)


class Parameter(Tensor):
    """A Tensor that a Module owns and an optimiser changes; a copy of `data`.

    >>> Parameter([1.0, 2.0], name="b")
    Parameter([1., 2.], dtype=float64, name='b', requires_grad=True)
    """

    __slots__ = ()

    def __init__(self, data: Any, name: str | None = None) -> None:
        super().__init__(np.array(data, order="C"), requires_grad=True, name=name)


# --- making nodes ------------------------------------------------------------------------------

_new, _ndarray = object.__new__, np.ndarray


def _node(
    op: Op, inputs: tuple[Tensor, ...], attrs: dict[str, Any], data: Any, needs: bool
) -> Tensor:
    here = thread.scope
    t: Tensor = _new(here.kind or Tensor)
    t.data = data if type(data) is _ndarray else np.asarray(data)
    t.order = next_order()
    t._grad = t.name = None
    t.retains_grad = False
    t.place = here.place
    if needs and here.mode:
        t.op, t.inputs, t.attrs, t.requires_grad = op, inputs, attrs, op.differentiable
    elif here.mode == ALWAYS:
        t.op, t.inputs, t.attrs, t.requires_grad = op, inputs, attrs, False
    else:
        t.op, t.inputs, t.attrs, t.requires_grad = None, (), _nothing, False
    if here.frozen is not None:
        inspect(t, here.frozen, op, inputs)
    return t


def _apply(op: Op, x: Tensor, attrs: dict[str, Any]) -> Tensor:
    """Return the node of an op of one input."""
    try:
        data = op.forward(x.data, **attrs) if attrs else op.forward(x.data)
    except (ValueError, IndexError, TypeError) as error:
        raise explain(op, (x,), attrs, error) from None
    return _node(op, (x,), attrs, data, x.requires_grad)


def _apply_all(op: Op, inputs: tuple[Tensor, ...], attrs: dict[str, Any]) -> Tensor:
    """Return the node of an op of any number of inputs."""
    try:
        data = op.forward(*[x.data for x in inputs], **attrs)
    except (ValueError, IndexError, TypeError) as error:
        raise explain(op, inputs, attrs, error) from None
    return _node(op, inputs, attrs, data, any([x.requires_grad for x in inputs]))


def constant(value: Any, like: Tensor) -> Tensor:
    """Return `value` as a Tensor that meets `like` as NumPy would have it (NEP 50).

    Python numbers, and lists of them, take the dtype of `like`; arrays keep theirs.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return Tensor(value)
    dtype: Any = like.data.dtype
    if type(value) not in (bool, int, float, complex):  # np.float64 is a float, but no weak one
        return Tensor(numbers(value, dtype))
    if dtype.kind not in "fc" or isinstance(value, complex):
        dtype = np.result_type(dtype, value)
    return Tensor(np.asarray(value, dtype))
