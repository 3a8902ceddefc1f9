"""Every fault and every engine error has its answer; nothing internal leaks."""

from typing import Annotated, get_args

import httpx
import pytest
from fastapi import FastAPI, Query
from starlette.exceptions import HTTPException

from engine import errors as engine_errors
from engine.errors import (
    ConfigError,
    EngineDead,
    EngineError,
    InvariantViolated,
    RequestRejected,
)
from engine.messages import Fault, FaultCode
from server.errors import add_exception_handlers, from_engine_error, from_fault
from tests.server.scripted_app import App, saying

STATUS_OF_FAULT = {
    "context_length_exceeded": (400, "context_length_exceeded"),
    "kv_cache_exceeded": (400, "kv_cache_exceeded"),
    "invalid_request": (400, None),
    "invalid_grammar": (400, "invalid_grammar"),
    "engine_dead": (503, "engine_unavailable"),
    "numerical_error": (500, None),
    "internal": (500, None),
}


def test_every_fault_code_is_expected_here() -> None:
    assert set(get_args(FaultCode)) == set(STATUS_OF_FAULT)


@pytest.mark.parametrize("code", get_args(FaultCode))
async def test_fault_before_the_first_byte(code: FaultCode) -> None:
    script = saying(reason="error", fault=Fault(code, "row 7 at 0xdead"))
    for stream in (False, True):
        response = await App(script).chat(stream=stream)
        status, wire_code = STATUS_OF_FAULT[code]
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, wire_code)
        assert response.headers["content-type"] == "application/json"
        assert ("0xdead" in error["message"]) == (status != 500)


def test_every_engine_error_is_mapped() -> None:
    kinds = [
        kind
        for kind in vars(engine_errors).values()
        if isinstance(kind, type) and issubclass(kind, EngineError)
    ]
    assert len(kinds) >= 6
    for kind in kinds:
        error = (
            RequestRejected(Fault("kv_cache_exceeded", "too long"))
            if kind is RequestRejected
            else kind("secret")
        )
        assert from_engine_error(error).status in (400, 500, 503)


def test_engine_errors() -> None:
    assert from_engine_error(EngineDead("gone")).status == 503
    rejected = RequestRejected(Fault("kv_cache_exceeded", "too long"))
    assert from_engine_error(rejected).status == 400
    for error in (ConfigError("/secret"), InvariantViolated("/secret"), EngineError("/secret")):
        assert from_engine_error(error).status == 500
        assert "secret" not in from_engine_error(error).message


def test_an_engine_error_of_an_unknown_kind() -> None:
    class New(EngineDead):
        pass

    assert from_engine_error(New("gone")).status == 503


def test_fault_message_is_passed_on() -> None:
    assert from_fault(Fault("invalid_request", "token id 9")).message == "token id 9"


async def test_what_the_framework_raises() -> None:
    app = FastAPI()
    add_exception_handlers(app)

    @app.get("/query")
    async def query(limit: Annotated[int, Query(le=9)]) -> None:
        raise AssertionError

    @app.get("/status/{status}")
    async def fail(status: int) -> None:
        raise HTTPException(status, "why", headers={"x-why": "y"})

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        missing = await client.get("/query")
        too_large = await client.get("/query?limit=10")
        refused, broken = await client.get("/status/413"), await client.get("/status/502")
    assert missing.status_code == too_large.status_code == refused.status_code == 400
    assert missing.json()["error"]["code"] == "missing_required_parameter"
    assert too_large.json()["error"]["code"] == "integer_above_max_value"
    assert too_large.json()["error"]["param"] == "limit"
    assert (refused.json()["error"]["message"], refused.headers["x-why"]) == ("why", "y")
    assert broken.status_code == 500
    assert "why" not in broken.text
