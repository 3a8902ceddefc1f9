"""The engine process: `python -m engine.process`, started by server/supervisor.py.

Reads its options as JSON from standard input, binds its queue, loads the model, then loops: take
what arrived, step, send what came out. One thread. Ends on SIGTERM or when its parent closes
standard input.
"""

import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import FrameType

import msgspec

from engine.config import EngineConfig
from engine.core import Engine
from engine.errors import EngineError, RankLost, RequestRejected
from engine.journal import Journal
from engine.journaled_runner import JournaledRunner
from engine.logs import LogFormat, configure_logging
from engine.messages import (
    Abort,
    EngineRequest,
    Event,
    Fault,
    Finished,
)
from engine.redis_queue.frames import request_id_of
from engine.transport import Transport, transport_at

logger = logging.getLogger(__name__)

STATS_INTERVAL_S = 0.5
COMPILE_POLL_S = 0.001  # while nothing runs and a request waits for its grammar
MAX_DEATHS = 2  # engines that a request may have ended before it is computed alone, a last time
_DEADLY = "The engine has died {} times in a row while it computed this request."


class ProcessOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the parent writes to standard input, on one line."""

    engine: EngineConfig
    address: str  # of the queue: see transport_at
    log_format: LogFormat = "json"
    journal: str | None = None  # a file to be written: see journal.py
    # requests that were computed when engines died -> in how many in a row, without a new token
    suspects: dict[str, int] = {}
    num_restarts: int = 0  # engines before this one, for the statistics


class EngineLoop:
    """Moves messages between the transport and the engine until told to stop."""

    def __init__(
        self,
        engine: Engine,
        transport: Transport,
        journal: Journal | None = None,
        suspects: Mapping[str, int] | None = None,
        on_open: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_open` is called once requests are taken."""
        self._on_open = on_open
        self._engine = engine
        self._transport = transport
        self._journal = journal
        self._suspects = suspects or {}
        self._owners: dict[str, bytes] = {}  # request id -> client
        self._next_stats_s = 0.0
        self._should_stop = False

    def stop(self) -> None:
        """Leave `run` after the current step."""
        self._should_stop = True

    def run(self) -> None:
        """Loop until `stop`. What is under way then is resumed by the next engine, if there is one.

        Raises what a step raises that cannot be recovered from: the process has to end.
        """
        self._transport.publish(self._engine.stats())
        self._transport.open(self._engine.info, self._engine.max_num_seqs)
        self._on_open()
        while not self._should_stop:
            if self._journal is not None:
                self._journal.turn()
            if not self._engine.has_work:
                is_compiling = self._engine.is_compiling
                self._transport.wait(COMPILE_POLL_S if is_compiling else STATS_INTERVAL_S)
            for client, message in self._transport.receive():
                self._handle(client, message)
            for client in self._transport.gone():
                self._drop(client)
            if self._engine.is_compiling:
                self._send_events(self._engine.admit_compiled())
            if self._engine.has_work:
                self._send_events(self._engine.step())
            if time.monotonic() >= self._next_stats_s:
                self._next_stats_s = time.monotonic() + STATS_INTERVAL_S
                self._transport.publish(self._engine.stats())

    def _handle(self, client: bytes, message: EngineRequest | Abort) -> None:
        match message:
            case EngineRequest():
                self._add(client, message)
            case Abort():
                if self._owners.get(message.id) == client:
                    self._send_events(self._engine.abort(message.id))

    def _add(self, client: bytes, request: EngineRequest) -> None:
        if (owner := self._owners.get(request.id)) == client:
            return  # sent once before the engine was greeted, and again after
        if owner is not None:  # a connection that was lost
            del self._owners[request.id]
            self._engine.abort(request.id)
        num_deaths = self._suspects.get(request_id_of(request.id), 0)
        try:
            if num_deaths > MAX_DEATHS:
                raise RequestRejected(Fault("internal", _DEADLY.format(num_deaths)))
            events = self._engine.add(request, is_suspect=num_deaths == MAX_DEATHS)
        except RequestRejected as exc:
            self._transport.send(client, [Finished(request.id, "error", fault=exc.fault)])
        except Exception as exc:  # a bug that this request meets: it would meet it again
            logger.exception("request not added")
            fault = Fault("internal", f"The request could not be added: {exc}")
            self._transport.send(client, [Finished(request.id, "error", fault=fault)])
        else:
            self._owners[request.id] = client
            self._send_events(events)

    def _send_events(self, events: list[Event]) -> None:
        """Send each client its events in one frame."""
        by_client: defaultdict[bytes, list[Event]] = defaultdict(list)
        for event in events:
            by_client[self._owners[event.id]].append(event)
            if isinstance(event, Finished):
                del self._owners[event.id]
        for client, messages in by_client.items():
            self._transport.send(client, messages)

    def _drop(self, client: bytes) -> None:
        """Abort everything of a client that is gone."""
        orphans = [request_id for request_id, owner in self._owners.items() if owner == client]
        logger.info("client gone", extra={"fields": {"aborted_sequences": len(orphans)}})
        for request_id in orphans:
            del self._owners[request_id]
            self._engine.abort(request_id)


def set_thread_policy() -> None:
    """Let idle OpenMP threads sleep soon; call it before torch is imported.

    GNU OpenMP spins for milliseconds at the end of every parallel operation. Where another process,
    such as the HTTP server, needs that core, the spinning is what it has to wait for: on a busy
    machine with two cores that costs half of the tokens per second (docs/benchmarks.md).
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def main() -> None:
    """Entry point. Exit status 1 with one line `error: ...` on stderr when the model cannot be
    served.
    """
    faulthandler.enable()  # says where a crash, or a hang that is ended, has happened
    configure_logging()
    set_thread_policy()
    options = msgspec.json.decode(sys.stdin.readline(), type=ProcessOptions)
    configure_logging(options.log_format)
    transport = transport_at(options.address)
    try:
        # imports torch: after the socket is bound, so that clients connect meanwhile
        from engine.load import load_engine

        engine = load_engine(options.engine)
    except EngineError as exc:
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(1)
    engine.num_restarts = options.num_restarts
    gc.collect()
    gc.freeze()  # what is loaded stays: a collection that walks through it is a stall of a stream
    journal = None
    if options.journal is not None:
        journal = Journal(options.journal)
        engine.runner = JournaledRunner(engine.runner, journal)
    loop = EngineLoop(engine, transport, journal, options.suspects, on_open=_say_ready)

    def stop(signum: int, frame: FrameType | None) -> None:
        loop.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the supervisor decides
    threading.Thread(target=_stop_with_parent, args=(loop,), daemon=True).start()
    if engine.grammars is not None:
        engine.grammars.start()
    try:
        loop.run()
    except (EngineError, RankLost) as exc:
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(1)
    engine.close()
    transport.close()


def _say_ready() -> None:
    """The one line on standard output."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def _stop_with_parent(loop: EngineLoop) -> None:
    """Standard input ends when the parent is gone, however it went."""
    while os.read(0, 1 << 16):  # not sys.stdin: its lock would outlive this daemon thread
        pass
    loop.stop()


if __name__ == "__main__":
    main()
