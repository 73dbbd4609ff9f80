"""Memory that graphs give back: values that nothing reads, and what glibc does with it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from .arrays import Array

KEPT = 1 << 28  # bytes; 256 MB
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # their numbers in glibc's malloc.h
_MOST_MMAP_THRESHOLD = 1 << 25  # glibc takes no more


def keep_freed(limit: int = KEPT) -> bool:
    """Let glibc keep up to `limit` bytes of freed memory; return whether it is glibc and did.

    A training step makes a graph and frees it.  By default glibc returns that memory to the
    system at once, and the next step takes it back page by page, each page cleared by the system:
    a third of the time of a step of an LSTM with H = 256, N = 32, T = 64.  Importing
    ``tinygrad_rnn`` calls this once; ``keep_freed(128 << 10)`` sets glibc's own limit again.

    >>> keep_freed() in (True, False)
    True
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # another C library would understand other numbers
        set_option = libc.mallopt
    except (OSError, AttributeError, TypeError):
        return False
    small_enough = set_option(_MMAP_THRESHOLD, min(limit, _MOST_MMAP_THRESHOLD))
    return bool(small_enough and set_option(_TRIM_THRESHOLD, limit))


def release(outputs: Iterable[Any], since: int) -> None:
    """Drop the arrays of inner nodes, made after `since`, that nobody can ask for any more.

    These are the nodes between `outputs` and what existed before that have no name, that no
    gradient rule reads, and that only the graph itself refers to.  Their shapes stay.  For an
    LSTM this is all but its gates and states: two thirds of the memory of a step.
    """
    inner = {t.order: t for t in outputs}
    read = set(inner)
    references: dict[int, int] = {}
    stack = list(inner.values())
    while stack:
        t = stack.pop()
        for x in t.inputs:
            k = x.order
            if k > since:
                references[k] = references.get(k, 0) + 1
                if t.op.reads_inputs:
                    read.add(k)
                if k not in inner:
                    inner[k] = x
                    stack.append(x)
    t = x = None
    for k in inner:
        if k not in read and _references(inner, k) == references[k] + _OURS:
            node = inner[k]
            if node.op is not None and node.name is None and not node.op.reads_output:
                node.data = _blank(node.data.shape, node.data.dtype)
            node = None


def _references(held: dict[int, Any], k: int) -> int:
    return sys.getrefcount(held[k])


_OURS = _references({0: object()}, 0)  # how many of them are the dictionary's and the call's


@lru_cache(maxsize=256)
def _blank(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an array of that shape which takes no memory; its values are NaN."""
    nan = np.array(np.nan, dtype) if dtype.kind in "fc" else np.zeros((), dtype)
    return np.ndarray(shape, dtype, nan.tobytes(), strides=(0,) * len(shape))
