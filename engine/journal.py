"""What an engine is doing, in memory that outlives it: who restarts it can tell that it hangs, and
which requests it was computing when it died. Torch-free.

A small file that the engine maps and another process reads (server/blame.py). Writing it takes no
system call.
"""

import mmap
import struct
import time
from pathlib import Path

import msgspec

_SIZE_BYTES = 1 << 18
_HEADER = struct.Struct("<dI")  # when the loop last turned (time.monotonic, 0: never), bytes behind
_decoder = msgspec.msgpack.Decoder(list[tuple[str, int]])

Step = list[tuple[str, int]]  # each sequence's id and how many tokens it had


class Entry(msgspec.Struct, frozen=True):
    """What a journal says."""

    turned_at_s: float  # time.monotonic(), which all processes share; 0: the loop has not begun
    step: Step  # the sequences that were being computed; empty between steps


class Journal:
    """The engine's side."""

    def __init__(self, path: str) -> None:
        with open(path, "w+b") as file:
            file.truncate(_SIZE_BYTES)
            self._memory = mmap.mmap(file.fileno(), _SIZE_BYTES)

    def turn(self) -> None:
        """The loop turns: nothing is being computed."""
        _HEADER.pack_into(self._memory, 0, time.monotonic(), 0)

    def begin(self, step: Step) -> None:
        """A step begins."""
        content = msgspec.msgpack.encode(step)
        if _HEADER.size + len(content) > _SIZE_BYTES:
            return  # ids of thousands of characters: nobody will be blamed
        self._memory[_HEADER.size : _HEADER.size + len(content)] = content
        _HEADER.pack_into(self._memory, 0, time.monotonic(), len(content))


def read(path: Path) -> Entry:
    """What an engine that runs, or is gone, has written last."""
    try:
        with path.open("rb") as file:
            turned_at_s, length = _HEADER.unpack(file.read(_HEADER.size))
            content = file.read(min(length, _SIZE_BYTES))
        return Entry(turned_at_s, _decoder.decode(content) if length else [])
    except (OSError, ValueError, struct.error, RecursionError):  # not there yet, or being written
        return Entry(0.0, [])
