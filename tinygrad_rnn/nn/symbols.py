"""Sequences of symbols as an encoder-decoder takes them: read, reversed, shifted by one."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import Array
from ..data import pad
from ..errors import DtypeError, ShapeError
from .attention import check_lengths
from .decoding import check_symbol


def check(go: int | None, eos: int | None, size: int) -> tuple[int, int | None]:
    """Return the symbols that start and end a target; raise where they cannot."""
    if go is None:
        raise ValueError(
            "EncoderDecoder: go=None: the decoder needs a start symbol, the id of <go> in the "
            "target vocabulary"
        )
    for name, symbol in (("go", go), ("eos", eos)):
        if symbol is not None:
            check_symbol("EncoderDecoder", name, symbol, size, "the target vocabulary")
    if go == eos:
        raise ValueError(
            f"EncoderDecoder: go and eos are both {go}: they need symbols of their own"
        )
    return go, eos


def read(who: str, name: str, ids: Any, lengths: Any, size: int) -> tuple[Array, Array | None]:
    """Return ids (T, N), 0 beyond the lengths, and the lengths, None where all are T.

    `who` and `name` are what errors call the model and the argument; `size` is that of the
    vocabulary.
    """
    if isinstance(ids, list | tuple):
        if lengths is not None:
            raise ShapeError(f"{who}: a list of sequences has its own lengths: pass no lengths")
        try:
            ids, lengths = pad(ids)
        except (ShapeError, DtypeError) as error:
            raise type(error)(f"{who}: {name}: {error}") from None
    a = np.asarray(ids)
    if a.ndim != 2:
        one = f"; one sequence is [{name}], a list" if a.ndim == 1 else ""
        raise ShapeError(f"{who}: {name} has shape {a.shape}, expected (T, N){one}")
    if 0 in a.shape:
        raise ShapeError(f"{who}: {name} {a.shape} is empty: T and N must be 1 or more")
    if a.dtype.kind not in "iu":
        raise DtypeError(f"{who}: {name} is {a.dtype}, expected integers")
    if lengths is not None:
        lengths = check_lengths(who, f"{name}_lengths", lengths, *a.shape)
        if (lengths == len(a)).all():
            lengths = None
        else:
            a = np.where(np.arange(len(a))[:, None] < lengths, a, 0)
    if a.min() < 0 or a.max() >= size:
        t, n = np.argwhere((a < 0) | (a >= size))[0].tolist()
        raise ValueError(
            f"{who}: {name} has the symbol {a[t, n]} in step {t + 1} of sequence {n}, "
            f"which is not in 0..{size - 1}"
        )
    return a.astype(np.intp), lengths


def order(ids: Array, lengths: Array | None, reverse: bool) -> Array:
    """Return (T, N): in which order the steps are read, each sequence reversed within its length.

    It is its own inverse.

    >>> order(np.zeros((3, 2), int), np.array([3, 2]), reverse=True).T
    array([[2, 1, 0],
           [1, 0, 2]])
    """
    steps = np.arange(len(ids))[:, None]
    ends = np.full(ids.shape[1], len(ids)) if lengths is None else lengths
    return np.where((steps < ends) & reverse, ends - 1 - steps, steps)


def shift(
    who: str, ids: Array, lengths: Array | None, go: int, eos: int | None
) -> tuple[Array, Array, Array | None]:
    """Return what a decoder reads, what it is asked for, and which of that counts, None for all.

    >>> reads, asked, counts = shift("model", np.array([[5, 7], [6, 0]]), np.array([2, 1]), 2, 3)
    >>> reads.T, asked.T
    (array([[2, 5, 6],
           [2, 7, 0]]), array([[5, 6, 3],
           [7, 3, 0]]))
    """
    U, N = ids.shape
    inside = None if lengths is None else np.arange(U)[:, None] < lengths
    for name, symbol in (("go", go), ("eos", eos)):
        found = ids == symbol if inside is None else (ids == symbol) & inside
        if found.any():
            t, n = np.argwhere(found)[0].tolist()
            raise ValueError(
                f"{who}: target has {name}={symbol} in step {t + 1} of sequence {n}: pass targets "
                f"without <go> and <eos>, and with target_lengths where they are padded"
            )
    first = np.full((1, N), go)
    if eos is None:
        return np.concatenate([first, ids[:-1]]), ids, inside
    reads, asked = np.concatenate([first, ids]), np.concatenate([ids, first])
    if lengths is None:
        asked[-1] = eos
        return reads, asked, None
    asked[lengths, np.arange(N)] = eos
    inside = np.arange(U + 1)[:, None] <= lengths
    return reads, np.where(inside, asked, 0), inside
