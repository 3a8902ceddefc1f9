"""Memory in pages of 2 MiB instead of 4 KiB, where Linux gives them.

Weights and caches are read all over in each step; with small pages looking up their addresses costs
more than a tenth of it, more so in a virtual machine. Elsewhere nothing happens.
"""

import ctypes
import mmap
import threading

import torch

_PAGE = 2 << 20
_POOL_BYTES = 32 << 20


def advise(tensor: torch.Tensor) -> torch.Tensor:
    """Ask for huge pages under the whole ones of a CPU tensor not yet written; returns it."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    start = -(-tensor.data_ptr() // _PAGE) * _PAGE
    size = (tensor.data_ptr() + tensor.nbytes) // _PAGE * _PAGE - start
    if advice is not None and size > 0:
        madvise = ctypes.CDLL(None).madvise
        # A kernel without them refuses, and small pages do.
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), ctypes.c_int(advice))
    return tensor


class Pool:
    """Uninitialized memory in pieces, many of which share one huge page. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rest = torch.empty(0, dtype=torch.uint8)

    def take(self, num_bytes: int) -> torch.Tensor:
        """(num_bytes,) uint8, at a multiple of 64; freed with the last piece of its pool."""
        size = -(-num_bytes // 64) * 64
        with self._lock:
            if size > len(self._rest):
                memory = advise(torch.empty(max(size, _POOL_BYTES) + _PAGE, dtype=torch.uint8))
                self._rest = memory[-memory.data_ptr() % _PAGE :]
            piece, self._rest = self._rest[:num_bytes], self._rest[size:]
        return piece
