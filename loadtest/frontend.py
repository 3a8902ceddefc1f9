"""How many stream chunks a second the HTTP side alone can send: `python -m loadtest.frontend`.

Starts the real application under uvicorn in a child process pinned to one core, with a fake engine
that says one token per event as fast as it is asked, and drives it from this process with raw
sockets that only count events. On a busy machine the wall clock says little: what counts is chunks
per second of the server's own CPU time.
"""

import argparse
import asyncio
import cProfile
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from engine.checkpoint import Checkpoint
from engine.fake import FakeEngine, Script
from engine.messages import EngineRequest, Event, Finished, TokenEvent
from server.admission import Admission
from server.app import create_app
from server.config import ServerConfig
from server.logging import configure
from server.metrics import Metrics
from server.served_model import ModelText, served_model
from server.state import AppState

_EVENT = b"data: "
_DONE = b"data: [DONE]"
_TAIL_BYTES = 64  # holds the last event and the end of the chunked encoding
_ANSWER = "A café in 巴黎 costs 3 €, and the rest of this sentence is plain English text. "
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the server: every stream sends one request after the other."""

    num_streams: int
    num_requests: int  # of each stream
    num_tokens: int  # of each request


@dataclass(frozen=True, slots=True)
class Result:
    num_chunks: int
    num_errors: int
    wall_s: float
    server_cpu_s: float
    gaps_s: list[float]  # between two reads of one stream that brought events

    def report(self) -> str:
        gaps_ms = [gap * 1000 for gap in self.gaps_s]
        cuts = statistics.quantiles(gaps_ms, n=100) if len(gaps_ms) > 1 else [0.0] * 99
        return "\n".join(
            (
                f"chunks                     {self.num_chunks}",
                f"errors                     {self.num_errors}",
                f"wall                       {self.wall_s:.2f} s",
                f"server CPU                 {self.server_cpu_s:.2f} s",
                f"chunks per second          {self.num_chunks / self.wall_s:.0f}",
                f"chunks per CPU second      {self.num_chunks / max(self.server_cpu_s, 1e-9):.0f}",
                f"gap in a stream            p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms",
            )
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="loadtest.frontend", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file, for its tokenizer")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--requests", type=int, default=4, help="of each stream")
    parser.add_argument("--tokens", type=int, default=256, help="of each request")
    parser.add_argument("--endpoint", choices=("chat", "completions"), default="chat")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds between tokens")
    parser.add_argument("--serve-on", type=int, help=argparse.SUPPRESS)  # fd: be the server
    parser.add_argument("--profile", type=Path, help="write the server's cProfile here")
    options = parser.parse_args()
    if options.serve_on is not None:
        _be_the_server(options.model, options.serve_on, options.pace, options.profile)
        return
    load = Load(options.streams, options.requests, options.tokens)
    result = _measure(load, options.endpoint, sys.argv[1:])
    print(result.report())
    sys.exit(1 if result.num_errors else 0)


def _measure(load: Load, endpoint: str, arguments: list[str]) -> Result:
    """Run the server in a child process and `load` against it."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        port = listener.getsockname()[1]
        number = str(listener.fileno())
        command = [sys.executable, "-m", "loadtest.frontend", *arguments, "--serve-on", number]
        server = subprocess.Popen(command, pass_fds=[listener.fileno()])
        try:
            return asyncio.run(_drive(server.pid, port, load, endpoint))
        finally:
            server.terminate()
            server.wait()


async def _drive(pid: int, port: int, load: Load, endpoint: str) -> Result:
    await asyncio.gather(*(stream_once(port, endpoint, 8) for _ in range(4)))  # warm up
    cpu_before, started = _cpu_s(pid), time.perf_counter()
    streams = [_stream_often(port, endpoint, load) for _ in range(load.num_streams)]
    counts = [count for stream in await asyncio.gather(*streams) for count in stream]
    wall_s = time.perf_counter() - started
    return Result(
        num_chunks=sum(count.num_chunks for count in counts),
        num_errors=sum(not count.is_complete for count in counts),
        wall_s=wall_s,
        server_cpu_s=_cpu_s(pid) - cpu_before,
        gaps_s=[gap for count in counts for gap in count.gaps_s],
    )


@dataclass(frozen=True, slots=True)
class StreamCount:
    num_chunks: int
    is_complete: bool
    gaps_s: list[float]


async def _stream_often(port: int, endpoint: str, load: Load) -> list[StreamCount]:
    return [await stream_once(port, endpoint, load.num_tokens) for _ in range(load.num_requests)]


async def stream_once(port: int, endpoint: str, num_tokens: int) -> StreamCount:
    """One streamed request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(_request(endpoint, num_tokens))
    num_chunks, gaps_s, last, tail = 0, [], 0.0, b""
    while received := await reader.read(1 << 18):
        now = time.perf_counter()
        # an event's mark may be cut in two; so much of the last read cannot hold a whole one
        num_new = (tail[-len(_EVENT) + 1 :] + received).count(_EVENT)
        tail = (tail + received)[-_TAIL_BYTES:]
        if num_new and last:
            gaps_s.append(now - last)
        last = now if num_new else last
        num_chunks += num_new
    writer.close()
    await writer.wait_closed()
    is_complete = _DONE in tail
    return StreamCount(num_chunks - is_complete, is_complete, gaps_s)


def _request(endpoint: str, num_tokens: int) -> bytes:
    body: dict[str, object] = {"model": "frontend", "stream": True, "max_tokens": num_tokens}
    if endpoint == "chat":
        path = "/v1/chat/completions"
        body["messages"] = [{"role": "user", "content": "Tell me something."}]
    else:
        path = "/v1/completions"
        body["prompt"] = "Tell me something."
    payload = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: frontend\r\ncontent-type: application/json\r\n"
        f"content-length: {len(payload)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + payload


def _cpu_s(pid: int) -> float:
    """User and system time of a process so far. Source: proc(5), fields 14 and 15 of stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS


def _script(token_ids: list[int], pace_s: float) -> Script:
    def script(request: EngineRequest) -> Iterator[Event | float]:
        num_tokens = request.sampling.max_tokens
        for i in range(num_tokens):
            yield TokenEvent(request.id, [token_ids[i % len(token_ids)]])
            yield pace_s
        yield Finished(
            request.id,
            "length",
            num_prompt_tokens=len(request.prompt_token_ids),
            num_output_tokens=num_tokens,
        )

    return script


def _be_the_server(model_path: Path, fd: int, pace_s: float, profile: Path | None) -> None:
    """The child process: serve on an inherited listening socket, on one core, until SIGTERM."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    configure("json", level="WARNING")
    checkpoint = Checkpoint.open(model_path)
    text = ModelText.of(checkpoint)
    answer = text.tokenizer.encode(_ANSWER, parse_special=False)
    engine = FakeEngine(script=_script(answer, pace_s))
    model = served_model(checkpoint, text, engine.info, ["frontend"])
    metrics = Metrics(model.names[0], engine)
    options = ServerConfig()
    admission = Admission(engine.stats, options.max_waiting)
    app = create_app(AppState(options, engine, model, metrics, admission))
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", ws="none", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    listener = socket.socket(fileno=fd)
    if profile is None:
        server.run([listener])
        return
    # uvicorn raises the signal again once it has drained; by default that would kill us here
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    profiler = cProfile.Profile()
    try:
        profiler.runcall(server.run, [listener])
    finally:
        profiler.dump_stats(profile)


if __name__ == "__main__":
    main()
