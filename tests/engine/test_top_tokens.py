import pytest
import torch

from engine.top_tokens import argmax, largest

VOCAB_SIZES = [1, 5, 127, 128, 129, 1000, 151_936]


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_argmax_takes_the_lowest_id(vocab_size: int) -> None:
    for logits in (torch.randn(4, vocab_size), torch.randint(3, (4, vocab_size)).float()):
        expected = [row.index(max(row)) for row in logits.tolist()]
        assert argmax(logits).tolist() == expected
        assert argmax(logits - 1000).tolist() == expected


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("count", [1, 4, 64, 1024])
def test_largest_are_the_head_of_a_full_sort(vocab_size: int, count: int) -> None:
    count = min(count, vocab_size)
    for logits in (torch.randn(3, vocab_size), torch.randint(50, (3, vocab_size)).float()):
        values, ids = largest(logits, count)
        assert torch.equal(values, logits.sort(-1, descending=True).values[:, :count])
        assert torch.equal(logits.gather(-1, ids), values)
        assert all(len(set(row)) == count for row in ids.tolist())


def test_few_finite_logits_in_the_short_last_block() -> None:
    logits = torch.full((1, 100_001), float("-inf"))
    logits[0, 100_000] = 1.0
    values, ids = largest(logits, 3)
    assert argmax(logits).tolist() == [100_000]
    assert ids[0, 0] == 100_000
    assert values[0].tolist() == [1.0, float("-inf"), float("-inf")]


def test_columns_cut_from_a_wider_tensor() -> None:
    logits = torch.randn(3, 1000)
    logits[:, 900:] += 100
    cut = logits[:, :900]
    assert torch.equal(argmax(cut), argmax(cut.contiguous()))
    assert torch.equal(largest(cut, 1)[1], largest(cut.contiguous(), 1)[1])
