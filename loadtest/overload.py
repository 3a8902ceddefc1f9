"""Many more requests than a server can take: `python -m loadtest.overload --model FILE`.

Measures what a server of its own finishes when the right number of clients ask, then sends it ten
times as much, in an open loop: each client goes away, asks again when it was told to, and gives up
after some attempts. Prints goodput, how fast refusals come, whether clients who came when told were
taken, and memory. Linux only.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from loadtest.processes import memory
from loadtest.servers import Limits, Server, our_recipe
from loadtest.workloads import words

_NUM_TOKENS = 48
_MAX_ATTEMPTS = 4
_MIB = 1 << 20


@dataclass(slots=True)
class Tally:
    """What came back."""

    num_finished: int = 0
    num_failed: int = 0
    num_given_up: int = 0
    finished_at: list[float] = field(default_factory=list)
    refusal_s: list[float] = field(default_factory=list)
    told_s: list[float] = field(default_factory=list)  # what Retry-After said
    returns: list[bool] = field(default_factory=list)  # whether who came when told was taken

    def lines(self, begun: float, seconds: float) -> list[str]:
        """For people; `begun` on the clock of finished_at."""
        thirds = [0, 0, 0]
        for at in self.finished_at:
            thirds[min(2, max(0, int(3 * (at - begun) / seconds)))] += 1
        refusals = sorted(self.refusal_s) or [0.0]
        taken = sum(self.returns) / len(self.returns) if self.returns else 1.0
        return [
            f"goodput in thirds: {', '.join(f'{3 * n / seconds:.1f}/s' for n in thirds)}",
            f"failed {self.num_failed}, gave up {self.num_given_up}, refusals {len(refusals)}: "
            f"{1000 * refusals[len(refusals) // 2]:.1f} ms (median), "
            f"{1000 * refusals[int(0.99 * len(refusals))]:.1f} ms (p99)",
            f"told to wait {statistics.median(self.told_s or [0.0]):.1f} s (median); "
            f"{100 * taken:.0f}% of those who came back when told were taken",
        ]


async def _client(
    client: httpx.AsyncClient, model: str, generator: random.Random, tally: Tally
) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": words(generator, 30)}],
        "max_tokens": _NUM_TOKENS,
        "ignore_eos": True,
    }
    for attempt in range(_MAX_ATTEMPTS):
        started = time.perf_counter()
        try:
            response = await client.post("/chat/completions", json=body)
        except httpx.HTTPError:
            tally.num_failed += 1
            return
        is_taken = response.status_code == 200
        if attempt:
            tally.returns.append(is_taken)
        if is_taken:
            tally.num_finished += 1
            tally.finished_at.append(time.perf_counter())
            return
        if response.status_code != 503 or "retry-after-ms" not in response.headers:
            tally.num_failed += 1
            return
        tally.refusal_s.append(time.perf_counter() - started)
        wait_s = int(response.headers["retry-after-ms"]) / 1000
        tally.told_s.append(wait_s)
        await asyncio.sleep(wait_s)
    tally.num_given_up += 1


async def _flood(
    client: httpx.AsyncClient, model: str, rate: float, seconds: float, seed: int
) -> tuple[Tally, float]:
    """New clients at `rate` a second for so long; what they got, and when it began."""
    generator = random.Random(seed)
    tally = Tally()
    begun = time.perf_counter()
    tasks = []
    arrives = begun
    while (now := time.perf_counter()) < begun + seconds:
        while arrives <= now:
            tasks.append(asyncio.create_task(_client(client, model, generator, tally)))
            arrives += generator.expovariate(rate)
        await asyncio.sleep(max(0.0, arrives - time.perf_counter()))
    for task in tasks:
        task.cancel()  # who still waits does not count
    await asyncio.gather(*tasks, return_exceptions=True)
    return tally, begun


async def run(server: Server, *, num_clients: int, seconds: float, factor: float) -> list[str]:
    """Capacity, then the flood. Returns lines for people."""
    assert server.pid is not None
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=server.endpoint.url, timeout=600, limits=limits, trust_env=False
    ) as client:
        generator = random.Random(0)
        capacity = Tally()
        begun = time.perf_counter()

        async def one_after_the_other() -> None:
            while time.perf_counter() < begun + seconds / 3:
                await _client(client, server.model, generator, capacity)

        await asyncio.gather(*(one_after_the_other() for _ in range(num_clients)))
        rate = capacity.num_finished / (time.perf_counter() - begun)
        before = memory(server.pid).pss_bytes
        tally, flooded = await _flood(client, server.model, factor * rate, seconds, seed=1)
        after = memory(server.pid).pss_bytes
    return [
        f"capacity: {rate:.1f} requests/s with {num_clients} clients",
        *tally.lines(flooded, seconds),
        f"memory (PSS): {before / _MIB:.0f} MiB before, {after / _MIB:.0f} MiB after",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="loadtest.overload", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, default=32, help="that the server can just take")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--factor", type=float, default=10.0, help="times its capacity")
    parser.add_argument("--max-waiting", type=int, default=64)
    args = parser.parse_args(argv)
    limits = Limits(max_num_seqs=args.clients)
    options = ("--max-waiting", str(args.max_waiting))
    with Server.start(our_recipe(args.model, limits, options=options)) as server:
        print(
            "\n".join(
                asyncio.run(
                    run(
                        server,
                        num_clients=args.clients,
                        seconds=args.seconds,
                        factor=args.factor,
                    )
                )
            )
        )


if __name__ == "__main__":
    main()
