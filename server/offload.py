"""Work that may take long goes to a thread, so that other requests do not wait for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

# Tokenising runs at some MB/s: below this it is done in less time than a thread takes to start.
MAX_INLINE_BYTES = 16 * 1024
# Above this one waits for the other: 15 MB of text take half a minute, and gigabytes meanwhile.
MAX_SIDE_BY_SIDE_BYTES = 1 << 20

Arguments = ParamSpec("Arguments")
ResultT = TypeVar("ResultT")

_one_at_a_time = ThreadPoolExecutor(1, thread_name_prefix="large")


async def call_sized(
    num_bytes: int,
    function: Callable[Arguments, ResultT],
    /,
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> ResultT:
    """Call `function`, in a thread if it works on more than MAX_INLINE_BYTES."""
    if num_bytes <= MAX_INLINE_BYTES:
        return function(*args, **kwargs)
    if num_bytes <= MAX_SIDE_BY_SIDE_BYTES:
        return await asyncio.to_thread(function, *args, **kwargs)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_one_at_a_time, partial(function, *args, **kwargs))
