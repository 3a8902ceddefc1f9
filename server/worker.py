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
from contextlib import AsyncExitStack

import msgspec
import uvicorn
import uvloop

from engine.checkpoint import Checkpoint
from engine.errors import EngineError
from engine.ipc import IpcClient
from protocol.tools.formats import ToolFormat
from server.app import create_app
from server.config import ServeConfig
from server.logging import configure, get_logger
from server.metrics import Metrics
from server.served_model import ModelText, served_model
from server.starting_gate import StartingGate
from server.state import AppState

DRAIN_S = 30  # how long running requests may go on once the worker is told to stop
_KEEP_ALIVE_S = 60

_log = get_logger(__name__)


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor writes to standard input, on one line."""

    config: ServeConfig
    socket_fd: int  # inherited, bound and listening
    multiprocess_dir: str | None = None  # where several workers share their metrics


class WorkerReady(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker writes to standard output, on one line, once it serves the model."""

    model: str


async def load_app(options: WorkerOptions, gate: StartingGate, resources: AsyncExitStack) -> str:
    """Build the application behind `gate`, open the gate and return the model's name.

    Raises EngineError when the model cannot be served.
    """
    config = options.config
    engine = IpcClient(config.engine_address)
    resources.push_async_callback(engine.aclose)
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
    metrics = Metrics(model.names[0], engine.stats, options.multiprocess_dir)
    app = create_app(AppState(config.server, engine, model, metrics))
    await resources.enter_async_context(app.router.lifespan_context(app))
    gate.open(app)
    return model.names[0]


async def _serve(options: WorkerOptions, stop_asked: threading.Event) -> int:
    gate = StartingGate()
    server = uvicorn.Server(
        uvicorn.Config(
            gate,
            http="httptools",
            ws="none",
            lifespan="off",  # load_app runs the real application's
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
        )
    )
    listener = socket.socket(fileno=options.socket_fd)
    async with AsyncExitStack() as resources:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        loading = asyncio.create_task(load_app(options, gate, resources))
        await asyncio.sleep(0)  # both begin: from here on uvicorn sees the signals
        if stop_asked.is_set():
            server.should_exit = True
        await asyncio.wait((serving, loading), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():  # told to stop before the model was there
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            return 0
        try:
            model = loading.result()
        except EngineError as exc:
            sys.stderr.write(f"error: {exc}\n")
            server.should_exit = True
            await serving
            return 1
        sys.stdout.write(msgspec.json.encode(WorkerReady(model=model)).decode() + "\n")
        sys.stdout.flush()
        await serving
    return 0


def main() -> None:
    """Entry point. Exit status 1 with one line `error: ...` on stderr when it cannot serve."""
    options = msgspec.json.decode(sys.stdin.readline(), type=WorkerOptions)
    configure(options.config.server.log_format)
    stop_asked = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        # Ours until uvicorn has its own, and after: it raises the signal again once it has drained.
        signal.signal(signum, lambda *_: stop_asked.set())
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    sys.exit(uvloop.run(_serve(options, stop_asked)))


def _exit_with_parent() -> None:
    """Standard input ends when the parent is gone, however it went."""
    # Not sys.stdin.read(): it would hold the lock that the interpreter takes when it shuts down.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
