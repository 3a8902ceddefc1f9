"""The base of the tool call parsers: they read as if the whole text were there.

A format is a generator that reads forward, and yields where it has to wait for text. Decisions are
made on what is certain only, so every split of a text is read in one way.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from functools import cache
from typing import TypeVar

from protocol.tools.calls import CallArguments, CallBegin, Content, Tool, ToolEvent, joined
from protocol.tools.json_text import JsonText

T = TypeVar("T")
Steps = Generator[None, None, T]


@cache
def _any_of(markers: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, markers)) or "(?!)")


class IncrementalParser(ABC):
    """Implements ToolCallParser, given the `_parse` of a format.

    text[start:position] has been read and is not settled: _keep() makes it content, _drop() takes
    it for markers, and nothing else removes text. White space before a call is read as part of its
    markers, and so is the white space behind one that ends the text or stands before another.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._names = frozenset(tool.name for tool in tools)
        self._text = ""
        self._start = 0
        self._position = 0
        self._is_ended = False
        self._is_rejected = False  # what is being read is content, also in its strings
        self._follows_call = False  # no content since the last call
        self._closings: tuple[str, ...] = ()  # what the last call still lacks
        self._events: list[ToolEvent] = []
        self._steps = self._run()

    def feed(self, text: str) -> list[ToolEvent]:
        """What is certain after `text`."""
        self._text = self._text[self._start :] + text
        self._position -= self._start
        self._start = 0
        return self._resume()

    def flush(self) -> list[ToolEvent]:
        """The end of the output: what was held is settled. Nothing may be fed after it."""
        self._is_ended = True
        return self._resume()

    def _resume(self) -> list[ToolEvent]:
        next(self._steps, None)
        events, self._events = self._events, []
        return joined(events)

    def _run(self) -> Steps[None]:
        yield from self._parse()
        yield from self._text_until()

    @abstractmethod
    def _parse(self) -> Steps[None]:
        """Read the text. What is left when it returns is content."""

    def _wait(self) -> Steps[None]:
        """Until more is fed. Not to be called at the end of the text."""
        if self._is_rejected:
            self._keep()
        yield

    def _peek(self, length: int = 1) -> Steps[str]:
        """The next characters, unread; fewer, or "", at the end of the text."""
        while len(self._text) - self._position < length and not self._is_ended:
            yield from self._wait()
        return self._text[self._position : self._position + length]

    def _read(self, literal: str) -> Steps[bool]:
        """Whether `literal` comes next; reads it if so. Waits only while it can still come."""
        while True:
            tail = self._text[self._position : self._position + len(literal)]
            if tail == literal:
                self._position += len(literal)
                return True
            if self._is_ended or not literal.startswith(tail):
                return False
            yield from self._wait()

    def _skip(self, characters: str = " \t\r\n") -> Steps[None]:
        while (character := (yield from self._peek())) and character in characters:
            self._position += 1

    def _skip_language(self) -> Steps[None]:
        """What may stand behind a code fence."""
        while (character := (yield from self._peek())).isalnum() and character.isascii():
            self._position += 1

    def _text_until(self, *markers: str, settle: Callable[[int], None] | None = None) -> Steps[str]:
        """Read to the first marker and over it; "" when the text ends before.

        What stands before is given to `settle` by its end, as soon as it is certain. By default it
        is content, but for white space before the marker; that and the marker are left unsettled.
        """
        settle = settle or self._settle_content
        while True:
            # not str.find for each: that would look for an absent one in all the rest every time
            if found := _any_of(markers).search(self._text, self._position):
                settle(found.start())
                self._position = found.end()
                return found[0]
            settle(len(self._text) - self._length_held(markers))
            if self._is_ended:
                self._drop_cut_closing()
                settle(len(self._text))
                self._keep()
                return ""
            yield from self._wait()

    def _drop_cut_closing(self) -> None:
        """At the end of the text: drop what is left of a call, white space or half a marker."""
        rest = self._text[self._start :].strip()
        is_cut = not rest or any(closing.startswith(rest) for closing in self._closings)
        if self._follows_call and is_cut:
            self._start = self._position = len(self._text)

    def _length_held(self, markers: Sequence[str]) -> int:
        """Of the longest end of the text that can become a marker."""
        length = min(len(self._text) - self._position, max(map(len, markers), default=1) - 1)
        while length > 0:
            tail = self._text[len(self._text) - length :]
            if any(marker.startswith(tail) for marker in markers):
                break
            length -= 1
        return length

    def _settle_content(self, end: int) -> None:
        """Read up to `end` and keep that, but for white space at its end."""
        self._settle_words(end, self._content)

    def _settle_words(self, end: int, emit: Callable[[str], None]) -> None:
        words = self._text[self._start : end].rstrip()
        self._position = end
        if words:
            self._start += len(words)
            emit(words)

    def _keep(self) -> None:
        text = self._text[self._start : self._position]
        self._start = self._position
        if text:
            self._content(text)

    def _drop(self) -> None:
        self._start = self._position

    def _content(self, text: str) -> None:
        self._follows_call = False
        self._events.append(Content(text))

    def _begin(self, name: str) -> None:
        """What is unsettled was the call's beginning."""
        self._drop()
        self._follows_call = True
        self._events.append(CallBegin(name))

    def _arguments(self, text: str) -> None:
        """What is unsettled was this part of the arguments."""
        self._drop()
        if text:
            self._events.append(CallArguments(text))

    def _json_value(self, emit: Callable[[str], None], *stops: str) -> Steps[bool]:
        """Read the JSON value that comes next; False if the text ends before it does."""
        value = JsonText(stops)
        while True:
            text, self._position = value.read(self._text, self._position, is_final=self._is_ended)
            emit(text)
            if value.is_complete or self._is_ended:
                return value.is_complete
            yield from self._wait()
