"""When steps get drafts, how many are right, and what that does to the number of steps."""

from collections.abc import Callable
from collections.abc import Sequence as ListLike
from itertools import chain

import pytest

from engine.core import Engine
from engine.messages import Event, TokenEvent
from engine.results import ChunkResult
from engine.sequence import Chunk, Sequence
from engine.speculation.ends import Ends
from engine.speculation.ngram_proposer import NgramProposer
from engine.speculation.planner import Planner
from engine.speculation.proposer import Proposer
from engine.speculation.speculator import Speculator
from tests.engine.speculation.drafting import EagerPlanner, OracleProposer, eager
from tests.engine.toy_runner import (
    VOCAB_SIZE,
    ToyRunner,
    expected_output,
    make_request,
    toy_engine,
)


class AlwaysOffering(OracleProposer):
    """Right, and never modest; knows the toy's output."""

    def __init__(self, error_rate: float = 0.0) -> None:
        super().__init__(
            lambda sequence, count: expected_output(sequence.token_ids, count),
            VOCAB_SIZE,
            error_rate=error_rate,
        )
        self.num_declined = 0

    def offer(self, sequence: Sequence, max_drafts: int) -> list[float]:
        return [0.9] * max_drafts

    def declined(self) -> None:
        self.num_declined += 1


class TimedRunner(ToyRunner):
    """A toy whose steps take what a function of their tokens says, on a clock of their own."""

    def __init__(self, block_size: int, seconds: Callable[[int], float]) -> None:
        super().__init__(block_size)
        self.now = 0.0
        self._seconds = seconds

    def run(self, chunks: ListLike[Chunk]) -> list[ChunkResult]:
        results = super().run(chunks)
        self.now += self._seconds(sum(chunk.num_tokens for chunk in chunks))
        return results


def timed_engine(
    proposer: Proposer, seconds: Callable[[int], float], max_model_len: int = 1000
) -> tuple[Engine, TimedRunner]:
    runner = TimedRunner(4, seconds)
    speculator = Speculator(
        proposer, Planner(), Ends((), max_model_len), 5, clock=lambda: runner.now
    )
    engine, _ = toy_engine(
        num_blocks=300,
        max_model_len=max_model_len,
        max_num_batched_tokens=64,
        speculator=speculator,
    )
    engine.runner = runner
    return engine, runner


def drain(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return events


def test_right_drafts_come_in_one_event_and_save_steps() -> None:
    engine, runner = toy_engine(speculator=eager(AlwaysOffering(), max_drafts=4))
    engine.add(make_request("a", [1, 2, 3], max_tokens=11))
    *events, _ = drain(engine)
    token_ids = [event.token_ids for event in events if isinstance(event, TokenEvent)]
    assert list(chain(*token_ids)) == expected_output([1, 2, 3], 11)
    assert list(map(len, token_ids)) == [1, 5, 5]
    assert runner.num_tokens_per_step == [3, 5, 5]
    stats = engine.stats()
    assert (stats.num_draft_tokens, stats.num_accepted_tokens) == (8, 8)
    assert stats.generation_tokens == 11 and stats.num_steps == 3


def test_wrong_drafts_cost_nothing_but_time() -> None:
    engine, _ = toy_engine(speculator=eager(AlwaysOffering(error_rate=1.0), max_drafts=4))
    engine.add(make_request("a", [1, 2, 3], max_tokens=6))
    drain(engine)
    stats = engine.stats()
    assert stats.num_draft_tokens > stats.num_accepted_tokens
    assert stats.num_accepted_tokens <= 1  # a wrong guess at random may be right
    assert stats.generation_tokens == 6


def test_prompts_come_before_drafts() -> None:
    engine, runner = toy_engine(speculator=eager(AlwaysOffering()), max_num_batched_tokens=8)
    engine.add(make_request("a", [1, 2, 3], max_tokens=20))
    engine.step()
    engine.add(make_request("b", [4] * 16, max_tokens=1))
    engine.step()
    engine.step()
    assert runner.num_tokens_per_step == [3, 8, 8]
    assert engine.stats().num_draft_tokens == 0


def test_the_budget_of_a_step_is_kept() -> None:
    engine, runner = toy_engine(speculator=eager(AlwaysOffering()), max_num_batched_tokens=7)
    for name in "abcd":
        engine.add(make_request(name, [1, 2, ord(name) % 5], max_tokens=30))
    drain(engine)
    assert max(runner.num_tokens_per_step) == 7
    assert engine.stats().num_accepted_tokens > 0


@pytest.mark.parametrize(("max_tokens", "max_model_len"), [(5, 48), (40, 9)])
def test_nothing_is_computed_behind_the_last_token(max_tokens: int, max_model_len: int) -> None:
    speculator = eager(AlwaysOffering(), max_drafts=9, max_model_len=max_model_len)
    engine, runner = toy_engine(
        speculator=speculator, max_model_len=max_model_len, max_num_batched_tokens=40
    )
    engine.add(make_request("a", [1, 2, 3], max_tokens=max_tokens))
    drain(engine)
    num_output = min(max_tokens, max_model_len - 3)
    assert runner.num_tokens_per_step == [3, num_output - 1]


def test_no_block_is_kept_for_drafts_that_were_wrong() -> None:
    engine, _ = toy_engine(
        block_size=1, speculator=eager(AlwaysOffering(error_rate=1.0), max_drafts=5)
    )
    engine.add(make_request("a", [1, 2, 3], max_tokens=9))
    for _ in range(4):
        engine.step()
        (sequence,) = engine.scheduler.running
        assert len(sequence.block_table) == sequence.num_tokens - 1


def test_without_spare_blocks_there_are_fewer_drafts_and_nobody_is_preempted() -> None:
    engine, _ = toy_engine(
        num_blocks=9, block_size=2, speculator=eager(AlwaysOffering(), max_drafts=8)
    )
    engine.add(make_request("a", [1, 2, 3, 4], max_tokens=5))
    engine.add(make_request("b", [4, 3, 2, 1], max_tokens=5))
    drain(engine)
    assert engine.stats().num_preemptions == 0
    assert engine.stats().num_accepted_tokens > 0


def test_drafts_are_shared_once_they_are_right_and_never_before() -> None:
    """ToyRunner's cache finds out a block whose content is not what its hash says."""
    for error_rate in (0.0, 1.0):
        engine, _ = toy_engine(speculator=eager(AlwaysOffering(error_rate), max_drafts=7))
        engine.add(make_request("a", [1, 2, 3], max_tokens=14))
        drain(engine)
        answer = expected_output([1, 2, 3], 14)
        engine.add(make_request("b", [1, 2, 3, *answer], max_tokens=3))
        drain(engine)
        assert engine.stats().prefix_cache_hits == 16


class TestAdaptive:
    def test_drafts_where_steps_take_the_same_whatever_is_in_them(self) -> None:
        engine, runner = timed_engine(AlwaysOffering(), lambda n: 1.0)
        engine.add(make_request("a", [1, 2, 3], max_tokens=120))
        drain(engine)
        assert runner.now < 30

    def test_none_where_each_token_costs_as_much_as_the_first(self) -> None:
        proposer = AlwaysOffering(error_rate=0.5)
        engine, runner = timed_engine(proposer, lambda n: float(n))
        engine.add(make_request("a", [1, 2, 3], max_tokens=500))
        drain(engine)
        plain = 3 + 499
        assert runner.now < 1.05 * plain
        assert proposer.num_declined > 400

    def test_guesses_are_judged_without_being_computed(self) -> None:
        """An n-gram lookup that is never right costs no draft after the first few."""
        engine, runner = timed_engine(NgramProposer(), lambda n: 0.5 + 0.5 * n)
        engine.add(make_request("a", [1, 2, 3], max_tokens=900))
        drain(engine)
        # tokens of the toy are as good as random
        assert engine.stats().num_draft_tokens < 15
        assert runner.now < 1.02 * (2 + 899)

    def test_many_sequences_without_drafts_are_looked_at_less_often(self) -> None:
        class Counting(AlwaysOffering):
            num_offers = 0

            def offer(self, sequence: Sequence, max_drafts: int) -> list[float]:
                Counting.num_offers += 1
                return []

        engine, _ = toy_engine(
            num_blocks=900,
            max_num_seqs=32,
            max_num_batched_tokens=256,
            max_model_len=200,
            speculator=Speculator(Counting(), EagerPlanner(), Ends((), 200), 5),
        )
        for i in range(32):
            engine.add(make_request(str(i), [i, 1, 2], max_tokens=100))
        drain(engine)
        assert Counting.num_offers < 32 * 100 / 3
