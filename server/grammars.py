"""What a request says of the form of its answer, as the grammar that the engine is to follow.

A model that may think first does so outside the grammar. Called by server/convert.py.
"""

import msgspec

from engine.messages import Grammar, GrammarKind, Thinking
from protocol.reasoning import ThinkingMarkers, ThinkingStart
from protocol.structured_output import ResponseFormat, StructuredOutputs
from server.state import ServedModel

_KINDS: dict[str, GrammarKind] = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "lark",
}


def grammar_of(
    response_format: ResponseFormat | None,
    structured_outputs: StructuredOutputs | None,
) -> Grammar | None:
    """None where any answer will do."""
    if structured_outputs is not None:
        return _of_structured_outputs(structured_outputs)
    if response_format is None or response_format.type == "text":
        return None
    format_ = response_format.json_schema
    if format_ is None or format_.schema_ is None:
        origin = "response_format" if format_ is None else f"response_format '{format_.name}'"
        return Grammar(kind="json_object", origin=origin)
    return Grammar(
        kind="json_schema",
        text=_json(format_.schema_),
        origin=f"response_format '{format_.name}'",
    )


def thinking_before(
    thinking: tuple[ThinkingMarkers, ThinkingStart] | None, model: ServedModel
) -> Thinking | None:
    """What may come before an answer that is parted by `thinking`; None for nothing."""
    if thinking is None or thinking[1] is ThinkingStart.OUTSIDE:
        return None
    markers, start = thinking
    special = model.tokenizer.special_tokens
    return Thinking(
        special.get(markers.opening, markers.opening),
        special.get(markers.closing, markers.closing),
        is_open=start is ThinkingStart.INSIDE,
    )


def _of_structured_outputs(outputs: StructuredOutputs) -> Grammar:
    [name] = outputs.given
    schema = outputs.json_
    texts = {
        "json": schema if isinstance(schema, str) else _json(schema),
        "regex": outputs.regex or "",
        "choice": _json(outputs.choice),
        "grammar": outputs.grammar or "",
    }
    return Grammar(
        kind=_KINDS[name],
        text=texts[name],
        origin=f"structured_outputs.{name}",
    )


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
