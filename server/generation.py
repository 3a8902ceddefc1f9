"""The sequences of one API request while the engine works on them.

Merges their events, feeds each choice and sees to it that the engine stops when nobody listens any
more. Knows no wire format. Used by server/streaming.py.
"""

import asyncio
from collections.abc import Callable, Sequence

from engine.client import EngineClient
from engine.errors import InvariantViolated
from engine.messages import EngineRequest, Event, Finished, TokenEvent
from protocol.tokenizer import Tokenizer
from protocol.usage import Usage, count_usage
from server.choice import Choice, Delta
from server.errors import error_label
from server.live import Live
from server.output_text import TextOptions
from server.request_timer import RequestTimer


class Generation:
    """Runs `requests` and yields what they add to the reply.

    One task for each sequence moves its events into a common list, so that everything that has
    arrived by the time it is read is read at once. `close` must be called in every case; it awaits
    nothing, as whoever calls it may be in the middle of being cancelled.
    """

    def __init__(
        self,
        engine: EngineClient,
        requests: Sequence[EngineRequest],
        tokenizer: Tokenizer,
        options: TextOptions,
        timer: RequestTimer,
        candidates_per_prompt: int,
        live: Live,
    ) -> None:
        """`live`: all that are not closed; this one adds itself."""
        self.choices = [Choice(request, tokenizer, options) for request in requests]
        self._engine = engine
        self._timer = timer
        self._candidates_per_prompt = candidates_per_prompt
        self._arrived: list[tuple[int, Event | Exception]] = []
        self._has_arrived = asyncio.Event()
        self._num_running = len(requests)
        self._num_events = 0
        self._failure: Exception | None = None
        self._on_close: list[Callable[[], None]] = []
        self._live = live
        live.add(self)
        timer.planned(requests)
        self._tasks = [
            asyncio.create_task(self._pump(index, request))
            for index, request in enumerate(requests)
        ]

    async def _pump(self, index: int, request: EngineRequest) -> None:
        event: Event | None = None
        try:
            async for event in self._engine.generate(request):
                self._put(index, event)
            if not isinstance(event, Finished):
                raise InvariantViolated(f"no terminal event for sequence {request.id}")
        except Exception as exc:  # handed on: raised where the events are read
            self._put(index, exc)

    def _put(self, index: int, event: Event | Exception) -> None:
        self._arrived.append((index, event))
        self._has_arrived.set()

    async def next_deltas(self) -> list[tuple[int, Delta]] | None:
        """Wait for events and return their deltas with their choices' indices; None at the end.

        The list may be empty. Raises ApiError or EngineError, after which nothing more comes.
        """
        if self._failure is not None:
            raise self._failure
        if not self._num_running:
            return None
        await self._has_arrived.wait()
        self._has_arrived.clear()
        arrived, self._arrived = self._arrived, []
        deltas = []
        try:
            for index, event in arrived:
                if isinstance(event, Exception):
                    raise event
                delta = self._feed(index, event)
                if delta is not None:
                    deltas.append((index, delta))
        except Exception as exc:
            self._failure = exc
            if not deltas:
                raise
        return deltas  # what came before the failure is the client's

    def _feed(self, index: int, event: Event) -> Delta | None:
        choice = self.choices[index]
        if index == 0 and isinstance(event, TokenEvent) and event.token_ids:
            self._time_tokens(event)
        delta = choice.feed(event)
        if choice.has_ended:
            self._num_running -= 1
        elif delta is not None and delta.finish_reason is not None:
            # a stop string: the engine does not know. Its terminal event brings the cache's count
            self._engine.abort(choice.request.id)
        return delta

    def _time_tokens(self, event: TokenEvent) -> None:
        # of the first choice only: the gaps between tokens of different choices mean nothing
        if self._num_events == 0:
            self._timer.first_token(event.timing)
        else:
            self._timer.token(len(event.token_ids))
        self._num_events += 1

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes of it, but for an error."""
        return self._failure is not None or not self._num_running

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` when it is closed, once and without waiting for anything."""
        self._on_close.append(callback)

    def usage(self) -> Usage:
        """Counts so far; a prompt is counted once for all its candidates."""
        firsts = self.choices[:: self._candidates_per_prompt]
        return count_usage(
            prompt_tokens=sum(len(choice.request.prompt_token_ids) for choice in firsts),
            cached_tokens=sum(choice.num_cached_tokens for choice in firsts),
            completion_tokens=sum(choice.num_output_tokens for choice in self.choices),
            reasoning_tokens=sum(choice.num_reasoning_tokens for choice in self.choices),
        )

    def end(self, error: Exception) -> None:
        """Let it fail with `error` once what has arrived is read."""
        self._put(0, error)

    def close(self) -> None:
        """Abort what still runs and report the request's end. May be called more than once."""
        self._live.discard(self)
        while self._on_close:
            self._on_close.pop()()
        for choice, task in zip(self.choices, self._tasks, strict=True):
            if not choice.has_ended:
                self._engine.abort(choice.request.id)
            task.cancel()
        usage = self.usage()
        self._timer.finished(
            outcome=self._outcome(),
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.prompt_tokens_details.cached_tokens,
            output_tokens=usage.completion_tokens,
        )

    def _outcome(self) -> str:
        if self._failure is not None:
            return error_label(self._failure)
        reason = self.choices[0].finish_reason
        return "abort" if self._num_running or reason is None else reason
