"""instructor against the command with real models, in the modes that OpenAI's clients have."""

from collections.abc import Iterator

import pytest
from instructor import Instructor, Mode, from_openai
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field

from tests.e2e.clients.conftest import CODER, SMOL
from tests.e2e.real_server import RealServer

pytestmark = pytest.mark.real_model

ONE: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "Paris is the capital of France."}
]
TWO: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "Paris is in France. Rome is in Italy. List both cities."}
]


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    country: str = Field(max_length=20)


PARIS, ROME = ("Paris", "France"), ("Rome", "Italy")


@pytest.fixture(scope="module")
def strong(coder: RealServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{coder.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def weak(smol: RealServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{smol.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def ask(client: Instructor, model: str) -> City:
    return client.create(
        model=model, messages=ONE, response_model=City, temperature=0, max_tokens=100, max_retries=0
    )


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON_SCHEMA], ids=lambda mode: mode.name)
def test_a_grammar_makes_the_weakest_model_fit(weak: OpenAI, mode: Mode) -> None:
    city = ask(from_openai(weak, mode=mode), SMOL)
    assert (city.name, city.country.title()) == PARIS


def test_json_without_a_schema_is_left_to_the_model(strong: OpenAI) -> None:
    city = ask(from_openai(strong, mode=Mode.JSON), CODER)
    assert (city.name, city.country) == PARIS


def test_a_list(weak: OpenAI) -> None:
    client = from_openai(weak, mode=Mode.TOOLS)
    cities = client.create(
        model=SMOL,
        messages=TWO,
        response_model=list[City],
        temperature=0,
        max_tokens=150,
        max_retries=0,
    )
    assert [(city.name, city.country) for city in cities] == [PARIS, ROME]


def test_an_iterable_comes_one_by_one(weak: OpenAI) -> None:
    client = from_openai(weak, mode=Mode.TOOLS)
    cities = client.create_iterable(
        model=SMOL, messages=TWO, response_model=City, temperature=0, max_tokens=150, max_retries=0
    )
    assert [(city.name, city.country) for city in cities] == [PARIS, ROME]


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON_SCHEMA], ids=lambda mode: mode.name)
def test_partial_objects_grow(weak: OpenAI, mode: Mode) -> None:
    client = from_openai(weak, mode=mode)
    parts = [
        part.model_dump()
        for part in client.create_partial(
            model=SMOL,
            messages=ONE,
            response_model=City,
            temperature=0,
            max_tokens=100,
            max_retries=0,
        )
    ]
    assert len(parts) > 3
    assert parts[0]["country"] is None
    assert parts[-1]["name"] == "Paris"
    assert parts[-1]["country"].title() in ("France", "Fr")  # so small a model says either
