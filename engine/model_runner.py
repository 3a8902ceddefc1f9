"""Owns the device side of the engine: the decoder's weights, the KV cache and the sampler.

Turns chunks into tensors, runs one forward pass and returns plain numbers. Knows nothing of
scheduling; engine/load.py builds it.
"""

import logging
from collections.abc import Iterator
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from itertools import accumulate, islice, takewhile

import torch

from engine.backends.base import ForwardPass
from engine.batch import Batch, StepInput
from engine.errors import RankLost
from engine.followers import Followers
from engine.kv_cache import KVCache
from engine.logprobs import prompt_logprobs
from engine.messages import EngineInfo, TokenLogprobs
from engine.results import ChunkResult
from engine.sampler import Sample, Sampler
from engine.sequence import Chunk, DraftedSequence, Sampled

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelRunner:
    """A loaded model on one device."""

    decoder: ForwardPass
    kv_cache: KVCache
    sampler: Sampler
    info: EngineInfo
    device: torch.device
    num_valid_tokens: int  # ids from here on only pad the vocabulary
    followers: Followers | None = None  # the other ranks of a tensor-parallel group

    def rope_theta(self, num_prompt_tokens: int) -> float:
        """The base of the rotary embedding of a sequence with such a prompt."""
        return self.decoder.config.rope_theta(num_prompt_tokens)

    def run(self, chunks: ListLike[Chunk]) -> list[ChunkResult]:
        """Compute all chunks in one forward pass; one result for each, in order.

        Raises RankLost when another rank has ended.
        """
        try:
            return self._run(chunks)
        except (RuntimeError, OSError) as exc:  # a collective's, a pipe's
            if self.followers is not None and (lost := self.followers.lost()):
                raise RankLost(lost) from exc
            raise

    @torch.inference_mode()
    def _run(self, chunks: ListLike[Chunk]) -> list[ChunkResult]:
        sampling = [i for i, chunk in enumerate(chunks) if chunk.samples]
        step = StepInput.of(chunks, self.info.block_size, _logits_rows(chunks, sampling))
        if self.followers is not None:
            self.followers.send(step)
        batch = Batch.of(step, self.info.block_size, self.device)
        # (n, vocab_size) float32 each, computed in this order by all ranks
        logits_of_rows = self.decoder.logits(batch, self.kv_cache, step.logits_rows)
        results = [ChunkResult() for _ in chunks]
        if sampling:
            logits = next(logits_of_rows)
            sampled = [row for i in sampling for row in sampled_rows(chunks[i])]
            samples = iter(self.sampler.sample(logits, sampled))
            for i in sampling:
                results[i] = result_of(list(islice(samples, 1 + len(chunks[i].drafts))))
        for i, chunk in enumerate(chunks):
            if chunk.sequence.sampling.prompt_logprobs is not None:
                results[i].prompt_logprobs.extend(self._prompt_logprobs(chunk, logits_of_rows))
        return results

    def close(self) -> None:
        """End the other ranks, where there are any."""
        if self.followers is not None:
            self.followers.close()

    def _prompt_logprobs(
        self, chunk: Chunk, logits_of_rows: Iterator[torch.Tensor]
    ) -> list[TokenLogprobs]:
        """Of every prompt token that follows one of the chunk's positions."""
        num_top = chunk.sequence.sampling.prompt_logprobs or 0
        targets = _prompt_targets(chunk)
        values: list[TokenLogprobs] = []
        for start in range(0, len(targets), PROMPT_LOGPROBS_ROWS):
            part = targets[start : start + PROMPT_LOGPROBS_ROWS]
            values += prompt_logprobs(next(logits_of_rows), part, num_top, self.num_valid_tokens)
        return values


def sampled_rows(chunk: Chunk) -> list[Sampled]:
    """What the sampler gets for a chunk that samples: its sequence, then behind each draft."""
    sequence, drafts = chunk.sequence, chunk.drafts
    return [sequence, *(DraftedSequence(sequence, drafts[: i + 1]) for i in range(len(drafts)))]


def result_of(samples: list[Sample]) -> ChunkResult:
    """The result of a chunk from the samples of its rows: the tokens up to the first without."""
    taken = list(takewhile(lambda sample: sample.token_id is not None, samples))
    token_ids = [sample.token_id for sample in taken if sample.token_id is not None]
    logprobs = [sample.logprobs for sample in taken if sample.logprobs is not None]
    return ChunkResult(token_ids, logprobs or None, failed=not taken)


def _logits_rows(chunks: ListLike[Chunk], sampling: list[int]) -> list[list[int]]:
    """The last row of what samples with those of its drafts, then the rows before the wanted prompt
    tokens, in pieces.
    """
    starts = list(accumulate((chunk.num_tokens for chunk in chunks), initial=0))
    rows = []
    if sampling:
        ends = ((starts[i + 1], 1 + len(chunks[i].drafts)) for i in sampling)
        rows.append([row for end, count in ends for row in range(end - count, end)])
    for start, chunk in zip(starts[:-1], chunks, strict=True):
        if chunk.sequence.sampling.prompt_logprobs is not None:
            stop = start + len(_prompt_targets(chunk))
            pieces = range(start, stop, PROMPT_LOGPROBS_ROWS)
            rows += [list(range(i, min(i + PROMPT_LOGPROBS_ROWS, stop))) for i in pieces]
    return rows


def _prompt_targets(chunk: Chunk) -> list[int]:
    """The prompt tokens that follow the chunk's positions."""
    last = min(chunk.end + 1, chunk.sequence.num_prompt_tokens)
    return chunk.sequence.token_ids[chunk.start + 1 : last]


# rows of logits held at once: 64 rows of Qwen's vocabulary are 39 MB
PROMPT_LOGPROBS_ROWS = 64
