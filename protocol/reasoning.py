"""Thinking in a model's output: `<think>...</think>` parted from the answer, one parser per choice.

Owns which markers a model has, whether its answer begins inside thinking, and where newlines around
the markers go. Knows only text and a Tokenizer; called by server/choice.py for every token.
Source of the stripping: the Qwen3 model card, which strips "\\n" from both halves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from protocol.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ThinkingMarkers:
    """The texts that enclose thinking, and their ids where the model has them as control tokens."""

    opening: str
    closing: str
    special_ids: frozenset[int] = frozenset()


_KNOWN = (ThinkingMarkers("<think>", "</think>"),)


class ThinkingStart(Enum):
    """Where an answer begins, by what its prompt ends with."""

    INSIDE = "inside"  # the prompt leaves thinking open
    OUTSIDE = "outside"  # the prompt has closed thinking
    FREE = "free"  # the model may open thinking itself


def find_markers(template_source: str, tokenizer: Tokenizer) -> ThinkingMarkers | None:
    """The markers that a model's chat template or vocabulary has both of, None if it has none."""
    for known in _KNOWN:
        both = (known.opening, known.closing)
        if all(marker in template_source for marker in both) or all(
            _is_token(marker, tokenizer) for marker in both
        ):
            special = (tokenizer.special_tokens.get(marker) for marker in both)
            special_ids = frozenset(token_id for token_id in special if token_id is not None)
            return ThinkingMarkers(known.opening, known.closing, special_ids)
    return None


def _is_token(marker: str, tokenizer: Tokenizer) -> bool:
    return (
        marker in tokenizer.special_tokens
        or len(tokenizer.encode(marker, parse_special=False)) == 1
    )


def thinking_start(
    prompt_ids: Sequence[int], tokenizer: Tokenizer, markers: ThinkingMarkers
) -> ThinkingStart:
    """Decide by the last marker in the turn that the prompt leaves unfinished.

    The turn begins behind the prompt's last control token. Those come from the template only, so
    nothing that a client writes in an earlier turn counts.
    """
    first = len(prompt_ids)
    while first > 0:
        token_id = prompt_ids[first - 1]
        if tokenizer.is_special(token_id) and token_id not in markers.special_ids:
            break
        first -= 1
    turn = tokenizer.decode(prompt_ids[first:], skip_special=False)
    opened, closed = turn.rfind(markers.opening), turn.rfind(markers.closing)
    if opened == closed:  # neither is there
        return ThinkingStart.FREE
    return ThinkingStart.INSIDE if opened > closed else ThinkingStart.OUTSIDE


@dataclass(frozen=True, slots=True)
class Parted:
    """What may be sent now; the reasoning comes before the content."""

    reasoning: str = ""
    content: str = ""


class _Phase(Enum):
    OPENING = "opening"  # nothing but white space and a beginning of the opening marker
    REASONING = "reasoning"
    GAP = "gap"  # newlines behind the closing marker
    CONTENT = "content"


class ReasoningParser:
    """Incremental: feed() text, then flush() once. The result is that of every other split.

    Thinking that is never closed is all reasoning. Only the first closing marker counts, a later
    one is text. An answer without thinking is passed on as it is.

    Attributes:
        content_start: characters before the content's first, None while there is no content.
        has_reasoned: some of the output was thinking, be it empty.
    """

    def __init__(self, markers: ThinkingMarkers, start: ThinkingStart) -> None:
        self.content_start: int | None = None
        self.has_reasoned = start is ThinkingStart.INSIDE
        self._markers = markers
        self._phase = _Phase.OPENING
        self._is_in_text = False  # newlines at the beginning of the reasoning are over
        self._held = ""
        self._num_fed = 0
        if start is ThinkingStart.OUTSIDE:
            self._begin_content("")

    @property
    def is_reasoning(self) -> bool:
        """The closing marker is still to come."""
        return self.has_reasoned and self._phase in (_Phase.OPENING, _Phase.REASONING)

    @property
    def num_settled(self) -> int:
        """Characters fed that nothing to come can change the meaning of."""
        return self._num_fed - len(self._held)

    def feed(self, text: str) -> Parted:
        """What `text` makes certain; holds back what can still become a marker or be stripped."""
        self._num_fed += len(text)
        if self._phase is _Phase.CONTENT:
            return Parted(content=text)
        buffer, self._held = self._held + text, ""
        reasoning = ""
        if self._phase is _Phase.OPENING:
            buffer = self._open(buffer)
        if self._phase is _Phase.REASONING:
            reasoning, buffer = self._reason(buffer)
        if self._phase is _Phase.GAP:
            buffer = buffer.lstrip("\n")
            if buffer:
                self._begin_content(buffer)
        return Parted(reasoning, buffer)

    def flush(self) -> Parted:
        """The end of the output: what was held turned out to be no marker."""
        held, self._held = self._held, ""
        if not held:
            return Parted()
        if self.has_reasoned:
            return Parted(reasoning=held if self._is_in_text else held.lstrip("\n"))
        self._begin_content(held)
        return Parted(content=held)

    def _open(self, buffer: str) -> str:
        """Settle how the output begins, or hold `buffer`. Returns what follows the marker."""
        opening = self._markers.opening
        stripped = buffer.lstrip()
        if stripped.startswith(opening):  # some models repeat a marker that the prompt has
            self.has_reasoned = True
            self._phase = _Phase.REASONING
            return stripped[len(opening) :]
        if opening.startswith(stripped):
            self._held = buffer
            return ""
        if self.has_reasoned:
            self._phase = _Phase.REASONING
        else:
            self._begin_content(buffer)
        return buffer

    def _reason(self, buffer: str) -> tuple[str, str]:
        """The reasoning that is certain and, once it is closed, what follows the marker."""
        if not self._is_in_text:
            buffer = buffer.lstrip("\n")
        closing = self._markers.closing
        before, marker, after = buffer.partition(closing)
        if marker:
            self._phase = _Phase.GAP
            return before.rstrip("\n"), after
        length = min(len(closing) - 1, len(buffer))
        while not buffer.endswith(closing[:length]):
            length -= 1
        certain = buffer[: len(buffer) - length].rstrip("\n")
        self._is_in_text = self._is_in_text or bool(certain)
        self._held = buffer[len(certain) :]
        return certain, ""

    def _begin_content(self, buffer: str) -> None:
        self._phase = _Phase.CONTENT
        self.content_start = self._num_fed - len(buffer)
