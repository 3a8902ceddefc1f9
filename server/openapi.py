"""What a route takes and answers, for /docs and /openapi.json: bodies are read and written by hand.

A route with these has `response_class=Response`, or FastAPI adds an answer of its own.
"""

from typing import Any

import msgspec
from pydantic import BaseModel

from protocol.errors import ErrorBody
from protocol.sse import CONTENT_TYPE

Answers = dict[int | str, dict[str, Any]]


def request_body(model_type: type[BaseModel]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that takes `model_type` as its JSON body."""
    schema = model_type.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def answers(*replies: type[msgspec.Struct], streams: bool = False) -> Answers:
    """Return the `responses` of a route that answers with one of `replies`, or with an error."""
    schemas = [_schema(reply) for reply in replies]
    content = _json(schemas[0] if len(schemas) == 1 else {"anyOf": schemas})
    if streams:
        content[CONTENT_TYPE] = {"schema": {"type": "string"}}
    errors = {"content": _json(_schema(ErrorBody))}
    return {
        200: {"description": "The answer", "content": content},
        "4XX": {"description": "The request is wrong, or not allowed", **errors},
        "5XX": {"description": "The server cannot answer now, or has failed", **errors},
    }


def answers_text() -> Answers:
    """Return the `responses` of a route that answers with plain text, or with an error."""
    return {**answers(ErrorBody), 200: {"description": "The answer", "content": {"text/plain": {}}}}


def answers_or_is_unavailable(reply: type[msgspec.Struct]) -> Answers:
    """Return the `responses` of a route that says the same with 200 and with 503."""
    unavailable = {"description": "Unavailable", "content": _json(_schema(reply))}
    return {**answers(reply), 503: unavailable}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _schema(reply: type[msgspec.Struct]) -> dict[str, Any]:
    schema = msgspec.json.schema(reply)
    inlined: dict[str, Any] = _inlined(schema, schema.pop("$defs", {}))
    return inlined


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """Put definitions in place of references, which would not resolve inside the document."""
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in node.items()}
