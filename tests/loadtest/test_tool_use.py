"""The tool-use evaluation: its cases can be answered, its scores are those of hand-made answers."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from loadtest.tool_use import ask, ask_all, chosen, main, shipped
from loadtest.tool_use_score import (
    Answer,
    Call,
    Case,
    Expectation,
    ExpectedCall,
    Score,
    rows,
    score,
)
from protocol.tools.request import ToolFields
from protocol.validation import parse

FILE = shipped()
FEWEST = {"single": 16, "parallel": 8, "none": 10, "missing": 8, "chinese": 12, "context": 6}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "default": 1},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city"],
}
ORDER = {
    "type": "object",
    "properties": {"items": {"type": "array"}, "to": {"type": "object"}, "fast": {}},
}
SCHEMAS: dict[str, dict[str, Any]] = {"weather": WEATHER, "order": ORDER, "unoffered": WEATHER}


def expansions(value: Any) -> Iterator[Any]:
    """Every right value; null where an argument may be left out."""
    if isinstance(value, dict) and value.keys() == {"any_of"}:
        yield from (one for choice in value["any_of"] for one in expansions(choice))
    elif isinstance(value, dict):
        for combined in product(*(list(expansions(item)) for item in value.values())):
            yield dict(zip(value, combined, strict=True))
    elif isinstance(value, list):
        yield from map(list, product(*(list(expansions(item)) for item in value)))
    else:
        yield value


def right_arguments(call: ExpectedCall) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in arguments.items() if value is not None}
        for arguments in expansions(call.arguments)
    ]


def the_case(*calls: tuple[str, dict[str, Any]]) -> Case:
    expected = [ExpectedCall(name, arguments) for name, arguments in calls]
    return Case("one", "single", ["weather", "order"], [], Expectation(expected))


def scored(case: Case, *calls: tuple[str, Any]) -> Score:
    """The score of an answer with these calls; arguments that are no text are made JSON."""
    made = [(name, args if isinstance(args, str) else json.dumps(args)) for name, args in calls]
    return score(case, SCHEMAS, Answer(calls=tuple(Call(*one) for one in made)))


def matches(expected: dict[str, Any], made: dict[str, Any], tool: str = "weather") -> bool:
    result = scored(the_case((tool, expected)), (tool, made))
    assert (result.num_selected, result.num_compared) == (1, 1)
    return result.num_matched == 1


# the cases


def test_enough_cases_of_each_category() -> None:
    counts = Counter[str](case.category for case in FILE.cases)
    assert counts.keys() == FEWEST.keys()
    assert all(counts[category] >= number for category, number in FEWEST.items())
    assert counts.total() >= 60


def test_no_name_stands_for_two_things() -> None:
    assert len({case.id for case in FILE.cases}) == len(FILE.cases)
    assert len(FILE.tools_by_name) == len(FILE.tools)
    questions = [json.dumps([case.tools, case.messages]) for case in FILE.cases]
    assert len(set(questions)) == len(questions)


def test_the_catalogue_is_one_that_the_server_takes() -> None:
    parse(ToolFields, json.dumps({"tools": FILE.tools}).encode())
    for schema in FILE.schemas.values():
        Draft202012Validator.check_schema(schema)
        for about in schema["properties"].values():
            assert "default" not in about or Draft202012Validator(about).is_valid(about["default"])
    used = {name for case in FILE.cases for name in case.tools}
    assert used == FILE.tools_by_name.keys()


@pytest.mark.parametrize("case", FILE.cases, ids=lambda case: case.id)
def test_a_case_can_be_answered(case: Case) -> None:
    assert len(set(case.tools)) == len(case.tools) >= 1
    for call in case.expect.calls:
        assert call.name in case.tools
        for arguments in right_arguments(call):
            Draft202012Validator(FILE.schemas[call.name]).validate(arguments)
    first = [(call.name, json.dumps(right_arguments(call)[0])) for call in case.expect.calls]
    answer = Answer(calls=tuple(Call(*one) for one in reversed(first)))
    number, is_text = len(first), not first
    assert score(case, FILE.schemas, answer) == Score(
        1, 1, number, number, int(is_text), 0, number, number, 0
    )


@pytest.mark.parametrize("case", FILE.cases, ids=lambda case: case.id)
def test_a_history_is_whole(case: Case) -> None:
    """Each call was of an offered tool, as its schema has it, and has its result."""
    assert case.messages[-1]["role"] in ("user", "tool")
    asked, told = [], []
    for message in case.messages:
        for call in message.get("tool_calls", ()):
            asked.append(call["id"])
            function = call["function"]
            assert function["name"] in case.tools
            arguments = json.loads(function["arguments"])
            Draft202012Validator(FILE.schemas[function["name"]]).validate(arguments)
        if message["role"] == "tool":
            told.append(message["tool_call_id"])
            json.loads(message["content"])
    assert asked == told


def test_categories_ask_for_what_they_are_named_after() -> None:
    numbers: dict[str, set[int]] = {}
    for case in FILE.cases:
        numbers.setdefault(case.category, set()).add(len(case.expect.calls))
        has_result = any(message["role"] == "tool" for message in case.messages)
        assert has_result or case.category != "context"
    assert numbers["single"] == {1}
    assert numbers["parallel"] == {2, 3}
    assert numbers["none"] == numbers["missing"] == {0}
    assert numbers["chinese"] == {0, 1, 2}
    assert numbers["context"] == {0, 1}


# the score of one answer


def test_a_right_call() -> None:
    case = the_case(("weather", {"city": "Paris"}))
    assert scored(case, ("weather", {"city": "Paris"})) == Score(1, 1, 1, 1, 0, 0, 1, 1, 0)


def test_a_wrong_name_is_not_compared() -> None:
    case = the_case(("weather", {"city": "Paris"}))
    assert scored(case, ("order", {"items": []})) == Score(1, 0, 0, 0, 0, 0, 1, 1, 0)


def test_a_wrong_argument() -> None:
    case = the_case(("weather", {"city": "Paris"}))
    assert scored(case, ("weather", {"city": "Rome"})) == Score(1, 1, 1, 0, 0, 0, 1, 1, 0)


def test_a_missing_and_an_extra_call() -> None:
    case = the_case(("weather", {"city": "Paris"}), ("weather", {"city": "Rome"}))
    rome, oslo, paris = (("weather", {"city": city}) for city in ("Rome", "Oslo", "Paris"))
    assert scored(case) == Score(1, 0, 0, 0, 0, 0, 0, 0, 0)
    assert scored(case, rome) == Score(1, 0, 1, 1, 0, 0, 1, 1, 0)
    assert scored(case, rome, oslo) == Score(1, 1, 2, 1, 0, 0, 2, 2, 0)
    assert scored(case, rome, oslo, paris) == Score(1, 0, 2, 2, 0, 0, 3, 3, 0)


def test_calls_of_one_tool_are_paired_as_well_as_can_be() -> None:
    """Paris is right for both, but Rome only for the first."""
    case = the_case(
        ("weather", {"city": {"any_of": ["Paris", "Rome"]}}), ("weather", {"city": "Paris"})
    )
    for cities in (("Paris", "Rome"), ("Rome", "Paris")):
        assert scored(case, *(("weather", {"city": city}) for city in cities)).num_matched == 2
    assert scored(case, *[("weather", {"city": "Rome"})] * 2).num_matched == 1


@pytest.mark.parametrize(
    "arguments",
    ['{"city": "Pa', "", "null", '["Paris"]', '{"city": NaN}', "[" * 100_000, '{"city": "P"} x'],
)
def test_arguments_that_are_no_json_object(arguments: str) -> None:
    case = the_case(("weather", {"city": "Paris"}))
    assert scored(case, ("weather", arguments)) == Score(1, 1, 1, 0, 0, 0, 1, 0, 0)


@pytest.mark.parametrize(
    "call",
    [
        ("weather", {}),
        ("weather", {"city": 3}),
        ("weather", {"city": "Paris", "unit": "K"}),
        ("weather", {"city": "Paris", "days": "2"}),
        ("unoffered", {"city": "Paris"}),
        ("unheard_of", {}),
    ],
)
def test_calls_that_are_not_valid(call: tuple[str, dict[str, Any]]) -> None:
    result = scored(the_case(("order", {})), call)
    assert (result.num_calls, result.num_valid_calls, result.num_selected) == (1, 0, 0)


def test_no_call_is_wanted() -> None:
    assert scored(the_case()) == Score(1, 1, 0, 0, 1, 0, 0, 0, 0)
    twice = [("weather", {"city": "Paris"})] * 2
    assert scored(the_case(), *twice) == Score(1, 0, 0, 0, 1, 1, 2, 2, 0)


def test_an_error_is_no_right_answer() -> None:
    failed = Answer(error="500: no")
    assert score(the_case(), SCHEMAS, failed) == Score(1, num_errors=1)
    assert score(the_case(("order", {})), SCHEMAS, failed) == Score(1, num_errors=1)


@pytest.mark.parametrize(
    ("expected", "made", "is_right"),
    [
        ({"city": "New York"}, {"city": " new  york"}, True),
        ({"city": "北京"}, {"city": "北 京"}, True),
        ({"city": "Paris"}, {"city": "Paris, France"}, False),
        ({"city": {"any_of": ["Paris", "Paris, France"]}}, {"city": "paris,france"}, True),
        ({"city": {"any_of": ["Paris", "Paris, France"]}}, {"city": "Rome"}, False),
        ({"city": "A", "days": 3}, {"city": "A", "days": 3.0}, True),
        ({"city": "A", "days": 3}, {"city": "A", "days": "3"}, False),
        ({"city": "A", "days": 3}, {"city": "A"}, False),
        ({"city": "A", "days": 1}, {"city": "A"}, True),  # the default
        ({"city": "A"}, {"city": "A", "days": 1}, True),
        ({"city": "A"}, {"city": "A", "days": 2}, False),
        ({"city": "A"}, {"city": "A", "days": True}, False),
        ({"city": "A"}, {"city": "A", "unit": "C"}, False),
        ({"city": "A"}, {"city": "A", "made_up": "C"}, False),
        ({"city": "A", "unit": {"any_of": [None, "C"]}}, {"city": "A"}, True),
        ({"city": "A", "unit": {"any_of": [None, "C"]}}, {"city": "A", "unit": "C"}, True),
        ({"city": "A", "unit": {"any_of": [None, "C"]}}, {"city": "A", "unit": "F"}, False),
    ],
)
def test_how_arguments_are_compared(
    expected: dict[str, Any], made: dict[str, Any], is_right: bool
) -> None:
    assert matches(expected, made) == is_right


@pytest.mark.parametrize(
    ("name", "made", "is_right"),
    [
        ("items", [{"product": "Chair", "number": 2.0}, 5], True),
        ("items", [{"product": "chairs", "number": 2}, 5], True),
        ("items", [5, {"product": "chair", "number": 2}], False),
        ("items", [{"product": "chair", "number": 2}], False),
        ("items", [{"product": "chair", "number": 2, "more": 1}, 5], False),
        ("items", "chair", False),
        ("to", {"city": "oslo"}, True),
        ("to", {"town": "Oslo"}, False),
        ("to", "Oslo", False),
        ("fast", True, True),
        ("fast", False, False),
        ("fast", 1, False),
        ("fast", "true", False),
    ],
)
def test_how_nested_arguments_are_compared(name: str, made: Any, is_right: bool) -> None:
    product = {"product": {"any_of": ["chair", "chairs"]}, "number": 2}
    expected = {"items": [product, 5], "to": {"city": "Oslo"}, "fast": True}
    assert matches({name: expected[name]}, {name: made}, tool="order") == is_right


# the table


def test_table() -> None:
    pairs = [
        ("single", Score(1, 1, 1, 1, 0, 0, 1, 1, 0)),
        ("none", Score(1, 0, 0, 0, 1, 1, 2, 1, 0)),
        ("single", Score(1, num_errors=1)),
    ]
    assert list(rows("toy", pairs)) == [
        "| model | cases | selection | arguments | false calls | valid arguments | errors |",
        "|---|---|---|---|---|---|---|",
        "| toy | all | 33% (1/3) | 100% (1/1) | 100% (1/1) | 67% (2/3) | 1 |",
        "| toy | single | 50% (1/2) | 100% (1/1) |  | 100% (1/1) | 1 |",
        "| toy | none | 0% (0/1) |  | 100% (1/1) | 50% (1/2) | 0 |",
    ]


# the runner


def completion(content: str | None, *calls: tuple[str, str]) -> dict[str, Any]:
    told = [
        {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
        for name, arguments in calls
    ]
    message = {"role": "assistant", "content": content, "tool_calls": told or None}
    return {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


async def answer_to(response: httpx.Response | Exception) -> Answer:
    def reply(request: httpx.Request) -> httpx.Response:
        if isinstance(response, Exception):
            raise response
        return response

    transport = httpx.MockTransport(reply)
    async with httpx.AsyncClient(base_url="http://server", transport=transport) as client:
        return await ask(client, {})


async def test_answers_are_read() -> None:
    text = completion("Hello.")
    assert await answer_to(httpx.Response(200, json=text)) == Answer("Hello.", (), "stop")
    calls = completion(None, ("weather", "{}"), ("order", "{"))
    assert await answer_to(httpx.Response(200, json=calls)) == Answer(
        None, (Call("weather", "{}"), Call("order", "{")), "stop"
    )


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (httpx.Response(400, text="no tools"), "400: no tools"),
        (httpx.ReadTimeout("too slow"), "ReadTimeout: too slow"),
        (httpx.Response(200, text="<html>"), "not a chat completion: JSON is malformed"),
        (httpx.Response(200, json={"choices": []}), "not a chat completion: Expected `array`"),
    ],
)
async def test_errors_are_told(response: httpx.Response | Exception, error: str) -> None:
    answer = await answer_to(response)
    assert answer.error is not None
    assert answer.error.startswith(error)


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_requests_at_a_time(concurrency: int) -> None:
    """Answers keep the order of the requests, which wait until as many as allowed have come."""
    now, most = 0, 0

    async def reply(request: httpx.Request) -> httpx.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        question = json.loads(request.content)["question"]
        for _ in range(10 - question):  # turns of the loop: later requests are done earlier
            await asyncio.sleep(0)
        now -= 1
        return httpx.Response(200, json=completion(str(question)))

    transport = httpx.MockTransport(reply)
    async with httpx.AsyncClient(base_url="http://server", transport=transport) as client:
        answers = await ask_all(client, [{"question": i} for i in range(7)], concurrency)
    assert [answer.content for answer in answers] == [str(i) for i in range(7)]
    assert most == concurrency


def test_choosing_cases() -> None:
    assert len(chosen(FILE.cases, [], None)) == len(FILE.cases)
    assert len({case.category for case in chosen(FILE.cases, [], 6)}) == 6
    assert {case.category for case in chosen(FILE.cases, ["none"], None)} == {"none"}
    assert [case.id for case in chosen(FILE.cases, ["none", "single"], 3)] == [
        *("none-01", "single-01", "none-02"),
    ]


class FakeServer(BaseHTTPRequestHandler):
    """Always calls get_weather of Paris, but fails where a stock price is offered."""

    bodies: list[dict[str, Any]]

    def do_GET(self) -> None:
        assert self.path == "/v1/models"
        self._reply(200, {"object": "list", "data": [{"id": "toy"}]})

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.bodies.append(body)
        if "get_stock_price" in [tool["function"]["name"] for tool in body["tools"]]:
            self._reply(500, {"error": "broken"})
        else:
            self._reply(200, completion(None, ("get_weather", '{"location": "Paris"}')))

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: stderr is the test's."""


@contextmanager
def fake_server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    FakeServer.bodies = []
    with HTTPServer(("127.0.0.1", 0), FakeServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", FakeServer.bodies
        finally:
            server.shutdown()
            thread.join()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "answers.json"
    options = ["--category", "single", "--limit", "7", "--body", '{"max_tokens": 99}']
    with fake_server() as (url, bodies):
        main(["--url", url, *options, "--output", str(output)])
    printed = capsys.readouterr().out.splitlines()
    # of the seven: one right, two with other arguments, one without that tool, three that fail
    assert printed[2] == "| toy | all | 43% (3/7) | 33% (1/3) |  | 75% (3/4) | 3 |"
    assert [line.partition(' {"')[0] for line in printed[4:]] == [
        f"error: single-0{number}: 500:" for number in (5, 6, 7)
    ]
    assert len(bodies) == 7
    weather = next(body for body in bodies if "Paris" in body["messages"][0]["content"])
    assert weather == {
        "model": "toy",
        "messages": [{"role": "user", "content": "What is the weather in Paris right now?"}],
        "tools": [FILE.tools_by_name["get_weather"]],
        "temperature": 0,
        "max_tokens": 99,
    }
    told = json.loads(output.read_text())
    assert told["model"] == "toy"
    assert [one["case"]["id"] for one in told["answers"]] == [f"single-0{i}" for i in range(1, 8)]
    assert told["answers"][0]["answer"]["calls"] == [
        {"name": "get_weather", "arguments": '{"location": "Paris"}'}
    ]
    assert told["answers"][6]["score"]["num_errors"] == 1


def test_label_and_no_call_cases(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server() as (url, _):
        main(["--url", url, "--category", "missing", "--limit", "1", "--label", "mine"])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| mine | all | 0% (0/1) |  | 100% (1/1) | 100% (1/1) | 0 |",
        "| mine | missing | 0% (0/1) |  | 100% (1/1) | 100% (1/1) | 0 |",
    ]


def test_a_server_that_is_not_there() -> None:
    with fake_server() as (url, _):
        pass
    with pytest.raises(SystemExit, match=f"error: {url}/v1/models: "):
        main(["--url", url])


@pytest.mark.parametrize(
    "option", [["--body", "[]"], ["--body", "{"], ["--concurrency", "0"], ["--limit", "0"]]
)
def test_options_that_are_refused(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--url", "http://server", *option])
    assert exit_info.value.code == 2
    assert f"argument {option[0]}: not " in capsys.readouterr().err
