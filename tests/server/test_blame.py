"""server/blame.py: which deaths of an engine count against a request."""

import signal

import pytest

from engine.journal import Entry
from server import blame
from server.blame import Blame


def test_what_was_computed_in_deaths_in_a_row_without_a_new_token() -> None:
    accused = Blame()
    accused.engine_ended(-signal.SIGSEGV, Entry(1.0, [("a", 5), ("b", 9)]), has_hung=False)
    assert accused.suspects == {"a": 1, "b": 1}
    accused.engine_ended(-signal.SIGSEGV, Entry(2.0, [("a", 5), ("b", 10)]), has_hung=False)
    assert accused.suspects == {"a": 2, "b": 1}
    accused.engine_ended(1, Entry(3.0, [("a", 5)]), has_hung=False)
    assert accused.suspects == {"a": 3, "b": 1}


def test_between_steps_nobody_is_blamed() -> None:
    accused = Blame()
    accused.engine_ended(1, Entry(1.0, []), has_hung=False)
    assert accused.suspects == {}


@pytest.mark.parametrize("status", [-signal.SIGKILL, -signal.SIGTERM, 0])
def test_an_engine_that_was_ended_from_outside(status: int) -> None:
    accused = Blame()
    accused.engine_ended(status, Entry(1.0, [("a", 5)]), has_hung=False)
    assert accused.suspects == {}
    accused.engine_ended(status, Entry(1.0, [("a", 5)]), has_hung=True)
    assert accused.suspects == {"a": 1}


def test_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    accused = Blame()
    before = blame.num_oom_kills()
    monkeypatch.setattr(blame, "num_oom_kills", lambda: before + 1)
    accused.engine_ended(-signal.SIGKILL, Entry(1.0, [("a", 5)]), has_hung=False)
    assert accused.suspects == {"a": 1}
    accused.engine_ended(-signal.SIGKILL, Entry(2.0, [("a", 5)]), has_hung=False)
    assert accused.suspects == {"a": 1}  # no further one


def test_memory_of_deaths_is_bounded() -> None:
    accused = Blame()
    for i in range(11):
        step = [(f"{i}-{j}", 1) for j in range(1000)]
        accused.engine_ended(1, Entry(1.0, step), has_hung=False)
    assert len(accused.suspects) == 10_000
    assert "10-999" in accused.suspects and "0-0" not in accused.suspects
