"""Calls whose name and arguments stand behind labels, of react.py and qwen_agent.py."""

from protocol.tools.calls import CallArguments
from protocol.tools.incremental import IncrementalParser, Steps

_FENCE = "```"
_AROUND_NAME = " \t\r`'\"[]*"  # what models put around a name that they were shown in a list


class LabelledCallParser(IncrementalParser):
    """Reads what stands behind a label."""

    def _read_name(self, ends: str) -> Steps[str | None]:
        """Read a tool's name up to one of the characters `ends`; None if another text is there."""
        line = ""
        while (character := (yield from self._peek())) and character not in ends:
            self._position += 1
            line += character
            begun = line.strip(_AROUND_NAME)
            if not any(name.startswith(begun) for name in self._names):
                return None
        name = line.strip(_AROUND_NAME)
        return name if character and name in self._names else None

    def _read_labelled(self, *ends: str) -> Steps[None]:
        """Read arguments, up to one of `ends`, which is left unread.

        A JSON object, or Python's way of writing one, also in a code fence, is over where it is
        closed. Any other text is passed on as it is, but for white space around it. No text is {}.
        """
        self._drop()
        yield from self._skip()
        is_fenced = yield from self._read(_FENCE)
        if is_fenced:
            yield from self._skip_language()
            yield from self._skip()
        if (yield from self._peek()) != "{":
            self._position = self._start  # a fence around anything else is part of it
            self._closings = ends
            yield from self._read_text(*ends)
            return
        self._closings = (*(end.strip() for end in ends), *([_FENCE] if is_fenced else []))
        self._drop()
        yield from self._json_value(self._arguments, *ends)
        if is_fenced:
            yield from self._skip()
            if (yield from self._read(_FENCE)):
                self._drop()

    def _read_text(self, *ends: str) -> Steps[None]:
        has_text = False

        def take(text: str) -> None:
            nonlocal has_text
            text = text if has_text else text.lstrip()
            has_text = True
            self._events.append(CallArguments(text))

        marker = yield from self._text_until(
            *ends, settle=lambda end: self._settle_words(end, take)
        )
        self._position -= len(marker)
        if not has_text:
            self._arguments("{}")
