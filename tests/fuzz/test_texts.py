"""Whatever a model says: the stream is the reply, no text is lost to an exception."""

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.tools.formats import ToolFormat
from server.state import ServedModel
from tests.fuzz.budget import budget, damaged
from tests.server.scripted_app import events_of
from tests.server.tool_app import MODELS, TOOLS, cut_at, folded, said, tool_app, writing

OUTPUTS = {
    ToolFormat.HERMES: '<think>\nso\n</think>\n\n<tool_call>\n{"name": "get_time", "arguments": '
    '{"a": [1, "\\u00e9}"]}}\n</tool_call>\n<tool_call>\n{"name": "get_weather", "arguments": '
    '{"city": "Rom"}}\n</tool_call>',
    ToolFormat.REACT: "Thought: I must look\nAction: get_weather\nAction Input: "
    '{"city": "Rom"}\nObservation: warm\nThought: I now know\nFinal Answer: It is warm. 你好',
    ToolFormat.QWEN3_CODER: "Let me look\n<tool_call>\n<function=get_weather>\n<parameter=city>\n"
    "Rom\n</parameter>\n</function>\n</tool_call>",
    ToolFormat.LLAMA3: '{"name": "get_weather", "parameters": {"city": "Rom"}}; {"name": "get_time"'
    ', "parameters": {}}',
    ToolFormat.QWEN_AGENT: '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Rom"}\n✿RESULT✿: w\n'
    "✿RETURN✿: It is warm",
}
MARKERS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<function=", "</function>"),
    *("<parameter=", "</parameter>", "Thought:", "Action:", "Action Input:", "Observation:"),
    *("Final Answer:", "✿FUNCTION✿", "✿ARGS✿", "✿RESULT✿", "✿RETURN✿", ": ", "\n", " ", "{", "}"),
    *('{"name": ', '"get_time"', ', "arguments": ', '"parameters"', "[", "]", '"', "\\", "\\u12"),
    *("get_weather", "1e999", "-", "null", ";", "<|python_tag|>", "é", "🙂", "<", "</", "✿"),
]


async def answer(model: ServedModel, events: list[list[int]], **fields: Any) -> Any:
    app = tool_app(model, writing(events))
    response = await app.chat(tools=TOOLS, **fields)
    assert response.status_code == 200, response.text
    return response


def check(model: ServedModel, text: str, cuts: list[int], fields: dict[str, Any]) -> None:
    whole = asyncio.run(answer(model, cut_at(text), **fields)).json()
    cut = asyncio.run(answer(model, cut_at(text, *cuts), **fields)).json()
    streamed = asyncio.run(answer(model, cut_at(text, *cuts), stream=True, **fields)).text
    assert "error" not in streamed[:20] and streamed.endswith("data: [DONE]\n\n")
    reply = said(whole["choices"][0])
    assert said(cut["choices"][0]) == reply
    assert said(folded(events_of(streamed))["choices"][0]) == reply


WAYS: list[dict[str, Any]] = [{}, {"tool_choice": "required"}, {"stop": ["\n<"]}]


@pytest.mark.parametrize("chosen", OUTPUTS, ids=lambda chosen: chosen.value)
@budget(25)
@given(st.integers(0, 2**32))
def test_damaged_calls(chosen: ToolFormat, seed: int) -> None:
    generator = random.Random(seed)
    text = damaged(OUTPUTS[chosen].encode(), seed).decode(errors="ignore")[:6000]
    cuts = [generator.randrange(len(text.encode()) + 1) for _ in range(generator.randint(1, 12))]
    check(MODELS[chosen], text, cuts, generator.choice(WAYS))


@pytest.mark.parametrize("chosen", OUTPUTS, ids=lambda chosen: chosen.value)
@budget(25)
@given(st.lists(st.sampled_from(MARKERS), max_size=25), st.lists(st.integers(0, 300), max_size=9))
def test_markers_in_any_order(chosen: ToolFormat, words: list[str], cuts: list[int]) -> None:
    check(MODELS[chosen], "".join(words), cuts, {})
