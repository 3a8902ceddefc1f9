"""The end of a worker: what runs may finish, for a while; then it ends with an error of its own."""

import asyncio

from protocol.errors import EngineUnavailable
from server.gate import Gate
from server.live import Live
from server.logging import get_logger

_POLL_S = 0.02
_LAST_WORDS_S = 5.0  # for the errors to be written

_log = get_logger(__name__)


async def drain(gate: Gate, live: Live, timeout_s: float) -> None:
    """Close the gate and wait for the requests behind it; after `timeout_s` end those of `live`."""
    gate.close()
    if await _all_have_left(gate, timeout_s):
        return
    _log.warning("generations ended by shutdown", count=len(live), after_s=timeout_s)
    for generation in list(live):
        generation.end(
            EngineUnavailable("The server is shutting down, and this answer was not finished.")
        )
    await _all_have_left(gate, _LAST_WORDS_S)


async def _all_have_left(gate: Gate, timeout_s: float) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while gate.num_inside and loop.time() < deadline:
        await asyncio.sleep(_POLL_S)
    return not gate.num_inside
