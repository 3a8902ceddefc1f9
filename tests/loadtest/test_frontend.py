"""The load generator counts every event once, however the network cuts the stream."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.frontend import stream_once

EVENTS = b'data: {"a": 1}\n\ndata: {"b": 2}\n\ndata: {"c": 3}\n\n'
DONE = b"data: [DONE]\n\n"


async def count(pieces: list[bytes]) -> tuple[int, bool]:
    """What stream_once makes of a server that sends `pieces` in writes of their own."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.002)  # so that the pieces are read apart
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        result = await stream_once(server.sockets[0].getsockname()[1], "chat", 1)
    return result.num_chunks, result.is_complete


async def test_counts_events_cut_at_every_offset() -> None:
    body = EVENTS + DONE
    assert await count([body]) == (3, True)
    for cut in range(1, len(body)):
        assert await count([body[:cut], body[cut:]]) == (3, True), cut


async def test_single_bytes_and_the_end_of_a_chunked_body() -> None:
    body = EVENTS + DONE + b"\r\n0\r\n\r\n"
    assert await count([body[i : i + 1] for i in range(len(body))]) == (3, True)


async def test_a_stream_that_breaks_off_is_an_error() -> None:
    assert await count([EVENTS]) == (3, False)


@pytest.mark.real_model
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_measures_the_real_application(endpoint: str, smollm2_path: Path) -> None:
    command = [sys.executable, "-m", "loadtest.frontend", "--model", str(smollm2_path)]
    options = ["--streams", "3", "--requests", "2", "--tokens", "20", "--endpoint", endpoint]
    run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    lines = dict(line.split(maxsplit=1) for line in run.stdout.splitlines() if line[:6] != "chunks")
    assert lines["errors"] == "0"
    num_chunks = int(run.stdout.splitlines()[0].split()[1])
    assert 6 * 10 < num_chunks <= 6 * 22  # half characters give no chunk; role and finish give one
