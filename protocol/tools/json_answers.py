"""Answers that are JSON or calls: of requests with tools and a form for any other answer."""

from protocol.tools.calls import Content, ToolCallParser, ToolEvent

_BEGINNINGS = ("{", "[", '"')  # of JSON that can have the text of a marker in it


class JsonAnswerParser:
    """Implements ToolCallParser: an answer that begins as JSON is content to its end.

    Not for formats whose calls begin as JSON themselves.
    """

    def __init__(self, calls: ToolCallParser) -> None:
        """`calls` reads any other answer."""
        self._calls = calls
        self._blanks = ""
        self._is_json: bool | None = None

    def feed(self, text: str) -> list[ToolEvent]:
        """What is certain after `text`."""
        if self._is_json is None:
            text = self._blanks + text
            begun = text.lstrip()
            if not begun:
                self._blanks = text
                return []
            self._blanks = ""
            self._is_json = begun.startswith(_BEGINNINGS)
        if not self._is_json:
            return self._calls.feed(text)
        return [Content(text)] if text else []

    def flush(self) -> list[ToolEvent]:
        """The end of the output: what was held is settled. Nothing may be fed after it."""
        return [] if self._is_json else self._calls.feed(self._blanks) + self._calls.flush()
