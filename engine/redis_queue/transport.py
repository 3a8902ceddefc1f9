"""The queue as an engine sees it; see engine.transport.Transport.

Two threads speak to Redis, so that a step never waits for it: one reads what the engine is to do,
one writes what it has done and its beats. What cannot be written now is written later.
"""

import logging
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import redis

from engine.errors import EngineError
from engine.messages import (
    Abort,
    EngineInfo,
    EngineRequest,
    EngineStats,
    Finished,
    TokenEvent,
)
from engine.redis_queue import frames
from engine.redis_queue.connection import RETRY_S, connect
from engine.redis_queue.frames import EngineBeat, Left, Report, Submission, Taken, Withdrawal
from engine.redis_queue.members import BEAT_S, DEAD_S, Members
from engine.redis_queue.names import GROUP, split_address

logger = logging.getLogger(__name__)

_BLOCK_MS = 200
_FULL_BLOCK_MS = 20  # while there is no room: how late a free place is noticed
_CLOSE_S = 3.0
_PAGE = 100  # entries that are looked at together
_COMPLAIN_S = 5.0

Entry = tuple[bytes, dict[bytes, bytes] | None]  # id and fields
Command = Callable[[Any], object]  # adds itself to a pipeline
Messages = list[Taken | TokenEvent | Finished | Left]


class RedisTransport:
    """One engine's place in the queue at `address` (names.join_address)."""

    def __init__(self, address: str) -> None:
        url, self._names = split_address(address)
        self._reading: Any = connect(url)
        self._writing: Any = connect(url)
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._own = self._names.to_engine(self.name)
        self._info: EngineInfo | None = None
        self._max_num_seqs = 0
        self._stats = EngineStats()
        self._beat_number = 0
        self._servers = Members()
        self._open: dict[str, str] = {}  # attempt -> server
        self._inbox: deque[tuple[bytes, EngineRequest | Abort]] = deque()
        self._gone: deque[bytes] = deque()
        self._arrived = threading.Event()
        self._outbox: deque[Command] = deque()
        self._has_output = threading.Event()
        self._report_lock = threading.Lock()  # both threads and the engine's report
        self._numbers: dict[str, int] = {}  # of the last report to each server
        self._known: set[str] = set()  # servers that have submitted something and live
        self._threads: list[threading.Thread] = []
        self._is_closing = False
        self._complained_s = 0.0

    def open(self, info: EngineInfo, max_num_seqs: int) -> None:
        """Join the queue; waits for Redis. Raises EngineError where it serves another model."""
        self._info = info
        self._max_num_seqs = max_num_seqs
        self._patiently(self._check_model)
        self._patiently(self._create_groups)
        self._patiently(self._beat)
        for work in (self._read, self._write):
            self._threads.append(threading.Thread(target=work, name=work.__name__, daemon=True))
            self._threads[-1].start()
        logger.info("joined the queue", extra={"fields": {"engine": self.name}})

    def wait(self, timeout_s: float) -> None:
        """Return when something is to be done or the time is over."""
        self._arrived.wait(timeout_s)
        self._arrived.clear()

    def receive(self) -> list[tuple[bytes, EngineRequest | Abort]]:
        """All (server, message) that have arrived."""
        messages = []
        while self._inbox:
            messages.append(self._inbox.popleft())
        return messages

    def send(self, client: bytes, messages: Sequence[TokenEvent | Finished]) -> None:
        """Report events to a server; those for one that is gone are dropped."""
        for message in messages:
            if isinstance(message, Finished):
                self._open.pop(message.id, None)
        self._report(client.decode(), list(messages))

    def publish(self, stats: EngineStats) -> None:
        """What the next beats say."""
        self._stats = stats

    def gone(self) -> list[bytes]:
        """Servers that have died since the last call."""
        servers = []
        while self._gone:
            servers.append(self._gone.popleft())
        return servers

    def close(self) -> None:
        """Leave: what is not finished goes to other engines. Waits a moment for Redis."""
        self._is_closing = True
        for server in list(self._known):
            self._report(server, [Left()])
        names = self._names
        self._put(lambda pipe: pipe.hdel(names.engines, self.name))
        self._put(lambda pipe: pipe.delete(self._own))
        for thread in self._threads:
            thread.join(_CLOSE_S)

    # ---- what both threads use ----

    def _put(self, command: Command) -> None:
        self._outbox.append(command)
        self._has_output.set()

    def _report(self, server: str, messages: Messages) -> None:
        def add(pipe: Any) -> None:
            if not self._servers.is_dead(server):
                pipe.xadd(self._names.to_server(server), fields)

        with self._report_lock:
            number = self._numbers[server] = self._numbers.get(server, 0) + 1
            fields = frames.entry(Report(self.name, number, messages))
            self._put(add)

    def _patiently(self, work: Callable[[], object]) -> None:
        """Do it, again and again while Redis cannot be reached."""
        while True:
            try:
                work()
                return
            except redis.RedisError as exc:
                self._complain(exc)
                time.sleep(RETRY_S)

    def _complain(self, problem: Exception) -> None:
        now = time.monotonic()
        if now - self._complained_s > _COMPLAIN_S:
            self._complained_s = now
            logger.warning("the queue cannot be reached: %s", problem)

    # ---- joining ----

    def _check_model(self) -> None:
        """Engines of one queue are alike: any may go on with what another has begun."""
        seen = Members()
        others = self._other_beats()
        seen.update({name: beat.number for name, beat in others.items()})
        if all(self._is_alike(beat) for beat in others.values()):
            return
        time.sleep(3 * BEAT_S)  # is one that differs alive?
        later = self._other_beats()
        for name, beat in later.items():
            if name in others and beat.number != others[name].number and not self._is_alike(beat):
                assert self._info is not None
                raise EngineError(
                    f"The queue serves a model with a context of {beat.info.max_model_len} tokens"
                    f" and {beat.info.vocab_size} ids; this one has {self._info.max_model_len} and"
                    f" {self._info.vocab_size}. Choose another queue_name or the same model and"
                    " max_model_len."
                )

    def _other_beats(self) -> dict[str, EngineBeat]:
        beats = {}
        for name, raw in self._writing.hgetall(self._names.engines).items():
            try:
                beats[name.decode()] = frames.decode_beat(raw)
            except msgspec.DecodeError:
                continue  # of another version
        return beats

    def _is_alike(self, beat: EngineBeat) -> bool:
        assert self._info is not None
        mine, other = self._info, beat.info
        return (mine.vocab_size, mine.max_model_len) == (other.vocab_size, other.max_model_len)

    def _create_groups(self) -> None:
        for stream in (self._names.waiting, self._own):
            try:
                self._writing.xgroup_create(stream, GROUP, id="0", mkstream=True)
            except redis.ResponseError as exc:
                if not str(exc).startswith("BUSYGROUP"):  # it is there
                    raise

    # ---- the reading thread ----

    def _read(self) -> None:
        next_claim_s = 0.0
        while not self._is_closing:
            try:
                if time.monotonic() >= next_claim_s:
                    self._claim()
                    next_claim_s = time.monotonic() + DEAD_S
                has_room = len(self._open) < self._max_num_seqs
                streams = {self._own: ">"} | ({self._names.waiting: ">"} if has_room else {})
                block_ms = _BLOCK_MS if has_room else _FULL_BLOCK_MS
                # one at a time: another engine may have more room
                reply = self._reading.xreadgroup(GROUP, self.name, streams, count=1, block=block_ms)
                for stream, entries in _entries_by_stream(reply):
                    self._take(stream, entries)
            except redis.ResponseError as exc:
                if self._is_closing:
                    return  # the stream has been deleted
                if not str(exc).startswith("NOGROUP"):
                    self._complain(exc)
                self._patiently(self._create_groups)  # Redis has forgotten everything
            except redis.RedisError as exc:
                self._complain(exc)
                time.sleep(RETRY_S)

    def _claim(self) -> None:
        """Take over what engines have died with before they could say that they have it."""
        for stream in (self._names.waiting, self._own):
            if len(self._open) >= self._max_num_seqs:
                return
            _, entries, *_ = self._reading.xautoclaim(
                stream, GROUP, self.name, min_idle_time=int(DEAD_S * 1000), count=4
            )
            self._take(stream, entries)

    def _take(
        self, stream: str, entries: Sequence[tuple[bytes, dict[bytes, bytes] | None]]
    ) -> None:
        for entry_id, fields in entries:
            if fields is not None:  # else it has been deleted meanwhile
                self._handle(fields)
            self._put(partial(_remove, stream=stream, entry_id=entry_id))

    def _handle(self, fields: dict[bytes, bytes]) -> None:
        try:
            frame = frames.to_engine_frame(fields)
        except msgspec.DecodeError as exc:
            logger.error("dropped an entry that is not a message: %s", exc)
            return
        server = frame.server
        match frame:
            case Submission(request=request):
                if request.id in self._open or self._servers.is_dead(server):
                    return
                self._known.add(server)
                self._open[request.id] = server
                self._report(server, [Taken([request.id])])
                self._inbox.append((server.encode(), request))
            case Withdrawal(ids=ids):
                self._inbox.extend((server.encode(), Abort(each)) for each in ids)
        self._arrived.set()

    # ---- the writing thread ----

    def _write(self) -> None:
        unsent: list[Command] = []
        next_beat_s = 0.0
        while not self._is_closing or self._outbox or unsent:
            self._has_output.wait(max(0.0, min(next_beat_s - time.monotonic(), BEAT_S)))
            self._has_output.clear()
            while self._outbox:
                unsent.append(self._outbox.popleft())
            try:
                if unsent:
                    # all or nothing: what is taken out of the queue is somebody's
                    with self._writing.pipeline(transaction=True) as pipe:
                        for command in unsent:
                            command(pipe)
                        pipe.execute()
                    unsent.clear()
                if time.monotonic() >= next_beat_s and not self._is_closing:
                    self._beat()
                    next_beat_s = time.monotonic() + BEAT_S
            except redis.RedisError as exc:
                self._complain(exc)
                time.sleep(RETRY_S)

    def _beat(self) -> None:
        assert self._info is not None
        self._beat_number += 1
        beat = EngineBeat(
            self._beat_number, self._info, self._stats, self._max_num_seqs, len(self._open)
        )
        with self._writing.pipeline(transaction=False) as pipe:
            pipe.hset(self._names.engines, self.name, frames.encode_beat(beat))
            pipe.hgetall(self._names.servers)
            _, servers = pipe.execute()
        self._servers.update({name.decode(): int(number) for name, number in servers.items()})
        for server in list(self._known):
            if self._servers.is_dead(server):
                self._bury(server)

    def _bury(self, server: str) -> None:
        logger.info("server gone", extra={"fields": {"server": server}})
        self._known.discard(server)
        for attempt in [each for each, owner in list(self._open.items()) if owner == server]:
            self._open.pop(attempt, None)
        self._gone.append(server.encode())
        self._arrived.set()
        self._writing.hdel(self._names.servers, server)
        self._writing.delete(self._names.to_server(server))
        self._remove_waiting(server)

    def _remove_waiting(self, server: str) -> None:
        """What it wanted computed goes out of the queue: an engine that joins would not know."""
        waiting, start = self._names.waiting, "-"
        while page := self._writing.xrange(waiting, start, "+", count=_PAGE):
            ids = [entry_id for entry_id, fields in page if _server_of(fields) == server]
            if ids:
                self._writing.xdel(waiting, *ids)
            start = f"({page[-1][0].decode()}"


def _server_of(fields: dict[bytes, bytes]) -> str | None:
    try:
        return frames.to_engine_frame(fields).server
    except msgspec.DecodeError:
        return None


def _remove(pipe: Any, stream: str, entry_id: bytes) -> None:
    pipe.xack(stream, GROUP, entry_id)
    pipe.xdel(stream, entry_id)


def _entries_by_stream(reply: Any) -> list[tuple[str, list[Any]]]:
    """The answer of XREADGROUP, which is a list or, in RESP3, a mapping."""
    pairs = reply.items() if isinstance(reply, dict) else reply or []
    found = []
    for stream, entries in pairs:
        if isinstance(reply, dict):  # one more list around them
            entries = [entry for some in entries for entry in some]
        found.append((stream.decode(), entries))
    return found
