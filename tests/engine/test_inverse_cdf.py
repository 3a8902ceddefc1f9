from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.inverse_cdf import draw


def draw_exactly(weights: list[int], noise: float) -> int:
    """The definition, in rational arithmetic."""
    target = Fraction(noise) * sum(weights)
    total = 0
    for place, weight in enumerate(weights):
        total += weight
        if total > target:
            return place
    raise AssertionError("no weight")


@settings(max_examples=80)
@given(
    weights=st.lists(st.sampled_from([0, 0, 1, 5, 2**20]), min_size=1, max_size=1600),
    noise=st.floats(0, 1, exclude_max=True),
)
def test_equals_exact_arithmetic(weights: list[int], noise: float) -> None:
    weights = [*weights, 1]
    row = torch.tensor([weights], dtype=torch.float32)
    result = draw(row, torch.tensor([[noise]], dtype=torch.float64))
    assert result.tolist() == [draw_exactly(weights, noise)]


@pytest.mark.parametrize("width", [3, 511, 512, 513, 151_936])
def test_ends_of_the_range(width: int) -> None:
    weights = torch.full((2, width), 2.0**35)
    noise = torch.tensor([[0.0], [1 - 2.0**-53]], dtype=torch.float64)
    assert draw(weights, noise).tolist() == [0, width - 1]
    weights[:, [0, -1]] = 0
    assert draw(weights, noise).tolist() == [1, width - 2]


def test_rows_without_weight_stay_in_range() -> None:
    weights = torch.zeros(2, 1000)
    weights[1] = float("nan")
    places = draw(weights, torch.full((2, 1), 0.5, dtype=torch.float64)).tolist()
    assert all(0 <= place < 1000 for place in places)
