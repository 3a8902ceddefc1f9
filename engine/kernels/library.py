"""Finds the compiled kernels that suit this CPU: plain C functions, called through ctypes.

They are built when the package is installed (pyproject.toml), one library for each instruction set,
each of them optional: a machine without a compiler has none.
"""

import ctypes
import importlib.util
import logging
from functools import cache
from typing import Any

import torch

logger = logging.getLogger(__name__)

# by torch's name for what a CPU can do, best first
_LIBRARIES = {
    "AVX512": ("x86_64_v4", "x86_64_v3", "generic"),
    "AVX2": ("x86_64_v3", "generic"),
}
_POINTER, _INTEGER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
# codes, scales, offsets, zero, rows, columns, group_size, bits, scale_bytes
_WEIGHT: tuple[Any, ...] = (
    _POINTER,
    _POINTER,
    _POINTER,
    _FLOAT,
    _INTEGER,
    _INTEGER,
    _INTEGER,
    _INT,
    _INT,
)


@cache
def load() -> ctypes.CDLL | None:
    """The best library for this CPU; None, with a line in the log, where there is none."""
    for name in _LIBRARIES.get(torch.backends.cpu.get_cpu_capability(), ("generic",)):
        library = load_variant(name)
        if library is not None:
            return library
    logger.warning(
        "the compiled kernels are missing, so that torch's are used, which are slower and keep "
        "GGUF weights widened; install qwen-serve again where there is a C++ compiler"
    )
    return None


@cache
def load_variant(name: str) -> ctypes.CDLL | None:
    """One of the libraries, x86_64_v4, x86_64_v3 or generic; None where it was not built."""
    spec = importlib.util.find_spec(f"engine.kernels._{name}")
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError as exc:
        logger.warning("%s cannot be loaded: %s", spec.origin, exc)
        return None
    library.groupwise_multiply.argtypes = [*_WEIGHT, _POINTER, _INTEGER, _POINTER]
    library.groupwise_multiply.restype = None
    library.groupwise_dequantize.argtypes = [*_WEIGHT, _POINTER, _INT]
    library.groupwise_dequantize.restype = None
    return library
