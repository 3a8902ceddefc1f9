"""server/admission.py: who is refused, and what they are told."""

import asyncio

import httpx
import pytest

from engine.fake import FakeEngine
from engine.messages import EngineStats
from protocol.errors import Overloaded
from server.admission import Admission
from server.config import ServerConfig
from tests.server.scripted_app import saying
from tests.server.small_app import client_of, small_state


class Simulation:
    """A queue of which `rate` sequences a second are served, and a clock to be moved."""

    def __init__(self, rate: float, max_waiting: int) -> None:
        self.now = 100.0
        self.rate = rate
        self.num_waiting = 0.0
        self.num_finished = 0.0
        self.admission = Admission(self.stats, max_waiting, lambda: self.now)

    def stats(self) -> EngineStats:
        return EngineStats(num_waiting=round(self.num_waiting), num_finished=int(self.num_finished))

    def pass_time(self, seconds: float) -> None:
        served = min(self.num_waiting, seconds * self.rate)
        self.num_waiting -= served
        self.num_finished += served
        self.now += seconds

    def arrive(self) -> float | None:
        """Seconds that a request is told to wait; None: it is taken."""
        try:
            self.admission.check()
        except Overloaded as exc:
            wait_s = int(exc.headers["retry-after-ms"]) / 1000
            assert wait_s <= float(exc.headers["retry-after"]) < wait_s + 1.001
            return wait_s
        self.num_waiting += 1
        return None


def test_the_queue_is_bounded() -> None:
    simulation = Simulation(rate=10, max_waiting=3)
    assert [simulation.arrive() for _ in range(3)] == [None] * 3
    assert simulation.arrive() is not None
    simulation.pass_time(0.11)
    assert simulation.arrive() is None


@pytest.mark.parametrize("rate", [0.5, 4.0, 50.0])
def test_who_comes_when_told_is_taken(rate: float) -> None:
    simulation = Simulation(rate, max_waiting=20)
    simulation.num_waiting = 20
    for _ in range(40):  # a full queue, of which the rate is learnt
        simulation.pass_time(1 / rate)
        assert simulation.arrive() is None
    told = [wait_s for _ in range(25) if (wait_s := simulation.arrive()) is not None]
    assert len(told) >= 20
    for i, wait_s in enumerate(told):  # one after the other finds room
        right = (i + 1) / rate
        assert right / 2 <= wait_s <= 2 * right
    begun, num_taken = simulation.now, 0
    for wait_s in told:
        simulation.pass_time(max(0.0, begun + wait_s - simulation.now))
        num_taken += simulation.arrive() is None
    assert num_taken >= 0.8 * len(told)


def test_nobody_is_sent_away_for_long() -> None:
    simulation = Simulation(rate=0.1, max_waiting=2)
    waits = [simulation.arrive() for _ in range(500)]
    assert max(wait_s for wait_s in waits if wait_s is not None) == 60.0


def test_the_rate_is_measured_while_there_is_a_queue() -> None:
    """What finished in quiet hours says nothing of what the engine can do."""
    simulation = Simulation(rate=20, max_waiting=10)
    for _ in range(100):
        assert simulation.arrive() is None
        simulation.pass_time(10.0)
    told = []
    for _ in range(400):
        told.append(simulation.arrive())
        simulation.pass_time(0.025)
    assert max(wait_s for wait_s in told[300:] if wait_s is not None) < 12


def test_another_engine_counts_from_nothing() -> None:
    simulation = Simulation(rate=20, max_waiting=10)
    for _ in range(400):
        simulation.arrive()
        simulation.pass_time(0.025)
    simulation.num_finished = 0
    for _ in range(400):
        simulation.arrive()
        simulation.pass_time(0.025)
    wait_s = simulation.arrive()
    assert wait_s is None or 0 < wait_s <= 60


async def test_a_full_server_refuses_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(script=saying("a", pause_s=0.001))
    state = small_state(ServerConfig(max_waiting=5), engine=engine)
    async with client_of(state) as client:
        monkeypatch.setattr(engine, "stats", lambda: EngineStats(num_waiting=5))
        state.admission._engine_stats = engine.stats
        replies = await asyncio.gather(
            *(_ask(client, path) for path in ("/v1/chat/completions", "/v1/completions"))
        )
        for reply in replies:
            assert reply.status_code == 503
            assert reply.json()["error"]["code"] == "overloaded"
            assert int(reply.headers["retry-after"]) >= 1
            assert int(reply.headers["retry-after-ms"]) > 0
        assert engine.requests == []
        assert (await client.get("/v1/models")).status_code == 200


async def _ask(client: httpx.AsyncClient, path: str) -> httpx.Response:
    body = {"model": "alias", "prompt": "a"}
    if "chat" in path:
        body = {"model": "alias", "messages": [{"role": "user", "content": "a"}]}  # type: ignore[dict-item]
    return await client.post(path, json=body)
