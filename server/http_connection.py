"""uvicorn's HTTP connection, with limits on what one client may make the server keep, and refusals
like all others.

uvicorn reads headers of any size, and waits for ever for a request that does not go on and for a
client that does not read. Anyone who can reach the port could fill the memory, or all file
descriptors, without a key. And where a request asks for another protocol, httptools takes its body
for the next request: Java's HttpClient asks for HTTP/2 that way, and so can who wants to smuggle a
request past a proxy. What is refused here has its id, its line in the log and its place in the
metrics, as a request that gets further has. Used by server/worker.py.
"""

import asyncio

import httptools
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from protocol.errors import ApiError, HeadersTooLarge, InvalidRequest, RequestTooSlow
from server.errors import error_response
from server.metrics import Metrics
from server.middleware import RequestMiddleware
from server.tracing import NO_TRACES, Traces

MAX_HEAD_BYTES = 64 * 1024  # request line and headers
HEAD_TIMEOUT_S = 30.0  # for them to arrive
BODY_TIMEOUT_S = 300.0  # for the body, behind them: the largest in time takes 56 KB a second
WRITE_TIMEOUT_S = 90.0  # how long all that the server has to say may be left unread

_LAST_WORDS_S = 5.0  # for a refusal to be read
_CONNECT = b"CONNECT"


def _not_http() -> ApiError:
    message = "The request could not be understood: it is not valid HTTP/1.1."
    return InvalidRequest(message, code="invalid_http", headers=_CLOSE)


def _head_too_large() -> ApiError:
    message = f"The request's headers are larger than {MAX_HEAD_BYTES} bytes."
    return HeadersTooLarge(message, headers=_CLOSE)


def _too_slow() -> ApiError:
    return RequestTooSlow("The request did not arrive in time.", headers=_CLOSE)


_CLOSE = {"connection": "close"}


class _Refused(Exception):
    """Raised in a callback of the parser, which then reads no further."""


class BoundedConnection(HttpToolsProtocol):
    """One connection. What is over a limit is answered where nothing else is being, and closed."""

    metrics: Metrics
    traces: Traces = NO_TRACES

    _is_refused = False
    _has_large_head = False
    _is_in_head = False
    _num_head_bytes = 0
    _reading: asyncio.TimerHandle | None = None  # until the request that has begun is there
    _writing: asyncio.TimerHandle | None = None  # until the client reads again

    # of asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        self._end_writing_limit()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return  # TLS goes on reading until the client agrees to close
        self._unset_keepalive_if_required()
        if self._reading is None:
            self._expect(HEAD_TIMEOUT_S)
        # the beginning of a head is in no more bytes than are read at once
        num_head_bytes = len(data) if self._is_in_head else 0
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(_head_too_large() if self._has_large_head else _not_http())
        if self._is_in_head:
            self._num_head_bytes += num_head_bytes
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse(_head_too_large())

    def _feed(self, data: bytes) -> None:
        """Parse. A wish for another protocol is not heard: the request is one without it."""
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        """The head that was just parsed, to be parsed again."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % pair for pair in self.headers if pair[0] != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def pause_writing(self) -> None:
        super().pause_writing()
        self._limit_writing()

    def resume_writing(self) -> None:
        self._end_writing_limit()
        super().resume_writing()

    # of the parser

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._num_head_bytes = 0
        if self._reading is None:
            self._expect(HEAD_TIMEOUT_S)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        num_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if num_bytes > MAX_HEAD_BYTES:
            self._has_large_head = True
            raise _Refused
        if self.parser.should_upgrade():
            if self.parser.get_method() == _CONNECT:
                raise _Refused
            return  # the parser stops here
        self._expect(BODY_TIMEOUT_S)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._expect(None)
            super().on_message_complete()

    # of uvicorn

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # once the client has read all
            self._limit_writing()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # a close would wait for the client to read
        super().timeout_keep_alive_handler()

    @property
    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: ApiError) -> None:
        """Answer as every error is answered, and close."""
        if self.transport.is_closing() or self._is_refused:
            return
        self._is_refused = True
        # else it would be read as the answer to the request before, or as part of that
        if not self._is_busy or (self.cycle.more_body and not self.cycle.response_started):
            task = self.loop.create_task(self._answer(error))
            self.tasks.add(task)  # so that a shutdown waits for it
            task.add_done_callback(self.tasks.discard)
            return
        self.logger.warning("request refused", extra={"status": error.status})
        self.transport.close()
        self._limit_writing()

    async def _answer(self, error: ApiError) -> None:
        written: list[bytes] = []

        async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
            await error_response(error)(scope, receive, send)

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                written.append(STATUS_LINE[message["status"]])
                written.extend(b"%s: %s\r\n" % header for header in message["headers"])
                written.append(b"\r\n")
            else:
                written.append(message["body"])

        scope: Scope = {"type": "http", "method": "unknown", "path": "", "headers": []}
        await RequestMiddleware(refuse, self.metrics, self.traces)(scope, _nothing, send)
        self.transport.write(b"".join(written))
        self.transport.close()
        self.loop.call_later(_LAST_WORDS_S, self.transport.abort)

    def _expect(self, timeout_s: float | None) -> None:
        """The clock for what has to arrive next; None: nothing has to."""
        if self._reading is not None:
            self._reading.cancel()
        self._reading = None
        if timeout_s is not None:
            self._reading = self.loop.call_later(timeout_s, self._is_too_slow, timeout_s)

    def _is_too_slow(self, timeout_s: float) -> None:
        has_begun = self._is_in_head or (self._is_busy and self.cycle.more_body)
        if self.flow.read_paused or (self._is_busy and not has_begun):
            self._expect(timeout_s)  # it is we who do not read; or all there is is an empty line
        elif has_begun:
            self._refuse(_too_slow())
        else:  # opened ahead of a request that did not come: an answer would be to the next one
            self.transport.close()

    def _limit_writing(self) -> None:
        if self._writing is None:
            self._writing = self.loop.call_later(WRITE_TIMEOUT_S, self.transport.abort)

    def _end_writing_limit(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
        self._writing = None


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def connection_class(metrics: Metrics, traces: Traces = NO_TRACES) -> type[BoundedConnection]:
    """What uvicorn makes of each connection."""
    return type("Connection", (BoundedConnection,), {"metrics": metrics, "traces": traces})
