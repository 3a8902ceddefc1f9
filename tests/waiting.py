"""Waiting for what other threads and processes do."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_S = 120.0  # only how long a broken build hangs


def wait_until(look: Callable[[], T]) -> T:
    """Poll until `look` returns something true, and return that."""
    give_up_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < give_up_s:
        if found := look():
            return found
        time.sleep(0.01)
    raise TimeoutError("it never happened")
