"""What holds of every answer with tools: whatever the model writes, in whatever pieces it comes."""

from dataclasses import replace
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.library_tokenizer import LibraryTokenizer
from protocol.prompt import ChatTemplate
from protocol.tools.formats import FORMATS, ToolFormat
from server.state import ServedModel
from tests.protocol.thinking_templates import NEVER
from tests.protocol.tools.parsing import WORDS
from tests.server.scripted_app import App
from tests.server.small_app import byte_tokenizer_json
from tests.server.tool_app import (
    HERMES,
    MODELS,
    REACT,
    TIME,
    TOOLS,
    WEATHER,
    allowed,
    answering,
    cut_at,
    folded,
    named,
    said,
    tool_app,
    tool_model,
    writing,
)

# ReAct beside a template that thinks, and one that tells of tools
THINKING_REACT = tool_model(ToolFormat.REACT)
BY_NAME = {**{str(name): model for name, model in MODELS.items()}, "thinking": THINKING_REACT}

CHOICES: tuple[dict[str, Any], ...] = (
    {},
    {"tools": TOOLS},
    {"tools": TOOLS, "tool_choice": "none"},
    {"tools": TOOLS, "tool_choice": "auto"},
    {"tools": TOOLS, "tool_choice": "required"},
    {"tools": TOOLS, "tool_choice": named("get_weather")},
    {"tools": TOOLS, "tool_choice": allowed("auto", "get_time")},
    {"tools": TOOLS, "parallel_tool_calls": True},
    {"functions": [WEATHER], "function_call": "none"},
)
PIECES = (
    *(
        "<think>",
        "</think>",
        "\n",
        " ",
        "{",
        "}",
        "[",
        "]",
        '"',
        ",",
        ":",
        "```",
        "</thi",
        "<tool_",
    ),
    *("<tool_call>", "</tool_call>", '{"name": "get_time", "arguments": {}}', '"arguments": '),
    *('{"name": "get_weather", "arguments": {"city": "', '"}}', '{"name": "unknown"', "get_time"),
    *("Thought:", "\nAction:", " get_weather\n", "\nAction Input: ", '{"city": "甲"}'),
    *("\nFinal Answer:", "Action Input:", "Action: get_time\nAction Input: {}\n"),
    *("✿FUNCTION✿: get_time", "\n✿ARGS✿: {}", "<function=get_time>\n", "</function>\n"),
    *("<parameter=city>\n", "\n</parameter>\n", '{"name": "get_time", "parameters": {}}', ";"),
)
texts = st.lists(st.sampled_from(PIECES) | st.sampled_from(WORDS), max_size=12).map("".join)
cuts = st.lists(st.integers(0, 200), max_size=8)
models = st.sampled_from(list(BY_NAME))


async def both(name: str, text: str, places: list[int], fields: dict[str, Any]) -> tuple[Any, Any]:
    """The same answer as one reply and as the fold of a stream cut at other places."""
    reason = fields.pop("reason", "stop")
    app = tool_app(BY_NAME[name], writing(cut_at(text), reason))
    reply = await app.chat(**fields)
    assert reply.status_code == 200, reply.text
    app = tool_app(BY_NAME[name], writing(cut_at(text, *places), reason))
    options = {"stream_options": {"include_usage": True}}
    *events, usage, done = await app.chat_events(**fields, **options)
    assert done == "[DONE]" and all("error" not in event for event in events)
    body = reply.json()
    stops = (*stops_of(name), *([fields["stop"]] if "stop" in fields else []))
    if not (app.engine.aborted or any(stop in text for stop in stops)):
        assert usage["usage"] == body["usage"]  # behind a stop, of the tokens in one event
    return said(body["choices"][0]), said(folded(events)["choices"][0])


def stops_of(name: str) -> tuple[str, ...]:
    return FORMATS[BY_NAME[name].tools.format].stops


@given(
    models,
    texts,
    cuts,
    st.sampled_from(CHOICES),
    st.booleans(),
    st.sampled_from(["stop", "length"]),
)
@settings(max_examples=300)
async def test_the_stream_is_the_reply_in_pieces(
    name: str,
    text: str,
    places: list[int],
    choice: dict[str, Any],
    logprobs: bool,
    reason: str,
) -> None:
    fields = {**choice, "logprobs": logprobs, "reason": reason}
    whole, stream = await both(name, text, places, fields)
    assert stream == whole
    if whole["finish_reason"] in ("tool_calls", "function_call"):
        assert whole["calls"] or whole["function_call"]
    if reason == "length" and not any(stop in text for stop in stops_of(name)):
        assert whole["finish_reason"] == "length"
    names = {call for call, _ in whole["calls"]}
    may_call = {"get_time"} if "allowed_tools" in str(choice) else {"get_time", "get_weather"}
    assert names <= may_call
    assert not (names and choice.get("tool_choice") in (None, "none") and "tools" not in choice)


@given(models, texts, cuts, st.sampled_from(CHOICES))
@settings(max_examples=300)
async def test_no_text_is_lost(
    name: str, text: str, places: list[int], choice: dict[str, Any]
) -> None:
    """Words that no format writes itself come out as often as they went in."""
    whole, _ = await both(name, text, places, {**choice})
    parts = [whole["reasoning"] or "", whole["content"] or ""]
    parts += [name + arguments for name, arguments in whole["calls"]]
    output = "".join(parts)
    assert [output.count(word) for word in WORDS] == [text.count(word) for word in WORDS]


MARKS = "<✿:{`|"  # without one of these, no format has a marker


@given(models, st.text(alphabet="aé巴 \n.,}[]\"'", max_size=30), cuts, st.sampled_from(CHOICES))
@settings(max_examples=200)
async def test_text_without_a_marker_is_the_content(
    name: str, text: str, places: list[int], choice: dict[str, Any]
) -> None:
    """To the last character, but for white space in front where the prompt format has it."""
    assert not set(MARKS) & set(text)
    whole, stream = await both(name, text, places, {**choice})
    expected = text.lstrip() if BY_NAME[name] is REACT else text
    has_tools = choice.get("tool_choice", "auto") != "none" and "tools" in choice
    assert stream["content"] == whole["content"] == (expected or (None if has_tools else ""))
    assert whole["calls"] == [] and whole["finish_reason"] == "stop"


HERMES_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome é"}}\n</tool_call>'
REACT_CALL = 'Thought: I need it.\nAction: get_weather\nAction Input: {"city": "Rome é"}'
CODER_CALL = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome é\n</parameter>\n</function>\n"
    "</tool_call>"
)
CALLS = {
    ToolFormat.HERMES: (HERMES_CALL, None),
    ToolFormat.REACT: (REACT_CALL, "I need it."),
    ToolFormat.QWEN3_CODER: (CODER_CALL, None),
    ToolFormat.LLAMA3: ('{"name": "get_weather", "parameters": {"city": "Rome é"}}', None),
    ToolFormat.QWEN_AGENT: ('✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Rome é"}\n', None),
}


@pytest.mark.parametrize("tool_format", CALLS)
@pytest.mark.parametrize("thought", ["", "<think>\nhm\n</think>\n\n"], ids=["", "thinking"])
async def test_a_call_cut_at_every_token(tool_format: ToolFormat, thought: str) -> None:
    """Each byte is a token: cuts are inside markers, names, numbers and characters as well."""
    call, content = CALLS[tool_format]
    model = MODELS[tool_format]
    if model.chat_template is None or model.chat_template.thinking_markers is None:
        thought = ""
    text = thought + call
    for place in range(len(cut_at(text)[0])):
        app = tool_app(model, writing(cut_at(text, place)))
        events = await app.chat_events(tools=TOOLS)
        one = said(folded(events)["choices"][0])
        assert one["calls"] == [("get_weather", '{"city": "Rome é"}')], place
        assert (one["content"], one["finish_reason"]) == (content, "tool_calls")
        assert one["reasoning"] == ("hm" if thought else None)


@given(texts, st.sampled_from(["STOP", "a", "}", "\n", "</tool_call>", "Action"]), cuts)
@example(HERMES_CALL + " a", "}", [40])
@settings(max_examples=60)
async def test_stop_strings_of_the_client(text: str, stop: str, places: list[int]) -> None:
    for name in (ToolFormat.HERMES, ToolFormat.REACT):
        for included in (False, True):
            fields = {"tools": TOOLS, "stop": stop, "include_stop_str_in_output": included}
            whole, stream = await both(name, text, places, fields)
            assert stream == whole


async def test_functions_have_one_call_by_their_grammar() -> None:
    """What would be two calls cannot come: the grammar that is always there has one."""
    for config_fields in ({}, {"function_call": {"name": "get_time"}}):
        app: App = tool_app(HERMES, answering(HERMES_CALL))
        await app.chat(functions=[WEATHER, TIME], **config_fields)
        grammar = app.engine.requests[0].grammar
        assert grammar is not None and "{0,15}" not in grammar.text


def model_with_control_tokens(tool_format: ToolFormat) -> ServedModel:
    """A model in whose vocabulary the markers of its format are control tokens."""
    backend = tokenizers.Tokenizer.from_str(byte_tokenizer_json())
    backend.add_special_tokens([*FORMATS[tool_format].markers, "<|im_start|>", "<|im_end|>"])
    words = LibraryTokenizer.from_json(backend.to_str(), {"eos_token": "<|im_end|>"})
    model = MODELS[tool_format]
    return replace(model, tokenizer=words, chat_template=ChatTemplate(NEVER, words))


@pytest.mark.parametrize("tool_format", [ToolFormat.HERMES, ToolFormat.QWEN3_CODER])
@pytest.mark.parametrize("skip", [None, True, False])
async def test_markers_that_are_control_tokens(tool_format: ToolFormat, skip: bool | None) -> None:
    """Their text is the parser's to see, whether or not a client wants it; else as ever."""
    model = model_with_control_tokens(tool_format)
    call = CALLS[tool_format][0]
    if tool_format is ToolFormat.HERMES:
        call = call.replace("\n", "")  # in a line of its own the object is a call without them
    ids = model.tokenizer.encode(f"Now: {call} Done", parse_special=True)
    opening, closing = (model.tokenizer.special_tokens[m] for m in FORMATS[tool_format].markers)
    assert ids.count(opening) == ids.count(closing) == 1
    app = tool_app(model, writing([[i] for i in ids]))
    fields = {"tools": TOOLS, "skip_special_tokens": skip}
    one = said(folded(await app.chat_events(**fields))["choices"][0])
    assert one["calls"] == [("get_weather", '{"city": "Rome é"}')]
    assert one["content"].split() == ["Now:", "Done"]
    (request,) = app.engine.requests
    assert request.grammar is not None and f"<[{opening}]>" in request.grammar.text
    plain = (await tool_app(model, writing([ids])).chat(skip_special_tokens=skip)).json()
    content = plain["choices"][0]["message"]["content"]
    assert ("<tool_call>" in content) is (skip is False)
