"""The tools of a chat request as OpenAI has them, new (tools) and old (functions), and what they
ask for in one form.

Source: OpenAI's openapi.json, CreateChatCompletionRequest. Functions may be written as in the Qwen
repository too: name_for_model, name_for_human, description_for_model and a list of parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from protocol.sampling import RequestModel
from protocol.tools.calls import Tool
from protocol.tools.schemas import NO_PARAMETERS, schema_problem
from protocol.validation import BRANCH, MAX_QUOTED, InvalidField

MAX_TOOLS = 128

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Description = str | None


def _check_kind(value: object) -> object:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "custom":
        raise InvalidField(
            "unsupported_value",
            "Unsupported value: tools of type 'custom' are not supported with this model. Only "
            "'function' is.",
        )
    return value


class QwenParameter(RequestModel):
    """One parameter as the Qwen repository's examples write it."""

    name: str
    description: str | None = None
    required: bool | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class Function(RequestModel):
    """A function that the model may call."""

    name: FunctionName | None = None
    name_for_model: FunctionName | None = None
    name_for_human: str | None = None
    description: Description = None
    description_for_model: Description = None
    parameters: (
        Annotated[
            Annotated[dict[str, Any], Tag(BRANCH + "object")]
            | Annotated[list[QwenParameter], Tag(BRANCH + "array")],
            Discriminator(
                lambda value: BRANCH + ("array" if isinstance(value, list) else "object"),
            ),
        ]
        | None
    ) = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _check_name(self) -> "Function":
        if self.name is None and self.name_for_model is None:
            raise InvalidField(
                "missing_required_parameter", "Missing required parameter: 'name'.", "name"
            )
        return self

    @property
    def model_name(self) -> str:
        """What the model calls it."""
        name = self.name_for_model or self.name
        assert name is not None
        return name

    def tool(self) -> Tool:
        """The same in the form that prompts and parsers take."""
        parameters = self.parameters
        if isinstance(parameters, list):
            parameters = {
                "type": "object",
                "properties": {
                    one.name: _with_description(one.schema_, one.description) for one in parameters
                },
                "required": [one.name for one in parameters if one.required],
            }
        return Tool(
            name=self.model_name,
            description=self.description_for_model or self.description or "",
            parameters=NO_PARAMETERS if parameters is None else parameters,
            strict=bool(self.strict),
            name_for_human=self.name_for_human,
        )


class FunctionTool(RequestModel):
    """An entry of `tools`."""

    type: Literal["function"]
    function: Function


class FunctionNamed(RequestModel):
    name: str


class ToolNamed(RequestModel):
    """A tool by its name."""

    type: Literal["function"]
    function: FunctionNamed


class AllowedTools(RequestModel):
    mode: Literal["auto", "required"]
    tools: Annotated[list[ToolNamed], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsChoice(RequestModel):
    """Only some of the tools may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _choice_branch(value: object) -> str:
    if not isinstance(value, dict):
        return BRANCH + "word"
    return BRANCH + ("allowed" if value.get("type") == "allowed_tools" else "named")


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(BRANCH + "word")]
    | Annotated[ToolNamed, Tag(BRANCH + "named")]
    | Annotated[AllowedToolsChoice, Tag(BRANCH + "allowed")],
    Discriminator(_choice_branch),
]
FunctionCall = Annotated[
    Annotated[Literal["none", "auto"], Tag(BRANCH + "word")]
    | Annotated[FunctionNamed, Tag(BRANCH + "named")],
    Discriminator(_choice_branch),
]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request asks for.

    Attributes:
        tools: what the model is told of.
        callable_names: what it may call; the others are only in its prompt.
        is_required: the answer is at least one call.
        forced_name: the one tool that has to be called, and once.
        allows_parallel: more than one call in an answer.
        is_legacy: asked for by `functions`, answered by `function_call`.
    """

    tools: tuple[Tool, ...]
    callable_names: frozenset[str]
    is_required: bool = False
    forced_name: str | None = None
    allows_parallel: bool = True
    is_legacy: bool = False


class ToolFields(RequestModel):
    """The fields of a chat request that are about tools."""

    tools: (
        Annotated[
            list[Annotated[FunctionTool, BeforeValidator(_check_kind)]], Field(max_length=MAX_TOOLS)
        ]
        | None
    ) = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Field(max_length=MAX_TOOLS)] | None = None
    function_call: FunctionCall | None = None

    @cached_property  # asked for by the checks, the prompt and the reply
    def tool_use(self) -> ToolUse | None:
        """None for a request without tools, and for one that may call none of them."""
        if self.functions:
            return self._legacy_use(tuple(function.tool() for function in self.functions))
        if not self.tools:
            return None
        tools = tuple(entry.function.tool() for entry in self.tools)
        names = frozenset(tool.name for tool in tools)
        choice, parallel = self.tool_choice, self.parallel_tool_calls is not False
        if isinstance(choice, ToolNamed):
            name = choice.function.name
            return ToolUse(tools, frozenset({name}), True, name, allows_parallel=False)
        if isinstance(choice, AllowedToolsChoice):
            allowed = frozenset(tool.function.name for tool in choice.allowed_tools.tools)
            is_required = choice.allowed_tools.mode == "required"
            return ToolUse(tools, allowed, is_required, allows_parallel=parallel)
        if choice == "none":
            return None
        return ToolUse(tools, names, choice == "required", allows_parallel=parallel)

    def _legacy_use(self, tools: tuple[Tool, ...]) -> ToolUse | None:
        names = frozenset(tool.name for tool in tools)
        if self.function_call == "none":
            return None
        if isinstance(self.function_call, FunctionNamed):
            name = self.function_call.name
            return ToolUse(tools, frozenset({name}), True, name, False, is_legacy=True)
        return ToolUse(tools, names, allows_parallel=False, is_legacy=True)

    @model_validator(mode="after")
    def _check_tools(self) -> "ToolFields":
        if self.tools and self.functions:
            raise InvalidField(
                "invalid_parameter_combination",
                "'functions' and 'tools' cannot both be given; 'tools' is the newer one.",
                "functions",
            )
        _check_unique([entry.function.model_name for entry in self.tools or ()], "tools")
        _check_unique([function.model_name for function in self.functions or ()], "functions")
        for i, entry in enumerate(self.tools or ()):
            _check_schema(entry.function, f"tools[{i}].function.parameters")
        for i, function in enumerate(self.functions or ()):
            _check_schema(function, f"functions[{i}].parameters")
        self._check_choice()
        return self

    def _check_choice(self) -> None:
        tools = {entry.function.model_name for entry in self.tools or ()}
        if not tools:
            _only_with("tools", "tool_choice", self.tool_choice not in (None, "none"))
            _only_with("tools", "parallel_tool_calls", self.parallel_tool_calls is not None)
        for name in _chosen(self.tool_choice) if tools else ():
            _check_known(name, tools, "tool_choice", "tools")
        functions = {function.model_name for function in self.functions or ()}
        if not functions:
            _only_with("functions", "function_call", self.function_call not in (None, "none"))
        elif isinstance(self.function_call, FunctionNamed):
            _check_known(self.function_call.name, functions, "function_call", "functions")


def _with_description(schema: Mapping[str, Any], description: str | None) -> Mapping[str, Any]:
    return schema if description is None else {"description": description, **schema}


def _chosen(choice: object) -> Sequence[str]:
    if isinstance(choice, ToolNamed):
        return [choice.function.name]
    if isinstance(choice, AllowedToolsChoice):
        return [tool.function.name for tool in choice.allowed_tools.tools]
    return []


def _check_unique(names: Sequence[str], param: str) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InvalidField(
                "invalid_value", f"Invalid '{param}': the name '{name}' is given twice.", param
            )


def _check_schema(function: Function, param: str) -> None:
    problem = schema_problem(function.tool())
    if problem is not None:
        raise InvalidField(
            "invalid_function_parameters",
            f"Invalid schema for function '{function.model_name}': {problem}",
            param,
        )


def _only_with(needed: str, param: str, is_given: bool) -> None:
    if is_given:
        raise InvalidField(
            "invalid_value", f"'{param}' is only allowed when '{needed}' are specified.", param
        )


def _check_known(name: str, names: set[str], param: str, where: str) -> None:
    if name not in names:
        raise InvalidField(
            "invalid_value",
            f"Invalid '{param}': '{name[:MAX_QUOTED]}' is not among the names of '{where}'.",
            param,
        )
