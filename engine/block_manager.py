"""Who owns which block of the KV cache, and which blocks can be reused by content. Pure Python.

A block is in one of two states: referenced by `ref_count` block tables, or free. A free block may
still hold the K/V of a known token prefix; it keeps its hash and can be taken back by a
prefix-cache hit until it is handed out for other tokens. Knows nothing of scheduling policy; only
the scheduler calls it.
"""

import hashlib
from array import array
from collections import OrderedDict

from engine.errors import InvariantViolated
from engine.sequence import Sequence


class BlockManager:
    """Allocates blocks to sequences; `num_free_blocks` counts the reusable cached ones too."""

    def __init__(
        self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._block_of_hash: dict[bytes, int] = {}
        # least recently freed first; blocks without reusable content go in front of all others
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def can_allocate(self, sequence: Sequence, num_tokens: int, headroom: int = 0) -> bool:
        """Whether `allocate` would succeed and leave `headroom` blocks free."""
        hits = self._find_prefix(sequence)
        num_hits_free = sum(1 for block in hits if self._ref_counts[block] == 0)
        num_new = self.num_blocks_for(num_tokens) - len(sequence.block_table) - len(hits)
        return num_new <= 0 or num_new + headroom <= self.num_free_blocks - num_hits_free

    def allocate(self, sequence: Sequence, num_tokens: int) -> bool:
        """Extend the block table to cover `num_tokens` tokens, or change nothing and return False.

        An empty table first takes prefix-cache hits; then `num_computed_tokens` says how many
        tokens they cover. At least one token of a sequence is always left to compute, since its
        logits are needed.
        """
        if not self.can_allocate(sequence, num_tokens):
            return False
        if not sequence.block_table:
            hits = self._find_prefix(sequence)
            for block in hits:
                self._reference(block)
            sequence.block_table += hits
            sequence.num_computed_tokens = len(hits) * self.block_size
        num_new = self.num_blocks_for(num_tokens) - len(sequence.block_table)
        sequence.block_table += [self._take_free() for _ in range(num_new)]
        return True

    def publish(self, sequence: Sequence, start: int, end: int) -> None:
        """Make the blocks that tokens `start` to `end` fill available to prefix-cache hits.

        Called when the tokens are scheduled, not when they are computed: in each layer the K/V of
        all tokens of a step are written before any are read, so sequences of one step may share.
        """
        if not self.enable_prefix_caching:
            return
        self._extend_hashes(sequence, end // self.block_size)
        for index in range(start // self.block_size, end // self.block_size):
            block, block_hash = sequence.block_table[index], sequence.block_hashes[index]
            if block_hash not in self._block_of_hash:
                self._hashes[block] = block_hash
                self._block_of_hash[block_hash] = block

    def free(self, sequence: Sequence) -> None:
        """Give up all blocks of a sequence; cached ones stay reusable, the tail goes first."""
        self.shrink(sequence, 0)
        sequence.num_computed_tokens = 0
        sequence.num_draft_computed_tokens = 0

    def shrink(self, sequence: Sequence, num_tokens: int) -> None:
        """Give up the blocks of a sequence that `num_tokens` tokens do not need."""
        table = sequence.block_table
        while len(table) > self.num_blocks_for(num_tokens):
            self._release(table.pop())

    def retract(self, sequence: Sequence) -> None:
        """Withdraw a sequence's blocks from the prefix cache: their content cannot be trusted."""
        for block in sequence.block_table:
            self._forget(block)

    def check_idle(self) -> None:
        """Raise InvariantViolated unless every block is free: nothing leaked."""
        if self.num_free_blocks != self.num_blocks or any(self._ref_counts):
            raise InvariantViolated(
                f"{self.num_blocks - self.num_free_blocks} KV blocks leaked: no sequence is alive"
            )

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """Cached blocks for the start of a sequence that has none yet."""
        if not self.enable_prefix_caching or sequence.block_table:
            return []
        if sequence.sampling.prompt_logprobs is not None:
            return []  # they need the logits of every prompt position
        num_full = (sequence.num_tokens - 1) // self.block_size
        self._extend_hashes(sequence, num_full)
        hits = []
        for block_hash in sequence.block_hashes[:num_full]:
            block = self._block_of_hash.get(block_hash)
            if block is None:
                break
            hits.append(block)
        return hits

    def _extend_hashes(self, sequence: Sequence, num_full_blocks: int) -> None:
        size = self.block_size
        for index in range(len(sequence.block_hashes), num_full_blocks):
            parent = sequence.block_hashes[-1] if sequence.block_hashes else sequence.cache_key
            tokens = array("I", sequence.token_ids[index * size : (index + 1) * size])
            # cryptographic, so that no client can craft a prompt that hits another one's blocks
            sequence.block_hashes.append(
                hashlib.blake2b(tokens.tobytes() + parent, digest_size=16).digest()
            )

    def _release(self, block: int) -> None:
        self._ref_counts[block] -= 1
        if self._ref_counts[block] == 0:
            self._free[block] = None
            if self._hashes[block] is None:
                self._free.move_to_end(block, last=False)

    def _reference(self, block: int) -> None:
        if self._ref_counts[block] == 0:
            del self._free[block]
        self._ref_counts[block] += 1

    def _take_free(self) -> int:
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._ref_counts[block] = 1
        return block

    def _forget(self, block: int) -> None:
        block_hash = self._hashes[block]
        if block_hash is not None:
            del self._block_of_hash[block_hash]
            self._hashes[block] = None
