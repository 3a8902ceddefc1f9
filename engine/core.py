"""The engine: sequences in, events out, one step at a time. `Engine.step` is the architecture.

Owns the scheduler and the model runner and decides when a sequence is finished. Knows nothing of
sockets, clients or text; engine/process.py feeds it.
"""

import logging
import time
from collections.abc import Iterable
from collections.abc import Sequence as ListLike
from concurrent.futures import Future
from typing import Protocol

from engine.block_manager import BlockManager
from engine.errors import InvariantViolated, RankLost, RequestRejected
from engine.grammar import CompiledGrammar, GrammarError, GrammarState
from engine.grammar_compiler import Grammars
from engine.messages import (
    EngineInfo,
    EngineRequest,
    EngineStats,
    Event,
    Fault,
    Finished,
    FinishReason,
    TokenEvent,
    TokenLogprobs,
)
from engine.recovery import Recovery
from engine.results import ChunkResult
from engine.scheduler import Schedule, Scheduler
from engine.sequence import Chunk, Sequence
from engine.speculation.speculator import Speculator
from engine.step_sizes import StepSizes

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """What computes the chunks; engine/model_runner.py, or a toy in tests."""

    def run(self, chunks: ListLike[Chunk]) -> list[ChunkResult]:
        """Compute all chunks in one forward pass; one result for each, in order."""
        ...

    def rope_theta(self, num_prompt_tokens: int) -> float:
        """The base of the rotary embedding of a sequence with such a prompt."""
        ...

    def close(self) -> None:
        """Let go of whatever other processes compute with it."""
        ...


class Engine:
    """Continuous batching over one model. Every added request ends in exactly one Finished."""

    def __init__(
        self,
        runner: Runner,
        info: EngineInfo,
        *,
        eos_token_ids: Iterable[int],
        max_num_seqs: int,
        max_num_batched_tokens: int,
        enable_prefix_caching: bool = True,
        grammars: Grammars | None = None,
        speculator: Speculator | None = None,
    ) -> None:
        """Without `grammars` requests that have one are rejected."""
        self.runner = runner
        self.grammars = grammars
        self.speculator = speculator
        self.info = info
        self.max_num_seqs = max_num_seqs
        self.eos_token_ids = frozenset(eos_token_ids)
        self.scheduler = Scheduler(
            BlockManager(info.num_blocks, info.block_size, enable_prefix_caching),
            max_num_seqs,
            max_num_batched_tokens,
            info.max_model_len,
        )
        self.recovery = Recovery(self.scheduler)
        self._sequences: dict[str, Sequence] = {}
        self._compiling: dict[str, Future[CompiledGrammar]] = {}  # of the sequences that are held
        self.num_restarts = 0  # engines before this one; engine/process.py knows
        self._num_arrivals = 0
        self._num_finished = 0
        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._num_generation_tokens = 0
        self._step_sizes = StepSizes()
        self._step_time_s = 0.0
        self._model_time_s = 0.0

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    @property
    def is_compiling(self) -> bool:
        """Whether requests wait for their grammars: then `admit_compiled` is to be called."""
        return bool(self._compiling)

    def add(self, request: EngineRequest, *, is_suspect: bool = False) -> list[Event]:
        """Queue a request, to be admitted once its grammar is compiled where it has one.

        A suspect may be what ended an engine: it is computed alone at first. Returns the end of
        one that was lost with its engine right before that. Raises RequestRejected for one that
        can never be served.
        """
        if request.id in self._sequences:
            raise RequestRejected(Fault("invalid_request", f"The id {request.id!r} is in use."))
        if not request.prompt_token_ids:
            raise RequestRejected(Fault("invalid_request", "The prompt has no tokens."))
        vocab_size = self.info.vocab_size
        known = () if request.progress is None else request.progress.token_ids
        ids = (*request.prompt_token_ids, *known, *request.sampling.logit_bias)
        if min(ids) < 0 or max(ids) >= vocab_size:
            raise RequestRejected(
                Fault("invalid_request", f"A token id is not in the vocabulary of {vocab_size}.")
            )
        theta = self.runner.rope_theta(len(request.prompt_token_ids))
        sequence = Sequence(request, self._num_arrivals, theta, is_suspect)
        compiling = self._compile(request)
        if compiling is not None and compiling.done():
            sequence.grammar = _grammar_state(compiling, request)
        is_held = compiling is not None and sequence.grammar is None
        self.scheduler.add(sequence, is_held=is_held)
        if compiling is not None and is_held:
            self._compiling[request.id] = compiling
        self._num_arrivals += 1
        self._sequences[request.id] = sequence
        return self._end_resumed(sequence)

    def admit_compiled(self) -> list[Event]:
        """Let requests go whose grammars are compiled; end those whose grammars cannot be."""
        events: list[Event] = []
        ready = [request_id for request_id, future in self._compiling.items() if future.done()]
        for request_id in ready:
            sequence = self._sequences[request_id]
            try:
                sequence.grammar = _grammar_state(self._compiling.pop(request_id), sequence.request)
            except RequestRejected as exc:
                events.append(self._fail(sequence, exc.fault))
            else:
                self.scheduler.release(sequence)
                events += self._end_resumed(sequence)
        return events

    def abort(self, request_id: str) -> list[Event]:
        """End a request now; an unknown id, perhaps just finished, is a no-op."""
        sequence = self._sequences.get(request_id)
        return [] if sequence is None else [self._finish(sequence, "abort")]

    def step(self) -> list[Event]:
        """Compute one step and return what it led to."""
        started = time.perf_counter()
        schedule = self.scheduler.schedule()
        events: list[Event] = [self._finish(sequence, "length") for sequence in schedule.outgrown]
        try:
            results = self._compute(schedule)
        except (InvariantViolated, RankLost):
            raise
        except Exception as exc:
            return [*events, *self._recover(exc, schedule.chunks)]
        for chunk, result in zip(schedule.chunks, results, strict=True):
            events += self._postprocess(chunk, result)
        self.recovery.step_succeeded()
        self._num_steps += 1
        self._step_sizes.add(schedule.chunks)
        self._step_time_s = time.perf_counter() - started
        return events

    def _compute(self, schedule: Schedule) -> list[ChunkResult]:
        if self.speculator is not None:
            self.speculator.draft(schedule, self.scheduler)
        started = time.perf_counter()
        results = self.runner.run(schedule.chunks) if schedule.chunks else []
        self._model_time_s = time.perf_counter() - started
        if self.speculator is not None:
            self.speculator.learn(schedule.chunks, results)
        return results

    def _recover(self, error: Exception, chunks: ListLike[Chunk]) -> list[Event]:
        """The device or a kernel failed: nothing computed in this step can be trusted."""
        guilty = self.recovery.step_failed(error, chunks)
        logger.error(
            "step failed",
            exc_info=error,
            extra={"fields": {"num_sequences": len(chunks), "num_ended": len(guilty)}},
        )
        fault = Fault("internal", f"The step failed: {error}")
        return [self._fail(sequence, fault) for sequence in guilty]

    def stats(self) -> EngineStats:
        """Counters since the start and the state right now."""
        scheduler, speculator = self.scheduler, self.speculator
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=scheduler.num_waiting,
            num_blocks=self.info.num_blocks,
            num_free_blocks=scheduler.block_manager.num_free_blocks,
            num_restarts=self.num_restarts,
            num_finished=self._num_finished,
            num_steps=self._num_steps,
            num_failed_steps=self.recovery.num_failed_steps,
            num_preemptions=scheduler.num_preemptions,
            prompt_tokens=self._num_prompt_tokens,
            generation_tokens=self._num_generation_tokens,
            prefix_cache_queries=scheduler.prefix_cache_queries,
            prefix_cache_hits=scheduler.prefix_cache_hits,
            num_draft_tokens=0 if speculator is None else speculator.num_draft_tokens,
            num_accepted_tokens=0 if speculator is None else speculator.num_accepted_tokens,
            step_sizes=tuple(self._step_sizes.counts),
            num_step_tokens=self._step_sizes.num_tokens,
            step_time_s=self._step_time_s,
            model_time_s=self._model_time_s,
        )

    def close(self) -> None:
        """End the processes that compute or compile for this engine."""
        self.runner.close()
        if self.grammars is not None:
            self.grammars.close()

    def _compile(self, request: EngineRequest) -> Future[CompiledGrammar] | None:
        if request.grammar is None:
            return None
        if self.grammars is None:
            raise RequestRejected(Fault("invalid_grammar", "This engine takes no grammars."))
        return self.grammars.compile(request.grammar)

    def _postprocess(self, chunk: Chunk, result: ChunkResult) -> list[Event]:
        """Advance one sequence by what was computed for it."""
        sequence = chunk.sequence
        sequence.num_computed_tokens = chunk.end
        self._num_prompt_tokens += max(0, min(chunk.end, sequence.num_prompt_tokens) - chunk.start)
        # after a preemption positions are computed again: keep what is known already
        sequence.prompt_logprobs += result.prompt_logprobs[
            max(0, len(sequence.prompt_logprobs) - chunk.start) :
        ]
        if result.failed:
            return [self._fail(sequence, _failure(sequence))]
        if not result.token_ids:
            return []
        return self._append_tokens(sequence, result)

    def _append_tokens(self, sequence: Sequence, result: ChunkResult) -> list[Event]:
        """Take what was sampled, up to what ends the sequence."""
        is_first = sequence.num_output_tokens == 0
        prompt_logprobs: list[TokenLogprobs | None] | None = None
        if is_first and sequence.sampling.prompt_logprobs is not None:
            prompt_logprobs = [None, *sequence.prompt_logprobs]
        events: list[Event] = []
        if sequence.sampling.max_tokens == 0:  # only the prompt was wanted
            if prompt_logprobs is not None:
                events.append(TokenEvent(sequence.id, [], None, prompt_logprobs))
            return [*events, self._finish(sequence, "length")]
        num_before = sequence.num_tokens
        stop_token_id = None
        for token_id in result.token_ids:
            sequence.token_ids.append(token_id)
            if self._is_stop(sequence, token_id):
                stop_token_id = token_id
            if stop_token_id is not None or self._reached_limit(sequence):
                break
        self.scheduler.settle(sequence, num_before)
        self._num_generation_tokens += sequence.num_tokens - num_before
        num_sent = sequence.num_tokens - num_before - (stop_token_id is not None)
        if num_sent or prompt_logprobs is not None:
            token_ids = result.token_ids[:num_sent]
            logprobs = result.logprobs[:num_sent] if result.logprobs and num_sent else None
            closed_from = None if sequence.grammar is None else sequence.grammar.closed_from
            timing = sequence.timing() if is_first else None
            events.append(
                TokenEvent(sequence.id, token_ids, logprobs, prompt_logprobs, closed_from, timing)
            )
        return [*events, *self._end(sequence, stop_token_id)]

    def _end_resumed(self, sequence: Sequence) -> list[Event]:
        """The end of a sequence whose engine was lost when all but that had been sent."""
        if sequence.request.progress is None or sequence.id in self._compiling:
            return []
        return self._end(sequence, None)

    def _end(self, sequence: Sequence, stop_token_id: int | None) -> list[Event]:
        """The terminal event where the newest token is the last one, else nothing."""
        grammar = sequence.grammar
        if stop_token_id is not None or (grammar is not None and _completes(grammar, sequence)):
            is_early = grammar is not None and grammar.is_closed_early
            reason: FinishReason = "length" if is_early else "stop"
            return [self._finish(sequence, reason, stop_token_id=stop_token_id)]
        if self._reached_limit(sequence):
            return [self._finish(sequence, "length")]
        return []

    def _is_stop(self, sequence: Sequence, token_id: int) -> bool:
        return token_id in sequence.sampling.stop_token_ids or (
            token_id in self.eos_token_ids and not sequence.sampling.ignore_eos
        )

    def _reached_limit(self, sequence: Sequence) -> bool:
        return (
            sequence.num_output_tokens >= sequence.sampling.max_tokens
            or sequence.num_tokens >= self.info.max_model_len
        )

    def _fail(self, sequence: Sequence, fault: Fault) -> Finished:
        return self._finish(sequence, "error", fault=fault)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        *,
        stop_token_id: int | None = None,
        fault: Fault | None = None,
    ) -> Finished:
        self._num_finished += 1
        self.scheduler.remove(sequence, retract=fault is not None)
        del self._sequences[sequence.id]
        self._compiling.pop(sequence.id, None)
        return Finished(
            sequence.id,
            reason,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_cached_tokens=sequence.num_cached_tokens or 0,
            num_output_tokens=sequence.num_output_tokens,
            stop_token_id=stop_token_id,
            fault=fault,
        )


def _grammar_state(compiling: Future[CompiledGrammar], request: EngineRequest) -> GrammarState:
    """The state of a sequence. Raises RequestRejected where the grammar was not compiled."""
    try:
        state = GrammarState(compiling.result())
    except GrammarError as exc:
        raise RequestRejected(Fault("invalid_grammar", str(exc))) from exc
    except Exception as exc:
        raise RequestRejected(Fault("internal", f"A grammar was not compiled: {exc}")) from exc
    if request.progress is not None:
        state.replay(request.progress, request.sampling.max_tokens)
    return state


def _completes(grammar: GrammarState, sequence: Sequence) -> bool:
    grammar.update(sequence.output_ids)
    return grammar.is_complete


def _failure(sequence: Sequence) -> Fault:
    """Why nothing could be sampled."""
    if sequence.grammar is not None and sequence.grammar.problem is not None:
        return Fault("invalid_grammar", sequence.grammar.problem)
    return Fault("numerical_error", "The model's output is NaN.")
