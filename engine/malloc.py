"""Keeps what is freed while weights are loaded from staying with the process.

glibc keeps freed blocks of up to 32 MiB to use them again (malloc(3), M_MMAP_THRESHOLD). Loading
frees thousands of them, of many sizes and in many threads, between the weights that stay: half of
a model's size was left behind.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_WHILE_LOADING_BYTES = 2**20
# What glibc raises its thresholds to by itself as large blocks come and go.
_HIGHEST_BYTES = 2**25


@contextmanager
def returned_when_freed() -> Iterator[None]:
    """Within this, blocks of 1 MiB and more go back to the kernel at once; only with glibc."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _WHILE_LOADING_BYTES)
    try:
        yield
    finally:
        libc.malloc_trim(0)
        libc.mallopt(_MMAP_THRESHOLD, _HIGHEST_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _HIGHEST_BYTES)
