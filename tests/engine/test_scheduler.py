"""Scheduling policy, one rule a test; test_core_properties.py has invariants under random load."""

import pytest

from engine.block_manager import BlockManager
from engine.errors import RequestRejected
from engine.scheduler import Schedule, Scheduler
from engine.sequence import Sequence
from tests.engine.toy_runner import make_request


def make_scheduler(
    *, num_blocks: int = 64, block_size: int = 4, max_num_seqs: int = 4, budget: int = 8
) -> Scheduler:
    return Scheduler(BlockManager(num_blocks, block_size), max_num_seqs, budget, max_model_len=256)


class Arrivals:
    """Makes sequences in order of arrival, each with tokens of its own."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.count = 0

    def add(self, num_tokens: int, priority: int = 0, token: int | None = None) -> Sequence:
        tokens = [self.count if token is None else token] * num_tokens
        sequence = Sequence(make_request(str(self.count), tokens, priority=priority), self.count)
        self.count += 1
        self.scheduler.add(sequence)
        return sequence


def run(schedule: Schedule) -> None:
    """Pretend the step was computed and every sequence that reached its end got a token."""
    for chunk in schedule.chunks:
        samples = chunk.samples
        chunk.sequence.num_computed_tokens = chunk.end
        if samples:
            chunk.sequence.token_ids.append(1000 + chunk.end)


def chunks(schedule: Schedule) -> list[tuple[str, int, int]]:
    return [(chunk.sequence.id, chunk.start, chunk.num_tokens) for chunk in schedule.chunks]


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    scheduler = make_scheduler(budget=8)
    Arrivals(scheduler).add(19)
    seen = []
    for _ in range(4):
        schedule = scheduler.schedule()
        seen += chunks(schedule)
        run(schedule)
    assert seen == [("0", 0, 8), ("0", 8, 8), ("0", 16, 3), ("0", 19, 1)]


def test_decodes_come_before_a_prompt_of_higher_priority() -> None:
    scheduler = make_scheduler(budget=4)
    arrivals = Arrivals(scheduler)
    arrivals.add(2)
    run(scheduler.schedule())
    arrivals.add(40, priority=-1)
    for _ in range(3):
        schedule = scheduler.schedule()
        assert chunks(schedule)[0][0] == "0"
        assert [size for _, _, size in chunks(schedule)] == [1, 3]
        run(schedule)


def test_the_best_priority_is_admitted_first_then_the_earliest() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    arrivals = Arrivals(scheduler)
    arrivals.add(2, priority=1)
    arrivals.add(2)
    arrivals.add(2)
    assert chunks(scheduler.schedule()) == [("1", 0, 2)]


def test_a_better_priority_preempts_when_there_is_no_slot() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    arrivals = Arrivals(scheduler)
    low = arrivals.add(2, priority=1)
    run(scheduler.schedule())
    arrivals.add(2, priority=0)
    assert chunks(scheduler.schedule()) == [("1", 0, 2)]
    assert scheduler.waiting == [low]
    assert low.block_table == []
    assert scheduler.num_preemptions == 1


def test_an_equal_priority_waits() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    arrivals = Arrivals(scheduler)
    arrivals.add(2)
    run(scheduler.schedule())
    arrivals.add(2)
    assert [name for name, _, _ in chunks(scheduler.schedule())] == ["0"]
    assert scheduler.num_preemptions == 0


def test_without_blocks_the_latest_arrival_is_preempted_and_comes_back_from_the_cache() -> None:
    scheduler = make_scheduler(num_blocks=5, block_size=4, budget=16)
    arrivals = Arrivals(scheduler)
    first = arrivals.add(7)
    second = arrivals.add(7)
    run(scheduler.schedule())
    run(scheduler.schedule())  # both now have 9 tokens: five blocks hold only one of them
    schedule = scheduler.schedule()
    assert chunks(schedule) == [("0", 8, 1)]
    assert scheduler.waiting == [second]
    run(schedule)
    scheduler.remove(first)
    assert chunks(scheduler.schedule()) == [("1", 8, 1)]  # two full blocks were still cached


def test_a_sequence_that_fills_the_cache_alone_is_reported() -> None:
    scheduler = make_scheduler(num_blocks=2, block_size=4)
    one = Arrivals(scheduler).add(8)
    run(scheduler.schedule())
    schedule = scheduler.schedule()
    assert schedule.outgrown == [one]
    assert schedule.chunks == []


def test_equal_prompts_of_one_step_share_blocks() -> None:
    scheduler = make_scheduler(budget=64)
    arrivals = Arrivals(scheduler)
    arrivals.add(9, token=1)
    arrivals.add(9, token=1)
    assert chunks(scheduler.schedule()) == [("0", 0, 9), ("1", 8, 1)]


def test_refuses_what_can_never_fit() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=4)
    arrivals = Arrivals(scheduler)
    with pytest.raises(RequestRejected) as too_big:
        arrivals.add(17)
    assert too_big.value.fault.code == "kv_cache_exceeded"
    with pytest.raises(RequestRejected) as too_long:
        arrivals.add(256)
    assert too_long.value.fault.code == "context_length_exceeded"
    assert not scheduler.has_work


def test_newcomers_leave_a_block_for_each_running_sequence() -> None:
    scheduler = make_scheduler(num_blocks=3, block_size=4)
    arrivals = Arrivals(scheduler)
    arrivals.add(4)
    run(scheduler.schedule())
    arrivals.add(4)  # one block would do, but then nobody could grow
    assert [name for name, _, _ in chunks(scheduler.schedule())] == ["0"]


class TestDrafts:
    def decoding(self, scheduler: Scheduler, num_tokens: int, count: int = 1) -> Schedule:
        """A step in which sequences of so many tokens decode."""
        arrivals = Arrivals(scheduler)
        for _ in range(count):
            arrivals.add(num_tokens - 1)
        run(scheduler.schedule())
        return scheduler.schedule()

    def test_blocks_are_there_for_as_many_as_fit(self) -> None:
        scheduler = make_scheduler(num_blocks=3, block_size=4, budget=32)
        schedule = self.decoding(scheduler, 6)
        assert scheduler.reserve_drafts(schedule, 0, 4) == 4
        (sequence,) = scheduler.running
        assert len(sequence.block_table) == 3
        assert scheduler.reserve_drafts(schedule, 0, 20) == 6  # the whole cache
        assert schedule.budget == 32 - 1 - 4 - 6

    def test_the_budget_is_what_all_else_leaves(self) -> None:
        scheduler = make_scheduler(budget=9)
        schedule = self.decoding(scheduler, 4, count=3)
        assert schedule.budget == 6
        assert [scheduler.reserve_drafts(schedule, i, 4) for i in range(3)] == [4, 2, 0]

    def test_settling_gives_back_the_blocks_of_wrong_drafts(self) -> None:
        scheduler = make_scheduler(block_size=2, budget=16)
        schedule = self.decoding(scheduler, 4)
        scheduler.reserve_drafts(schedule, 0, 6)
        (sequence,) = scheduler.running
        assert len(sequence.block_table) == 5
        sequence.token_ids += [7, 8, 9]  # two drafts were right
        scheduler.settle(sequence, start=4)
        assert sequence.num_computed_tokens == 6 and len(sequence.block_table) == 3
        scheduler.add(again := Sequence(make_request("again", [*sequence.token_ids]), 9))
        schedule = scheduler.schedule()
        assert again.num_cached_tokens == 6  # and those of right ones are shared
