"""The largest logits of rows by the compiled kernels (peaks.h)."""

import torch

from engine.kernels import library

_PEAK_BYTES = 16


def find_peaks(
    logits: torch.Tensor, num_valid: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Of each row of `logits` (n, vocab): the id of the largest of the first `num_valid`, or the
    lowest of equals; its value; whether that is finite and nothing in the row is NaN or +Inf.

    (n,) int64, float32 and bool; None where there is no kernel for such a tensor.
    """
    kernels = library.load()
    is_plain = logits.device.type == "cpu" and logits.dtype == torch.float32
    if kernels is None or not is_plain or not logits.is_contiguous():
        return None
    num_rows, count = logits.shape
    peaks = torch.empty(num_rows, _PEAK_BYTES // 8, dtype=torch.int64)
    kernels.find_peaks(logits.data_ptr(), num_rows, count, num_valid, peaks.data_ptr())
    values, is_usable = peaks[:, 1:].view(torch.int32).unbind(-1)
    return peaks[:, 0], values.contiguous().view(torch.float32), is_usable.bool()
