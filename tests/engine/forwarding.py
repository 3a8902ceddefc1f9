"""Runs a decoder on plain lists of token ids, with block tables that are shuffled on purpose."""

import random

import torch

from engine.batch import Batch
from engine.config import KVCacheDtype
from engine.kv_cache import KVCache
from engine.kv_slots import PlainSlots
from engine.messages import EngineRequest, SamplingParams
from engine.models.decoder import Decoder
from engine.sequence import Chunk, Sequence

BLOCK_SIZE = 4


def tile_positions(slots: PlainSlots, *, are_keys: bool) -> torch.Tensor:
    """Where compiled kernels keep each number: indices into the flattened memory, (num_slots,
    num_kv_heads, head_dim). See engine/kernels/attention.h: Cache.
    """
    num_slots, num_heads, dim = slots.data.shape
    pair = 2 if slots.data.dtype == torch.bfloat16 else 1  # numbers of a word
    numbers = torch.arange(slots.data.numel())
    if are_keys:
        tiles = numbers.view(num_slots // 16, num_heads, dim // pair, 16, pair)
        ordered = tiles.permute(0, 3, 1, 2, 4)
    else:
        tiles = numbers.view(num_slots // 16, num_heads, 16 // pair, dim, pair)
        ordered = tiles.permute(0, 2, 4, 1, 3)
    return ordered.reshape(num_slots, num_heads, dim)


class Forwarder:
    """A decoder as its backend computes it, with a KV cache full of NaN: whatever reads a slot that
    nobody wrote is found out.
    """

    def __init__(
        self,
        decoder: Decoder,
        num_blocks: int = 256,
        kv_cache_dtype: KVCacheDtype = "auto",
        block_size: int = BLOCK_SIZE,
    ) -> None:
        self.decoder = decoder
        self._block_size = block_size
        self.kv_cache = KVCache.allocate(
            decoder.config, num_blocks, block_size, decoder.dtype, decoder.device, kv_cache_dtype
        )
        self.forward_pass = decoder.backend.compile(decoder, self.kv_cache)
        for tensor in self.kv_cache.tensors():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 99)
        self._free = list(range(num_blocks))
        random.Random(0).shuffle(self._free)

    def sequence(self, token_ids: list[int], num_prompt_tokens: int | None = None) -> Sequence:
        """A sequence whose block table covers all its tokens; None = all are its prompt."""
        sampling = SamplingParams(max_tokens=1)
        request = EngineRequest(id="s", prompt_token_ids=token_ids, sampling=sampling)
        theta = self.decoder.config.rope_theta(num_prompt_tokens or len(token_ids))
        sequence = Sequence(request, arrival=0, rope_theta=theta)
        num_blocks = -(-len(token_ids) // self._block_size)
        sequence.block_table = [self._free.pop() for _ in range(num_blocks)]
        return sequence

    def step(self, chunks: list[Chunk]) -> list[torch.Tensor]:
        """Compute one step; the logits of each chunk: (num_tokens, vocab_size) float32."""
        return [self.forward_pass.compute_logits(hidden) for hidden in self.hidden(chunks)]

    def hidden(self, chunks: list[Chunk]) -> list[torch.Tensor]:
        """Compute one step; the hidden states of each chunk: (num_tokens, hidden_size)."""
        batch = Batch.build(chunks, self._block_size, self.decoder.device)
        hidden = self.forward_pass.forward(batch, self.kv_cache)
        return list(hidden.split_with_sizes([chunk.num_tokens for chunk in chunks]))

    def logits(
        self, token_ids: list[int], chunk_size: int, num_prompt_tokens: int | None = None
    ) -> torch.Tensor:
        """All logits of one sequence computed `chunk_size` tokens at a time."""
        sequence = self.sequence(token_ids, num_prompt_tokens)
        parts = [
            self.step([Chunk(sequence, i, min(chunk_size, len(token_ids) - i))])[0]
            for i in range(0, len(token_ids), chunk_size)
        ]
        return torch.cat(parts)
