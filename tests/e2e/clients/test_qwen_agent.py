"""Qwen-Agent: with its own prompts it reads calls out of plain chat, in its raw mode we do."""

from pathlib import Path
from typing import Any

import pytest
from qwen_agent.agents import Assistant
from qwen_agent.llm import get_chat_model

from examples.qwen_agent_assistant import ANSWER, GetWeather
from tests.e2e.clients.conftest import CODER, Say
from tests.e2e.real_server import RealServer
from tests.e2e.running_server import MODEL, RunningServer

pytestmark = pytest.mark.real_model

QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
RESULT = "31 degrees Celsius and sunny"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # Qwen-Agent leaves a folder where it runs


def config(url: str, model: str, **generate: object) -> dict[str, Any]:
    generate_cfg = {"temperature": 0, "max_tokens": 60, "seed": 1, **generate}
    return {
        "model": model,
        "model_server": f"{url}/v1",
        "api_key": "any",
        "generate_cfg": generate_cfg,
    }


def short(messages: list[dict[str, Any]]) -> list[tuple[str, object]]:
    return [(one["role"], one.get("function_call") or one["content"]) for one in messages]


def test_an_assistant_calls_its_tool(hermes_server: RunningServer, say: Say) -> None:
    engine = say(CALL, "It is sunny in Paris, at 31 °C.")
    assistant = Assistant(
        function_list=[GetWeather()],
        llm=config(hermes_server.url, MODEL),
        system_message="Be brief.",
    )
    assert short(assistant.run_nonstream(QUESTION)) == [
        ("assistant", {"name": "get_weather", "arguments": '{"city": "Paris"}'}),
        ("function", RESULT),
        ("assistant", "It is sunny in Paris, at 31 °C."),
    ]
    decode = hermes_server.state.model.tokenizer.decode
    first, second = (
        decode(request.prompt_token_ids, skip_special=False) for request in engine.requests
    )
    assert "Be brief.\n\n# Tools" in first and CALL not in first
    assert second.index(CALL) < second.index(f"<tool_response>\n{RESULT}\n</tool_response>")


def test_an_assistant_with_a_real_model(coder: RealServer) -> None:
    extra = {"structured_outputs": {"regex": ANSWER}}
    assistant = Assistant(
        function_list=[GetWeather()], llm=config(coder.url, CODER, extra_body=extra)
    )
    messages: list[dict[str, Any]] = []
    for messages in assistant.run(QUESTION):
        if messages[-1]["role"] == "function":
            break
    assert short(messages) == [
        ("assistant", {"name": "get_weather", "arguments": '{"city": "Paris"}'}),
        ("function", RESULT),
    ]


def test_the_raw_mode_leaves_tools_to_the_server(coder: RealServer) -> None:
    model = get_chat_model(config(coder.url, CODER, use_raw_api=True))
    *_, messages = model.chat(QUESTION, functions=[GetWeather().function])
    (message,) = messages
    called = message["function_call"]
    assert (called["name"], called["arguments"].split()) == (
        "get_weather",
        ['{"city":', '"Paris"}'],
    )


def test_an_assistant_in_raw_mode(hermes_server: RunningServer, say: Say) -> None:
    """It gives a result back with the id of its call under names of its own."""
    say(CALL, "It is sunny.")
    assistant = Assistant(
        function_list=[GetWeather()], llm=config(hermes_server.url, MODEL, use_raw_api=True)
    )
    assert [role for role, _ in short(assistant.run_nonstream(QUESTION))] == [
        *("assistant", "function", "assistant")
    ]
