"""The request schema of a route whose body is parsed by hand, for /docs and /openapi.json."""

from typing import Any

from pydantic import BaseModel


def request_body(model_type: type[BaseModel]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that takes `model_type` as its JSON body."""
    schema = model_type.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """Put definitions in place of references, which would not resolve inside the document."""
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in node.items()}
