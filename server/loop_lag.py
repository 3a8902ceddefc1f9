"""How late a worker's event loop is: what every request of that worker waits for."""

import asyncio
from collections.abc import Callable

_INTERVAL_S = 0.25


async def watch_loop(observe: Callable[[float], None]) -> None:
    """Sleep again and again, and hand on by how many seconds each sleep was too long."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + _INTERVAL_S
        await asyncio.sleep(_INTERVAL_S)
        observe(max(0.0, loop.time() - due_s))
