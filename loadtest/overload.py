"""Many more clients than a server can take: `python -m loadtest.overload --model FILE`.

Measures what a server of its own finishes when the right number of clients ask, then lets ten times
as many ask. Each goes away when it is refused, and asks again when it was told to; when it has its
answer it asks the next. Prints goodput, how fast refusals come, whether clients who came when told
were taken, and memory. Linux only.
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
_MIB = 1 << 20


@dataclass(slots=True)
class Tally:
    """What came back."""

    num_finished: int = 0
    num_failed: int = 0
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
            f"failed {self.num_failed}, refusals {len(refusals)}: "
            f"{1000 * refusals[len(refusals) // 2]:.1f} ms (median), "
            f"{1000 * refusals[int(0.99 * len(refusals))]:.1f} ms (p99)",
            f"told to wait {statistics.median(self.told_s or [0.0]):.1f} s (median); "
            f"{100 * taken:.0f}% of those who came back when told were taken",
        ]


async def _ask(
    client: httpx.AsyncClient, model: str, generator: random.Random, tally: Tally
) -> None:
    """One request, again and again until it is taken."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": words(generator, 30)}],
        "max_tokens": _NUM_TOKENS,
        "ignore_eos": True,
    }
    is_first = True
    while True:
        started = time.perf_counter()
        try:
            response = await client.post("/chat/completions", json=body)
        except httpx.HTTPError:
            tally.num_failed += 1
            return
        is_taken = response.status_code == 200
        if not is_first:
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
        is_first = False
        await asyncio.sleep(wait_s)


async def _crowd(
    client: httpx.AsyncClient, model: str, num_clients: int, seconds: float, seed: int
) -> tuple[Tally, float]:
    """So many clients for so long; what they got, and when it began."""
    tally = Tally()
    begun = time.perf_counter()

    async def go_on(number: int) -> None:
        generator = random.Random(f"{seed} {number}")
        while True:
            await _ask(client, model, generator, tally)

    tasks = [asyncio.create_task(go_on(i)) for i in range(num_clients)]
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()  # who still waits does not count
    await asyncio.gather(*tasks, return_exceptions=True)
    return tally, begun


async def run(server: Server, *, num_clients: int, seconds: float, factor: float) -> list[str]:
    """The right number of clients, then `factor` times as many. Returns lines for people."""
    assert server.pid is not None
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=server.endpoint.url, timeout=600, limits=limits, trust_env=False
    ) as client:
        few, begun = await _crowd(client, server.model, num_clients, seconds, seed=0)
        before = memory(server.pid).pss_bytes
        num_many = round(factor * num_clients)
        many, flooded = await _crowd(client, server.model, num_many, seconds, seed=1)
        after = memory(server.pid).pss_bytes
    return [
        f"{num_clients} clients:",
        *few.lines(begun, seconds),
        f"{num_many} clients:",
        *many.lines(flooded, seconds),
        f"memory (PSS): {before / _MIB:.0f} MiB before, {after / _MIB:.0f} MiB after",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="loadtest.overload", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, default=32, help="that the server can just take")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--factor", type=float, default=10.0, help="times as many")
    parser.add_argument("--max-waiting", type=int, default=32)
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
