"""A program that answers like an OpenAI-compatible server, without a model.

`fake_server.py ... --port N`; arguments that it does not know are forgotten. Each streamed answer
has as many tokens as are asked for. With --break-every N every Nth breaks off before its end, and
with --pause-after N those after the Nth never come.
"""

import argparse
import itertools
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Handler(BaseHTTPRequestHandler):
    break_every = 0
    pause_after = 0
    count = itertools.count(1)

    def do_GET(self) -> None:
        self._head(200, "application/json")
        reply = {"data": [{"id": "fake"}]} if self.path == "/v1/models" else {"status": "ok"}
        self.wfile.write(json.dumps(reply).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if body["model"] != "fake" or not body["ignore_eos"] or not body["stream"]:
            self._head(400, "application/json")
            self.wfile.write(b'{"error": {"message": "not as it should be"}}')
            return
        events = list(answer(body, is_chat=self.path == "/v1/chat/completions"))
        number = next(self.count)
        if self.break_every and number % self.break_every == 0:
            events = events[:1]
        if self.pause_after and number > self.pause_after:
            threading.Event().wait()
        self._head(200, "text/event-stream")
        for event in events:
            self.wfile.write(f"data: {event}\n\n".encode())

    def _head(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def answer(body: dict[str, Any], *, is_chat: bool) -> Iterator[str]:
    """The events' data."""
    texts = [m["content"] for m in body["messages"]] if is_chat else [body["prompt"]]
    for _ in range(body["max_tokens"]):
        choice = {"delta": {"content": "word "}} if is_chat else {"text": "word "}
        yield json.dumps({"choices": [{"index": 0, **choice}]})
    usage = {
        "prompt_tokens": sum(len(text.split()) for text in texts),
        "completion_tokens": body["max_tokens"],
    }
    yield json.dumps({"choices": [], "usage": usage})
    yield "[DONE]"


def program(folder: Path, name: str) -> str:
    """This file as a command."""
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--break-every", type=int, default=0)
    parser.add_argument("--pause-after", type=int, default=0)
    options, _ = parser.parse_known_args()
    if not options.port:
        return
    Handler.break_every, Handler.pause_after = options.break_every, options.pause_after
    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
