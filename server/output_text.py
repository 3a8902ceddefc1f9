"""The text of one choice, token by token: Detokenizer -> ReasoningParser -> StopMatcher.

Knows tokens and text only; used by server/choice.py, which knows the engine's events.

Stop strings are looked for in the content only. A model that thinks quotes them there (the
question, "Observation:"): ended by that it would give no answer at all
(https://github.com/vllm-project/vllm/issues/52393).
"""

from dataclasses import dataclass

from protocol.detokenizer import Detokenizer
from protocol.reasoning import Parted, ReasoningParser, ThinkingMarkers, ThinkingStart
from protocol.sampling import SamplingFields
from protocol.stops import StopMatcher
from protocol.tokenizer import Tokenizer
from server.tool_calling import ToolCalling


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How output tokens become text."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    thinking: tuple[ThinkingMarkers, ThinkingStart] | None = None  # None: all text is content
    strips_start: bool = False  # leave out the white space in front
    calling: ToolCalling | None = None  # None: nothing in the content is a call
    tool_markers: frozenset[int] = frozenset()  # control tokens that are text to its parser

    @classmethod
    def of(
        cls,
        request: SamplingFields,
        thinking: tuple[ThinkingMarkers, ThinkingStart] | None = None,
        *,
        strips_start: bool = False,
        calling: ToolCalling | None = None,
        tool_markers: frozenset[int] = frozenset(),
    ) -> "TextOptions":
        """Read a request's options; special tokens are left out unless it says otherwise."""
        return cls(
            (*request.stops, *(calling.stops if calling is not None else ())),
            bool(request.include_stop_str_in_output),
            request.skip_special_tokens is not False,
            thinking,
            strips_start,
            calling,
            tool_markers,
        )


class OutputText:
    """feed() every token, then flush() once, unless a stop string ended the text.

    Attributes:
        num_fed: characters of the whole output that the tokens fed have completed.
    """

    def __init__(self, tokenizer: Tokenizer, options: TextOptions, min_tokens: int) -> None:
        """Stop strings that end within the first `min_tokens` tokens do not count."""
        self.num_fed = 0
        self._tokenizer = tokenizer
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._detokenizer = Detokenizer(
            tokenizer,
            skip_special=options.skip_special_tokens,
            strips_start=options.strips_start,
        )
        self._parser = ReasoningParser(*options.thinking) if options.thinking else None
        thinking_ids = options.thinking[0].special_ids if options.thinking else frozenset()
        self._marker_ids = thinking_ids | options.tool_markers
        self._matcher = StopMatcher(options.stops, include_stop=options.include_stop)
        self._num_content_sent = 0
        self._num_reasoning_tokens = 0

    @property
    def is_stopped(self) -> bool:
        """A stop string has ended the text."""
        return self._matcher.matched is not None

    @property
    def is_reasoning(self) -> bool:
        """The output so far ends inside thinking."""
        return self._parser is not None and self._parser.is_reasoning

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens fed up to and with the one that closed thinking."""
        return self._num_reasoning_tokens

    @property
    def num_settled(self) -> int:
        """Characters of the whole output that are sent or, as markers are, left out for good.

        Behind a stop string that is left out, none ever are.
        """
        if self._parser is None:
            return self._num_content_sent
        if self._parser.content_start is None:
            return self._parser.num_settled
        return self._parser.content_start + self._num_content_sent

    def feed(self, token_id: int) -> Parted:
        """What may be sent now."""
        self._num_tokens += 1
        was_reasoning = self.is_reasoning
        parted = self._part(self._detokenize(token_id))
        if was_reasoning or self.is_reasoning or parted.reasoning:
            self._num_reasoning_tokens = self._num_tokens
        return parted

    def flush(self) -> Parted:
        """The end of the output: what was held back, up to a stop string in it."""
        parted = self._part(self._detokenizer.flush())
        held = Parted() if self._parser is None else self._parser.flush()
        content = parted.content + self._match(held.content)
        if not self.is_stopped:
            rest = self._matcher.flush()
            self._num_content_sent += len(rest)
            content += rest
        return Parted(parted.reasoning + held.reasoning, content)

    def _detokenize(self, token_id: int) -> str:
        """The text that a token completes; control tokens that are markers are text as well."""
        if token_id not in self._marker_ids:
            return self._detokenizer.feed((token_id,))
        return self._detokenizer.flush() + self._tokenizer.token_bytes(token_id).decode()

    def _part(self, piece: str) -> Parted:
        self.num_fed += len(piece)
        parted = Parted(content=piece) if self._parser is None else self._parser.feed(piece)
        return Parted(parted.reasoning, self._match(parted.content))

    def _match(self, content: str) -> str:
        # as a stop token, a stop string counts only after min_tokens
        is_free = self._num_tokens < self._min_tokens
        sent = content if is_free else self._matcher.feed(content)
        self._num_content_sent += len(sent)
        return sent
