"""Gradients of recorded nodes, and of functions: ``vjp``, ``jvp``, ``hvp``, ``jacobian``.

The transforms of functions have JAX's signatures.  What goes in comes out: called with arrays
they return arrays, called with a Tensor that requires a gradient they return Tensors that were
recorded, so that they nest.  What a function closes over counts as a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import numpy as np

from . import autodiff, ops
from .arrays import Array
from .errors import GraphError, ShapeError
from .inspection import describe, thaw, watch
from .scope import at, recording, scope
from .tensor import Tensor

Function = Callable[..., Any]


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
    ShapeError
        If a gradient has not the shape of its output.

    Examples
    --------
    >>> x = Tensor(3.0, requires_grad=True)
    >>> first = grad(x * x * x, x, create_graph=True)
    >>> first.item(), grad(first, x).item()
    (27.0, 18.0)
    """
    targets, one = _listed(wrt)
    outs, single = _listed(outputs)
    weights = [gradients] * len(outs) if single or gradients is None else list(gradients)
    if len(weights) != len(outs):
        raise ShapeError(f"grad: {len(outs)} outputs but {len(weights)} gradients")
    if all(y.op is None and not any(y is t for t in targets) for y in outs):
        raise GraphError(
            f"grad: {describe(outs[0])} was not recorded: nothing it was made from requires a "
            f"gradient, or it was made under no_grad()"
        )
    with at(None):
        seeds = [_seed(y, g, create_graph) for y, g in zip(outs, weights, strict=True)]
        found = autodiff.gradients(outs, targets, seeds, create_graph, watch(create_graph))
        back = [_of(t, g, create_graph) for t, g in zip(targets, found, strict=True)]
    if not create_graph:
        thaw(scope().frozen)
        # a node that is asked for twice gets two arrays
        back = [g.copy() if any(g is b for b in back[:k]) else g for k, g in enumerate(back)]
    return back[0] if one else back


def _listed(x: Any) -> tuple[list[Tensor], bool]:
    """Return a list of Tensors, and whether it was a single one."""
    return ([x], True) if isinstance(x, Tensor) else (list(x), False)


def _seed(y: Tensor, gradient: Any, create_graph: bool) -> Any:
    array = autodiff.seed(y, gradient)
    if not create_graph:
        return array
    if not isinstance(gradient, Tensor):
        return Tensor(array)
    return gradient if gradient.dtype == array.dtype else gradient.astype(array.dtype)


def _of(t: Tensor, g: Any, create_graph: bool) -> Any:
    """Return the gradient at `t` from what arrived there, in the type of `t`."""
    if g is None:
        return _zeros(t, create_graph)
    return g if create_graph else autodiff.of_dtype(g, t.data.dtype)


def _zeros(t: Tensor, create_graph: bool) -> Any:
    zeros = np.zeros(t.shape, t.dtype)
    return Tensor(zeros) if create_graph else zeros


# --- transforms of functions ---------------------------------------------------------------------


def _enter(values: Sequence[Any]) -> tuple[list[Tensor], bool]:
    """Return new leaves of the values, and whether one of them is to be differentiated through."""
    with recording():  # a product with one is a node of its own that leads to what it was
        return [x * 1 if _open(x) else _leaf(x) for x in values], any(_open(x) for x in values)


def _open(x: Any) -> bool:
    """Whether `x` is a Tensor through which an outer transform, or the caller, differentiates."""
    return isinstance(x, Tensor) and x.requires_grad


def _leaf(x: Any) -> Tensor:
    a = np.asarray(x)
    return Tensor(a if a.dtype.kind in "fc" else a.astype(np.float64), requires_grad=True)


def _leave(x: Any, nested: bool) -> Any:
    """Return a result as it came in: Tensors to Tensors, arrays to arrays."""
    if isinstance(x, list | tuple):
        return type(x)([_leave(y, nested) for y in x])
    return x if nested or not isinstance(x, Tensor) else x.data


def vjp(f: Function, *xs: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """Return f(*xs) and the function that pulls a cotangent back: g -> (g dy/dx for each x).

    Raises
    ------
    ShapeError
        From the pullback, if the cotangent has not the shape of the output.

    Examples
    --------
    >>> y, pullback = vjp(lambda x, y: x * y, np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    >>> y, pullback(np.array([1.0, 10.0]))
    (array([3., 8.]), (array([ 3., 40.]), array([ 1., 20.])))
    """
    leaves, nested = _enter(xs)
    y = _call(f, leaves)

    def pullback(cotangent: Any) -> tuple[Any, ...]:
        again = nested or isinstance(cotangent, Tensor)
        return tuple(_grad_or_zeros(y, leaves, cotangent, again))

    return _leave(y, nested), pullback


def _call(f: Function, leaves: Sequence[Tensor]) -> Any:
    with recording():
        y = f(*leaves)
    if not isinstance(y, Tensor) and not (
        isinstance(y, list | tuple) and all(isinstance(z, Tensor) for z in y)
    ):
        raise GraphError(f"{f} returned {type(y).__name__}, not a Tensor or a tuple of Tensors")
    return y


def _grad_or_zeros(y: Any, leaves: Sequence[Tensor], gradients: Any, create_graph: bool) -> Any:
    """Return gradients at `leaves`, zeros where the output depends on none of them."""
    if all(z.op is None and not any(z is t for t in leaves) for z in _listed(y)[0]):
        return [_zeros(t, create_graph) for t in leaves]
    with recording():
        return grad(y, leaves, gradients, create_graph)


def value_and_grad(f: Function, argnums: int | tuple[int, ...] = 0) -> Function:
    """Return a function that gives f(*xs), a scalar, and its gradient at the chosen arguments.

    Examples
    --------
    >>> value, g = value_and_grad(lambda w: (w * w).sum())(np.array([1.0, 2.0]))
    >>> value, g
    (array(5.), array([2., 4.]))
    """

    def value_and_gradient(*xs: Any, **kwargs: Any) -> tuple[Any, Any]:
        chosen = (argnums,) if isinstance(argnums, int) else argnums
        leaves, _ = _enter([xs[k] for k in chosen])
        nested = any(_open(x) for x in xs)
        args = list(xs)
        for k, leaf in zip(chosen, leaves, strict=True):
            args[k] = leaf
        y = _call(lambda *args: f(*args, **kwargs), args)
        back = _grad_or_zeros(y, leaves, None, nested)
        return _leave(y, nested), back[0] if isinstance(argnums, int) else tuple(back)

    return value_and_gradient


def jvp(f: Function, xs: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """Return f(*xs) and its directional derivative: dy = sum of dy/dx t over the inputs.

    No rule of its own is needed: the pullback u -> u dy/dx is linear in u, and its own pullback
    takes the tangents to dy.

    Examples
    --------
    >>> jvp(lambda x: x * x, (np.array([3.0]),), (np.array([1.0]),))
    (array([9.]), array([6.]))
    """
    leaves, nested = _enter(xs)
    tangents = [
        t if isinstance(t, Tensor) else np.asarray(t, x.dtype if not np.iscomplexobj(t) else None)
        for x, t in zip(leaves, tangents, strict=True)
    ]
    for x, t in zip(leaves, tangents, strict=True):
        if x.shape != t.shape:
            raise ShapeError(f"jvp: the tangent of an input {x.shape} cannot be {t.shape}")
    nested = nested or any(_open(t) for t in tangents)
    y = _call(f, leaves)
    outs, single = _listed(y)
    cotangents = [Tensor(np.zeros(z.shape, z.dtype), requires_grad=True) for z in outs]
    back = _grad_or_zeros(outs, leaves, cotangents, True)
    linear = [(g, t) for g, t in zip(back, tangents, strict=True) if g.requires_grad]
    dy = (
        _grad_or_zeros([g for g, _ in linear], cotangents, [t for _, t in linear], nested)
        if linear
        else [_zeros(z, nested) for z in outs]
    )
    return _leave(y, nested), dy[0] if single else type(y)(dy)


def hvp(f: Function, xs: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, ...]:
    """Return the Hessian of the scalar f at `xs` times `tangents`, one product per input.

    Examples
    --------
    >>> hvp(lambda x: (x * x * x).sum(), (np.array([1.0, 2.0]),), (np.array([1.0, 1.0]),))
    (array([ 6., 12.]),)
    """

    def gradient(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(_grad_or_zeros(_call(f, leaves), leaves, None, True))

    dg = jvp(gradient, xs, tangents)[1]  # the Hessian is symmetric
    return tuple(dg)


def jacobian(f: Function, argnums: int | tuple[int, ...] = 0) -> Function:
    """Return a function that gives dy/dx, of shape y.shape + x.shape, for chosen arguments.

    Examples
    --------
    >>> jacobian(lambda x: x * x)(np.array([1.0, 2.0]))
    array([[2., 0.],
           [0., 4.]])
    """

    def matrix(*xs: Any) -> Any:
        chosen = (argnums,) if isinstance(argnums, int) else argnums
        nested = any(_open(x) for x in xs)

        def of_chosen(*values: Any) -> Any:
            args = list(xs)
            for k, value in zip(chosen, values, strict=True):
                args[k] = value
            return f(*args)

        y, pullback = vjp(of_chosen, *[xs[k] for k in chosen])
        if not isinstance(y, Tensor | np.ndarray):
            raise GraphError("jacobian: the function must return one Tensor")
        units = [e.reshape(y.shape) for e in np.eye(y.size, dtype=y.dtype)]
        rows = [pullback(Tensor(e) if nested else e) for e in units]
        columns = [
            _stack([row[i] for row in rows], nested, xs[k]).reshape((*y.shape, *np.shape(xs[k])))
            for i, k in enumerate(chosen)
        ]
        return columns[0] if isinstance(argnums, int) else tuple(columns)

    return matrix


def _stack(rows: Sequence[Any], nested: bool, x: Any) -> Any:
    """Lay the rows of a Jacobian on each other; the output may be empty."""
    if not rows:
        return np.zeros((0, *np.shape(x)))
    return ops.stack(*rows) if nested else np.stack(rows)
