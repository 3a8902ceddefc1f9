"""The largest logits of rows, by each variant of the kernels and without one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kernels import library
from engine.kernels.peaks import find_peaks
from engine.top_tokens import Peaks

pytestmark = pytest.mark.usefixtures("one_thread")
NAN, INF = float("nan"), float("inf")
LIBRARIES: dict[str, Callable[[], Any]] = {
    name: lambda name=name: library.load_variant(name) for name in library.variants()
} | {"none": lambda: None}


def peaks(logits: torch.Tensor, num_valid: int, name: str) -> Peaks:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load", LIBRARIES[name])
        assert (find_peaks(logits, num_valid) is None) == (name == "none")
        return Peaks.of(logits, num_valid)


@pytest.mark.parametrize("name", LIBRARIES)
@given(
    st.sampled_from(
        [(1, 1), (15, 15), (16, 16), (17, 16), (1024, 1024), (1025, 1025), (3100, 3000)]
    ),
    st.sampled_from([2, 50, 10_000]),
    st.integers(0, 2**31),
)
def test_the_lowest_of_the_largest(
    name: str, sizes: tuple[int, int], num_values: int, seed: int
) -> None:
    count, num_valid = sizes
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-num_values, num_values, (3, count), generator=generator).float()
    logits[:, num_valid:] += 1e6
    logits[1] -= 1e9
    found = peaks(logits, num_valid, name)
    rows = logits[:, :num_valid].tolist()
    assert found.ids.tolist() == [row.index(max(row)) for row in rows]
    assert found.values.tolist() == [max(row) for row in rows]
    assert found.are_usable.tolist() == [True] * 3
    assert found.ids.dtype == torch.int64 and found.values.dtype == torch.float32


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("place", [0, 7, 15, 16, 40, 1023, 1024, 2999, 3000, 3016, 3099])
def test_rows_that_are_not_usable(name: str, place: int) -> None:
    """With NaN or +Inf anywhere; -Inf is a token that is not allowed."""
    logits = torch.randn(5, 3100, generator=torch.Generator().manual_seed(0))
    clean = peaks(logits, 3000, name)
    for row, value in enumerate((NAN, INF, -INF)):
        logits[row, place] = value
    logits[4, :3000] = -INF
    found = peaks(logits, 3000, name)
    assert found.are_usable.tolist() == [False, False, True, True, False]
    logits[2, place] = 100.0
    found = peaks(logits, 3000, name)
    wanted = place if place < 3000 else int(clean.ids[2])
    assert (int(found.ids[2]), int(found.ids[3])) == (wanted, int(clean.ids[3]))


def test_nothing_but_one_token_is_allowed() -> None:
    for name in LIBRARIES:
        for place in (0, 1, 1023, 1024, 2030):
            logits = torch.full((1, 2048), -INF)
            logits[0, place] = -1e30
            found = peaks(logits, 2048, name)
            assert (int(found.ids[0]), bool(found.are_usable[0])) == (place, True)


def test_what_the_kernels_do_not_take() -> None:
    logits = torch.randn(3, 100)
    assert find_peaks(logits.half(), 100) is None
    assert find_peaks(logits[:, :90], 90) is None
    found = Peaks.of(logits[:, :90], 90)
    assert torch.equal(found.ids, logits[:, :90].argmax(1))
