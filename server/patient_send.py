"""An ASGI `send` that waits for a client only so long.

A client that does not read fills the buffers between; then `send` waits. One timer for a stream,
not one for each event, as there may be tens of thousands of those in a second.
"""

import asyncio

from starlette.types import Message, Send


class PatientSend:
    """Wraps `send` in the task that creates it; cancels that task when its patience is at an end.

    Attributes:
        task: the one that creates it.
        has_given_up: the task was cancelled here.
    """

    def __init__(self, send: Send, limit_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.has_given_up = False
        self.task = task
        self._send = send
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None  # when the message that is being sent was begun
        self._timer = self._loop.call_later(limit_s / 4, self._look)

    async def __call__(self, message: Message) -> None:
        self._since = self._loop.time()
        await self._send(message)
        self._since = None

    def close(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        if self._since is not None and self._loop.time() - self._since > self._limit_s:
            self.has_given_up = True
            self.task.cancel()
        else:
            self._timer = self._loop.call_later(self._limit_s / 4, self._look)
