"""The engine under random arrivals, aborts and steps: invariants after each step, and right
answers.

ToyRunner's cache holds hashes of prefixes, so a wrong block, a stale prefix-cache hit or a lost
token shows as a failed assertion or as an output that differs from the sequence's own.
"""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from engine.errors import RequestRejected
from engine.messages import EngineRequest, Event, Finished, TokenEvent
from engine.sequence import Sequence
from tests.engine.speculation.drafting import OracleProposer, eager
from tests.engine.toy_runner import VOCAB_SIZE, expected_output, make_request, toy_engine

# few distinct tokens and shared beginnings, so that prompts often have equal prefixes
PREFIXES = [[1] * 13, [2, 3] * 6, []]
prompts = st.builds(
    lambda prefix, rest: prefix + rest,
    st.sampled_from(PREFIXES),
    st.lists(st.integers(0, 3), min_size=1, max_size=14),
)


def what_follows(sequence: Sequence, count: int) -> list[int]:
    return expected_output(sequence.token_ids, count)


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(2, 14),
        block_size=st.integers(1, 5),
        max_num_seqs=st.integers(1, 5),
        extra_budget=st.integers(0, 6),
        caching=st.booleans(),
        speculation=st.none() | st.tuples(st.integers(0, 999), st.sampled_from([0.0, 0.3, 1.0])),
    )
    def build(
        self,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        extra_budget: int,
        caching: bool,
        speculation: tuple[int, float] | None,
    ) -> None:
        speculator = None
        if speculation is not None:
            seed, error_rate = speculation
            speculator = eager(
                OracleProposer(what_follows, VOCAB_SIZE, seed=seed, error_rate=error_rate)
            )
        self.engine, self.runner = toy_engine(
            speculator=speculator,
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + extra_budget,
            enable_prefix_caching=caching,
        )
        self.requests: dict[str, EngineRequest] = {}
        self.outputs: dict[str, list[int]] = {}
        self.finished: dict[str, Finished] = {}

    @rule(prompt=prompts, max_tokens=st.integers(0, 12), priority=st.integers(-1, 1))
    def add(self, prompt: list[int], max_tokens: int, priority: int) -> None:
        request = make_request(str(len(self.requests)), prompt, max_tokens, priority)
        try:
            self.engine.add(request)
        except RequestRejected:
            blocks = self.engine.scheduler.block_manager
            assert len(prompt) > blocks.num_blocks * blocks.block_size
            return
        self.requests[request.id] = request
        self.outputs[request.id] = []

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        was_live = request_id not in self.finished
        events = self.engine.abort(request_id)
        assert bool(events) == was_live
        self.collect(events)

    @precondition(lambda self: self.engine.has_work)
    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.engine.has_work:
                decoding = [
                    s.id
                    for s in self.engine.scheduler.running
                    if s.num_tokens - s.num_computed_tokens == 1
                ]
                preemptions = self.engine.scheduler.num_preemptions
                before = {request_id: len(self.outputs[request_id]) for request_id in decoding}
                self.collect(self.engine.step())
                if self.engine.scheduler.num_preemptions == preemptions:
                    # arrivals never stall a running decode
                    for request_id in decoding:
                        advanced = len(self.outputs[request_id]) > before[request_id]
                        assert advanced or request_id in self.finished

    def collect(self, events: list[Event]) -> None:
        for event in events:
            assert event.id not in self.finished, "an event after the terminal one"
            if isinstance(event, TokenEvent):
                self.outputs[event.id] += event.token_ids
            else:
                self.finished[event.id] = event

    @invariant()
    def blocks_are_accounted_for(self) -> None:
        scheduler = self.engine.scheduler
        blocks = scheduler.block_manager
        used = Counter(block for sequence in scheduler.running for block in sequence.block_table)
        assert len(used) + blocks.num_free_blocks == blocks.num_blocks
        assert all(blocks._ref_counts[block] == count for block, count in used.items())
        assert not set(used) & set(blocks._free)
        assert all(not sequence.block_table for sequence in scheduler.waiting)
        assert len(scheduler.running) <= scheduler.max_num_seqs
        for sequence in scheduler.running:
            assert len(sequence.block_table) <= blocks.num_blocks_for(sequence.num_tokens)
            assert len(set(sequence.block_table)) == len(sequence.block_table)
            assert sequence.num_computed_tokens < sequence.num_tokens
        if self.runner.num_tokens_per_step:
            assert self.runner.num_tokens_per_step[-1] <= scheduler.max_num_batched_tokens
        live = {sequence.id for sequence in scheduler.running + scheduler.waiting}
        assert live == set(self.requests) - set(self.finished)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(20_000):
            if not self.engine.has_work:
                break
            self.collect(self.engine.step())
        assert not self.engine.has_work, "the engine does not get its work done"
        self.engine.scheduler.block_manager.check_idle()
        assert set(self.finished) == set(self.requests)
        for request_id, event in self.finished.items():
            request = self.requests[request_id]
            output = self.outputs[request_id]
            assert output == expected_output(request.prompt_token_ids, len(output))
            assert event.num_output_tokens == len(output)
            if event.reason == "length" and len(output) < request.sampling.max_tokens:
                blocks = self.engine.scheduler.block_manager
                capacity = min(
                    blocks.num_blocks * blocks.block_size, self.engine.info.max_model_len
                )
                assert len(request.prompt_token_ids) + len(output) >= capacity


EngineMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=40)
TestEngine = EngineMachine.TestCase
