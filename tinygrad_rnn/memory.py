"""How freed memory is kept for the next graph."""

from __future__ import annotations

import ctypes

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
