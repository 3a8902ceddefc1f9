"""The tensors of one step: what the decoder needs to know about the sequences it computes, and
nothing else.
"""

from collections.abc import Sequence as ListLike
from dataclasses import dataclass

import msgspec
import torch

from engine.sequence import Chunk


class StepInput(msgspec.Struct, frozen=True, array_like=True):
    """A step in plain numbers, as it is sent to the other ranks of a tensor-parallel group."""

    token_ids: list[int]
    positions: list[int]
    slots: list[int]
    query_starts: list[int]
    context_lens: list[int]
    block_tables: list[list[int]]
    rope_thetas: list[float]
    logits_rows: list[list[int]]  # token rows whose logits are computed, one product each

    @classmethod
    def of(
        cls, chunks: ListLike[Chunk], block_size: int, logits_rows: list[list[int]]
    ) -> "StepInput":
        """Lay `chunks` end to end. Every chunk's block table must already cover its tokens."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        query_starts = [0]
        for chunk in chunks:
            table = chunk.sequence.block_table
            token_ids += chunk.token_ids
            positions += range(chunk.start, chunk.end)
            slots += [
                table[i // block_size] * block_size + i % block_size
                for i in range(chunk.start, chunk.end)
            ]
            query_starts.append(len(token_ids))
        return cls(
            token_ids=token_ids,
            positions=positions,
            slots=slots,
            query_starts=query_starts,
            context_lens=[chunk.end for chunk in chunks],
            block_tables=[chunk.sequence.block_table for chunk in chunks],
            rope_thetas=[chunk.sequence.rope_theta for chunk in chunks],
            logits_rows=logits_rows,
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Chunks of several sequences laid end to end, without padding. num_tokens = sum of the
    chunks' lengths.
    """

    token_ids: torch.Tensor  # (num_tokens,) int64
    positions: torch.Tensor  # (num_tokens,) int64, position in the sequence
    slot_mapping: (
        torch.Tensor
    )  # (num_tokens,) int64, block id * block_size + offset: where K and V go
    query_starts: list[int]  # num_seqs + 1 offsets into the token axis
    context_lens: list[int]  # num_seqs: tokens in the KV cache after this step, the chunk included
    block_tables: torch.Tensor  # (num_seqs, max_blocks) int64, padded with 0
    block_size: int
    rope_thetas: list[float]  # num_seqs: the base of each sequence's rotary embedding

    @classmethod
    def build(cls, chunks: ListLike[Chunk], block_size: int, device: torch.device) -> "Batch":
        """Lay `chunks` end to end; see StepInput.of."""
        return cls.of(StepInput.of(chunks, block_size, []), block_size, device)

    @classmethod
    def of(cls, step: StepInput, block_size: int, device: torch.device) -> "Batch":
        """The tensors of `step`."""
        width = max(len(table) for table in step.block_tables)
        tables = [table + [0] * (width - len(table)) for table in step.block_tables]
        ints = torch.tensor([step.token_ids, step.positions, step.slots], dtype=torch.int64).to(
            device
        )
        return cls(
            token_ids=ints[0],
            positions=ints[1],
            slot_mapping=ints[2],
            query_starts=step.query_starts,
            context_lens=step.context_lens,
            block_tables=torch.tensor(tables, dtype=torch.int64).to(device),
            block_size=block_size,
            rope_thetas=step.rope_thetas,
        )
