"""Error bodies against OpenAI's ErrorResponse and the classes its SDK makes of them."""

import json

import httpx2
import openai
import pytest
from openai._exceptions import APIStatusError

from protocol.errors import (
    MAX_MESSAGE_CHARS,
    MAX_PARAM_CHARS,
    ApiError,
    ContextLengthExceeded,
    EngineUnavailable,
    Internal,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    Overloaded,
    RateLimited,
    Unauthorized,
)

CASES = [
    (InvalidRequest("no", param="n", code="invalid_value"), openai.BadRequestError),
    (ContextLengthExceeded("no", param="messages"), openai.BadRequestError),
    (Unauthorized("no", code="invalid_api_key"), openai.AuthenticationError),
    (ModelNotFound("m"), openai.NotFoundError),
    (NotFound("no"), openai.NotFoundError),
    (RateLimited("no"), openai.RateLimitError),
    (Overloaded("no"), openai.InternalServerError),
    (EngineUnavailable("no"), openai.InternalServerError),
    (Internal(), openai.InternalServerError),
]


@pytest.mark.parametrize(("error", "sdk_class"), CASES, ids=lambda case: type(case).__name__)
def test_sdk_raises_its_class(error: ApiError, sdk_class: type[APIStatusError]) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(error.status, content=error.encode())

    client = openai.OpenAI(
        api_key="k",
        max_retries=0,
        http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
    )
    with client, pytest.raises(sdk_class) as raised:
        client.models.list()
    assert raised.value.status_code == error.status
    assert raised.value.code == error.code
    assert raised.value.param == error.param
    assert raised.value.type == error.type


@pytest.mark.parametrize("error", [case[0] for case in CASES], ids=lambda e: type(e).__name__)
def test_body_has_all_four_keys(error: ApiError) -> None:
    body = json.loads(error.encode())
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["code"] is None or isinstance(body["error"]["code"], str)


def test_documented_codes() -> None:
    assert ContextLengthExceeded("x").code == "context_length_exceeded"
    assert MethodNotAllowed("x").status == 405
    model_error = ModelNotFound("gpt-9")
    assert model_error.code == "model_not_found"
    assert model_error.message == (
        "The model `gpt-9` does not exist or you do not have access to it."
    )


def test_internal_tells_nothing() -> None:
    error = Internal()
    assert (error.status, error.type, error.code) == (500, "server_error", None)


def test_an_answer_does_not_grow_with_what_is_quoted() -> None:
    error = InvalidRequest("a" * 10**6, param="b" * 10**6)
    assert len(error.message) == MAX_MESSAGE_CHARS and error.message.endswith("a ...")
    assert error.param is not None and len(error.param) == MAX_PARAM_CHARS
    exact = InvalidRequest("a" * MAX_MESSAGE_CHARS, param="")
    assert (exact.message, exact.param) == ("a" * MAX_MESSAGE_CHARS, "")
