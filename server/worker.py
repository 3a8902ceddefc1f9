"""One HTTP process: `python -m server.worker`, started by server/supervisor.py.

Reads its options as one line of JSON from standard input, serves on the listening socket it
inherited, and reports on standard output when it is ready. It answers /livez at once and builds the
tokenizer and the chat template while the engine loads. Ends when its parent closes standard input.
"""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import msgspec
import uvicorn
import uvloop

from engine.checkpoint import Checkpoint
from engine.client import EngineClient
from engine.errors import EngineError
from engine.queue import client_at
from protocol.tools.formats import ToolFormat
from server.access import Access
from server.admission import Admission
from server.app import create_app
from server.config import ServeConfig
from server.cors import with_cors
from server.draining import drain
from server.gate import Gate
from server.http_connection import connection_class
from server.key_file import KeyFileError
from server.logging import configure, get_logger
from server.loop_lag import watch_loop
from server.metrics import Metrics
from server.served_model import ModelText, served_model
from server.state import AppState
from server.tls import watch_certificate
from server.tracing import Traces, traces_to

_KEEP_ALIVE_S = 60
_CLOSE_S = 2  # for connections, once no request is left

_log = get_logger(__name__)


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor writes to standard input, on one line."""

    config: ServeConfig
    socket_fd: int  # inherited, bound and listening
    multiprocess_dir: str | None = None  # where several workers share their metrics


class WorkerReady(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker writes to standard output, on one line, once it serves the model."""

    model: str


class _Server(uvicorn.Server):
    """Leaves signals to the worker."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def load_app(
    options: WorkerOptions,
    engine: EngineClient,
    metrics: Metrics,
    traces: Traces,
    gate: Gate,
    resources: AsyncExitStack,
) -> AppState:
    """Build the application behind `gate`, open the gate and return what the application knows.

    Raises EngineError when the model cannot be served, KeyFileError.
    """
    config = options.config
    access = Access(config.server)
    resources.push_async_callback(access.limits.aclose)
    starting = asyncio.create_task(engine.start())
    try:
        checkpoint = await asyncio.to_thread(Checkpoint.open, config.engine.model)
        chosen = config.server.tool_format
        tool_format = None if chosen == "auto" else ToolFormat(chosen)
        text = await asyncio.to_thread(ModelText.of, checkpoint, tool_format)
        _log.info("tools", format=text.tools.format.value, is_told_by_template=text.tools.is_told)
        info = await starting
    finally:
        starting.cancel()
    model = served_model(checkpoint, text, info, config.server.served_model_names)
    metrics.describe_engine(info)
    admission = Admission(engine.stats, config.server.max_waiting)
    state = AppState(config.server, engine, model, metrics, admission, traces)
    app = create_app(state, access)
    watching = asyncio.create_task(access.watch())
    resources.callback(watching.cancel)
    await resources.enter_async_context(app.router.lifespan_context(app))
    gate.open(app)
    return state


async def _serve(options: WorkerOptions) -> int:
    config = options.config.server
    engine = client_at(options.config.engine_address)
    name = config.served_model_names[0]
    metrics = Metrics(name, engine, options.multiprocess_dir, has_vllm_names=config.vllm_metrics)
    engine.on_resume = metrics.requests_resumed
    traces = traces_to(config.otlp_endpoint, os.environ, name)
    gate = Gate(metrics, traces)
    http = uvicorn.Config(
        with_cors(gate, config.cors_origins, metrics, traces),
        http=connection_class(metrics, traces),
        ws="none",
        lifespan="off",  # load_app runs the real application's
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_CLOSE_S,
        ssl_certfile=config.tls_certificate,
        ssl_keyfile=config.tls_key,
    )
    http.load()
    server = _Server(http)
    stop_asked = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop_asked.set)
    listener = socket.socket(fileno=options.socket_fd)
    async with AsyncExitStack() as resources:
        resources.push_async_callback(engine.aclose)
        if http.ssl is not None:
            renewing = asyncio.create_task(watch_certificate(http.ssl, config))
            resources.callback(renewing.cancel)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        loading = asyncio.create_task(load_app(options, engine, metrics, traces, gate, resources))
        watching = asyncio.create_task(watch_loop(metrics.loop_lagged))
        stopping = asyncio.create_task(stop_asked.wait())
        await asyncio.wait((serving, loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        status = 0
        try:
            if loading.done():
                state = loading.result()
                ready = WorkerReady(model=state.model.names[0])
                sys.stdout.write(msgspec.json.encode(ready).decode() + "\n")
                sys.stdout.flush()
                await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
                await drain(gate, state.live, config.drain_timeout)
        except (EngineError, KeyFileError) as exc:
            sys.stderr.write(f"error: {exc}\n")
            status = 1
        for task in (loading, stopping, watching):
            task.cancel()
        await asyncio.gather(loading, stopping, watching, return_exceptions=True)
        server.should_exit = True
        await serving
        await asyncio.to_thread(traces.close)
    return status


def main() -> None:
    """Entry point. Exit status 1 with one line `error: ...` on stderr when it cannot serve."""
    for signum in (signal.SIGTERM, signal.SIGINT):  # until the loop listens to them
        signal.signal(signum, lambda *_: os._exit(0))
    options = msgspec.json.decode(sys.stdin.readline(), type=WorkerOptions)
    configure(options.config.server.log_format)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    sys.exit(uvloop.run(_serve(options)))


def _exit_with_parent() -> None:
    """Standard input ends when the parent is gone, however it went."""
    # Not sys.stdin.read(): it would hold the lock that the interpreter takes when it shuts down.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
