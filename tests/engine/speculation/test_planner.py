"""The number of drafts for given chances and times."""

from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from engine.speculation import planner as planner_module
from engine.speculation.planner import Planner


def free(num_drafts: int) -> float:
    return 0.0


def chances(rate: float, count: int = 8) -> list[float]:
    return [rate ** (i + 1) for i in range(count)]


def taught(seconds: Callable[[int], float], num_sequences: int = 1) -> Planner:
    """A planner that has seen steps of up to 8 drafts a sequence."""
    planner = Planner()
    for num_tokens in range(num_sequences, 9 * num_sequences + 1):
        for _ in range(4):
            planner.learn(num_tokens, seconds(num_tokens))
    return planner


def test_nothing_is_drafted_before_a_plain_step_was_timed() -> None:
    assert Planner().choose([chances(1.0)], 100, free) == [0]


def test_all_where_tokens_cost_nothing_and_drafts_are_right() -> None:
    assert taught(lambda n: 1.0).choose([chances(0.99)], 100, free) == [8]


def test_none_where_each_token_costs_as_much_as_the_first() -> None:
    assert taught(lambda n: float(n)).choose([chances(0.9)], 100, free) == [0]


def test_as_many_as_pay() -> None:
    # chances 0.5, 0.25, ...: one gives 1.5 tokens in 1.3 seconds, two 1.75 in 1.6
    assert taught(lambda n: 0.7 + 0.3 * n).choose([chances(0.5)], 100, free) == [1]


def test_a_jump_of_cost_is_not_crossed() -> None:
    assert taught(lambda n: 1.0 if n <= 4 else 3.0).choose([chances(0.95)], 100, free) == [3]


def test_drafts_go_where_they_are_likely() -> None:
    planner = taught(lambda n: 3.0 + 0.2 * n, num_sequences=3)
    few, none, many = planner.choose([chances(0.5), [], chances(0.98)], 100, free)
    assert none == 0 and many > 2 * few > 0


def test_one_is_not_made_faster_at_the_cost_of_all_others() -> None:
    """Four tokens more at a step that takes 1.4 times as long: more tokens a second."""
    planner = taught(lambda n: 0.2 + 0.1 * n, num_sequences=8)
    assert sum(planner.choose([chances(0.98), *[[]] * 7], 100, free)) == 0
    assert sum(planner.choose([chances(0.98)] * 8, 100, free)) > 0


def test_the_room_is_kept() -> None:
    planner = taught(lambda n: 1.0, num_sequences=2)
    assert sum(planner.choose([chances(0.9), chances(0.9)], 5, free)) == 5
    assert planner.choose([chances(0.9), chances(0.9)], 0, free) == [0, 0]


def test_time_for_drafting_counts() -> None:
    planner = taught(lambda n: 1.0)
    assert planner.choose([chances(0.9)], 100, lambda n: 1.0 * n) == [0]
    some = planner.choose([chances(0.9)], 100, lambda n: 0.3 * n)[0]
    assert 0 < some < 8


def test_unknown_costs_are_tried_and_then_known() -> None:
    planner = Planner()
    planner.learn(1, 1.0)
    assert planner.choose([chances(0.9)], 100, free) == [8]
    for _ in range(3):
        planner.learn(9, 9.0)
    assert planner.choose([chances(0.9)], 100, free)[0] == 0


def test_what_is_too_slow_is_tried_again_ever_more_rarely() -> None:
    planner = taught(lambda n: float(n))
    tries = []
    for step in range(2000):
        count = planner.choose([chances(0.95)], 100, free)[0]
        planner.learn(1 + count, float(1 + count))
        if count:
            tries.append(step)
    assert len(tries) < 30
    assert tries[0] > 100


def test_drafts_that_are_rarely_right_are_no_reason_to_doubt() -> None:
    planner = taught(lambda n: float(n))
    for _ in range(3 * planner_module._FIRST_PATIENCE):
        assert planner.choose([chances(0.2)], 100, free) == [0]


@given(
    offers=st.lists(
        st.lists(st.floats(0, 1), max_size=8).map(lambda c: sorted(c, reverse=True)), min_size=1
    ),
    room=st.integers(0, 40),
    slope=st.floats(0, 2),
)
def test_counts_are_within_the_offers_and_the_room(
    offers: list[Sequence[float]], room: int, slope: float
) -> None:
    planner = taught(lambda n: 1.0 + slope * n, len(offers))
    counts = planner.choose(offers, room, free)
    assert len(counts) == len(offers) and sum(counts) <= room
    assert all(0 <= count <= len(offer) for count, offer in zip(counts, offers, strict=True))
