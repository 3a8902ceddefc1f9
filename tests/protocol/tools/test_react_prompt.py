"""Prompts of ReAct against the texts of the Qwen repository."""

import json
from typing import Any

import pytest

from protocol.conversation import PINNED
from protocol.prompt import TemplateError
from protocol.tools.calls import Tool
from protocol.tools.react_prompt import instruction, react_prompt

SEARCH = Tool(
    "google_search",
    "谷歌搜索是一个通用搜索引擎。",
    {"type": "object", "properties": {"q": {"type": "string", "description": "关键词"}}},
    name_for_human="谷歌搜索",
)
IMAGE = Tool("image_gen", "Draws.", {"type": "object", "properties": {}})
# put together from the constants of openai_api.py
TOLD = """Answer the following questions as best you can. You have access to the following APIs:

google_search: Call this tool to interact with the 谷歌搜索 API. \
What is the 谷歌搜索 API useful for? 谷歌搜索是一个通用搜索引擎。 \
Parameters: {"type": "object", "properties": {"q": {"type": "string", \
"description": "关键词"}}}

image_gen: Call this tool to interact with the image_gen API. \
What is the image_gen API useful for? Draws. Parameters: {"type": "object", "properties": {}}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [google_search, image_gen]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!"""
TOOLS = [SEARCH, IMAGE]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, *calls: tuple[str, str, str]) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": text,
        "tool_calls": [
            {"id": i, "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, name, arguments in calls
        ],
    }


def result(call_id: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def texts(*messages: dict[str, Any]) -> list[tuple[str, str]]:
    made = react_prompt(messages, TOOLS).messages
    return [(message["role"], message["content"]) for message in made]


def test_the_instruction() -> None:
    assert instruction(TOOLS) == TOLD


def test_a_first_question() -> None:
    prompt = react_prompt(
        [{"role": "system", "content": "Be kind."}, user("\n谁是周杰伦？ ")], TOOLS
    )
    assert prompt.messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": f"{TOLD}\n\nQuestion: 谁是周杰伦？", PINNED: True},
    ]
    assert not prompt.continues


def test_a_result_is_continued() -> None:
    call = assistant("我应该搜索。", ("a", "google_search", '{"q": "周杰伦"}'))
    conversation = [user("谁是周杰伦？"), call, result("a", "歌手")]
    assert texts(*conversation) == [
        ("user", f"{TOLD}\n\nQuestion: 谁是周杰伦？"),
        (
            "assistant",
            'Thought: 我应该搜索。\nAction: google_search\nAction Input: {"q": "周杰伦"}\n'
            "Observation: 歌手\nThought:",
        ),
    ]
    assert react_prompt(conversation, TOOLS).continues


def test_an_answer_after_a_result_and_a_second_question() -> None:
    """The tools are told of where the last answered question is, and that message is pinned."""
    legacy = {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "google_search", "arguments": "{}"},
    }
    conversation = [
        user("hello"),
        assistant("Hi!"),
        user("谁是周杰伦？"),
        legacy,
        {"role": "function", "name": "google_search", "content": "歌手"},
        assistant("周杰伦是歌手。"),
        user("他老婆是谁？"),
    ]
    assert texts(*conversation) == [
        ("user", "hello"),
        ("assistant", "Thought: I now know the final answer.\nFinal Answer: Hi!"),
        ("user", f"{TOLD}\n\nQuestion: 谁是周杰伦？"),
        (
            "assistant",
            "Thought: \nAction: google_search\nAction Input: {}\nObservation: 歌手\n"
            "Thought: I now know the final answer.\nFinal Answer: 周杰伦是歌手。",
        ),
        ("user", "他老婆是谁？"),
    ]
    pinned = [bool(m.get(PINNED)) for m in react_prompt(conversation, TOOLS).messages]
    assert pinned == [False, False, True, False, False]


def test_a_thought_is_not_written_twice() -> None:
    call = assistant("Thought: I look.", ("a", "google_search", "{}"))
    assert texts(user("q"), call, result("a", "r"))[1][1].startswith("Thought: I look.\nAction:")


def test_parallel_calls_stand_with_their_results() -> None:
    call = assistant(None, ("a", "google_search", '{"q": 1}'), ("b", "image_gen", "{}"))
    made = texts(user("q"), call, result("b", "second"), result("a", "first"))
    assert made[1][1] == (
        'Thought: \nAction: google_search\nAction Input: {"q": 1}\nObservation: first\n'
        "Action: image_gen\nAction Input: {}\nObservation: second\nThought:"
    )


def test_results_without_ids_are_in_the_order_of_the_calls() -> None:
    call = assistant(None, ("a", "google_search", "1"), ("b", "image_gen", "2"))
    in_order = [{"role": "function", "content": text} for text in ("first", "second")]
    made = texts(user("q"), call, *in_order)[1][1]
    assert made.index("first") < made.index("Action: image_gen") < made.index("second")
    mixed = [result("b", "of b"), {"role": "tool", "content": "of a"}]
    assert texts(user("q"), call, *mixed)[1][1].endswith(
        "Action Input: 1\nObservation: of a\n"
        "Action: image_gen\nAction Input: 2\nObservation: of b\nThought:"
    )


def test_calls_of_one_id_get_their_results_in_order() -> None:
    call = assistant(None, ("a", "google_search", "1"), ("a", "image_gen", "2"))
    made = texts(user("q"), call, result("a", "first"), result("a", "second"))[1][1]
    assert made.index("first") < made.index("Action: image_gen") < made.index("second")


def test_without_tools_the_prompt_leads_to_a_plain_answer() -> None:
    call = assistant("I look.", ("a", "google_search", "{}"))
    conversation = [user("\nq "), call, result("a", "r ")]
    asked = {"role": "user", "content": "q"}
    done = (
        "Thought: I look.\nAction: google_search\nAction Input: {}\nObservation: r\n"
        "Thought: I now know the final answer.\nFinal Answer:"
    )
    prompt = react_prompt(conversation, [])
    assert prompt.messages == [asked, {"role": "assistant", "content": done}]
    assert prompt.continues

    later = react_prompt([*conversation, assistant("It is so. "), user("And?")], [])
    past = done.partition("Thought: I now")[0] + "It is so."
    assert [message["content"] for message in later.messages] == ["q", past, "And?"]
    assert not later.continues


def test_without_tools_and_calls_nothing_changes() -> None:
    conversation = [{"role": "system", "content": "s"}, user("q"), assistant("a"), user("b")]
    made = react_prompt(conversation, []).messages
    assert made == [{"role": m["role"], "content": m["content"]} for m in conversation]
    assert react_prompt([assistant("a")], []).messages == [{"role": "assistant", "content": "a"}]


def test_parameters_are_json_as_python_writes_it() -> None:
    assert json.dumps(SEARCH.parameters, ensure_ascii=False) in instruction([SEARCH])


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([assistant("hi")], "at least one message of a user"),
        ([user("q"), result("a", "r")], "has to follow a call"),
        ([user("q"), assistant("hi"), result("a", "r")], "1 results for 0 calls"),
        (
            [user("q"), assistant("", ("a", "f", "{}")), result("b", "r")],
            "no call of the message before has the id 'b'",
        ),
        (
            [
                *(user("q"), assistant("", ("a", "f", "{}"), ("b", "f", "{}"))),
                *(result("a", "r"), result("a", "r")),
            ],
            "more than one result for the call 'a'",
        ),
    ],
)
def test_refused(messages: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(TemplateError, match=problem):
        react_prompt(messages, TOOLS)
