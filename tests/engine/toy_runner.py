"""A model without torch: it keeps a real paged cache of prefix hashes, so that wrong K/V is caught.

The "K/V" of a position is the hash of all tokens up to it. Every run checks, for every chunk, that
each earlier slot of the block table holds exactly what this sequence would have written there.
"""

import hashlib
from array import array
from collections.abc import Sequence as ListLike

from engine.core import Engine
from engine.messages import EngineInfo, EngineRequest, SamplingParams
from engine.results import ChunkResult
from engine.sequence import Chunk
from engine.speculation.speculator import Speculator

VOCAB_SIZE = 50


def prefix_hash(token_ids: ListLike[int]) -> bytes:
    return hashlib.sha1(array("I", token_ids).tobytes()).digest()


def next_token(token_ids: ListLike[int]) -> int:
    """The toy's greedy choice: any function of the whole prefix will do."""
    return prefix_hash(token_ids)[0] % VOCAB_SIZE


def expected_output(prompt: list[int], num_tokens: int) -> list[int]:
    """What a sequence alone in the world generates."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def known_and_drafts(chunk: Chunk) -> list[int]:
    return [*chunk.sequence.token_ids, *chunk.drafts]


class ToyRunner:
    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.slots: dict[int, bytes] = {}
        self.num_tokens_per_step: list[int] = []
        self.nan_tokens: set[int] = set()  # a sequence holding one of these gets NaN logits

    def slot(self, chunk: Chunk, position: int) -> int:
        table = chunk.sequence.block_table
        return table[position // self.block_size] * self.block_size + position % self.block_size

    def rope_theta(self, num_prompt_tokens: int) -> float:
        return 0.0

    def close(self) -> None:
        pass

    def run(self, chunks: ListLike[Chunk]) -> list[ChunkResult]:
        written: set[int] = set()
        for chunk in chunks:
            tokens = known_and_drafts(chunk)
            for position in range(chunk.start, chunk.end):
                slot = self.slot(chunk, position)
                assert slot not in written, "two tokens of one step share a slot"
                written.add(slot)
                self.slots[slot] = prefix_hash(tokens[: position + 1])
        self.num_tokens_per_step.append(len(written))
        return [self._attend(chunk) for chunk in chunks]

    def _attend(self, chunk: Chunk) -> ChunkResult:
        tokens = known_and_drafts(chunk)
        for position in range(chunk.end):
            assert self.slots.get(self.slot(chunk, position)) == prefix_hash(tokens[: position + 1])
        if not chunk.samples:
            return ChunkResult()
        if self.nan_tokens.intersection(chunk.sequence.token_ids):
            return ChunkResult(failed=True)
        known = list(chunk.sequence.token_ids)
        sampled = [next_token(known)]
        for draft in chunk.drafts:
            if draft != sampled[-1] or draft in self.nan_tokens:
                break
            known.append(draft)
            sampled.append(next_token(known))
        return ChunkResult(sampled)


def toy_engine(
    *,
    num_blocks: int = 16,
    block_size: int = 4,
    max_num_seqs: int = 4,
    max_num_batched_tokens: int = 8,
    max_model_len: int = 48,
    eos_token_ids: tuple[int, ...] = (),
    enable_prefix_caching: bool = True,
    speculator: Speculator | None = None,
) -> tuple[Engine, ToyRunner]:
    runner = ToyRunner(block_size)
    info = EngineInfo(
        max_model_len=max_model_len,
        vocab_size=VOCAB_SIZE,
        num_blocks=num_blocks,
        block_size=block_size,
        dtype="none",
        device="none",
        backend="toy",
    )
    engine = Engine(
        runner,
        info,
        eos_token_ids=eos_token_ids,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        enable_prefix_caching=enable_prefix_caching,
        speculator=speculator,
    )
    return engine, runner


def make_request(
    request_id: str, prompt: list[int], max_tokens: int = 5, priority: int = 0, **sampling: object
) -> EngineRequest:
    return EngineRequest(
        id=request_id,
        prompt_token_ids=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, **sampling),  # type: ignore[arg-type]
        priority=priority,
    )
