"""Who is alive, by beats alone."""

from engine.redis_queue.members import BEAT_S, DEAD_S, FORGOTTEN_S, Members


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def poll(members: Members, clock: Clock, beats: dict[str, int]) -> None:
    clock.now += BEAT_S
    members.update(beats)


def test_those_whose_beats_go_on_are_alive() -> None:
    clock = Clock()
    members = Members(clock)
    for number in range(20):
        poll(members, clock, {"steady": number, "stopped": min(number, 3)})
    assert members.alive() == ["steady"]
    assert members.is_dead("stopped")
    assert not members.is_dead("steady")


def test_one_is_dead_after_the_limit_and_not_before() -> None:
    clock = Clock()
    members = Members(clock)
    poll(members, clock, {"a": 1})
    while clock.now < 100.0 + BEAT_S + DEAD_S:
        poll(members, clock, {"a": 1})
        assert not members.is_dead("a")
    poll(members, clock, {"a": 1})
    assert members.is_dead("a")
    poll(members, clock, {"a": 2})
    assert not members.is_dead("a")


def test_time_in_which_nobody_could_be_asked_counts_for_nobody() -> None:
    clock = Clock()
    members = Members(clock)
    poll(members, clock, {"a": 1})
    clock.now += 1000
    poll(members, clock, {"a": 1})
    assert not members.is_dead("a")


def test_one_that_was_never_seen_gets_as_long() -> None:
    clock = Clock()
    members = Members(clock)
    poll(members, clock, {})
    assert not members.is_dead("new")
    for _ in range(int(DEAD_S / BEAT_S) + 1):
        poll(members, clock, {})
    assert members.is_dead("new")
    assert members.alive() == []


def test_a_message_is_as_good_as_a_beat() -> None:
    clock = Clock()
    members = Members(clock)
    for _ in range(20):
        poll(members, clock, {"a": 1})
        members.hear("a")
    assert not members.is_dead("a")


def test_one_whose_beats_are_gone_is_not_alive() -> None:
    clock = Clock()
    members = Members(clock)
    poll(members, clock, {"a": 1})
    assert members.alive() == ["a"]
    poll(members, clock, {})
    assert members.alive() == []


def test_the_long_dead_are_forgotten() -> None:
    clock = Clock()
    members = Members(clock)
    while clock.now < 100.0 + FORGOTTEN_S:
        poll(members, clock, {"a": 1})
        assert members.forgotten() == []
    poll(members, clock, {"a": 1})
    poll(members, clock, {"a": 1})
    assert members.forgotten() == ["a"]
    members.forget(["a"])
    assert members.forgotten() == []
