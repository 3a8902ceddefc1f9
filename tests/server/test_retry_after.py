"""server/retry_after.py."""

import pytest

from server.retry_after import go_duration, retry_headers


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (1e-10, "0s"),
        (0.0004, "1ms"),
        (0.02, "20ms"),
        (0.9995, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (361.25, "6m1.25s"),
        (3600, "1h0m0s"),
        (90061, "25h1m1s"),
        (-1, "0s"),
    ],
)
def test_durations_as_openai_writes_them(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


def test_both_headers_never_say_to_come_too_early() -> None:
    assert retry_headers(0) == {"retry-after": "1", "retry-after-ms": "1"}
    assert retry_headers(2.0001) == {"retry-after": "3", "retry-after-ms": "2001"}
