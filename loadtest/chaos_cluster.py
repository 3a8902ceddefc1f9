"""Kills parts of a cluster under load: `python -m loadtest.chaos_cluster --model FILE`.

Like loadtest/chaos.py, with several servers and engines on a Redis of its own. Every stream whose
server lives must end as the undisturbed one did, token for token; what a dead server had must be
aborted by every engine within seconds. Linux only; needs `redis-server`.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import httpx

from loadtest.chaos import Reply, ask
from loadtest.chaos_requests import Request, requests
from loadtest.cluster import Cluster
from loadtest.servers import Limits

Action = Callable[[], Awaitable[None]]

_TIMEOUT_S = 600.0
_POLL_S = 0.1
_MAX_SHOWN = 10


@dataclass(slots=True)
class Plan:
    """What is done to a cluster. Times in seconds; 0 = never."""

    duration_s: float = 180.0
    engine_kill_s: float = 5.0  # from one to the next
    server_kill_s: float = 40.0
    redis_restart_s: float = 0.0  # killed and started again with what it has stored
    engine_restart_s: float = 0.0  # SIGTERM, and started again
    server_restart_s: float = 0.0  # the same: its streams go on to their end
    num_streams: int = 32
    seed: int = 0


@dataclass(slots=True)
class ClusterOutcome:
    """Of a run."""

    num_engine_kills: int = 0
    num_server_kills: int = 0
    num_redis_restarts: int = 0
    num_engine_restarts: int = 0
    num_server_restarts: int = 0
    num_turned_away: int = 0  # by a server that was about to end, before anything was said
    num_streams: int = 0
    num_cut: int = 0  # streams whose server was killed
    problems: list[str] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)  # the longest of each stream
    abort_s: list[float] = field(default_factory=list)  # from a server's death, for each engine

    def lines(self) -> list[str]:
        """For people."""
        kills = f"killed: {self.num_engine_kills} engines, {self.num_server_kills} servers"
        restarts = f"{self.num_engine_restarts} engines, {self.num_server_restarts} servers"
        return [
            f"{kills}, {self.num_redis_restarts} times Redis; restarted: {restarts}",
            f"streams: {self.num_streams}, failed or different: {len(self.problems)}, "
            f"cut with their server: {self.num_cut}, sent elsewhere: {self.num_turned_away}",
            f"longest pause of a stream: {max(self.gaps_s, default=0.0):.2f} s",
            f"what dead servers had was aborted after {max(self.abort_s, default=0.0):.2f} s at the"
            f" latest, by {len(self.abort_s)} engines",
            *self.problems[:_MAX_SHOWN],
        ]


class _Run:
    def __init__(self, cluster: Cluster, plan: Plan) -> None:
        self._cluster = cluster
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._is_over = asyncio.Event()
        self._deaths = [0] * len(cluster.servers)
        self._died_at: list[float] = []  # unix seconds
        self._is_ending = [False] * len(cluster.servers)
        self._clients = [
            httpx.AsyncClient(
                base_url=endpoint.url,
                timeout=_TIMEOUT_S,
                limits=httpx.Limits(max_connections=None),
                trust_env=False,
            )
            for endpoint in cluster.endpoints
        ]
        self._asked: list[Request] = requests(plan.seed, max(plan.num_streams, 20))
        self._expected: Sequence[Reply] = []
        self.outcome = ClusterOutcome()

    async def run(self) -> ClusterOutcome:
        model = self._cluster.model
        self._expected = await asyncio.gather(
            *(ask(self._clients[0], model, request) for request in self._asked)
        )
        if broken := [reply.error for reply in self._expected if reply.error]:
            raise RuntimeError(f"not even the undisturbed streams end well: {broken[0]}")
        plan = self._plan
        streams = [asyncio.create_task(self._stream(i)) for i in range(plan.num_streams)]
        killers = [
            asyncio.create_task(self._every(seconds, action))
            for seconds, action in (
                (plan.engine_kill_s, self._kill_engine),
                (plan.server_kill_s, self._kill_server),
                (plan.redis_restart_s, self._restart_redis),
                (plan.engine_restart_s, self._restart_engine),
                (plan.server_restart_s, self._restart_server),
            )
            if seconds > 0
        ]
        await asyncio.sleep(plan.duration_s)
        self._is_over.set()
        await asyncio.gather(*killers)
        await asyncio.gather(*streams)
        for client in self._clients:
            await client.aclose()
        self.outcome.abort_s = self._abort_times()
        return self.outcome

    async def _every(self, seconds: float, action: Action) -> None:
        while True:
            try:
                async with asyncio.timeout(seconds * self._random.uniform(0.8, 1.2)):
                    await self._is_over.wait()
                    return
            except TimeoutError:
                await action()

    async def _kill_engine(self) -> None:
        index = self._random.randrange(len(self._cluster.engines))
        self.outcome.num_engine_kills += self._cluster.kill_engine(index)

    async def _kill_server(self) -> None:
        index = self._random.randrange(len(self._cluster.servers))
        self._deaths[index] += 1
        self._died_at.append(time.time())
        server = self._cluster.servers[index]
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(1.0)
        server.restart()
        self.outcome.num_server_kills += 1

    async def _restart_redis(self) -> None:
        redis = self._cluster.redis
        await asyncio.to_thread(redis.kill)
        await asyncio.sleep(self._random.uniform(0.0, 5.0))
        redis.restart()
        self.outcome.num_redis_restarts += 1

    async def _restart_engine(self) -> None:
        engine = self._random.choice(self._cluster.engines)
        await asyncio.to_thread(engine.stop)
        engine.restart()
        self.outcome.num_engine_restarts += 1

    async def _restart_server(self) -> None:
        index = self._random.randrange(len(self._cluster.servers))
        server = self._cluster.servers[index]
        self._is_ending[index] = True
        await asyncio.to_thread(server.stop)
        server.restart()
        self._is_ending[index] = False
        self.outcome.num_server_restarts += 1

    async def _stream(self, index: int) -> None:
        """One request after the other, always to the same server."""
        server = index % len(self._clients)
        client = self._clients[server]
        while not self._is_over.is_set():
            await self._until_ready(client)
            number = index % len(self._asked)
            index += 7  # has no factor in common with the kinds
            deaths = self._deaths[server]
            reply = await ask(client, self._cluster.model, self._asked[number])
            if self._deaths[server] != deaths:
                self.outcome.num_cut += 1
                continue
            if self._is_ending[server] and reply.error and not reply.choices:
                self.outcome.num_turned_away += 1
                continue
            self.outcome.num_streams += 1
            self.outcome.gaps_s.append(reply.longest_gap_s)
            if not reply.equals(self._expected[number]):
                reason = reply.error or f"{reply} in place of {self._expected[number]}"
                self.outcome.problems.append(f"{self._asked[number]}: {reason}")

    async def _until_ready(self, client: httpx.AsyncClient) -> None:
        root = str(client.base_url).removesuffix("/").removesuffix("/v1")
        while True:
            try:
                if (await client.get(f"{root}/readyz")).status_code == 200:
                    return
            except httpx.HTTPError:
                pass  # it does not listen yet
            await asyncio.sleep(_POLL_S)

    def _abort_times(self) -> list[float]:
        """How long after a server's death each engine had let go of what it had of it."""
        times = []
        for engine in self._cluster.engines:
            for line in engine.log.read_text().splitlines():
                if '"client gone"' not in line:
                    continue
                at = datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
                if before := [died_at for died_at in self._died_at if died_at <= at]:
                    times.append(at - before[-1])
        return times


async def run(cluster: Cluster, plan: Plan) -> ClusterOutcome:
    """Disturb the cluster as planned."""
    return await _Run(cluster, plan).run()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exit status 1 where a stream failed or differed."""
    parser = argparse.ArgumentParser(prog="loadtest.chaos_cluster", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--engines", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each engine")
    default = Plan()
    parser.add_argument("--seconds", type=float, default=default.duration_s)
    parser.add_argument("--engine-kill", type=float, default=default.engine_kill_s)
    parser.add_argument("--server-kill", type=float, default=default.server_kill_s)
    parser.add_argument("--redis-restart", type=float, default=default.redis_restart_s)
    parser.add_argument("--engine-restart", type=float, default=default.engine_restart_s)
    parser.add_argument("--server-restart", type=float, default=default.server_restart_s)
    parser.add_argument("--streams", type=int, default=default.num_streams)
    parser.add_argument("--seed", type=int, default=default.seed)
    args = parser.parse_args(argv)
    plan = Plan(
        args.seconds,
        args.engine_kill,
        args.server_kill,
        args.redis_restart,
        args.engine_restart,
        args.server_restart,
        args.streams,
        args.seed,
    )
    limits = Limits(num_threads=args.threads)
    with Cluster(args.model, limits, num_servers=args.servers, num_engines=args.engines) as cluster:
        outcome = asyncio.run(run(cluster, plan))
    print("\n".join(outcome.lines()))
    sys.exit(1 if outcome.problems else 0)


if __name__ == "__main__":
    main()
