"""Truncated BPTT: every k1 steps, back k2 steps; and how far its gradient is from the full one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..arrays import Array
from ..errors import ShapeError
from ..module import Module, evaluating
from ..nn import Cell, Recurrent
from ..nn.states import as_tensors, leaves, map_state
from ..scope import NEVER, no_grad, recording, scope
from ..tensor import Tensor
from ..train.run import Loss, check
from ..transforms import grad

Reset = Callable[[Any], Any]


def truncated(
    model: Module, loss: Loss, k1: int, k2: int | None = None, *, reset: Reset | None = None
) -> Truncated:
    """Return a loss of one chunk of a batch after the other: BPTT(k2; k1) of Williams and Peng.

    Every k1 steps the loss of these k1 steps is differentiated, back over the last k2 steps::

        chunk (t - k1, t], window (t - k2, t]: dE(chunk) / dW with h(t - k2) held constant

    ``k1 = k2`` cuts the sequence into chunks, as is usual; ``k2 = T`` loses nothing.

    Parameters
    ----------
    model : Module
        What `loss` is called with by ``chunks``.
    loss : callable
        ``loss(model, batch, state) -> (loss, state)``, as of ``train.fit``.  It is called with
        pieces of the batch; what it says of the steps before a chunk is discarded.
    k1 : int
        Steps from one update to the next: 1 or more.
    k2 : int, optional
        Steps that a gradient reaches back: k1 or more; k1 by default.
    reset : callable, optional
        ``reset(batch) -> bool (N,)``: which samples begin anew with this batch.  Their carried
        state becomes zero, or None, the initial state, where all of them do.  Where it is not
        zero, as a learned one, only all of them can.

    Returns
    -------
    Truncated
        Call it as `loss`, in ``train.fit``: one step of the optimizer for each chunk.  In
        ``train.evaluate``, and wherever nothing is recorded, there is nothing to truncate, and
        it is `loss` of the whole batch.

    Raises
    ------
    ValueError
        If k1 or k2 is no whole number, k1 < 1, or k1 > k2; when it is called with another model.
    TypeError
        If `loss` or `reset` is not callable, or `loss` is a truncated one.

    Notes
    -----
    A batch is a tuple of time-major arrays (T, N, ...), or one such array.  The last chunk has
    what is left; its window is k2 steps as any other.  No window reaches back before its batch: a
    batch takes the state of the one before as a constant.  For k1 < k2, each window costs k2
    steps forward and back, and k1 without recording, for the state that the next one starts from.
    The steps before a chunk and the chunk are two calls of `loss`: dropout draws a mask for each,
    so ``recurrent_dropout`` has two masks in one window.

    References
    ----------
    Williams and Peng (1990), An efficient gradient-based algorithm for on-line training of
    recurrent network trajectories.

    Examples
    --------
    >>> from tinygrad_rnn import nn, optim, train
    >>> net = nn.Readout(nn.RNN(1, 3, rng=0), 1, rng=0)
    >>> def loss(model, batch, state):
    ...     x, y = batch
    ...     o, state = model(x, state)
    ...     return ((o - y) ** 2).mean(), state
    >>> x = np.sin(np.arange(21, dtype=np.float32)).reshape(21, 1, 1)
    >>> sgd = optim.SGD(net.parameters(), lr=0.1)
    >>> train.fit(net, [(x[:-1], x[1:])], truncated(net, loss, 5, 10), sgd, epochs=2).step
    [1, 2, 3, 4, 5, 6, 7, 8]
    """
    return Truncated(model, loss, k1, k2, reset=reset)


class Truncated:
    """The loss that `truncated` returns.

    Attributes
    ----------
    model, loss, k1, k2, reset
        As they were given.
    """

    def __init__(
        self, model: Module, loss: Loss, k1: int, k2: int | None, *, reset: Reset | None
    ) -> None:
        k2 = k1 if k2 is None else k2
        for name, k in (("k1", k1), ("k2", k2)):
            if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
                raise ValueError(f"truncated: {name}={k!r}: expected a whole number, 1 or more")
        if k1 > k2:
            raise ValueError(
                f"truncated: k1={k1} is more than k2={k2}: an update every k1 steps must reach "
                f"back over these at least; k2={k1} cuts into chunks"
            )
        if isinstance(loss, Truncated):
            raise TypeError(
                "truncated: loss is truncated already: pass the plain loss(model, batch, state)"
            )
        for name, f in (("loss", loss), ("reset", reset)):
            if not callable(f) and not (f is None and name == "reset"):
                raise TypeError(f"truncated: {name}={f!r} is not callable")
        self.model, self.loss, self.k1, self.k2, self.reset = model, loss, int(k1), int(k2), reset

    def __repr__(self) -> str:
        return f"truncated({type(self.model).__name__}, k1={self.k1}, k2={self.k2})"

    def __call__(self, model: Module, batch: Any, state: Any = None) -> Any:
        """Return an iterator over (loss, state) of each chunk; where nothing is recorded, a pair.

        That pair is the loss of the whole batch and the state after it.
        """
        if model is not self.model:
            raise ValueError(
                f"{self!r} was made for another model than the {type(model).__name__} it is "
                f"called with: make truncated(model, ...) of this one"
            )
        if scope().mode == NEVER:
            _steps_of(batch)
            return check(self.loss(model, batch, self._begin(batch, state)))
        return self.chunks(batch, state)

    def chunks(self, batch: Any, state: Any = None) -> Iterator[tuple[Tensor, Any]]:
        """Yield the loss of each chunk and the state after it, detached, for a loop by hand.

        Parameters
        ----------
        batch : tuple of arrays (T, N, ...), or one
        state : optional
            Before the first step; the initial one by default.

        Raises
        ------
        ShapeError
            If the parts of the batch differ in T.

        Examples
        --------
        >>> from tinygrad_rnn import nn
        >>> layer = nn.RNN(1, 2, rng=0)
        >>> def loss(model, x, state):
        ...     h, state = model(x, state)
        ...     return h.sum(), state
        >>> for value, state in truncated(layer, loss, k1=2, k2=4).chunks(np.ones((5, 1, 1))):
        ...     value.backward()
        ...     print(state.shape)
        (1, 1, 2)
        (1, 1, 2)
        (1, 1, 2)
        """
        T, k1, k2, loss, model = _steps_of(batch), self.k1, self.k2, self.loss, self.model
        start, before = 0, self._begin(batch, state)  # of the window: its place and state
        for a in range(0, T, k1):
            b = min(a + k1, T)
            begin = max(0, b - k2)
            if start < begin:
                with no_grad():
                    before = check(loss(model, _cut(batch, start, begin), before))[1]
                start = begin
            after = before
            if start < a:
                after = check(loss(model, _cut(batch, start, a), before))[1]
            value, after = check(loss(model, _cut(batch, a, b), after))
            after = _detach(after)
            if k1 == k2 and b + k1 <= T:  # the next window starts here
                start, before = b, after
            yield value, after
            del value  # and with it its graph, before the next one is made

    def _begin(self, batch: Any, state: Any) -> Any:
        """Return the state that a batch starts from: detached, some samples reset."""
        state = _detach(state)
        if state is None or self.reset is None:
            return state
        mask = np.asarray(self.reset(batch))
        if mask.dtype != bool or mask.ndim != 1:
            raise ShapeError(
                f"truncated: reset(batch) returned {mask.dtype} {mask.shape}: "
                f"expected booleans (N,), one for each sample"
            )
        if mask.any() and not mask.all():
            _check_start(self.model, len(mask))
        layers = [m for _, m in self.model.named_modules() if isinstance(m, Recurrent)]
        axes = {m._state_axes - 2 for m in layers}
        state = map_state(lambda s: _zero(s, mask, axes), state)
        return None if mask.all() else state


def _check_start(model: Module, N: int) -> None:
    """Raise where the state before the first step is not 0."""
    for name, m in model.named_modules():
        if isinstance(m, Cell):
            zero = not any([s.data.any() for s in leaves(as_tensors(m.initial_state(N)))])
            if m.learns_state or not zero:
                raise ValueError(
                    f"truncated: reset returns some samples to 0, but {name or 'the cell'} "
                    f"{'learns its initial state' if m.learns_state else 'does not begin at 0'}: "
                    f"reset all samples of a batch or none"
                )


def _zero(s: Any, mask: Array, axes: set[int]) -> Any:
    """Return an array of a state with zeros for the samples of `mask`.

    The axis that counts the samples is known from the layers, `axes`, or else from its size.
    """
    if s is None:
        return None
    N = len(mask)
    if s.ndim < 3:
        axes = {0}
    elif len(axes) != 1:  # no layers, or of several kinds
        axes = {0, s.ndim - 2}
    fits = [k for k in sorted(axes) if k < s.ndim and s.shape[k] == N]
    if not fits:
        raise ShapeError(
            f"truncated: reset(batch) has the shape {mask.shape}, but the state {s.shape} is no "
            f"(N, ...) or (..., N, H) with N={N}"
        )
    if len(fits) > 1 and mask.any() and not mask.all():
        raise ShapeError(
            f"truncated: reset returns some samples to 0, but which axis of the state {s.shape} "
            f"counts the N={N} samples is not clear: reset all samples of a batch or none"
        )
    return ops.where(~mask.reshape((-1,) + (1,) * (s.ndim - 1 - fits[0])), s, 0.0)


def _steps_of(batch: Any) -> int:
    """Return T of a batch; raise where its parts are no arrays of one T."""
    parts = batch if isinstance(batch, tuple) else (batch,)
    for k, part in enumerate(parts):
        if not isinstance(part, np.ndarray | Tensor):
            raise TypeError(
                f"truncated: entry {k} of the batch is a {type(part).__name__}: "
                f"expected time-major arrays or Tensors (T, N, ...)"
            )
    lengths = {part.shape[0] if part.ndim else 0 for part in parts}
    if len(lengths) != 1 or 0 in lengths:
        shapes = ", ".join([str(part.shape) for part in parts])
        raise ShapeError(
            f"truncated: the batch has the shapes {shapes or '()'}: expected the same T, "
            f"1 or more, as the first axis of each"
        )
    return int(lengths.pop())


def _cut(batch: Any, a: int, b: int) -> Any:
    """Return the steps a to b - 1 of a batch."""
    return tuple([part[a:b] for part in batch]) if isinstance(batch, tuple) else batch[a:b]


def _detach(state: Any) -> Any:
    return map_state(lambda s: s.detach() if isinstance(s, Tensor) else s, state)


# --- what truncation costs -----------------------------------------------------------------------


@dataclass(frozen=True)
class GradientError:
    """How far a truncated gradient g is from the full gradient f.

    Attributes
    ----------
    k1, k2, T : int
    relative : dict of str to float
        ``|g - f| / |f|`` of each parameter; 0 where both are 0, infinite where only f is.
    cosine : dict of str to float
        ``g f / (|g| |f|)``; 1 where both are 0, 0 where one is.
    total_relative, total_cosine : float
        Of all parameters as one vector.
    """

    k1: int
    k2: int
    T: int
    relative: dict[str, float]
    cosine: dict[str, float]
    total_relative: float
    total_cosine: float

    def __repr__(self) -> str:
        rows = [
            (name, self.relative[name], self.cosine[name]) for name in self.relative
        ] + [("total", self.total_relative, self.total_cosine)]  # fmt: skip
        width = max(len(name) for name, *_ in rows)
        head = f"GradientError of k1={self.k1}, k2={self.k2} at T={self.T}"
        return "\n".join(
            [head, f"{'':{width}}  relative   cosine"]
            + [f"{name:{width}}  {e:8.2e}  {c:7.4f}" for name, e, c in rows]
        )


def gradient_error(
    model: Module, loss: Loss, batch: Any, k1: int, k2: int | None = None, state: Any = None
) -> GradientError:
    """Measure how far the truncated gradient of a batch is from the full one.

    Both are the gradients of the same sum of chunk losses, at the same parameters::

        f = d (sum of E_j) / dW,   g = sum of dE_j / dW with the state k2 steps back held constant

    Parameters
    ----------
    model, loss, k1, k2
        As of `truncated`.
    batch : tuple of arrays (T, N, ...), or one
    state : optional
        Before the first step.

    Returns
    -------
    GradientError
        Dropout is off for it, ``.grad`` is left alone, and nothing is updated in between.

    Raises
    ------
    ValueError, TypeError, ShapeError
        As `truncated` does; if no parameter requires a gradient.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> layer = nn.RNN(1, 2, dtype=np.float64, rng=0)
    >>> def loss(model, x, state):
    ...     h, state = model(x, state)
    ...     return (h * h).sum(), state
    >>> x = np.sin(np.arange(12.0)).reshape(12, 1, 1)
    >>> gradient_error(layer, loss, x, k1=3, k2=3)
    GradientError of k1=3, k2=3 at T=12
                relative   cosine
    L0.fwd.W_x  3.18e-01   0.9755
    L0.fwd.W_h  2.41e-01   0.9792
    L0.fwd.b    2.82e-01   0.9999
    total       2.86e-01   0.9778
    """
    cut = truncated(model, loss, k1, k2)
    T = _steps_of(batch)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError(
            f"gradient_error: no parameter of {type(model).__name__} requires a gradient"
        )
    wrt = list(named.values())
    with recording(), evaluating(model):
        total, after = None, _detach(state)
        for a in range(0, T, cut.k1):
            value, after = check(loss(model, _cut(batch, a, min(a + cut.k1, T)), after))
            total = value if total is None else total + value
        full = grad(total, wrt)
        del total, value, after
        short = [np.zeros_like(f) for f in full]
        for value, _ in cut.chunks(batch, state):
            if value.requires_grad:  # or it depends on nothing but the state it was given
                short = [g + more for g, more in zip(short, grad(value, wrt), strict=True)]
    pairs = [
        (g.ravel().astype(np.float64), f.ravel().astype(np.float64))
        for g, f in zip(short, full, strict=True)
    ]
    found = {name: _compare(*pair) for name, pair in zip(named, pairs, strict=True)}
    everything = _compare(*[np.concatenate(side) for side in zip(*pairs, strict=True)])
    return GradientError(
        cut.k1,
        cut.k2,
        T,
        {name: e for name, (e, _) in found.items()},
        {name: c for name, (_, c) in found.items()},
        *everything,
    )


def _compare(g: Array, f: Array) -> tuple[float, float]:
    """Return the relative error of `g`, and the cosine between the two."""
    a, b = float(np.linalg.norm(g)), float(np.linalg.norm(f))
    if a == 0 or b == 0:
        return (0.0, 1.0) if a == b else (1.0 if b else np.inf, 0.0)
    return float(np.linalg.norm(g - f)) / b, float((g / a) @ (f / b))
