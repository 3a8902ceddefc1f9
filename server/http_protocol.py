"""uvicorn's HTTP, but that bytes which are no HTTP are answered as everything else is.

uvicorn itself refuses them before there is an ASGI request: with a line of text, without an id, and
uncounted.
"""

import asyncio
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from protocol.errors import InvalidRequest
from server.errors import error_response
from server.metrics import Metrics
from server.middleware import RequestMiddleware
from server.tracing import NO_TRACES, Traces


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    error = InvalidRequest(
        "The request is not valid HTTP.", code="invalid_http", headers={"connection": "close"}
    )
    await error_response(error)(scope, receive, send)


def http_protocol(metrics: Metrics, traces: Traces = NO_TRACES) -> type[HttpToolsProtocol]:
    """The class that uvicorn makes of each connection."""
    refusing: ASGIApp = RequestMiddleware(_refuse, metrics, traces)

    class Protocol(HttpToolsProtocol):
        def send_400_response(self, msg: str) -> None:
            task = asyncio.get_running_loop().create_task(self._refuse())
            self.tasks.add(task)  # so that a shutdown waits for it
            task.add_done_callback(self.tasks.discard)

        async def _refuse(self) -> None:
            written: list[bytes] = []

            async def send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = HTTPStatus(message["status"])
                    written.append(b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()))
                    written.extend(b"%s: %s\r\n" % header for header in message["headers"])
                    written.append(b"\r\n")
                else:
                    written.append(message["body"])

            scope = {"type": "http", "method": "unknown", "path": "", "headers": []}
            await refusing(scope, _nothing, send)
            self.transport.write(b"".join(written))
            self.transport.close()

    return Protocol


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
