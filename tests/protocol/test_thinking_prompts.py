"""Prompts of thinking models: equal to transformers', with the switch and with past thinking."""

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from protocol.prompt import ChatTemplate
from protocol.reasoning import ThinkingStart, thinking_start
from tests.protocol.test_prompt import CALL, WEATHER, turn
from tests.protocol.thinking_templates import ALWAYS, EFFORT, HYBRID, NEVER, thinking_tokenizer

TOKENIZER = thinking_tokenizer()
ASKED = turn("user", "Weather?")
THOUGHT = "First I\n\nask.\n"
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [turn("user", "Hi")],
    [turn("system", "Terse."), turn("user", "a"), turn("assistant", "b"), turn("user", "c")],
    [turn("user", "a"), turn("assistant", "b", reasoning_content="why"), turn("user", "c")],
    [turn("user", "a"), turn("assistant", "<think>\nwhy\n</think>\n\nb"), turn("user", "c")],
    [turn("user", "a"), turn("assistant", "b</think>c</think>d")],
    [
        ASKED,
        turn("assistant", "", tool_calls=[CALL, CALL], reasoning_content=THOUGHT),
        turn("tool", "21"),
        turn("tool", "22"),
    ],
    [
        ASKED,
        turn("assistant", "I ask.", tool_calls=[CALL], reasoning_content=THOUGHT),
        turn("user", "<tool_response>\n21\n</tool_response>"),
    ],
    [
        turn("system", "Terse."),
        ASKED,
        turn("assistant", "I ask.", tool_calls=[CALL], reasoning_content=THOUGHT),
        turn("tool", "21"),
        turn("assistant", "It is 21.", reasoning_content="Done."),
        turn("user", "Thanks"),
    ],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("source", [HYBRID, ALWAYS, EFFORT])
@pytest.mark.parametrize("tools", [None, [WEATHER]])
@pytest.mark.parametrize(
    "kwargs", [{}, {"enable_thinking": False}, {"enable_thinking": True, "reasoning_effort": "low"}]
)
def test_prompts_equal_transformers(
    messages: list[dict[str, Any]],
    source: str,
    tools: list[dict[str, Any]] | None,
    kwargs: dict[str, Any],
) -> None:
    template = ChatTemplate(source, TOKENIZER)
    for add_generation_prompt in (True, False):
        expected, _ = render_jinja_template(
            conversations=[messages],
            tools=tools,
            chat_template=source,
            add_generation_prompt=add_generation_prompt,
            **kwargs,
        )
        options = {"add_generation_prompt": add_generation_prompt, **kwargs}
        assert template.render(messages, tools=tools, **options) == expected[0]
        ids = template.encode(messages, tools=tools, **options)
        assert TOKENIZER.decode(ids, skip_special=False) == expected[0]


def test_past_thinking_is_kept_within_a_round_of_calls_only() -> None:
    template = ChatTemplate(HYBRID, TOKENIZER)
    *_, running, finished = CONVERSATIONS[-3:]
    assert f"<think>\n{THOUGHT.strip()}\n</think>\n\nI ask.\n<tool_call>" in template.render(
        running
    )
    assert "think" not in template.render(finished)


@pytest.mark.parametrize(
    ("source", "kwargs", "start"),
    [
        (HYBRID, {}, ThinkingStart.FREE),
        (HYBRID, {"enable_thinking": True}, ThinkingStart.FREE),
        (HYBRID, {"enable_thinking": False}, ThinkingStart.OUTSIDE),
        (ALWAYS, {"enable_thinking": False}, ThinkingStart.INSIDE),
        (NEVER, {}, ThinkingStart.FREE),
    ],
)
def test_where_the_answer_begins(source: str, kwargs: dict[str, Any], start: ThinkingStart) -> None:
    template = ChatTemplate(source, TOKENIZER)
    markers = template.thinking_markers
    assert markers is not None
    for messages in CONVERSATIONS[:4]:
        ids = template.encode(messages, **kwargs)
        assert thinking_start(ids, TOKENIZER, markers) is start


def test_what_a_template_reads() -> None:
    switches = {"tools", "enable_thinking", "reasoning_effort"}
    defaulted = "{% if a is not defined %}{% set a = 1 %}{% endif %}{{ a }}"
    for source, expected in (
        (NEVER, set()),
        (ALWAYS, {"tools"}),
        (HYBRID, {"tools", "enable_thinking"}),
        (EFFORT, switches),
    ):
        assert ChatTemplate(source, TOKENIZER).variables & switches == expected
    for source in ("{% generation %}{{ a }}{% endgeneration %}{% set b = 1 %}{{ b }}", defaulted):
        assert ChatTemplate(source, TOKENIZER).variables == {"a"}


def test_whether_a_template_thinks() -> None:
    assert ChatTemplate(ALWAYS, TOKENIZER).writes_thinking
    assert not ChatTemplate(NEVER, TOKENIZER).writes_thinking
