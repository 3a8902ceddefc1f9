"""Which tokens of which sequences the next step computes. Pure Python, no torch.

There is no prefill phase and no decode phase: every running sequence catches its computed tokens up
to its tokens under one token budget, those that lack a single token (decodes) first, so that an
arriving prompt takes only what they leave. When blocks run out the worst sequence (lowest priority,
latest arrival) is preempted: its blocks are freed and it is computed again later, mostly out of the
prefix cache.

Drafts (engine/speculation) come last of all: they get only tokens of the budget and blocks that
nothing else of the step wants, and give the blocks back where they are not accepted.
"""

import bisect
import time
from dataclasses import dataclass, field

from engine.block_manager import BlockManager
from engine.errors import RequestRejected
from engine.messages import Fault
from engine.sequence import Chunk, Sequence


def rank(sequence: Sequence) -> tuple[int, int]:
    """Sort key: the lowest is served first and preempted last."""
    return sequence.request.priority, sequence.arrival


@dataclass(slots=True)
class Schedule:
    """One step's work. `outgrown` are sequences that alone fill the whole cache: they end here."""

    chunks: list[Chunk] = field(default_factory=list)
    outgrown: list[Sequence] = field(default_factory=list)
    budget: int = 0  # tokens that the step could compute beside these


class Scheduler:
    """Holds every live sequence: in `held`, in `waiting` or `running`, both sorted by rank, or in
    `suspects`, of which the first is computed alone before all others.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
    ) -> None:
        self.block_manager = block_manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.held: list[Sequence] = []  # not to be scheduled before `release`
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.suspects: list[Sequence] = []  # the first alone may have blocks
        self.num_preemptions = 0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self.suspects)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.suspects) + len(self.held)

    def add(self, sequence: Sequence, *, is_held: bool = False) -> None:
        """Queue a sequence, or hold it until `release`.

        Raises RequestRejected for one that can never be computed.
        """
        num_tokens = sequence.num_prompt_tokens
        if num_tokens + min(sequence.sampling.max_tokens, 1) > self.max_model_len:
            raise RequestRejected(
                Fault(
                    "context_length_exceeded",
                    f"The prompt has {num_tokens} tokens; with its answer it must fit into "
                    f"{self.max_model_len}.",
                )
            )
        if self.block_manager.num_blocks_for(num_tokens) > self.block_manager.num_blocks:
            capacity = self.block_manager.num_blocks * self.block_manager.block_size
            raise RequestRejected(
                Fault(
                    "kv_cache_exceeded",
                    f"The prompt has {num_tokens} tokens, but the KV cache holds only {capacity}.",
                )
            )
        if is_held:
            self.held.append(sequence)
        else:
            self._queue(sequence)

    def release(self, sequence: Sequence) -> None:
        """Queue a sequence that was held."""
        self.held.remove(sequence)
        self._queue(sequence)

    def requeue(self, sequence: Sequence, *, is_suspect: bool) -> None:
        """After a failed step: nothing is kept of what was computed for one of its sequences."""
        self.block_manager.retract(sequence)
        self.block_manager.free(sequence)
        (self.suspects if sequence.is_suspect else self.running).remove(sequence)
        sequence.is_suspect = is_suspect
        self._queue(sequence)

    def schedule(self) -> Schedule:
        """Choose the next step's chunks and give them their blocks."""
        schedule = Schedule()
        if self.suspects:
            self._schedule_alone(schedule, self.suspects[0])
            return schedule
        self._make_room_for_priority()
        budget = self._schedule_running(schedule)
        schedule.budget = self._schedule_waiting(schedule, budget)
        return schedule

    def reserve_drafts(self, schedule: Schedule, index: int, num_drafts: int) -> int:
        """Give chunk `index`, which samples, blocks for up to `num_drafts` drafts from what is
        left; returns for how many.
        """
        chunk = schedule.chunks[index]
        sequence, blocks = chunk.sequence, self.block_manager
        num_slots = (len(sequence.block_table) + blocks.num_free_blocks) * blocks.block_size
        num_drafts = min(num_drafts, schedule.budget, num_slots - chunk.end)
        if num_drafts > 0:
            blocks.allocate(sequence, chunk.end + num_drafts)
            schedule.budget -= num_drafts
        return num_drafts

    def settle(self, sequence: Sequence, start: int) -> None:
        """After a step: all tokens but the last are computed; those from `start` on were drafts.

        Only now their blocks can be shared, and the blocks of drafts that were wrong are free.
        """
        sequence.num_computed_tokens = sequence.num_tokens - 1
        self.block_manager.publish(sequence, start, sequence.num_computed_tokens)
        self.block_manager.shrink(sequence, sequence.num_computed_tokens)
        if sequence.is_suspect:  # it has got a token: it was not the cause
            sequence.is_suspect = False
            self.suspects.remove(sequence)
            bisect.insort(self.running, sequence, key=rank)

    def remove(self, sequence: Sequence, *, retract: bool = False) -> None:
        """Take a finished, aborted or failed sequence out and free its blocks.

        `retract` also withdraws its blocks from the prefix cache, as their content cannot be
        trusted. Raises InvariantViolated when it was the last one and blocks are still in use.
        """
        if retract:
            self.block_manager.retract(sequence)
        self.block_manager.free(sequence)
        for queue in (self.running, self.waiting, self.held, self.suspects):
            if sequence in queue:
                queue.remove(sequence)
        if not self.has_work:
            self.block_manager.check_idle()

    def _queue(self, sequence: Sequence) -> None:
        if sequence.is_suspect:
            self.suspects.append(sequence)
        else:
            bisect.insort(self.waiting, sequence, key=rank)

    def _schedule_alone(self, schedule: Schedule, sequence: Sequence) -> None:
        """A step of one sequence; others give up their blocks where it needs them."""
        if self._too_long(sequence):
            schedule.outgrown.append(sequence)
            return
        while len(self.running) >= self.max_num_seqs or not self._extend(sequence):
            self._preempt(self.running[-1])
        self._append_chunk(schedule, sequence, self.max_num_batched_tokens)

    def _make_room_for_priority(self) -> None:
        """Preempt running sequences of a lower priority than the best one that waits for room."""
        while self.waiting and self.running:
            best, worst = self.waiting[0], self.running[-1]
            if worst.request.priority <= best.request.priority or self._can_admit(best):
                return
            self._preempt(worst)

    def _schedule_running(self, schedule: Schedule) -> int:
        """Chunks for running sequences, decodes first; returns the budget that is left.

        Only decodes can lack a block, since a prompt gets all of its blocks at admission, and they
        come in order of rank: the victim is never a sequence that this step has already scheduled.
        """
        budget = self.max_num_batched_tokens
        decodes_first = sorted(
            self.running, key=lambda s: (s.num_tokens - s.num_computed_tokens > 1, rank(s))
        )
        for sequence in decodes_first:
            while sequence.block_table and not self._extend(sequence):
                if len(self.running) == 1:
                    schedule.outgrown.append(sequence)
                    return budget
                self._preempt(self.running[-1])
            if sequence.block_table and budget > 0:  # no blocks: preempted for one before it
                budget -= self._append_chunk(schedule, sequence, budget)
        return budget

    def _schedule_waiting(self, schedule: Schedule, budget: int) -> int:
        """Admit waiting sequences, best first, while slots, blocks and budget last; returns the
        budget that is left.
        """
        while self.waiting and budget > 0:
            sequence = self.waiting[0]
            if self._too_long(sequence):
                schedule.outgrown.append(sequence)  # it grew before it was preempted
                return budget
            if not self._can_admit(sequence):
                return budget
            self._admit(sequence)
            budget -= self._append_chunk(schedule, sequence, budget)
        return budget

    def _too_long(self, sequence: Sequence) -> bool:
        blocks = self.block_manager
        return blocks.num_blocks_for(sequence.num_tokens) > blocks.num_blocks

    def _extend(self, sequence: Sequence) -> bool:
        return self.block_manager.allocate(sequence, sequence.num_tokens)

    def _can_admit(self, sequence: Sequence) -> bool:
        # one spare block for each running sequence, or the newcomer would soon be preempted again
        return len(self.running) < self.max_num_seqs and self.block_manager.can_allocate(
            sequence, sequence.num_tokens, headroom=len(self.running)
        )

    def _admit(self, sequence: Sequence) -> None:
        self._extend(sequence)
        self.waiting.remove(sequence)
        bisect.insort(self.running, sequence, key=rank)
        if sequence.num_cached_tokens is None:
            # a resumed sequence may find some of its output there too
            num_hits = min(sequence.num_computed_tokens, sequence.num_prompt_tokens)
            sequence.num_cached_tokens = num_hits
            sequence.scheduled_s = time.perf_counter()
            self.prefix_cache_queries += sequence.num_prompt_tokens
            self.prefix_cache_hits += num_hits

    def _append_chunk(self, schedule: Schedule, sequence: Sequence, budget: int) -> int:
        start = sequence.num_computed_tokens
        chunk = Chunk(sequence, start, min(sequence.num_tokens - start, budget))
        schedule.chunks.append(chunk)
        self.block_manager.publish(sequence, start, chunk.end)
        return chunk.num_tokens

    def _preempt(self, victim: Sequence) -> None:
        self.num_preemptions += 1
        self.running.remove(victim)
        self.block_manager.free(victim)
        bisect.insort(self.waiting, victim, key=rank)
