"""engine/journal.py: another process reads what an engine was doing."""

import time
from pathlib import Path

from engine.journal import Entry, Journal, read
from engine.journaled_runner import JournaledRunner
from tests.engine.toy_runner import make_request, toy_engine


def test_a_step_is_there_until_the_loop_turns(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert read(path) == Entry(0.0, [])
    journal = Journal(str(path))
    assert read(path) == Entry(0.0, [])
    journal.begin([("a", 3)])
    entry = read(path)
    assert entry.step == [("a", 3)]
    assert 0 <= time.monotonic() - entry.turned_at_s < 5
    journal.turn()
    assert read(path).step == []
    assert read(path).turned_at_s >= entry.turned_at_s


def test_a_runner_notes_its_steps(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    engine, runner = toy_engine()
    engine.runner = JournaledRunner(runner, Journal(str(path)))
    engine.add(make_request("a", [1, 2, 3], max_tokens=3))
    engine.add(make_request("b", [4], max_tokens=3))
    engine.step()
    assert read(path).step == [("a", 3), ("b", 1)]
    engine.step()
    assert read(path).step == [("a", 4), ("b", 2)]


def test_a_step_that_is_too_large_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(str(path))
    journal.turn()
    journal.begin([("a" * 300_000, 1)])
    assert read(path).step == []


def test_rubbish_blames_nobody(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for content in (b"", b"x", b"\xff" * 100, b"\0" * 8 + b"\x04\0\0\0" + b"\xc1" * 4):
        path.write_bytes(content)
        assert read(path).step == []
