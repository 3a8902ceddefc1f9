"""Where work runs, by its size."""

import asyncio
import threading

import pytest

from server.offload import MAX_INLINE_BYTES, MAX_SIDE_BY_SIDE_BYTES, call_sized


async def test_little_work_is_done_at_once() -> None:
    assert await call_sized(MAX_INLINE_BYTES, threading.get_ident) == threading.get_ident()


@pytest.mark.parametrize("size", [MAX_INLINE_BYTES + 1, MAX_SIDE_BY_SIDE_BYTES + 1])
async def test_more_is_done_in_a_thread(size: int) -> None:
    assert await call_sized(size, threading.get_ident) != threading.get_ident()
    with pytest.raises(ValueError, match="no"):
        await call_sized(size, _fail, message="no")


def _fail(*, message: str) -> None:
    raise ValueError(message)


@pytest.mark.parametrize(("size", "most"), [(MAX_INLINE_BYTES + 1, 2), (1 << 24, 1)])
async def test_the_largest_wait_for_each_other(size: int, most: int) -> None:
    """Two that meet: the medium ones do, as each waits for the other; the largest cannot."""
    running, seen = 0, 0
    lock = threading.Lock()
    both = threading.Event()

    def work() -> None:
        nonlocal running, seen
        with lock:
            running += 1
            seen = max(seen, running)
            if running == 2:
                both.set()
        both.wait(0.2 if most == 1 else 60)
        with lock:
            running -= 1

    await asyncio.gather(*(call_sized(size, work) for _ in range(2)))
    assert seen == most
