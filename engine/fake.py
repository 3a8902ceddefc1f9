"""An EngineClient without a model: it plays a script for each request. Torch-free.

Used by the tests of everything above the engine and to measure the front end alone. What it yields
is decided by the script only; the rules of the stream (one terminal event, abort, engine death) are
the contract's and kept here.
"""

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from engine.errors import EngineDead, InvariantViolated
from engine.messages import (
    EngineInfo,
    EngineRequest,
    EngineStats,
    Event,
    Fault,
    Finished,
    FinishReason,
    TokenEvent,
    TokenLogprobs,
)

Script = Callable[[EngineRequest], Iterable[Event | float]]

DEFAULT_INFO = EngineInfo(
    max_model_len=4096,
    vocab_size=1 << 20,
    num_blocks=256,
    block_size=16,
    dtype="float32",
    device="cpu",
    backend="fake",
)


def echo_script(eos_token_ids: Iterable[int] = (), answer: Sequence[int] | None = None) -> Script:
    """The default script: `answer` (None = the prompt) over and over, one id per event.

    Ends at max_tokens or a stop token: `eos_token_ids` (unless ignore_eos) and the request's
    stop_token_ids; before min_tokens they are skipped. Logprobs are ln(1/2) for the token, ln(1/4),
    ln(1/8), ... for the ids after it.
    """
    eos = frozenset(eos_token_ids)

    def script(request: EngineRequest) -> Iterator[Event | float]:
        sampling = request.sampling
        stops = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else eos)
        if sampling.prompt_logprobs is not None:
            yield _prompt_event(request, sampling.prompt_logprobs)
        output = request.prompt_token_ids if answer is None else answer
        num_output = 0
        for token_id in itertools.cycle(output):
            if num_output >= sampling.max_tokens:
                break
            if token_id in stops:
                if num_output >= sampling.min_tokens:
                    yield _finished(request, "stop", num_output + 1, stop_token_id=token_id)
                    return
                if stops.issuperset(output):  # nothing else to say before min_tokens
                    break
                continue
            logprobs = None
            if sampling.logprobs is not None:
                logprobs = [_logprobs(token_id, sampling.logprobs)]
            yield TokenEvent(request.id, [token_id], logprobs)
            num_output += 1
            yield 0
        yield _finished(request, "length", num_output)

    return script


def _logprobs(token_id: int, count: int) -> TokenLogprobs:
    top = [(token_id + i, -(i + 1) * math.log(2)) for i in range(count)]
    return TokenLogprobs(token_id, -math.log(2), top)


def _prompt_event(request: EngineRequest, count: int) -> TokenEvent:
    rest = [_logprobs(token_id, count) for token_id in request.prompt_token_ids[1:]]
    return TokenEvent(request.id, [], [], [None, *rest])


def _finished(
    request: EngineRequest,
    reason: FinishReason,
    num_output_tokens: int,
    *,
    stop_token_id: int | None = None,
    fault: Fault | None = None,
) -> Finished:
    return Finished(
        id=request.id,
        reason=reason,
        num_prompt_tokens=len(request.prompt_token_ids),
        num_output_tokens=num_output_tokens,
        stop_token_id=stop_token_id,
        fault=fault,
    )


@dataclass(slots=True, eq=False)
class _Running:
    request: EngineRequest
    num_output_tokens: int = 0
    end: Finished | None = None  # set from outside: abort, fail, aclose
    pause: asyncio.Future[None] | None = None  # the newest


class FakeEngine:
    """Plays `script` for each request; a float in it is a pause in seconds, 0 lets the loop run.

    A script that runs out without a Finished is ended with reason "stop". `requests` and `aborted`
    record what the engine was asked, in order; a request closed or aborted before its end is in
    `aborted` once.
    """

    def __init__(
        self,
        info: EngineInfo = DEFAULT_INFO,
        script: Script | None = None,
        eos_token_ids: Iterable[int] = (),
    ) -> None:
        self.info = info
        self.script = script if script is not None else echo_script(eos_token_ids)
        self.requests: list[EngineRequest] = []
        self.aborted: list[str] = []
        self.on_resume: Callable[[int], None] = lambda num_requests: None  # never called
        self._running: dict[str, _Running] = {}
        self._dead: Fault | None = None
        self._num_prompt_tokens = 0
        self._num_generation_tokens = 0

    async def start(self) -> EngineInfo:
        """Raises EngineDead after `fail` with code "engine_dead"."""
        if self._dead is not None:
            raise EngineDead(self._dead.message)
        return self.info

    async def generate(self, request: EngineRequest) -> AsyncIterator[Event]:
        """See EngineClient.generate. Raises InvariantViolated for an id that is already running."""
        if request.id in self._running:
            raise InvariantViolated(f"request id {request.id!r} is already running")
        self.requests.append(request)
        running = _Running(request)
        self._running[request.id] = running
        self._num_prompt_tokens += len(request.prompt_token_ids)
        if self._dead is not None:
            self._end(running, "error", self._dead)
        end: Finished | None = None  # as the script has it
        try:
            for item in self.script(request):
                if running.end is not None:
                    break
                if isinstance(item, Finished):
                    end = item
                    break
                if isinstance(item, TokenEvent):
                    running.num_output_tokens += len(item.token_ids)
                    self._num_generation_tokens += len(item.token_ids)
                    yield item
                else:
                    await _pause(running, item)
            end = running.end or end or _finished(request, "stop", running.num_output_tokens)
            del self._running[request.id]  # before the yield: closing now aborts nothing
            yield end
        finally:
            if self._running.get(request.id) is running:
                del self._running[request.id]
                if running.end is None:
                    self.aborted.append(request.id)

    def abort(self, request_id: str) -> None:
        """End a running request with reason "abort"; an unknown id does nothing."""
        running = self._running.get(request_id)
        if running is not None and running.end is None:
            self.aborted.append(request_id)
            self._end(running, "abort")

    def fail(self, fault: Fault) -> None:
        """End all running requests with `fault`. Code "engine_dead" lasts until `revive`."""
        if fault.code == "engine_dead":
            self._dead = fault
        for running in self._running.values():
            if running.end is None:
                self._end(running, "error", fault)

    def revive(self) -> None:
        """Healthy again after `fail`."""
        self._dead = None

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self._running),
            num_blocks=self.info.num_blocks,
            num_free_blocks=self.info.num_blocks,
            prompt_tokens=self._num_prompt_tokens,
            generation_tokens=self._num_generation_tokens,
        )

    def health(self) -> str | None:
        return None if self._dead is None else self._dead.message

    def silent_s(self) -> float:
        return 0.0

    async def aclose(self) -> None:
        for request_id in list(self._running):
            self.abort(request_id)

    @staticmethod
    def _end(running: _Running, reason: FinishReason, fault: Fault | None = None) -> None:
        running.end = _finished(running.request, reason, running.num_output_tokens, fault=fault)
        if running.pause is not None:
            _wake(running.pause)


async def _pause(running: _Running, seconds: float) -> None:
    """Wait for `seconds` or until the request is ended; 0 lets the loop run."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    # asyncio.wait_for would make a task of every pause: too dear for a front end's measurement
    loop = asyncio.get_running_loop()
    running.pause = loop.create_future()
    timer = loop.call_later(seconds, _wake, running.pause)
    try:
        await running.pause
    finally:
        timer.cancel()


def _wake(pause: asyncio.Future[None]) -> None:
    if not pause.done():
        pause.set_result(None)
