"""Tools over HTTP with a scripted engine: what it is asked to keep to, and what is refused."""

from typing import Any

import pytest

from engine.fake import Script
from engine.messages import EngineRequest, Fault, Finished, Grammar, Thinking
from server.config import ServerConfig
from server.state import ServedModel
from server.streaming import IGNORED_HEADER
from tests.protocol.thinking_templates import ALWAYS
from tests.server.scripted_app import App
from tests.server.tool_app import (
    HERMES,
    MODELS,
    REACT,
    STRICT_WEATHER,
    TIME,
    TOOLS,
    WEATHER,
    allowed,
    answering,
    function_tools,
    named,
    prompt_of,
    tool_app,
    tool_model,
)

ASKED = ServerConfig(tool_grammar="asked")
STRICT = {"type": "function", "function": STRICT_WEATHER}
BOTH = {"get_weather", "get_time"}
MODEL = pytest.mark.parametrize("model", [HERMES, REACT], ids=["hermes", "react"])
STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


async def asked(
    model: ServedModel = HERMES, config: ServerConfig | None = None, **fields: object
) -> EngineRequest:
    app = tool_app(model, answering("Hi"), config=config)
    response = await app.chat(**fields)
    assert response.status_code == 200, response.text
    return app.engine.requests[0]


async def grammar_of(**fields: Any) -> Grammar:
    grammar = (await asked(**fields)).grammar
    assert grammar is not None
    return grammar


def names_in(grammar: Grammar) -> set[str]:
    """The functions that the grammar has a call of."""
    return {name for name in BOTH if name in grammar.text}


@MODEL
@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"tools": TOOLS}, BOTH),
        ({"tools": TOOLS, "tool_choice": "auto"}, BOTH),
        ({"tools": TOOLS, "tool_choice": "required"}, BOTH),
        ({"tools": TOOLS, "tool_choice": named("get_time")}, {"get_time"}),
        ({"tools": TOOLS, "tool_choice": allowed("auto", "get_weather")}, {"get_weather"}),
        ({"tools": TOOLS, "tool_choice": allowed("required", *BOTH)}, BOTH),
        ({"tools": TOOLS, "parallel_tool_calls": False}, BOTH),
        ({"functions": [WEATHER, TIME]}, BOTH),
        ({"functions": [WEATHER, TIME], "function_call": {"name": "get_time"}}, {"get_time"}),
    ],
    ids=str,
)
async def test_the_grammar_has_the_tools_that_may_be_called(
    model: ServedModel, fields: dict[str, Any], names: set[str]
) -> None:
    grammar = await grammar_of(model=model, **fields)
    assert names_in(grammar) == names
    assert grammar.kind == "lark"
    assert grammar.origin == ("functions" if "functions" in fields else "tools")


@MODEL
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": []},
        {"tools": TOOLS, "tool_choice": "none"},
        {"functions": [WEATHER], "function_call": "none"},
    ],
    ids=str,
)
async def test_without_tools_that_may_be_called(model: ServedModel, fields: dict[str, Any]) -> None:
    app = tool_app(model, answering("Hi"))
    assert (await app.chat(**fields)).status_code == 200
    assert app.engine.requests[0].grammar is None
    assert "get_weather" not in prompt_of(app)


@MODEL
async def test_all_tools_are_in_the_prompt_whatever_may_be_called(model: ServedModel) -> None:
    app = tool_app(model, answering("Hi"))
    await app.chat(tools=TOOLS, tool_choice=named("get_time"))
    assert "get_weather" in prompt_of(app) and "get_time" in prompt_of(app)


@MODEL
@pytest.mark.parametrize(
    ("fields", "is_guided"),
    [
        ({"tools": TOOLS}, False),
        ({"tools": TOOLS, "tool_choice": allowed("auto", "get_time")}, False),
        ({"tools": TOOLS, "parallel_tool_calls": True}, False),
        ({"tools": TOOLS, "response_format": {"type": "text"}}, False),
        ({"tools": TOOLS, "tool_choice": "required"}, True),
        ({"tools": TOOLS, "tool_choice": named("get_time")}, True),
        ({"tools": TOOLS, "tool_choice": allowed("required", "get_time")}, True),
        ({"tools": TOOLS, "parallel_tool_calls": False}, True),
        ({"tools": [STRICT, TOOLS[1]]}, True),
        ({"tools": [STRICT, TOOLS[1]], "tool_choice": allowed("auto", "get_time")}, False),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, True),
        ({"functions": [WEATHER]}, True),  # which has one call to an answer
    ],
    ids=str,
)
async def test_where_only_what_is_asked_for_is_guided(
    model: ServedModel, fields: dict[str, Any], is_guided: bool
) -> None:
    request = await asked(model, ASKED, **fields)
    assert (request.grammar is not None) is is_guided


async def test_a_required_call_leaves_no_room_for_text() -> None:
    def start(grammar: Grammar) -> str:
        return next(one for one in grammar.text.splitlines() if one.startswith("start:"))

    assert "TEXT" in start(await grammar_of(tools=TOOLS))
    assert "TEXT" not in start(await grammar_of(tools=TOOLS, tool_choice="required"))
    assert "content" in start(
        await grammar_of(tools=TOOLS, response_format={"type": "json_object"})
    )


async def test_a_response_format_is_of_the_answer_without_calls() -> None:
    schema = {"type": "object", "properties": {"mood": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    grammar = await grammar_of(tools=TOOLS, response_format=form)
    assert grammar.origin == "tools" and "mood" in grammar.text
    assert names_in(grammar) == BOTH
    named_one = await grammar_of(tools=TOOLS, tool_choice=named("get_time"), response_format=form)
    assert "mood" not in named_one.text


@pytest.mark.parametrize(
    ("template", "thinking"),
    [
        (None, Thinking("<think>", "</think>", False)),
        (ALWAYS, Thinking("<think>", "</think>", True)),
    ],
    ids=["free", "always"],
)
async def test_thinking_comes_before_calls(template: str | None, thinking: Thinking) -> None:
    model = HERMES if template is None else tool_model(template=template)
    assert (await grammar_of(model=model, tools=TOOLS)).thinking == thinking
    assert (await grammar_of(model=REACT, tools=TOOLS)).thinking is None


@STREAM
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"json": {}}}, "structured_outputs"),
        ({"ignore_eos": True}, "ignore_eos"),
    ],
    ids=str,
)
async def test_what_tools_cannot_be_combined_with(
    stream: bool, fields: dict[str, Any], param: str
) -> None:
    app = tool_app(HERMES, answering("Hi"))
    for tools in ({"tools": TOOLS}, {"functions": [WEATHER]}):
        response = await app.chat(stream=stream, **tools, **fields)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param)
        assert error["code"] == "invalid_parameter_combination"
    assert app.engine.requests == []
    none = await app.chat(tools=TOOLS, tool_choice="none", **fields)
    assert none.status_code == 200


LOOSE = {
    "type": "object",
    "properties": {
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "when": {"type": "string", "format": "week"},
        "day": {"type": "string", "format": "date"},
    },
    "not": {"required": ["when"]},
}
LOOSE_PATHS = ["properties.tags.uniqueItems", "properties.when.format", "not"]


@MODEL
@STREAM
async def test_what_no_grammar_can_promise_is_named(model: ServedModel, stream: bool) -> None:
    app = tool_app(model, answering("Hi"))
    response = await app.chat(tools=function_tools({}, LOOSE), stream=stream)
    assert response.headers[IGNORED_HEADER].split(", ") == [
        f"tools[1].function.parameters.{path}" for path in LOOSE_PATHS
    ]
    response = await app.chat(functions=[{"name": "f", "parameters": LOOSE}], stream=stream)
    assert response.headers[IGNORED_HEADER].split(", ") == [
        f"functions[0].parameters.{path}" for path in LOOSE_PATHS
    ]


async def test_only_tools_that_may_be_called_are_named() -> None:
    app = tool_app(HERMES, answering("Hi"))
    tools = function_tools({}, LOOSE)
    response = await app.chat(tools=tools, tool_choice=named("f0"))
    assert IGNORED_HEADER not in response.headers
    assert IGNORED_HEADER not in (await app.chat(tools=TOOLS)).headers


async def test_strict_is_followed_to_the_letter() -> None:
    """Nothing of a strict schema is left out: what cannot be followed is the engine's to refuse."""
    app = tool_app(HERMES, answering("Hi"))
    schema = {**STRICT_WEATHER["parameters"], "properties": {"city": LOOSE["properties"]["when"]}}  # type: ignore[index]
    response = await app.chat(tools=function_tools(schema, strict=True))
    assert IGNORED_HEADER not in response.headers
    grammar = app.engine.requests[0].grammar
    assert grammar is not None and '"week"' in grammar.text


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"additionalProperties": True}, "'additionalProperties' is required"),
        ({"required": []}, "'required' is required"),
        ({"properties": {"city": {"not": {}}}}, "'not' is not permitted"),
    ],
    ids=str,
)
async def test_a_schema_that_is_not_strict(changed: dict[str, Any], problem: str) -> None:
    schema = {**STRICT_WEATHER["parameters"], **changed}
    response = await tool_app(HERMES).chat(tools=function_tools(schema, strict=True))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_function_parameters")
    assert error["param"] == "tools[0].function.parameters"
    assert error["message"].startswith("Invalid schema for function 'f0': ")
    assert problem in error["message"]


def failing(message: str) -> Script:
    def script(request: EngineRequest) -> list[Finished]:
        fault = Fault("invalid_grammar", message)
        return [Finished(request.id, "error", fault=fault)]

    return script


async def refusal(message: str, **fields: Any) -> dict[str, Any]:
    response = await tool_app(HERMES, failing(message)).chat(**fields)
    assert response.status_code == 400
    error: dict[str, Any] = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


@STREAM
@pytest.mark.parametrize(
    ("fields", "param"), [({"tools": TOOLS}, "tools"), ({"functions": [WEATHER]}, "functions")]
)
async def test_a_schema_that_does_not_compile(
    stream: bool, fields: dict[str, Any], param: str
) -> None:
    message = "function 'get_weather': In context=('properties', 'city'), Unimplemented keys."
    error = await refusal(message, stream=stream, n=2, **fields)
    assert (error["param"], error["code"]) == (param, "invalid_function_parameters")
    assert error["message"] == f"Invalid schema for {message}"


async def test_a_response_format_that_does_not_compile() -> None:
    """The words, param and code are those of the same fault without tools."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    message = "response_format: In context=('properties', 'b'), Unimplemented keys."
    error = await refusal(message, tools=TOOLS, response_format=form)
    assert (error["param"], error["code"]) == ("response_format", "invalid_json_schema")
    assert error["message"].startswith("Invalid schema for response_format")


@pytest.mark.parametrize(
    "message", ["it is longer than 262144 bytes.", "it takes more than 2 seconds to compile."]
)
async def test_a_fault_of_all_tools_together(message: str) -> None:
    error = await refusal(message, tools=TOOLS)
    assert (error["param"], error["code"]) == ("tools", "invalid_function_parameters")
    assert error["message"] == f"Invalid 'tools': {message}"


async def test_a_schema_that_the_format_has_no_grammar_for() -> None:
    """Qwen3-Coder's arguments are elements: only those that 'properties' names can be written."""
    coder = next(model for model in MODELS.values() if model.tools.format == "qwen3_coder")
    for origin, fields in (
        ("tools", {"tools": function_tools({"anyOf": [{"type": "object"}]})}),
        ("functions", {"functions": [{"name": "f0", "parameters": {"anyOf": [{}]}}]}),
    ):
        app: App = tool_app(coder)
        response = await app.chat(**fields)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, origin)
        assert error["code"] == "invalid_function_parameters"
        assert error["message"].startswith("Invalid schema for function 'f0': ")
        assert app.engine.requests == []
