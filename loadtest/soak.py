"""Mixed load for a long time: `python -m loadtest.soak --model FILE --minutes 60`.

A server of its own gets rounds of traffic of every kind (loadtest/soak_clients.py). After each the
clients wait until nothing runs, and what an idle server holds is written down: memory, files and
threads of each process, tasks of the HTTP worker, blocks of the KV cache. Exit status 1 where any
of that grows (loadtest/soak_report.py), or a request ended as it should not. Linux only.
"""

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from loadtest.machine import Machine
from loadtest.processes import arguments, holdings, tree
from loadtest.servers import Limits, Server, our_recipe
from loadtest.soak_clients import Clients
from loadtest.soak_report import Sample, SoakReport, draw, trends

_ROLES = {
    "server.worker": "worker",
    "engine.process": "engine",
    "engine.grammar_process": "grammars",
}
_IDLE_TIMEOUT_S = 120.0
_SETTLE_S = 2.0  # statistics come twice a second; what is closed is freed a little later
_POLL_S = 0.2
_BLOCKS = "blocks in use"


async def run(
    server: Server, *, seconds: float, round_s: float, num_clients: int, seed: int, command: str
) -> SoakReport:
    """Rounds of load until the time is over."""
    assert server.pid is not None
    clients = Clients(server.endpoint, server.model, seed)
    begun = time.monotonic()
    samples: list[Sample] = []
    while time.monotonic() - begun < seconds:
        await clients.run(num_clients, round_s)
        values = await _idle_values(server)
        elapsed_s = time.monotonic() - begun
        samples.append(Sample(elapsed_s, clients.tally.num_requests, values))
        if values[_BLOCKS]:
            clients.tally.problem(f"{values[_BLOCKS]:.0%} of the blocks are in use by nobody")
        held = ", ".join(f"{name} {value:.0f}" for name, value in values.items())
        print(f"{elapsed_s:.0f} s, {clients.tally.num_requests} requests: {held}", flush=True)
    tally = clients.tally
    return SoakReport(
        command=command,
        machine=Machine.here(),
        seconds=time.monotonic() - begun,
        ended=dict(tally.ended),
        num_refused=tally.num_refused,
        problems=tally.problems,
        num_problems=tally.num_problems,
        samples=samples,
        trends=trends(samples),
    )


async def _idle_values(server: Server) -> dict[str, float]:
    """What is held once nothing runs. Raises RuntimeError where something goes on for ever."""
    assert server.pid is not None
    root = server.endpoint.url.removesuffix("/v1")
    deadline = time.monotonic() + _IDLE_TIMEOUT_S
    async with httpx.AsyncClient(base_url=root, trust_env=False) as client:
        while not _is_idle(metrics := await _metrics(client)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"requests run that nobody waits for: {metrics}")
            await asyncio.sleep(_POLL_S)
        await asyncio.sleep(_SETTLE_S)
        metrics = await _metrics(client)
    return {
        **_held_by_processes(server.pid),
        "tasks": metrics["qwen_serve_event_loop_tasks"],
        _BLOCKS: metrics["qwen_serve_engine_kv_cache_usage_ratio"],
    }


def _is_idle(metrics: dict[str, float]) -> bool:
    return not any(
        metrics[f"qwen_serve_{name}"]
        for name in ("engine_running_sequences", "engine_waiting_sequences", "requests_in_progress")
    )


async def _metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """The values by name; of those with labels one."""
    text = (await client.get("/metrics")).text
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def _held_by_processes(root: int) -> dict[str, float]:
    """Memory, files and threads, by what a process is."""
    values: Counter[str] = Counter()
    for pid in tree(root):
        role = next((_ROLES[name] for name in arguments(pid) if name in _ROLES), "supervisor")
        held = holdings(pid)
        values[f"bytes {role}"] += held.num_bytes
        values[f"files {role}"] += held.num_files
        values[f"threads {role}"] += held.num_threads
    return dict(values)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="loadtest.soak", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--round-seconds", type=float, default=45.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--max-waiting", type=int, default=12, help="few, so that some are refused")
    parser.add_argument("--threads", type=int, default=2, help="of the engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a .json file; the picture is put beside it")
    args = parser.parse_args(argv)
    # A small cache: all of it has been written to, and so counts as memory, before the warm-up ends
    limits = Limits(num_threads=args.threads, max_model_len=2048, max_num_seqs=16)
    options = ("--max-waiting", str(args.max_waiting), "--kv-cache-memory", "192MiB")
    command = f"python -m loadtest.soak {' '.join(sys.argv[1:] if argv is None else argv)}"
    with Server.start(our_recipe(args.model, limits, options=options)) as server:
        report = asyncio.run(
            run(
                server,
                seconds=60 * args.minutes,
                round_s=args.round_seconds,
                num_clients=args.clients,
                seed=args.seed,
                command=command,
            )
        )
    print("\n".join(report.lines()))
    if args.output is not None:
        args.output.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        if find_spec("matplotlib") is not None:
            draw(report, args.output.with_suffix(".png"))
    sys.exit(not report.is_well)


if __name__ == "__main__":
    main()
