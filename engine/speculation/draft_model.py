"""Drafts by a second, smaller model of the same vocabulary: the token it finds likeliest, again and
again.

It has a KV cache of its own, in the blocks that the sequences have in the large model's, so that
nothing more has to be allocated or freed. It lags behind: what it has not seen of a sequence it
computes before its first draft. While its drafts are not worth their time it rests, and computes
nothing. Called by the speculator.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Items

import msgspec
import torch

from engine.backends.base import ForwardPass
from engine.batch import Batch, StepInput
from engine.kv_cache import KVCache
from engine.sequence import Chunk, Sequence
from engine.speculation.memory import Guess, Memory
from engine.speculation.planner import Offer
from engine.speculation.rates import Experience
from engine.speculation.step_costs import StepCosts
from engine.top_tokens import argmax

_EXPECTED = (0.7, 0.7, 0.7, 0.7)  # the kind of a guess is its place behind the last token
_READY_LAG = 16  # tokens that it can take in together with its first draft
_CATCH_UP_TOKENS = 128  # of all sequences, computed ahead of a step
_DECLINED_BEFORE_REST = 4  # steps in a row without drafts
_FIRST_REST = 64  # steps
_LONGEST_REST = 4096
_GOOD_RUN = 16  # steps with drafts after which the next rest is a short one again


class DraftModel:
    """A loaded model, as a Proposer."""

    def __init__(
        self,
        model: ForwardPass,
        kv_cache: KVCache,
        device: torch.device,
        num_valid_tokens: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Ids from `num_valid_tokens` on are never drafted."""
        self._model = model
        self._kv_cache = kv_cache
        self._device = device
        self._num_valid_tokens = num_valid_tokens
        self._clock = clock
        self._experience = Experience(_EXPECTED)
        self._costs = StepCosts()
        self._num_declined = 0
        self._num_drafted = 0
        self._next_rest = _FIRST_REST
        self._num_to_rest = 0

    def prepare(self, sequences: Items[Sequence]) -> None:
        """Take in a part of what is not seen yet of sequences that lag far behind."""
        if self._num_to_rest:
            self._rest(sequences)
            return
        chunks = []
        room = _CATCH_UP_TOKENS
        for sequence in sequences:
            _credit(sequence)
            lag = sequence.num_tokens - sequence.num_draft_computed_tokens
            if lag > _READY_LAG and room and self._fits(sequence, 1):
                count = min(lag - 1, room)
                chunks.append(Chunk(sequence, sequence.num_draft_computed_tokens, count))
                room -= count
        if chunks:
            self._forward(chunks)
            for chunk in chunks:
                chunk.sequence.num_draft_computed_tokens = chunk.end

    def offer(self, sequence: Sequence, max_drafts: int) -> Offer:
        """See Proposer."""
        lag = sequence.num_tokens - sequence.num_draft_computed_tokens
        memory = Memory.of(sequence, self._experience)
        if self._num_to_rest or lag > _READY_LAG or not self._fits(sequence, max_drafts):
            return ()
        return memory.chances(_kinds(max_drafts), self._experience)

    def seconds(self, num_sequences: int, num_drafts: int) -> float:
        """See Proposer. Nothing while it is not known, so that it is tried."""
        return num_drafts * self._costs.seconds(num_sequences)

    def draft(self, sequences: Items[Sequence], counts: Items[int]) -> list[list[int]]:
        """See Proposer."""
        started = self._clock()
        drafts: list[list[int]] = [[] for _ in sequences]
        num_rounds = max(counts)
        for place in range(num_rounds):
            active = [i for i, count in enumerate(counts) if count > place]
            chunks = [_next_chunk(sequences[i], drafts[i]) for i in active]
            for i, token_id in zip(active, self._next_tokens(chunks), strict=True):
                drafts[i].append(token_id)
        for sequence, guessed in zip(sequences, drafts, strict=True):
            if guessed and sequence.speculation is not None:
                sequence.num_draft_computed_tokens = sequence.num_tokens
                guess = Guess(sequence.num_tokens, guessed, _kinds(len(guessed)))
                sequence.speculation.guess = guess
        num_sequences = len(sequences)
        seconds = self._clock() - started
        if num_rounds:
            self._costs.observe(num_sequences, seconds / num_rounds)
        self._count_drafted()
        return drafts

    def declined(self) -> None:
        """Rest after a few times, ever longer."""
        self._num_drafted = 0
        self._num_declined += 1
        if self._num_declined >= _DECLINED_BEFORE_REST:
            self._num_declined = 0
            self._num_to_rest = self._next_rest
            self._next_rest = min(2 * self._next_rest, _LONGEST_REST)
            self._experience.rates.forget()
            self._costs = StepCosts()

    def _rest(self, sequences: Items[Sequence]) -> None:
        self._num_to_rest -= 1
        for sequence in sequences:
            if not self._num_to_rest and sequence.speculation is not None:
                sequence.speculation.rates.forget()

    def _count_drafted(self) -> None:
        self._num_declined = 0
        self._num_drafted += 1
        if self._num_drafted >= _GOOD_RUN:
            self._next_rest = _FIRST_REST

    def _fits(self, sequence: Sequence, num_drafts: int) -> bool:
        longest = self._model.config.max_position_embeddings
        return sequence.num_tokens + num_drafts <= longest

    def _next_tokens(self, chunks: list[Chunk]) -> list[int]:
        """The likeliest token behind each chunk."""
        with torch.inference_mode():
            hidden = self._forward(chunks)
            ends = torch.tensor([chunk.num_tokens for chunk in chunks]).cumsum(0) - 1
            logits = self._model.compute_logits(hidden[ends.to(self._device)])
            token_ids: list[int] = argmax(logits[:, : self._num_valid_tokens]).tolist()
        return token_ids

    @torch.inference_mode()
    def _forward(self, chunks: list[Chunk]) -> torch.Tensor:
        config, block_size = self._model.config, self._kv_cache.block_size
        step = StepInput.of(chunks, block_size, [])
        last_id = config.vocab_size - 1  # a prompt may hold ids that only pad the large model's
        step = msgspec.structs.replace(
            step,
            token_ids=[min(token_id, last_id) for token_id in step.token_ids],
            rope_thetas=[config.rope_theta(chunk.sequence.num_prompt_tokens) for chunk in chunks],
        )
        return self._model.forward(Batch.of(step, block_size, self._device), self._kv_cache)


def _kinds(count: int) -> list[int]:
    return [min(place, len(_EXPECTED) - 1) for place in range(count)]


def _next_chunk(sequence: Sequence, drafts: list[int]) -> Chunk:
    """What is to be computed for the draft behind `drafts`."""
    if drafts:
        return Chunk(sequence, sequence.num_tokens + len(drafts) - 1, 1, tuple(drafts))
    start = sequence.num_draft_computed_tokens
    return Chunk(sequence, start, sequence.num_tokens - start)


def _credit(sequence: Sequence) -> None:
    """Drafts that were right are in the cache, but for the last: nothing was computed behind it."""
    guess = None if sequence.speculation is None else sequence.speculation.guess
    if guess is None or sequence.num_draft_computed_tokens != guess.position:
        return
    for token_id in guess.token_ids[:-1]:
        position = sequence.num_draft_computed_tokens
        if position >= sequence.num_tokens or sequence.token_ids[position] != token_id:
            return
        sequence.num_draft_computed_tokens += 1
