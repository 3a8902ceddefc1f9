"""The watch over the event loop sees it stand still."""

import asyncio
import time

from server.loop_lag import watch_loop


async def test_a_loop_that_stands_still_is_seen() -> None:
    lags: list[float] = []
    watching = asyncio.create_task(watch_loop(lags.append))
    await asyncio.sleep(0)
    time.sleep(0.6)  # what a handler must never do
    while not lags:
        await asyncio.sleep(0.01)
    watching.cancel()
    assert lags[0] >= 0.3  # of its 0.25 s the first nap was over long before
