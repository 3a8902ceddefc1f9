"""The whole server from outside, on this machine: `python -m loadtest.whole --model MODEL`.

Starts `qwen-serve serve` anew for each measurement and reports the seconds until it is ready and
until the first token of the first answer, then tokens per second of streams side by side. With
`--busy N`, N processes meanwhile compute for nothing, as another program on the machine would.
Every answer is made to its full length: the tokens are those asked for.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from loadtest.client import Answer, Endpoint
from loadtest.servers import serving
from loadtest.workloads import chat, run

_BUSY = [sys.executable, "-c", "while True: pass"]


@dataclass(frozen=True, slots=True)
class Result:
    ready_s: float
    first_token_s: float  # both from the start of the command
    tokens_per_s: float


@contextmanager
def children(command: list[str], number: int) -> Iterator[None]:
    processes = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def drive(url: str, model: str, streams: int, num_tokens: int) -> tuple[float, float]:
    """The clock's reading at the first token of all, and tokens per second of `streams`.

    Raises RuntimeError for a stream that is broken or too short.
    """
    endpoint = Endpoint.of(url)

    async def ask_for(questions: list[str]) -> list[Answer]:
        calls = [chat(("user", question), num_tokens=num_tokens) for question in questions]
        answers = await run(endpoint, model, calls, concurrency=len(calls))
        if errors := [answer.error for answer in answers if answer.error]:
            raise RuntimeError(errors[0])
        return answers

    (first,) = await ask_for(["Count to a hundred."])
    started = time.perf_counter()
    await ask_for([f"Count to a hundred from {i}." for i in range(streams)])
    rate = streams * num_tokens / (time.perf_counter() - started)
    return first.started + first.first_token_s, rate


def measure(model: str, streams: int, num_tokens: int, busy: int) -> Result:
    """Start a server, measure, and stop it."""
    started = time.perf_counter()
    with serving(model) as (url, name):
        ready = time.perf_counter()
        with children(_BUSY, busy):
            first, rate = asyncio.run(drive(url, name, streams, num_tokens))
    return Result(ready - started, first - started, rate)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="loadtest.whole", description=__doc__)
    parser.add_argument("--model", required=True, help="as for qwen-serve serve")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=60, help="of each stream")
    parser.add_argument("--busy", type=int, nargs="+", default=[0])
    parser.add_argument("--repeat", type=int, default=3, help="medians are shown")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores")
    print("busy  streams  ready s  first token s  tokens per second")
    for busy in args.busy:
        for streams in args.streams:
            runs = [measure(args.model, streams, args.tokens, busy) for _ in range(args.repeat)]
            rates = sorted(run.tokens_per_s for run in runs)
            print(
                f"{busy:4}  {streams:7}  {statistics.median(r.ready_s for r in runs):7.2f}  "
                f"{statistics.median(r.first_token_s for r in runs):13.2f}  "
                f"{statistics.median(rates):.1f} ({rates[0]:.1f} to {rates[-1]:.1f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
