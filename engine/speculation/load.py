"""Options -> the speculator, with a loaded draft model where one is asked for.

Refuses, with a reason, a draft model that cannot help. Called by engine/load.py.
"""

import logging

import torch

from engine import kv_cache, weights
from engine.backends.base import Backend
from engine.checkpoint import Checkpoint
from engine.config import EngineConfig
from engine.errors import CheckpointError, ConfigError
from engine.kv_cache import KVCache
from engine.models.decoder import Decoder
from engine.speculation.draft_model import DraftModel
from engine.speculation.ends import Ends
from engine.speculation.ngram_proposer import NgramProposer
from engine.speculation.planner import Planner
from engine.speculation.proposer import Proposer
from engine.speculation.speculator import Speculator
from engine.token_bytes import read_token_bytes
from engine.vocabulary import num_valid_tokens

logger = logging.getLogger(__name__)


class SpeculationLoader:
    """Makes the speculator in the steps in which a model is loaded."""

    def __init__(self, config: EngineConfig, target: Checkpoint, device: torch.device) -> None:
        """Open the draft model, if there is one. Raises ConfigError and CheckpointError."""
        self._config = config
        self._device = device
        self._checkpoint = None if config.draft_model is None else _open(config, target)
        self._decoder: Decoder | None = None
        self._num_valid_tokens = 0
        self.block_bytes = 0  # of a block of the draft model's KV cache
        if self._checkpoint is not None:
            draft = weights.decoder_config(self._checkpoint)
            self._num_valid_tokens = num_valid_tokens(target, draft.vocab_size)
            self.block_bytes = kv_cache.bytes_per_block(
                draft, config.block_size, self._dtype(self._checkpoint), config.kv_cache_dtype
            )

    def load_weights(self, backend: Backend) -> None:
        """Load the draft model, if there is one."""
        checkpoint = self._checkpoint
        if checkpoint is not None:
            self._decoder = weights.load_decoder(
                checkpoint, self._dtype(checkpoint), self._device, backend
            )

    def speculator(
        self, backend: Backend, ends: Ends, num_blocks: int, *, is_exact: bool
    ) -> Speculator | None:
        """What --speculation and --draft-model ask for; `num_blocks`: of the model's KV cache.

        `is_exact`: logits do not depend on the shape of a step, so that drafts change nothing.
        """
        proposer = self._proposer(backend, num_blocks, is_exact)
        if proposer is None:
            return None
        kind = "ngram" if self._checkpoint is None else str(self._checkpoint.path)
        logger.info("speculation is on", extra={"fields": {"drafts_from": kind}})
        return Speculator(proposer, Planner(), ends, self._config.num_speculative_tokens)

    def _proposer(self, backend: Backend, num_blocks: int, is_exact: bool) -> Proposer | None:
        config, decoder = self._config, self._decoder
        if decoder is not None:
            cache = KVCache.allocate(
                decoder.config,
                num_blocks,
                config.block_size,
                decoder.dtype,
                self._device,
                config.kv_cache_dtype,
            )
            model = backend.compile(decoder, cache)
            return DraftModel(model, cache, self._device, self._num_valid_tokens)
        is_on = config.speculation == "ngram" or (config.speculation == "auto" and is_exact)
        return NgramProposer() if is_on else None

    def _dtype(self, checkpoint: Checkpoint) -> torch.dtype:
        return weights.resolve_dtype(self._config.dtype, checkpoint, self._device)


def _open(config: EngineConfig, target: Checkpoint) -> Checkpoint:
    """The draft model's checkpoint, if it can help. Raises ConfigError."""
    assert config.draft_model is not None
    if config.speculation == "off":
        raise ConfigError("--draft-model is of no use with --speculation off.")
    if config.tensor_parallel_size > 1:
        raise ConfigError("--draft-model does not work with --tensor-parallel-size.")
    checkpoint = Checkpoint.open(config.draft_model)
    _check_vocabulary(target, checkpoint)
    return checkpoint


def _check_vocabulary(target: Checkpoint, draft: Checkpoint) -> None:
    """The same ids must be the same tokens."""
    if target.tokenizer_json is not None and target.tokenizer_json == draft.tokenizer_json:
        return
    try:
        ours, theirs = read_token_bytes(target), read_token_bytes(draft)
    except CheckpointError as exc:
        raise ConfigError(f"--draft-model cannot be compared with --model: {exc}") from exc
    pairs = list(zip(ours.tokens, theirs.tokens, strict=False))
    differing = [i for i, (a, b) in enumerate(pairs) if a != b]
    num_ours, num_theirs = len(_stripped(ours.tokens)), len(_stripped(theirs.tokens))
    if num_ours != num_theirs:
        raise ConfigError(
            f"--draft-model {draft.path} has a vocabulary of {num_theirs} tokens, and --model one "
            f"of {num_ours}: it must be the same."
        )
    if differing:
        raise ConfigError(
            f"--draft-model {draft.path} has another vocabulary than --model: they differ in "
            f"{len(differing)} tokens, the first is token {differing[0]}."
        )


def _stripped(tokens: list[bytes]) -> list[bytes]:
    """Without the ids at the end that are no tokens."""
    count = len(tokens)
    while count and not tokens[count - 1]:
        count -= 1
    return tokens[:count]
