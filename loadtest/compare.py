"""Our server beside others, over HTTP: `python -m loadtest.compare --model FILE --peer NAME=PATH`.

Starts qwen-serve and the peers, sends all of them the same seeded workloads with the same client,
turn by turn for several rounds, and prints, writes and draws throughput, times to the first token
and between tokens, memory and start times, ours over theirs.

A peer is `llama-server=PROGRAM`, `vllm=PYTHON` (of its virtual environment; it serves the folder
--vllm-model), `qwen-serve-NAME=PROGRAM` (another build of ours), or `NAME=URL` of a server that
runs. All servers stay up, and those that wait for their turn are stopped by a signal meanwhile, as
some of them poll; with --keep-running they are not, and what they compute is told. Linux only.
"""

import argparse
import asyncio
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loadtest.client import Answer
from loadtest.comparison import Run, measure, memory_runs
from loadtest.machine import Machine
from loadtest.processes import PeakMemory, StallWatch, stopped, tree_cpu_s
from loadtest.report import Report, ServerReport
from loadtest.servers import (
    OURS,
    VLLM,
    Limits,
    Recipe,
    Server,
    assignments,
    our_recipe,
    peer_recipe,
)
from loadtest.workloads import WORKLOADS, Call, Workload, chat, decode, prefill, run

_MAX_ERRORS = 5  # of a run, that are kept
_IDLE_CORES = 0.05  # more than this is worth a warning
LONGEST_STALL_S = 2.0
_MAX_ATTEMPTS = 3
_ATTEMPT = 1_000_000  # added to a round's number, for prompts that no cache knows


@dataclass(slots=True)
class Comparison:
    """The servers that take turns; `recipes[0]` is ours."""

    recipes: Sequence[Recipe]
    workloads: Sequence[Workload]
    report: Report
    num_starts: int = 1
    num_rounds: int = 5
    pauses: bool = True  # the processes that wait for their turn
    timeout_s: float = 900.0

    def run(self, write: Path) -> None:
        """Start, measure in turns, and stop. What is known is written after every round."""
        with ExitStack() as stack:
            servers = self._start(stack)
            self.report.save(write)
            for server in servers:
                self._warm_up(server)
            for i in range(self.num_rounds):
                turn = i % len(servers)
                for workload in self.workloads:
                    for server in [*servers[turn:], *servers[:turn]]:
                        others = [other for other in servers if other is not server]
                        self._add(self._undisturbed(server, workload, i, others))
                for result in memory_runs(self.report.runs, i):
                    self.report.add(result)
                self.report.save(write)

    def _start(self, stack: ExitStack) -> list[Server]:
        """Start each server several times; the last time it stays."""
        servers = []
        for i in range(self.num_starts):
            for recipe in self.recipes:
                if not recipe.command:
                    if i == self.num_starts - 1:
                        servers.append(stack.enter_context(Server.start(recipe)))
                    continue
                with self._stopped(servers):
                    server = stack.enter_context(Server.start(recipe))
                    self.report.add(self._first_token(server, i))
                if i == self.num_starts - 1:
                    servers.append(server)
                else:
                    server.close()
        return servers

    def _first_token(self, server: Server, round_number: int) -> Run:
        ready_s = time.perf_counter() - server.started
        call = chat(("user", "Hello."), num_tokens=1)
        (answer,) = self._ask(server, [call], 1)
        metrics = {"ready_s": ready_s}
        if not answer.error:
            metrics["first_token_s"] = answer.started + answer.first_token_s - server.started
        return Run(
            server=server.name,
            workload="start",
            round=round_number,
            metrics=metrics,
            num_calls=1,
            num_failed=int(bool(answer.error)),
            errors=[answer.error] if answer.error else [],
        )

    def _ask(self, server: Server, calls: list[Call], concurrency: int) -> list[Answer]:
        return asyncio.run(run(server.endpoint, server.model, calls, concurrency, self.timeout_s))

    def _warm_up(self, server: Server) -> None:
        for workload in (decode(8, 8), prefill(512, 1)):
            calls = workload.calls(self.report.seed, -1)
            self._ask(server, calls, workload.concurrency)

    def _undisturbed(
        self, server: Server, workload: Workload, round_number: int, others: list[Server]
    ) -> Run:
        """Measure, and with other prompts again where the machine stood still meanwhile."""
        for attempt in range(_MAX_ATTEMPTS):
            calls = workload.calls(self.report.seed, round_number + attempt * _ATTEMPT)
            result = self._measure(server, workload, calls, others)
            if result.stall_s < LONGEST_STALL_S:
                break
            print(f"   the machine stood still for {result.stall_s:.1f} s", flush=True)
        return msgspec.structs.replace(result, round=round_number)

    def _measure(
        self, server: Server, workload: Workload, calls: list[Call], others: list[Server]
    ) -> Run:
        with self._stopped(others):
            # the system may have taken pages of files from it while it waited
            self._ask(server, [chat(("user", "Go on."), num_tokens=8)], 1)
            load = os.getloadavg()[0]
            sampler = PeakMemory(server.pid) if server.pid is not None else None
            watch = StallWatch()
            cpu = _CpuTimes(server.pid, _pids(others))
            answers = self._ask(server, calls, workload.concurrency)
            server_cores, client_cores, idle_cores = cpu.cores()
            stall_s = watch.close()
            peak = sampler.close() if sampler is not None else None
        failed = [answer.error for answer in answers if answer.error]
        return Run(
            server=server.name,
            workload=workload.name,
            round=0,
            metrics=measure(calls, answers),
            num_calls=len(calls),
            num_failed=len(failed),
            errors=list(dict.fromkeys(failed))[:_MAX_ERRORS],
            num_prompt_tokens=sum(answer.num_prompt_tokens for answer in answers),
            num_output_tokens=sum(answer.num_output_tokens for answer in answers),
            memory=peak,
            server_cores=server_cores,
            client_cores=client_cores,
            idle_cores=idle_cores,
            load=load,
            stall_s=stall_s,
        )

    def _stopped(self, servers: list[Server]) -> AbstractContextManager[None]:
        return stopped(_pids(servers) if self.pauses else [])

    def _add(self, result: Run) -> None:
        self.report.add(result)
        if (result.idle_cores or 0) > _IDLE_CORES:
            print(f"   the waiting servers took {result.idle_cores:.2f} cores", flush=True)


def _pids(servers: list[Server]) -> list[int]:
    return [server.pid for server in servers if server.pid is not None]


class _CpuTimes:
    """What processes computed since this was made, in cores."""

    def __init__(self, server: int | None, waiting: list[int]) -> None:
        self._server, self._waiting = server, waiting
        self._before = self._read()

    def _read(self) -> tuple[float, float, float, float]:
        server_s = tree_cpu_s(self._server) if self._server is not None else 0.0
        idle_s = sum(map(tree_cpu_s, self._waiting))
        return time.perf_counter(), server_s, time.process_time(), idle_s

    def cores(self) -> tuple[float | None, float, float]:
        """Of the server, of this process, of the servers that wait."""
        wall_s, server_s, client_s, idle_s = (
            now - before for now, before in zip(self._read(), self._before, strict=True)
        )
        server = server_s / wall_s if self._server is not None else None
        return server, client_s / wall_s, idle_s / wall_s


def recipes_of(args: argparse.Namespace, folder: Path) -> list[Recipe]:
    """Ours and the peers'. Raises ValueError with a sentence for the user.

    Each peer gets a copy of a model's file in `folder`, or PSS would halve the pages that two
    servers map.
    """
    limits = Limits(num_threads=args.threads, max_num_seqs=args.max_num_seqs)
    peers = assignments(args.peer)
    options = {name: tuple(shlex.split(text)) for name, text in assignments(args.options).items()}
    if unknown := options.keys() - peers.keys() - {OURS}:
        raise ValueError(f"--options for {', '.join(sorted(unknown))}, which is no server here")
    recipes = [our_recipe(args.model, limits, program=args.program, options=options.get(OURS, ()))]
    for name, target in peers.items():
        if name == OURS:
            raise ValueError(f"a peer needs another name than {OURS}")
        model = args.model
        if Path(model).is_file() and not name.startswith(VLLM) and not target.startswith("http"):
            (folder / name).mkdir()
            model = shutil.copy(model, folder / name)
        recipes.append(
            peer_recipe(name, target, model, args.vllm_model, limits, options.get(name, ()))
        )
    return recipes


def report_of(args: argparse.Namespace, recipes: Sequence[Recipe]) -> Report:
    """The report before anything is measured."""
    machine = Machine.here()
    return Report(
        title=f"{Path(args.model).name}, {machine.cpu}, {args.threads} threads",
        machine=machine,
        seed=args.seed,
        workloads={workload.name: workload.about for workload in chosen(args.workloads)},
        servers=[ServerReport.of(recipe) for recipe in recipes],
    )


def chosen(names: Sequence[str]) -> list[Workload]:
    """The workloads of these names, in their own order; all for no names."""
    return [workload for workload in WORKLOADS if not names or workload.name in names]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loadtest.compare", description=__doc__)
    parser.add_argument("--model", required=True, help="ours, and of llama-server: a .gguf file")
    parser.add_argument("--vllm-model", default="", help="the same in the hub's layout, BF16")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=TARGET")
    parser.add_argument(
        "--options", action="append", default=[], metavar="NAME=OPTIONS", help="added to a command"
    )
    parser.add_argument("--program", default="", help="our command; default: this installation's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=3, help="of each server, for the start time")
    parser.add_argument(
        "--workloads", nargs="+", default=[], choices=[workload.name for workload in WORKLOADS]
    )
    parser.add_argument("--threads", type=int, default=2, help="of each server")
    parser.add_argument("--max-num-seqs", type=int, default=32, help="of each server")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--keep-running", action="store_true", help="do not stop waiting servers")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one answer")
    parser.add_argument("--json", type=Path, default=Path("comparison.json"))
    parser.add_argument("--plot", type=Path, default=Path("comparison.png"))
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        try:
            recipes = recipes_of(args, Path(folder))
        except ValueError as exc:
            sys.exit(f"error: {exc}")
        report = report_of(args, recipes)
        comparison = Comparison(
            recipes,
            chosen(args.workloads),
            report,
            num_starts=args.starts,
            num_rounds=args.rounds,
            pauses=not args.keep_running,
            timeout_s=args.timeout,
        )
        for number in (signal.SIGINT, signal.SIGTERM):  # the first may be ignored in the background
            signal.signal(number, signal.default_int_handler)
        try:
            comparison.run(args.json)
        except RuntimeError as exc:
            sys.exit(f"error: {exc}")
        except KeyboardInterrupt:
            print("interrupted: what is known so far follows")
            report.save(args.json)
    report.tell(args.json, args.plot)


if __name__ == "__main__":
    main()
