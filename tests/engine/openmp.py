"""How many threads the compiled kernels compute with."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """This many in calls from this thread. Threads that wait for each other spin at first, so that
    beside other programs, with many short calls, one is much faster than several.
    """
    openmp = ctypes.CDLL("libgomp.so.1")  # what the kernels are linked with, loaded once
    before = openmp.omp_get_max_threads()
    openmp.omp_set_num_threads(count)
    try:
        yield
    finally:
        openmp.omp_set_num_threads(before)
