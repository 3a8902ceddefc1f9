"""How a server reaches an engine. Torch-free.

`EngineClient` is the seam: server code knows only this. `engine/ipc.py` has the ZeroMQ
implementation and `engine/fake.py` one without a model, for tests and for measuring the front end
alone.
"""

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from engine.messages import EngineInfo, EngineRequest, EngineStats, Event


class EngineClient(Protocol):
    """A connection to one engine, or to several as if they were one, used from one event loop.

    Attributes:
        on_resume: called with the number of requests that another engine goes on with.
    """

    on_resume: Callable[[int], None]

    async def start(self) -> EngineInfo:
        """Connect and wait until the engine has loaded its model."""
        ...

    def generate(self, request: EngineRequest) -> AsyncIterator[Event]:
        """Submit a request and yield its events: TokenEvents, then exactly one Finished.

        The request is submitted at the first iteration. Closing the iterator early aborts the
        request; that takes no await, so it also works while the calling task is being cancelled.
        Where an engine is lost the next one goes on behind the last event. When none comes in time
        that is a Finished with a Fault of code "engine_dead", not an exception.
        """
        ...

    def abort(self, request_id: str) -> None:
        """Ask the engine to stop a request; its iterator still ends in Finished ("abort").

        An unknown id is a no-op: it may just have finished.
        """
        ...

    def stats(self) -> EngineStats:
        """The newest snapshot received."""
        ...

    def health(self) -> str | None:
        """None when the engine answers, else one sentence saying what is wrong."""
        ...

    def silent_s(self) -> float:
        """For how long the engine has had requests and said nothing; 0 when it has none."""
        ...

    async def aclose(self) -> None:
        """Disconnect; running requests are aborted."""
        ...
