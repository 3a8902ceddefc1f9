"""The tools of a request: what is accepted, what it asks for, and the refusals."""

import json
from typing import Any

import pytest
from openai.types.chat import completion_create_params as openai_params

from protocol.errors import InvalidRequest
from protocol.tools.calls import Tool
from protocol.tools.request import ToolFields, ToolUse
from protocol.tools.schemas import NO_PARAMETERS
from protocol.validation import parse

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "The weather.", "parameters": SCHEMA}
TIME = {"name": "get_time"}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": TIME}]
WEATHER_TOOL = Tool("get_weather", "The weather.", SCHEMA)
TIME_TOOL = Tool("get_time", "", NO_PARAMETERS)
BOTH = (WEATHER_TOOL, TIME_TOOL)
NAMES = frozenset({"get_weather", "get_time"})


def read(**fields: object) -> ToolUse | None:
    return parse(ToolFields, json.dumps(fields).encode())[0].tool_use


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize(
    ("fields", "use"),
    [
        ({}, None),
        ({"tools": [], "tool_choice": None, "parallel_tool_calls": None}, None),
        ({"tool_choice": "none", "function_call": "none"}, None),
        ({"tools": TOOLS}, ToolUse(BOTH, NAMES)),
        ({"tools": TOOLS, "tool_choice": "auto"}, ToolUse(BOTH, NAMES)),
        ({"tools": TOOLS, "tool_choice": "none"}, None),
        ({"tools": TOOLS, "tool_choice": "required"}, ToolUse(BOTH, NAMES, True)),
        (
            {"tools": TOOLS, "parallel_tool_calls": False},
            ToolUse(BOTH, NAMES, allows_parallel=False),
        ),
        (
            {"tools": TOOLS, "tool_choice": named("get_time")},
            ToolUse(BOTH, frozenset({"get_time"}), True, "get_time", allows_parallel=False),
        ),
        (
            {"tools": TOOLS, "tool_choice": allowed("auto", "get_time")},
            ToolUse(BOTH, frozenset({"get_time"})),
        ),
        (
            {"tools": TOOLS, "tool_choice": allowed("required", "get_time", "get_weather")},
            ToolUse(BOTH, NAMES, True),
        ),
        (
            {"functions": [WEATHER, TIME]},
            ToolUse(BOTH, NAMES, allows_parallel=False, is_legacy=True),
        ),
        (
            {"functions": [WEATHER, TIME], "function_call": {"name": "get_weather"}},
            ToolUse(BOTH, frozenset({"get_weather"}), True, "get_weather", False, is_legacy=True),
        ),
        ({"functions": [WEATHER], "function_call": "none"}, None),
    ],
    ids=str,
)
def test_what_is_asked_for(fields: dict[str, Any], use: ToolUse | None) -> None:
    assert read(**fields) == use


def test_a_function_as_the_qwen_repository_writes_it() -> None:
    """After examples/function_call_examples.py."""
    function = {
        "name_for_human": "谷歌搜索",
        "name_for_model": "google_search",
        "description_for_model": "谷歌搜索是一个通用搜索引擎。",
        "parameters": [
            {
                "name": "search_query",
                "description": "搜索关键词或短语",
                "required": True,
                "schema": {"type": "string"},
            },
            {"name": "page", "schema": {"type": "integer"}},
        ],
    }
    use = read(functions=[function])
    assert use is not None
    assert use.tools == (
        Tool(
            "google_search",
            "谷歌搜索是一个通用搜索引擎。",
            {
                "type": "object",
                "properties": {
                    "search_query": {"description": "搜索关键词或短语", "type": "string"},
                    "page": {"type": "integer"},
                },
                "required": ["search_query"],
            },
            name_for_human="谷歌搜索",
        ),
    )


def test_strict_is_kept() -> None:
    parameters = {**SCHEMA, "additionalProperties": False}
    function = {**WEATHER, "parameters": parameters, "strict": True}
    strict = {"type": "function", "function": function}
    use = read(tools=[strict])
    assert use is not None and use.tools[0].strict


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tools": "x"}, "invalid_type", "tools"),
        ({"tools": [{"function": WEATHER}]}, "missing_required_parameter", "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].function"),
        (
            {"tools": [{"type": "function", "function": {}}]},
            "missing_required_parameter",
            "tools[0].function.name",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "invalid_value",
            "tools[0].function.name",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]},
            "invalid_type",
            "tools[0].function.parameters",
        ),
        ({"tools": [{"type": "custom", "custom": {}}]}, "unsupported_value", "tools[0]"),
        ({"tools": [{"type": "search"}]}, "invalid_value", "tools[0].type"),
        ({"tools": TOOLS * 65}, "array_above_max_length", "tools"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "invalid_value", "tools"),
        ({"tools": TOOLS, "functions": [TIME]}, "invalid_parameter_combination", "functions"),
        ({"tool_choice": "auto"}, "invalid_value", "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "always"}, "invalid_value", "tool_choice"),
        ({"tools": TOOLS, "tool_choice": named("x")}, "invalid_value", "tool_choice"),
        ({"tools": TOOLS, "tool_choice": allowed("auto", "x")}, "invalid_value", "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": allowed("none", "get_time")},
            "invalid_value",
            "tool_choice.allowed_tools.mode",
        ),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function"}},
            "missing_required_parameter",
            "tool_choice.function",
        ),
        ({"parallel_tool_calls": True}, "invalid_value", "parallel_tool_calls"),
        ({"function_call": "auto"}, "invalid_value", "function_call"),
        ({"functions": [TIME], "function_call": {"name": "x"}}, "invalid_value", "function_call"),
        ({"functions": [TIME, TIME]}, "invalid_value", "functions"),
    ],
    ids=str,
)
def test_refused(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read(**fields)
    assert (raised.value.code, raised.value.param) == (code, param)


def test_the_fields_are_openais() -> None:
    fields = set(openai_params.CompletionCreateParamsBase.__annotations__)
    assert set(ToolFields.model_fields) <= fields
