import pytest

from engine.speculation.step_costs import StepCosts, _bucket


def taught(*steps: tuple[int, float]) -> StepCosts:
    costs = StepCosts()
    for num_tokens, seconds in steps:
        costs.observe(num_tokens, seconds)
    return costs


def ratio(costs: StepCosts, num_tokens: int, to: int = 1) -> float:
    return costs.seconds(num_tokens) / costs.seconds(to)


def test_nothing_is_known_of_more_tokens_than_were_measured() -> None:
    costs = taught((4, 0.1))
    assert costs.knows(4) and costs.knows(2) and not costs.knows(5)
    assert not StepCosts().knows(1) and StepCosts().seconds(1) == 0


def test_between_two_measured_steps_a_line_is_drawn() -> None:
    costs = taught((1, 0.1), (5, 0.3))
    assert costs.seconds(3) == pytest.approx(0.2)
    assert costs.seconds(9) == pytest.approx(0.5)  # and it goes on


def test_more_tokens_are_thought_cheap_until_they_are_measured() -> None:
    assert 0.1 < taught((4, 0.1)).seconds(8) < 0.12


def test_fewer_tokens_too() -> None:
    assert taught((4, 0.1)).seconds(2) == pytest.approx(0.05)


def test_the_first_times_may_include_a_warm_up() -> None:
    assert taught((4, 9.0), (4, 0.1), (4, 0.3)).seconds(4) == 0.1


def test_one_slow_step_is_not_the_load() -> None:
    costs = taught(*[(1, 0.1), (4, 0.2)] * 10, (1, 100.0))
    assert costs.seconds(4) == pytest.approx(0.2)
    assert ratio(costs, 4) == pytest.approx(2, rel=0.05)


def test_load_slows_all_steps_and_leaves_their_ratio() -> None:
    """Only one kind of step is run while others use the machine."""
    costs = taught(*[(1, 0.1), (4, 0.2)] * 10, *[(1, 0.4)] * 30)
    assert costs.seconds(1) == pytest.approx(0.4, rel=0.1)
    assert costs.seconds(4) == pytest.approx(0.8, rel=0.1)


def test_a_ratio_that_changes_is_learned() -> None:
    costs = taught(*[(1, 0.1), (4, 0.2)] * 20, *[(1, 0.1), (4, 0.4)] * 60)
    assert ratio(costs, 4) == pytest.approx(4, rel=0.1)


def test_forgets_what_more_tokens_take() -> None:
    costs = taught((2, 0.1), (6, 0.9))
    costs.forget_above(2)
    assert costs.seconds(2) == 0.1 and costs.seconds(6) < 0.2
    StepCosts().forget_above(3)


def test_large_numbers_share_their_place() -> None:
    assert [_bucket(n) for n in (1, 16, 17, 18, 19, 64, 65, 72, 73)] == [
        *(1, 16, 18, 18, 20, 64, 72, 72, 80),
    ]
