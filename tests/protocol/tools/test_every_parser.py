"""What has to hold for the parser of every format, whatever a model writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.tools.calls import Content
from protocol.tools.formats import FORMATS, ToolFormat
from tests.protocol.tools import (
    test_chatglm3,
    test_hermes,
    test_hermes_unmarked,
    test_llama3,
    test_qwen3_coder,
    test_qwen_agent,
    test_react,
)
from tests.protocol.tools.parsing import assert_nothing_is_lost, cut, fuzzed, parse, run


@dataclass(frozen=True)
class Sample:
    """What models write in a format.

    Attributes:
        golden: texts, each with the events that it has to give.
        markers: pieces of which any text is made.
        firsts: what such a text may begin with.
        last: what it ends with.
        dropping: markers of which some text is dropped that is no marker.
    """

    golden: Mapping[str, tuple[str, Any]]
    markers: Sequence[str]
    firsts: Sequence[str] = ("",)
    last: str = ""
    dropping: Sequence[str] = ()


SAMPLES = {
    ToolFormat.HERMES: Sample(
        {**test_hermes.GOLDEN, **test_hermes_unmarked.GOLDEN},
        (*test_hermes.MARKERS, *test_hermes_unmarked.MARKERS),
    ),
    ToolFormat.QWEN3_CODER: Sample(
        test_qwen3_coder.GOLDEN,
        test_qwen3_coder.MARKERS,
        ("", "<function=get_weather>"),
        "\n",  # so that it does not end in the name of an argument
    ),
    ToolFormat.CHATGLM3: Sample(test_chatglm3.GOLDEN, test_chatglm3.MARKERS),
    ToolFormat.LLAMA3: Sample(
        test_llama3.GOLDEN, test_llama3.MARKERS, ("", test_llama3.TAG, test_llama3.CALL)
    ),
    ToolFormat.QWEN_AGENT: Sample(test_qwen_agent.GOLDEN, test_qwen_agent.MARKERS),
    ToolFormat.REACT: Sample(
        test_react.GOLDEN,
        test_react.MARKERS,
        ("", "Action: now\nAction Input:"),
        dropping=["\nFinal Answer: "],
    ),
}
GOLDEN = [
    pytest.param(tool_format, *golden, id=f"{tool_format}-{key}")
    for tool_format, sample in SAMPLES.items()
    for key, golden in sample.golden.items()
]
every_format = pytest.mark.parametrize("tool_format", ToolFormat)


@pytest.mark.parametrize("tool_format, text, events", GOLDEN)
def test_golden_outputs(tool_format: ToolFormat, text: str, events: Any) -> None:
    assert parse(FORMATS[tool_format].parser, text) == events


@every_format
@given(data=st.data())
@settings(max_examples=300)
def test_any_split(tool_format: ToolFormat, data: st.DataObject) -> None:
    texts = st.sampled_from([text for text, _ in SAMPLES[tool_format].golden.values()])
    text = f"{data.draw(texts)}\n{data.draw(texts)}"
    make = FORMATS[tool_format].parser
    assert run(make, cut(data, text)) == run(make, [text])


@every_format
@given(data=st.data())
@settings(max_examples=500)
def test_whatever_the_model_writes(tool_format: ToolFormat, data: st.DataObject) -> None:
    sample = SAMPLES[tool_format]
    pieces = data.draw(fuzzed(*sample.markers, *sample.dropping))
    text = data.draw(st.sampled_from(sample.firsts)) + pieces + sample.last
    make = FORMATS[tool_format].parser
    events = run(make, [text])
    assert run(make, list(text)) == events
    assert run(make, cut(data, text)) == events
    if not any(marker.strip() in text for marker in sample.dropping):
        assert_nothing_is_lost(text, events)


@every_format
def test_an_answer_without_tools_is_streamed_as_it_comes(tool_format: ToolFormat) -> None:
    parser = FORMATS[tool_format].parser([])
    events = [event for char in "你好 a: b\n{1}" for event in parser.feed(char)] + parser.flush()
    assert len(events) > 3 and all(isinstance(event, Content) for event in events)
