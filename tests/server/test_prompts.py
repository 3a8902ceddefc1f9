"""Prompts of conversations with tools: for templates that tell of them, and taught as text."""

import json
from dataclasses import replace
from typing import Any

import pytest

from protocol.chatglm_format import ChatGLM3Format
from protocol.prompt import ChatTemplate
from protocol.tools.formats import ToolFormat
from server.state import ServedModel
from server.tool_support import tool_support
from tests.protocol.test_built_in_formats import CHATGLM, ROLES, glm
from tests.protocol.thinking_templates import NEVER
from tests.server.tool_app import (
    HERMES,
    MODELS,
    REACT,
    TIME,
    TOOLS,
    WEATHER,
    answering,
    plain_tokenizer,
    prompt_of,
    tool_app,
    tool_model,
)

Messages = list[dict[str, Any]]

# Shows what reaches a template: the messages and tools as JSON.
SHOWING = "{{ messages | tojson }}\n{{ tools | tojson }}"
SHOWN = replace(
    HERMES,
    tokenizer=plain_tokenizer(),
    chat_template=ChatTemplate(SHOWING, plain_tokenizer()),
)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def called(*calls: tuple[str, str], content: str | None = None) -> dict[str, Any]:
    tool_calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": content, "tool_calls": tool_calls}


def result(content: Any, call_id: str = "c0") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


async def prompt(model: ServedModel, messages: Messages, **fields: object) -> str:
    app = tool_app(model, answering("Hi"))
    response = await app.chat(messages=messages, **fields)
    assert response.status_code == 200, response.text
    return prompt_of(app)


async def shown(messages: Messages, **fields: object) -> tuple[Any, Any]:
    """Messages and tools as a template gets them."""
    lines = (await prompt(SHOWN, messages, **fields)).split("\n")
    told, tools = map(json.loads, lines)
    return told, tools


ROME = ("get_weather", '{"city": "Rome"}')
ASKED: Messages = [user("q"), called(ROME, content="Let me see."), result("20 °C")]


class TestTold:
    """A template with a place for tools gets them as OpenAI has them."""

    async def test_arguments_are_objects(self) -> None:
        (_, answer, back), tools = await shown(ASKED, tools=TOOLS)
        assert answer["content"] == "Let me see."
        assert answer["tool_calls"] == [
            {
                "id": "c0",
                "type": "function",
                "function": {"name": "get_weather", "arguments": {"city": "Rome"}},
            }
        ]
        assert back == {"role": "tool", "content": "20 °C", "tool_call_id": "c0"}
        no_parameters = {"type": "object", "properties": {}}
        assert tools == [
            TOOLS[0],
            {"type": "function", "function": {**TIME, "parameters": no_parameters}},
        ]

    @pytest.mark.parametrize(
        "arguments", ["", "city: Rome", '{"city": "Ro', "[1]", "3", '"{}"', "null", '{"a": NaN}']
    )
    async def test_arguments_that_are_no_object_stay_text(self, arguments: str) -> None:
        (_, answer, _), _ = await shown([user("q"), called(("f", arguments)), result("r")])
        assert answer["tool_calls"][0]["function"]["arguments"] == arguments

    async def test_half_a_character_stays_text(self) -> None:
        """JSON can say it by an escape; written out, no tokenizer could read it."""
        arguments = r'{"city": "\ud83d"}'
        (_, answer, _), _ = await shown([user("q"), called(("f", arguments)), result("r")])
        assert answer["tool_calls"][0]["function"]["arguments"] == arguments

    async def test_functions_are_tools_with_other_names(self) -> None:
        function_call = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
        messages: Messages = [
            user("q"),
            {"role": "assistant", "content": None, "function_call": function_call},
            {"role": "function", "name": "get_weather", "content": "20 °C"},
        ]
        (_, answer, back), tools = await shown(messages, functions=[WEATHER])
        assert answer["tool_calls"] == [
            {
                "type": "function",
                "function": {"name": "get_weather", "arguments": {"city": "Rome"}},
            }
        ]
        assert "function_call" not in answer
        assert back == {"role": "tool", "content": "20 °C", "name": "get_weather"}
        assert tools == [TOOLS[0]]

    async def test_parts_and_null(self) -> None:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        (_, answer, back), _ = await shown([user("q"), called(ROME), result(parts)])
        assert (answer["content"], back["content"]) == ("", "a\nb")

    @pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": TOOLS, "tool_choice": "none"}])
    async def test_no_tools(self, fields: dict[str, Any]) -> None:
        """The calls of before stay, with arguments as objects."""
        told, tools = await shown(ASKED, **fields)
        assert tools is None
        assert told[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"}

    async def test_what_the_model_sees(self) -> None:
        text = await prompt(HERMES, ASKED, tools=TOOLS)
        assert text.endswith(
            "<|im_start|>assistant\nLet me see.\n"
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
            "<|im_end|>\n<|im_start|>user\n<tool_response>\n20 °C\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n"
        )


class TestReact:
    INSTRUCTION = "Answer the following questions as best you can."

    async def test_after_a_result_the_model_goes_on(self) -> None:
        text = await prompt(REACT, ASKED, tools=TOOLS)
        assert text.endswith(
            "\n\nQuestion: q<|im_end|>\n<|im_start|>assistant\nThought: Let me see.\n"
            'Action: get_weather\nAction Input: {"city": "Rome"}\nObservation: 20 °C\nThought:'
        )

    @pytest.mark.parametrize(
        ("answer", "content", "calls"),
        [
            (" I now know the final answer.\nFinal Answer: Warm.", "Warm.", []),
            (
                " Once more.\nAction: get_time\nAction Input: {}\nObservation: x",
                "Once more.",
                [("get_time", "{}")],
            ),
            (" It is warm.", "It is warm.", []),
        ],
    )
    async def test_the_answer_that_goes_on(
        self, answer: str, content: str, calls: list[tuple[str, str]]
    ) -> None:
        app = tool_app(REACT, answering(answer))
        message = (await app.chat(messages=ASKED, tools=TOOLS)).json()["choices"][0]["message"]
        functions = [call["function"] for call in message.get("tool_calls", [])]
        assert [(one["name"], one["arguments"]) for one in functions] == calls
        assert message["content"] == content

    @pytest.mark.parametrize("add_generation_prompt", [None, True, False])
    async def test_a_generation_prompt_is_not_put_behind_a_result(
        self, add_generation_prompt: bool | None
    ) -> None:
        fields = {"tools": TOOLS, "add_generation_prompt": add_generation_prompt}
        assert (await prompt(REACT, ASKED, **fields)).endswith("\nThought:")

    async def test_without_tools_the_calls_of_before_stay(self) -> None:
        text = await prompt(REACT, ASKED)
        assert self.INSTRUCTION not in text
        assert text.endswith(
            "\nObservation: 20 °C\nThought: I now know the final answer.\nFinal Answer:"
        )

    @pytest.mark.parametrize("format_", [ToolFormat.REACT, ToolFormat.HERMES])
    async def test_the_instruction_is_never_truncated(self, format_: ToolFormat) -> None:
        """openai_api.py of the first Qwen loses it, with the turn that it stands in."""
        model = tool_model(format_, template=None, window=2500)
        messages: Messages = []
        for i in range(40):
            words = f"{i} " * 40
            messages += [user(f"question {words}"), {"role": "assistant", "content": words}]
        messages += [user("before"), {"role": "assistant", "content": "longer " * 500}]
        messages.append(user("the last one"))
        text = await prompt(model, messages, tools=TOOLS)
        assert text.count("get_weather") >= 1 and "the last one" in text
        told = self.INSTRUCTION if format_ is ToolFormat.REACT else "# Tools"
        assert text.count(told) == 1
        assert "question 0 " not in text and "question 1 " not in text
        pending = [*messages, called(ROME), result("20 °C")]
        text = await prompt(model, pending, tools=TOOLS)
        assert text.count(told) == 1 and "20 °C" in text and "the last one" in text

    async def test_the_instruction_stays_with_an_old_call(self) -> None:
        """Told before the last answered turn; a long question behind it pushes out only others."""
        model = tool_model(template=None, window=3000)
        old: Messages = [user("old " * 200), {"role": "assistant", "content": "yes"}]
        asked = [*ASKED, {"role": "assistant", "content": "Warm."}]
        text = await prompt(model, [*old * 3, *asked, user("new")], tools=TOOLS)
        assert f"<|im_start|>user\n{self.INSTRUCTION}" in text
        assert "Question: q<|im_end|>" in text
        assert text.endswith("<|im_start|>user\nnew<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [user("q")], "tools": TOOLS},
        {"messages": ASKED, "tools": TOOLS},
        {"messages": ASKED},
        {"messages": ASKED, "tools": TOOLS, "tool_choice": "none"},
        {"messages": ASKED, "tools": TOOLS, "parallel_tool_calls": False},
        {"messages": [user("q")], "functions": [WEATHER], "function_call": "auto"},
    ],
    ids=lambda fields: " ".join(fields),
)
async def test_tokenize_gives_the_prompt_of_chat(
    model: ServedModel, fields: dict[str, Any]
) -> None:
    app = tool_app(model, answering("Hi"))
    assert (await app.chat(**fields)).status_code == 200
    reply = await app.post("/tokenize", fields)
    assert reply.json()["tokens"] == app.engine.requests[0].prompt_token_ids


@pytest.mark.parametrize(
    "messages",
    [
        [user("q"), {"role": "function", "name": "f", "content": "r"}],
        [user("q"), {"role": "tool", "tool_call_id": "c0", "content": "r"}],
        [user("q"), called(ROME)],
        [user("q"), called(ROME), result("r", "c9")],
        [user("q"), called(ROME), result("r"), result("r")],
        [user("q"), called(ROME, ROME), result("r", "c1"), user("q")],
    ],
)
async def test_results_without_calls_and_calls_without_results(messages: Messages) -> None:
    app = tool_app(REACT, answering("Hi"))
    for path in ("/v1/chat/completions", "/tokenize"):
        body = {"model": "org/small", "messages": messages, "tools": TOOLS}
        response = await app.post(path, body)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_value")
    assert app.engine.requests == []


async def test_tools_need_a_question_of_the_user() -> None:
    for model in (REACT, tool_model(ToolFormat.REACT, template=NEVER)):
        app = tool_app(model, answering("Hi"))
        messages = [{"role": "system", "content": "s"}]
        response = await app.chat(messages=messages, tools=TOOLS)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "messages")
        assert "user" in error["message"]


async def test_chatglm3_has_its_own_place_for_tools() -> None:
    """After PROMPT.md of THUDM/ChatGLM3: tools behind the system text, a call, its observation."""
    words = glm(*CHATGLM, *ROLES)
    chatglm3 = ChatGLM3Format(words)
    model = replace(
        HERMES,
        tokenizer=words,
        chat_template=chatglm3,
        eos_token_ids=(words.special_tokens["<|user|>"],),
        tools=tool_support(chatglm3, None, None),
    )
    app = tool_app(model, answering())
    hello = [user("hello"), called(("hello", '{"a": 1}')), result("hi")]
    tools = [{"type": "function", "function": {"name": "hello"}}]
    assert (await app.chat(messages=hello, tools=tools)).status_code == 200
    (request,) = app.engine.requests
    special = words.special_tokens
    roles = [i for i in request.prompt_token_ids if i in {special[role] for role in ROLES}]
    assert [words.decode([i], skip_special=False) for i in roles] == [
        *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|assistant|>")
    ]
    assert request.grammar is not None
