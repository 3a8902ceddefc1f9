"""A request's raw bytes into a checked model, and every way that can fail into OpenAI's 400.

Knows JSON and pydantic's error types; does not know any endpoint. OpenAI's texts are convention,
not contract: clients rely on status, `code` and `param`.
"""

from typing import Literal, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from protocol.body_limits import DEFAULT_BODY_LIMITS, BodyLimits
from protocol.errors import InvalidRequest

UnknownFields = Literal["refuse", "warn"]
Model = TypeVar("Model", bound=BaseModel)

# A union's branch shows up in pydantic's error location. Ours are all tagged with this prefix, so
# that they can be taken out of the path again.
BRANCH = "branch:"

MAX_QUOTED = 200  # characters of the client's own value in a message

_NOT_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using "
    "your HTTP library correctly. The API expects a JSON payload, but what was sent was not valid "
    "JSON.)"
)


class InvalidField(PydanticCustomError):
    """Raised by request models: OpenAI's code, message and, if it is not the field, the param."""

    def __new__(cls, code: str, message: str, param: str = "") -> "InvalidField":
        # the text travels in the context: a template would treat the client's braces as fields
        return super().__new__(cls, code, "{message}", {"message": message, "param": param})


def parse(
    model_type: type[Model],
    raw_body: bytes,
    unknown_fields: UnknownFields = "refuse",
    limits: BodyLimits = DEFAULT_BODY_LIMITS,
) -> tuple[Model, list[str]]:
    """Return the checked request and the paths of the unknown fields that were left out of it.

    Raises InvalidRequest for a body that is not a JSON object, for any field that is wrong and,
    unless `unknown_fields` is "warn", for any field that is unknown. `limits` come first: what is
    beyond them is not looked at any closer.
    """
    body = _decode(raw_body)
    limits.check(body)
    ignored: list[str] = []
    while True:
        try:
            return model_type.model_validate(body), ignored
        except ValidationError as exc:
            errors = exc.errors(include_url=False)
            unknown = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
            if unknown_fields == "refuse" or not unknown:
                raise to_invalid_request(errors[0]) from exc
            for location in unknown:
                ignored.append(path_of(location))
                _remove(body, location)


def _decode(raw_body: bytes) -> dict[str, object]:
    try:
        body = msgspec.json.decode(raw_body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidRequest(_NOT_JSON) from exc
    if not isinstance(body, dict):
        raise InvalidRequest(
            f"Invalid body: expected an object, but got {kind_of(body)} instead.",
            code="invalid_type",
        )
    return body


def _remove(body: object, location: tuple[int | str, ...]) -> None:
    holder = body
    for parent in _without_branches(location[:-1]):
        holder = holder[parent]  # type: ignore[index]
    del holder[location[-1]]  # type: ignore[attr-defined]


def _without_branches(location: tuple[int | str, ...]) -> list[int | str]:
    """Drop the names of union branches, which are not in the client's JSON."""
    return [part for part in location if not (isinstance(part, str) and part.startswith(BRANCH))]


def path_of(location: tuple[int | str, ...]) -> str:
    """Return a pydantic location as OpenAI writes it: `messages[0].content`."""
    path = ""
    for part in _without_branches(location):
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "[key]":  # pydantic's mark for "the key itself is wrong"
            path += f".{part}" if path else part
    return path


def kind_of(value: object) -> str:
    """Name a JSON value's type as OpenAI does in messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {int: "an integer", float: "a decimal", str: "a string", list: "an array"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), "an object")


_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a decimal",
    "bool_type": "a boolean",
    "list_type": "an array",
    "tuple_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_BOUNDS = {
    "less_than_equal": ("above_max_value", "above maximum", "<="),
    "less_than": ("above_max_value", "above maximum", "<"),
    "greater_than_equal": ("below_min_value", "below minimum", ">="),
    "greater_than": ("below_min_value", "below minimum", ">"),
}
_BOUND_KEYS = {
    "less_than_equal": "le",
    "less_than": "lt",
    "greater_than_equal": "ge",
    "greater_than": "gt",
}
_LENGTHS = {
    "string_too_long": ("string_above_max_length", "string too long", "a string", "maximum"),
    "too_long": ("array_above_max_length", "array too long", "an array", "maximum"),
    "string_too_short": ("empty_string", "empty string", "a string", "minimum"),
    "too_short": ("empty_array", "empty array", "an array", "minimum"),
}


def to_invalid_request(error: ErrorDetails) -> InvalidRequest:
    """Translate one of pydantic's errors into OpenAI's message, param and code."""
    kind, value, param = error["type"], error["input"], path_of(error["loc"])
    context = error.get("ctx", {})
    if kind == "missing":
        return InvalidRequest(
            f"Missing required parameter: '{param}'.",
            param=param,
            code="missing_required_parameter",
        )
    if kind == "extra_forbidden":
        return InvalidRequest(
            f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter"
        )
    if kind in _EXPECTED:
        return wrong_type(param, _EXPECTED[kind], value)
    if kind == "wrong_branch":
        return wrong_type(param, error["msg"], value)
    if kind == "literal_error":
        return _not_among(param, str(context["expected"]), value)
    if kind in _BOUNDS:
        return _out_of_bounds(param, kind, context[_BOUND_KEYS[kind]], value)
    if kind in _LENGTHS:
        return _wrong_length(param, kind, context)
    if "message" in context:  # InvalidField
        param = ".".join(part for part in (param, str(context["param"])) if part)
        return InvalidRequest(str(context["message"]), param=param or None, code=kind)
    return InvalidRequest(
        f"Invalid '{param}': {error['msg']}.", param=param or None, code="invalid_value"
    )


def wrong_type(param: str, expected: str, value: object) -> InvalidRequest:
    """Return the error for a JSON value of the wrong type."""
    return InvalidRequest(
        f"Invalid type for '{param}': expected {expected}, but got {kind_of(value)} instead.",
        param=param,
        code="invalid_type",
    )


def _not_among(param: str, expected: str, value: object) -> InvalidRequest:
    if not isinstance(value, str):
        return wrong_type(param, f"one of {expected}", value)
    return InvalidRequest(
        f"Invalid value: '{value[:MAX_QUOTED]}'. Supported values are: {expected}.",
        param=param,
        code="invalid_value",
    )


def _out_of_bounds(param: str, kind: str, bound: float, value: float) -> InvalidRequest:
    code, text, sign = _BOUNDS[kind]
    number = "integer" if isinstance(bound, int) else "decimal"
    limit = bound if isinstance(bound, int) else f"{bound:g}"
    return InvalidRequest(
        f"Invalid '{param}': {number} {text} value. Expected a value {sign} {limit}, "
        f"but got {str(value)[:MAX_QUOTED]} instead.",
        param=param,
        code=f"{number}_{code}",
    )


def _wrong_length(param: str, kind: str, context: dict[str, object]) -> InvalidRequest:
    code, text, noun, side = _LENGTHS[kind]
    if context.get("field_type") == "Dictionary":
        code, text, noun = (
            "object_above_max_properties",
            "too many properties",
            "an object",
        )
    limit = context["max_length" if side == "maximum" else "min_length"]
    return InvalidRequest(
        f"Invalid '{param}': {text}. Expected {noun} with {side} length {limit}.",
        param=param,
        code=code,
    )
