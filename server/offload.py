"""Work that may take long goes to a thread, so that other requests do not wait for it."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

# Tokenising runs at some MB/s: below this it is done in less time than a thread takes to start.
MAX_INLINE_BYTES = 16 * 1024

Arguments = ParamSpec("Arguments")
ResultT = TypeVar("ResultT")


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
    return await asyncio.to_thread(function, *args, **kwargs)
