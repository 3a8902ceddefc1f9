"""One choice of a reply: the engine's events of one sequence, folded into deltas of text.

Detokenizer -> StopMatcher -> Delta. Knows no wire format and no event loop; fed by
server/generation.py, its deltas are rendered by the routes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.messages import EngineRequest, Event, Finished, TokenEvent, TokenLogprobs
from protocol.chat import FinishReason
from protocol.detokenizer import Detokenizer
from protocol.errors import EngineUnavailable, Internal
from protocol.sampling import SamplingFields
from protocol.stops import StopMatcher
from protocol.tokenizer import Tokenizer
from server.errors import from_fault


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How output tokens become text."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True

    @classmethod
    def of(cls, request: SamplingFields) -> "TextOptions":
        """Read a request's options; special tokens are left out unless it says otherwise."""
        return cls(
            request.stops,
            bool(request.include_stop_str_in_output),
            request.skip_special_tokens is not False,
        )


@dataclass(frozen=True, slots=True)
class PlacedLogprobs:
    """One token's logprobs and where in the choice's text (characters) its text begins."""

    offset: int
    logprobs: TokenLogprobs


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event adds to a choice. A finish reason comes with the last delta only."""

    text: str = ""
    logprobs: Sequence[PlacedLogprobs] = ()
    finish_reason: FinishReason | None = None
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None


class Choice:
    """Accumulates one sequence.

    Attributes:
        finish_reason: set by the last delta; events after it change only the counts.
        has_ended: the engine's terminal event has come.
        num_output_tokens: generated tokens, a stop token included.
        num_cached_tokens: known once the sequence has ended.
    """

    def __init__(self, request: EngineRequest, tokenizer: Tokenizer, options: TextOptions) -> None:
        self.request = request
        self.finish_reason: FinishReason | None = None
        self.has_ended = False
        self.num_output_tokens = 0
        self.num_cached_tokens = 0
        self._detokenizer = Detokenizer(tokenizer, skip_special=options.skip_special_tokens)
        self._matcher = StopMatcher(options.stops, include_stop=options.include_stop)
        self._num_fed_characters = 0  # into the stop matcher or past it
        self._num_sent_characters = 0
        self._held_logprobs: list[PlacedLogprobs] = []
        self._logprob_sum = 0.0

    @property
    def mean_logprob(self) -> float:
        """Of the output tokens, -inf if there are none; needs sampling.logprobs."""
        if not self.num_output_tokens:
            return float("-inf")
        return self._logprob_sum / self.num_output_tokens

    def feed(self, event: Event) -> Delta | None:
        """Return what to send now, None if nothing.

        Raises ApiError if the sequence ended in an error.
        """
        if isinstance(event, Finished):
            return self._finish(event)
        if self.finish_reason is not None:  # tokens the engine made before it saw the abort
            return None
        return self._feed_tokens(event)

    def _feed_tokens(self, event: TokenEvent) -> Delta | None:
        text = ""
        for i, token_id in enumerate(event.token_ids):
            start = self._num_fed_characters
            piece = self._detokenizer.feed((token_id,))
            if event.logprobs is not None:
                self._held_logprobs.append(PlacedLogprobs(start, event.logprobs[i]))
                self._logprob_sum += event.logprobs[i].logprob
            text += self._match(piece, num_tokens=self.num_output_tokens + i + 1)
            if self._matcher.matched is not None:
                self.finish_reason = "stop"
                break
        self.num_output_tokens += len(event.token_ids)
        return self._delta(text, event.prompt_logprobs)

    def _match(self, piece: str, num_tokens: int) -> str:
        self._num_fed_characters += len(piece)
        # as a stop token, a stop string counts only after min_tokens
        text = piece if num_tokens < self.request.sampling.min_tokens else self._matcher.feed(piece)
        self._num_sent_characters += len(text)
        return text

    def _finish(self, event: Finished) -> Delta | None:
        self.has_ended = True
        self.num_cached_tokens = event.num_cached_tokens
        if self.finish_reason is not None:
            return None
        if event.fault is not None:
            raise from_fault(event.fault)
        if event.reason == "abort":
            raise EngineUnavailable("The engine gave up this request before it was finished.")
        if event.reason == "error":
            raise Internal
        self.num_output_tokens = event.num_output_tokens
        text = self._match(self._detokenizer.flush(), num_tokens=self.num_output_tokens)
        if self._matcher.matched is None:
            rest = self._matcher.flush()
            self._num_sent_characters += len(rest)
            text += rest
        is_stop = self._matcher.matched is not None or event.reason == "stop"
        self.finish_reason = "stop" if is_stop else "length"
        return self._delta(text, None)

    def _delta(
        self, text: str, prompt_logprobs: Sequence[TokenLogprobs | None] | None
    ) -> Delta | None:
        logprobs = self._release_logprobs()
        if not (text or logprobs or self.finish_reason or prompt_logprobs):
            return None
        return Delta(text, logprobs, self.finish_reason, prompt_logprobs)

    def _release_logprobs(self) -> Sequence[PlacedLogprobs]:
        """The logprobs of tokens whose text has begun to be sent; at the end, of all.

        Tokens that only spelled a stop string which is left out are left out as well.
        """
        held = self._held_logprobs
        if not held:
            return ()
        if self.finish_reason is not None and self._matcher.matched is None:
            self._held_logprobs = []
            return held
        num_ready = 0
        while num_ready < len(held) and held[num_ready].offset < self._num_sent_characters:
            num_ready += 1
        self._held_logprobs = held[num_ready:]
        return held[:num_ready]
