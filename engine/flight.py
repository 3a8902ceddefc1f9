"""One request as its client sees it, while an engine works on it: enough to let another engine go
on where the first was lost. Torch-free.

Output is a function of the ids before it and the request (docs/decisions/0005, 0012, 0015), so the
next engine computes the output again as if it were a prompt and goes on with the same tokens.
"""

import asyncio

import msgspec

from engine.messages import (
    EngineRequest,
    Event,
    Fault,
    Finished,
    FinishReason,
    Progress,
    TokenEvent,
)

# engines in a row that were lost without a single new token of it: a guard against a loop without
# end, as server/blame.py sees to requests that end engines
_MAX_LOST_ENGINES = 200


class Flight:
    """A request and what has come of it. `events` is read by whoever waits for it."""

    def __init__(self, request: EngineRequest) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.has_ended = False
        self._request = request
        self._token_ids = list(request.progress.token_ids) if request.progress else []
        self._closed_from = request.progress.closed_from if request.progress else None
        self._has_prompt_logprobs = False
        self._is_aborted = False
        self._num_lost_engines = 0  # since the newest token

    def take(self, event: Event) -> None:
        """Hand on an event; those behind the terminal one are dropped."""
        if self.has_ended:
            return
        if isinstance(event, TokenEvent):
            self._token_ids += event.token_ids
            self._closed_from = event.closed_from
            self._has_prompt_logprobs |= event.prompt_logprobs is not None
            self._num_lost_engines = 0
        else:
            self.has_ended = True
        self.events.put_nowait(event)

    def abort(self) -> None:
        """No engine is to go on with it."""
        self._is_aborted = True

    def lose_engine(self) -> None:
        """The engine is gone: ends what was aborted, and what has lost too many."""
        self._num_lost_engines += 1
        if self._is_aborted:
            self.take(self._finished("abort"))
        elif self._num_lost_engines > _MAX_LOST_ENGINES:
            self.give_up(f"{_MAX_LOST_ENGINES} engines stopped before they got any further.")

    def give_up(self, reason: str) -> None:
        """No engine will go on with it."""
        self.take(self._finished("error", Fault("engine_dead", reason)))

    def request(self) -> EngineRequest:
        """What to submit to an engine: the request, or the rest of it."""
        known = self._token_ids
        progress = Progress(known.copy(), self._closed_from) if known else None
        sampling = self._request.sampling
        if self._has_prompt_logprobs:
            sampling = msgspec.structs.replace(sampling, prompt_logprobs=None)
        return msgspec.structs.replace(self._request, sampling=sampling, progress=progress)

    def _finished(self, reason: FinishReason, fault: Fault | None = None) -> Finished:
        return Finished(
            self._request.id,
            reason,
            num_prompt_tokens=len(self._request.prompt_token_ids),
            num_output_tokens=len(self._token_ids),
            fault=fault,
        )
