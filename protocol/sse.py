"""Server-sent events as OpenAI uses them: `data: <json>` and a blank line, `[DONE]` at the end.

There are no event names. The encoder is on the path of every token; the decoder is for our own
clients. Framing: WHATWG HTML, 9.2.6.
"""

import secrets

DONE = b"data: [DONE]\n\n"
CONTENT_TYPE = "text/event-stream"

_OBFUSCATION_STEP = 16


def frame(data: bytes) -> bytes:
    """Return one event holding `data`, which must have no line break (JSON encoders write none)."""
    return b"data: " + data + b"\n\n"


def obfuscation(text: str) -> str:
    """Return random characters that, with `text`, fill a multiple of 16 bytes.

    An eavesdropper could otherwise tell tokens by the sizes of the events (arXiv:2403.09751).
    """
    num_missing = _OBFUSCATION_STEP - len(text.encode()) % _OBFUSCATION_STEP
    return secrets.token_urlsafe(num_missing)[:num_missing]


class SseDecoder:
    """Bytes as they arrive, cut anywhere, into the data of whole events; other fields are lost."""

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[str]:
        """Return the data of every event that `chunk` completes."""
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        events = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data).decode(errors="replace"))
                self._data = []
        return events
