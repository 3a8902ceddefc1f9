"""The API's description: what each route takes and answers, with nothing that does not resolve."""

from typing import Any

from server.app import create_app
from tests.server.small_app import small_state

DOCUMENT = create_app(small_state()).openapi()
OPERATIONS: dict[str, dict[str, Any]] = {
    f"{method.upper()} {path}": operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}


def content(name: str, status: str) -> dict[str, Any]:
    found: dict[str, Any] = OPERATIONS[name]["responses"][status]["content"]
    return found


def test_every_route_says_what_it_answers_and_how_it_fails() -> None:
    for name, operation in OPERATIONS.items():
        assert {"200", "4XX", "5XX"} <= set(operation["responses"]), name
        assert "422" not in operation["responses"]  # FastAPI's own, which never comes
        error = content(name, "4XX")["application/json"]["schema"]["properties"]["error"]
        assert set(error["required"]) == {"message", "type", "param", "code"}


def test_every_post_says_what_it_takes() -> None:
    for name, operation in OPERATIONS.items():
        assert ("requestBody" in operation) is name.startswith("POST")


def test_answers_that_stream_have_two_types() -> None:
    for name in ("POST /v1/chat/completions", "POST /v1/completions"):
        assert set(content(name, "200")) == {"application/json", "text/event-stream"}
        schema = content(name, "200")["application/json"]["schema"]
        assert {"id", "choices", "model"} <= set(schema["required"])
    assert set(content("GET /metrics", "200")) == {"text/plain"}
    assert set(content("GET /livez", "503")["application/json"]["schema"]["properties"]) == {
        *("status", "reason")
    }


def test_nothing_refers_to_what_is_not_there() -> None:
    assert "$ref" not in str(DOCUMENT)
