"""Decoding: from a model of the next symbol to whole sequences.

All functions work on ``step(ids, state) -> (logits, state)``: the ids (B,) of the symbols just
written, to the logits (B, V) of those that follow.  Log-probabilities are logits too.  The state is
an array or Tensor, any nest of tuples of them, or None.  That is what an encoder-decoder and a
language model have in common.  Nothing is recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..arrays import Array
from ..errors import DtypeError, NonFiniteError, ShapeError
from ..ops import log_softmax
from ..scope import no_grad
from ..tensor import Tensor
from .cells import check_sizes, is_real, is_whole
from .states import map_state

Step: TypeAlias = Callable[[Array, Any], tuple[Any, Any]]
Pick: TypeAlias = Callable[[Array], Array]


class Hypothesis(NamedTuple):
    """One decoded sequence."""

    ids: Array  # (T,), without the start and the end symbol
    log_prob: float  # of the sequence, its end symbol included if it was written
    score: float  # the same over the length penalty


def greedy(
    step: Step, start: npt.ArrayLike, state: Any = None, *, eos: int | None = None, max_length: int
) -> list[Hypothesis]:
    """Write the most probable symbol at every step; of equal ones the first.

    Parameters
    ----------
    step : callable
        ``step(ids (B,), state) -> (logits (B, V), state)``.
    start : array_like of int (N,)
        What each sequence is begun with.
    state : optional
        What the first step is given.
    eos : int, optional
        The symbol that ends a sequence; without it all are `max_length` long.
    max_length : int
        The greatest number of steps; the end symbol takes one.

    Returns
    -------
    list of Hypothesis
        N of them.

    Raises
    ------
    ValueError, ShapeError, DtypeError
        If an argument is out of its range, or `step` returns logits of another shape.
    NonFiniteError
        If logits are NaN or infinite, or all of a row are minus infinity, and what the row has
        written can still become an answer.

    Examples
    --------
    >>> def count(ids, state):  # after k comes k + 1
    ...     return np.eye(5)[(ids + 1) % 5] * 10, state
    >>> [h.ids for h in greedy(count, [0, 2], eos=4, max_length=10)]
    [array([1, 2, 3]), array([3])]
    """
    return _walk(step, start, state, lambda log_p: log_p.argmax(1), eos, max_length)


def sample(
    step: Step,
    start: npt.ArrayLike,
    state: Any = None,
    *,
    eos: int | None = None,
    max_length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    nucleus: float = 1.0,
    rng: Any = None,
) -> list[Hypothesis]:
    """Draw each symbol from softmax(logits / temperature), cut to its most probable part.

    Parameters
    ----------
    step, start, state, eos, max_length
        As of ``greedy``.
    temperature : float
        Below 1: more cautious; towards 0: greedy.
    top_k : int, optional
        Only the k most probable symbols (Fan, Lewis, Dauphin 2018).
    nucleus : float
        Only the most probable symbols that together have at least this probability (Holtzman et
        al. 2020), after `temperature` and `top_k`.
    rng : int or numpy.random.Generator, optional
        Draws N numbers a step, one for each sequence, ended or not.

    Returns
    -------
    list of Hypothesis
        Their log-probabilities are those of the model, at temperature 1.

    Raises
    ------
    ValueError, ShapeError, DtypeError, NonFiniteError
        As of ``greedy``.

    Examples
    --------
    >>> def coin(ids, state):
    ...     return np.log([[0.25, 0.75]] * len(ids)), state
    >>> [tosses] = sample(coin, [0], max_length=1000, rng=0)
    >>> float(tosses.ids.mean())
    0.769
    """
    if not is_real(temperature) or not 0 < temperature < math.inf:
        raise ValueError(f"sample: temperature={temperature!r} must be above 0, and finite")
    if not is_real(nucleus) or not 0 < nucleus <= 1:
        raise ValueError(f"sample: nucleus={nucleus!r} is not in (0, 1]")
    if top_k is not None:
        check_sizes("sample", top_k=top_k)
    rng = np.random.default_rng(rng)

    def pick(log_p: Array) -> Array:
        B, V = log_p.shape
        if top_k is not None and top_k > V:
            raise ValueError(f"sample: top_k={top_k} is more than the {V} symbols that there are")
        with np.errstate(over="ignore"):  # what overflows is minus infinity: never drawn
            p = np.exp(log_softmax((log_p - log_p.max(1, keepdims=True)) / temperature))
        if (top_k is not None and top_k < V) or nucleus < 1:
            order = np.argsort(-p, axis=1, kind="stable")
            ranked = np.take_along_axis(p, order, 1)
            if top_k is not None:
                ranked[:, top_k:] = 0
            before = ranked.cumsum(1) - ranked  # the mass of what is more probable
            ranked[before >= nucleus * ranked.sum(1, keepdims=True)] = 0
            np.put_along_axis(p, order, ranked, 1)
        mass = p.cumsum(1)
        mass /= mass[:, -1:]  # ends in 1 exactly, above every number drawn
        drawn: Array = (mass <= rng.random((B, 1))).sum(1)
        return drawn

    return _walk(step, start, state, pick, eos, max_length)


def beam(
    step: Step,
    start: npt.ArrayLike,
    state: Any = None,
    *,
    eos: int | None = None,
    max_length: int,
    width: int,
    length_penalty: float = 0.0,
    state_axis: int = 1,
    exhaustive: bool = False,
) -> list[Hypothesis]:
    """Keep the `width` best beginnings at every step; return the best sequence of each.

    The score of a sequence Y of |Y| steps, its end symbol included, is
    log p(Y) / lp(Y) with lp(Y) = ((5 + |Y|) / 6)^alpha (Wu et al. 2016); alpha = 0 does not
    favour any length, and short ones win.  Sequences that have ended keep their place among the
    best.  The search stops when nothing can overtake the best one.  All N * width run as one
    batch.

    Parameters
    ----------
    step, start, state, eos, max_length
        As of ``greedy``.  The step is called with N * width rows, those of one sequence side by
        side; it may not keep anything of a row but in the state.
    width : int
        1 is greedy search.
    length_penalty : float
        alpha, 0 or more.
    state_axis : int
        Which axis of every array of the state counts the rows: 1 in those of RNN, LSTM and GRU,
        0 in those of a bare cell.
    exhaustive : bool
        Allow a width above V: with V^max_length nothing is cut, and the best one is found.

    Raises
    ------
    ValueError, ShapeError, DtypeError, NonFiniteError
        As of ``greedy``; and for a beam wider than the vocabulary: after the first symbol
        there are no more than V beginnings.

    Examples
    --------
    Greedy search takes the likelier first symbol, and then has only bad ones to choose from:

    >>> p = {(0,): [0.0, 0.6, 0.4], (1,): [0.3, 0.3, 0.4], (2,): [0.9, 0.1, 0.0]}
    >>> def step(ids, state):
    ...     with np.errstate(divide="ignore"):
    ...         return np.log([p[i,] for i in ids.tolist()]), state
    >>> for width in (1, 2):
    ...     [best] = beam(step, [0], width=width, max_length=2)
    ...     print(best.ids, round(np.exp(best.log_prob), 4))
    [1 2] 0.24
    [2 0] 0.36
    """
    check_sizes("beam", width=width)
    if not is_real(length_penalty) or not 0 <= length_penalty < math.inf:
        raise ValueError(f"beam: length_penalty={length_penalty!r} must be 0 or more, and finite")
    first = _check_start("beam", start, max_length)
    N, W = len(first), width
    ids = np.repeat(first, W)
    state = _take(state, np.arange(N * W) // W, state_axis, N)
    written = np.zeros((N, W, max_length), np.intp)
    log_prob = np.full((N, W), -np.inf)
    log_prob[:, 0] = 0  # all rows of a sequence are alike: one of them counts
    length = np.zeros((N, W), np.intp)
    ended = np.zeros((N, W), bool)
    penalty = ((5 + np.arange(max_length + 1)) / 6) ** length_penalty
    with no_grad():
        for t in range(max_length):
            alive = ~ended & np.isfinite(log_prob)
            log_p, state = _follow(step, ids, state, t, alive.reshape(-1))
            V = log_p.shape[1]
            if t == 0 and eos is not None:
                check_symbol("beam", "eos", eos, V)
            if t == 0 and W > V and not exhaustive:
                raise ValueError(
                    f"beam: width={W} is wider than the vocabulary of {V} symbols: after the "
                    f"first one there are no more than {V} beginnings"
                )
            total = log_prob[:, :, None] + log_p.reshape(N, W, V)
            total[ended] = -np.inf
            total[ended, 0] = log_prob[ended]  # one that has ended goes on as it is
            steps = np.where(ended, length, t + 1)
            best = _largest((total / penalty[steps][:, :, None]).reshape(N, W * V), W)
            parent, ids = np.divmod(best, V)
            log_prob = np.take_along_axis(total.reshape(N, W * V), best, 1)
            length = np.take_along_axis(steps, parent, 1)
            ended = np.take_along_axis(ended, parent, 1)
            written = np.take_along_axis(written, parent[:, :, None], 1)
            written[:, :, t] = ids
            if eos is not None:
                ended |= ids == eos
            if t + 1 == max_length or _decided(log_prob, length, ended, penalty):
                break
            ids = ids.reshape(-1)
            rows = (np.arange(N)[:, None] * W + parent).reshape(-1)
            state = _take(state, rows, state_axis, N * W)
    found = []
    for n in range(N):
        symbols = written[n, 0, : length[n, 0]]
        value = float(log_prob[n, 0])
        if ended[n, 0]:
            symbols = symbols[:-1]
        found.append(Hypothesis(symbols.copy(), value, value / float(penalty[length[n, 0]])))
    return found


def _decided(log_prob: Array, length: Array, ended: Array, penalty: Array) -> bool:
    """Return whether the best sequence of every beam has ended and cannot be overtaken.

    Log-probabilities only fall, and the greatest penalty divides them best.
    """
    if not ended[:, 0].all():
        return False
    best = log_prob[:, 0] / penalty[length[:, 0]]
    hope = np.where(ended, -np.inf, log_prob).max(1) / penalty[-1]
    return bool((best >= hope).all())


def _walk(
    step: Step, start: npt.ArrayLike, state: Any, pick: Pick, eos: int | None, max_length: int
) -> list[Hypothesis]:
    """Write one symbol after the other, as `pick` chooses it by the log-probabilities (N, V)."""
    ids = _check_start("decoding", start, max_length)
    N = len(ids)
    alive, length, log_prob = np.ones(N, bool), np.zeros(N, np.intp), np.zeros(N)
    written = np.empty((max_length, N), np.intp)
    with no_grad():
        for t in range(max_length):
            log_p, state = _follow(step, ids, state, t, alive)
            if t == 0 and eos is not None:
                check_symbol("decoding", "eos", eos, log_p.shape[1])
            written[t] = ids = pick(log_p)
            log_prob += np.where(alive, log_p[np.arange(N), ids], 0)
            if eos is not None:
                alive &= ids != eos
            length += alive
            if not alive.any():
                break
    return [
        Hypothesis(written[: length[n], n].copy(), float(log_prob[n]), float(log_prob[n]))
        for n in range(N)
    ]


def _follow(step: Step, ids: Array, state: Any, t: int, alive: Array) -> tuple[Array, Any]:
    """Return the log-probabilities (B, V) of what follows, in float64, and the state.

    Rows that are not `alive` get any: nothing of them is read.
    """
    made = step(ids, state)
    if not isinstance(made, tuple) or len(made) != 2:
        raise TypeError(
            f"decoding: step returned {type(made).__name__}, expected a pair (logits, state)"
        )
    logits, state = made
    a = np.asarray(logits, np.float64)
    if a.ndim != 2 or len(a) != len(ids) or not a.shape[1]:
        raise ShapeError(
            f"decoding: step returned logits {a.shape} for {len(ids)} ids, expected ({len(ids)}, V)"
        )
    a = np.where(alive[:, None], a, 0.0)
    top = a.max(1)
    if not np.isfinite(top).all():
        row = int(np.argmin(np.isfinite(top)))
        raise NonFiniteError(
            f"decoding: the largest logit of row {row}, step t={t + 1}, is {top[row]}"
        )
    return log_softmax(a), state


def _largest(scores: Array, k: int) -> Array:
    """Return where the k largest of each row (N, M) are, best first; of equal ones the first."""
    if scores.shape[1] <= 4096:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = []
    for row, least in zip(scores, np.partition(scores, -k, axis=1)[:, -k], strict=True):
        some = np.flatnonzero(row >= least)  # more than k of them, where some are equal
        best.append(some[np.argsort(-row[some], kind="stable")[:k]])
    return np.stack(best)


def _take(state: Any, rows: Array, axis: int, count: int) -> Any:
    """Return the rows of every array of a state, which has so many."""
    if state is None:
        return None

    def take(s: Any) -> Any:
        a = s.data if isinstance(s, Tensor) else s
        shape = a.shape if isinstance(a, np.ndarray) else ()
        if not -len(shape) <= axis < len(shape) or shape[axis] != count:
            found = shape if isinstance(a, np.ndarray) else type(a).__name__
            raise ShapeError(
                f"beam: the state has {found}, expected arrays or Tensors, in tuples, with "
                f"{count} rows on their axis state_axis={axis}"
            )
        taken = a.take(rows, axis)
        return Tensor(taken) if isinstance(s, Tensor) else taken

    return map_state(take, state)


def _check_start(who: str, start: npt.ArrayLike, max_length: int) -> Array:
    check_sizes(who, max_length=max_length)
    ids = np.asarray(start)
    if ids.ndim != 1 or not ids.size:
        raise ShapeError(f"{who}: start has shape {ids.shape}, expected (N,), N 1 or more")
    if ids.dtype.kind not in "iu":
        raise DtypeError(f"{who}: start is {ids.dtype}, expected integers")
    return ids.astype(np.intp)


def check_symbol(
    who: str, name: str, symbol: Any, size: int, vocabulary: str = "the vocabulary"
) -> None:
    """Raise where a symbol is no whole number in 0..size - 1."""
    if not is_whole(symbol) or not 0 <= symbol < size:
        raise ValueError(f"{who}: {name}={symbol!r} is not in 0..{size - 1}, {vocabulary}")
