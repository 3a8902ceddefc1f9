"""Children for a supervisor under test: `python -m tests.server.children FOLDER KIND MODE`.

Each writes its process id into FOLDER/KIND.PID, so that a test sees every incarnation.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from engine.journal import Journal
from engine.messages import (
    Abort,
    EngineInfo,
    EngineRequest,
    EngineStats,
    Finished,
    TokenEvent,
)
from engine.transport import RouterTransport

INFO = EngineInfo(
    max_model_len=2048,
    vocab_size=49152,
    num_blocks=128,
    block_size=16,
    dtype="float32",
    device="cpu",
    backend="fake",
)
TOKEN_INTERVAL_S = 0.05


def serve_engine(address: str, journal_path: str, go: Path | None, stats: EngineStats) -> None:
    """Play an engine: greet once `go` exists, then one token a beat for every request."""
    transport = RouterTransport(address)
    while go is not None and not go.exists():
        time.sleep(0.01)
    journal = Journal(journal_path)
    transport.publish(stats)
    transport.open(INFO, 64)
    live: dict[str, tuple[bytes, EngineRequest, int]] = {}
    while True:
        journal.turn()
        transport.wait(TOKEN_INTERVAL_S)
        for client, message in transport.receive():
            match message:
                case EngineRequest():
                    known = message.progress.token_ids if message.progress else []
                    live[message.id] = (client, message, len(known))
                case Abort():
                    live.pop(message.id, None)
        for request_id, (client, request, num_done) in list(live.items()):
            transport.send(client, [TokenEvent(request_id, [1000 + num_done])])
            live[request_id] = (client, request, num_done + 1)
            if num_done + 1 == request.sampling.max_tokens:
                del live[request_id]
                transport.send(
                    client, [Finished(request_id, "length", num_output_tokens=num_done + 1)]
                )


def main() -> None:
    folder, kind, mode = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    options = json.loads(sys.stdin.readline())
    (folder / f"{kind}.{os.getpid()}").touch()
    if mode == "refuse":
        sys.stderr.write(f"a log line\nerror: the {kind} does not like it\n")
        sys.exit(1)
    if mode == "crash":
        sys.exit(7)
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kind == "engine" and mode != "wait":
        go = folder / "go" if mode == "late" else None
        stats = EngineStats(num_restarts=options["num_restarts"])
        serve_engine(options["address"], options["journal"], go, stats)
    if kind == "worker" and mode != "wait":
        sys.stdout.write('{"model": "m"}\n')
        sys.stdout.flush()
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
