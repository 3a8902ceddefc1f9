"""Compiled kernels for CPUs. Without them torch's own serve."""
