"""`qwen-serve serve`: starts the engine and the HTTP workers, and keeps them running until told to
stop; `qwen-serve engine` and `qwen-serve server`: the same of one half.

Owns the listening socket, the run-time folder with the queue's socket, the restarts (of an engine
that hangs, too) and the drain.
Imports neither torch nor FastAPI, so that the engine is on its way within a moment.
"""

import asyncio
import errno
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from engine.journal import read as read_journal
from engine.redis_queue.names import join_address
from server.blame import Blame
from server.child import Child, ChildCommand
from server.config import ServeConfig
from server.logging import get_logger

logger = get_logger(__name__)

_PYTHON = (
    sys.executable,
    "-P",
    "-m",
)  # -P: a folder named engine/ where the user stands is not ours
_ENGINE = "the engine"
_BACKLOG = 2048
_FIRST_BACKOFF_S = 0.0  # an engine that dies is back as soon as it can be
_SECOND_BACKOFF_S = 0.5
_LAST_BACKOFF_S = 30.0
_STEADY_S = 60.0  # a worker that ran this long starts its back-off from the beginning
_WATCH_S = 0.5
_DUMP_S = 2.0  # for a hung engine to say where it hangs
_DRAIN_MARGIN_S = 10.0  # beyond the limit that the workers have for their requests
_ENGINE_STOP_S = 5.0
_MAX_SHOWN = 200  # characters of a line


class _Ready(msgspec.Struct, frozen=True):
    """What a worker writes on standard output, on one line, once it serves the model."""

    model: str


class StartError(Exception):
    """Serving could not begin; the message is one line fit to be shown to a user."""


@dataclass(frozen=True, slots=True)
class Commands:
    """The modules the children run; tests put their own here."""

    engine: tuple[str, ...] = (*_PYTHON, "engine.process")
    worker: tuple[str, ...] = (*_PYTHON, "server.worker")


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen, or raise StartError with the reason."""
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as exc:
        raise StartError(f"the host {host} cannot be listened on: {exc.strerror}") from exc
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        if exc.errno == errno.EADDRINUSE:
            raise StartError(
                f"port {port} on {host} is in use by another program; choose one with --port"
            ) from exc
        raise StartError(f"cannot listen on {host} port {port}: {exc.strerror}") from exc
    return listener


def serve(
    config: ServeConfig,
    listener: socket.socket | None,
    *,
    has_engine: bool = True,
    commands: Commands | None = None,
) -> int:
    """Serve until a signal; return the exit status. `config.engine.model` is a local path
    and `listener` is closed when the server stops accepting; None: there is no HTTP half.

    Halves that are apart need a queue. Raises StartError when the engine or a worker ends before
    everything was ready.
    """
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="qwen-serve-") as folder:
        runtime = Path(folder)  # 0700
        queue = config.server.queue
        is_apart = listener is None or not has_engine
        assert queue is not None or not is_apart
        address = f"ipc://{runtime}/engine"
        if queue is not None:
            address = join_address(queue, config.server.queue_name)
        config = msgspec.structs.replace(config, engine_address=address)
        multiprocess_dir = None
        if listener is not None and config.server.workers > 1:
            from server.metrics import share_between_workers  # not needed by one worker

            share_between_workers(runtime / "metrics")
            multiprocess_dir = runtime / "metrics"
        supervisor = _Supervisor(
            config,
            listener,
            has_engine,
            commands or Commands(),
            runtime,
            multiprocess_dir,
            started_s,
        )
        return asyncio.run(supervisor.run())


class _Supervisor:
    """The state of one `serve`, inside its event loop."""

    def __init__(
        self,
        config: ServeConfig,
        listener: socket.socket | None,
        has_engine: bool,
        commands: Commands,
        runtime: Path,
        multiprocess_dir: Path | None,
        started_s: float,
    ) -> None:
        self._config = config
        self._listener = listener
        self._has_engine = has_engine
        self._num_workers = config.server.workers if listener is not None else 0
        self._multiprocess_dir = multiprocess_dir
        self._started_s = started_s
        self._stop = asyncio.Event()
        self._ready = asyncio.Event()
        self._num_ready = 0
        self._children: dict[str, Child] = {}
        self._commands = commands
        self._journal = runtime / "journal"
        self._blame = Blame()
        self._hung: Child | None = None
        self._num_engine_restarts = 0

    async def run(self) -> int:
        """Run until stopped. Raises StartError."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_signal)
        keepers = []
        if self._has_engine:  # first: it takes the longest
            keepers.append(asyncio.create_task(self._keep(self._engine_command)))
            keepers.append(asyncio.create_task(self._watch_engine()))
        workers = [partial(self._worker_command, i) for i in range(self._num_workers)]
        keepers += [asyncio.create_task(self._keep(worker)) for worker in workers]
        stopping = asyncio.create_task(self._stop.wait())
        try:
            done, _ = await asyncio.wait((*keepers, stopping), return_when=asyncio.FIRST_COMPLETED)
            if stopping in done:
                await self._drain()
            for keeper in done - {stopping}:
                keeper.result()  # a StartError
            return 0
        finally:
            for task in (*keepers, stopping):
                task.cancel()
            await asyncio.gather(*keepers, stopping, return_exceptions=True)
            for child in self._children.values():
                child.send(signal.SIGKILL)
            await asyncio.gather(*(child.wait() for child in self._children.values()))

    async def _keep(self, make_command: Callable[[], ChildCommand]) -> None:
        """Run a child, again and again once all were ready. Raises StartError before that."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            child = await Child.start(make_command())
            self._children[child.name] = child
            how = await child.wait()
            if self._stop.is_set():
                return
            if not self._ready.is_set():
                raise StartError(how)
            if self._has_served(child):
                backoff_s = _FIRST_BACKOFF_S
            logger.error("child ended", child=child.name, how=how, restart_in_s=backoff_s)
            self._forget(child)
            await asyncio.sleep(backoff_s)
            backoff_s = min(max(2 * backoff_s, _SECOND_BACKOFF_S), _LAST_BACKOFF_S)

    def _has_served(self, child: Child) -> bool:
        if child.name == _ENGINE:
            return read_journal(self._journal).turned_at_s > child.begun_s
        return time.monotonic() - child.begun_s > _STEADY_S

    def _forget(self, child: Child) -> None:
        if child.name == _ENGINE:
            self._num_engine_restarts += 1
            entry, has_hung = read_journal(self._journal), child is self._hung
            self._blame.engine_ended(child.exit_status, entry, has_hung=has_hung)
        elif self._multiprocess_dir is not None:
            from server.metrics import forget_worker

            forget_worker(self._multiprocess_dir, child.pid)

    async def _watch_engine(self) -> None:
        """End an engine whose loop has not turned for too long, so that it is started anew."""
        limit_s = self._config.server.step_timeout
        while True:
            await asyncio.sleep(_WATCH_S)
            turned_at_s = read_journal(self._journal).turned_at_s
            child = self._children.get(_ENGINE)
            if child is None or child.exit_status is not None or turned_at_s < child.begun_s:
                continue
            silent_s = time.monotonic() - turned_at_s
            if silent_s > limit_s:
                logger.error("engine hangs", silent_s=round(silent_s, 1), limit_s=limit_s)
                self._hung = child
                child.send(signal.SIGABRT)  # faulthandler writes where each thread is
                await asyncio.sleep(_DUMP_S)
                child.send(signal.SIGKILL)

    def _on_signal(self) -> None:
        if not self._stop.is_set():
            logger.info("stopping", drain_s=self._config.server.drain_timeout)
            self._stop.set()
            return
        for child in self._children.values():
            child.send(signal.SIGKILL)

    async def _drain(self) -> None:
        """Workers finish their streams, then the engine goes."""
        if self._listener is not None:
            self._listener.close()
        engine = self._children.get(_ENGINE)
        workers = [child for child in self._children.values() if child is not engine]
        limit_s = self._config.server.drain_timeout + _DRAIN_MARGIN_S
        await asyncio.gather(*(child.stop(limit_s) for child in workers))
        if engine is not None:
            await engine.stop(_ENGINE_STOP_S)

    def _on_worker_line(self, line: str) -> None:
        """A worker's one line on standard output: it serves the model."""
        try:
            model = msgspec.json.decode(line, type=_Ready).model
        except (msgspec.DecodeError, RecursionError):
            logger.warning("a worker said what nobody reads", line=line[:_MAX_SHOWN])
            return
        self._num_ready += 1
        if self._num_ready == self._num_workers:
            self._is_ready(f"{self._url()} model {model}")

    def _on_engine_line(self, line: str) -> None:
        """The engine's one line on standard output: its model is loaded and it takes requests."""
        if self._num_workers == 0 and not self._ready.is_set():
            self._is_ready(f"engine of queue {self._config.server.queue_name}")

    def _is_ready(self, what: str) -> None:
        self._ready.set()
        seconds = time.monotonic() - self._started_s
        sys.stdout.write(f"ready: {what} in {seconds:.1f} s\n")
        sys.stdout.flush()

    def _url(self) -> str:
        assert self._listener is not None
        host, port = self._listener.getsockname()[:2]
        scheme = "http" if self._config.server.tls_certificate is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/v1"

    def _engine_command(self) -> ChildCommand:
        options = {
            "engine": self._config.engine,
            "address": self._config.engine_address,
            "log_format": self._config.server.log_format,
            "journal": str(self._journal),
            "suspects": self._blame.suspects,
            "num_restarts": self._num_engine_restarts,
        }
        return ChildCommand(
            _ENGINE,
            self._commands.engine,
            msgspec.json.encode(options),
            on_line=self._on_engine_line,
        )

    def _worker_command(self, index: int) -> ChildCommand:
        assert self._listener is not None
        options = {
            "config": self._config,
            "socket_fd": self._listener.fileno(),
            "multiprocess_dir": str(self._multiprocess_dir) if self._multiprocess_dir else None,
        }
        return ChildCommand(
            f"HTTP worker {index}",
            self._commands.worker,
            msgspec.json.encode(options),
            inherited_fds=(self._listener.fileno(),),
            on_line=self._on_worker_line,
        )
