"""A quantized weight as the tensors of a GPTQ checkpoint (checkpoint_format "gptq").

The counterpart of engine/quant/packed_source.py, which has the layout's source. K = in_features,
N = out_features, G = groups.
"""

import torch

from engine.quant.groupwise import GroupwiseWeight, pack_nibbles


def gptq_tensors(weight: GroupwiseWeight) -> dict[str, torch.Tensor]:
    """qweight (K * bits / 32, N), qzeros (G, N * bits / 32), g_idx (K,), all int32, and scales
    (G, N) float16. K and N must be multiples of 32 / bits.

    Zero points are stored less one: 0x77777777 where 4 bits are symmetric.
    """
    columns = weight.shape[1]
    codes = weight.unpacked()
    groups = torch.arange(columns, dtype=torch.int32, device=codes.device) // weight.group_size
    if weight.order is not None:
        codes = torch.empty_like(codes).index_copy_(1, weight.order, codes)
        groups = torch.empty_like(groups).index_copy_(0, weight.order, groups)
    less_one = (weight.zeros.T.to(torch.uint8) - 1) & (2**weight.bits - 1)
    return {
        "qweight": _words(codes, weight.bits).T.contiguous(),
        "qzeros": _words(less_one, weight.bits),
        "scales": weight.scales.T.half().contiguous(),
        "g_idx": groups,
    }


def _words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """(r, c) uint8 -> (r, c * bits / 32) int32, the first code in the lowest bits."""
    packed = pack_nibbles(codes) if bits == 4 else codes
    return packed.contiguous().flatten().view(torch.int32).view(len(codes), -1)
