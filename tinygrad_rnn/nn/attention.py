"""Attention: a query reads a weighted mean of the steps of another sequence."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import ops
from ..arrays import Array
from ..errors import DtypeError, ShapeError
from ..functional import softmax
from ..module import Module, floating
from ..ops import tanh
from ..tensor import Parameter, Tensor
from . import init
from .cells import check_sizes
from .layers import as_input


class Memory(NamedTuple):
    """The steps that queries read, prepared once for all of them."""

    keys: Tensor  # what scores are computed from
    values: Tensor  # (N, T, K)
    valid: Array | None  # (N, 1, T): which steps may be read; None: all


class Attention(Module):
    """Base of attention layers: context = sum over t of weight(t) * key(t).

    ``attention(query, keys, *, lengths=None, mask=None) -> (context, weights)``.  The weights are
    the softmax of a score of each step, over the steps that are valid; they sum to 1, and are 0
    elsewhere.  A sequence without a valid step has the weights 0 and the context 0.

    Parameters
    ----------
    query_size : int
        H, the size of a query.
    key_size : int, optional
        K, the size of a step; by default H.
    dtype : dtype
    rng : int or numpy.random.Generator, optional

    See Also
    --------
    BahdanauAttention, LuongAttention
    """

    def __init__(
        self, query_size: int, key_size: int | None = None, *, dtype: npt.DTypeLike = np.float32
    ) -> None:
        key_size = query_size if key_size is None else key_size
        check_sizes(type(self).__name__, query_size=query_size, key_size=key_size)
        self.query_size, self.key_size = query_size, key_size
        self.dtype = floating(type(self).__name__, dtype)

    def forward(
        self, query: Any, keys: Any, *, lengths: Any = None, mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Read `keys` for one query of each sequence, or for several.

        Parameters
        ----------
        query : Tensor or array_like (N, H) or (U, N, H)
        keys : Tensor or array_like (T, N, K)
        lengths : array_like of int (N,), optional
            How many steps of each sequence are valid.
        mask : array_like of bool (T, N), optional
            Which steps are valid; either this or `lengths`.

        Returns
        -------
        context : Tensor (N, K) or (U, N, K)
        weights : Tensor (N, T) or (U, N, T)

        Raises
        ------
        ShapeError, DtypeError
            For a query, keys, lengths or a mask of another shape or type.
        """
        query = as_input(type(self).__name__, query, self.dtype, "query")
        memory = self.prepare(keys, lengths=lengths, mask=mask)
        N = memory.values.shape[0]
        if query.ndim not in (2, 3) or query.shape[-2:] != (N, self.query_size):
            raise ShapeError(
                f"{type(self).__name__}: query has shape {query.shape}, expected "
                f"({N}, {self.query_size}) or (U, {N}, {self.query_size})"
            )
        if query.ndim == 3:
            return self.attend(query, memory)
        context, weights = self.attend(query.reshape(1, *query.shape), memory)
        return context[0], weights[0]

    def prepare(self, keys: Any, *, lengths: Any = None, mask: Any = None) -> Memory:
        """Return what all queries of a batch share, so that it is computed once."""
        who = type(self).__name__
        keys = as_input(who, keys, self.dtype, "keys")
        if keys.ndim != 3 or keys.shape[2] != self.key_size or 0 in keys.shape:
            raise ShapeError(
                f"{who}: keys have shape {keys.shape}, expected (T, N, {self.key_size}), "
                f"T and N 1 or more"
            )
        valid = self._valid(keys.shape[0], keys.shape[1], lengths, mask)
        if valid is not None:  # not even a NaN in another step matters
            keys = ops.where(valid.transpose(2, 0, 1), keys, 0.0)
        return Memory(self.project(keys), keys.transpose(1, 0, 2), valid)

    def attend(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return context (U, N, K) and weights (U, N, T) for queries (U, N, H)."""
        scores = self.scores(query, memory.keys)
        if memory.valid is not None:
            # Far below every score, to weigh 0; but finite, since it may be that no step is valid
            low = 2 * min(0.0, float(scores.data.real.min())) - 1e3
            scores = ops.where(memory.valid, scores, low)
        weights = softmax(scores)
        if memory.valid is not None:
            weights = ops.where(memory.valid, weights, 0.0)
        return (weights @ memory.values).transpose(1, 0, 2), weights.transpose(1, 0, 2)

    def project(self, keys: Tensor) -> Tensor:
        """Return the part of the score that depends on the keys (T, N, K) alone."""
        raise NotImplementedError(f"{type(self).__name__} defines no project(keys)")

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """Return the scores (N, U, T) of queries (U, N, H) by projected keys."""
        raise NotImplementedError(f"{type(self).__name__} defines no scores(query, keys)")

    def _valid(self, T: int, N: int, lengths: Any, mask: Any) -> Array | None:
        """Return which steps are valid (N, 1, T), None where all are."""
        who = type(self).__name__
        if mask is not None:
            if lengths is not None:
                raise ValueError(f"{who}: pass lengths or mask, not both")
            valid = np.asarray(mask)
            if valid.shape != (T, N):
                raise ShapeError(f"{who}: mask has shape {valid.shape}, expected (T={T}, N={N})")
            if valid.dtype != bool:
                raise DtypeError(f"{who}: mask is {valid.dtype}, expected bool")
        elif lengths is not None:
            valid = np.arange(T)[:, None] < check_lengths(who, "lengths", lengths, T, N)
        else:
            return None
        return None if valid.all() else valid.T[:, None]

    def _astype(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype


def check_lengths(who: str, name: str, lengths: Any, T: int, N: int) -> Array:
    """Return lengths (N,); raise where they are no integers in 0..T."""
    a = np.asarray(lengths)
    if a.dtype.kind not in "iu":
        raise DtypeError(f"{who}: {name} are integers, got {a.dtype}")
    if a.shape != (N,):
        raise ShapeError(f"{who}: {name} have shape {a.shape}, expected ({N},)")
    if (a < 0).any() or (a > T).any():
        n = int(np.argmax((a < 0) | (a > T)))
        raise ShapeError(f"{who}: {name}: length {a[n]} of sequence {n} is not in 0..{T}")
    return a.astype(np.intp)


class BahdanauAttention(Attention):
    """Additive attention: score(t) = v . tanh(query W_q + key(t) W_k + b) (Bahdanau et al. 2014).

    Parameters and arguments as of ``Attention``; one more:

    Parameters
    ----------
    attention_size : int, optional
        A, the size of the hidden layer of the score; by default H.

    Examples
    --------
    >>> attention = BahdanauAttention(4, rng=0)
    >>> context, weights = attention(np.ones((2, 4)), np.ones((3, 2, 4)), lengths=[3, 1])
    >>> context.shape, weights.numpy().round(2)
    ((2, 4), array([[0.33, 0.33, 0.33],
           [1.  , 0.  , 0.  ]], dtype=float32))
    """

    def __init__(
        self,
        query_size: int,
        key_size: int | None = None,
        attention_size: int | None = None,
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__(query_size, key_size, dtype=dtype)
        A = query_size if attention_size is None else attention_size
        check_sizes("BahdanauAttention", attention_size=A)
        rng = np.random.default_rng(rng)
        self.W_q = Parameter(init.xavier((query_size, A), rng=rng, dtype=self.dtype))
        self.W_k = Parameter(init.xavier((self.key_size, A), rng=rng, dtype=self.dtype))
        self.b = Parameter(np.zeros(A, self.dtype))
        self.v = Parameter(init.xavier((A, 1), rng=rng, dtype=self.dtype)[:, 0])

    def project(self, keys: Tensor) -> Tensor:
        """Return key(t) W_k + b, (T, N, A)."""
        return keys @ self.W_k + self.b

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """Return the scores (N, U, T)."""
        U, N, _ = query.shape
        a = (query @ self.W_q).reshape(U, 1, N, -1) + keys
        return (tanh(a) @ self.v).transpose(2, 0, 1)

    def _letters(self) -> dict[str, str]:
        return {"W_q": "H * A", "W_k": "K * A", "b": "A", "v": "A"}


class LuongAttention(Attention):
    """Multiplicative attention: score(t) = query W key(t) (Luong, Pham, Manning 2015).

    Parameters and arguments as of ``Attention``; one more:

    Parameters
    ----------
    score : {"general", "dot"}
        ``"dot"``: score(t) = query . key(t), without W; H and K are then the same.

    Examples
    --------
    >>> attention = LuongAttention(2, score="dot")
    >>> query, keys = [[1.0, 0.0]], [[[np.log(3), 5.0]], [[0.0, 1.0]]]
    >>> context, weights = attention(query, keys)
    >>> weights.numpy(), context.numpy().round(3)
    (array([[0.75, 0.25]], dtype=float32), array([[0.824, 4.   ]], dtype=float32))
    """

    def __init__(
        self,
        query_size: int,
        key_size: int | None = None,
        *,
        score: str = "general",
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__(query_size, key_size, dtype=dtype)
        if score not in ("general", "dot"):
            raise ValueError(f'LuongAttention: score is "general" or "dot", got {score!r}')
        if score == "dot" and self.key_size != query_size:
            raise ShapeError(
                f"LuongAttention: score='dot' needs queries and keys of one size, got "
                f"query_size={query_size} and key_size={self.key_size}; 'general' takes both"
            )
        self.W = None
        if score == "general":
            shape = (query_size, self.key_size)
            self.W = Parameter(init.xavier(shape, rng=rng, dtype=self.dtype))

    def project(self, keys: Tensor) -> Tensor:
        """Return the keys as (N, K, T)."""
        return keys.transpose(1, 2, 0)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """Return the scores (N, U, T)."""
        query = query if self.W is None else query @ self.W
        return query.transpose(1, 0, 2) @ keys

    def _letters(self) -> dict[str, str]:
        return {"W": "H * K"}
