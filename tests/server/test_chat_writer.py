"""Calls on the wire of /v1/chat/completions: every chunk of a stream, the reply, counts."""

from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from engine.fake import Script
from tests.server.scripted_app import App
from tests.server.tool_app import (
    HERMES,
    REACT,
    TIME,
    TOOLS,
    WEATHER,
    answering,
    folded,
    named,
    said,
    tool_app,
)

ONE = (
    "Let me",
    ' see.\n<tool_call>\n{"name": "get_weather", "argu',
    'ments": {"city": "Bo',
    'ston"}',
    "}\n</tool_call>",
)
TWO = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>\n',
    '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>',
)
REACT_ONE = ("Thought: Let me", ' see.\nAction: get_weather\nAction Input: {"city": "Bo', 'ston"}')
OPENING = {"role": "assistant", "content": None, "refusal": None}
LEGACY = {"functions": [WEATHER, TIME]}


def begun(index: int, name: str, call_id: str) -> dict[str, Any]:
    function = {"name": name, "arguments": ""}
    call = {"index": index, "id": call_id, "type": "function", "function": function}
    return {"tool_calls": [call]}


def more(index: int, arguments: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}


def ids_in(events: list[Any]) -> list[str]:
    """The ids of calls in the order that they come in."""
    choices = [choice for event in events if event != "[DONE]" for choice in event["choices"]]
    calls = [call for one in choices for call in one["delta"].get("tool_calls", [])]
    return [call["id"] for call in calls if "id" in call]


async def choices_of(app: App, **fields: Any) -> list[Any]:
    """The only choice of each chunk, up to [DONE]."""
    *chunks, done = await app.chat_events(**fields)
    assert done == "[DONE]"
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    return [chunk["choices"][0] for chunk in chunks]


async def test_the_stream_of_a_call_exactly() -> None:
    events = await tool_app(HERMES, answering(*ONE)).chat_events(tools=TOOLS)
    (call_id,) = ids_in(events)
    assert call_id.startswith("call_") and len(call_id) == len("call_") + 24
    assert events.pop() == "[DONE]"
    assert [event["choices"] for event in events] == [
        [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        for delta, finish in [
            (OPENING, None),
            ({"content": "Let me"}, None),
            ({"content": " see."}, None),
            (begun(0, "get_weather", call_id), None),
            (more(0, '{"city": "Bo'), None),
            (more(0, 'ston"}'), None),
            ({}, "tool_calls"),
        ]
    ]


async def test_the_stream_of_a_react_call_exactly() -> None:
    events = await tool_app(REACT, answering(*REACT_ONE)).chat_events(tools=TOOLS)
    (call_id,) = ids_in(events)
    assert [event["choices"][0]["delta"] for event in events[:-1]] == [
        OPENING,
        {"content": "Let me see."},  # held until it is known not to lead to a final answer
        begun(0, "get_weather", call_id),
        more(0, '{"city": "Bo'),
        more(0, 'ston"}'),
        {},
    ]


async def test_parallel_calls_have_their_places() -> None:
    events = await tool_app(HERMES, answering("".join(TWO))).chat_events(tools=TOOLS)
    first, second = ids_in(events)
    assert first != second
    assert [event["choices"][0]["delta"] for event in events[:-1]] == [
        OPENING,
        begun(0, "get_weather", first),
        more(0, '{"city": "Rome"}'),
        begun(1, "get_time", second),
        more(1, "{}"),
        {},
    ]


async def test_the_stream_of_a_function_call_exactly() -> None:
    choices = await choices_of(tool_app(HERMES, answering(*ONE)), **LEGACY)
    assert [(choice["delta"], choice["finish_reason"]) for choice in choices] == [
        (OPENING, None),
        ({"content": "Let me"}, None),
        ({"content": " see."}, None),
        ({"function_call": {"name": "get_weather", "arguments": ""}}, None),
        ({"function_call": {"arguments": '{"city": "Bo'}}, None),
        ({"function_call": {"arguments": 'ston"}'}}, None),
        ({}, "function_call"),
    ]


async def test_the_reply_exactly() -> None:
    body = (await tool_app(HERMES, answering("".join(TWO))).chat(tools=TOOLS)).json()
    ChatCompletion.model_validate(body, strict=True)
    (choice,) = body["choices"]
    ids = [call.pop("id") for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 2 and all(one.startswith("call_") for one in ids)
    assert choice == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [
                {
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
                },
                {"type": "function", "function": {"name": "get_time", "arguments": "{}"}},
            ],
        },
        "logprobs": None,
        "finish_reason": "tool_calls",
    }


async def test_the_reply_with_a_function_call_exactly() -> None:
    body = (await tool_app(HERMES, answering(*ONE)).chat(**LEGACY)).json()
    assert body["choices"][0] == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": "Let me see.",
            "refusal": None,
            "function_call": {"name": "get_weather", "arguments": '{"city": "Boston"}'},
        },
        "logprobs": None,
        "finish_reason": "function_call",
    }


@pytest.mark.parametrize("fields", [{"tools": TOOLS}, LEGACY], ids=["tools", "functions"])
@pytest.mark.parametrize("texts", [("Hi", " you"), ()], ids=["text", "nothing"])
async def test_an_answer_without_calls(fields: dict[str, Any], texts: tuple[str, ...]) -> None:
    body = (await tool_app(HERMES, answering(*texts)).chat(**fields)).json()
    content = "".join(texts) or None
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": content,
        "refusal": None,
    }
    assert body["choices"][0]["finish_reason"] == "stop"
    choices = await choices_of(tool_app(HERMES, answering(*texts)), **fields)
    deltas = [OPENING, *({"content": text} for text in texts), {}]
    assert [choice["delta"] for choice in choices] == deltas


@pytest.mark.parametrize(
    ("fields", "script", "reason"),
    [
        ({"tools": TOOLS}, answering(*ONE), "tool_calls"),
        ({"tools": TOOLS, "tool_choice": "required"}, answering(*ONE), "tool_calls"),
        ({"tools": TOOLS, "tool_choice": named("get_weather")}, answering(*ONE), "stop"),
        ({"tools": TOOLS}, answering("Hi"), "stop"),
        ({"tools": TOOLS}, answering(*ONE[:-2], reason="length"), "length"),
        ({"tools": TOOLS}, answering(*ONE, reason="length"), "length"),
        (LEGACY, answering(*ONE), "function_call"),
        ({**LEGACY, "function_call": {"name": "get_weather"}}, answering(*ONE), "stop"),
        (LEGACY, answering("Hi"), "stop"),
        (LEGACY, answering(*ONE[:-2], reason="length"), "length"),
    ],
)
async def test_finish_reasons(fields: dict[str, Any], script: Script, reason: str) -> None:
    body = (await tool_app(HERMES, script).chat(**fields)).json()
    assert body["choices"][0]["finish_reason"] == reason
    choices = await choices_of(tool_app(HERMES, script), **fields)
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == [reason]


async def test_a_call_that_is_cut_keeps_what_there_is_of_it() -> None:
    script = answering(*ONE[:-2], reason="length")
    body = (await tool_app(HERMES, script).chat(tools=TOOLS)).json()
    assert said(body["choices"][0])["calls"] == [("get_weather", '{"city": "Bo')]


@pytest.mark.parametrize("tools", [{"tools": TOOLS}, LEGACY], ids=["tools", "functions"])
async def test_choices_have_parsers_and_places_of_their_own(tools: dict[str, Any]) -> None:
    """Interleaved: vLLM and SGLang once had one parser for all choices."""
    scripts = [
        answering(*ONE, pause_s=0.001),
        answering("No", " call", " here", pause_s=0.001),
        answering(*(TWO[1], "\n") if "functions" in tools else TWO, pause_s=0.001),
    ]
    expected = [
        said((await tool_app(HERMES, script).chat(**tools)).json()["choices"][0])
        for script in scripts
    ]
    assert len({str(one) for one in expected}) == 3
    body = (await tool_app(HERMES, *scripts).chat(n=3, **tools)).json()
    assert [said(choice) for choice in body["choices"]] == expected
    events = await tool_app(HERMES, *scripts).chat_events(n=3, **tools)
    assert [said(choice) for choice in folded(events)["choices"]] == expected
    assert len(set(ids_in(events))) == len(ids_in(events))
    indices = [event["choices"][0]["index"] for event in events[:-1]]
    assert indices[:3] == [0, 1, 2] and indices[3:] != sorted(indices[3:])


async def test_usage_counts_every_token_of_a_call() -> None:
    num_tokens = len("".join(ONE)) + 1  # a byte each, and the end
    options = {"include_usage": True}
    app = tool_app(HERMES, answering(*ONE))
    *chunks, last, done = await app.chat_events(tools=TOOLS, stream_options=options)
    assert (last["choices"], done) == ([], "[DONE]")
    assert {chunk["usage"] for chunk in chunks} == {None}
    body = (await tool_app(HERMES, answering(*ONE)).chat(tools=TOOLS)).json()
    assert last["usage"] == body["usage"]
    assert body["usage"]["completion_tokens"] == num_tokens
    assert body["usage"]["prompt_tokens"] == len(app.engine.requests[0].prompt_token_ids)


@pytest.mark.parametrize("texts", [ONE, TWO, ("".join(ONE),), tuple("".join(TWO))], ids=len)
async def test_logprobs_of_every_token(texts: tuple[str, ...]) -> None:
    """Those of markers and names too, in order, though no delta shows their text."""
    body = (await tool_app(HERMES, answering(*texts)).chat(tools=TOOLS, logprobs=True)).json()
    tokens = body["choices"][0]["logprobs"]["content"]
    assert "".join(one["token"] for one in tokens) == "".join(texts)
    assert [one["logprob"] for one in tokens] == [-i - 1.0 for i in range(len(tokens))]
    events = await tool_app(HERMES, answering(*texts)).chat_events(tools=TOOLS, logprobs=True)
    assert folded(events)["choices"][0]["logprobs"]["content"] == tokens


async def test_logprobs_up_to_a_made_up_observation() -> None:
    """The tokens of a stop string are left out of a reply, and so are theirs."""
    texts = (*REACT_ONE, "\nObservation: 20 degrees")
    app = tool_app(REACT, answering(*texts))
    body = (await app.chat(tools=TOOLS, logprobs=True)).json()
    tokens = body["choices"][0]["logprobs"]["content"]
    assert "".join(one["token"] for one in tokens) == "".join(REACT_ONE)
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    assert len(app.engine.aborted) == 1  # it would go on with what it made up


async def test_deltas_of_one_event_have_its_logprobs_once() -> None:
    events = await tool_app(HERMES, answering("".join(ONE))).chat_events(tools=TOOLS, logprobs=True)
    choices = [event["choices"][0] for event in events[:-1]]
    kinds = [next(iter(choice["delta"]), None) for choice in choices[1:]]
    assert kinds == ["content", "tool_calls", "tool_calls", None]
    assert [bool(choice["logprobs"]) for choice in choices] == [False, False, False, True, False]


@pytest.mark.parametrize("fields", [{"tools": TOOLS}, LEGACY], ids=["tools", "functions"])
async def test_obfuscation(fields: dict[str, Any]) -> None:
    """Every chunk has some, and that of a call is padded as that of a text is."""
    app = tool_app(HERMES, answering(*ONE))
    events = await app.chat_events(stream_options={"include_obfuscation": True}, **fields)
    assert all(event["obfuscation"] for event in events[:-1])
    plain = await tool_app(HERMES, answering(*ONE)).chat_events(**fields)
    assert all("obfuscation" not in event for event in plain[:-1])
    with_padding, without = folded(events)["choices"][0], folded(plain)["choices"][0]
    assert said(with_padding) == said(without)


async def test_reasoning_is_before_the_calls() -> None:
    texts = ("<think>\nRome? ", 'Call {"name": "get_time"}.\n</think>\n\n', *TWO)
    body = (await tool_app(HERMES, answering(*texts)).chat(tools=TOOLS)).json()
    expected = said(body["choices"][0])
    assert expected["reasoning"] == 'Rome? Call {"name": "get_time"}.'
    assert expected["content"] is None
    assert [name for name, _ in expected["calls"]] == ["get_weather", "get_time"]
    events = await tool_app(HERMES, answering(*texts)).chat_events(tools=TOOLS)
    assert said(folded(events)["choices"][0]) == expected
    assert events[0]["choices"][0]["delta"] == OPENING


async def test_a_call_in_thinking_is_none() -> None:
    thought = "<think>\n" + "".join(TWO) + "\n</think>\n\nNo."
    body = (await tool_app(HERMES, answering(thought)).chat(tools=TOOLS)).json()
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "stop" and choice["message"]["content"] == "No."
    assert "tool_calls" not in choice["message"]
