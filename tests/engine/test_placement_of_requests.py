"""Where a request goes: to its prefix, unless that engine is loaded."""

import msgspec
import pytest

from engine.redis_queue.placement import SHORTEST_PREFIX, Load, choose, prefix_digests
from tests.engine.toy_runner import make_request


def loads(**num_taken: int) -> dict[str, Load]:
    return {name: Load(count, max_num_seqs=16) for name, count in num_taken.items()}


def test_the_longest_known_beginning_decides() -> None:
    assert choose([None, "b", "a"], loads(a=0, b=0)) == "b"


def test_engines_that_are_gone_do_not_count() -> None:
    assert choose(["gone", "b"], loads(a=0, b=0)) == "b"
    assert choose(["gone"], loads(a=0)) is None


def test_without_a_beginning_whoever_is_first_takes_it() -> None:
    assert choose([None, None], loads(a=0, b=0)) is None
    assert choose([], {}) is None


@pytest.mark.parametrize(
    ("busy", "idle", "expected"),
    [(4, 0, "a"), (5, 0, None), (12, 4, "a"), (13, 4, None), (15, 15, "a"), (16, 16, None)],
)
def test_a_loaded_engine_is_not_waited_for(busy: int, idle: int, expected: str | None) -> None:
    assert choose(["a"], loads(a=busy, b=idle)) == expected


def test_prompts_that_begin_alike_share_digests() -> None:
    common = list(range(3 * SHORTEST_PREFIX))
    one = prefix_digests(make_request("1", [*common, *([1] * SHORTEST_PREFIX)]))
    two = prefix_digests(make_request("2", [*common, *([2] * SHORTEST_PREFIX)]))
    assert len(one) == len(two) == 3  # of 256, 128 and 64 tokens
    assert one[0] != two[0]
    assert one[1:] == two[1:]


def test_short_prompts_have_none() -> None:
    assert prefix_digests(make_request("1", [1] * (SHORTEST_PREFIX - 1))) == []


def test_what_shares_no_cache_shares_no_digest() -> None:
    request = make_request("1", [1] * SHORTEST_PREFIX)
    salted = msgspec.structs.replace(request, cache_salt="s")
    assert prefix_digests(request) != prefix_digests(salted)
