"""The locust users against the real application, headless as from the command line."""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.fake import Script
from engine.messages import EngineRequest, EngineStats, Event, Fault
from server.admission import Admission
from server.state import AppState
from tests.e2e.running_server import serve
from tests.server.tool_app import HERMES, answering, tool_app, writing

FILE = Path(__file__).parents[2] / "loadtest" / "locustfile.py"
USERS = ("Conversation", "ToolUser", "DocumentReader", "Impatient", "SlowReader")
TEXT = " ".join(["word"] * 30)
CALL = '<tool_call>\n{"name": "find_book", "arguments": %s}\n</tool_call>'
RIGHT = CALL % '{"subject": "sea", "language": "English"}'
WRONG = CALL % '{"subject": "sea", "language": "English", "more": 1}'


def speaking(call: str) -> Script:
    """Words piece by piece; where a grammar asks for a call, that."""
    talk = answering(*(f"{word} " for word in TEXT.split()), pause_s=0.002)
    make_call = answering(call)

    def script(request: EngineRequest) -> Iterable[Event | float]:
        return (talk if request.grammar is None else make_call)(request)

    return script


def state_of(*scripts: Script) -> AppState:
    return tool_app(HERMES, *scripts).state


def locust(state: AppState, *options: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    """Run it for some seconds: its exit status, and its statistics by kind and name."""
    command = [sys.executable, "-m", "locust", "-f", str(FILE), "--headless", "--json"]
    command += ["-u", "10", "-r", "100", "-t", "4s", "--stop-timeout", "10", "--loglevel", "ERROR"]
    with serve(state) as running:
        run = subprocess.run(
            [*command, "--host", running.url, *options], capture_output=True, text=True, timeout=200
        )
    entries = json.loads(run.stdout)
    return run.returncode, {(entry["method"], entry["name"]): entry for entry in entries}


def count(entries: Iterable[dict[str, Any]], key: str) -> int:
    return sum(entry[key] for entry in entries)


def test_all_users_get_what_they_ask_for() -> None:
    state = state_of(speaking(RIGHT))
    status, stats = locust(state)
    assert status == 0, stats
    assert count(stats.values(), "num_failures") == 0
    for user in USERS:
        assert stats["POST", user]["num_requests"] >= 1, stats
        assert stats["ttft", user]["num_requests"] >= 1
    # a token is an event here, and all but the first of an answer have a gap before them
    assert stats["itl", "Conversation"]["num_requests"] % 29 == 0
    assert state.engine.aborted  # type: ignore[attr-defined]  # those that left


@pytest.mark.parametrize("user", ["Conversation", "ToolUser"])
def test_a_stream_that_ends_in_an_error_is_a_failure(user: str) -> None:
    def failing(request: EngineRequest) -> Iterator[Event | float]:
        *events, end = writing([[104], [105]])(request)
        yield from events
        fault = Fault("internal", "no")
        yield end.__replace__(reason="error", fault=fault)  # type: ignore[union-attr]

    status, stats = locust(state_of(failing), user)
    assert status == 1
    entry = stats["POST", user]
    assert entry["num_failures"] == entry["num_requests"] >= 1
    assert ("ttft", user) not in stats


def test_a_call_that_was_not_offered_is_a_failure() -> None:
    status, stats = locust(state_of(speaking(WRONG)), "ToolUser")
    assert status == 1 and stats["POST", "ToolUser"]["num_failures"] >= 1


def test_who_is_refused_is_no_failure_and_waits_as_it_is_told() -> None:
    state = state_of(speaking(RIGHT))
    full = EngineStats(num_waiting=10)
    state = replace(state, admission=Admission(lambda: full, max_waiting=1))
    status, stats = locust(state, "Conversation")
    assert status == 0
    assert set(stats) == {("GET", "/v1/models"), ("POST", "Conversation, refused")}
    refused = stats["POST", "Conversation, refused"]
    assert refused["num_failures"] == 0
    assert refused["num_requests"] == 10  # each was told to wait for longer than this takes


def test_it_imports_nothing_of_ours() -> None:
    code = (
        "import sys, runpy; "
        f"runpy.run_path({str(FILE)!r}); "
        "print([m for m in sys.modules if m.split('.')[0] in ('engine', 'protocol', 'server')])"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert run.stdout.strip() == "[]", run.stderr
