"""Several servers and engines on one Redis, all on this machine, as processes that can be killed.

Needs `redis-server` on the PATH. Knows nothing of what is sent to them.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from loadtest.chaos import engine_pid
from loadtest.client import Endpoint
from loadtest.processes import tree
from loadtest.servers import OURS, Limits, Recipe, Server, free_port, our_options

_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 180.0
_DRAIN_S = 120


class Process:
    """A command whose output goes to a file; it can be killed with all that it has started."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._command = command
        self.log = log
        self._output: IO[bytes] = log.open("ab")
        self._process = self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL for the whole tree."""
        for pid in tree(self.pid):
            _kill(pid)
        self._process.wait()

    def restart(self) -> None:
        """After `kill` or `stop`."""
        self._process = self._start()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when it has not ended after a while."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def close(self) -> None:
        self.stop()
        self._output.close()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class Cluster:
    """Close it, or use it as a context."""

    def __init__(self, model: str, limits: Limits, *, num_servers: int, num_engines: int) -> None:
        """Start everything and wait until all servers are ready and all engines have joined.

        Raises RuntimeError when something does not start.
        """
        self._stack = ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        redis = ("redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "")
        append = ("--dir", str(folder), "--appendonly", "yes")
        self.url = f"redis://127.0.0.1:{port}/0"
        try:
            self.redis = self._run((*redis, *append), folder / "redis.log")
            program = str(Path(sys.executable).with_name("qwen-serve"))
            queue = ("--queue", self.url, "--drain-timeout", str(_DRAIN_S))
            options = (*queue, *our_options(model, limits))
            self.engines = [
                self._run((program, "engine", *options), folder / f"engine{i}.log")
                for i in range(num_engines)
            ]
            self.endpoints = [Endpoint("127.0.0.1", free_port()) for _ in range(num_servers)]
            self.servers = [
                self._run(
                    (program, "server", *options, "--port", str(endpoint.port)),
                    folder / f"server{endpoint.port}.log",
                )
                for endpoint in self.endpoints
            ]
            for process in (*self.engines, *self.servers):
                self._wait_until_ready(process)
            recipe = Recipe(OURS, url=self.endpoints[0].url)
            self.model = Server.start(recipe).model
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def engine_pid(self, index: int) -> int | None:
        """Of the process that computes, among those of `qwen-serve engine`."""
        return engine_pid(self.engines[index].pid)

    def kill_engine(self, index: int) -> bool:
        """Kill what computes; its parent starts another. False where there is nothing to kill."""
        pid = self.engine_pid(index)
        if pid is not None:
            _kill(pid)
        return pid is not None

    def _run(self, command: Sequence[str], log: Path) -> Process:
        process = Process(command, log)
        self._stack.callback(process.close)
        return process

    def _wait_until_ready(self, process: Process) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while b"\nready: " not in b"\n" + process.log.read_bytes():
            if time.monotonic() > deadline:
                raise RuntimeError(f"it did not start:\n{process.log.read_text()[-2000:]}")
            time.sleep(0.05)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):  # it has ended
        os.kill(pid, signal.SIGKILL)
