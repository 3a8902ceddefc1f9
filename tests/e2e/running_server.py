"""The real application under uvicorn on a free loopback port, in a thread of the test process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from engine.checkpoint import Checkpoint
from engine.fake import FakeEngine
from server.admission import Admission
from server.app import create_app
from server.config import ServerConfig
from server.http_connection import connection_class
from server.metrics import Metrics
from server.served_model import ModelText, served_model
from server.state import AppState

MODEL = "SmolLM2-135M-Instruct"
ALIAS = "gpt-4o-mini"


@dataclass(frozen=True, slots=True)
class RunningServer:
    url: str  # without a path
    state: AppState


def build_state(model_path: Path, engine: FakeEngine, config: ServerConfig) -> AppState:
    checkpoint = Checkpoint.open(model_path)
    text = ModelText.of(checkpoint)
    model = served_model(checkpoint, text, engine.info, [MODEL, ALIAS])
    metrics = Metrics(MODEL, engine)
    return AppState(config, engine, model, metrics, Admission(engine.stats, config.max_waiting))


@contextmanager
def serve(state: AppState) -> Iterator[RunningServer]:
    """Serve until the block ends; its connections are closed by then."""
    config = uvicorn.Config(
        create_app(state),
        host="127.0.0.1",
        port=0,
        http=connection_class(state.metrics),
        log_config=None,
        access_log=False,
        ws="none",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield RunningServer(f"http://127.0.0.1:{port}", state)
    finally:
        server.should_exit = True
        thread.join()
