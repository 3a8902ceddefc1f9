"""LangChain's bind_tools, with_structured_output and agent against the command with real models.

What a grammar promises is asked of the weakest model; what the model has to decide, of the other.
"""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain.messages import AIMessage, HumanMessage, ToolMessage
from langchain.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, SecretStr

from tests.e2e.clients.conftest import CODER, SMOL
from tests.e2e.real_server import RealServer

pytestmark = pytest.mark.real_model

QUESTION = "What is the weather in Paris?"
RESULT = "31 degrees Celsius and sunny"


@tool
def get_weather(city: str) -> str:
    """The weather in a city right now."""
    return RESULT


@tool
def get_population(city: str) -> str:
    """How many people live in a city."""
    return "2102650"


TOOLS = [get_weather, get_population]


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    country: str = Field(max_length=20)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=120) as client:
        yield client


def chat(server: RealServer, model: str, http: httpx.Client) -> ChatOpenAI:
    return ChatOpenAI(
        model=model,
        base_url=f"{server.url}/v1",
        api_key=SecretStr("any"),
        http_client=http,
        max_retries=0,
        temperature=0,
        max_completion_tokens=60,
    )


@pytest.fixture
def strong(coder: RealServer, http: httpx.Client) -> ChatOpenAI:
    return chat(coder, CODER, http)


@pytest.fixture
def weak(smol: RealServer, http: httpx.Client) -> ChatOpenAI:
    return chat(smol, SMOL, http)


def test_auto_calls_the_right_tool(strong: ChatOpenAI) -> None:
    message = strong.bind_tools(TOOLS).invoke(QUESTION)
    (call,) = message.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    assert call["id"] is not None and call["id"].startswith("call_")
    assert message.response_metadata["finish_reason"] == "tool_calls"
    assert not message.content


def test_any_calls_some_tool(weak: ChatOpenAI) -> None:
    bound = weak.bind_tools(TOOLS, tool_choice="any", parallel_tool_calls=False)
    message = bound.invoke("Hello")
    (call,) = message.tool_calls
    assert call["name"] in ("get_weather", "get_population")
    assert list(call["args"]) == ["city"]
    assert message.response_metadata["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("one", TOOLS, ids=lambda one: one.name)
def test_a_named_tool_is_the_one_that_is_called(weak: ChatOpenAI, one: Any) -> None:
    message = weak.bind_tools(TOOLS, tool_choice=one.name).invoke("Tell me of Rome.")
    assert [call["name"] for call in message.tool_calls] == [one.name]


def test_without_parallel_calls_there_is_one(strong: ChatOpenAI) -> None:
    question = "What is the weather in Paris, and how many people live in Rome?"
    bound = strong.bind_tools(TOOLS, tool_choice="auto", parallel_tool_calls=False)
    assert len(bound.invoke(question).tool_calls) == 1


def test_a_streamed_call_folds_into_the_same(weak: ChatOpenAI) -> None:
    bound = weak.bind_tools(TOOLS, tool_choice="get_weather")
    chunks: list[Any] = list(bound.stream("Tell me of Rome."))
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    whole = bound.invoke("Tell me of Rome.")
    assert len(chunks) > 3
    assert [(call["name"], call["args"]) for call in total.tool_calls] == [
        (call["name"], call["args"]) for call in whole.tool_calls
    ]


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output(strong: ChatOpenAI, method: Any) -> None:
    asked = strong.with_structured_output(City, method=method, include_raw=True)
    reply = asked.invoke("Paris lies in France. Reply as JSON with the keys name and country.")
    assert isinstance(reply, dict)
    assert reply["parsed"] == City(name="Paris", country="France")
    assert bool(reply["raw"].tool_calls) == (method == "function_calling")


@wrap_model_call
def answer_after_a_result(
    request: ModelRequest[None], handler: Callable[[ModelRequest[None]], ModelResponse[Any]]
) -> ModelResponse[Any]:
    """Small models call on and on."""
    if isinstance(request.messages[-1], ToolMessage):
        request = request.override(tool_choice="none")
    return handler(request)


def test_an_agent_calls_a_tool_and_hears_of_its_result(strong: ChatOpenAI) -> None:
    agent = create_agent(strong, TOOLS, middleware=[answer_after_a_result])
    asked: Any = {"messages": [HumanMessage(QUESTION)]}
    steps = list(agent.stream(asked, stream_mode="updates"))
    assert [list(step) for step in steps] == [["model"], ["tools"], ["model"]]
    called, result, answer = (next(iter(step.values()))["messages"][0] for step in steps)
    assert isinstance(called, AIMessage) and called.tool_calls[0]["name"] == "get_weather"
    assert isinstance(result, ToolMessage) and result.content == RESULT
    assert isinstance(answer, AIMessage) and "31" in answer.text


def test_an_agent_streams_its_messages(strong: ChatOpenAI) -> None:
    agent = create_agent(strong, TOOLS, middleware=[answer_after_a_result])
    asked: Any = {"messages": [HumanMessage(QUESTION)]}
    rounds: list[Any] = []  # each the sum of its AIMessageChunks
    results: list[str] = []
    num_chunks = 0
    for message, _ in agent.stream(asked, stream_mode="messages"):
        if isinstance(message, ToolMessage):
            results.append(message.text)
        elif len(rounds) == len(results):
            rounds.append(message)
        else:
            rounds[-1] = rounds[-1] + message
            num_chunks += 1
    assert results == [RESULT]
    assert rounds[0].tool_calls[0]["args"] == {"city": "Paris"}
    assert "31" in rounds[1].text
    assert num_chunks > 10
