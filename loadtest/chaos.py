"""Kills the engine under load: `python -m loadtest.chaos --model FILE --kills 200`.

Asks a server of its own for seeded answers of every kind (loadtest/chaos_requests.py), first
undisturbed, then again and again while the engine is killed at random moments. Every stream must
end as the undisturbed one did, token for token; what fails or differs is printed. Linux only.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from loadtest.chaos_requests import Request, requests
from loadtest.processes import arguments, tree
from loadtest.servers import Limits, Server, our_recipe

_TIMEOUT_S = 600.0
_POLL_S = 0.02
_MAX_SHOWN = 10  # of the problems
_ENGINE = "engine.process"


@dataclass(slots=True)
class ChoiceText:
    """All of one choice's chunks, put together."""

    text: str = ""
    calls: dict[int, list[str]] = field(default_factory=dict)  # names and arguments by index
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass(slots=True)
class Reply:
    """What a stream said. `error` is empty where it has ended well."""

    choices: dict[int, ChoiceText] = field(default_factory=dict)
    completion_tokens: int | None = None
    error: str = ""
    longest_gap_s: float = 0.0

    def equals(self, other: "Reply") -> bool:
        """Whether a client would see the same."""
        is_same = self.choices == other.choices
        is_same &= self.completion_tokens == other.completion_tokens
        return is_same and not self.error and not other.error


@dataclass(slots=True)
class Outcome:
    """Of a run."""

    num_kills: int = 0
    num_streams: int = 0
    problems: list[str] = field(default_factory=list)
    restart_s: list[float] = field(default_factory=list)  # kill to ready again
    gaps_s: list[float] = field(default_factory=list)  # the longest of each stream

    def lines(self) -> list[str]:
        """For people."""
        restarts = sorted(self.restart_s) or [0.0]
        return [
            f"kills: {self.num_kills}, streams: {self.num_streams}, "
            f"failed or different: {len(self.problems)}",
            f"ready again after {statistics.median(restarts):.2f} s (median), "
            f"{restarts[-1]:.2f} s (longest)",
            f"longest pause of a stream: {max(self.gaps_s, default=0.0):.2f} s",
            *self.problems[:_MAX_SHOWN],
        ]


async def ask(client: httpx.AsyncClient, model: str, request: Request) -> Reply:
    """Read one stream to its end. Never raises for what a server does."""
    path, body = request
    reply = Reply()
    is_done = False
    heard_at = time.monotonic()
    try:
        async with client.stream("POST", path, json={"model": model, **body}) as response:
            if response.status_code != 200:
                reply.error = f"status {response.status_code}: {(await response.aread())[:300]!r}"
                return reply
            async for line in response.aiter_lines():
                reply.longest_gap_s = max(reply.longest_gap_s, time.monotonic() - heard_at)
                heard_at = time.monotonic()
                if line == "data: [DONE]":
                    is_done = True
                elif line:
                    _take(reply, json.loads(line.removeprefix("data: ")))
    except httpx.HTTPError as exc:
        reply.error = f"{type(exc).__name__}: {exc}"
    if not is_done and not reply.error:
        reply.error = "the stream broke off"
    return reply


def _take(reply: Reply, chunk: dict[str, Any]) -> None:
    if "error" in chunk:
        reply.error = str(chunk["error"])
        return
    if chunk.get("usage"):
        reply.completion_tokens = chunk["usage"]["completion_tokens"]
    for part in chunk["choices"]:
        choice = reply.choices.setdefault(part["index"], ChoiceText())
        delta = part.get("delta", {})
        choice.text += part.get("text") or delta.get("content") or ""
        for call in delta.get("tool_calls") or ():
            function = call["function"]
            texts = choice.calls.setdefault(call["index"], ["", ""])
            texts[0] += function.get("name") or ""
            texts[1] += function.get("arguments") or ""
        _add_logprobs(choice, part.get("logprobs"))
        choice.finish_reason = part.get("finish_reason") or choice.finish_reason


def _add_logprobs(choice: ChoiceText, logprobs: dict[str, Any] | None) -> None:
    if logprobs is None:
        return
    choice.logprobs += logprobs.get("content") or zip(
        logprobs.get("tokens", ()), logprobs.get("token_logprobs", ()), strict=True
    )


async def run(server: Server, *, num_kills: int, num_streams: int, seed: int) -> Outcome:
    """Kill the engine so often, with so many streams under way all the time."""
    assert server.pid is not None
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=server.endpoint.url, timeout=_TIMEOUT_S, limits=limits, trust_env=False
    ) as client:
        asked = requests(seed, max(num_streams, 20))
        expected = await asyncio.gather(*(ask(client, server.model, r) for r in asked))
        if broken := [reply.error for reply in expected if reply.error]:
            raise RuntimeError(f"not even the undisturbed streams end well: {broken[0]}")
        outcome = Outcome()
        is_over = asyncio.Event()
        streams = [
            asyncio.create_task(_stream(client, server.model, asked, expected, i, is_over, outcome))
            for i in range(num_streams)
        ]
        generator = random.Random(seed)
        for _ in range(num_kills):
            await asyncio.sleep(generator.uniform(0.0, 2.5))
            await _kill(client, server.pid, outcome)
        is_over.set()
        await asyncio.gather(*streams)
    return outcome


async def _stream(
    client: httpx.AsyncClient,
    model: str,
    asked: list[Request],
    expected: Sequence[Reply],
    index: int,
    is_over: asyncio.Event,
    outcome: Outcome,
) -> None:
    """One request after the other until it is over."""
    while not is_over.is_set():
        number = index % len(asked)
        index += 7  # has no factor in common with the kinds
        reply = await ask(client, model, asked[number])
        outcome.num_streams += 1
        outcome.gaps_s.append(reply.longest_gap_s)
        if not reply.equals(expected[number]):
            reason = reply.error or f"{reply} in place of {expected[number]}"
            outcome.problems.append(f"{asked[number]}: {reason}")


async def _kill(client: httpx.AsyncClient, server_pid: int, outcome: Outcome) -> None:
    """Kill the engine and wait until there is another."""
    pid = engine_pid(server_pid)
    if pid is None:
        raise RuntimeError("there is no engine to kill")
    os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()
    outcome.num_kills += 1
    root = str(client.base_url).removesuffix("/").removesuffix("/v1")
    while engine_pid(server_pid) in (pid, None) or not await _is_ready(client, root):
        if time.monotonic() - killed_at > _TIMEOUT_S:
            raise RuntimeError("no engine came back")
        await asyncio.sleep(_POLL_S)
    outcome.restart_s.append(time.monotonic() - killed_at)


async def _is_ready(client: httpx.AsyncClient, root: str) -> bool:
    return (await client.get(f"{root}/readyz")).status_code == 200


def engine_pid(server_pid: int) -> int | None:
    """Of the engine among a server's processes."""
    return next((pid for pid in tree(server_pid) if _ENGINE in arguments(pid)), None)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exit status 1 where a stream failed or differed."""
    parser = argparse.ArgumentParser(prog="loadtest.chaos", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--streams", type=int, default=32, help="under way at any time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of the engine")
    args = parser.parse_args(argv)
    limits = Limits(num_threads=args.threads)
    with Server.start(our_recipe(args.model, limits)) as server:
        outcome = asyncio.run(
            run(server, num_kills=args.kills, num_streams=args.streams, seed=args.seed)
        )
    print("\n".join(outcome.lines()))
    sys.exit(1 if outcome.problems else 0)


if __name__ == "__main__":
    main()
