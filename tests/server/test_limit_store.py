"""server/limit_store.py and server/redis_limits.py: both count alike, Redis for several at once."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from server import redis_limits
from server.keys import Limits
from server.limit_store import LimitStore, MemoryLimits
from server.redis_limits import RedisLimits
from tests.redis_server import RedisServer

SLOW = Limits(requests_per_minute=3, tokens_per_minute=100, concurrency=2)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[LimitStore]:
    if request.param == "memory":
        yield MemoryLimits(lambda: 0.0)
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    limits = RedisLimits(server.url)
    yield limits
    await limits.aclose()


async def test_places(store: LimitStore) -> None:
    limits = Limits(concurrency=2)
    assert (await store.enter("a", limits, "1")).concurrency == 1
    assert (await store.enter("a", limits, "2")).concurrency == 2
    refused = await store.enter("a", limits, "3")
    assert (refused.exceeded, refused.concurrency) == ("concurrency", 2)
    assert (await store.enter("b", limits, "3")).exceeded is None
    await store.leave("a", limits, "unknown", 0)
    assert (await store.enter("a", limits, "3")).exceeded == "concurrency"
    assert (await store.leave("a", limits, "1", 0)).concurrency == 1
    assert (await store.enter("a", limits, "3")).exceeded is None


async def test_requests(store: LimitStore) -> None:
    limits = Limits(requests_per_minute=2)
    for _ in range(2):
        assert (await store.enter("a", limits, "x")).exceeded is None
        await store.leave("a", limits, "x", 0)
    refused = await store.enter("a", limits, "x")
    assert refused.exceeded == "requests"
    assert 1 < refused.requests <= 2  # of which one wears off in half a minute
    assert (await store.enter("b", limits, "x")).exceeded is None


async def test_who_is_refused_for_his_places_is_not_counted(store: LimitStore) -> None:
    limits = Limits(requests_per_minute=1000, concurrency=1)
    await store.enter("a", limits, "1")
    for i in range(5):
        assert (await store.enter("a", limits, f"again {i}")).exceeded == "concurrency"
    assert math.ceil((await store.leave("a", limits, "1", 0)).requests) <= 1


async def test_tokens_are_charged_and_settled(store: LimitStore) -> None:
    limits = Limits(tokens_per_minute=100)
    await store.enter("a", limits, "1")
    assert math.ceil((await store.charge("a", limits, 80)).tokens) == 80
    refused = await store.charge("a", limits, 80)
    assert refused.exceeded == "tokens"
    assert math.ceil(refused.tokens) == 80  # all or none
    assert math.ceil((await store.leave("a", limits, "1", -60)).tokens) == 20
    assert (await store.charge("a", limits, 75)).exceeded is None
    await store.enter("a", limits, "2")
    owing = await store.leave("a", limits, "2", 500)  # took more than it was charged
    assert 590 < owing.tokens <= 595
    assert (await store.charge("a", limits, 1)).exceeded == "tokens"
    await store.enter("a", limits, "3")
    assert (await store.leave("a", limits, "3", -10_000)).tokens == 0


async def test_without_limits_nothing_is_exceeded(store: LimitStore) -> None:
    for i in range(20):
        assert (await store.enter("a", Limits(), str(i))).exceeded is None
        assert (await store.charge("a", Limits(), 10**9)).exceeded is None


async def test_a_limit_that_has_changed_holds_at_once(store: LimitStore) -> None:
    await store.enter("a", Limits(requests_per_minute=10), "1")
    assert (await store.enter("a", Limits(requests_per_minute=1), "2")).exceeded == "requests"
    assert (await store.enter("a", Limits(requests_per_minute=3), "2")).exceeded is None


async def test_many_at_once_get_exactly_what_there_is(store: LimitStore) -> None:
    limits = Limits(requests_per_minute=7, concurrency=100)
    standings = await asyncio.gather(*(store.enter("a", limits, str(i)) for i in range(50)))
    assert sum(standing.exceeded is None for standing in standings) == 7


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 200)), max_size=60),
)
def test_no_more_than_a_burst_and_the_rate_passes(
    limit: int, calls: list[tuple[float, int]]
) -> None:
    """In any stretch of time: at most the limit and what wears off in it."""
    now = 0.0
    store = MemoryLimits(lambda: now)
    passed: list[tuple[float, int]] = []

    async def run() -> None:
        nonlocal now
        for pause_s, amount in calls:
            now += pause_s
            if (await store.charge("a", Limits(tokens_per_minute=limit), amount)).exceeded is None:
                passed.append((now, amount))

    asyncio.run(run())
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            stretch = passed[first : last + 1]
            most = limit * (1 + (stretch[-1][0] - stretch[0][0]) / 60)
            assert sum(amount for _, amount in stretch) <= most + 1e-3


async def test_the_moment_that_is_told_is_the_moment_there_is_room() -> None:
    now = 0.0
    store = MemoryLimits(lambda: now)
    limits = Limits(requests_per_minute=6)
    for i in range(6):
        await store.enter("a", limits, str(i))
    refused = await store.enter("a", limits, "x")
    wait_s = (refused.requests + 1 - 6) * 60 / 6
    assert wait_s == pytest.approx(10)
    now = wait_s - 0.01
    assert (await store.enter("a", limits, "x")).exceeded == "requests"
    now = wait_s
    assert (await store.enter("a", limits, "x")).exceeded is None


async def test_two_servers_share_what_there_is(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    stores = [RedisLimits(redis_server.url) for _ in range(3)]
    limits = Limits(concurrency=5)
    standings = await asyncio.gather(*(stores[i % 3].enter("a", limits, str(i)) for i in range(30)))
    assert sum(standing.exceeded is None for standing in standings) == 5
    for store in stores:
        await store.aclose()


async def test_places_of_a_server_that_is_gone_come_free_and_others_are_renewed(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        limits = Limits(concurrency=2)
        dead, alive = RedisLimits(redis_server.url), RedisLimits(redis_server.url)
        monkeypatch.setattr(redis_limits, "_RENEW_S", 3600)
        await dead.enter("a", limits, "dead")
        monkeypatch.setattr(redis_limits, "_RENEW_S", 0.01)
        await alive.enter("a", limits, "alive")
        await dead.aclose()
        (leases,) = client.keys("*:leases")
        for lease in ("dead", "alive"):  # as if the minute were over
            client.zadd(leases, {lease: 1})
        async with asyncio.timeout(60):
            while client.zscore(leases, "alive") == 1:
                await asyncio.sleep(0.01)
        assert (await alive.enter("a", limits, "next")).exceeded is None
        assert (await alive.enter("a", limits, "another")).exceeded == "concurrency"
        await alive.aclose()


async def test_nothing_stays_in_redis_for_ever(redis_server: RedisServer) -> None:
    store = RedisLimits(redis_server.url)
    await store.enter("a", SLOW, "1")
    await store.charge("a", SLOW, 50)
    await store.aclose()
    with redis.Redis.from_url(redis_server.url) as client:
        keys = client.keys("*")
        assert keys
        for key in keys:
            assert 0 < int(client.ttl(key)) <= 61


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """One that may be ended."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_while_redis_is_away_each_counts_for_itself(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(redis_limits, "_PAUSE_S", 0.0)
    server = own_redis
    store = RedisLimits(server.url)
    limits = Limits(requests_per_minute=2, tokens_per_minute=100)
    await store.enter("a", limits, "1")
    server.kill() if how == "kill" else server.pause()
    standings = [await store.enter("a", limits, lease) for lease in ("2", "3", "4")]
    assert [standing.exceeded for standing in standings] == [None, None, "requests"]
    assert (await store.charge("a", limits, 60)).exceeded is None
    assert (await store.charge("a", limits, 60)).exceeded == "tokens"
    await store.leave("a", limits, "1", 0)
    server.start() if how == "kill" else server.resume()
    assert (await store.enter("b", limits, "5")).exceeded is None
    with redis.Redis.from_url(server.url) as client:
        assert client.exists("qwen-serve:limits:{b}:requests")
    await store.leave("a", limits, "2", -60)  # of what was counted here
    assert (await store.enter("b", limits, "6")).exceeded is None
    assert (await store.enter("b", limits, "7")).exceeded == "requests"
    await store.aclose()


def test_a_redis_that_was_never_there(tmp_path: Path) -> None:
    async def run() -> None:
        store = RedisLimits(RedisServer(tmp_path).url)
        limits = Limits(requests_per_minute=1)
        assert (await store.enter("a", limits, "1")).exceeded is None
        assert (await store.enter("a", limits, "2")).exceeded == "requests"
        await store.aclose()

    asyncio.run(run())
