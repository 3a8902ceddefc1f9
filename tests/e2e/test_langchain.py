"""The unmodified langchain-openai classes against the real application with a fake engine."""

from collections.abc import AsyncIterator, Iterator

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import SecretStr

from engine.fake import FakeEngine
from tests.e2e.conftest import ANSWER
from tests.e2e.running_server import MODEL

KEY = SecretStr("any")

pytestmark = pytest.mark.real_model


@pytest.fixture
def chat(server_url: str) -> Iterator[ChatOpenAI]:
    with httpx.Client() as client:
        yield ChatOpenAI(
            model=MODEL,
            base_url=f"{server_url}/v1",
            api_key=KEY,
            http_client=client,
            max_retries=0,
            stream_usage=True,
        )


@pytest.fixture
async def async_chat(server_url: str) -> AsyncIterator[ChatOpenAI]:
    async with httpx.AsyncClient() as client:
        yield ChatOpenAI(
            model=MODEL, base_url=f"{server_url}/v1", api_key=KEY, http_async_client=client
        )


@pytest.fixture
def llm(server_url: str) -> Iterator[OpenAI]:
    with httpx.Client() as client:
        yield OpenAI(model=MODEL, base_url=f"{server_url}/v1", api_key=KEY, http_client=client)


@pytest.fixture
async def async_llm(server_url: str) -> AsyncIterator[OpenAI]:
    async with httpx.AsyncClient() as client:
        yield OpenAI(
            model=MODEL, base_url=f"{server_url}/v1", api_key=KEY, http_async_client=client
        )


def test_chat_invoke(chat: ChatOpenAI) -> None:
    message = chat.invoke([("system", "Be brief."), ("human", "Where is 巴黎?")])
    assert message.content == ANSWER
    assert message.response_metadata["finish_reason"] == "stop"
    assert message.response_metadata["model_name"] == MODEL
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_tokens"] > 10


def test_chat_history_comes_back(chat: ChatOpenAI, fake_engine: FakeEngine) -> None:
    first = chat.invoke("Hello")
    chat.invoke([("human", "Hello"), first, ("human", "And?")])
    shorter, longer = (len(r.prompt_token_ids) for r in fake_engine.requests)
    assert longer > shorter


def test_chat_stream(chat: ChatOpenAI) -> None:
    chunks = list(chat.stream("Hello"))
    assert "".join(str(chunk.content) for chunk in chunks) == ANSWER
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    assert total.usage_metadata is not None
    assert total.usage_metadata["total_tokens"] > 10
    assert total.response_metadata["finish_reason"] == "stop"


async def test_chat_async(async_chat: ChatOpenAI) -> None:
    message = await async_chat.ainvoke("Hello")
    assert message.content == ANSWER
    assert "".join([str(chunk.content) async for chunk in async_chat.astream("Hello")]) == ANSWER
    both = await async_chat.abatch(["One", "Two"])
    assert [m.content for m in both] == [ANSWER, ANSWER]


def test_chat_batch(chat: ChatOpenAI, fake_engine: FakeEngine) -> None:
    messages = chat.batch(["One", "Two", "Three"])
    assert [message.content for message in messages] == [ANSWER] * 3
    assert len(fake_engine.requests) == 3


def test_chat_bound_arguments(chat: ChatOpenAI) -> None:
    message = chat.bind(stop=["costs"]).invoke("Hello")
    assert message.content == "The café "
    message = chat.bind(logprobs=True, top_logprobs=2, max_tokens=2).invoke("Hello")
    assert len(message.response_metadata["logprobs"]["content"]) == 2
    assert message.response_metadata["finish_reason"] == "length"


def test_chat_errors(chat: ChatOpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        chat.bind(temperature=9).invoke("Hello")
    with pytest.raises(openai.NotFoundError):
        chat.bind(model="gpt-9").invoke("Hello")


def test_completions_class(llm: OpenAI) -> None:
    assert llm.invoke("Once upon") == ANSWER
    assert "".join(llm.stream("Once upon")) == ANSWER
    assert llm.batch(["One", "Two"]) == [ANSWER, ANSWER]
    assert llm.bind(stop=["costs"]).invoke("Once") == "The café "


async def test_completions_class_async(async_llm: OpenAI) -> None:
    assert await async_llm.ainvoke("Once upon") == ANSWER
    assert "".join([text async for text in async_llm.astream("Once upon")]) == ANSWER
