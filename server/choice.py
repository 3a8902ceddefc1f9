"""One choice of a reply: the engine's events of one sequence, folded into deltas of text.

Knows no wire format, no event loop and not how tokens become text (server/output_text.py); fed by
server/generation.py, its deltas are rendered by the routes. Logprobs are those of all tokens, also
of thinking and of the markers around it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.messages import EngineRequest, Event, Finished, TokenEvent, TokenLogprobs
from protocol.chat import FinishReason
from protocol.errors import EngineUnavailable, Internal
from protocol.tokenizer import Tokenizer
from protocol.tools.calls import CallArguments, CallBegin, Content
from server.errors import from_fault
from server.output_text import OutputText, TextOptions

CallEvent = CallBegin | CallArguments


@dataclass(frozen=True, slots=True)
class PlacedLogprobs:
    """One token's logprobs and where in the output's text (characters) its text begins."""

    offset: int
    logprobs: TokenLogprobs


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event adds to a choice. A finish reason comes with the last delta only.

    The reasoning comes before the text, the text before the calls.
    """

    text: str = ""
    reasoning: str = ""
    calls: Sequence[CallEvent] = ()
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
        self._output = OutputText(tokenizer, options, request.sampling.min_tokens)
        self._calling = options.calling
        self._parser = None if options.calling is None else options.calling.parser()
        self._has_called = False
        self._held_logprobs: list[PlacedLogprobs] = []
        self._logprob_sum = 0.0

    @property
    def num_reasoning_tokens(self) -> int:
        """Output tokens up to and with the marker that closes thinking; all while it is open."""
        output = self._output
        return self.num_output_tokens if output.is_reasoning else output.num_reasoning_tokens

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
        text = reasoning = ""
        for i, token_id in enumerate(event.token_ids):
            self.num_output_tokens += 1
            if event.logprobs is not None:
                self._held_logprobs.append(PlacedLogprobs(self._output.num_fed, event.logprobs[i]))
                self._logprob_sum += event.logprobs[i].logprob
            parted = self._output.feed(token_id)
            reasoning += parted.reasoning
            text += parted.content
            if self._output.is_stopped:
                break  # what came behind it in one step is nobody's
        is_last = self._output.is_stopped
        text, calls = self._parse(text, is_last=is_last)
        if is_last:
            self.finish_reason = self._stop_reason
        return self._delta(reasoning, text, calls, event.prompt_logprobs)

    def _finish(self, event: Finished) -> Delta | None:
        self.has_ended = True
        self.num_cached_tokens = event.num_cached_tokens
        if self.finish_reason is not None:
            return None
        if event.fault is not None:
            raise from_fault(event.fault, self.request.grammar)
        if event.reason == "abort":
            raise EngineUnavailable("The engine gave up this request before it was finished.")
        if event.reason == "error":
            raise Internal
        self.num_output_tokens = event.num_output_tokens
        parted = self._output.flush()
        text, calls = self._parse(parted.content, is_last=True)
        is_stop = self._output.is_stopped or event.reason == "stop"
        self.finish_reason = self._stop_reason if is_stop else "length"
        return self._delta(parted.reasoning, text, calls, None)

    def _parse(self, content: str, *, is_last: bool) -> tuple[str, Sequence[CallEvent]]:
        """Part calls from the content: the text that is certain, and the calls behind it."""
        if self._parser is None:
            return content, ()
        events = self._parser.feed(content)
        if is_last:
            events += self._parser.flush()
        text = "".join(event.text for event in events if isinstance(event, Content))
        calls = [event for event in events if not isinstance(event, Content)]
        self._has_called = self._has_called or bool(calls)
        return text, calls

    @property
    def _stop_reason(self) -> FinishReason:
        """Why an answer that was not cut off has ended."""
        if self._calling is None or not self._has_called:
            return "stop"
        return self._calling.finish_reason

    def _delta(
        self,
        reasoning: str,
        text: str,
        calls: Sequence[CallEvent],
        prompt_logprobs: Sequence[TokenLogprobs | None] | None,
    ) -> Delta | None:
        logprobs = self._release_logprobs()
        if not (text or reasoning or calls or logprobs or self.finish_reason or prompt_logprobs):
            return None
        return Delta(text, reasoning, calls, logprobs, self.finish_reason, prompt_logprobs)

    def _release_logprobs(self) -> Sequence[PlacedLogprobs]:
        """The logprobs of tokens whose text has begun to be settled; at the end, of all.

        Tokens that only spelled a stop string which is left out are left out as well.
        """
        held = self._held_logprobs
        if not held:
            return ()
        if self.finish_reason is not None and not self._output.is_stopped:
            self._held_logprobs = []
            return held
        num_ready = 0
        num_settled = self._output.num_settled
        while num_ready < len(held) and held[num_ready].offset < num_settled:
            num_ready += 1
        self._held_logprobs = held[num_ready:]
        return held[:num_ready]
