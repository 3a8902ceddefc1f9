"""A quantized weight as the tensors of a GPTQ checkpoint.

The counterpart of engine/quant/packed_source.py, which has the layout's source. K = in_features,
N = out_features, G = groups.
"""

import torch

from engine.quant.groupwise import GroupwiseWeight, pack_nibbles


def gptq_tensors(
    weight: GroupwiseWeight, *, zeros_are_less_one: bool = True
) -> dict[str, torch.Tensor]:
    """qweight (K * bits / 32, N), qzeros (G, N * bits / 32), g_idx (K,), all int32, and scales
    (G, N) float16. K and N must be multiples of 32 / bits.

    checkpoint_format "gptq" stores zero points less one (0x77777777 where 4 bits are symmetric),
    "gptq_v2" as they are.
    """
    columns = weight.shape[1]
    codes = weight.unpacked()
    groups = torch.arange(columns, dtype=torch.int32, device=codes.device) // weight.group_size
    if weight.order is not None:
        codes = torch.empty_like(codes).index_copy_(1, weight.order, codes)
        groups = torch.empty_like(groups).index_copy_(0, weight.order, groups)
    zeros = weight.zeros.T.to(torch.uint8)
    if zeros_are_less_one:
        zeros = (zeros - 1) & (2**weight.bits - 1)
    return {
        "qweight": _words(codes, weight.bits).T.contiguous(),
        "qzeros": _words(zeros, weight.bits),
        "scales": weight.scales.T.half().contiguous(),
        "g_idx": groups,
    }


def _words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """(r, c) uint8 -> (r, c * bits / 32) int32, the first code in the lowest bits."""
    packed = pack_nibbles(codes) if bits == 4 else codes
    return packed.contiguous().flatten().view(torch.int32).view(len(codes), -1)
