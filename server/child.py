"""One child process of the supervisor: starts it, hands it its options, reads what it says.

Options go over standard input, never over the command line, where every user of the machine could
read the API keys. Standard input stays open: its end tells the child that the supervisor is gone.
Knows nothing about when a child should run (server/supervisor.py).
"""

import asyncio
import ctypes
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field

_ERROR_PREFIX = "error: "
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LINE_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ChildCommand:
    """What to run. `options` is one line of JSON."""

    name: str  # for messages: "the engine"
    argv: tuple[str, ...]
    options: bytes
    inherited_fds: tuple[int, ...] = ()
    on_line: Callable[[str], None] = field(default=lambda line: None)  # standard output


class Child:
    """A running child. `error` is its one line `error: ...`, if it wrote one."""

    def __init__(self, command: ChildCommand, process: Process) -> None:
        self.name = command.name
        self.error: str | None = None
        self.begun_s = time.monotonic()
        self._process = process
        self._readers = (
            asyncio.create_task(self._read_stdout(command.on_line)),
            asyncio.create_task(self._read_stderr()),
        )

    @classmethod
    async def start(cls, command: ChildCommand) -> "Child":
        """Start the process and hand it its options."""
        process = await asyncio.create_subprocess_exec(
            *command.argv,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            pass_fds=command.inherited_fds,
            limit=_LINE_LIMIT_BYTES,
            process_group=0,  # Ctrl-C in the terminal reaches the supervisor alone
            preexec_fn=_die_with_parent(os.getpid()),
        )
        child = cls(command, process)
        assert process.stdin is not None
        process.stdin.write(command.options + b"\n")
        with suppress(ConnectionError):  # it has already exited; wait() tells how
            await process.stdin.drain()
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._process.returncode

    async def wait(self) -> str:
        """Wait for the end and say how it ended: its own error line, or its exit status."""
        status = await self._process.wait()
        await asyncio.gather(*self._readers)
        if self.error is not None:
            return self.error
        if status < 0:
            return f"{self.name} was ended by {signal.Signals(-status).name}"
        return f"{self.name} ended with exit status {status}"

    def send(self, signum: signal.Signals) -> None:
        """Send a signal; a child that is gone is a no-op."""
        if self._process.returncode is None:
            self._process.send_signal(signum)

    async def stop(self, timeout_s: float) -> None:
        """SIGTERM, and SIGKILL when it has not ended in time."""
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                await self.wait()
        except TimeoutError:
            self.send(signal.SIGKILL)
            await self.wait()

    async def _read_stdout(self, on_line: Callable[[str], None]) -> None:
        assert self._process.stdout is not None
        async for line in _lines(self._process.stdout):
            on_line(line.decode(errors="replace").rstrip("\n"))

    async def _read_stderr(self) -> None:
        """Pass everything on but the error line, which the supervisor shows when it gives up."""
        assert self._process.stderr is not None
        async for raw in _lines(self._process.stderr):
            line = raw.decode(errors="replace")
            if line.startswith(_ERROR_PREFIX):
                self.error = line.removeprefix(_ERROR_PREFIX).strip()
            else:
                sys.stderr.write(line)
                sys.stderr.flush()


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines as they come. One that is longer than the limit comes in pieces.

    To give up reading would be to stop the child: it waits where its pipe is full.
    """
    while True:
        try:
            line = await stream.readuntil()
        except asyncio.LimitOverrunError as exc:
            line = await stream.read(max(exc.consumed, 1))
        except asyncio.IncompleteReadError as exc:
            line = exc.partial
        if not line:
            return
        yield line


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    """On Linux the kernel kills the child when the supervisor dies, even while it still loads.

    Elsewhere the child only notices the end of its standard input.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return in_child
