"""Whatever the description of the API allows, and what it does not: no failure of ours, no answer
that the description does not have.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import schemathesis
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.app import create_app
from tests.fuzz.budget import budget
from tests.server.scripted_app import App, saying
from tests.server.small_app import NAMES

_state = App(saying("Hello", " you", ".")).state
_app = create_app(replace(_state, model=replace(_state.model, max_model_len=1 << 20)))
schema = schemathesis.openapi.from_asgi("/openapi.json", _app)
_CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def answered() -> Iterator[Counter[tuple[str, int]]]:
    """What came back, by path and status; in the end all routes must have answered something."""
    counter: Counter[tuple[str, int]] = Counter()
    yield counter
    paths = {path for path, status in counter if status == 200}
    assert paths == set(_app.openapi()["paths"]), counter


@schema.parametrize()
@budget(40)
def test_every_route(case: Any, answered: Counter[tuple[str, int]]) -> None:
    if isinstance(case.body, dict):
        case.body = _milder(case.body)
    if isinstance(case.path_parameters, dict) and len(answered) % 2:
        case.path_parameters["model"] = NAMES[1]
    response = case.call(timeout=300)  # thousands of prompts may be one request
    answered[case.operation.path, response.status_code] += 1
    case.validate_response(response, checks=_CHECKS)


def _milder(body: dict[str, Any]) -> dict[str, Any]:
    """With all that may be in a request something is always refused: in half of them less is."""
    generator = random.Random(repr(body))
    if generator.random() < 0.5:
        kept = {key for key in body if key in _SUBJECTS or generator.random() < 0.1}
        body = {key: value for key, value in body.items() if key in kept}
        if "prompt" in body:
            body.pop("messages", None)
    if isinstance(body.get("messages"), list) and generator.random() < 0.5:
        body["messages"] = [
            {"role": "user", "content": str(message)} for message in body["messages"]
        ]
    return {**body, "model": NAMES[0]} if isinstance(body.get("model"), str) else body


_SUBJECTS = ("model", "messages", "prompt", "tokens")
