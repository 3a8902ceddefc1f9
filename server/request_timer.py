"""Times one generation request and counts it in the metrics when it ends."""

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from engine.messages import EngineRequest, SamplingParams, Timing
from server.request_record import RequestRecord

if TYPE_CHECKING:
    from server.metrics import Metrics

# OpenAI's finish reasons: the request did what it was to do
FINISHED = frozenset({"stop", "length", "tool_calls", "function_call"})


class RequestTimer:
    """`first_token`, `token` for each later event, `finished`.

    Attributes:
        model: the name that the client asked for, one of those served.
        sampling: of the first sequence.
        timing: of the first sequence in the engine; None until it has a token.
        outcome: a finish reason, "abort" or an error's code; None until the end.
    """

    __slots__ = (
        "_ended_s",
        "_first_token_s",
        "_inter_token",
        "_last_s",
        "_metrics",
        "cached_tokens",
        "endpoint",
        "model",
        "num_sequences",
        "operation",
        "outcome",
        "output_tokens",
        "prompt_tokens",
        "record",
        "sampling",
        "timing",
    )

    def __init__(
        self, metrics: "Metrics", record: RequestRecord, endpoint: str, operation: str, model: str
    ) -> None:
        self.record = record
        self.endpoint = endpoint
        self.operation = operation
        self.model = model
        self.sampling: SamplingParams | None = None
        self.num_sequences = 0
        self.timing: Timing | None = None
        self.outcome: str | None = None
        self.prompt_tokens = self.cached_tokens = self.output_tokens = 0
        self._metrics = metrics
        self._inter_token = metrics.inter_token_seconds
        self._first_token_s: float | None = None
        self._ended_s: float | None = None
        self._last_s = 0.0
        record.generation = self
        metrics.requests_in_progress.inc()

    def planned(self, requests: Sequence[EngineRequest]) -> None:
        """What the request has become: at least one sequence."""
        self.sampling = requests[0].sampling
        self.num_sequences = len(requests)
        self._metrics.request_planned(self.num_sequences, self.sampling.max_tokens)

    def first_token(self, timing: Timing | None = None) -> None:
        """The first output token is there."""
        self._last_s = self._first_token_s = perf_counter()
        self.timing = timing
        self._metrics.first_token(self)

    def token(self, count: int) -> None:
        """`count` more output tokens came together; they share the time since the last ones."""
        now = perf_counter()
        elapsed = now - self._last_s
        self._last_s = now
        if count == 1:
            self._inter_token.observe(elapsed)
            return
        for _ in range(count):
            self._inter_token.observe(elapsed / count)

    def finished(
        self, *, outcome: str, prompt_tokens: int, cached_tokens: int, output_tokens: int
    ) -> None:
        """The request ended. Only the first call counts."""
        if self.outcome is not None:
            return
        self._ended_s = perf_counter()
        self.outcome = outcome
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = cached_tokens
        self.output_tokens = output_tokens
        self._metrics.requests_in_progress.dec()
        self._metrics.request_finished(self)

    @property
    def error_type(self) -> str:
        """What kept the request from its end; empty where nothing did."""
        return "" if self.outcome is None or self.outcome in FINISHED else self.outcome

    @property
    def duration_s(self) -> float:
        """From the request's arrival to the generation's end, or until now."""
        end_s = perf_counter() if self._ended_s is None else self._ended_s
        return end_s - self.record.started_s

    @property
    def first_token_s(self) -> float | None:
        """From the request's arrival to the first output token."""
        return None if self._first_token_s is None else self._first_token_s - self.record.started_s

    @property
    def decode_s(self) -> float | None:
        """From the first token to the end; None while there is either not."""
        if self._first_token_s is None or self._ended_s is None:
            return None
        return self._ended_s - self._first_token_s

    @property
    def time_per_output_token_s(self) -> float | None:
        """Of the tokens behind the first one; None where there are none."""
        decode_s = self.decode_s
        if decode_s is None or self.output_tokens < 2:
            return None
        return decode_s / (self.output_tokens - 1)

    def phases_s(self) -> dict[str, float]:
        """Seconds in each phase that has ended, in their order."""
        phases = {}
        if self.timing is not None:
            phases["queue"] = self.timing.queue_s
            phases["prefill"] = self.timing.prefill_s
        if self.decode_s is not None:
            phases["decode"] = self.decode_s
        return phases
