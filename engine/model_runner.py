"""Owns the device side of the engine: the decoder's weights, the KV cache and the sampler.

Turns chunks into tensors, runs one forward pass and returns plain numbers. Knows nothing of
scheduling; engine/load.py builds it.
"""

import logging
from collections.abc import Sequence as ListLike
from dataclasses import dataclass

import torch

from engine.batch import Batch
from engine.kv_cache import KVCache
from engine.logprobs import prompt_logprobs
from engine.messages import EngineInfo, TokenLogprobs
from engine.models.decoder import Decoder
from engine.results import ChunkResult
from engine.sampler import Sampler
from engine.sequence import Chunk

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelRunner:
    """A loaded model on one device."""

    decoder: Decoder
    kv_cache: KVCache
    sampler: Sampler
    info: EngineInfo
    device: torch.device
    num_valid_tokens: int  # ids from here on only pad the vocabulary

    def rope_theta(self, num_prompt_tokens: int) -> float:
        """The base of the rotary embedding of a sequence with such a prompt."""
        return self.decoder.config.rope_theta(num_prompt_tokens)

    @torch.inference_mode()
    def run(self, chunks: ListLike[Chunk]) -> list[ChunkResult]:
        """Compute all chunks in one forward pass; one result for each, in order."""
        batch = Batch.build(chunks, self.info.block_size, self.device)
        hidden = self.decoder.forward(batch, self.kv_cache)  # (num_tokens, hidden_size)
        sampling = [i for i, chunk in enumerate(chunks) if chunk.samples]
        results = [ChunkResult() for _ in chunks]
        if sampling:
            last_rows = [batch.query_starts[i + 1] - 1 for i in sampling]
            logits = self.decoder.compute_logits(hidden[last_rows])  # (n, vocab_size) float32
            samples = self.sampler.sample(logits, [chunks[i].sequence for i in sampling])
            for i, sample in zip(sampling, samples, strict=True):
                results[i] = ChunkResult(
                    sample.token_id, sample.logprobs, failed=sample.token_id is None
                )
        for i, chunk in enumerate(chunks):
            if chunk.sequence.sampling.prompt_logprobs is not None:
                results[i].prompt_logprobs.extend(
                    self._prompt_logprobs(chunk, hidden[batch.query_starts[i] :])
                )
        return results

    def _prompt_logprobs(self, chunk: Chunk, hidden: torch.Tensor) -> list[TokenLogprobs]:
        """Of every prompt token that follows one of the chunk's positions."""
        sequence = chunk.sequence
        targets = sequence.token_ids[
            chunk.start + 1 : min(chunk.end + 1, sequence.num_prompt_tokens)
        ]
        num_top = sequence.sampling.prompt_logprobs or 0
        values: list[TokenLogprobs] = []
        for start in range(0, len(targets), PROMPT_LOGPROBS_ROWS):
            part = targets[start : start + PROMPT_LOGPROBS_ROWS]
            logits = self.decoder.compute_logits(hidden[start : start + len(part)])
            values += prompt_logprobs(logits, part, num_top, self.num_valid_tokens)
        return values


# rows of logits held at once: 64 rows of Qwen's vocabulary are 39 MB
PROMPT_LOGPROBS_ROWS = 64
