"""The terminal chat in a real pseudo terminal, against a small server that speaks OpenAI's API."""

import http.server
import json
import os
import pty
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from server.chat_client import ChatClient, ChatError, Delta, Message
from server.chat_commands import Command, parse_assignments, parse_command

DEADLINE_S = 60.0  # only how long a broken build hangs


class Api(http.server.BaseHTTPRequestHandler):
    """Answers according to the last message: see `_answer`."""

    bodies: ClassVar[list[dict[str, Any]]]
    keys: ClassVar[list[str | None]]
    client_left: ClassVar[threading.Event]

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.keys.append(self.headers["Authorization"])
        self._send(200, {"object": "list", "data": [{"id": "first"}, {"id": "second"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        query = body["messages"][-1]["content"]
        if query == "refuse":
            error = {"message": "too much", "type": "x", "param": None, "code": None}
            self._send(400, {"error": error})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self._answer(query)

    def _answer(self, query: str) -> None:
        self._event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        if query == "break":
            self._event({"error": {"message": "engine died", "type": "server_error"}})
            return
        if query == "vanish":
            return
        if query == "endless":
            self._say_until_client_leaves()
            return
        if query == "escape":
            self._say("a\x1b]0;title\x07b")
        elif query == "think":
            self._event({"choices": [{"delta": {"reasoning_content": "hmm "}}]})
            self._say("done")
        else:
            for piece in ("You said ", f"<{query}>", " 你好 😀"):
                self._say(piece)
        self._event({"choices": [], "usage": {}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _say_until_client_leaves(self) -> None:
        try:
            while True:
                self._say("more ")
                time.sleep(0.02)
        except ConnectionError:
            self.client_left.set()

    def _say(self, text: str) -> None:
        self._event({"choices": [{"delta": {"content": text}}]})

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def url() -> Iterator[str]:
    Api.bodies, Api.keys, Api.client_left = [], [], threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join()


class Terminal:
    """`qwen-serve chat` in a pseudo terminal."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self.file = pty.fork()
        if self.pid == 0:  # the child: nothing but exec
            environment = {**os.environ, "TERM": "dumb", "PYTHONUTF8": "1"}
            command = [sys.executable, "-m", "server.cli", "chat", *arguments]
            os.execve(sys.executable, command, environment)
        self.seen = ""

    def expect(self, pattern: str) -> str:
        """Read until the pattern appears; return what came up to its end."""
        give_up_s = time.monotonic() + DEADLINE_S
        while not (match := re.search(pattern, self.seen)):
            assert time.monotonic() < give_up_s, f"{pattern!r} never came, only {self.seen!r}"
            if select.select([self.file], [], [], 0.1)[0]:
                self.seen += self._read()
        text, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return text

    def _read(self) -> str:
        try:
            data = os.read(self.file, 65536)
        except OSError:  # Linux: the other end has closed
            data = b""
        assert data, f"it has ended after {self.seen!r}"
        return data.decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self.file, text.encode())

    def ask(self, line: str) -> str:
        """Type a line at the prompt; return everything up to the next prompt."""
        self.type(line + "\n")
        return self.expect("User> ")

    def wait(self) -> int:
        """The exit status."""
        give_up_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < give_up_s:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        raise TimeoutError("it does not end")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.file)


@pytest.fixture
def terminal(url: str) -> Iterator[Terminal]:
    terminal = Terminal("--url", url, "--api-key", "sk-1", "--system", "Be kind.")
    try:
        terminal.expect("User> ")
        yield terminal
    finally:
        terminal.close()


def test_a_conversation(terminal: Terminal) -> None:
    assert "first: You said <hello> 你好 😀" in terminal.ask("hello")
    terminal.ask("again")
    assert Api.keys == ["Bearer sk-1"]
    assert Api.bodies[1] == {
        "model": "first",
        "seed": 1234,
        "stream": True,
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "You said <hello> 你好 😀"},
            {"role": "user", "content": "again"},
        ],
    }
    shown = terminal.ask(":his")
    assert "user: again" in shown
    assert "assistant: You said <again>" in shown
    terminal.ask(":clear-his")
    assert "empty" in terminal.ask(":history")
    terminal.ask("new")
    assert len(Api.bodies[-1]["messages"]) == 2


def test_seed_and_parameters(terminal: Terminal) -> None:
    assert "seed: 1234" in terminal.ask(":seed")
    assert "seed: 7" in terminal.ask(":seed 7")
    assert "'x'" in terminal.ask(":seed x")
    assert "temperature = 0.5" in terminal.ask(':conf temperature=0.5 stop=["a b", "c"]')
    terminal.ask("hi")
    sent = Api.bodies[-1]
    assert (sent["seed"], sent["temperature"], sent["stop"]) == (7, 0.5, ["a b", "c"])
    assert "not JSON" in terminal.ask(":conf top_p=__import__('os')")
    assert "cannot be set" in terminal.ask(":conf stream=false")
    assert "temperature" not in terminal.ask(":reset-conf")
    terminal.ask("hi")
    assert "temperature" not in Api.bodies[-1]


def test_words_that_are_no_commands_and_no_words_at_all(terminal: Terminal) -> None:
    assert "You said <:foo bar>" in terminal.ask(":foo bar")
    assert "the query is empty" in terminal.ask("")
    assert ":clear-his" in terminal.ask(":h")
    terminal.ask(":cl")
    assert len(Api.bodies) == 1


def test_errors_are_shown_and_the_session_goes_on(terminal: Terminal) -> None:
    assert "the server answered 400: too much" in terminal.ask("refuse")
    assert "engine died" in terminal.ask("break")
    assert "ended before the answer did" in terminal.ask("vanish")
    assert "You said <still here>" in terminal.ask("still here")
    assert len(Api.bodies[-1]["messages"]) == 2, "a failed turn is not part of the conversation"


def test_ctrl_c_stops_the_answer_here_and_on_the_server(terminal: Terminal) -> None:
    terminal.type("endless\n")
    terminal.expect("more more ")
    terminal.type("\x03")
    assert "interrupted" in terminal.expect("User> ")
    assert Api.client_left.wait(DEADLINE_S)
    assert "You said <next>" in terminal.ask("next")
    assert len(Api.bodies[-1]["messages"]) == 2, "and the conversation is as it was"


@pytest.mark.parametrize("keys", ["\x03", "\x04", ":q\n", ":exit\n", ":quit\n"])
def test_leaving(terminal: Terminal, keys: str) -> None:
    terminal.type(keys)
    assert terminal.wait() == 0


def test_an_answer_cannot_drive_the_terminal(terminal: Terminal) -> None:
    shown = terminal.ask("escape")
    assert "\x1b]" not in shown
    assert "a]0;titleb" in shown


def test_reasoning_is_shown_but_not_remembered(terminal: Terminal) -> None:
    assert re.search("hmm .*done", terminal.ask("think"))
    assert "hmm" not in terminal.ask(":his")


def test_no_server_is_one_line() -> None:
    terminal = Terminal("--url", "http://127.0.0.1:9/v1")
    try:
        assert "error: http://127.0.0.1:9/v1 cannot be reached" in terminal.expect("\n")
        assert terminal.wait() == 1
    finally:
        terminal.close()


def test_the_client_streams(url: str) -> None:
    with ChatClient(url + "/") as client:
        assert client.first_model() == "first"
        deltas = list(client.stream("second", [Message("user", "think")], {"top_k": 5}))
    assert deltas == [Delta("hmm ", is_reasoning=True), Delta("done")]
    assert Api.bodies[0]["model"] == "second"
    assert Api.bodies[0]["top_k"] == 5


def test_the_clients_errors(url: str) -> None:
    with ChatClient(url) as client, pytest.raises(ChatError, match="400: too much"):
        list(client.stream("m", [Message("user", "refuse")], {}))
    with ChatClient("no url") as client, pytest.raises(ChatError, match="cannot be reached"):
        client.first_model()


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (":help", Command("help", "")),
        (" :q ", Command("exit", "")),
        (":clh", Command("clear-history", "")),
        (":seed  5", Command("seed", "5")),
        (":conf a=1", Command("conf", "a=1")),
        (":help me", None),
        (":unknown", None),
        ("hello", None),
        ("", None),
    ],
)
def test_parse_command(line: str, command: Command | None) -> None:
    assert parse_command(line) == command


def test_parse_assignments() -> None:
    text = 'a=1 b = 2.5 c="x y" d=[1, 2] e={"k": null} f=true'
    assert parse_assignments(text) == {
        **{"a": 1, "b": 2.5, "c": "x y", "d": [1, 2], "e": {"k": None}, "f": True}
    }
    assert parse_assignments("") == {}


@pytest.mark.parametrize("text", ["a", "a=", "a=x", "a=1,b=2", "=1", "1=2", "a=1 b"])
def test_bad_assignments(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected KEY=VALUE|is not JSON"):
        parse_assignments(text)
