"""The commands of the terminal chat, as text: which there are and what a line means.

The words are those of the Qwen repository's cli_demo.py. Pure functions and data; what a command
does is in server/chat_session.py.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

CommandName = Literal["help", "exit", "clear", "clear-history", "history", "seed", "conf", "reset"]

_WORDS: dict[str, CommandName] = {
    **dict.fromkeys((":help", ":h"), "help"),
    **dict.fromkeys((":exit", ":quit", ":q"), "exit"),
    **dict.fromkeys((":clear", ":cl"), "clear"),
    **dict.fromkeys((":clear-his", ":clh"), "clear-history"),
    **dict.fromkeys((":history", ":his"), "history"),
    ":seed": "seed",
    ":conf": "conf",
    ":reset-conf": "reset",
}
_TAKES_ARGUMENTS: frozenset[CommandName] = frozenset({"seed", "conf"})

HELP = """\
Commands:
  :help, :h                    this text
  :exit, :quit, :q             leave
  :clear, :cl                  clear the screen
  :clear-his, :clh             forget the conversation
  :history, :his               show the conversation
  :seed                        show the seed
  :seed N                      set the seed
  :conf                        show the parameters sent with every query
  :conf KEY=VALUE ...          set some; values are JSON, as in :conf temperature=0.7 stop=["."]
  :reset-conf                  send no parameters but the seed
Ctrl-C stops an answer; at the prompt, Ctrl-C or Ctrl-D leaves."""


@dataclass(frozen=True, slots=True)
class Command:
    name: CommandName
    argument: str  # the rest of the line


def parse_command(line: str) -> Command | None:
    """The command in a line, or None when the line is a query, as it is with an unknown ":word"."""
    word, _, argument = line.strip().partition(" ")
    name = _WORDS.get(word)
    argument = argument.strip()
    if name is None or (argument and name not in _TAKES_ARGUMENTS):
        return None
    return Command(name, argument)


def parse_assignments(text: str) -> dict[str, Any]:
    """Parse `key=value key=value`, the values as JSON; a value may hold spaces.

    Raises ValueError with one sentence.
    """
    decoder = json.JSONDecoder()
    found: dict[str, Any] = {}
    rest = text.strip()
    while rest:
        match = re.match(r"([A-Za-z_]\w*)\s*=\s*", rest)
        if match is None:
            raise ValueError(f"expected KEY=VALUE at {rest!r}")
        key, rest = match[1], rest[match.end() :]
        try:
            found[key], end = decoder.raw_decode(rest)
        except json.JSONDecodeError:
            raise ValueError(
                f"the value of {key} is not JSON: {rest!r} (text needs double quotes)"
            ) from None
        if rest[end : end + 1].strip():
            raise ValueError(f"the value of {key} is not JSON: {rest!r}")
        rest = rest[end:].strip()
    return found
