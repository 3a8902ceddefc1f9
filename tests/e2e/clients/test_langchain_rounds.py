"""A LangChain agent of several rounds with parallel calls, streamed, against an engine that says
exactly what a good model would: what reaches the model, and what the agent makes of its stream.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain.agents import create_agent
from langchain.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from engine.fake import FakeEngine
from tests.e2e.clients.conftest import Say
from tests.e2e.running_server import MODEL, RunningServer

pytestmark = pytest.mark.real_model

WEATHER = {"Paris": "31 °C, sunny", "北京": "−2 °C, 雪"}
ANSWER = "Paris: 31 °C and 2 million people. 北京: −2 °C and 22 million people."


@tool
def get_weather(city: str) -> str:
    """The weather in a city right now."""
    return WEATHER[city]


@tool
def get_population(city: str, year: int) -> str:
    """How many people lived in a city in a year."""
    return f"{city} {year}: {2 if city == 'Paris' else 22} million"


def call(name: str, **arguments: object) -> str:
    written = json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{name}", "arguments": {written}}}\n</tool_call>'


def both(city: str) -> str:
    calls = call("get_weather", city=city), call("get_population", city=city, year=2024)
    return "\n".join(calls)


def told(city: str) -> str:
    """The results of both as the prompt has them."""
    results = WEATHER[city], f"{city} 2024: {2 if city == 'Paris' else 22} million"
    return "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)


ROUNDS = ["I look both up.\n" + both("Paris"), both("北京"), ANSWER]


@pytest.fixture
def model(hermes_server: RunningServer) -> Iterator[ChatOpenAI]:
    with httpx.Client() as client:
        yield ChatOpenAI(
            model=MODEL,
            base_url=f"{hermes_server.url}/v1",
            api_key=SecretStr("any"),
            http_client=client,
            max_retries=0,
        )


def run(model: ChatOpenAI) -> tuple[list[AIMessageChunk], list[Any]]:
    """The pieces of the answers, and the messages that the agent made of them."""
    agent = create_agent(model, [get_weather, get_population], system_prompt="Be brief.")
    asked: Any = {"messages": [HumanMessage("Paris and 北京?")]}
    chunks: list[AIMessageChunk] = []
    messages: list[Any] = []
    for mode, payload in agent.stream(asked, stream_mode=["messages", "updates"]):
        if mode == "messages":
            assert isinstance(payload, tuple)
            if isinstance(payload[0], AIMessageChunk):
                chunks.append(payload[0])
        else:
            assert isinstance(payload, dict)
            messages += [one for update in payload.values() for one in update["messages"]]
    return chunks, messages


def prompts(engine: FakeEngine, server: RunningServer) -> list[str]:
    decode = server.state.model.tokenizer.decode
    return [decode(request.prompt_token_ids, skip_special=False) for request in engine.requests]


def test_two_rounds_of_two_calls_each(
    model: ChatOpenAI, hermes_server: RunningServer, say: Say
) -> None:
    engine = say(*ROUNDS)
    chunks, messages = run(model)
    answers = [message for message in messages if isinstance(message, AIMessage)]
    assert [[(c["name"], c["args"]) for c in answer.tool_calls] for answer in answers] == [
        [("get_weather", {"city": city}), ("get_population", {"city": city, "year": 2024})]
        for city in ("Paris", "北京")
    ] + [[]]
    assert [answer.text.strip() for answer in answers] == ["I look both up.", "", ANSWER]
    assert [answer.response_metadata["finish_reason"] for answer in answers] == [
        *("tool_calls", "tool_calls", "stop")
    ]
    assert len(chunks) > 50
    assert not any("tool_call" in chunk.text for chunk in chunks)

    first, second, third = prompts(engine, hermes_server)
    assert "Be brief.\n\n# Tools" in first
    assert '"name": "get_population"' in first and "Paris and 北京?" in first
    assert second.index(f"I look both up.\n{both('Paris')}") < second.index(told("Paris"))
    assert third.index(told("Paris")) < third.index(both("北京")) < third.index(told("北京"))


def test_ids_tie_results_to_calls(model: ChatOpenAI, say: Say) -> None:
    say(*ROUNDS)
    _, messages = run(model)
    asked = [c["id"] for m in messages if isinstance(m, AIMessage) for c in m.tool_calls]
    answered: dict[str | None, str] = {
        message.tool_call_id: message.text
        for message in messages
        if isinstance(message, ToolMessage)
    }
    assert len(set(asked)) == 4
    assert [answered[one] for one in asked] == [
        *("31 °C, sunny", "Paris 2024: 2 million", "−2 °C, 雪", "北京 2024: 22 million")
    ]
