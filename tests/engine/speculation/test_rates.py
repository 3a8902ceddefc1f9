import pytest

from engine.speculation.rates import Experience, Rates


def test_nothing_known_is_what_others_say() -> None:
    assert Rates(2, keep=0.9).estimate(1, 0.35) == pytest.approx(0.35)


def test_guesses_of_its_own_outweigh_what_others_say() -> None:
    rates = Rates(1, keep=0.9)
    for _ in range(40):
        rates.record(0, is_hit=False)
    assert rates.estimate(0, 0.9) < 0.3
    for _ in range(40):
        rates.record(0, is_hit=True)
    assert rates.estimate(0, 0.1) > 0.7  # the old ones are forgotten


def test_kinds_are_apart() -> None:
    rates = Rates(2, keep=0.9)
    rates.record(0, is_hit=True)
    assert rates.estimate(1, 0.5) == 0.5 and rates.estimate(0, 0.5) > 0.5
    rates.forget()
    assert rates.estimate(0, 0.5) == 0.5


def test_a_new_sequence_begins_with_the_experience_of_all() -> None:
    experience = Experience([0.9])
    for _ in range(400):
        experience.rates.record(0, is_hit=False)
    assert experience.estimate(experience.new_rates(), 0) < 0.1
