"""Users of a chat server, for locust: conversations, tools, documents, leaving, slow reading.

Headless: `locust -f loadtest/locustfile.py --headless -u 16 -r 4 -t 60s --host http://127.0.0.1:8000`
without --headless there is a page to start and watch it on port 8089. Beside locust's own lines
there are times to the first token ("ttft") and between tokens ("itl"), and one line for what was
refused. A stream that is not whole and well formed is a failure. QWEN_LOAD_MODEL names the model
(by default the server's first), QWEN_LOAD_API_KEY the key, QWEN_LOAD_MAX_TOKENS bounds answers.

Imports nothing of ours: locust patches Python's input and output when it starts.
"""

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from locust import HttpUser, between, task
from locust.clients import ResponseContextManager

_CHAT = "/v1/chat/completions"
_MAX_TOKENS = int(os.environ.get("QWEN_LOAD_MAX_TOKENS", "256"))
_TIMEOUT_S = 600.0
_MOST_WAITED_S = 60.0  # after a refusal
_NUM_TURNS = 6  # of a conversation before the next begins
_REFUSALS = (429, 503)
_TEXT = """
animal answer bridge brother building child city color country day door effect engine family field
fire floor friend garden glass group hair hand heart history hospital house island job language
law letter level light list market matter meeting message minute money morning mother music name
nation number ocean office paper parent part person picture place planet plant player point
problem product question reason record region result river road room rule school science season
sense service ship skill society song sound space spring stage star station stone story street
student summer system table teacher team theory thing time tool tower town trade train tree truth
value village voice wall water week weight window winter woman word world year
"""
_WORDS = _TEXT.split()
_SYSTEM = "You are a helpful assistant of a library. You answer in a few plain sentences."
_TOOL = {
    "type": "function",
    "function": {
        "name": "find_book",
        "description": "Find books about a subject.",
        "parameters": {
            "type": "object",
            "properties": {
                "subject": {"type": "string"},
                "language": {"type": "string", "enum": ["English", "Chinese", "German"]},
            },
            "required": ["subject", "language"],
        },
    },
}


def words(median: float, sigma: float, most: int) -> str:
    """So many that their numbers are lognormal, as in real conversations (arXiv:2309.06180)."""
    number = round(median * random.lognormvariate(0, sigma))
    return " ".join(random.choices(_WORDS, k=min(max(number, 3), most)))


def answer_tokens() -> int:
    """What one answer may have: lognormal too."""
    return min(max(round(110 * random.lognormvariate(0, 0.8)), 8), _MAX_TOKENS)


class Broken(Exception):
    """A stream that is not what it should be."""


class Stream:
    """Reads one answer. Iterate over it for its events, or leave; then `check` what has come."""

    def __init__(self, response: ResponseContextManager, started: float) -> None:
        self.text = ""
        self.calls: dict[int, dict[str, str]] = {}  # name and arguments by index
        self.num_tokens = 0
        self.first_token_s: float | None = None
        self.gaps_s: list[float] = []
        self._response = response
        self._at = started
        self._finish_reason: str | None = None
        self._is_done = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields each event. Raises Broken for one that is none, or an error."""
        rest = b""
        for data in self._response.iter_content(chunk_size=None):  # as it arrives
            *events, rest = (rest + data).split(b"\n\n")
            for event in events:
                if event == b"data: [DONE]":
                    self._is_done = True
                elif self._is_done or not event.startswith(b"data: "):
                    raise Broken(f"no event: {event[:100]!r}")
                else:
                    chunk = json.loads(event.removeprefix(b"data: "))
                    self._take(chunk)
                    yield chunk
        if rest:
            raise Broken(f"half an event: {rest[:100]!r}")

    def _take(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            raise Broken(f"an error: {chunk['error']}")
        if chunk.get("usage"):
            self.num_tokens = chunk["usage"]["completion_tokens"]
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if delta.get("content") or delta.get("tool_calls"):
                self._clock()
            self.text += delta.get("content") or ""
            for part in delta.get("tool_calls") or ():
                call = self.calls.setdefault(part["index"], {"name": "", "arguments": ""})
                for key in call:
                    call[key] += part["function"].get(key) or ""
            if choice["finish_reason"] is not None:
                if self._finish_reason is not None:
                    raise Broken("two finish reasons")
                self._finish_reason = choice["finish_reason"]

    def _clock(self) -> None:
        now = time.perf_counter()
        if self.first_token_s is None:
            self.first_token_s = now - self._at
        else:
            self.gaps_s.append(now - self._at)
        self._at = now

    def check(self) -> None:
        """Raise Broken unless the answer is whole."""
        if not self._is_done:
            raise Broken("it broke off")
        if self._finish_reason is None:
            raise Broken("no finish reason")
        if not self.num_tokens:
            raise Broken("no usage")
        if self._finish_reason == "tool_calls" and not self.calls:
            raise Broken("no call, and tool_calls as the finish reason")


Reader = Callable[[Stream], None]


def read_all(stream: Stream) -> None:
    """As fast as it comes, to its end."""
    for _ in stream:
        pass
    stream.check()


class ApiUser(HttpUser):
    """What all have in common."""

    abstract = True
    wait_time = between(0.5, 3.0)

    def on_start(self) -> None:
        key = os.environ.get("QWEN_LOAD_API_KEY", "none")
        self.client.headers["authorization"] = f"Bearer {key}"
        self.client.trust_env = False
        self.model = os.environ.get("QWEN_LOAD_MODEL") or self._first_model()

    def _first_model(self) -> str:
        with self.client.get("/v1/models", catch_response=True) as response:
            name: str = response.json()["data"][0]["id"]
            return name

    def ask(
        self, messages: list[dict[str, Any]], read: Reader = read_all, **more: Any
    ) -> Stream | None:
        """Read an answer; None where it was refused or broken. Refused, it waits as it is told."""
        name = type(self).__name__
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": answer_tokens(),
            "stream": True,
            "stream_options": {"include_usage": True},
            **more,
        }
        started = time.perf_counter()
        wait_s = 0.0
        stream: Stream | None = None
        with self.client.post(
            _CHAT, json=body, name=name, stream=True, catch_response=True, timeout=_TIMEOUT_S
        ) as response:
            if response.status_code in _REFUSALS and "retry-after" in response.headers:
                wait_s = min(float(response.headers["retry-after"]), _MOST_WAITED_S)
                response.request_meta["name"] = f"{name}, refused"
                response.success()
            elif response.status_code != 200:
                response.failure(f"status {response.status_code}: {response.text[:200]}")
            else:
                stream = self._read(response, Stream(response, started), read)
            response.request_meta["response_time"] = 1000 * (time.perf_counter() - started)
        gevent.sleep(wait_s)
        return stream

    def _read(
        self, response: ResponseContextManager, stream: Stream, read: Reader
    ) -> Stream | None:
        try:
            read(stream)
        except (Broken, OSError, ValueError, KeyError, TypeError) as exc:
            response.failure(f"{type(exc).__name__}: {exc}")  # type: ignore[no-untyped-call]
            return None
        finally:
            response.close()  # where it was left, the connection goes with it
        response.success()  # type: ignore[no-untyped-call]
        self._report("ttft", [stream.first_token_s] if stream.first_token_s else [])
        self._report("itl", stream.gaps_s)
        return stream

    def _report(self, kind: str, times_s: list[float]) -> None:
        for seconds in times_s:
            self.environment.events.request.fire(
                request_type=kind,
                name=type(self).__name__,
                response_time=1000 * seconds,
                response_length=0,
                exception=None,
                context={},
            )


class Conversation(ApiUser):
    """Asks on and on with all that was said before: a prefix cache makes it fast."""

    weight = 5

    def on_start(self) -> None:
        super().on_start()
        self._messages: list[dict[str, Any]] = []

    @task
    def next_question(self) -> None:
        if len(self._messages) >= 2 * _NUM_TURNS or not self._messages:
            self._messages = [{"role": "system", "content": _SYSTEM}]
        question = {"role": "user", "content": words(40, 1.2, 400)}
        answer = self.ask([*self._messages, question])
        if answer is not None:
            self._messages += [question, {"role": "assistant", "content": answer.text}]


class ToolUser(ApiUser):
    """Has a function called, runs it and gets an answer with its result."""

    weight = 2

    @task
    def find_a_book(self) -> None:
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": f"Find me a book about: {words(4, 0.5, 12)}."},
        ]
        asked = self.ask(
            messages, self._read_call, tools=[_TOOL], tool_choice="required", max_tokens=128
        )
        if asked is None:
            return
        calls = [
            {"id": f"call_{i}", "type": "function", "function": call}
            for i, call in asked.calls.items()
        ]
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": words(20, 0.5, 60)}
            for call in calls
        ]
        messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        self.ask([*messages, *results], tools=[_TOOL], tool_choice="none")

    @staticmethod
    def _read_call(stream: Stream) -> None:
        read_all(stream)
        if not stream.calls:
            raise Broken("a call was required")
        for call in stream.calls.values():
            arguments = json.loads(call["arguments"])
            if call["name"] != "find_book" or set(arguments) != {"subject", "language"}:
                raise Broken(f"not the call that was offered: {call}")


class DocumentReader(ApiUser):
    """Asks one short thing about something long, and about the same once more."""

    weight = 1

    @task
    def ask_about_it(self) -> None:
        document = words(600, 0.4, 1200)
        for _ in range(2):
            question = f"{document}\n\nIn one sentence: what does this say of {words(2, 0, 2)}?"
            self.ask([{"role": "user", "content": question}], max_tokens=48)


class Impatient(ApiUser):
    """Leaves before the end: the server should notice, and stop."""

    weight = 1

    @task
    def leave(self) -> None:
        num_events = random.randint(1, 30)

        def read(stream: Stream) -> None:
            for number, _ in enumerate(stream, 1):
                if number == num_events:
                    return

        self.ask([{"role": "user", "content": words(75, 1.2, 400)}], read, max_tokens=_MAX_TOKENS)


class SlowReader(ApiUser):
    """Reads like a telephone at the edge of its network."""

    weight = 1

    @task
    def read(self) -> None:
        def read_slowly(stream: Stream) -> None:
            for _ in stream:
                gevent.sleep(random.expovariate(20))
            stream.check()

        self.ask([{"role": "user", "content": words(40, 1.0, 400)}], read_slowly)
