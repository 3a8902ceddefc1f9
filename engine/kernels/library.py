"""Finds the compiled kernels that suit this CPU: plain C functions, called through ctypes.

They are built when the package is installed (pyproject.toml), one library for each instruction set,
each of them optional: a machine without a compiler has none.
"""

import ctypes
import importlib.util
import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

# by torch's name for what a CPU can do, best first
_LIBRARIES = {
    "AVX512": ("x86_64_v4_bf16", "x86_64_v4_vnni", "x86_64_v3", "generic"),
    "AVX2": ("x86_64_v3", "generic"),
}
# what torch's names do not tell, and the library that needs it
_NEEDED_FLAGS = {
    "x86_64_v4_bf16": frozenset(("avx512_bf16", "avx512_vnni")),
    "x86_64_v4_vnni": frozenset(("avx512_vnni",)),
}
_POINTER, _INTEGER, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_FUNCTIONS: dict[str, tuple[list[Any], Any]] = {  # arguments and result, see kernels.cpp
    "struct_sizes": ([_POINTER], None),
    "weight_bytes": ([_POINTER], _INTEGER),
    "pack_codes": ([_POINTER] * 5, None),
    "pack_plain": ([_POINTER] * 3, None),
    "read_rows": ([_POINTER, _POINTER, _INTEGER, _POINTER], None),
    "multiply_rows": ([_POINTER, _INT, _POINTER, _INTEGER, _POINTER], None),
    "find_peaks": ([_POINTER, _INTEGER, _INTEGER, _INTEGER, _POINTER], None),
    "decoder_forward": ([_POINTER] * 4, None),
}


@cache
def load() -> ctypes.CDLL | None:
    """The best library for this CPU; None, with a line in the log, where there is none."""
    for name in variants():
        library = load_variant(name)
        if library is not None:
            return library
    logger.warning(
        "the compiled kernels are missing, so that torch's are used, which are slower and keep "
        "GGUF weights widened; install qwen-serve again where there is a C++ compiler"
    )
    return None


def variants() -> list[str]:
    """Names of the libraries that this CPU can run, best first."""
    names = _LIBRARIES.get(torch.backends.cpu.get_cpu_capability(), ("generic",))
    flags = cpu_flags()
    return [name for name in names if _NEEDED_FLAGS.get(name, frozenset()) <= flags]


def cpu_flags() -> frozenset[str]:
    """Words of /proc/cpuinfo that name what the CPU can do; none where that is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return frozenset()
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), ()))


@cache
def load_variant(name: str) -> ctypes.CDLL | None:
    """One of the libraries by name; None where it was not built."""
    spec = importlib.util.find_spec(f"engine.kernels._{name}")
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError as exc:
        logger.warning("%s cannot be loaded: %s", spec.origin, exc)
        return None
    for function, (arguments, result) in _FUNCTIONS.items():
        getattr(library, function).argtypes = arguments
        getattr(library, function).restype = result
    return library
