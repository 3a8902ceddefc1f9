"""Tells that files have changed, by looking at them every second."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

_POLL_S = 1.0

Version = tuple[tuple[int, int, int] | None, ...]  # of each file: its time, size and inode


def version_of(*paths: Path) -> Version:
    """What changes when one of the files is written, replaced or removed."""
    return tuple(_version(path) for path in paths)


async def changes(*paths: Path, since: Version) -> AsyncIterator[None]:
    """Yield whenever the files are no longer what they were, first since `since`; for ever."""
    while True:
        await asyncio.sleep(_POLL_S)
        version = await asyncio.to_thread(version_of, *paths)
        if version != since:
            since = version
            yield


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
