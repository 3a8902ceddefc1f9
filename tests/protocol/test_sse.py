"""The decoder is the reference's inverse: OpenAI's SDK decodes the same bytes in the same way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from protocol.sse import DONE, SseDecoder, frame, obfuscation

STREAM = (
    frame(b'{"a":1}')
    + b": a comment\n\n"
    + frame('{"b":"é巴"}'.encode())
    + b"data:x\r\n\r\n"
    + DONE
)


def test_frame() -> None:
    assert frame(b"{}") == b"data: {}\n\n"
    assert DONE == b"data: [DONE]\n\n"


def test_openai_sdk_reads_our_frames() -> None:
    expected = [event.data for event in SSEDecoder().iter_bytes(iter([STREAM])) if event.data]
    assert SseDecoder().feed(STREAM) == expected
    assert expected == ['{"a":1}', '{"b":"é巴"}', "x", "[DONE]"]


@pytest.mark.parametrize("cut", range(len(STREAM)))
def test_any_cut(cut: int) -> None:
    decoder = SseDecoder()
    events = decoder.feed(STREAM[:cut]) + decoder.feed(STREAM[cut:])
    assert events == SseDecoder().feed(STREAM)


def test_an_unfinished_event_is_held() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: 1\ndata: 2\n") == []
    assert decoder.feed(b"\n") == ["1\n2"]


@given(st.text(max_size=60))
def test_obfuscation_hides_the_length(text: str) -> None:
    padding = obfuscation(text)
    assert padding.isascii() and padding
    assert (len(text.encode()) + len(padding)) % 16 == 0
