"""What counts as growth, and what a report says of it."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from loadtest.machine import Machine
from loadtest.soak_report import Sample, SoakReport, draw, trends

MIB = 1 << 20


def samples(name: str, values: Sequence[float]) -> list[Sample]:
    return [Sample(60.0 * i, 500 * i, {name: value}) for i, value in enumerate(values)]


def grows(name: str, values: Sequence[float]) -> bool:
    (trend,) = trends(samples(name, values))
    return trend.grows


def test_the_warm_up_does_not_count() -> None:
    values = [100.0 * MIB, 150.0 * MIB, 190.0 * MIB] + [200.0 * MIB] * 7
    assert not grows("bytes engine", values)


def test_a_steady_leak_is_growth() -> None:
    assert grows("bytes engine", [(200 + 2 * i) * MIB for i in range(20)])
    assert grows("tasks", [10 + i for i in range(20)])
    assert grows("files worker", [20 + i // 2 for i in range(20)])


def test_noise_and_single_peaks_are_none() -> None:
    generator = random.Random(1)
    noisy = [(500 + generator.uniform(-3, 3)) * MIB for _ in range(30)]
    noisy[12] += 100 * MIB
    assert not grows("bytes engine", noisy)
    assert not grows("threads worker", [9] * 15 + [10] + [9] * 14)


def test_blocks_in_use_may_not_grow_at_all() -> None:
    assert grows("blocks in use", [0.0] * 5 + [0.001 * i for i in range(15)])


def test_too_little_says_nothing() -> None:
    assert trends(samples("tasks", [1, 2])) == []


def test_what_not_every_sample_has_is_left_out() -> None:
    some = samples("tasks", [1.0] * 9)
    some[5] = Sample(300, 2500, {"bytes grammars": 1})
    assert trends(some) == []


def report(values: Sequence[float], num_problems: int = 0) -> SoakReport:
    those = samples("bytes engine", values)
    return SoakReport(
        command="python -m loadtest.soak",
        machine=Machine.here(),
        seconds=600,
        ended={"stream": 4000},
        num_refused=7,
        problems=["a stream broke off"] * num_problems,
        num_problems=num_problems,
        samples=those,
        trends=trends(those),
    )


def test_the_verdict() -> None:
    good = report([200.0 * MIB] * 10)
    assert good.is_well and good.lines()[-1] == "nothing grows, nothing failed"
    assert not report([200.0 * MIB] * 10, num_problems=1).is_well
    bad = report([(200 + 5 * i) * MIB for i in range(10)])
    assert not bad.is_well and bad.lines()[-1] == "NOT WELL"
    (line,) = [line for line in bad.lines() if line.startswith("bytes engine")]
    assert line == "bytes engine: 215.0 to 245.0 MiB, +10.000 MiB for 1,000 requests, GROWS"


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(report([200.0 * MIB] * 10), tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
