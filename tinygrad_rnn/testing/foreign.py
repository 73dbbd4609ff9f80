"""Functions of other engines as Differentiables; an engine is imported where it is asked for."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..arrays import Array
from .subject import NotATensorError, flatten, name_of

Cotangents = Sequence[Array | None]
PEERS = {"torch": "PyTorch", "autograd": "HIPS autograd", "jax": "JAX"}


class Foreign:
    """A function of another engine's arrays, with the two methods of a Differentiable.

    Attributes
    ----------
    name : str
        What reports call it.
    names : sequence of str or None
        Of the inputs.
    complex_safe : bool
        Whether a complex step may be taken through it; it is compared with Ridders' method.
    """

    def __init__(
        self, f: Callable[..., Any], names: Sequence[str] | None, complex_safe: bool
    ) -> None:
        self.f, self.name, self.names, self.complex_safe = f, name_of(f), names, complex_safe

    def forward(self, *arrays: Array) -> tuple[Array, ...]:
        """Return the outputs."""
        raise NotImplementedError

    def vjp(self, arrays: Sequence[Array], cotangents: Cotangents) -> tuple[Array | None, ...]:
        """Return the gradients, None for an input that is not floating or not reached."""
        raise NotImplementedError

    def outputs(self, xs: Sequence[Any], what: Any) -> tuple[Any, ...]:
        """Call the function and return its outputs in order, each a `what`."""
        flat = flatten(self.f(*xs))
        for k, y in enumerate(flat):
            if not isinstance(y, what):
                kind = what.__name__.rpartition(".")[2]
                raise NotATensorError(
                    f"{self.name}: output {k} is a {type(y).__name__}; "
                    f"expected {kind}, or a nest of them in tuples and lists"
                )
        return tuple(flat)


def from_torch(
    f: Callable[..., Any], *, names: Sequence[str] | None = None, complex_safe: bool = True
) -> Foreign:
    """Return a function of PyTorch tensors as a Differentiable.

    Inputs and cotangents are handed over as copies; what the function writes into them is
    written into the caller's arrays too, so that a check sees it.

    Parameters
    ----------
    f : callable
        Takes tensors, returns a tensor or a nest of them in tuples and lists.
    names : sequence of str, optional
        Of the inputs.
    complex_safe : bool
        Whether `f` is analytic, so that a complex step may be taken through it.

    Raises
    ------
    ImportError
        If PyTorch is not installed.

    Examples
    --------
    A pair of methods for any check; this one needs PyTorch::

        check_grad(from_torch(lambda x, W: torch.tanh(x @ W)), x, W)
    """
    need("torch", "from_torch")
    return Torch(f, names, complex_safe)


def from_autograd(
    f: Callable[..., Any], *, names: Sequence[str] | None = None, complex_safe: bool = True
) -> Foreign:
    """Return a function over ``autograd.numpy`` (HIPS autograd) as a Differentiable.

    Parameters and errors are those of ``from_torch``.

    Examples
    --------
    ::

        check_grad(from_autograd(lambda x, W: anp.tanh(x @ W)), x, W)
    """
    need("autograd", "from_autograd")
    return Autograd(f, names, complex_safe)


def from_jax(
    f: Callable[..., Any], *, names: Sequence[str] | None = None, complex_safe: bool = True
) -> Foreign:
    """Return a function over ``jax.numpy`` as a Differentiable; float64 stays float64.

    Parameters and errors are those of ``from_torch``.

    Examples
    --------
    ::

        check_grad(from_jax(lambda x, W: jnp.tanh(x @ W)), x, W)
    """
    need("jax", "from_jax")
    return Jax(f, names, complex_safe)


def need(peer: str, who: str) -> Any:
    """Return the module of a peer, or say in words that it is not installed."""
    root = peer.partition(".")[0]
    try:
        with quiet():
            return importlib.import_module(peer)
    except ImportError as error:
        raise ImportError(
            f"{who}: {PEERS[root]} is not installed; pip install {root}", name=root
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings that a peer issues about itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(torch|jax|jaxlib|autograd)(\.|$)")
        yield


class Torch(Foreign):
    """A function of PyTorch tensors."""

    def forward(self, *arrays: Array) -> tuple[Array, ...]:
        """Return the outputs, recording nothing."""
        torch = need("torch", self.name)
        with quiet(), torch.no_grad(), _lent(arrays) as tensors:
            return tuple([_copy(y) for y in self.outputs(tensors, torch.Tensor)])

    def vjp(self, arrays: Sequence[Array], cotangents: Cotangents) -> tuple[Array | None, ...]:
        """Return the gradients, None for an input that is not floating or not reached."""
        torch = need("torch", self.name)
        given = [u for u in cotangents if u is not None]
        with quiet(), torch.enable_grad(), _lent(arrays) as tensors, _lent(given) as lent:
            # a view: a leaf that requires a gradient must not be written in place, an input may
            leaves = [t.requires_grad_() for t in tensors if _flows(t)]
            inputs = [t.view_as(t) if t.requires_grad else t for t in tensors]
            outputs = self.outputs(inputs, torch.Tensor)
            seeds = iter(lent)
            asked = zip(outputs, cotangents, strict=True)
            pairs = [(y, next(seeds)) for y, u in asked if u is not None]
            pairs = [(y, u) for y, u in pairs if y.requires_grad]
            found: Iterator[Any] = iter([None] * len(leaves))
            if pairs and leaves:
                ys, us = zip(*pairs, strict=True)
                found = iter(torch.autograd.grad(ys, leaves, us, allow_unused=True))
            gradients = [next(found) if _flows(t) else None for t in tensors]
            return tuple([None if g is None else _copy(g) for g in gradients])


def _flows(tensor: Any) -> bool:
    return bool(tensor.is_floating_point() or tensor.is_complex())


def _copy(tensor: Any) -> Array:
    return np.array(tensor.detach().resolve_conj().numpy())


@contextmanager
def _lent(arrays: Sequence[Array]) -> Iterator[list[Any]]:
    """Lend arrays as tensors; what has been written into a tensor goes into its array."""
    torch = need("torch", "from_torch")
    tensors = [torch.from_numpy(np.array(a)) for a in arrays]
    yield tensors
    for a, tensor in zip(arrays, tensors, strict=True):
        now = tensor.detach().numpy()
        if now.tobytes() != a.tobytes():
            a[...] = now


class Autograd(Foreign):
    """A function over ``autograd.numpy``."""

    def forward(self, *arrays: Array) -> tuple[Array, ...]:
        """Return the outputs."""
        with quiet():
            return tuple([np.array(y) for y in flatten(self.f(*arrays))])

    def vjp(self, arrays: Sequence[Array], cotangents: Cotangents) -> tuple[Array | None, ...]:
        """Return the gradients, None for an input that is not floating."""
        autograd = need("autograd", self.name)
        arrived: dict[int, Any] = {}

        def from_root(root: Any) -> Any:
            leaf = _leaf()
            free = [a.dtype.kind in "fc" for a in arrays]
            xs = [leaf(root, a, k, arrived) if free[k] else a for k, a in enumerate(arrays)]
            return autograd.builtins.tuple(flatten(self.f(*xs)))

        with quiet():
            pull, outputs = autograd.core.make_vjp(from_root, 0.0)
            pull(tuple(_or_zeros(cotangents, outputs)))
        return tuple([np.array(arrived[k]) if k in arrived else None for k in range(len(arrays))])


@functools.cache
def _leaf() -> Any:
    """Return the primitive that makes an input of a root; it keeps the gradient that arrives."""
    extend = need("autograd.extend", "from_autograd")

    def keep(y: Any, root: Any, a: Array, k: int, arrived: dict[int, Any]) -> Any:
        def pull(g: Any) -> float:
            arrived[k] = g
            return 0.0

        return pull

    leaf = extend.primitive(lambda root, a, k, arrived: a)
    extend.defvjp(leaf, keep, None, None, None)
    return leaf


class Jax(Foreign):
    """A function over ``jax.numpy``."""

    def forward(self, *arrays: Array) -> tuple[Array, ...]:
        """Return the outputs."""
        jax = need("jax", self.name)
        with quiet(), jax.enable_x64(True):
            xs = [jax.numpy.array(a) for a in arrays]
            return tuple([np.array(y) for y in self.outputs(xs, jax.Array)])

    def vjp(self, arrays: Sequence[Array], cotangents: Cotangents) -> tuple[Array | None, ...]:
        """Return the gradients, None for an input that is not floating."""
        jax = need("jax", self.name)
        with quiet(), jax.enable_x64(True):
            xs = [jax.numpy.array(a) for a in arrays]
            free = [k for k, a in enumerate(arrays) if a.dtype.kind in "fc"]

            def among(*leaves: Any) -> tuple[Any, ...]:
                full = dict(enumerate(xs)) | dict(zip(free, leaves, strict=True))
                return self.outputs([full[k] for k in range(len(xs))], jax.Array)

            outputs, pull = jax.vjp(among, *[xs[k] for k in free])
            seeds = _or_zeros(cotangents, outputs)
            found = iter(pull(tuple([
                u.astype(y.dtype) if y.dtype.kind in "fc" else np.zeros(y.shape, jax.dtypes.float0)
                for u, y in zip(seeds, outputs, strict=True)
            ])))  # fmt: skip
            return tuple([np.array(next(found)) if k in free else None for k in range(len(xs))])


def _or_zeros(cotangents: Cotangents, outputs: Sequence[Any]) -> list[Any]:
    """Return the cotangents with zeros for None."""
    return [
        np.zeros(np.shape(y), getattr(y, "dtype", np.float64)) if u is None else u
        for u, y in zip(cotangents, outputs, strict=True)
    ]
