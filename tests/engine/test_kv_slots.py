"""int8 slots: how near a number comes back, and that nothing of a slot depends on another."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kv_slots import Int8Slots

HEADS, HEAD_DIM, GROUP = 2, 64, 32
CPU = torch.device("cpu")


def slots(dtype: torch.dtype) -> Int8Slots:
    empty = Int8Slots.allocate(6, HEADS, HEAD_DIM, dtype, CPU)
    empty.codes.fill_(99)
    empty.scales.fill_(float("nan"))
    return empty


@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([1e-3, 1.0, 300.0]),
    st.integers(0, 2**31),
)
def test_numbers_come_back_within_half_a_step(dtype: torch.dtype, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    numbers = (torch.randn(3, HEADS, HEAD_DIM, generator=generator) * size).to(dtype)
    target, where = slots(dtype), torch.tensor([4, 0, 3])
    target.write(where, numbers)
    back = target.read(where)
    assert back.dtype == dtype
    exact = numbers.double()
    groups = exact.view(3, HEADS, -1, GROUP)
    step = (groups.abs().amax(-1, keepdim=True) / 127).expand_as(groups).flatten(-2)
    # Half a step; what scale and product round to beside it; float16's smallest numbers.
    rounding = torch.finfo(dtype).eps
    bound = step * (0.5 + 128 * rounding) + 128 * torch.finfo(dtype).smallest_normal * rounding
    assert ((back.double() - exact).abs() <= bound).all()


def test_a_slot_stands_for_itself() -> None:
    """Written alone or with larger neighbours, its numbers are the same."""
    numbers = torch.randn(2, HEADS, HEAD_DIM)
    numbers[1] *= 1000
    together, alone = slots(torch.float32), slots(torch.float32)
    together.write(torch.tensor([1, 2]), numbers)
    alone.write(torch.tensor([5]), numbers[:1])
    assert torch.equal(together.read(torch.tensor([1])), alone.read(torch.tensor([5])))
    assert together.scales[[0, 3, 4, 5]].isnan().all()


def test_a_large_number_costs_its_own_group_only() -> None:
    numbers = torch.randn(1, HEADS, HEAD_DIM)
    numbers[0, 0, 5] = 1000
    target = slots(torch.float32)
    target.write(torch.tensor([0]), numbers)
    error = (target.read(torch.tensor([0])) - numbers).abs()
    assert error[0, 0, :GROUP].max() > 0.1
    assert error[0, 0, GROUP:].max() < 0.05 and error[0, 1].max() < 0.05


@pytest.mark.parametrize("head_dim", [8, 80])
def test_heads_that_do_not_split_have_one_scale(head_dim: int) -> None:
    target = Int8Slots.allocate(2, HEADS, head_dim, torch.bfloat16, CPU)
    assert target.scales.shape == (2, HEADS, 1)
    numbers = torch.randn(1, HEADS, head_dim).bfloat16()
    target.write(torch.tensor([1]), numbers)
    torch.testing.assert_close(target.read(torch.tensor([1])), numbers, atol=0.05, rtol=0.01)


def test_zeros_stay_zeros() -> None:
    target = slots(torch.bfloat16)
    target.write(torch.tensor([0]), torch.zeros(1, HEADS, HEAD_DIM))
    assert not target.read(torch.tensor([0])).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so(value: float) -> None:
    """So that a broken sequence is found out, and only that one."""
    numbers = torch.randn(2, HEADS, HEAD_DIM)
    numbers[0, 1, 3] = value
    target = slots(torch.float32)
    target.write(torch.tensor([0, 1]), numbers)
    back = target.read(torch.tensor([0, 1]))
    assert not back[0, 1, 3].isfinite()
    assert back[0, 0].isfinite().all() and back[1].isfinite().all()
