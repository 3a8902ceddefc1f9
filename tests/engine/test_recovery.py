"""engine/recovery.py: a step that fails costs nothing but time, except who made it fail."""

from collections.abc import Callable
from collections.abc import Sequence as ListLike

import msgspec
import pytest

from engine.core import Engine
from engine.messages import Event, Finished, Grammar, Progress, TokenEvent
from engine.recovery import is_out_of_memory
from engine.results import ChunkResult
from engine.sequence import Chunk
from tests.engine.random_runner import random_engine, request_of
from tests.engine.toy_runner import ToyRunner, expected_output, make_request, toy_engine

Fails = Callable[[ListLike[Chunk]], Exception | None]


class FailingRunner:
    """Asks before each step, and after it, whether to fail."""

    def __init__(self, runner: ToyRunner, fails: Fails, *, is_late: bool = False) -> None:
        self.runner = runner
        self.fails = fails
        self.is_late = is_late
        self.steps: list[list[str]] = []

    def run(self, chunks: ListLike[Chunk]) -> list[ChunkResult]:
        self.steps.append([chunk.sequence.id for chunk in chunks])
        error = self.fails(chunks)
        if error is not None and not self.is_late:
            raise error
        results = self.runner.run(chunks)
        if error is not None:
            raise error
        return results

    def rope_theta(self, num_prompt_tokens: int) -> float:
        return 0.0

    def close(self) -> None:
        pass


def drain(engine: Engine) -> tuple[dict[str, list[int]], dict[str, Finished]]:
    outputs: dict[str, list[int]] = {}
    finished: dict[str, Finished] = {}
    for _ in range(5000):
        if not engine.has_work:
            break
        for event in engine.step():
            collect(event, outputs, finished)
    assert not engine.has_work, "the engine does not get its work done"
    return outputs, finished


def collect(event: Event, outputs: dict[str, list[int]], finished: dict[str, Finished]) -> None:
    if isinstance(event, TokenEvent):
        outputs.setdefault(event.id, []).extend(event.token_ids)
    else:
        assert event.id not in finished
        finished[event.id] = event


def failing_engine(fails: Fails, *, is_late: bool = False) -> tuple[Engine, FailingRunner]:
    engine, runner = toy_engine(num_blocks=60, max_num_batched_tokens=12)
    failing = FailingRunner(runner, fails, is_late=is_late)
    engine.runner = failing
    return engine, failing


@pytest.mark.parametrize("is_late", [False, True])
def test_the_one_that_fails_alone_ends_alone(is_late: bool) -> None:
    def fails(chunks: ListLike[Chunk]) -> Exception | None:
        poisoned = any(
            chunk.sequence.id == "bad" and chunk.sequence.num_output_tokens >= 3 for chunk in chunks
        )
        return RuntimeError("the device is on fire") if poisoned else None

    engine, runner = failing_engine(fails, is_late=is_late)
    prompts = {"a": [1, 2, 3], "bad": [4, 5], "b": [1, 2, 3, 4], "c": [7] * 9, "d": [8]}
    for name, prompt in prompts.items():
        engine.add(make_request(name, prompt, max_tokens=12))
    outputs, finished = drain(engine)
    bad = finished.pop("bad")
    assert bad.fault is not None and "on fire" in bad.fault.message
    assert outputs.pop("bad") == expected_output(prompts["bad"], 3)
    assert {event.reason for event in finished.values()} == {"length"}
    for name, output in outputs.items():
        assert output == expected_output(prompts[name], 12)
    assert engine.stats().num_failed_steps == 2  # with the others, and alone
    assert ["bad"] in runner.steps
    engine.scheduler.block_manager.check_idle()


def test_a_failure_that_does_not_come_again_ends_nothing() -> None:
    failures = iter([None, None, RuntimeError("once"), *[None] * 1000])
    engine, _ = failing_engine(lambda chunks: next(failures))
    for name in "abcd":
        engine.add(make_request(name, [1, 2, 3, ord(name) % 7], max_tokens=10))
    outputs, finished = drain(engine)
    assert {event.reason for event in finished.values()} == {"length"}
    for name, output in outputs.items():
        assert output == expected_output([1, 2, 3, ord(name) % 7], 10)


def test_what_a_failed_step_wrote_is_hit_by_nobody() -> None:
    failures = iter([RuntimeError("once"), *[None] * 1000])
    engine, runner = failing_engine(lambda chunks: next(failures))
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    engine.add(make_request("a", prompt, max_tokens=3))
    engine.step()
    assert engine.scheduler.block_manager.num_free_blocks == 60
    assert not engine.scheduler.block_manager._block_of_hash
    outputs, _ = drain(engine)
    assert outputs["a"] == expected_output(prompt, 3)
    assert runner.steps == [["a"], ["a"], ["a"], ["a"]]


def test_the_end_of_another_sequence_in_a_failed_step_is_not_lost() -> None:
    """One that has outgrown the cache ends in the step in which the model fails."""
    engine, runner = toy_engine(num_blocks=4, block_size=4)
    failing = FailingRunner(runner, lambda chunks: None)
    engine.runner = failing
    engine.add(make_request("a", [1, 2, 3], max_tokens=6))
    engine.step()
    grown = make_request("grown", [4], max_tokens=40)
    engine.add(msgspec.structs.replace(grown, progress=Progress(expected_output([4], 20))))
    failing.fails = lambda chunks: RuntimeError("once")
    (end,) = engine.step()
    assert isinstance(end, Finished)
    assert (end.id, end.reason, end.num_output_tokens) == ("grown", "length", 20)
    assert engine.stats().num_failed_steps == 1
    failing.fails = lambda chunks: None
    _, finished = drain(engine)
    assert finished["a"].reason == "length"


def test_grammar_penalties_and_noise_begin_anew() -> None:
    """A step that fails after it has sampled leaves no trace in a sequence's state."""
    schema = Grammar(
        kind="json_schema",
        text='{"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 9}',
    )
    requests = [
        request_of(str(i), schema if i % 2 else None, max_tokens=40, seed=i, frequency_penalty=0.4)
        for i in range(4)
    ]
    calm = random_engine()
    for request in requests:
        calm.add(request)
    expected = drain(calm)
    stormy = random_engine()
    count = 0

    def every_third(chunks: ListLike[Chunk]) -> Exception | None:
        nonlocal count
        count += 1
        return RuntimeError("now and then") if count % 9 == 0 else None

    stormy.runner = FailingRunner(stormy.runner, every_third, is_late=True)  # type: ignore[arg-type]
    for request in requests:
        stormy.add(request)
    outputs, finished = drain(stormy)
    assert stormy.stats().num_failed_steps > 3
    for request_id, end in finished.items():
        if end.reason != "error":
            assert outputs[request_id] == expected[0][request_id]
            assert end.reason == expected[1][request_id].reason


class TestOutOfMemory:
    def engine(self, most: int) -> tuple[Engine, FailingRunner]:
        def fails(chunks: ListLike[Chunk]) -> Exception | None:
            num_tokens = sum(chunk.num_tokens for chunk in chunks)
            return MemoryError("no memory") if num_tokens > most else None

        return failing_engine(fails)

    def test_the_step_is_retried_with_fewer_tokens(self) -> None:
        engine, _ = self.engine(most=3)
        for name in "abcd":
            engine.add(make_request(name, [ord(name) % 5] * 9, max_tokens=8))
        outputs, finished = drain(engine)
        assert {event.reason for event in finished.values()} == {"length"}
        for name, output in outputs.items():
            assert output == expected_output([ord(name) % 5] * 9, 8)
        assert engine.scheduler.max_num_batched_tokens <= 3

    def test_no_memory_for_a_single_token_ends_it(self) -> None:
        engine, _ = self.engine(most=0)
        engine.add(make_request("a", [1, 2, 3], max_tokens=8))
        _, finished = drain(engine)
        assert finished["a"].fault is not None

    def test_steps_grow_again(self) -> None:
        engine, runner = self.engine(most=3)
        engine.add(make_request("a", [1] * 9, max_tokens=3))
        drain(engine)
        small = engine.scheduler.max_num_batched_tokens
        runner.fails = lambda chunks: None
        for i in range(30):
            engine.add(make_request(str(i), [i], max_tokens=40))
        drain(engine)
        assert small < engine.scheduler.max_num_batched_tokens == 12

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (MemoryError(), True),
            (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), True),
            (RuntimeError("CUDA error: device-side assert"), False),
            (ValueError("can't allocate memory"), False),
        ],
    )
    def test_what_counts(self, error: Exception, expected: bool) -> None:
        assert is_out_of_memory(error) == expected


def test_a_suspect_is_computed_alone_until_it_has_a_token() -> None:
    engine, runner = failing_engine(lambda chunks: None)
    engine.add(make_request("a", [1, 2, 3], max_tokens=6))
    engine.add(make_request("suspect", [5] * 30, max_tokens=4), is_suspect=True)
    engine.add(make_request("b", [1, 2], max_tokens=6))
    outputs, _ = drain(engine)
    assert runner.steps[:3] == [["suspect"]] * 3  # 30 tokens, 12 in a step
    assert all("suspect" not in step or len(step) > 1 for step in runner.steps[3:5])
    assert outputs["suspect"] == expected_output([5] * 30, 4)
    assert outputs["a"] == expected_output([1, 2, 3], 6)


def test_a_suspect_takes_blocks_from_others() -> None:
    engine, _ = toy_engine(num_blocks=8, max_num_seqs=2)
    for name in "ab":
        engine.add(make_request(name, [ord(name) % 9] * 8, max_tokens=7))
    (first,) = [event for event in engine.step() if isinstance(event, TokenEvent)]
    engine.add(make_request("suspect", [5] * 20, max_tokens=4), is_suspect=True)
    outputs, finished = drain(engine)
    assert {event.reason for event in finished.values()} == {"length"}
    assert outputs["suspect"] == expected_output([5] * 20, 4)
    assert first.id == "a"
    assert [*first.token_ids, *outputs["a"]] == expected_output([ord("a") % 9] * 8, 7)
