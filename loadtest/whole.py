"""The whole server from outside, on this machine: `python -m loadtest.whole --model MODEL`.

Starts `qwen-serve serve` anew for each measurement and reports the seconds until it is ready and
until the first token of the first answer, then tokens per second of streams side by side. With
`--busy N`, N processes meanwhile compute for nothing, as another program on the machine would.
Every answer is made to its full length: the tokens are those asked for.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

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


async def stream(client: httpx.AsyncClient, model: str, question: str, num_tokens: int) -> float:
    """Ask once; returns the clock's reading at the first text. Raises on a broken stream."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first, usage = None, None
    async with client.stream("POST", "/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                usage = chunk["usage"]
                if first is None and any(c["delta"].get("content") for c in chunk["choices"]):
                    first = time.perf_counter()
    if first is None or usage is None or usage["completion_tokens"] != num_tokens:
        raise RuntimeError(f"not {num_tokens} tokens of text: {usage}")
    return first


async def drive(url: str, model: str, streams: int, num_tokens: int) -> tuple[float, float]:
    """The clock's reading at the first token of all, and tokens per second of `streams`."""
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        first = await stream(client, model, "Count to a hundred.", num_tokens)
        started = time.perf_counter()
        questions = [f"Count to a hundred from {i}." for i in range(streams)]
        await asyncio.gather(*[stream(client, model, q, num_tokens) for q in questions])
        return first, streams * num_tokens / (time.perf_counter() - started)


@contextmanager
def serving(model: str, *options: str) -> Iterator[tuple[str, str]]:
    """Serve `model` on a free port until the block ends: the URL with /v1, and the model's name.

    Raises RuntimeError when it does not start.
    """
    command = [str(Path(sys.executable).with_name("qwen-serve")), "serve", "--port", "0"]
    with subprocess.Popen(
        [*command, "--model", model, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line.startswith("ready: "):
                raise RuntimeError("the server did not start")
            _, url, _, name, *_ = line.split()
            yield url, name
        finally:
            server.terminate()


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
