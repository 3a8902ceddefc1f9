"""The command itself: `qwen-serve serve` as a process of its own, with the real engine."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
PROGRAM = str(Path(sys.executable).with_name("qwen-serve"))


@dataclass(frozen=True, slots=True)
class RealServer:
    url: str  # without a path
    log: Path  # what the command wrote to standard error so far


@contextmanager
def real_server(
    folder: Path, model: Path, *options: str, command: Sequence[str] = (PROGRAM,)
) -> Iterator[RealServer]:
    """Serve `model` on a free port until the block ends; then it must end well by itself."""
    log = folder / "server.log"
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            [*command, "serve", "--model", str(model), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
        )
    assert process.stdout is not None
    killer = threading.Timer(START_TIMEOUT_S, process.kill)
    killer.start()
    try:
        line = process.stdout.readline()
        if not line.startswith("ready: "):
            raise RuntimeError(f"the server did not start:\n{log.read_text()}")
        killer.cancel()
        yield RealServer(line.split()[1].removesuffix("/v1"), log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_TIMEOUT_S) == 0
        assert "Traceback" not in log.read_text()
    finally:
        killer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
