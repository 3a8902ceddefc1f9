"""What runs in a server process and can be ended from outside. Imports nothing of ours."""

from typing import Protocol


class Endable(Protocol):
    """A generation (server/generation.py) as those see it who do not feed it."""

    def end(self, error: Exception) -> None:
        """Let it fail with `error` once what has arrived is read."""
        ...


Live = set[Endable]
