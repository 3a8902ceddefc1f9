"""What a server makes of its engines' beats."""

import msgspec

from engine.messages import EngineInfo, EngineStats
from engine.redis_queue.engines import Engines
from engine.redis_queue.frames import EngineBeat, encode_beat

INFO = EngineInfo(
    max_model_len=2048,
    vocab_size=49152,
    num_blocks=128,
    block_size=16,
    dtype="float32",
    device="cpu",
    backend="fake",
)
ONE = EngineStats(
    num_running=2, num_blocks=128, num_steps=10, step_sizes=(1,) * 14, step_time_s=0.25
)
TWO = EngineStats(
    num_waiting=3, num_blocks=128, num_steps=5, step_sizes=(2,) * 14, step_time_s=0.75
)


def beats(number: int, **stats: EngineStats) -> dict[bytes, bytes]:
    return {
        name.encode(): encode_beat(EngineBeat(number, INFO, each, 8, each.num_running))
        for name, each in stats.items()
    }


def test_stats_are_sums_and_times_are_means() -> None:
    engines = Engines()
    engines.update(beats(1, one=ONE, two=TWO))
    assert engines.info == INFO
    assert engines.total_stats() == EngineStats(
        num_running=2,
        num_waiting=3,
        num_blocks=256,
        num_steps=15,
        step_sizes=(3,) * 14,
        step_time_s=0.5,
    )


def test_counters_stay_when_an_engine_has_left() -> None:
    engines = Engines()
    engines.update(beats(1, one=ONE, two=TWO))
    engines.leave("one")
    assert engines.total_stats() == msgspec.structs.replace(TWO, num_steps=15, step_sizes=(3,) * 14)
    engines.update(beats(2, two=TWO))
    assert engines.total_stats().num_steps == 15
    assert list(engines.loads()) == ["two"]
    assert engines.is_dead("one")


def test_without_engines_there_is_nothing() -> None:
    engines = Engines()
    engines.update({b"other": b"not a beat"})
    assert engines.total_stats() == EngineStats()
    assert engines.loads() == {} and engines.info is None
