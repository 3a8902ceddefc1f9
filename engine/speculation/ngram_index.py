"""Where in a sequence its newest tokens were before: prompt lookup without scanning the prompt.

Each token costs one entry when it is new, and finding a match a few comparisons. A function of the
tokens alone, so preemption and drafts that were wrong need no care. Pure Python.
"""

from array import array
from collections.abc import Sequence as Items
from typing import NamedTuple

MIN_LENGTH = 2  # tokens of a match
MAX_LENGTH = 16  # a longer match is not told from one of this length
_NUM_CANDIDATES = 12  # earlier places that are compared
_MAX_NEW_TOKENS = 4096  # that one call takes in: a long prompt must not hold up a step


class Match(NamedTuple):
    """The last `length` tokens stand before `position` as well."""

    position: int
    length: int


class NgramIndex:
    """The places of every run of MIN_LENGTH tokens of one growing sequence, the newest first."""

    __slots__ = ("_earlier", "_newest", "_num_indexed")

    def __init__(self) -> None:
        self._num_indexed = 0  # positions below this are entered
        self._newest: dict[tuple[int, ...], int] = {}  # run -> the position behind it
        self._earlier = array("i")  # position -> the one before with the same run in front; 0: none

    def find(self, token_ids: Items[int]) -> Match | None:
        """Take in what is new of `token_ids`, and return the longest match of their end, the newest
        among equals; None where there is none, or not all could be taken in yet.
        """
        num_tokens = len(token_ids)
        self._enter(token_ids, min(num_tokens, self._num_indexed + _MAX_NEW_TOKENS))
        if self._num_indexed < num_tokens:
            return None
        position = self._newest.get(tuple(token_ids[-MIN_LENGTH:]), 0)
        best: Match | None = None
        for _ in range(_NUM_CANDIDATES):
            if not position:
                break
            length = _common_length(token_ids, position, num_tokens)
            if best is None or length > best.length:
                best = Match(position, length)
                if length == MAX_LENGTH:
                    break
            position = self._earlier[position]
        return best

    def _enter(self, token_ids: Items[int], stop: int) -> None:
        """Enter the positions below `stop`: only what has something behind it can be found."""
        newest, earlier = self._newest, self._earlier
        for position in range(self._num_indexed, stop):
            place = 0
            if position >= MIN_LENGTH:
                run = tuple(token_ids[position - MIN_LENGTH : position])
                place = newest.get(run, 0)
                newest[run] = position
            earlier.append(place)
        self._num_indexed = max(self._num_indexed, stop)


def _common_length(token_ids: Items[int], position: int, end: int) -> int:
    """How many tokens before `position` are those before `end`; at least MIN_LENGTH are."""
    length = MIN_LENGTH
    limit = min(MAX_LENGTH, position)
    while length < limit and token_ids[position - 1 - length] == token_ids[end - 1 - length]:
        length += 1
    return length


def continuation(token_ids: Items[int], position: int, count: int) -> list[int]:
    """The `count` tokens from `position` on, as if the sequence went on repeating them."""
    found = list(token_ids[position : position + count])
    while len(found) < count:
        found += found[: count - len(found)]
    return found
