"""Steps are counted by the tokens that they compute."""

from engine.messages import STEP_TOKEN_BOUNDS
from engine.sequence import Chunk, Sequence
from engine.step_sizes import StepSizes
from tests.engine.toy_runner import make_request, toy_engine


def test_a_step_is_counted_at_the_bound_that_it_does_not_exceed() -> None:
    sizes = StepSizes()
    sequence = Sequence(make_request("a", [1]), 0)
    for num_tokens in (1, 8, 9, 16385):
        sizes.add([Chunk(sequence, 0, num_tokens)])
    counts = dict(zip((*STEP_TOKEN_BOUNDS, None), sizes.counts, strict=True))
    assert [bound for bound, count in counts.items() if count == 1] == [1, 8, 16, None]
    assert sum(counts.values()) == 4
    assert sizes.num_tokens == 1 + 8 + 9 + 16385


def test_the_engine_counts_every_step() -> None:
    engine, _ = toy_engine(max_num_batched_tokens=8)
    engine.add(make_request("a", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], max_tokens=3))
    while engine.has_work:
        engine.step()
    stats = engine.stats()
    assert stats.num_steps == 4  # eight tokens of the prompt, two, and one each
    assert stats.step_sizes[:3] == (2, 2, 0)
    assert stats.num_step_tokens == 8 + 2 + 1 + 1
