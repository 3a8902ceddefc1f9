"""Speculative decoding: guesses what comes next, so that one step can give several tokens.

The engine computes drafts behind a sequence's last token and samples at each position as ever; a
draft that is what was sampled saves a step. What is sampled is a function of logits, seed and
position (docs/decisions/0005), so drafts change how fast tokens come and not which. This is the one
collaborator of the engine for it: where drafts come from is its proposer's business, how many are
worth it its planner's. No torch.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as ListLike

from engine.results import ChunkResult
from engine.scheduler import Schedule, Scheduler
from engine.sequence import Chunk
from engine.speculation.ends import Ends
from engine.speculation.planner import Planner
from engine.speculation.proposer import Proposer

_MAX_STEP_DRAFTS = 128  # rows of logits that a step holds for drafts
_DECLINED_BEFORE_SKIP = 8  # steps without drafts after which not every step is looked at
_SEQUENCES_PER_SKIP = 8  # looking costs time by sequence: the more there are, the rarer


class Speculator:
    """Drafts for the steps of one engine.

    Attributes:
        num_draft_tokens: drafts that were computed, since the start.
        num_accepted_tokens: of those, the ones that were right.
    """

    def __init__(
        self,
        proposer: Proposer,
        planner: Planner,
        ends: Ends,
        max_drafts: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`max_drafts`: for a sequence in a step. Only speed depends on `clock`."""
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self._proposer = proposer
        self._planner = planner
        self._ends = ends
        self._max_drafts = max_drafts
        self._clock = clock
        self._started = 0.0
        self._num_declined = 0
        self._num_to_skip = 0

    def draft(self, schedule: Schedule, scheduler: Scheduler) -> None:
        """Put drafts behind the chunks of a step of decodes, from the room that it leaves."""
        if self._is_worth_a_look(schedule):
            self._draft(schedule, scheduler)
        self._started = self._clock()

    def learn(self, chunks: ListLike[Chunk], results: ListLike[ChunkResult]) -> None:
        """The step was computed: count, and remember what it took. Call it before the sequences get
        their tokens.
        """
        seconds = self._clock() - self._started
        for chunk, result in zip(chunks, results, strict=True):
            if chunk.drafts:
                self.num_draft_tokens += len(chunk.drafts)
                self.num_accepted_tokens += max(0, len(result.token_ids) - 1)
        if chunks and all(map(_is_decode, chunks)):
            self._planner.learn(sum(chunk.num_tokens for chunk in chunks), seconds)

    def _is_worth_a_look(self, schedule: Schedule) -> bool:
        """Prompts get what a step can compute, and steps with them say nothing about time."""
        if not schedule.budget or not schedule.chunks or not all(map(_is_decode, schedule.chunks)):
            return False
        if self._num_to_skip:
            self._num_to_skip -= 1
            return False
        return True

    def _draft(self, schedule: Schedule, scheduler: Scheduler) -> None:
        sequences = [chunk.sequence for chunk in schedule.chunks]
        self._proposer.prepare(sequences)
        offers = [
            self._proposer.offer(s, min(self._max_drafts, self._ends.max_drafts(s)))
            for s in sequences
        ]
        counts = self._planner.choose(
            offers,
            min(schedule.budget, _MAX_STEP_DRAFTS),
            lambda num_drafts: self._proposer.seconds(len(sequences), num_drafts),
        )
        if not any(counts):
            self._decline(len(sequences), has_offers=any(offers))
            return
        self._num_declined = 0
        counts = [
            scheduler.reserve_drafts(schedule, index, count) if count else 0
            for index, count in enumerate(counts)
        ]
        all_drafts = self._proposer.draft(sequences, counts)
        for index, (sequence, drafts) in enumerate(zip(sequences, all_drafts, strict=True)):
            usable = self._ends.before_stop(sequence, drafts)
            usable = self._ends.within_grammar(sequence, usable)
            if usable:
                schedule.chunks[index] = schedule.chunks[index].with_drafts(tuple(usable))

    def _decline(self, num_sequences: int, *, has_offers: bool) -> None:
        if has_offers:
            self._proposer.declined()
        self._num_declined += 1
        if self._num_declined >= _DECLINED_BEFORE_SKIP:
            self._num_to_skip = num_sequences // _SEQUENCES_PER_SKIP


def _is_decode(chunk: Chunk) -> bool:
    """Whether it is a sequence's newest token, and drafts at most."""
    known = chunk.num_tokens - len(chunk.drafts)
    return known == 1 and chunk.samples and chunk.sequence.num_output_tokens > 0
