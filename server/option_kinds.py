"""The kinds of value an option can have: how text becomes a value, and what to say when it cannot.

Knows nothing about which options exist (server/options.py) or where a text came from
(server/settings.py).
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from engine.redis_queue.names import is_redis

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?", re.IGNORECASE)
_UNITS = {
    **{"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40},
}
_SWITCH_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value. `parse` raises ValueError with the reason, worded to follow "port=x: "."""

    metavar: str
    parse: Callable[[str], object]
    is_text: bool = False  # any text is a value; a file must give a string, not a number
    is_switch: bool = False  # --name / --no-name
    is_object: bool = False  # keys and values: JSON, and in a file a mapping too


def _parse_text(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty")
    return text


def _parse_switch(text: str) -> bool:
    try:
        return _SWITCH_WORDS[text.lower()]
    except KeyError:
        raise ValueError("it must be true or false") from None


def _parse_size(text: str) -> int:
    """A number of bytes, as in 1073741824, 512MiB, 1.5 GiB or 4GB."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("it must be a size such as 2GiB, 512MiB, 4GB or a number of bytes")
    number, unit = match.groups()
    num_bytes = int(float(number) * _UNITS[(unit or "b").lower()])
    if num_bytes <= 0:
        raise ValueError("it must be more than 0 bytes")
    return num_bytes


def _parse_redis_url(text: str) -> str:
    parts = urlsplit(text.strip())
    if not is_redis(text.strip()) or not (parts.hostname or parts.scheme == "unix"):
        raise ValueError("it must be the URL of a Redis, as in redis://localhost:6379/0")
    if parts.fragment:
        raise ValueError("it must not have a part behind #")
    return text.strip()


def integer(minimum: int, maximum: int | None = None) -> Kind:
    """Whole numbers from `minimum` to `maximum`, both included."""
    limits = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"

    def parse(text: str) -> int:
        if re.fullmatch(r"[+-]?\d+", text.strip()) is None:
            raise ValueError(f"it must be a whole number, {limits}")
        number = int(text)
        if number < minimum or (maximum is not None and number > maximum):
            raise ValueError(f"it must be {limits}")
        return number

    return Kind(metavar="N", parse=parse)


def integer_or(word: str, minimum: int) -> Kind:
    """Whole numbers, at least `minimum`, or one word."""
    number = integer(minimum)

    def parse(text: str) -> object:
        return word if text.strip() == word else number.parse(text)

    return Kind(metavar=f"N|{word}", parse=parse)


def choice(*words: str) -> Kind:
    """One of a closed set of words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"it must be one of {', '.join(words)}")
        return text

    return Kind(metavar="|".join(words), parse=parse)


def text(metavar: str) -> Kind:
    """Any text but an empty one."""
    return Kind(metavar=metavar, parse=_parse_text, is_text=True)


def _parse_credentials(text: str) -> str:
    user, separator, password = text.partition(":")
    if not separator or not user or not password:
        raise ValueError("it must be USER:PASSWORD")
    return text


def _parse_origin(text: str) -> str:
    parts = urlsplit(text)
    if text != "*" and not (
        parts.scheme and parts.netloc and text == f"{parts.scheme}://{parts.netloc}"
    ):
        raise ValueError("it must be * or an origin such as https://example.com, without a path")
    return text


def _parse_object(text: str) -> dict[str, object]:
    """A JSON object of texts, numbers, true, false and null."""
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ValueError('it must be a JSON object such as {"rope_type": "yarn", "factor": 4}')
    for key, value in parsed.items():
        if isinstance(value, list | dict):
            raise ValueError(f"its {key} must be a single value")
    return parsed


def _parse_url(text: str) -> str:
    """The base URL of an HTTP server, as it is."""
    try:
        parts = urlsplit(text)
        is_good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none
        is_good = False
    if not is_good:
        raise ValueError("it must be a URL such as http://127.0.0.1:4318")
    return text


CREDENTIALS = Kind(metavar="USER:PASSWORD", parse=_parse_credentials, is_text=True)
ORIGIN = Kind(metavar="ORIGIN", parse=_parse_origin, is_text=True)
OBJECT = Kind(metavar="JSON", parse=_parse_object, is_object=True)
REDIS_URL = Kind(metavar="URL", parse=_parse_redis_url, is_text=True)
SIZE = Kind(metavar="SIZE", parse=_parse_size)
SWITCH = Kind(metavar="true|false", parse=_parse_switch, is_switch=True)
URL = Kind(metavar="URL", parse=_parse_url, is_text=True)
